//! One allocation on one link: asked for, kept, and its channels.
//!
//! Everything is a channel. ChannelBind also makes the permission for the peer's IP address (RFC 8656 12.2), so
//! whatever port the peer sends from, its datagrams come as Data indications, and no CreatePermission is needed. A
//! refresh every [`KEEP`] keeps translators before us open, measures, and tells soon that a server has lost us.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use mesh_types::turn::TurnTransport;
use rand_chacha::ChaCha20Rng;
use rand_core::Rng as _;

use super::message::{
    CHANNELS, Class, Credentials, Message, Method, Session, Writer, channel_data,
    parse_channel_data,
};

/// Between transmissions of a request over UDP; the last is how long the last one is waited for.
const ASK: [Duration; 5] = [
    Duration::from_millis(250),
    Duration::from_millis(500),
    Duration::from_millis(1000),
    Duration::from_millis(1000),
    Duration::from_millis(1250),
];
/// A stream loses nothing, and may have much to carry before.
const ASK_STREAM: Duration = Duration::from_secs(5);
/// Between refreshes: mappings of 30 s exist.
const KEEP: Duration = Duration::from_secs(25);
/// Lifetime asked for, seconds: the default of RFC 8656 3.2, and of most servers.
const LIFETIME: u32 = 600;
/// A permission lives for 300 s, a channel for 600 s (RFC 8656 9, 12); a bind renews both.
const RENEW: Duration = Duration::from_secs(240);
/// A number is not used for another peer before the server has forgotten it (RFC 8656 12: 300 s after the end).
const FORGOTTEN: Duration = Duration::from_secs(15 * 60);
/// A peer that the server refuses is not asked for again so soon.
const REFUSED: Duration = Duration::from_secs(300);
/// Channels of one allocation.
const CHANNELS_MAX: usize = 1024;
/// New nonces taken in a row without an answer between.
const NONCES_MAX: u8 = 3;

const UNAUTHORIZED: u16 = 401;
const ALLOCATION_MISMATCH: u16 = 437;
const STALE_NONCE: u16 = 438;
const WRONG_CREDENTIALS: u16 = 441;

/// Why an allocation is at an end, or there was none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Failure {
    /// No answer.
    Silent,
    /// The credentials are refused, with this code.
    Credentials(u16),
    /// The server wants credentials, and there are none.
    NoCredentials,
    /// The server has forgotten the allocation.
    Forgotten,
    /// Another error.
    Refused(u16, String),
}

/// What became of something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Event {
    /// There is an allocation.
    Ready,
    /// Datagrams to this peer go by a channel from now on.
    Bound(SocketAddr),
    /// It is at an end.
    Failed(Failure),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ask {
    Allocate,
    Refresh,
    Channel(SocketAddr),
}

#[derive(Debug)]
struct Asked {
    ask: Ask,
    bytes: Vec<u8>,
    /// What it carries.
    nonce: Option<Vec<u8>>,
    /// When it was sent last.
    sent: Instant,
    next: Instant,
    tries: usize,
}

#[derive(Debug)]
struct Channel {
    number: u16,
    bound: bool,
    wanted: bool,
    /// When it was bound last, or asked to be.
    at: Instant,
    /// When to bind it again.
    renew: Option<Instant>,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Client {
    transport: TurnTransport,
    credentials: Option<Credentials>,
    session: Option<Session>,
    relayed: Option<SocketAddr>,
    mapped: Option<SocketAddr>,
    failed: bool,
    nonces: u8,
    asked: BTreeMap<[u8; 12], Asked>,
    channels: BTreeMap<SocketAddr, Channel>,
    by_number: BTreeMap<u16, SocketAddr>,
    next_number: u16,
    refresh_at: Option<Instant>,
    rtt: Option<Duration>,
    out: VecDeque<Vec<u8>>,
    events: VecDeque<Event>,
    rng: ChaCha20Rng,
}

impl Client {
    /// Asks for an allocation.
    pub(crate) fn new(
        transport: TurnTransport,
        credentials: Option<Credentials>,
        rng: ChaCha20Rng,
        now: Instant,
    ) -> Self {
        let mut client = Self {
            transport,
            credentials,
            session: None,
            relayed: None,
            mapped: None,
            failed: false,
            nonces: 0,
            asked: BTreeMap::new(),
            channels: BTreeMap::new(),
            by_number: BTreeMap::new(),
            next_number: CHANNELS.0,
            refresh_at: None,
            rtt: None,
            out: VecDeque::new(),
            events: VecDeque::new(),
            rng,
        };
        client.ask(Ask::Allocate, now);
        client
    }

