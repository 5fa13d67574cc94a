//! TURN servers (RFC 8656): which one is used, and the addresses that stand for peers behind it.
//!
//! A node with TURN servers keeps one allocation, so that whoever is not reached otherwise is reached at once, and
//! announces its relayed address: the other side only sends there, and needs no server of its own. Servers are tried
//! in the order of their transports, a moment apart; the first that allocates is used, better ones are tried on.
//!
//! A peer's address behind a link has a loopback address of its own ([`mesh_types::plan::Proxy`]). All other modules
//! take that for the address: it is a candidate like others, probed like others, with [`mesh_types::SocketId::Turn`] for a socket.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use mesh_types::consts::{PROXY_PORT, PROXY_RANGE};
use mesh_types::plan::{Proxy, TurnLink};
use mesh_types::report::TurnLinkState;
use mesh_types::turn::{TurnAddress, TurnServer, TurnTransport};
use mesh_types::{Now, PeerId};
use rand_chacha::ChaCha20Rng;
use rand_core::{Rng as _, SeedableRng as _};

use crate::api::{PathKind, TurnProblem, TurnReport};

mod client;
mod direct;
mod message;
mod servers;

use client::{Client, Failure};
use direct::Direct;
use message::Credentials;

/// Between the first attempts of servers in order: two round trips across an ocean.
const STAGGER: Duration = Duration::from_millis(750);
/// After a failure a server is tried again after this, doubled each time...
const AGAIN: Duration = Duration::from_millis(500);
/// ...up to this: a server that comes back is wanted soon.
const AGAIN_MAX: Duration = Duration::from_secs(30);
/// What a person must change first is not tried sooner.
const AGAIN_REFUSED: Duration = Duration::from_secs(60);
/// No answer to an attempt to connect after this.
const CONNECT: Duration = Duration::from_secs(12);
/// A link beside a better one is kept so long, three times that while a path leads through it: paths move meanwhile.
const GRACE: Duration = Duration::from_secs(20);
/// Lifetime of credentials...
const CREDENTIALS: Duration = Duration::from_secs(24 * 3600);
/// ...and the age at which an allocation made with them is replaced.
const REPLACE: Duration = Duration::from_secs(12 * 3600);
/// How long all servers are measured when a person asks for it.
const SURVEY: Duration = Duration::from_secs(5);
/// Addresses remembered of which only a datagram has come.
const STRANGERS_MAX: usize = 64;
/// Loopback addresses in the range, without the last: it is a broadcast address.
const LOOPBACKS: u32 = (1 << 23) - 2;

/// What became of something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Event {
    /// A peer's address can be probed through a link.
    Bound {
        peers: BTreeSet<PeerId>,
        loopback: SocketAddr,
    },
    /// A link has ended: so have all paths on it.
    Lost {
        /// It led to a server.
        server: bool,
    },
    /// There is an allocation where there was none on this link: peers may want it, and its address is announced.
    Ready,
    /// A server's name is to be looked up.
    Resolve(String),
}

#[derive(Debug)]
struct Slot {
    server: TurnServer,
    addresses: Vec<SocketAddr>,
    /// Which of them is next.
    next: usize,
    failures: u32,
    retry: Option<Instant>,
    problem: Option<TurnProblem>,
    rtt: Option<Duration>,
}

impl Slot {
    fn transport(&self) -> TurnTransport {
        self.server.address.transport
    }
}

#[derive(Debug)]
struct Link {
    slot: usize,
    server: SocketAddr,
    /// Once the edge has connected.
    client: Option<Client>,
    since: Instant,
    ready: Option<Instant>,
}

