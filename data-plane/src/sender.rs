//! Sends an outbox, and goes on without segmentation offload where a path refuses it: its MTU is smaller than a
//! segment, its device cannot, or something on the way in this host (IPsec) cannot.
//!
//! A socket's send buffer is one for all peers. Where it is full, because the device towards one of them is slow, room
//! comes at that device's pace, and whoever tries most often gets it. So from then on peers that send more
//! than the mean get half of the buffer, and the other half is for those that send less. What finds no room is
//! dropped and counted; the worker waits for room once a flush, and never for a peer that sends more than the mean.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::counters::{Count, Counters};
use crate::outbox::{Destination, Message, Outbox};

/// How long no segmentation offload is tried towards a path that refused it.
const PLAIN_FOR: Duration = Duration::from_secs(60);
/// Most such paths remembered.
const PLAIN_MAX: usize = 1024;
/// How long a socket that was full counts as short of room.
const SHORT_FOR: Duration = Duration::from_secs(1);
/// Bytes after which what peers have sent counts half.
const HALVED_AT: u64 = 16 * 1024 * 1024;

/// What a sender needs of a socket.
pub(crate) trait Port {
    /// May the kernel be asked to cut messages?
    fn segments(&self) -> bool;
    /// Sends a datagram, or as many as there are segments in `bytes`. Does not wait.
    fn send(&self, to: Destination, bytes: &[u8], segment: Option<usize>) -> io::Result<()>;
    /// Waits for room, a few milliseconds at most.
    fn wait(&self);
    /// Is more than half of its buffer taken?
    fn is_half_full(&self) -> bool;
}

/// Sends an outbox, and remembers which paths refuse segmentation offload.
#[derive(Debug, Default)]
pub(crate) struct Sender {
    /// The shortest segments refused, bytes, and until when that counts.
    plain: BTreeMap<SocketAddr, (usize, Instant)>,
    /// While a socket is short of room.
    short: Option<Short>,
    /// It was waited for room in this flush.
    waited: bool,
}

/// Who sends how much while a socket is short of room.
#[derive(Debug)]
struct Short {
    until: Instant,
    /// Bytes by peer, sent or dropped.
    wanted: BTreeMap<u32, u64>,
    total: u64,
}

impl Short {
    /// Does this peer send more than the mean?
    fn is_greedy(&self, peer: u32) -> bool {
        let own = self.wanted.get(&peer).copied().unwrap_or(0);
        own * self.wanted.len() as u64 > self.total
    }

    fn add(&mut self, peer: u32, bytes: u64) {
        *self.wanted.entry(peer).or_default() += bytes;
        self.total += bytes;
        if self.total > HALVED_AT {
            self.wanted.values_mut().for_each(|bytes| *bytes /= 2);
            self.wanted.retain(|_, bytes| *bytes > 0);
            self.total = self.wanted.values().sum();
        }
    }
}

