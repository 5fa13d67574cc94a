//! The far end of `farspan bench`: TCP on the overlay device's control port, for peers only, bounded in time.
//!
//! A caller says in [`Opening`] what it wants and hears one byte; then bytes flow. Each connection has a
//! thread of its own, so that the event loop stays free. All connections together may take
//! [`BUSY_SECONDS`] in [`BUSY_WINDOW`], and [`AT_ONCE`] at a time: a peer cannot make this node a generator
//! of traffic.

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use mesh_types::consts;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tracing::{debug, info, warn};

use super::{Event, clock};

/// Begins an opening; the last byte is the version.
const MAGIC: [u8; 9] = *b"farspanB\x01";
/// Length of an opening, bytes.
pub const OPENING: usize = 11;
/// Length of one question and answer in [`Mode::Echo`], bytes.
pub const ECHO: usize = 64;
/// Echoes in one connection.
pub const ECHOES_MAX: usize = 1000;
/// Longest time one connection may ask for.
pub const SECONDS_MAX: u8 = 30;
/// Written and read at once.
pub const CHUNK: usize = 64 << 10;
/// Silence that ends a connection.
pub const SILENCE: Duration = Duration::from_secs(10);

/// Eight streams and one that measures the delay beside them.
const AT_ONCE: usize = 9;
/// Seconds granted in one window: eight streams both ways at the longest, with some to spare.
const BUSY_SECONDS: u64 = 600;
const BUSY_WINDOW: Duration = Duration::from_secs(600);
/// A caller that says nothing is let go.
const OPENING_WITHIN: Duration = Duration::from_secs(5);

/// What a caller wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Every [`ECHO`] bytes come back.
    Echo,
    /// The caller sends; at its end it hears how many bytes arrived, and in how many nanoseconds.
    Upload,
    /// The caller receives.
    Download,
}

/// The first bytes of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Opening {
    /// What is wanted.
    pub mode: Mode,
    /// For how long.
    pub seconds: u8,
}

impl Opening {
    /// As it is sent.
    pub fn encode(self) -> [u8; OPENING] {
        let mut out = [0; OPENING];
        out[..9].copy_from_slice(&MAGIC);
        out[9] = match self.mode {
            Mode::Echo => 0,
            Mode::Upload => 1,
            Mode::Download => 2,
        };
        out[10] = self.seconds;
        out
    }

    fn decode(bytes: &[u8; OPENING]) -> Option<Self> {
        let mode = match bytes[9] {
            0 => Mode::Echo,
            1 => Mode::Upload,
            2 => Mode::Download,
            _ => return None,
        };
        let seconds = bytes[10];
        let fine = bytes[..9] == MAGIC && (1..=SECONDS_MAX).contains(&seconds);
        fine.then_some(Self { mode, seconds })
    }
}

/// The one byte that answers an opening.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Go on.
    Go,
    /// Too much is asked for at this time.
    Busy,
    /// Not understood.
    Malformed,
}

impl Verdict {
    /// As it is sent.
    pub fn code(self) -> u8 {
        match self {
            Self::Go => 0,
            Self::Busy => 1,
            Self::Malformed => 2,
        }
    }

    /// As it is read; what is unknown is no consent.
    pub fn from_code(code: u8) -> Self {
        match code {
            0 => Self::Go,
            1 => Self::Busy,
            _ => Self::Malformed,
        }
    }
}

/// Somebody who connected and said what he wants.
#[derive(Debug)]
pub struct Visitor {
    stream: TcpStream,
    /// Who.
    pub remote: SocketAddr,
    opening: Option<Opening>,
}

/// Takes callers in.
#[derive(Debug)]
pub struct Desk {
    listener: Option<JoinHandle<()>>,
    busy: Arc<AtomicUsize>,
    /// Start of the window, and seconds granted in it.
    granted: (Instant, u64),
}

impl Desk {
    /// Closed.
    pub fn new(now: Instant) -> Self {
        Self {
            listener: None,
            busy: Arc::new(AtomicUsize::new(0)),
            granted: (now, 0),
        }
    }

    /// Listens on a device, which may have been made anew.
    pub fn open(&mut self, interface: &str, events: mpsc::Sender<Event>) {
        self.close();
        let listener = listen(Domain::IPV6, interface)
            // A kernel without IPv6.
            .or_else(|_| listen(Domain::IPV4, interface))
            .and_then(|listener| TcpListener::from_std(listener.into()));
        match listener {
            Ok(listener) => self.listener = Some(tokio::spawn(accept(listener, events))),
            Err(error) => warn!(%error, "Failed to listen for bench; peers cannot measure to here"),
        }
    }

    /// Listens no more.
    pub fn close(&mut self) {
        if let Some(listener) = self.listener.take() {
            listener.abort();
        }
    }