impl Link {
    fn relayed(&self) -> Option<SocketAddr> {
        self.client.as_ref().and_then(Client::relayed)
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Turn {
    name: String,
    slots: Vec<Slot>,
    links: BTreeMap<u32, Link>,
    direct: BTreeMap<u32, Direct>,
    next_link: u32,
    /// Link and address of the peer.
    loopbacks: BTreeMap<SocketAddr, (u32, SocketAddr)>,
    by_peer: BTreeMap<(u32, SocketAddr), SocketAddr>,
    next_loopback: u32,
    strangers: VecDeque<SocketAddr>,
    /// At which addresses peers are to be reached; of no peer: who is asked to let us join.
    wishes: BTreeMap<Option<PeerId>, BTreeSet<SocketAddr>>,
    /// Since when there is no allocation.
    seeking: Option<Instant>,
    survey: Option<Instant>,
    changed: bool,
    events: VecDeque<Event>,
    /// Allocations are given back: servers count them.
    farewells: VecDeque<(u32, SocketAddr, Vec<u8>)>,
    begun: Instant,
    rng: ChaCha20Rng,
}

impl Turn {
    pub(crate) fn new(seed: [u8; 32], now: Instant) -> Self {
        let mut rng = ChaCha20Rng::from_seed(seed);
        // Another agent on this host, and an earlier one whose tunnel lives on, use other addresses.
        let next_loopback = rng.next_u32() % LOOPBACKS;
        Self {
            name: String::new(),
            slots: Vec::new(),
            links: BTreeMap::new(),
            direct: BTreeMap::new(),
            next_link: 0,
            loopbacks: BTreeMap::new(),
            by_peer: BTreeMap::new(),
            next_loopback,
            strangers: VecDeque::new(),
            wishes: BTreeMap::new(),
            seeking: None,
            survey: None,
            changed: false,
            events: VecDeque::new(),
            farewells: VecDeque::new(),
            begun: now,
            rng,
        }
    }

    /// Connections that are wanted.
    pub(crate) fn links(&self) -> BTreeSet<TurnLink> {
        let link = |(number, link): (&u32, &Link)| {
            let slot = self.slots.get(link.slot)?;
            Some(TurnLink {
                number: *number,
                server: link.server,
                transport: slot.transport(),
                name: slot.server.address.host.clone(),
                from: None,
            })
        };
        let links = self.links.iter().filter_map(link);
        links.chain(self.direct_links()).collect()
    }

    /// Channels of addresses that somebody wants.
    pub(crate) fn proxies(&self) -> BTreeSet<Proxy> {
        let mut out: BTreeSet<Proxy> = self.direct_proxies().collect();
        let wished: BTreeSet<&SocketAddr> = self.wishes.values().flatten().collect();
        for (number, link) in &self.links {
            let bound = link.client.iter().flat_map(Client::bound);
            for (channel, peer) in bound.filter(|(_, peer)| wished.contains(peer)) {
                if let Some(loopback) = self.by_peer.get(&(*number, peer)) {
                    out.insert(Proxy {
                        loopback: *loopback,
                        link: *number,
                        channel,
                    });
                }
            }
        }
        out
    }

    /// Have [`Self::links`] or [`Self::proxies`] changed since this was last asked?
    pub(crate) fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    pub(crate) fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Are there servers at all?
    pub(crate) fn is_configured(&self) -> bool {
        !self.slots.is_empty()
            || !self.links.is_empty()
            || !self.direct.is_empty()
            || !self.farewells.is_empty()
    }

    /// Is a peer to be reached through a link?
    pub(crate) fn is_wished(&self, id: &PeerId) -> bool {
        self.wishes.contains_key(&Some(*id))
    }

    /// Own relayed addresses.
    pub(crate) fn relayed(&self) -> impl Iterator<Item = SocketAddr> + '_ {
        self.links.values().filter_map(Link::relayed)
    }

    /// For people.
    pub(crate) fn report(&self) -> Vec<TurnReport> {
        let report = |(index, slot): (usize, &Slot)| {
            let links = self.links.values().filter(|link| link.slot == index);
            TurnReport {
                address: slot.server.address.clone(),
                relayed: links.filter_map(Link::relayed).next(),
                rtt: slot.rtt,
                problem: slot.problem.clone(),
            }
        };
        self.slots.iter().enumerate().map(report).collect()
    }

    /// Link and tier of an address that stands for one behind a link.
    pub(crate) fn link_of(&self, loopback: &SocketAddr) -> Option<(u32, PathKind)> {
        let (link, _) = self.loopbacks.get(loopback)?;
        if self.direct.contains_key(link) {
            return Some((*link, PathKind::Tcp));
        }
        let slot = self.slots.get(self.links.get(link)?.slot)?;
        let kind = match slot.transport() {
            TurnTransport::Udp => PathKind::TurnUdp,
            TurnTransport::Tcp | TurnTransport::Tls => PathKind::TurnTcp,
        };
        Some((*link, kind))
    }

    /// The server by which an address is reached.
    pub(crate) fn server_of(&self, loopback: &SocketAddr) -> Option<TurnAddress> {
        let (link, _) = self.loopbacks.get(loopback)?;
        let slot = self.slots.get(self.links.get(link)?.slot)?;
        Some(slot.server.address.clone())
    }

    /// The peer's address that an address stands for; itself where it stands for none.
    pub(crate) fn real(&self, address: SocketAddr) -> SocketAddr {
        let known = self.loopbacks.get(&address);
        known.map_or(address, |(_, peer)| *peer)
    }

    /// Frames a datagram for a link: the server's address and the bytes.
    pub(crate) fn wrap(
        &mut self,
        link: u32,
        loopback: SocketAddr,
        bytes: &[u8],
    ) -> Option<(SocketAddr, Vec<u8>)> {
        let (at, peer) = *self.loopbacks.get(&loopback)?;
        if at == link && self.direct.contains_key(&link) {
            return direct::wrap(bytes).map(|framed| (peer, framed));
        }
        let link = self.links.get_mut(&link).filter(|_| at == link)?;
        let framed = link.client.as_mut()?.wrap(peer, bytes)?;
        Some((link.server, framed))
    }

    /// Something came on a link. Gives a datagram of a peer, the address that stands for where it came from, and our
    /// relayed one, where it came to.
    pub(crate) fn handle<'a>(
        &mut self,
        number: u32,
        bytes: &'a [u8],
        now: Instant,
    ) -> Option<(SocketAddr, SocketAddr, &'a [u8])> {
        if let Some(peer) = self.direct.get(&number).map(|direct| direct.at) {
            let content = direct::unwrap(bytes)?;
            return Some((self.stand_in(number, peer), direct::NOWHERE, content));
        }
        let link = self.links.get_mut(&number)?;
        let client = link.client.as_mut()?;
        let got = client.handle(bytes, now);
        let local = client.relayed();
        self.drain(number, now);
        let ((peer, content), local) = got.zip(local)?;
        Some((self.stand_in(number, peer), local, content))
    }

