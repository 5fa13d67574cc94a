//! Host names among the `endpoints` of `[[peer]]` entries: looked up at the start, at a reload and, while a
//! peer of theirs is not connected, every few minutes. A failure keeps what was known and is tried again.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use mesh_types::{ConfigPeer, WgKey};
use overlay::{Finding, Severity};

/// A name whose peers are not connected is looked up so often.
const EVERY: Duration = Duration::from_secs(120);
/// After a failure, doubled with each further one up to [`EVERY`].
const AGAIN: Duration = Duration::from_secs(5);
/// Addresses of one name.
const ADDRESSES_MAX: usize = 8;

/// What the names stand for.
#[derive(Debug, Default)]
pub struct Names {
    of_peer: BTreeMap<WgKey, Vec<String>>,
    known: BTreeMap<String, Known>,
}

#[derive(Debug)]
struct Known {
    addresses: Vec<SocketAddr>,
    /// Why the last lookup failed, and how many did in a row.
    failed: Option<(String, u32)>,
    /// `None` while a lookup is under way.
    due: Option<Instant>,
}

impl Names {
    /// The names of the file, all to be looked up at once; addresses known so far stay.
    pub fn set(&mut self, of_peer: BTreeMap<WgKey, Vec<String>>, now: Instant) {
        self.known
            .retain(|name, _| of_peer.values().flatten().any(|kept| kept == name));
        for name in of_peer.values().flatten() {
            let fresh = || Known {
                addresses: Vec::new(),
                failed: None,
                due: Some(now),
            };
            let known = self.known.entry(name.clone()).or_insert_with(fresh);
            known.due = known.due.map(|_| now);
        }
        self.of_peer = of_peer;
    }

    /// When the next lookup is due.
    pub fn due(&self) -> Option<Instant> {
        self.known.values().filter_map(|known| known.due).min()
    }

    /// The names to look up now. `connected` tells whether a peer needs no address.
    pub fn take_due(&mut self, now: Instant, connected: impl Fn(&WgKey) -> bool) -> Vec<String> {
        let mut out = Vec::new();
        for (name, known) in &mut self.known {
            if known.due.is_none_or(|due| due > now) {
                continue;
            }
            let mut peers = self
                .of_peer
                .iter()
                .filter(|(_, names)| names.contains(name));
            if known.addresses.is_empty() || peers.any(|(key, _)| !connected(key)) {
                known.due = None;
                out.push(name.clone());
            } else {
                known.due = Some(now + EVERY);
            }
        }
        out
    }

    /// A lookup came back; tells whether the addresses changed.
    pub fn answered(
        &mut self,
        name: &str,
        found: Result<Vec<SocketAddr>, String>,
        now: Instant,
    ) -> bool {
        let Some(known) = self.known.get_mut(name) else {
            return false;
        };
        let usable = found.and_then(|found| {
            let mut usable: Vec<_> = found
                .into_iter()
                .map(|found| SocketAddr::new(found.ip().to_canonical(), found.port()))
                .filter(|found| !found.ip().is_unspecified() && !found.ip().is_multicast())
                .collect();
            // Servers deal out their answers in turns; the order says nothing.
            usable.sort_unstable();
            usable.dedup();
            usable.truncate(ADDRESSES_MAX);
            if usable.is_empty() {
                return Err("the resolver knows no address of it".to_owned());
            }
            Ok(usable)
        });
        match usable {
            Ok(addresses) => {
                known.failed = None;
                known.due = Some(now + EVERY);
                let changed = known.addresses != addresses;
                known.addresses = addresses;
                changed
            }
            Err(error) => {
                let before = known.failed.as_ref().map_or(0, |(_, times)| *times);
                let wait = AGAIN.saturating_mul(1 << before.min(10)).min(EVERY);
                known.failed = Some((error, before.saturating_add(1)));
                known.due = Some(now + wait);
                false
            }
        }
    }

    /// The entries of the file with the addresses that their names stand for.
    pub fn resolve(&self, peers: &[ConfigPeer]) -> Vec<ConfigPeer> {
        let mut peers = peers.to_vec();
        for peer in &mut peers {
            let names = self.of_peer.get(&peer.key).into_iter().flatten();
            let known = names.filter_map(|name| self.known.get(name));
            peer.endpoints
                .extend(known.flat_map(|known| known.addresses.iter().copied()));
        }
        peers
    }

