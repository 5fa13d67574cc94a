//! Who carries which addresses: prefixes with one owner each; of nested ones the longest counts.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use mesh_types::{IpNet, PeerId};

/// Prefixes nobody may carry by a membership: this network, loopback, link-local, multicast and reserved, IPv4-mapped.
/// Together they also meet every default route that comes in halves.
const SPECIAL: [&str; 9] = [
    "0.0.0.0/8",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "224.0.0.0/3",
    "::/128",
    "::1/128",
    "::ffff:0:0/96",
    "fe80::/10",
    "ff00::/8",
];

/// Prefixes and their owners.
#[derive(Debug)]
pub(crate) struct Ranges<O = PeerId> {
    held: BTreeMap<IpNet, O>,
    /// Prefix lengths in use, longest first: a search visits these only.
    lengths: BTreeSet<Reverse<u8>>,
}

impl<O> Default for Ranges<O> {
    fn default() -> Self {
        Self {
            held: BTreeMap::new(),
            lengths: BTreeSet::new(),
        }
    }
}

impl<O: Copy + PartialEq> Ranges<O> {
    /// Gives `net` to `owner` alone, or says who has a part of it.
    pub(crate) fn claim(&mut self, net: IpNet, owner: O) -> Result<(), O> {
        let net = net.trunc();
        let around = self.around(net).map(|(_, holder)| holder);
        let inside = self.held.range(net..);
        let inside = inside
            .take_while(|(held, _)| net.contains(*held))
            .map(|(_, holder)| holder);
        if let Some(holder) = around.chain(inside).find(|holder| **holder != owner) {
            return Err(*holder);
        }
        self.insert(net, owner);
        Ok(())
    }

    /// Gives `net` to `owner` although it lies around or inside others' prefixes, as WireGuard's allowed IPs
    /// may; says who has the very same prefix.
    pub(crate) fn claim_nested(&mut self, net: IpNet, owner: O) -> Result<(), O> {
        let net = net.trunc();
        match self.held.get(&net) {
            Some(holder) if *holder != owner => Err(*holder),
            Some(_) | None => {
                self.insert(net, owner);
                Ok(())
            }
        }
    }

    /// Who carries an address.
    pub(crate) fn owner(&self, address: IpAddr) -> Option<&O> {
        self.around(IpNet::from(address))
            .next()
            .map(|(_, holder)| holder)
    }

    /// Who has this very prefix.
    pub(crate) fn holder(&self, net: &IpNet) -> Option<&O> {
        self.held.get(net)
    }

    /// The held prefixes that contain `net`, longest first.
    pub(crate) fn around(&self, net: IpNet) -> impl Iterator<Item = (&IpNet, &O)> {
        self.lengths
            .range(Reverse(net.prefix_len())..)
            .filter_map(move |Reverse(length)| {
                let around = IpNet::new(net.addr(), *length).ok()?.trunc();
                self.held.get_key_value(&around)
            })
    }

    fn insert(&mut self, net: IpNet, owner: O) {
        self.lengths.insert(Reverse(net.prefix_len()));
        self.held.insert(net, owner);
    }
}

/// Do two prefixes share an address?
pub(crate) fn overlap(a: &IpNet, b: &IpNet) -> bool {
    a.contains(b) || b.contains(a)
}

/// Is it a prefix that nobody may carry by a membership?
pub(crate) fn is_special(net: &IpNet) -> bool {
    net.prefix_len() == 0
        || SPECIAL
            .iter()
            .filter_map(|text| text.parse::<IpNet>().ok())
            .any(|special| overlap(&special, net))
}

#[cfg(test)]
mod tests {
    use super::*;
    use mesh_types::WgKey;

    fn peer(n: u8) -> PeerId {
        PeerId::Key(WgKey([n; 32]))
    }
    fn net(text: &str) -> IpNet {
        text.parse().expect("prefix")
    }

    #[test]
    fn a_prefix_around_or_inside_anothers_is_refused() {
        let mut ranges = Ranges::default();
        assert_eq!(ranges.claim(net("10.1.0.0/16"), peer(1)), Ok(()));
        for text in [
            "10.0.0.0/8",
            "10.1.2.0/24",
            "10.1.0.0/16",
            "10.1.255.255/32",
        ] {
            assert_eq!(ranges.claim(net(text), peer(2)), Err(peer(1)), "{text}");
        }
        assert_eq!(ranges.claim(net("10.2.0.0/16"), peer(2)), Ok(()));
        assert_eq!(ranges.claim(net("10.0.0.0/16"), peer(2)), Ok(()));
    }

    #[test]
    fn an_owner_may_nest_its_own_prefixes_and_others_still_see_them() {
        let mut ranges = Ranges::default();
        for text in ["10.1.2.3/32", "10.1.9.0/24", "10.1.0.0/16", "10.1.7.0/24"] {
            assert_eq!(ranges.claim(net(text), peer(1)), Ok(()), "{text}");
        }
        assert_eq!(ranges.claim(net("10.1.200.0/24"), peer(2)), Err(peer(1)));
        let address = "10.1.9.1".parse().expect("address");
        assert_eq!(ranges.owner(address), Some(&peer(1)));
        assert_eq!(ranges.owner("10.2.0.0".parse().expect("address")), None);
    }

    #[test]
    fn nested_prefixes_have_each_their_owner_and_the_longest_counts() {
        let mut ranges = Ranges::default();
        for (text, owner) in [
            ("10.1.2.0/24", 2),
            ("10.0.0.0/8", 1),
            ("10.1.0.0/16", 3),
            ("10.1.2.7/32", 1),
        ] {
            assert_eq!(
                ranges.claim_nested(net(text), peer(owner)),
                Ok(()),
                "{text}"
            );
        }
        assert_eq!(
            ranges.claim_nested(net("10.1.0.0/16"), peer(2)),
            Err(peer(3))
        );
        for (text, owner) in [
            ("10.1.2.9", 2),
            ("10.1.2.7", 1),
            ("10.1.3.9", 3),
            ("10.9.9.9", 1),
        ] {
            let address = text.parse().expect("address");
            assert_eq!(ranges.owner(address), Some(&peer(owner)), "{text}");
        }
        assert_eq!(ranges.claim(net("10.1.2.128/25"), peer(2)), Err(peer(3)));
    }

    #[test]
    fn default_routes_and_their_halves_are_special() {
        for text in [
            "0.0.0.0/0",
            "0.0.0.0/1",
            "128.0.0.0/1",
            "::/0",
            "::/1",
            "8000::/1",
        ] {
            assert!(is_special(&net(text)), "{text}");
        }
        for text in ["10.0.0.0/8", "192.168.1.0/24", "2001:db8::/32", "fd00::/8"] {
            assert!(!is_special(&net(text)), "{text}");
        }
    }
}