    /// Serves a caller who is a peer: `name` where he is one.
    pub fn serve(&mut self, visitor: Visitor, name: Option<&str>, now: Instant) {
        let Visitor {
            stream,
            remote,
            opening,
        } = visitor;
        // Strangers hear nothing, as everywhere.
        let Some(name) = name else {
            return debug!(%remote, "Bench refused to somebody who is no peer");
        };
        let verdict = match opening {
            None => Verdict::Malformed,
            Some(opening) if self.grant(opening, now) => Verdict::Go,
            Some(_) => Verdict::Busy,
        };
        let Some(opening) = opening.filter(|_| verdict == Verdict::Go) else {
            debug!(peer = name, ?verdict, "Bench refused");
            _ = (&stream).write(&[verdict.code()]);
            return;
        };
        let stream = Arc::new(stream);
        let place = Place::take(&self.busy);
        let worked = Arc::clone(&stream);
        let started = std::thread::Builder::new().spawn(move || {
            if let Err(error) = work(&worked, opening, SILENCE) {
                debug!(%error, "Bench ended early");
            }
            drop(place);
        });
        match started {
            Ok(_) => {
                info!(peer = name, mode = ?opening.mode, seconds = opening.seconds, "Bench served");
            }
            Err(error) => {
                debug!(peer = name, %error, "Bench refused for want of a thread");
                _ = (&*stream).write(&[Verdict::Busy.code()]);
            }
        }
    }

    fn grant(&mut self, opening: Opening, now: Instant) -> bool {
        let (since, spent) = &mut self.granted;
        if now.saturating_duration_since(*since) >= BUSY_WINDOW {
            (*since, *spent) = (now, 0);
        }
        let wanted = *spent + u64::from(opening.seconds);
        if self.busy.load(Ordering::Relaxed) >= AT_ONCE || wanted > BUSY_SECONDS {
            return false;
        }
        *spent = wanted;
        true
    }
}

impl Drop for Desk {
    fn drop(&mut self) {
        self.close();
    }
}

/// One of the [`AT_ONCE`], until it is dropped.
struct Place(Arc<AtomicUsize>);

impl Place {
    fn take(busy: &Arc<AtomicUsize>) -> Self {
        busy.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(busy))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A connection that ends at a moment, however slowly its bytes come, or after some silence.
struct Bounded<'a> {
    stream: &'a TcpStream,
    until: Instant,
    silence: Duration,
}

impl Bounded<'_> {
    fn left(&self) -> io::Result<Option<Duration>> {
        let left = self.until.saturating_duration_since(clock::instant());
        if left.is_zero() {
            return Err(ErrorKind::TimedOut.into());
        }
        Ok(Some(left.min(self.silence)))
    }
}

impl io::Read for Bounded<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stream.set_read_timeout(self.left()?)?;
        self.stream.read(buffer)
    }
}

impl io::Write for Bounded<'_> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.stream.set_write_timeout(self.left()?)?;
        self.stream.write(buffer)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn listen(domain: Domain, interface: &str) -> io::Result<Socket> {
    let socket = Socket::new(domain, Type::STREAM, Some(Protocol::TCP))?;
    let any: IpAddr = if domain == Domain::IPV6 {
        socket.set_only_v6(false)?;
        Ipv6Addr::UNSPECIFIED.into()
    } else {
        Ipv4Addr::UNSPECIFIED.into()
    };
    // Whoever comes in by another device, this host's own programs included, finds nobody.
    socket.bind_device(Some(interface.as_bytes()))?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&SocketAddr::new(any, consts::CONTROL_PORT).into())?;
    socket.listen(16)?;
    Ok(socket)
}

async fn accept(listener: TcpListener, events: mpsc::Sender<Event>) {
    let waiting = Arc::new(tokio::sync::Semaphore::new(AT_ONCE));
    loop {
        let Ok(place) = Arc::clone(&waiting).acquire_owned().await else {
            return;
        };
        let (stream, remote) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                debug!(%error, "Failed to accept");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let events = events.clone();
        tokio::spawn(async move {
            let greeted = tokio::time::timeout(OPENING_WITHIN, greet(stream, remote)).await;
            drop(place);
            if let Ok(Ok(visitor)) = greeted {
                _ = events.send(Event::Visitor(visitor)).await;
            }
        });
    }
}

async fn greet(mut stream: tokio::net::TcpStream, remote: SocketAddr) -> io::Result<Visitor> {
    use tokio::io::AsyncReadExt as _;
    let mut bytes = [0; OPENING];
    stream.read_exact(&mut bytes).await?;
    Ok(Visitor {
        stream: stream.into_std()?,
        remote: SocketAddr::new(remote.ip().to_canonical(), remote.port()),
        opening: Opening::decode(&bytes),
    })
}

