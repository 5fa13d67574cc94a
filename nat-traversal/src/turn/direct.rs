//! TCP connections straight to peers, where datagrams do not get through.
//!
//! A node that speaks with its TURN server over a stream hears from it how the stream's port appears outside, and
//! announces that. Once both ends of a pair know the other's, each connects to it from the very port of its own stream:
//! a translator that maps TCP endpoint-independently gives it the external port that was announced, and takes the other
//! end's SYN for the answer to the own one (RFC 5382 REQ-1, REQ-2). Where one does not, nothing comes of it.
//!
//! A connection is a link like one to a server, and carries ChannelData of one channel. Nobody is listened to, and who
//! is connected gets nothing before its probes are authentic; without any the connection ends.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use mesh_types::PeerId;
use mesh_types::plan::{Proxy, TurnLink};
use mesh_types::report::TurnLinkState;
use mesh_types::turn::TurnTransport;

use super::message::{CHANNELS, channel_data, parse_channel_data};
use super::{Event, Turn};

/// Attempts under way at once, each of one SYN a second...
const OPENING_MAX: usize = 16;
/// ...and those to one address.
const OPENING_THERE: usize = 2;
/// Connections in all.
const ALL_MAX: usize = 256;
/// An attempt that the edge says nothing of is at an end.
const OPEN: Duration = Duration::from_secs(8);
/// The first authentic message must come within this...
const PROVE: Duration = Duration::from_secs(5);
/// ...and where no path leads through it, another one within this.
const SILENT: Duration = Duration::from_secs(60);
/// The only channel.
const CHANNEL: u16 = CHANNELS.0;
/// No address of ours: nobody is told one.
pub(super) const NOWHERE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);

/// See the module.
#[derive(Debug)]
pub(super) struct Direct {
    peer: PeerId,
    pub(super) at: SocketAddr,
    /// The link whose port it leaves from.
    from: u32,
    /// When it was begun, came up, or brought something authentic.
    last: Instant,
    loopback: Option<SocketAddr>,
    proven: bool,
}

impl Direct {
    /// When it is at an end, unless something happens.
    fn ends(&self) -> Instant {
        let patience = match (self.loopback, self.proven) {
            (None, _) => OPEN,
            (Some(_), false) => PROVE,
            (Some(_), true) => SILENT,
        };
        self.last + patience
    }
}

/// Frames a datagram.
pub(super) fn wrap(bytes: &[u8]) -> Option<Vec<u8>> {
    channel_data(CHANNEL, bytes)
}

/// What is in a frame.
pub(super) fn unwrap(bytes: &[u8]) -> Option<&[u8]> {
    let (channel, content) = parse_channel_data(bytes)?;
    (channel == CHANNEL).then_some(content)
}

impl Turn {
    /// The link to a server by whose port peers may connect, and how that port appears outside.
    fn stream(&self) -> Option<(u32, SocketAddr)> {
        let mapped = |(number, link): (&u32, &super::Link)| {
            Some((*number, link.client.as_ref()?.mapped_tcp()?))
        };
        self.links.iter().filter_map(mapped).next()
    }

    /// Where peers may connect to, from where they said, at the same time.
    pub(crate) fn mapped_tcp(&self) -> Option<SocketAddr> {
        self.stream().map(|(_, at)| at)
    }

    /// Can a connection to a peer be tried, and is none?
    pub(crate) fn may_connect(&self, peer: &PeerId, at: SocketAddr) -> bool {
        let opening = || self.direct.values().filter(|d| d.loopback.is_none());
        self.stream()
            .is_some_and(|(_, own)| own != at && own.is_ipv4() == at.is_ipv4())
            && self.direct.len() < ALL_MAX
            && opening().count() < OPENING_MAX
            && opening().filter(|d| d.at.ip() == at.ip()).count() < OPENING_THERE
            && !self.direct.values().any(|d| d.peer == *peer && d.at == at)
    }

    /// Connects to a peer, which does the same now.
    pub(crate) fn connect(&mut self, peer: PeerId, at: SocketAddr, now: Instant) {
        let Some((from, _)) = self.stream() else {
            return;
        };
        self.next_link += 1;
        let direct = Direct {
            peer,
            at,
            from,
            last: now,
            loopback: None,
            proven: false,
        };
        self.direct.insert(self.next_link, direct);
        self.changed = true;
    }