impl Sender {
    /// Sends all messages, each from the socket that `port` finds, segmented by the kernel only if `segment`, and
    /// clears the outbox. `lost` is told of local addresses that are gone.
    pub fn flush<'a, P: Port + 'a>(
        &mut self,
        (port, segment): (impl Fn(&Destination) -> io::Result<&'a P>, bool),
        out: &mut Outbox,
        now: Instant,
        counters: &Counters,
        mut lost: impl FnMut(Destination),
    ) {
        self.waited = false;
        self.short = self.short.take().filter(|short| now < short.until);
        for message in out.messages() {
            let also = message.to.also.map(|remote| Destination {
                remote,
                local: None,
                also: None,
                ..message.to
            });
            for to in [Some(message.to), also].into_iter().flatten() {
                let Ok(port) = port(&to) else {
                    counters.add(Count::UdpRefused, message.count as u64);
                    continue;
                };
                if self.send((port, segment), (message, to), now, counters) {
                    lost(to);
                }
            }
        }
        out.clear();
    }

    /// Says whether the local address of the message is gone.
    fn send<P: Port>(
        &mut self,
        (port, segment): (&P, bool),
        (message, mut to): (&Message, Destination),
        now: Instant,
        counters: &Counters,
    ) -> bool {
        let count = message.count as u64;
        let local = to.local;
        if let Some(short) = &mut self.short {
            short.add(to.peer, message.bytes().len() as u64);
            if short.is_greedy(to.peer) && port.is_half_full() {
                counters.add(Count::UdpBusy, count);
                return false;
            }
        }
        let may_segment = segment && port.segments();
        if may_segment && message.count > 1 && self.takes_segments((message, to.remote), now) {
            let segment = Some(message.segment);
            let result = self.send_by(port, &mut to, (message.bytes(), segment), now);
            counters.add(Count::UdpSends, 1);
            match result {
                Ok(()) => {
                    counters.add(Count::UdpSent, count);
                    return to.local != local;
                }
                Err(error) if segmentation_refused(&error) => {
                    counters.add(Count::UdpUnsegmented, 1);
                    if self.plain.len() >= PLAIN_MAX {
                        self.plain.clear();
                    }
                    let until = now + PLAIN_FOR;
                    self.plain.insert(to.remote, (message.segment, until));
                }
                Err(error) => {
                    counters.add(refusal(&error), count);
                    return to.local != local;
                }
            }
        }
        for datagram in message.datagrams() {
            let result = self.send_by(port, &mut to, (datagram, None), now);
            counters.add(Count::UdpSends, 1);
            match result {
                Ok(()) => counters.add(Count::UdpSent, 1),
                Err(error) => counters.add(refusal(&error), 1),
            }
        }
        to.local != local
    }

    fn takes_segments(&mut self, (message, remote): (&Message, SocketAddr), now: Instant) -> bool {
        if let Some((_, until)) = self.plain.get(&remote)
            && *until <= now
        {
            self.plain.remove(&remote);
        }
        // Once the MTU of a path is known, shorter segments pass.
        let refused = self.plain.get(&remote);
        refused.is_none_or(|(segment, _)| message.segment < *segment)
    }

    /// Sends from where the peer expects it; from anywhere, and so from now on, where that address is gone.
    fn send_by<P: Port>(
        &mut self,
        port: &P,
        to: &mut Destination,
        what: (&[u8], Option<usize>),
        now: Instant,
    ) -> io::Result<()> {
        let result = self.send_or_wait(port, *to, what, now);
        if to.local.is_none() || !result.as_ref().is_err_and(bad_source) {
            return result;
        }
        let anywhere = Destination { local: None, ..*to };
        self.send_or_wait(port, anywhere, what, now).or(result)?;
        *to = anywhere;
        Ok(())
    }

    /// Waits where the buffer is full, if it may.
    fn send_or_wait<P: Port>(
        &mut self,
        port: &P,
        to: Destination,
        (bytes, segment): (&[u8], Option<usize>),
        now: Instant,
    ) -> io::Result<()> {
        let result = port.send(to, bytes, segment);
        if !result.as_ref().is_err_and(is_full) {
            return result;
        }
        let until = now + SHORT_FOR;
        let short = self.short.get_or_insert_with(|| Short {
            until,
            wanted: BTreeMap::new(),
            total: 0,
        });
        short.until = until;
        if short.is_greedy(to.peer) || std::mem::replace(&mut self.waited, true) {
            return result;
        }
        port.wait();
        port.send(to, bytes, segment)
    }
}

/// Could the error come from a source address that is gone? Which one the kernel chooses depends on the route.
fn bad_source(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EINVAL | libc::EADDRNOTAVAIL | libc::ENETUNREACH | libc::EHOSTUNREACH)
    )
}

/// EMSGSIZE (before Linux 6.14 EINVAL): a segment is longer than the path's MTU. EIO: there is IPsec on the way, or
/// (before Linux 6.11) the device computes no checksums. EOPNOTSUPP: kernels of sandboxes.
fn segmentation_refused(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EMSGSIZE | libc::EINVAL | libc::EIO | libc::EOPNOTSUPP)
    )
}