    /// The address that stands for a peer's.
    fn stand_in(&mut self, link: u32, peer: SocketAddr) -> SocketAddr {
        if let Some(known) = self.by_peer.get(&(link, peer)) {
            return *known;
        }
        let loopback = self.next_loopback();
        self.loopbacks.insert(loopback, (link, peer));
        self.by_peer.insert((link, peer), loopback);
        self.strangers.push_back(loopback);
        while self.strangers.len() > STRANGERS_MAX {
            if let Some(oldest) = self.strangers.pop_front() {
                self.forget(oldest);
            }
        }
        loopback
    }

    fn next_loopback(&mut self) -> SocketAddr {
        loop {
            self.next_loopback = (self.next_loopback + 1) % LOOPBACKS;
            let ip = Ipv4Addr::from(u32::from(PROXY_RANGE.0) + 1 + self.next_loopback);
            let address = SocketAddr::new(IpAddr::V4(ip), PROXY_PORT);
            // Far more addresses than are ever in use.
            if !self.loopbacks.contains_key(&address) {
                return address;
            }
        }
    }

    fn forget(&mut self, loopback: SocketAddr) {
        if let Some(names) = self.loopbacks.remove(&loopback) {
            self.by_peer.remove(&names);
        }
    }

    /// A peer is to be reached at these addresses through whatever link there is, and at no others.
    pub(crate) fn wish(&mut self, id: Option<PeerId>, targets: BTreeSet<SocketAddr>, now: Instant) {
        let before = self.wishes.remove(&id).unwrap_or_default();
        if before == targets {
            if !before.is_empty() {
                self.wishes.insert(id, before);
            }
            return;
        }
        let gone: Vec<SocketAddr> = before
            .difference(&targets)
            .filter(|at| !self.wishes.values().any(|other| other.contains(at)))
            .copied()
            .collect();
        let fresh: Vec<SocketAddr> = targets.difference(&before).copied().collect();
        if !targets.is_empty() {
            self.wishes.insert(id, targets);
        }
        self.changed = true;
        let numbers: Vec<u32> = self.links.keys().copied().collect();
        for number in numbers {
            for peer in &fresh {
                if let Some(loopback) = self.by_peer.get(&(number, *peer)).copied() {
                    self.strangers.retain(|stranger| *stranger != loopback);
                }
            }
            if let Some(client) = self.links.get_mut(&number).and_then(|l| l.client.as_mut()) {
                gone.iter().for_each(|peer| client.release(*peer));
                fresh.iter().for_each(|peer| client.want(*peer, now));
            }
            for peer in &gone {
                if let Some(loopback) = self.by_peer.get(&(number, *peer)).copied() {
                    self.forget(loopback);
                }
            }
            // A channel of another peer at the same address is bound already: say so to this one.
            let known: Vec<SocketAddr> = self.bound_among(number, &fresh);
            self.drain(number, now);
            for peer in known {
                self.tell_bound(number, peer);
            }
        }
    }