    /// Where peers send to, once there is an allocation.
    pub(crate) fn relayed(&self) -> Option<SocketAddr> {
        self.relayed.filter(|_| !self.failed)
    }

    /// Where the server sees this end of a stream.
    pub(crate) fn mapped_tcp(&self) -> Option<SocketAddr> {
        let stream = self.transport != TurnTransport::Udp && self.relayed().is_some();
        self.mapped.filter(|_| stream)
    }

    /// Round trip time to the server.
    pub(crate) fn rtt(&self) -> Option<Duration> {
        self.rtt
    }

    /// Channels in use: number and peer.
    pub(crate) fn bound(&self) -> impl Iterator<Item = (u16, SocketAddr)> + '_ {
        let all = self.channels.iter();
        all.filter(|(_, channel)| channel.bound)
            .map(|(peer, channel)| (channel.number, *peer))
    }

    /// Something to send to the server.
    pub(crate) fn poll_transmit(&mut self) -> Option<Vec<u8>> {
        self.out.pop_front()
    }

    pub(crate) fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        if self.failed {
            return None;
        }
        let asked = self.asked.values().map(|asked| asked.next);
        let renew = self.channels.values().filter_map(|channel| channel.renew);
        asked.chain(renew).chain(self.refresh_at).min()
    }

    pub(crate) fn handle_timeout(&mut self, now: Instant) {
        if self.failed {
            return;
        }
        let due = self.asked.iter().filter(|(_, asked)| asked.next <= now);
        let due: Vec<[u8; 12]> = due.map(|(id, _)| *id).collect();
        for id in due {
            let Some(asked) = self.asked.get_mut(&id) else {
                continue;
            };
            let wait = match self.transport {
                TurnTransport::Udp => ASK.get(asked.tries),
                TurnTransport::Tcp | TurnTransport::Tls => None,
            };
            let Some(wait) = wait else {
                return self.fail(Failure::Silent);
            };
            asked.tries += 1;
            asked.sent = now;
            asked.next = now + *wait;
            self.out.push_back(asked.bytes.clone());
        }
        if self.refresh_at.is_some_and(|at| at <= now) {
            self.check(now);
        }
        let due = |channel: &Channel| channel.renew.is_some_and(|at| at <= now);
        let renew = self.channels.iter().filter(|(_, channel)| due(channel));
        let renew: Vec<SocketAddr> = renew.map(|(peer, _)| *peer).collect();
        for peer in renew {
            self.bind(peer, now);
        }
        let old = |channel: &Channel| {
            !channel.wanted && now.saturating_duration_since(channel.at) >= FORGOTTEN
        };
        self.channels.retain(|_, channel| !old(channel));
        let channels = &self.channels;
        self.by_number.retain(|_, peer| channels.contains_key(peer));
    }

    /// Is the server still there, and the allocation? Asks it now.
    pub(crate) fn check(&mut self, now: Instant) {
        self.refresh_at = Some(now + KEEP);
        let asking = |asked: &Asked| asked.ask == Ask::Refresh;
        if self.relayed().is_some() && !self.asked.values().any(asking) {
            self.ask(Ask::Refresh, now);
        }
    }

    /// Datagrams to and from this peer are wanted, by channel. One that is bound already is not told of again.
    pub(crate) fn want(&mut self, peer: SocketAddr, now: Instant) {
        if self
            .relayed()
            .is_none_or(|own| own.is_ipv4() != peer.is_ipv4())
        {
            return;
        }
        if let Some(channel) = self.channels.get_mut(&peer) {
            let again = !std::mem::replace(&mut channel.wanted, true);
            if again && now.saturating_duration_since(channel.at) >= RENEW {
                channel.bound = false;
                self.bind(peer, now);
            } else if again {
                let rest = if channel.bound { RENEW } else { REFUSED };
                channel.renew = Some(channel.at + rest);
            }
            return;
        }
        if self.channels.len() >= CHANNELS_MAX {
            return;
        }
        let number = self.free_number();
        self.by_number.insert(number, peer);
        let channel = Channel {
            number,
            bound: false,
            wanted: true,
            at: now,
            renew: None,
        };
        self.channels.insert(peer, channel);
        self.bind(peer, now);
    }

    /// There are more numbers than channels.
    fn free_number(&mut self) -> u16 {
        let (first, count) = CHANNELS;
        while self.by_number.contains_key(&self.next_number) {
            self.next_number = first + (self.next_number + 1 - first) % count;
        }
        self.next_number
    }

    /// A peer is wanted no longer; its channel ends by itself.
    pub(crate) fn release(&mut self, peer: SocketAddr) {
        if let Some(channel) = self.channels.get_mut(&peer) {
            channel.wanted = false;
            channel.renew = None;
        }
    }

    fn bind(&mut self, peer: SocketAddr, now: Instant) {
        if let Some(channel) = self.channels.get_mut(&peer) {
            channel.renew = None;
            channel.at = now;
            self.ask(Ask::Channel(peer), now);
        }
    }

    /// Frames a datagram for a peer.
    pub(crate) fn wrap(&mut self, peer: SocketAddr, bytes: &[u8]) -> Option<Vec<u8>> {
        self.relayed()?;
        match self.channels.get(&peer) {
            Some(channel) if channel.bound => channel_data(channel.number, bytes),
            Some(_) | None => {
                let id = self.id();
                let send = Writer::new(Method::Send, Class::Indication, id);
                Some(send.peer(peer).data(bytes).finish(None))
            }
        }
    }

    /// Something came from the server; gives a datagram of a peer.
    pub(crate) fn handle<'a>(
        &mut self,
        bytes: &'a [u8],
        now: Instant,
    ) -> Option<(SocketAddr, &'a [u8])> {
        if let Some((number, content)) = parse_channel_data(bytes) {
            return self.by_number.get(&number).map(|peer| (*peer, content));
        }
        let message = Message::parse(bytes)?;
        match message.class {
            Class::Request => None,
            Class::Indication if message.method == Method::Data => {
                message.peer().zip(message.data())
            }
            Class::Indication => None,
            Class::Success | Class::Error => {
                self.answered(&message, now);
                None
            }
        }
    }

    fn answered(&mut self, message: &Message<'_>, now: Instant) {
        let signed = || self.session.as_ref().is_none_or(|s| message.is_signed(s));
        if self.failed || (message.class == Class::Success && !signed()) {
            return;
        }
        let Some(asked) = self.asked.remove(&message.transaction) else {
            return;
        };
        if message.class == Class::Error {
            return self.refused(&asked, message, now);
        }
        self.nonces = 0;
        // Which transmission was answered is known only where there was one.
        if asked.tries <= 1 {
            let rtt = now.saturating_duration_since(asked.sent);
            self.rtt = Some(self.rtt.map_or(rtt, |old| (old * 7 + rtt) / 8));
        }
        match asked.ask {
            Ask::Allocate => match message.relayed() {
                Some(relayed) => {
                    self.relayed = Some(relayed);
                    self.mapped = message.mapped();
                    self.refresh_at = Some(now + KEEP);
                    self.events.push_back(Event::Ready);
                }
                None => self.fail(Failure::Refused(0, "no relayed address".to_owned())),
            },
            Ask::Refresh => {
                if message.lifetime() == Some(0) {
                    self.fail(Failure::Forgotten);
                }
            }
            Ask::Channel(peer) => {
                if let Some(channel) = self.channels.get_mut(&peer) {
                    channel.renew = channel.wanted.then_some(now + RENEW);
                    if !std::mem::replace(&mut channel.bound, true) && channel.wanted {
                        self.events.push_back(Event::Bound(peer));
                    }
                }
            }
        }
    }

    fn refused(&mut self, asked: &Asked, message: &Message<'_>, now: Instant) {
        let ask = asked.ask;
        let (code, reason) = message.error().unwrap_or_default();
        let news = message.realm().zip(message.nonce());
        match (code, news) {
            (UNAUTHORIZED, Some((realm, nonce))) if self.session.is_none() => {
                match &self.credentials {
                    Some(credentials) => {
                        self.session = Some(Session::new(credentials, realm, nonce));
                        self.ask(ask, now);
                    }
                    None => self.fail(Failure::NoCredentials),
                }
            }
            // Another answer has brought a newer one meanwhile.
            (STALE_NONCE, _) if self.nonce() != asked.nonce => self.ask(ask, now),
            (STALE_NONCE, Some((realm, nonce))) if self.nonces < NONCES_MAX => {
                self.nonces += 1;
                let credentials = self.credentials.as_ref();
                self.session = credentials.map(|known| Session::new(known, realm, nonce));
                self.ask(ask, now);
            }
            (UNAUTHORIZED | WRONG_CREDENTIALS, _) => self.fail(Failure::Credentials(code)),
            (ALLOCATION_MISMATCH, _) => self.fail(Failure::Forgotten),
            (_, _) => match ask {
                // The server does not want this peer; it may be wanted again by a change of its configuration.
                Ask::Channel(peer) => {
                    if let Some(channel) = self.channels.get_mut(&peer) {
                        channel.bound = false;
                        channel.renew = channel.wanted.then_some(now + REFUSED);
                    }
                }
                Ask::Allocate | Ask::Refresh => self.fail(Failure::Refused(code, reason)),
            },
        }
    }

    fn fail(&mut self, failure: Failure) {
        self.failed = true;
        self.asked.clear();
        self.events.push_back(Event::Failed(failure));
    }

    /// Gives the allocation back: servers count them.
    pub(crate) fn close(&mut self) -> Option<Vec<u8>> {
        self.relayed()?;
        let id = self.id();
        let refresh = Writer::new(Method::Refresh, Class::Request, id).lifetime(0);
        Some(refresh.finish(self.session.as_ref()))
    }

    fn ask(&mut self, ask: Ask, now: Instant) {
        let id = self.id();
        let new = |method| Writer::new(method, Class::Request, id);
        let message = match ask {
            Ask::Allocate => new(Method::Allocate).lifetime(LIFETIME).transport_udp(),
            Ask::Refresh => new(Method::Refresh).lifetime(LIFETIME),
            Ask::Channel(peer) => {
                let Some(channel) = self.channels.get(&peer) else {
                    return;
                };
                new(Method::ChannelBind).channel(channel.number).peer(peer)
            }
        };
        let bytes = message.finish(self.session.as_ref());
        let wait = match self.transport {
            TurnTransport::Udp => ASK[0],
            TurnTransport::Tcp | TurnTransport::Tls => ASK_STREAM,
        };
        self.out.push_back(bytes.clone());
        let asked = Asked {
            ask,
            bytes,
            nonce: self.nonce(),
            sent: now,
            next: now + wait,
            tries: 1,
        };
        self.asked.insert(id, asked);
    }

    fn nonce(&self) -> Option<Vec<u8>> {
        let session = self.session.as_ref();
        session.map(|session| session.nonce().to_vec())
    }

    fn id(&mut self) -> [u8; 12] {
        let mut id = [0; 12];
        self.rng.fill_bytes(&mut id);
        id
    }
}