    /// Names that cannot be looked up.
    pub fn findings(&self) -> impl Iterator<Item = Finding> {
        self.known.iter().filter_map(|(name, known)| {
            let (error, _) = known.failed.as_ref()?;
            let meanwhile = match known.addresses.is_empty() {
                true => "it has no address of that peer",
                false => "it goes on with the address known before",
            };
            Some(Finding {
                code: "endpoint-unresolved".into(),
                severity: Severity::Warning,
                message: format!(
                    "this node cannot look up the endpoint {name}: {error}; {meanwhile} and tries again"
                ),
                remedy: "Check the name in [[peer]] endpoints and this machine's resolver (/etc/resolv.conf).".into(),
            })
        })
    }
}

#[cfg(test)]
#[expect(
    clippy::disallowed_methods,
    reason = "a test needs some instant to begin with"
)]
mod tests {
    use super::*;

    const NAME: &str = "vpn.example.org:51820";

    fn names(now: Instant) -> Names {
        let mut names = Names::default();
        names.set(
            BTreeMap::from([(WgKey([1; 32]), vec![NAME.to_owned()])]),
            now,
        );
        names
    }

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_name_is_looked_up_at_once_and_its_addresses_join_the_entry() {
        let now = Instant::now();
        let mut names = names(now);
        assert_eq!(names.take_due(now, |_| true), [NAME]);
        assert_eq!(names.due(), None, "one lookup at a time");
        let found = vec![
            address("203.0.113.9:51820"),
            address("[::ffff:203.0.113.9]:51820"),
            address("0.0.0.0:51820"),
        ];
        assert!(names.answered(NAME, Ok(found.clone()), now));
        assert!(!names.answered(NAME, Ok(found), now));
        let entry = ConfigPeer {
            name: None,
            key: WgKey([1; 32]),
            endpoints: vec![],
            allowed_ips: vec![],
            plain: true,
            preshared_key: None,
            persistent_keepalive: None,
        };
        let peers = names.resolve(&[entry]);
        assert_eq!(peers[0].endpoints, [address("203.0.113.9:51820")]);
        assert_eq!(names.findings().count(), 0);
    }

    #[test]
    fn only_peers_without_a_connection_cost_further_lookups() {
        let now = Instant::now();
        let mut names = names(now);
        names.take_due(now, |_| false);
        names.answered(NAME, Ok(vec![address("203.0.113.9:51820")]), now);
        let later = now + EVERY;
        assert!(names.take_due(later, |_| true).is_empty());
        assert_eq!(names.due(), Some(later + EVERY));
        assert_eq!(names.take_due(later + EVERY, |_| false), [NAME]);
    }

    #[test]
    fn a_failure_is_a_finding_and_is_tried_again_ever_more_slowly() {
        let mut now = Instant::now();
        let mut names = names(now);
        let mut waits = Vec::new();
        for _ in 0..7 {
            assert_eq!(names.take_due(now, |_| false), [NAME]);
            assert!(!names.answered(NAME, Err("no such name".into()), now));
            let due = names.due().unwrap();
            waits.push((due - now).as_secs());
            now = due;
        }
        assert_eq!(waits, [5, 10, 20, 40, 80, 120, 120]);
        let finding = names.findings().next().unwrap();
        assert!(finding.message.contains("no such name"), "{finding:?}");
        names.take_due(now, |_| false);
        names.answered(NAME, Ok(vec![address("203.0.113.9:51820")]), now);
        assert_eq!(names.findings().count(), 0);
    }

    #[test]
    fn a_reload_looks_up_anew_and_forgets_what_is_gone() {
        let now = Instant::now();
        let mut names = names(now);
        names.take_due(now, |_| false);
        names.answered(NAME, Ok(vec![address("203.0.113.9:51820")]), now);
        let later = now + Duration::from_secs(1);
        names.set(names.of_peer.clone(), later);
        assert_eq!(names.take_due(later, |_| false), [NAME]);
        names.set(BTreeMap::new(), later);
        assert_eq!(names.due(), None);
        assert!(!names.answered(NAME, Ok(vec![]), later));
    }
}