    fn bound_among(&self, number: u32, peers: &[SocketAddr]) -> Vec<SocketAddr> {
        let client = self
            .links
            .get(&number)
            .and_then(|link| link.client.as_ref());
        let bound = client.into_iter().flat_map(Client::bound);
        bound
            .map(|(_, peer)| peer)
            .filter(|peer| peers.contains(peer))
            .collect()
    }

    fn tell_bound(&mut self, number: u32, peer: SocketAddr) {
        let wishes = self.wishes.iter();
        let owners: BTreeSet<Option<PeerId>> = wishes
            .filter(|(_, targets)| targets.contains(&peer))
            .map(|(id, _)| *id)
            .collect();
        if owners.is_empty() {
            return;
        }
        let peers = owners.into_iter().flatten().collect();
        let loopback = self.stand_in(number, peer);
        self.strangers.retain(|stranger| *stranger != loopback);
        self.changed = true;
        self.events.push_back(Event::Bound { peers, loopback });
    }

    /// The name of a peer has changed.
    pub(crate) fn rename(&mut self, from: &PeerId, to: PeerId) {
        self.rename_direct(from, to);
        if let Some(wish) = self.wishes.remove(&Some(*from)) {
            self.wishes.entry(Some(to)).or_default().extend(wish);
        }
    }

    /// Where an address that is wished for is reached now: links, and what stands for it there.
    pub(crate) fn ways(&mut self, peer: SocketAddr) -> Vec<(u32, SocketAddr)> {
        let ready = |(number, link): (&u32, &Link)| link.relayed().map(|_| *number);
        let links: Vec<u32> = self.links.iter().filter_map(ready).collect();
        let way = |number| (number, self.stand_in(number, peer));
        links.into_iter().map(way).collect()
    }

    /// A path through a link does not answer: is it the peer, or the server?
    pub(crate) fn check(&mut self, number: u32, now: Instant) {
        if let Some(client) = self.links.get_mut(&number).and_then(|l| l.client.as_mut()) {
            client.check(now);
        }
    }

    /// Measures all servers for a moment.
    pub(crate) fn survey(&mut self, now: Instant) {
        self.survey = Some(now + SURVEY);
        for slot in &mut self.slots {
            slot.retry = None;
        }
    }

    /// The host has moved: other ways may be open.
    pub(crate) fn moved(&mut self, now: Instant) {
        for slot in &mut self.slots {
            slot.retry = None;
            slot.failures = 0;
        }
        let all: Vec<u32> = self.links.keys().copied().collect();
        for number in all {
            // A connection from an address that is gone ends by itself much later.
            self.check(number, now);
        }
    }

    /// The edge says what became of a link.
    pub(crate) fn link_state(&mut self, number: u32, state: &TurnLinkState, now: Now) {
        if self.direct.contains_key(&number) {
            return self.direct_state(number, state, now.mono);
        }
        let Some(link) = self.links.get_mut(&number) else {
            return;
        };
        let Some(slot) = self.slots.get_mut(link.slot) else {
            return;
        };
        match state {
            TurnLinkState::Up if link.client.is_none() => {
                let expiry = now.unix_secs() + CREDENTIALS.as_secs();
                let secret = slot.server.secret.as_ref();
                let credentials = secret.map(|s| Credentials::new(s, &self.name, expiry));
                let mut seed = [0; 32];
                self.rng.fill_bytes(&mut seed);
                let rng = ChaCha20Rng::from_seed(seed);
                let client = Client::new(slot.transport(), credentials, rng, now.mono);
                link.client = Some(client);
                link.since = now.mono;
            }
            TurnLinkState::Up => {}
            TurnLinkState::Down {
                reason,
                certificate,
            } => {
                let problem = if *certificate {
                    TurnProblem::Certificate(reason.clone())
                } else {
                    TurnProblem::Unreachable(reason.clone())
                };
                self.fail(number, problem, now.mono);
            }
        }
    }