#[cfg(test)]
mod tests {
    use super::super::message::tests::Says;
    use super::*;
    use crate::instant::start;
    use mesh_types::turn::TurnSecret;
    use rand_core::SeedableRng as _;

    const REALM: &[u8] = b"example.org";

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn relayed() -> SocketAddr {
        at("198.51.100.1:50000")
    }

    fn credentials() -> Credentials {
        Credentials::new(&TurnSecret::new("north"), "a", 1)
    }

    struct Bench {
        client: Client,
        now: Instant,
        nonce: &'static [u8],
    }

    impl Bench {
        fn new(transport: TurnTransport) -> Self {
            let now = start();
            let rng = ChaCha20Rng::from_seed([1; 32]);
            Self {
                client: Client::new(transport, Some(credentials()), rng, now),
                now,
                nonce: b"n1",
            }
        }

        fn session(&self) -> Session {
            Session::new(&credentials(), REALM, self.nonce)
        }

        /// The next request, and whether it is signed rightly.
        fn heard(&mut self) -> (Method, [u8; 12], bool) {
            let bytes = self.client.poll_transmit().expect("a request");
            let message = Message::parse(&bytes).unwrap();
            let signed = message.is_signed(&self.session());
            (message.method, message.transaction, signed)
        }

        fn challenge(&mut self, code: u16) {
            let (method, id, _) = self.heard();
            let says = Says::new(method, Class::Error, id).error(code);
            let bytes = says.challenge(REALM, self.nonce).end(None);
            assert_eq!(self.client.handle(&bytes, self.now), None);
        }

