//! Cryptokey routing: which peer an inner address belongs to.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use prefix_trie::PrefixMap;

/// Who carries a range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Route {
    /// The peer whose range it is.
    pub owner: u32,
    /// The key the owner had before, while its session lives on.
    pub fallback: Option<u32>,
}

impl Route {
    /// May packets from this range come from that peer?
    pub fn accepts(&self, peer: u32) -> bool {
        self.owner == peer || self.fallback == Some(peer)
    }
}

/// Answers remembered, a power of two.
const MEMORY: usize = 256;

/// All ranges.
pub(super) struct Routes {
    v4: PrefixMap<Ipv4Net, Route>,
    v6: PrefixMap<Ipv6Net, Route>,
    /// The same, to compare with the next plan.
    all: BTreeMap<IpNet, Route>,
    /// The last answers, each in the place its address hashes to: the longest match among thousands of ranges
    /// takes a third of the time that opening a small packet does.
    memory: Box<[Option<(IpAddr, Route)>]>,
}

impl Default for Routes {
    fn default() -> Self {
        Self {
            v4: PrefixMap::default(),
            v6: PrefixMap::default(),
            all: BTreeMap::new(),
            memory: vec![None; MEMORY].into_boxed_slice(),
        }
    }
}

impl Routes {
    /// The longest match.
    pub fn find(&mut self, ip: IpAddr) -> Option<Route> {
        let place = place(ip);
        if let Some((known, route)) = self.memory[place]
            && known == ip
        {
            return Some(route);
        }
        let route = self.search(ip)?;
        self.memory[place] = Some((ip, route));
        Some(route)
    }

    fn search(&self, ip: IpAddr) -> Option<Route> {
        match ip {
            IpAddr::V4(ip) => self.v4.get_lpm(&Ipv4Net::from(ip)).map(|(_, route)| *route),
            IpAddr::V6(ip) => self.v6.get_lpm(&Ipv6Net::from(ip)).map(|(_, route)| *route),
        }
    }

    /// Makes the owners as planned. Where a range changes hands, `heir` says whether the old owner stays on as
    /// fallback; `alive` whether a peer is there at all.
    pub fn update(&mut self, planned: &BTreeMap<IpNet, u32>, stays: impl Fn(u32) -> bool) {
        let gone: Vec<IpNet> = self
            .all
            .keys()
            .filter(|prefix| !planned.contains_key(prefix))
            .copied()
            .collect();
        for prefix in gone {
            self.remove(prefix);
        }
        self.memory.fill(None);
        for (&prefix, &owner) in planned {
            let before = self.all.get(&prefix).copied();
            let fallback = match before {
                Some(route) if route.owner == owner => route.fallback,
                Some(route) => Some(route.owner),
                None => None,
            };
            let route = Route {
                owner,
                fallback: fallback.filter(|&peer| peer != owner && stays(peer)),
            };
            if before != Some(route) {
                self.insert(prefix, route);
            }
        }
    }

    fn insert(&mut self, prefix: IpNet, route: Route) {
        self.all.insert(prefix, route);
        match prefix {
            IpNet::V4(prefix) => drop(self.v4.insert(prefix, route)),
            IpNet::V6(prefix) => drop(self.v6.insert(prefix, route)),
        }
    }

    fn remove(&mut self, prefix: IpNet) {
        self.all.remove(&prefix);
        match prefix {
            IpNet::V4(prefix) => drop(self.v4.remove(&prefix)),
            IpNet::V6(prefix) => drop(self.v6.remove(&prefix)),
        }
    }
}

/// Where the answer about an address is remembered.
fn place(ip: IpAddr) -> usize {
    let bits = match ip {
        IpAddr::V4(ip) => u64::from(ip.to_bits()),
        IpAddr::V6(ip) => (ip.to_bits() ^ (ip.to_bits() >> 64)) as u64,
    };
    (bits.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as usize % MEMORY
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(entries: &[(&str, u32)]) -> BTreeMap<IpNet, u32> {
        entries
            .iter()
            .map(|(prefix, peer)| (prefix.parse().unwrap(), *peer))
            .collect()
    }

    fn find(routes: &mut Routes, ip: &str) -> Option<Route> {
        routes.find(ip.parse().unwrap())
    }

    #[test]
    fn the_longest_prefix_wins_in_both_families() {
        let mut routes = Routes::default();
        let planned = plan(&[
            ("10.0.0.0/8", 1),
            ("10.1.0.0/16", 2),
            ("10.1.2.3/32", 3),
            ("fd00::/16", 4),
            ("fd00::1/128", 5),
        ]);
        routes.update(&planned, |_| true);
        assert_eq!(find(&mut routes, "10.9.9.9").unwrap().owner, 1);
        assert_eq!(find(&mut routes, "10.1.9.9").unwrap().owner, 2);
        assert_eq!(find(&mut routes, "10.1.2.3").unwrap().owner, 3);
        assert_eq!(find(&mut routes, "fd00::2").unwrap().owner, 4);
        assert_eq!(find(&mut routes, "fd00::1").unwrap().owner, 5);
        assert_eq!(find(&mut routes, "11.0.0.1"), None);
        assert_eq!(find(&mut routes, "fe80::1"), None);
    }

    #[test]
    fn a_range_that_changes_hands_keeps_its_old_owner_only_while_that_stays() {
        let mut routes = Routes::default();
        routes.update(&plan(&[("10.0.0.0/8", 1)]), |_| true);
        routes.update(&plan(&[("10.0.0.0/8", 2)]), |_| true);
        let route = find(&mut routes, "10.0.0.1").unwrap();
        assert!(route.accepts(1) && route.accepts(2) && !route.accepts(3));
        routes.update(&plan(&[("10.0.0.0/8", 2)]), |peer| peer != 1);
        assert!(!find(&mut routes, "10.0.0.1").unwrap().accepts(1));
        routes.update(&plan(&[]), |_| true);
        assert_eq!(find(&mut routes, "10.0.0.1"), None);
    }
    #[test]
    fn what_is_remembered_is_forgotten_with_the_next_plan() {
        let mut routes = Routes::default();
        routes.update(&plan(&[("10.0.0.0/8", 1)]), |_| false);
        for _ in 0..2 {
            assert_eq!(find(&mut routes, "10.1.2.3").unwrap().owner, 1);
        }
        routes.update(&plan(&[("10.0.0.0/8", 1), ("10.1.0.0/16", 2)]), |_| false);
        assert_eq!(find(&mut routes, "10.1.2.3").unwrap().owner, 2);
        routes.update(&plan(&[]), |_| false);
        assert_eq!(find(&mut routes, "10.1.2.3"), None);
    }

    #[test]
    fn addresses_that_share_a_place_get_their_own_answers() {
        let mut routes = Routes::default();
        let ranges: Vec<String> = (0..=255).map(|n| format!("10.{n}.0.0/16")).collect();
        let owned: Vec<_> = ranges.iter().map(String::as_str).zip(0..).collect();
        routes.update(&plan(&owned), |_| false);
        for host in 0..16u8 {
            for n in 0..=255u8 {
                let ip = format!("10.{n}.3.{host}");
                assert_eq!(find(&mut routes, &ip).unwrap().owner, u32::from(n));
            }
        }
    }
}