    pub(super) fn direct_links(&self) -> impl Iterator<Item = TurnLink> + '_ {
        self.direct.iter().map(|(number, direct)| TurnLink {
            number: *number,
            server: direct.at,
            transport: TurnTransport::Tcp,
            name: String::new(),
            from: Some(direct.from),
        })
    }

    pub(super) fn direct_proxies(&self) -> impl Iterator<Item = Proxy> + '_ {
        self.direct.iter().filter_map(|(number, direct)| {
            Some(Proxy {
                loopback: direct.loopback?,
                link: *number,
                channel: CHANNEL,
            })
        })
    }

    pub(super) fn direct_state(&mut self, number: u32, state: &TurnLinkState, now: Instant) {
        let Some(at) = self.direct.get(&number).map(|direct| direct.at) else {
            return;
        };
        match state {
            TurnLinkState::Up => {
                let loopback = self.stand_in(number, at);
                self.strangers.retain(|stranger| *stranger != loopback);
                if let Some(direct) = self.direct.get_mut(&number) {
                    direct.loopback = Some(loopback);
                    direct.last = now;
                    let peers = BTreeSet::from([direct.peer]);
                    self.events.push_back(Event::Bound { peers, loopback });
                }
                self.changed = true;
            }
            TurnLinkState::Down { .. } => self.drop_link(number),
        }
    }

    /// Something authentic came on a link.
    pub(crate) fn heard_peer(&mut self, number: u32, now: Instant) {
        if let Some(direct) = self.direct.get_mut(&number) {
            direct.proven = true;
            direct.last = now;
        }
    }

    /// The name of a peer has changed.
    pub(super) fn rename_direct(&mut self, from: &PeerId, to: PeerId) {
        for direct in self.direct.values_mut().filter(|d| d.peer == *from) {
            direct.peer = to;
        }
    }

    /// Ends what brings nothing, and no path leads through.
    pub(super) fn close_silent(&mut self, used: &BTreeSet<u32>, now: Instant) {
        let all = self.direct.iter();
        let due = all.filter(|(number, direct)| !used.contains(number) && direct.ends() <= now);
        let due: Vec<u32> = due.map(|(number, _)| *number).collect();
        for number in due {
            self.drop_link(number);
        }
    }

    pub(super) fn direct_deadlines(
        &self,
        used: &BTreeSet<u32>,
    ) -> impl Iterator<Item = Option<Instant>> {
        let all = self.direct.iter();
        let unused = all.filter(|(number, _)| !used.contains(number));
        unused.map(|(_, direct)| Some(direct.ends()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[expect(
        clippy::disallowed_methods,
        reason = "tests need some instant to start from"
    )]
    fn begun() -> (Turn, Instant) {
        let now = Instant::now();
        let mut turn = Turn::new([1; 32], now);
        let at = SocketAddr::from(([203, 0, 113, 5], 40_000));
        let direct = Direct {
            peer: PeerId::Key(mesh_types::WgKey([7; 32])),
            at,
            from: 1,
            last: now,
            loopback: None,
            proven: false,
        };
        turn.direct.insert(2, direct);
        (turn, now)
    }

    fn after(turn: &mut Turn, used: bool, now: Instant) -> bool {
        let used = BTreeSet::from([2].map(|n| if used { n } else { 0 }));
        turn.close_silent(&used, now);
        turn.direct.contains_key(&2)
    }

    #[test]
    fn who_is_connected_and_proves_nothing_is_left_after_five_seconds() {
        let (mut turn, now) = begun();
        assert_eq!(turn.direct_proxies().count(), 0);
        turn.direct_state(2, &TurnLinkState::Up, now);
        let proxy = turn.direct_proxies().next().expect("a proxy");
        assert_eq!(
            turn.link_of(&proxy.loopback),
            Some((2, crate::api::PathKind::Tcp))
        );
        let framed = turn.wrap(2, proxy.loopback, b"probe").expect("a frame").1;
        let (from, _, content) = turn.handle(2, &framed, now).expect("a datagram");
        assert_eq!((from, content), (proxy.loopback, b"probe".as_slice()));
        assert!(after(
            &mut turn,
            false,
            now + PROVE - Duration::from_millis(1)
        ));
        assert!(!after(&mut turn, false, now + PROVE));
        assert_eq!(turn.link_of(&proxy.loopback), None);
    }

    #[test]
    fn a_proven_connection_ends_once_it_is_neither_used_nor_heard() {
        let (mut turn, now) = begun();
        turn.direct_state(2, &TurnLinkState::Up, now);
        turn.heard_peer(2, now);
        assert!(after(&mut turn, true, now + SILENT * 9));
        assert!(after(
            &mut turn,
            false,
            now + SILENT - Duration::from_millis(1)
        ));
        assert!(!after(&mut turn, false, now + SILENT));
    }

    #[test]
    fn an_attempt_that_nothing_is_heard_of_ends() {
        let (mut turn, now) = begun();
        assert!(after(
            &mut turn,
            false,
            now + OPEN - Duration::from_millis(1)
        ));
        assert!(!after(&mut turn, false, now + OPEN));
    }
}