        fn grant(&mut self) -> Method {
            let (method, id, signed) = self.heard();
            assert!(signed, "{method:?}");
            let says = Says::new(method, Class::Success, id);
            let says = says.relayed(relayed()).lifetime(600);
            let bytes = says.end(Some(&self.session()));
            assert_eq!(self.client.handle(&bytes, self.now), None);
            method
        }

        fn ready(transport: TurnTransport) -> Self {
            let mut bench = Self::new(transport);
            bench.challenge(401);
            assert_eq!(bench.grant(), Method::Allocate);
            assert_eq!(bench.client.poll_event(), Some(Event::Ready));
            bench
        }

        fn wake(&mut self) {
            self.now = self.client.poll_timeout().expect("something is due");
            self.client.handle_timeout(self.now);
        }
    }

    #[test]
    fn an_allocation_is_asked_for_again_with_credentials_once_the_server_wants_them() {
        let mut bench = Bench::ready(TurnTransport::Udp);
        assert_eq!(bench.client.relayed(), Some(relayed()));
        assert_eq!(bench.client.poll_transmit(), None);
        bench.wake();
        assert_eq!(bench.grant(), Method::Refresh);
        assert_eq!(bench.client.poll_event(), None);
    }

    #[test]
    fn credentials_that_are_refused_are_not_tried_twice() {
        let mut bench = Bench::new(TurnTransport::Udp);
        bench.challenge(401);
        bench.challenge(401);
        let failed = Event::Failed(Failure::Credentials(401));
        assert_eq!(bench.client.poll_event(), Some(failed));
        assert_eq!(bench.client.poll_transmit(), None);
        assert_eq!(bench.client.poll_timeout(), None);
    }

