//! Who carries which addresses: disjoint prefixes, each with one owner.

use std::collections::BTreeMap;
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

/// Disjoint prefixes and their owners. Neighbouring prefixes of one owner may be merged into the larger.
#[derive(Debug, Default)]
pub(crate) struct Ranges(BTreeMap<IpNet, PeerId>);

impl Ranges {
    /// Gives `net` to `owner`, or says who has a part of it.
    pub(crate) fn claim(&mut self, net: IpNet, owner: PeerId) -> Result<(), PeerId> {
        let net = net.trunc();
        if let Some((held, holder)) = self.0.range(..=net).next_back()
            && held.contains(&net)
        {
            return if *holder == owner {
                Ok(())
            } else {
                Err(*holder)
            };
        }
        let inside: Vec<(IpNet, PeerId)> = self
            .0
            .range(net..)
            .take_while(|(held, _)| net.contains(*held))
            .map(|(held, holder)| (*held, *holder))
            .collect();
        if let Some((_, holder)) = inside.iter().find(|(_, holder)| *holder != owner) {
            return Err(*holder);
        }
        for (held, _) in inside {
            self.0.remove(&held);
        }
        self.0.insert(net, owner);
        Ok(())
    }

    /// Who carries an address.
    pub(crate) fn owner(&self, address: IpAddr) -> Option<&PeerId> {
        let (held, holder) = self.0.range(..=IpNet::from(address)).next_back()?;
        held.contains(&address).then_some(holder)
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
