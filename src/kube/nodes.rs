//! What is known of the Node objects, and whose spec and status are asked for: a plain struct, fed by a watch of metadata.
//!
//! Annotations and labels count as they come. Pod ranges and addresses stand in spec and status, which a watch of
//! metadata does not show: a Node is fetched when it is new or lacks them, soon, and when its record changed, as it
//! comes. Fetches of all agents together stay below some thousand a second, however many there are.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use mesh_types::cluster::{ClusterEvent, Node};

use super::client::{Backoff, Failure, Kind};
use super::node::{Meta, Object, annotations, region};

/// Of all agents of a mesh together, a second.
const FETCHES: u32 = 2_000;
/// This many at once.
const BURST: u32 = 10;
/// Agents hear of a change in one moment: each waits by chance, longer the more there are.
const SPREAD_EACH: Duration = Duration::from_millis(2);
const SPREAD_MOST: Duration = Duration::from_secs(10);
/// Longest time between two looks at a Node that lacks its ranges.
const LACKING_EVERY: Duration = Duration::from_secs(300);
/// When so many are waited for, one listing is less than so many fetches.
const LISTING: usize = 64;

/// All Nodes.
#[derive(Debug)]
pub struct Nodes {
    known: BTreeMap<String, Known>,
    /// Do Nodes need pod ranges?
    pods: bool,
    /// The next fetch is free from then on.
    free: Option<Instant>,
    /// A part of a time, by chance.
    chance: fn(Duration) -> Duration,
}

#[derive(Debug)]
struct Known {
    node: Node,
    /// Was its spec ever seen?
    whole: bool,
    /// Of its annotations.
    revision: Option<u64>,
    fetch: Option<Fetch>,
    backoff: Backoff,
}

#[derive(Debug, Clone, Copy)]
struct Fetch {
    at: Instant,
    under_way: bool,
}

impl Nodes {
    /// `pods`: pod ranges are needed.
    pub fn new(pods: bool, chance: fn(Duration) -> Duration) -> Self {
        Self {
            known: BTreeMap::new(),
            pods,
            free: None,
            chance,
        }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.known.len()
    }

    /// A complete listing.
    pub fn listed(&mut self, objects: &[Object], now: Instant) -> ClusterEvent {
        let nodes: Vec<Node> = objects.iter().map(Object::node).collect();
        self.known = nodes
            .iter()
            .zip(objects)
            .map(|(node, object)| {
                let known = Known::new(node.clone(), &object.metadata, true);
                (node.name.clone(), known)
            })
            .collect();
        let names: Vec<String> = self.known.keys().cloned().collect();
        for name in names {
            self.look_again(&name, now);
        }
        ClusterEvent::Listed(nodes)
    }

    /// A Node's metadata is new or differs, or something else of it changed.
    pub fn applied(&mut self, object: &Object, now: Instant) -> Vec<ClusterEvent> {
        let spread = self.spread();
        let at = now + (self.chance)(spread);
        let meta = &object.metadata;
        let mut events = Vec::new();
        if let Some(known) = self.known.get_mut(&meta.name) {
            if known.node.uid == meta.uid {
                events.extend(known.updated(meta).then(|| known.event()));
                if !events.is_empty() || known.lacks(self.pods) {
                    known.fetch_by(at);
                }
                return events;
            }
            // Whose name this was is gone, although nobody saw it go.
            events.extend(self.deleted(meta));
        }
        let mut known = Known::new(object.node(), meta, false);
        known.fetch_by(at);
        self.known.insert(meta.name.clone(), known);
        events
    }

    /// A Node of this name is gone; one that came since under the same name stays.
    pub fn gone(&mut self, object: &Object) -> Option<ClusterEvent> {
        let known = self.known.get(&object.metadata.name)?;
        if known.node.uid != object.metadata.uid {
            return None;
        }
        self.deleted(&object.metadata)
    }

    fn deleted(&mut self, meta: &Meta) -> Option<ClusterEvent> {
        let known = self.known.remove(&meta.name)?;
        Some(ClusterEvent::Deleted {
            name: known.node.name,
            uid: known.node.uid,
        })
    }

    /// A fetch ended.
    pub fn fetched(
        &mut self,
        name: &str,
        found: Result<Object, Failure>,
        now: Instant,
    ) -> Option<ClusterEvent> {
        let known = self.known.get_mut(name)?;
        known.fetch = None;
        let object = match found {
            Ok(object) => object,
            // The watch tells who is gone.
            Err(failure) if failure.kind == Kind::NotFound => return None,
            Err(_) => {
                let wait = known.backoff.wait();
                known.fetch_by(now + wait);
                return None;
            }
        };
        let mut node = object.node();
        // The watch tells of the other one.
        if node.uid != known.node.uid {
            return None;
        }
        // What the watch has told since then is newer.
        if known.revision > revision(&object.metadata) {
            node.annotations.clone_from(&known.node.annotations);
            node.region.clone_from(&known.node.region);
        }
        let event = (!known.whole || known.node != node).then(|| {
            known.whole = true;
            known.node = node;
            known.event()
        });
        if !known.lacks(self.pods) {
            known.backoff = Backoff::up_to(LACKING_EVERY);
        }
        self.look_again(name, now);
        event
    }