fn is_full(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::WouldBlock
}

fn refusal(error: &io::Error) -> Count {
    match error.raw_os_error() {
        Some(libc::EAGAIN | libc::ENOBUFS) => Count::UdpBusy,
        Some(_) | None => Count::UdpRefused,
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    const LEN: usize = 200;

    /// Adds so many datagrams for a peer.
    fn fill(out: &mut Outbox, peer: u8, count: usize) {
        let to = Destination {
            peer: u32::from(peer),
            remote: SocketAddr::from(([192, 0, 2, peer], 1)),
            local: None,
            also: None,
        };
        for n in 0..count {
            out.write(to, LEN, |room| {
                room[..LEN].fill(n as u8);
                Some(LEN)
            });
        }
    }

    /// A socket that fails as it is told.
    #[derive(Default)]
    struct Wire {
        /// What every segmented send fails with.
        unsegmented: Option<i32>,
        /// What every send fails with.
        broken: Option<i32>,
        /// Messages that the buffer still takes.
        room: Option<usize>,
        /// The buffer holds so many.
        buffer: usize,
        /// Calls with segments.
        segmented: usize,
        /// Times it was waited for room, of which there comes none.
        waits: usize,
        /// Peer and first byte of each datagram that went.
        went: Vec<(u32, u8)>,
    }

    impl Port for RefCell<Wire> {
        fn segments(&self) -> bool {
            true
        }

        fn send(&self, to: Destination, bytes: &[u8], segment: Option<usize>) -> io::Result<()> {
            let mut wire = self.borrow_mut();
            wire.segmented += usize::from(segment.is_some());
            let refusal = segment.and(wire.unsegmented).or(wire.broken);
            if let Some(errno) = refusal {
                return Err(io::Error::from_raw_os_error(errno));
            }
            if let Some(room) = &mut wire.room {
                let full = || io::Error::from_raw_os_error(libc::EAGAIN);
                *room = room.checked_sub(1).ok_or_else(full)?;
            }
            let all = bytes.chunks(segment.unwrap_or(bytes.len()));
            wire.went.extend(all.map(|bytes| (to.peer, bytes[0])));
            Ok(())
        }

        fn wait(&self) {
            self.borrow_mut().waits += 1;
        }

        fn is_half_full(&self) -> bool {
            let wire = self.borrow();
            wire.room.is_some_and(|room| room < wire.buffer / 2)
        }
    }

    struct Bench {
        sender: Sender,
        wire: RefCell<Wire>,
        counters: Counters,
        start: Instant,
    }

    impl Bench {
        #[expect(clippy::disallowed_methods, reason = "tests start somewhere")]
        fn new(wire: Wire) -> Self {
            Self {
                sender: Sender::default(),
                wire: RefCell::new(wire),
                counters: Counters::default(),
                start: Instant::now(),
            }
        }

        /// Sends datagrams to peers, so many to each, and gives what went.
        fn flush(&mut self, after: u64, segment: bool, to: &[(u8, usize)]) -> Vec<(u32, u8)> {
            let mut out = Outbox::new();
            for &(peer, count) in to {
                fill(&mut out, peer, count);
            }
            let now = self.start + Duration::from_secs(after);
            let port = |_: &Destination| Ok(&self.wire);
            self.sender
                .flush((port, segment), &mut out, now, &self.counters, |_| {});
            std::mem::take(&mut self.wire.borrow_mut().went)
        }

        fn segmented(&self) -> usize {
            std::mem::take(&mut self.wire.borrow_mut().segmented)
        }
    }

    #[test]
    fn a_path_that_refuses_segments_gets_every_datagram_alone_for_a_minute() {
        for errno in [libc::EMSGSIZE, libc::EINVAL, libc::EIO, libc::EOPNOTSUPP] {
            let mut bench = Bench::new(Wire {
                unsegmented: Some(errno),
                ..Wire::default()
            });
            let all: Vec<_> = (0..10).map(|n| (1, n)).collect();
            for (after, tries) in [(0, 1), (59, 0), (61, 1)] {
                assert_eq!(bench.flush(after, true, &[(1, 10)]), all, "none is lost");
                assert_eq!(bench.segmented(), tries, "after {after} s");
            }
            assert_eq!(bench.counters.get(Count::UdpUnsegmented), 2);
            assert_eq!(bench.counters.get(Count::UdpSent), 30);
            assert_eq!(bench.counters.get(Count::UdpRefused), 0);
        }
    }

    #[test]
    fn another_path_and_shorter_segments_are_sent_as_before() {
        let mut bench = Bench::new(Wire {
            unsegmented: Some(libc::EMSGSIZE),
            ..Wire::default()
        });
        bench.flush(0, true, &[(1, 10)]);
        bench.wire.borrow_mut().unsegmented = None;
        bench.segmented();
        bench.flush(1, true, &[(2, 10)]);
        assert_eq!(bench.segmented(), 1, "another path");
        let refused = bench.sender.plain.values_mut().next().unwrap();
        refused.0 = LEN + 1;
        bench.flush(1, true, &[(1, 10)]);
        assert_eq!(bench.segmented(), 1, "shorter segments");
    }

    #[test]
    fn where_nothing_may_be_segmented_nothing_is_tried() {
        let mut bench = Bench::new(Wire::default());
        assert_eq!(bench.flush(0, false, &[(1, 10)]).len(), 10);
        assert_eq!(bench.segmented(), 0);
    }

    #[test]
    fn what_the_network_refuses_is_counted_and_not_repeated() {
        let mut bench = Bench::new(Wire {
            broken: Some(libc::ENETUNREACH),
            ..Wire::default()
        });
        assert_eq!(bench.flush(0, true, &[(1, 10)]), []);
        assert_eq!(bench.segmented(), 1);
        assert_eq!(bench.counters.get(Count::UdpRefused), 10);
    }

    #[test]
    fn a_full_buffer_holds_a_flush_up_once_and_what_finds_no_room_is_counted() {
        let mut bench = Bench::new(Wire {
            room: Some(2),
            buffer: 2,
            ..Wire::default()
        });
        let went = bench.flush(0, false, &[(1, 10)]);
        assert_eq!(went, [(1, 0), (1, 1)]);
        assert_eq!(bench.counters.get(Count::UdpBusy), 8);
        assert_eq!(bench.wire.borrow().waits, 1);
        bench.flush(0, false, &[(1, 10)]);
        assert_eq!(bench.wire.borrow().waits, 2, "who is alone is waited for");
    }

    #[test]
    fn a_peer_whose_device_is_slow_does_not_starve_those_that_send_less() {
        let mut bench = Bench::new(Wire {
            room: Some(0),
            buffer: 8,
            ..Wire::default()
        });
        bench.flush(0, true, &[(1, 640), (2, 1)]);
        let mut went = Vec::new();
        for turn in 0..100 {
            // The device takes one message now and then.
            let taken = usize::from(turn % 5 == 0);
            *bench.wire.borrow_mut().room.as_mut().unwrap() += taken;
            bench.wire.borrow_mut().waits = 0;
            went.extend(bench.flush(0, true, &[(1, 640), (2, 1)]));
            let waits = bench.wire.borrow().waits;
            assert!(waits <= 1, "nothing is waited for twice");
        }
        let of = |peer| went.iter().filter(|(to, _)| *to == peer).count();
        assert_eq!(of(2), 20, "every place that came free");
        let busy = bench.counters.get(Count::UdpBusy) as usize;
        assert_eq!(busy + went.len(), 101 * 641, "all is accounted for");

        // With room again both go.
        bench.wire.borrow_mut().room = None;
        assert_eq!(bench.flush(2, true, &[(1, 640), (2, 1)]).len(), 641);
    }
}