fn work(stream: &TcpStream, opening: Opening, silence: Duration) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_nodelay(true)?;
    let time = Duration::from_secs(opening.seconds.into());
    let start = clock::instant();
    let mut stream = Bounded {
        stream,
        // What is still on its way at the end arrives a little later.
        until: start + time + silence,
        silence,
    };
    stream.write_all(&[Verdict::Go.code()])?;
    let mut buffer = vec![0; CHUNK];
    match opening.mode {
        Mode::Echo => {
            let buffer = &mut buffer[..ECHO];
            for _ in 0..ECHOES_MAX {
                match stream.read_exact(buffer) {
                    Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(()),
                    read => read?,
                }
                stream.write_all(buffer)?;
            }
            Ok(())
        }
        Mode::Upload => {
            let mut bytes: u64 = 0;
            while stream.until > clock::instant() {
                match stream.read(&mut buffer) {
                    Ok(0) => break,
                    Ok(read) => bytes += read as u64,
                    Err(_) if stream.until <= clock::instant() => break,
                    Err(error) => return Err(error),
                }
            }
            let nanos = u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX);
            stream.until = clock::instant() + silence;
            stream.write_all(&bytes.to_be_bytes())?;
            stream.write_all(&nanos.to_be_bytes())
        }
        Mode::Download => {
            while start.elapsed() < time {
                stream.write_all(&buffer)?;
            }
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_opening_is_read_back_and_nothing_else_is_one() {
        let opening = Opening {
            mode: Mode::Download,
            seconds: 30,
        };
        assert_eq!(Opening::decode(&opening.encode()), Some(opening));
        for (at, value) in [(0, b'x'), (8, 2), (9, 3), (10, 0), (10, 31)] {
            let mut bytes = opening.encode();
            bytes[at] = value;
            assert_eq!(Opening::decode(&bytes), None, "{at}: {value}");
        }
    }

    #[test]
    fn no_more_time_is_granted_than_a_window_has() {
        let start = clock::instant();
        let mut desk = Desk::new(start);
        let longest = Opening {
            mode: Mode::Upload,
            seconds: SECONDS_MAX,
        };
        for _ in 0..BUSY_SECONDS / u64::from(SECONDS_MAX) {
            assert!(desk.grant(longest, start));
        }
        assert!(!desk.grant(longest, start));
        assert!(desk.grant(longest, start + BUSY_WINDOW));
        desk.busy.store(AT_ONCE, Ordering::Relaxed);
        assert!(!desk.grant(longest, start + BUSY_WINDOW));
    }

    #[test]
    fn what_is_sent_is_counted_and_echoes_come_back() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let serve = |mode| {
            let caller = TcpStream::connect(address).unwrap();
            let (stream, _) = listener.accept().unwrap();
            let opening = Opening { mode, seconds: 1 };
            let thread = std::thread::spawn(move || work(&stream, opening, SILENCE).unwrap());
            (caller, thread)
        };
        let (mut caller, thread) = serve(Mode::Upload);
        caller.write_all(&[7; 100_000]).unwrap();
        caller.shutdown(std::net::Shutdown::Write).unwrap();
        let mut answer = Vec::new();
        caller.read_to_end(&mut answer).unwrap();
        thread.join().unwrap();
        assert_eq!(answer.len(), 17);
        assert_eq!(answer[1..9], 100_000_u64.to_be_bytes());
        let (mut caller, thread) = serve(Mode::Echo);
        caller.write_all(&[9; ECHO]).unwrap();
        let mut answer = [0; ECHO + 1];
        caller.read_exact(&mut answer).unwrap();
        assert_eq!(answer[1..], [9; ECHO]);
        drop(caller);
        thread.join().unwrap();
    }

    #[test]
    fn a_caller_who_sends_byte_by_byte_is_let_go_in_time() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let mut caller = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (stream, _) = listener.accept().unwrap();
        let silence = Duration::from_millis(300);
        let opening = Opening {
            mode: Mode::Echo,
            seconds: 0,
        };
        let thread = std::thread::spawn(move || work(&stream, opening, silence));
        let mut answer = [0];
        caller.read_exact(&mut answer).unwrap();
        caller.set_read_timeout(Some(silence / 10)).unwrap();
        let mut sent = 0;
        // Nothing comes back before all of a question is there, but an end does.
        while caller.read(&mut answer).is_err() && caller.write_all(&[1]).is_ok() {
            sent += 1;
        }
        assert!(sent < ECHO, "{sent}");
        assert!(thread.join().unwrap().is_err());
    }

    #[test]
    fn a_place_is_free_again_even_after_a_panic() {
        let busy = Arc::new(AtomicUsize::new(0));
        let place = Place::take(&busy);
        assert_eq!(busy.load(Ordering::Relaxed), 1);
        let thread = std::thread::spawn(move || {
            let _place = place;
            panic!("as any work might");
        });
        thread.join().unwrap_err();
        assert_eq!(busy.load(Ordering::Relaxed), 0);
    }
}
