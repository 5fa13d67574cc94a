//! Traffic of the test's own: numbered packets from one node's pod to another's, answered there.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use sim_net::tunnel::Inner;

use super::{NodeId, World};

const PORT: u16 = 7;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct FlowId(pub usize);

/// Echo requests from one node to another.
#[derive(Debug)]
pub struct Flow {
    index: usize,
    pub from: NodeId,
    pub to: NodeId,
    pub every: Duration,
    pub next: Option<Instant>,
    /// When each was sent.
    pub sent: Vec<Instant>,
    /// When each reached the other end first.
    pub reached: BTreeMap<usize, Instant>,
    /// When each was answered.
    pub answered: BTreeMap<usize, Instant>,
}

impl Flow {
    /// What every packet of the flow holds, and no other.
    pub fn marker(&self) -> Vec<u8> {
        format!("marker of flow {:04}", self.index).into_bytes()
    }

    /// The longest time after `since` in which what was sent got no answer.
    pub fn longest_gap(&self, since: Instant) -> Duration {
        let mut last = since;
        let mut gap = Duration::ZERO;
        for (index, sent) in self.sent.iter().enumerate() {
            if *sent < since {
                continue;
            }
            if self.answered.contains_key(&index) {
                gap = gap.max(sent.saturating_duration_since(last));
                last = *sent;
            }
        }
        self.sent
            .last()
            .map_or(gap, |end| gap.max(end.saturating_duration_since(last)))
    }

    /// Packets sent from `since` on, and those of them that were answered.
    pub fn tally(&self, since: Instant) -> (usize, usize) {
        let sent = self.sent.iter().filter(|at| **at >= since).count();
        let first = self.sent.len() - sent;
        (sent, self.answered.range(first..).count())
    }

    /// Packets sent so long ago that their answers would be here, and were not answered.
    pub fn lost(&self, since: Instant, now: Instant) -> usize {
        self.sent
            .iter()
            .enumerate()
            .filter(|(index, at)| {
                **at >= since
                    && **at + Duration::from_secs(2) < now
                    && !self.answered.contains_key(index)
            })
            .count()
    }

    fn payload(&self, number: usize, reply: bool) -> Vec<u8> {
        let mut payload = vec![u8::from(reply)];
        payload.extend(u32::try_from(self.index).unwrap_or(0).to_le_bytes());
        payload.extend(u32::try_from(number).unwrap_or(0).to_le_bytes());
        payload.extend(self.marker());
        payload
    }
}

impl World {
    /// Starts a flow between the pods of two nodes.
    pub fn flow(&mut self, from: NodeId, to: NodeId, every: Duration) -> FlowId {
        let index = self.flows.len();
        self.flows.push(Flow {
            index,
            from,
            to,
            every,
            next: Some(self.net.now()),
            sent: Vec::new(),
            reached: BTreeMap::new(),
            answered: BTreeMap::new(),
        });
        FlowId(index)
    }

    pub fn stop(&mut self, flow: FlowId) {
        self.flows[flow.0].next = None;
    }

    /// Has a packet that was sent from `since` on been answered?
    pub fn answered_since(&self, flow: FlowId, since: Instant) -> bool {
        self.flows[flow.0].tally(since).1 > 0
    }

    /// How long until pings of a pair are answered; `None` where they are not in that time.
    pub fn meet(&mut self, a: NodeId, b: NodeId, most: Duration) -> Option<Duration> {
        let flow = self.flow(a, b, Duration::from_millis(20));
        let since = self.net.now();
        let took = self.wait(most, |world| world.answered_since(flow, since));
        self.stop(flow);
        took
    }

    pub(super) fn send_flows(&mut self, now: Instant) {
        for index in 0..self.flows.len() {
            let flow = &mut self.flows[index];
            let Some(next) = flow.next.filter(|at| *at <= now) else {
                continue;
            };
            flow.next = Some(next.max(now) + flow.every);
            let number = flow.sent.len();
            flow.sent.push(now);
            let (from, to) = (flow.from, flow.to);
            let inner = Inner {
                source: SocketAddr::new(self.nodes[from.0].pod(), PORT),
                destination: SocketAddr::new(self.nodes[to.0].pod(), PORT),
                payload: self.flows[index].payload(number, false),
            };
            self.nodes[from.0].send_inner(&inner, now);
            self.pump(from);
        }
    }

    /// Answers the requests that reached a node and books the replies.
    pub(super) fn collect_echoes(&mut self, id: NodeId) {
        let now = self.net.now();
        let mut answers = false;
        for inner in std::mem::take(&mut self.nodes[id.0].inbox) {
            let Some((kind, flow, number)) = parse(&inner.payload) else {
                continue;
            };
            let Some(flow) = self.flows.get_mut(flow) else {
                continue;
            };
            assert_eq!(
                inner.destination.ip(),
                self.nodes[id.0].pod(),
                "a packet reached another node than it was sent to"
            );
            let expected: IpAddr = self.nodes[if kind { flow.to.0 } else { flow.from.0 }].pod();
            assert_eq!(
                inner.source.ip(),
                expected,
                "the sender's pod address is kept"
            );
            if kind {
                flow.answered.entry(number).or_insert(now);
                continue;
            }
            flow.reached.entry(number).or_insert(now);
            let reply = Inner {
                source: inner.destination,
                destination: inner.source,
                payload: flow.payload(number, true),
            };
            self.nodes[id.0].send_inner(&reply, now);
            answers = true;
        }
        if answers {
            self.pump(id);
        }
    }
}

fn parse(payload: &[u8]) -> Option<(bool, usize, usize)> {
    let (kind, rest) = payload.split_first()?;
    let (flow, rest) = rest.split_first_chunk::<4>()?;
    let (number, _) = rest.split_first_chunk::<4>()?;
    let number = usize::try_from(u32::from_le_bytes(*number)).ok()?;
    let flow = usize::try_from(u32::from_le_bytes(*flow)).ok()?;
    Some((*kind == 1, flow, number))
}