    #[test]
    fn a_stale_nonce_is_replaced_and_a_server_that_always_says_so_is_left() {
        let mut bench = Bench::ready(TurnTransport::Udp);
        bench.wake();
        bench.nonce = b"n2";
        bench.challenge(438);
        assert_eq!(bench.grant(), Method::Refresh);
        bench.wake();
        for _ in 0..=NONCES_MAX {
            bench.challenge(438);
        }
        let failed = bench.client.poll_event();
        assert_eq!(
            failed,
            Some(Event::Failed(Failure::Refused(438, "No".into())))
        );
    }

    #[test]
    fn a_silent_server_is_asked_five_times_in_four_seconds_and_a_stream_once() {
        for (transport, requests, seconds) in
            [(TurnTransport::Udp, 5, 4), (TurnTransport::Tls, 1, 5)]
        {
            let mut bench = Bench::new(transport);
            let start = bench.now;
            let mut count = 0;
            while bench.client.poll_event().is_none() {
                while bench.client.poll_transmit().is_some() {
                    count += 1;
                }
                bench.wake();
            }
            assert_eq!(
                (count, bench.now - start),
                (requests, Duration::from_secs(seconds))
            );
        }
    }

    #[test]
    fn peers_get_channels_which_are_renewed_while_they_are_wanted() {
        let mut bench = Bench::ready(TurnTransport::Tcp);
        let peer = at("203.0.113.5:7000");
        bench.client.want(peer, bench.now);
        bench.client.want(at("[2001:db8::1]:1"), bench.now);
        let early = bench.client.wrap(peer, b"x").unwrap();
        assert_eq!(Message::parse(&early).unwrap().method, Method::Send);
        assert_eq!(bench.grant(), Method::ChannelBind);
        assert_eq!(bench.client.poll_event(), Some(Event::Bound(peer)));
        let framed = bench.client.wrap(peer, b"hello").unwrap();
        assert_eq!(
            parse_channel_data(&framed),
            Some((0x4000, b"hello".as_slice()))
        );
        let back = bench.client.handle(&framed, bench.now);
        assert_eq!(back, Some((peer, b"hello".as_slice())));

        let renewed = |bench: &mut Bench| {
            let end = bench.now + Duration::from_secs(300);
            let mut renewed = false;
            while bench.now < end {
                bench.wake();
                renewed |= bench.grant() == Method::ChannelBind;
            }
            renewed
        };
        assert!(renewed(&mut bench));
        bench.client.release(peer);
        assert!(!renewed(&mut bench));
        assert_eq!(bench.client.poll_transmit(), None);
        bench.client.want(peer, bench.now);
        assert_eq!(bench.grant(), Method::ChannelBind);
        assert_eq!(bench.client.poll_event(), Some(Event::Bound(peer)));
        assert_eq!(bench.client.bound().next(), Some((0x4000, peer)));
    }