    /// A link is at an end.
    fn fail(&mut self, number: u32, problem: TurnProblem, now: Instant) {
        let Some(link) = self.links.get(&number) else {
            return;
        };
        let (index, was_ready) = (link.slot, link.ready.is_some());
        let many = self.rng.next_u32();
        if let Some(slot) = self.slots.get_mut(index) {
            slot.rtt = None;
            slot.failures = if was_ready { 1 } else { slot.failures + 1 };
            let wait = if problem.is_lasting() {
                AGAIN_REFUSED
            } else {
                (AGAIN * 2_u32.pow(slot.failures.min(10) - 1)).min(AGAIN_MAX)
            };
            // Many nodes lose one server at one moment: they come back up to a fifth later each.
            slot.retry = Some(now + wait + wait * (many >> 16) / 0x1_0000 / 5);
            slot.next += 1;
            let again =
                !slot.addresses.is_empty() && slot.next.is_multiple_of(slot.addresses.len());
            let authority = slot.server.address.authority();
            if again && authority.parse::<SocketAddr>().is_err() {
                self.events.push_back(Event::Resolve(authority));
            }
            // A server that went away while it was used is told of when it does not come back.
            slot.problem = (!was_ready).then_some(problem);
        }
        self.drop_link(number);
        if !self.links.values().any(|link| link.ready.is_some()) {
            self.seeking.get_or_insert(now);
        }
    }

    fn drop_link(&mut self, number: u32) {
        let server = self.links.remove(&number).is_some();
        self.direct.remove(&number);
        let gone = |(_, (link, _)): &(&SocketAddr, &(u32, SocketAddr))| *link == number;
        let loopbacks: Vec<SocketAddr> = self
            .loopbacks
            .iter()
            .filter(gone)
            .map(|(at, _)| *at)
            .collect();
        self.changed = true;
        self.events.push_back(Event::Lost { server });
        for loopback in loopbacks {
            self.forget(loopback);
        }
        let loopbacks = &self.loopbacks;
        self.strangers
            .retain(|stranger| loopbacks.contains_key(stranger));
    }

    /// Takes what a link's client has to say.
    fn drain(&mut self, number: u32, now: Instant) {
        while let Some(link) = self.links.get_mut(&number)
            && let Some(client) = link.client.as_mut()
            && let Some(event) = client.poll_event()
        {
            match event {
                client::Event::Ready => {
                    link.ready = Some(now);
                    let wished = self.wishes.values().flatten();
                    wished.for_each(|peer| client.want(*peer, now));
                    if let Some(slot) = self.slots.get_mut(link.slot) {
                        slot.failures = 0;
                        slot.retry = None;
                        slot.problem = None;
                    }
                    self.seeking = None;
                    self.events.push_back(Event::Ready);
                }
                client::Event::Bound(peer) => self.tell_bound(number, peer),
                client::Event::Failed(failure) => {
                    let problem = match failure {
                        Failure::Silent => TurnProblem::Silent,
                        Failure::Credentials(code) => TurnProblem::Credentials(code),
                        Failure::NoCredentials => TurnProblem::NoCredentials,
                        Failure::Forgotten => TurnProblem::Refused(437, "allocation lost".into()),
                        Failure::Refused(code, reason) => TurnProblem::Refused(code, reason),
                    };
                    return self.fail(number, problem, now);
                }
            }
        }
        if let Some(link) = self.links.get(&number)
            && let Some(rtt) = link.client.as_ref().and_then(Client::rtt)
            && let Some(slot) = self.slots.get_mut(link.slot)
        {
            slot.rtt = Some(rtt);
        }
    }

    /// What is to be sent to servers: link, server, bytes.
    pub(crate) fn poll_transmit(&mut self) -> Option<(u32, SocketAddr, Vec<u8>)> {
        if let Some(farewell) = self.farewells.pop_front() {
            return Some(farewell);
        }
        self.links.iter_mut().find_map(|(number, link)| {
            let bytes = link.client.as_mut()?.poll_transmit()?;
            Some((*number, link.server, bytes))
        })
    }

    /// Does what is due. `used` are the links that paths in use lead through.
    pub(crate) fn handle_timeout(&mut self, used: &BTreeSet<u32>, now: Instant) {
        self.survey.take_if(|until| *until <= now);
        let numbers: Vec<u32> = self.links.keys().copied().collect();
        for number in numbers {
            let Some(link) = self.links.get_mut(&number) else {
                continue;
            };
            match &mut link.client {
                Some(client) => {
                    client.handle_timeout(now);
                    self.drain(number, now);
                }
                None if link.since + CONNECT <= now => {
                    self.fail(number, TurnProblem::Silent, now);
                }
                None => {}
            }
        }
        self.close_silent(used, now);
        self.close_spare(used, now);
        self.open_wanted(now);
    }

