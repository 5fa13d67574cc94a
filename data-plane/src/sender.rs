//! Sends an outbox, and goes on without segmentation offload where a path or the device refuses it.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::counters::{Count, Counters};
use crate::outbox::{Destination, Message, Outbox};
use crate::udp::Family;

/// How long no segmentation offload is tried towards a path that refused it.
const PLAIN_FOR: Duration = Duration::from_secs(60);
/// Most such paths remembered.
const PLAIN_MAX: usize = 1024;

/// Sends an outbox, and remembers which paths refuse segmentation offload.
#[derive(Debug, Default)]
pub(crate) struct Sender {
    /// The shortest segments refused, bytes, and until when that counts.
    plain: BTreeMap<SocketAddr, (usize, Instant)>,
}

impl Sender {
    /// Sends all messages, each from the socket that `family` finds, and clears the outbox. `segment` is cleared where
    /// the device cannot segment. `lost` is told of local addresses that are gone.
    pub fn flush<'a>(
        &mut self,
        (family, segment): (
            impl Fn(&Destination) -> io::Result<&'a Family>,
            &'a AtomicBool,
        ),
        out: &mut Outbox,
        now: Instant,
        counters: &Counters,
        mut lost: impl FnMut(Destination),
    ) {
        for message in out.messages() {
            let also = message.to.also.map(|remote| Destination {
                remote,
                local: None,
                also: None,
                ..message.to
            });
            for to in [Some(message.to), also].into_iter().flatten() {
                let Ok(family) = family(&to) else {
                    counters.add(Count::UdpRefused, message.count as u64);
                    continue;
                };
                let send = |to, bytes: &[u8], segment| family.send(to, bytes, segment);
                if self.send(segment, send, (message, to), now, counters) {
                    lost(to);
                }
            }
        }
        out.clear();
    }

    /// Says whether the local address of the message is gone.
    fn send(
        &mut self,
        may_segment: &AtomicBool,
        mut send: impl FnMut(Destination, &[u8], Option<usize>) -> io::Result<()>,
        (message, mut to): (&Message, Destination),
        now: Instant,
        counters: &Counters,
    ) -> bool {
        let count = message.count as u64;
        let local = to.local;
        if message.count > 1 && self.may_segment(may_segment, message, now) {
            let segment = Some(message.segment);
            let result = send_by(&mut send, &mut to, message.bytes(), segment);
            counters.add(Count::UdpSends, 1);
            match result {
                Ok(()) => {
                    counters.add(Count::UdpSent, count);
                    return to.local != local;
                }
                Err(error) if segmentation_refused(&error) => {
                    counters.add(Count::UdpUnsegmented, 1);
                    if error.raw_os_error() == Some(libc::EIO) {
                        may_segment.store(false, Ordering::Relaxed);
                    } else {
                        if self.plain.len() >= PLAIN_MAX {
                            self.plain.clear();
                        }
                        self.plain
                            .insert(to.remote, (message.segment, now + PLAIN_FOR));
                    }
                }
                Err(error) => {
                    counters.add(refusal(&error), count);
                    return to.local != local;
                }
            }
        }
        for datagram in message.datagrams() {
            let result = send_by(&mut send, &mut to, datagram, None);
            counters.add(Count::UdpSends, 1);
            match result {
                Ok(()) => counters.add(Count::UdpSent, 1),
                Err(error) => counters.add(refusal(&error), 1),
            }
        }
        to.local != local
    }

    fn may_segment(&mut self, segment: &AtomicBool, message: &Message, now: Instant) -> bool {
        let remote = message.to.remote;
        if let Some((_, until)) = self.plain.get(&remote)
            && *until <= now
        {
            self.plain.remove(&remote);
        }
        // Once the MTU of a path is known, shorter segments pass.
        let refused = self.plain.get(&remote);
        segment.load(Ordering::Relaxed)
            && refused.is_none_or(|(segment, _)| message.segment < *segment)
    }
}

/// Sends from where the peer expects it; from anywhere, and so from now on, where that address is gone.
fn send_by(
    send: &mut impl FnMut(Destination, &[u8], Option<usize>) -> io::Result<()>,
    to: &mut Destination,
    bytes: &[u8],
    segment: Option<usize>,
) -> io::Result<()> {
    let result = send(*to, bytes, segment);
    if to.local.is_none() || !result.as_ref().is_err_and(bad_source) {
        return result;
    }
    let anywhere = Destination { local: None, ..*to };
    send(anywhere, bytes, segment).or(result)?;
    *to = anywhere;
    Ok(())
}