    #[test]
    fn a_datagram_from_a_port_nobody_named_comes_with_its_address() {
        let mut bench = Bench::ready(TurnTransport::Udp);
        let peer = at("203.0.113.5:7001");
        let says = Says::new(Method::Data, Class::Indication, [3; 12]);
        let bytes = says.peer(peer, b"probe").end(None);
        let got = bench.client.handle(&bytes, bench.now);
        assert_eq!(got, Some((peer, b"probe".as_slice())));
    }

    #[test]
    fn a_server_that_has_started_anew_is_noticed_by_the_next_refresh() {
        let mut bench = Bench::ready(TurnTransport::Udp);
        bench.client.check(bench.now);
        bench.challenge(437);
        let failed = Event::Failed(Failure::Forgotten);
        assert_eq!(bench.client.poll_event(), Some(failed));
        assert_eq!(bench.client.relayed(), None);
        assert_eq!(bench.client.wrap(at("203.0.113.5:1"), b"x"), None);
    }

    #[test]
    fn a_peer_that_the_server_forbids_costs_the_others_nothing() {
        let mut bench = Bench::ready(TurnTransport::Udp);
        bench.client.want(at("10.0.0.1:7000"), bench.now);
        bench.challenge(403);
        assert_eq!(bench.client.poll_event(), None);
        assert!(bench.client.relayed().is_some());
        assert_eq!(bench.client.bound().next(), None);
    }

    #[test]
    fn a_peer_that_was_refused_and_is_wanted_again_is_asked_for_again() {
        let mut bench = Bench::ready(TurnTransport::Tcp);
        let peer = at("203.0.113.5:7000");
        bench.client.want(peer, bench.now);
        bench.challenge(403);
        bench.client.release(peer);
        bench.client.want(peer, bench.now);
        let end = bench.now + REFUSED;
        while bench.now < end {
            bench.wake();
            bench.grant();
        }
        assert_eq!(bench.grant(), Method::ChannelBind);
        assert_eq!(bench.client.poll_event(), Some(Event::Bound(peer)));
    }

    #[test]
    fn a_nonce_that_expires_under_many_requests_fails_none_of_them() {
        let mut bench = Bench::ready(TurnTransport::Tcp);
        let peers = [1, 2, 3, 4, 5, 6].map(|n| SocketAddr::from(([203, 0, 113, n], 7000)));
        for peer in peers {
            bench.client.want(peer, bench.now);
        }
        bench.nonce = b"n2";
        for _ in peers {
            bench.challenge(438);
        }
        for peer in peers {
            assert_eq!(bench.grant(), Method::ChannelBind);
            assert_eq!(bench.client.poll_event(), Some(Event::Bound(peer)));
        }
    }

    #[test]
    fn an_unsigned_answer_is_nobodys() {
        let mut bench = Bench::new(TurnTransport::Udp);
        bench.challenge(401);
        let (method, id, _) = bench.heard();
        let says = Says::new(method, Class::Success, id).relayed(at("192.0.2.66:1"));
        bench.client.handle(&says.end(None), bench.now);
        assert_eq!(bench.client.relayed(), None);
    }

    #[test]
    fn channels_are_bounded_and_their_numbers_differ() {
        let mut bench = Bench::ready(TurnTransport::Udp);
        for port in 1..=2000 {
            bench
                .client
                .want(SocketAddr::from(([203, 0, 113, 5], port)), bench.now);
        }
        assert_eq!(bench.client.by_number.len(), CHANNELS_MAX);
        assert_eq!(bench.client.channels.len(), CHANNELS_MAX);
    }
}