    /// The transport of the best allocation there is.
    fn best(&self) -> Option<TurnTransport> {
        let ready = self.links.values().filter(|link| link.ready.is_some());
        let slots = ready.filter_map(|link| self.slots.get(link.slot));
        slots.map(Slot::transport).min()
    }

    fn close_spare(&mut self, used: &BTreeSet<u32>, now: Instant) {
        let spare: Vec<u32> = self
            .links
            .keys()
            .filter(|number| self.spare_at(**number, used).is_some_and(|at| at <= now))
            .copied()
            .collect();
        for number in spare {
            if let Some(link) = self.links.get_mut(&number)
                && let Some(bytes) = link.client.as_mut().and_then(Client::close)
            {
                self.farewells.push_back((number, link.server, bytes));
            }
            self.drop_link(number);
        }
    }

    /// The slot of the best link that does better than this one, and since when it does.
    fn better(&self, number: u32) -> Option<(usize, Instant)> {
        let link = self.links.get(&number)?;
        let rank = |link: &Link| {
            let transport = self.slots.get(link.slot).map(Slot::transport);
            // Of one server the newest is better: its credentials are.
            (transport, link.slot, std::cmp::Reverse(link.since))
        };
        let others = self.links.iter().filter(|(other, _)| **other != number);
        let ready = others.filter_map(|(_, other)| Some((rank(other), other.slot, other.ready?)));
        let (_, slot, since) = ready.filter(|(other, ..)| *other < rank(link)).min()?;
        Some((slot, since))
    }

    /// Has a newer link to the same server taken its place, for long enough that pairs can be reached there?
    pub(crate) fn is_retired(&self, number: u32, now: Instant) -> bool {
        let slot = self.links.get(&number).map(|link| link.slot);
        self.better(number)
            .is_some_and(|(better, since)| Some(better) == slot && since + GRACE <= now)
    }

    /// When a link is to be closed because another one does better.
    fn spare_at(&self, number: u32, used: &BTreeSet<u32>) -> Option<Instant> {
        let link = self.links.get(&number)?;
        let (slot, better) = self.better(number)?;
        let surveyed = self.survey.map_or(better, |until| until.max(better));
        match link.ready {
            Some(_) if used.contains(&number) => (slot == link.slot).then_some(better + GRACE * 3),
            Some(_) => Some(surveyed.max(better + GRACE)),
            None => Some(surveyed),
        }
    }

    /// When a server is to be tried next.
    fn open_at(&self, index: usize) -> Option<Instant> {
        let slot = self.slots.get(index)?;
        let mut own = self.links.values().filter(|link| link.slot == index);
        if slot.addresses.is_empty() {
            return None;
        }
        if let Some(link) = own.next_back() {
            // Its credentials grow old: another one, to take its place.
            let lasting = slot.server.secret.is_none();
            return link.ready.filter(|_| !lasting).map(|ready| ready + REPLACE);
        }
        let retry = slot.retry;
        let better = match self.best() {
            None => self
                .seeking
                .map(|since| since + STAGGER * u32::try_from(index).unwrap_or(0)),
            Some(best) if slot.transport() < best => {
                self.seeking.or(slot.retry).or(Some(self.begun))
            }
            Some(_) => self.survey.map(|_| self.begun),
        };
        better.map(|at| retry.map_or(at, |retry| at.max(retry)))
    }

    fn open_wanted(&mut self, now: Instant) {
        for index in 0..self.slots.len() {
            if self.open_at(index).is_none_or(|at| at > now) {
                continue;
            }
            let Some(slot) = self.slots.get_mut(index) else {
                continue;
            };
            let Some(server) = slot.addresses.get(slot.next % slot.addresses.len()) else {
                continue;
            };
            self.next_link += 1;
            let link = Link {
                slot: index,
                server: *server,
                client: None,
                since: now,
                ready: None,
            };
            self.links.insert(self.next_link, link);
            self.changed = true;
        }
    }

    pub(crate) fn deadline(&self, used: &BTreeSet<u32>) -> Option<(Instant, &'static str)> {
        let links = self.links.iter().flat_map(|(number, link)| {
            let own = match &link.client {
                Some(client) => client.poll_timeout(),
                None => Some(link.since + CONNECT),
            };
            [own, self.spare_at(*number, used)]
        });
        let slots = (0..self.slots.len()).map(|index| self.open_at(index));
        let all = links.chain(slots).chain([self.survey]);
        let all = all.chain(self.direct_deadlines(used));
        all.flatten().min().map(|at| (at, "turn"))
    }
}