/// Could the error come from a source address that is gone? Which one the kernel chooses depends on the route.
fn bad_source(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EINVAL | libc::EADDRNOTAVAIL | libc::ENETUNREACH | libc::EHOSTUNREACH)
    )
}

/// EMSGSIZE (before Linux 6.14 EINVAL): a segment is longer than the path's MTU. EIO: the device cannot.
fn segmentation_refused(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EMSGSIZE | libc::EINVAL | libc::EIO)
    )
}

fn refusal(error: &io::Error) -> Count {
    match error.raw_os_error() {
        Some(libc::EAGAIN | libc::ENOBUFS) => Count::UdpBusy,
        Some(_) | None => Count::UdpRefused,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEN: usize = 200;

    /// An outbox with one message of this many datagrams.
    fn outbox(count: usize) -> Outbox {
        let to = Destination {
            peer: 1,
            remote: SocketAddr::from(([192, 0, 2, 1], 1)),
            local: None,
            also: None,
        };
        let mut out = Outbox::new();
        for n in 0..count {
            out.seal(to, LEN, |room| {
                room[..LEN].fill(n as u8);
                Some(LEN)
            });
        }
        assert_eq!(out.messages().len(), 1);
        out
    }

    /// Sends it where every segmented send fails so. Gives the datagrams that went, and how many calls were
    /// segmented.
    fn sent(
        sender: &mut Sender,
        may_segment: &AtomicBool,
        (errno, now): (i32, Instant),
        counters: &Counters,
    ) -> (Vec<u8>, usize) {
        let out = outbox(10);
        let (mut went, mut tries) = (Vec::new(), 0);
        let send = |_, bytes: &[u8], segment: Option<usize>| {
            if segment.is_some() {
                tries += 1;
                return Err(io::Error::from_raw_os_error(errno));
            }
            assert_eq!(bytes.len(), LEN);
            went.push(bytes[0]);
            Ok(())
        };
        let message = &out.messages()[0];
        sender.send(may_segment, send, (message, message.to), now, counters);
        (went, tries)
    }

    #[expect(clippy::disallowed_methods, reason = "tests start somewhere")]
    fn start() -> Instant {
        Instant::now()
    }

    #[test]
    fn a_device_that_cannot_segment_gets_every_datagram_alone_for_ever() {
        let (now, counters) = (start(), Counters::default());
        let (mut sender, may_segment) = (Sender::default(), AtomicBool::new(true));
        let all: Vec<u8> = (0..10).collect();
        let first = sent(&mut sender, &may_segment, (libc::EIO, now), &counters);
        assert_eq!(first, (all.clone(), 1), "none is lost, in order");
        let later = (libc::EIO, now + 2 * PLAIN_FOR);
        assert_eq!(sent(&mut sender, &may_segment, later, &counters), (all, 0));
        assert_eq!(counters.get(Count::UdpUnsegmented), 1);
        assert_eq!(counters.get(Count::UdpSent), 20);
    }

    #[test]
    fn a_path_that_is_too_narrow_is_tried_again_after_a_minute() {
        let (now, counters) = (start(), Counters::default());
        let (mut sender, may_segment) = (Sender::default(), AtomicBool::new(true));
        for (after, tries) in [(0, 1), (59, 0), (61, 1)] {
            let at = (libc::EMSGSIZE, now + Duration::from_secs(after));
            let (went, tried) = sent(&mut sender, &may_segment, at, &counters);
            assert_eq!((went.len(), tried), (10, tries), "after {after} s");
        }
    }

    #[test]
    fn what_the_network_refuses_is_counted_and_not_repeated() {
        let (now, counters) = (start(), Counters::default());
        let (mut sender, may_segment) = (Sender::default(), AtomicBool::new(true));
        let at = (libc::ENETUNREACH, now);
        assert_eq!(sent(&mut sender, &may_segment, at, &counters), (vec![], 1));
        assert_eq!(counters.get(Count::UdpRefused), 10);
    }
}