    /// Kubelets and controllers fill in what is lacking, and tell nobody who watches metadata alone what it was.
    fn look_again(&mut self, name: &str, now: Instant) {
        let pods = self.pods;
        if let Some(known) = self.known.get_mut(name)
            && known.lacks(pods)
        {
            let wait = known.backoff.wait();
            known.fetch_by(now + wait);
        }
    }

    /// When somebody is to be fetched.
    pub fn due(&self) -> Option<Instant> {
        let waiting = self.waiting().map(|(_, _, fetch)| fetch.at).min()?;
        Some(match self.free {
            // Some are free at once.
            Some(free) => waiting.max(free.checked_sub(self.gap() * BURST).unwrap_or(free)),
            None => waiting,
        })
    }

    /// Who is to be fetched now: those first of whom only metadata is known.
    pub fn take_due(&mut self, now: Instant) -> Vec<String> {
        let mut due: Vec<(bool, Instant, String)> = self
            .waiting()
            .filter(|(_, _, fetch)| fetch.at <= now)
            .map(|(name, whole, fetch)| (whole, fetch.at, name.to_owned()))
            .collect();
        due.sort();
        let gap = self.gap();
        let mut names = Vec::new();
        for (_, _, name) in due {
            let free = self.free.map_or(now, |free| free.max(now));
            if free > now + gap * BURST {
                break;
            }
            self.free = Some(free + gap);
            if let Some(fetch) = self.known.get_mut(&name).and_then(|k| k.fetch.as_mut()) {
                fetch.under_way = true;
            }
            names.push(name);
        }
        names
    }

    /// Would one listing be less than the fetches of those who are new?
    pub fn wants_listing(&self) -> bool {
        self.waiting().filter(|(_, whole, _)| !whole).count() > LISTING
    }

    fn waiting(&self) -> impl Iterator<Item = (&str, bool, Fetch)> {
        self.known.iter().filter_map(|(name, known)| {
            let fetch = known.fetch.filter(|fetch| !fetch.under_way)?;
            Some((name.as_str(), known.whole, fetch))
        })
    }

    fn agents(&self) -> u32 {
        u32::try_from(self.known.len()).unwrap_or(u32::MAX)
    }

    /// Between two fetches of one agent.
    fn gap(&self) -> Duration {
        Duration::from_secs(1) * self.agents() / FETCHES
    }

    fn spread(&self) -> Duration {
        (SPREAD_EACH * self.agents()).min(SPREAD_MOST)
    }
}

impl Known {
    fn new(node: Node, meta: &Meta, whole: bool) -> Self {
        Self {
            node,
            whole,
            revision: revision(meta),
            fetch: None,
            backoff: Backoff::up_to(LACKING_EVERY),
        }
    }

    /// Takes over what metadata says; did it differ?
    fn updated(&mut self, meta: &Meta) -> bool {
        self.revision = revision(meta);
        let new = (annotations(meta), region(meta));
        if (&self.node.annotations, &self.node.region) == (&new.0, &new.1) {
            return false;
        }
        (self.node.annotations, self.node.region) = new;
        self.whole
    }

    fn lacks(&self, pods: bool) -> bool {
        !self.whole || (pods && self.node.pod_cidrs.is_empty()) || self.node.internal_ips.is_empty()
    }

    /// Not later than `at`.
    fn fetch_by(&mut self, at: Instant) {
        let fetch = self.fetch.get_or_insert(Fetch {
            at,
            under_way: false,
        });
        fetch.at = fetch.at.min(at);
    }

    fn event(&self) -> ClusterEvent {
        ClusterEvent::Applied(Box::new(self.node.clone()))
    }
}

/// Revisions of one kind of objects are numbers that grow.
fn revision(meta: &Meta) -> Option<u64> {
    meta.resource_version.parse().ok()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::agent::clock;

    /// The latest.
    fn whole(time: Duration) -> Duration {
        time
    }

    fn object(value: Value) -> Object {
        serde_json::from_value(value).unwrap()
    }

    fn full(name: &str, seq: u64) -> Object {
        object(json!({
            "metadata": {"name": name, "uid": format!("uid-{name}"), "resourceVersion": (100 + seq).to_string(),
                         "annotations": {"farspan.io/seq": seq.to_string()}},
            "spec": {"podCIDRs": ["10.244.1.0/24"]},
            "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]}
        }))
    }

    fn metadata(name: &str, seq: u64) -> Object {
        Object {
            metadata: full(name, seq).metadata,
            ..Object::default()
        }
    }

    fn seq(event: &ClusterEvent) -> (String, usize) {
        let ClusterEvent::Applied(node) = event else {
            panic!("{event:?}")
        };
        (
            node.annotations["farspan.io/seq"].clone(),
            node.pod_cidrs.len(),
        )
    }

    fn start() -> Instant {
        clock::instant()
    }

    #[test]
    fn a_changed_record_counts_at_once_and_is_fetched_once() {
        let now = start();
        let mut nodes = Nodes::new(true, whole);
        nodes.listed(&[full("a", 1), full("b", 1)], now);
        assert_eq!(nodes.due(), None);
        // A kubelet's report changes nothing that the mesh reads.
        assert!(nodes.applied(&metadata("a", 1), now).is_empty());
        assert_eq!(nodes.due(), None);
        let events = nodes.applied(&metadata("a", 2), now);
        assert_eq!(seq(&events[0]), ("2".into(), 1));
        nodes.applied(&metadata("a", 3), now);
        let later = now + Duration::from_secs(1);
        assert_eq!(nodes.take_due(later), ["a"]);
        assert!(nodes.take_due(later).is_empty());
        assert_eq!(nodes.fetched("a", Ok(full("a", 3)), later), None);
        assert_eq!(nodes.due(), None);
    }

    #[test]
    fn a_new_node_is_told_of_when_its_spec_is_known() {
        let now = start();
        let mut nodes = Nodes::new(true, whole);
        nodes.listed(&[], now);
        assert!(nodes.applied(&metadata("a", 1), now).is_empty());
        let later = now + Duration::from_secs(1);
        assert_eq!(nodes.take_due(later), ["a"]);
        let event = nodes.fetched("a", Ok(full("a", 1)), later).unwrap();
        assert_eq!(seq(&event), ("1".into(), 1));
    }

    #[test]
    fn a_node_without_ranges_is_fetched_until_it_has_some() {
        let now = start();
        let mut nodes = Nodes::new(true, whole);
        let mut bare = full("a", 1);
        bare.spec.pod_cidrs.clear();
        nodes.listed(std::slice::from_ref(&bare), now);
        let mut waits = Vec::new();
        let mut at = now;
        for _ in 0..12 {
            let due = nodes.due().unwrap();
            waits.push(due - at);
            at = due;
            assert_eq!(nodes.take_due(at), ["a"]);
            assert_eq!(nodes.fetched("a", Ok(bare.clone()), at), None);
        }
        assert!(waits[0] <= Duration::from_secs(1));
        assert!(waits[11] >= Duration::from_secs(150));
        at = nodes.due().unwrap();
        nodes.take_due(at);
        assert!(nodes.fetched("a", Ok(full("a", 1)), at).is_some());
        assert_eq!(nodes.due(), None);
        // Below another network nobody needs pod ranges.
        let mut nodes = Nodes::new(false, whole);
        nodes.listed(&[bare], now);
        assert_eq!(nodes.due(), None);
    }

    #[test]
    fn a_late_answer_does_not_bring_an_old_record_back() {
        let now = start();
        let mut nodes = Nodes::new(true, whole);
        nodes.listed(&[full("a", 1)], now);
        nodes.applied(&metadata("a", 2), now);
        let later = now + Duration::from_secs(1);
        nodes.take_due(later);
        nodes.applied(&metadata("a", 3), later);
        let mut old = full("a", 2);
        old.spec.pod_cidrs.push("fd00::/64".into());
        let event = nodes.fetched("a", Ok(old), later).unwrap();
        assert_eq!(seq(&event), ("3".into(), 2));
    }

    #[test]
    fn a_node_of_the_same_name_is_another_node() {
        let now = start();
        let mut nodes = Nodes::new(true, whole);
        nodes.listed(&[full("a", 1)], now);
        let mut other = metadata("a", 1);
        other.metadata.uid = "second".into();
        let events = nodes.applied(&other, now);
        assert_eq!(
            events,
            [ClusterEvent::Deleted {
                name: "a".into(),
                uid: "uid-a".into()
            }]
        );
        // The end of the first one is told late.
        assert_eq!(nodes.gone(&metadata("a", 1)), None);
        assert_eq!(nodes.known["a"].node.uid, "second");
        assert!(nodes.gone(&other).is_some());
        assert_eq!(nodes.len(), 0);
    }

    #[test]
    fn five_thousand_agents_do_not_ask_at_once() {
        let now = start();
        let mut nodes = Nodes::new(true, whole);
        let all: Vec<_> = (0..5_000).map(|n| full(&format!("n{n}"), 1)).collect();
        nodes.listed(&all, now);
        for n in 0..5_000 {
            nodes.applied(&metadata(&format!("n{n}"), 2), now);
        }
        let mut fetched = 0;
        let mut at = now;
        while at < now + Duration::from_secs(100) {
            at = nodes.due().unwrap().max(at);
            fetched += nodes.take_due(at).len();
        }
        assert!((40..=60).contains(&fetched), "{fetched}");
        assert!(!nodes.wants_listing());
        for n in 0..100 {
            nodes.applied(&metadata(&format!("new{n}"), 1), now);
        }
        assert!(nodes.wants_listing());
        let first = nodes.take_due(at + Duration::from_secs(60));
        assert!(
            first.iter().all(|name| name.starts_with("new")),
            "{first:?}"
        );
    }
}
