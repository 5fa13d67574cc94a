//! One random world.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use mesh_types::{IpNet, address};
use sim_net::{Direction, Families, LinkId, Random, RouterId};

use super::cover::Cover;
use super::fault::{Seats, Undo, strike};
use super::site::{Site, seat, site};
use crate::matrix::{Class, again, class, soon};
use crate::world::{FlowId, NodeId, Seat, World};

const SECOND: Duration = Duration::from_secs(1);
/// From the start of the later node to the first answer.
const MEET_WITHIN: Duration = Duration::from_secs(20);
/// From the end of the last fault to an answer.
const HEAL_WITHIN: Duration = Duration::from_secs(10);
/// Endpoints that a plan may give one peer in the quiet minute at the end.
const MOVES_MAX: usize = 2;
/// Packets of its own that a node may send in a second to where it was ever answered from, all peers together.
const RATE_MAX: u64 = 600;
/// Probes to anywhere else: 500 to what others name, 1000 of searches.
const BLIND_MAX: u64 = 1500;
/// Of them to one peer in ten minutes: those of searches, block against block and otherwise...
const SEARCH_CROSS_MAX: u64 = 9000;
const SEARCH_MAX: u64 = 2048;
/// ...and those to what others name.
const NAMED_MAX: u64 = 2000;

pub fn run(seed: u64) -> Result<Cover, String> {
    let mut random = Random::new(seed ^ 0x5eed_0000_0000_0000);
    let mut scene = Scene::new(seed, &mut random);
    scene.start(&mut random);
    scene.first_meetings()?;
    scene.faults(&mut random)?;
    scene.healed()?;
    scene.quiet()?;
    scene.aim()?;
    if std::env::var_os("FARSPAN_SIM_DESCRIBE").is_some() {
        println!("{}", scene.world.describe());
    }
    Ok(scene.finish())
}

/// A pair and how long it took.
type Took = ((usize, usize), Duration);

struct Member {
    id: NodeId,
    class: Class,
    ipv6: bool,
    site: usize,
    /// What its membership lets it carry, and its own addresses.
    ranges: BTreeSet<IpNet>,
    /// Translators on the way to the core, innermost first.
    routers: Vec<(RouterId, LinkId)>,
}

struct Scene {
    world: World,
    members: Vec<Member>,
    /// By the indices of their members.
    flows: BTreeMap<(usize, usize), FlowId>,
    cover: Cover,
    last_sent: Vec<u64>,
    last_blind: Vec<u64>,
    /// Faults have begun.
    torn: bool,
}

impl Scene {
    fn new(seed: u64, random: &mut Random) -> Self {
        let mut world = World::new(seed);
        world.relays = true;
        let mut cover = Cover {
            runs: 1,
            ..Cover::default()
        };
        let count = usize::try_from(random.between(3, 12)).unwrap_or(3);
        *cover.nodes.entry(count).or_default() += 1;
        let core = Site {
            place: world.place(crate::world::Access::Public, true),
            ipv6: true,
            kind: "public".to_owned(),
        };
        let mut sites = vec![core];
        let mut members: Vec<Member> = Vec::new();
        for index in 0..count {
            let at = match index {
                0 => 0,
                _ if sites.len() > 1 && random.below(5) == 0 => {
                    usize::try_from(random.between(1, sites.len() as u64 - 1)).unwrap_or(1)
                }
                _ => {
                    sites.push(site(&mut world, random));
                    sites.len() - 1
                }
            };
            let site = &sites[at];
            let seat = match index {
                0 => Seat {
                    families: Families::Both,
                    firewall: false,
                    ..seat(random, site)
                },
                _ => seat(random, site),
            };
            let knows: Vec<NodeId> = members.first().map(|m| m.id).into_iter().collect();
            let id = world.member(&format!("node{index}"), site.place, seat, &knows);
            let firewall = if seat.firewall { ", host firewall" } else { "" };
            *cover
                .kinds
                .entry(format!("{}{firewall}", site.kind))
                .or_default() += 1;
            members.push(Member {
                id,
                class: class(&site.place, &seat),
                ipv6: site.ipv6 && seat.families == Families::Both,
                site: at,
                ranges: ranges(&world, id),
                routers: site
                    .place
                    .sites
                    .iter()
                    .flatten()
                    .map(|site| (site.router, site.uplink))
                    .collect(),
            });
        }
        Self {
            last_sent: vec![0; members.len()],
            last_blind: vec![0; members.len()],
            world,
            members,
            flows: BTreeMap::new(),
            cover,
            torn: false,
        }
    }

    /// Must this pair connect directly? Both with IPv6, in one LAN, or by the matrix. The introducer relays all others.
    fn direct(&self, a: usize, b: usize) -> bool {
        let (a, b) = (&self.members[a], &self.members[b]);
        let by_ipv4 = if self.torn { again } else { soon };
        (a.ipv6 && b.ipv6) || (a.site == b.site && a.site != 0) || by_ipv4(a.class, b.class)
    }

    fn pairs(&self) -> Vec<(usize, usize)> {
        let count = self.members.len();
        (0..count)
            .flat_map(|a| (a + 1..count).map(move |b| (a, b)))
            .collect()
    }

    fn start(&mut self, random: &mut Random) {
        for index in 0..self.members.len() {
            self.world.boot(self.members[index].id);
            self.world.run(random.time(2 * SECOND));
        }
        for (a, b) in self.pairs() {
            let every = Duration::from_millis(random.between(190, 210));
            let (from, to) = if random.below(2) == 0 { (a, b) } else { (b, a) };
            let flow = self
                .world
                .flow(self.members[from].id, self.members[to].id, every);
            self.flows.insert((a, b), flow);
        }
        for (index, member) in self.members.iter().enumerate() {
            let relayed = self.world.nodes[member.id.0].relay.packets;
            self.last_sent[index] = self.world.sent(member.id).saturating_sub(relayed);
            self.last_blind[index] = self.world.nodes[member.id.0].blind.values().sum();
        }
    }

    fn first_meetings(&mut self) -> Result<(), String> {
        let since = self.world.net.now();
        let pending = self.await_answers(since, MEET_WITHIN)?;
        for (pair, took) in pending {
            let (a, b) = (self.members[pair.0].class, self.members[pair.1].class);
            let key = (a.min(b), a.max(b));
            self.cover.meetings.entry(key).or_default().push(took);
        }
        self.slow_down();
        Ok(())
    }

    /// Waits until a ping of each pair is answered; how long each took.
    fn await_answers(&mut self, since: Instant, most: Duration) -> Result<Vec<Took>, String> {
        let end = since + most;
        loop {
            let missing: Vec<_> = self
                .pairs()
                .into_iter()
                .filter(|pair| !self.world.answered_since(self.flows[pair], since))
                .collect();
            if missing.is_empty() {
                break;
            }
            if self.world.net.now() >= end {
                let names: Vec<String> = missing
                    .iter()
                    .map(|(a, b)| {
                        let (a, b) = (&self.members[*a], &self.members[*b]);
                        format!(
                            "{} ({:?}) and {} ({:?})",
                            self.world.nodes[a.id.0].name,
                            a.class,
                            self.world.nodes[b.id.0].name,
                            b.class
                        )
                    })
                    .collect();
                return Err(format!(
                    "at {:?} not connected within {most:?}: {}\n{}",
                    self.world.elapsed(),
                    names.join(", "),
                    self.world.describe()
                ));
            }
            self.step(SECOND)?;
        }
        let mut took = Vec::new();
        for pair in self.pairs() {
            let flow = &self.world.flows[self.flows[&pair].0];
            let first = flow.sent.partition_point(|at| *at < since);
            if let Some((_, at)) = flow.answered.range(first..).next() {
                took.push((pair, *at - since));
            }
        }
        Ok(took)
    }

    /// A third of the pairs stays busy, a third is slow, a third is silent.
    fn slow_down(&mut self) {
        let now = self.world.net.now();
        for (index, flow) in self.flows.values().enumerate() {
            let flow = &mut self.world.flows[flow.0];
            match index % 3 {
                0 => flow.every = 2 * SECOND,
                1 => flow.every = 15 * SECOND,
                _ => flow.next = None,
            }
            if index % 3 < 2 {
                flow.next = Some(now + flow.every);
            }
        }
    }

    fn speed_up(&mut self) {
        let now = self.world.net.now();
        for (index, flow) in self.flows.values().enumerate() {
            let flow = &mut self.world.flows[flow.0];
            flow.every = Duration::from_millis(450 + 3 * index as u64);
            flow.next = Some(now + Duration::from_millis(7 * index as u64));
        }
    }

    fn faults(&mut self, random: &mut Random) -> Result<(), String> {
        self.torn = true;
        let others: Vec<NodeId> = self.members.iter().skip(1).map(|m| m.id).collect();
        let routers: Vec<(RouterId, LinkId)> = self
            .members
            .iter()
            .flat_map(|m| m.routers.iter().copied())
            .collect::<BTreeSet<_>>()
            .into_iter()
            .collect();
        let count = random.between(5, 9);
        let mut undo: BTreeMap<(Instant, u64), Undo> = BTreeMap::new();
        for number in 0..count {
            let until = self.world.net.now() + Duration::from_secs(random.between(5, 60));
            self.until(until, &mut undo)?;
            let seats = Seats {
                introducer: self.members[0].id,
                others: &others,
                routers: &routers,
            };
            let (name, lasts, end) = strike(&mut self.world, random, &seats);
            *self.cover.faults.entry(name).or_default() += 1;
            undo.insert((self.world.net.now() + lasts, number), end);
        }
        // All ends; then nothing is broken until the tenth minute.
        let last = undo.keys().next_back().map(|(at, _)| *at);
        let calm = self.world.start + Duration::from_secs(480);
        let until = last.map_or(calm, |last| last.max(calm));
        self.until(until, &mut undo)?;
        for member in &self.members {
            if !self.world.is_on(member.id) {
                return Err("a fault was not undone".to_owned());
            }
        }
        Ok(())
    }

    fn until(
        &mut self,
        until: Instant,
        undo: &mut BTreeMap<(Instant, u64), Undo>,
    ) -> Result<(), String> {
        loop {
            let now = self.world.net.now();
            while let Some(entry) = undo.first_entry()
                && entry.key().0 <= now
            {
                entry.remove().now(&mut self.world);
            }
            if now >= until {
                return Ok(());
            }
            let next = undo
                .keys()
                .next()
                .map_or(until, |(at, _)| (*at).min(until))
                .min(now + 5 * SECOND);
            self.step(next.max(now) - now)?;
        }
    }

    fn healed(&mut self) -> Result<(), String> {
        self.speed_up();
        let since = self.world.net.now();
        let took = self.await_answers(since, HEAL_WITHIN)?;
        self.cover
            .healings
            .extend(took.into_iter().map(|(_, took)| took));
        Ok(())
    }

    /// A minute in which nothing may move, and pings are answered.
    fn quiet(&mut self) -> Result<(), String> {
        for flow in self.flows.values() {
            self.world.flows[flow.0].every = SECOND;
        }
        for _ in 0..6 {
            self.step(5 * SECOND)?;
        }
        let since = self.world.net.now();
        let minimum = self.world.start + Duration::from_secs(600);
        let until = (since + 60 * SECOND).max(minimum);
        while self.world.net.now() < until {
            self.step(5 * SECOND)?;
        }
        for member in &self.members {
            let node = &self.world.nodes[member.id.0];
            for (key, moves) in &node.moves {
                let late = moves.iter().filter(|(at, _)| *at > since).count();
                if late > MOVES_MAX {
                    return Err(format!(
                        "{} moved its peer {key} {late} times in a quiet minute: {:?}\n{}",
                        node.name,
                        &moves[moves.len() - late..],
                        self.world.describe()
                    ));
                }
            }
        }
        for pair in self.pairs() {
            let flow = &self.world.flows[self.flows[&pair].0];
            let (sent, answered) = flow.tally(since);
            if answered * 100 < sent * 70 {
                return Err(format!(
                    "only {answered} of {sent} pings between {} and {} in a quiet minute\n{}",
                    self.world.nodes[flow.from.0].name,
                    self.world.nodes[flow.to.0].name,
                    self.world.describe()
                ));
            }
        }
        Ok(())
    }

    /// Time passes, and what must always hold is looked at.
    fn step(&mut self, time: Duration) -> Result<(), String> {
        self.world.run(time);
        let seconds = time.as_secs() + 1;
        for index in 0..self.members.len() {
            let id = self.members[index].id;
            let relayed = self.world.nodes[id.0].relay.packets;
            let sent = self.world.sent(id).saturating_sub(relayed);
            // What a relay forwards may fail to leave it.
            let rate = sent.saturating_sub(self.last_sent[index]);
            self.last_sent[index] = sent;
            let blind: u64 = self.world.nodes[id.0].blind.values().sum();
            let searched = blind - std::mem::replace(&mut self.last_blind[index], blind);
            if searched > BLIND_MAX * seconds || rate > RATE_MAX * seconds + searched {
                return Err(format!(
                    "{rate} packets in {seconds} s from node{index}, {searched} of them blindly\n{}",
                    self.world.describe()
                ));
            }
            self.ranges(id)?;
        }
        Ok(())
    }

    /// No address is probed more often than the peers there may be.
    fn aim(&self) -> Result<(), String> {
        let windows = 1 + self.world.elapsed().as_secs() / 600;
        let at = |site| self.members.iter().filter(move |m| m.site == site).count() as u64;
        let most = self.members.iter().map(|m| at(m.site)).max().unwrap_or(1);
        for member in &self.members {
            // Who maps by address may give out the ports of a block, too.
            let search = if matches!(member.class, Class::Blk | Class::Adm) {
                SEARCH_CROSS_MAX
            } else {
                SEARCH_MAX
            };
            for (ip, probes) in &self.world.nodes[member.id.0].blind {
                if *probes > most * windows * (search + NAMED_MAX) {
                    return Err(format!(
                        "{probes} probes to {ip} from {}\n{}",
                        self.world.nodes[member.id.0].name,
                        self.world.describe()
                    ));
                }
            }
        }
        Ok(())
    }

    /// A plan gives each key what its membership says and no more, and no range to two keys.
    fn ranges(&self, id: NodeId) -> Result<(), String> {
        let Some(overlay) = &self.world.nodes[id.0].overlay else {
            return Ok(());
        };
        let mut given: BTreeSet<IpNet> = BTreeSet::new();
        for (key, peer) in &overlay.host_plan().tunnel.peers {
            let owner = self
                .members
                .iter()
                .find(|member| self.world.nodes[member.id.0].disk.key.public() == *key);
            let Some(owner) = owner else {
                return Err(format!("a plan holds {key}, whom nobody vouched for"));
            };
            for range in &peer.allowed_ips {
                if !owner.ranges.contains(range) || !given.insert(*range) {
                    return Err(format!("a plan gives {range} to {key}"));
                }
            }
        }
        Ok(())
    }

    fn finish(mut self) -> Cover {
        for pair in self.pairs() {
            let flow = &self.world.flows[self.flows[&pair].0];
            let (sent, answered) = flow.tally(self.world.start);
            self.cover.pings.0 += sent as u64;
            self.cover.pings.1 += answered as u64;
            if !self.direct(pair.0, pair.1) {
                self.cover.optional.0 += 1;
                self.cover.optional.1 += u64::from(answered > 0);
            }
        }
        for member in &self.members {
            for link in self.world.links(member.id) {
                let counters = self.world.net.counters(link, Direction::Out);
                self.cover.packets += counters.packets;
            }
        }
        self.cover.virtual_time = self.world.elapsed();
        self.cover
    }
}

/// What an authority vouches for.
fn ranges(world: &World, id: NodeId) -> BTreeSet<IpNet> {
    let membership = world.membership(id, 1);
    let record = membership.record();
    let own = address::overlay_ipv6(&world.node_key(id));
    let mut ranges: BTreeSet<IpNet> = record.ranges.iter().copied().collect();
    ranges.extend(record.ipv4.map(|ip| IpNet::from(std::net::IpAddr::V4(ip))));
    ranges.insert(IpNet::from(std::net::IpAddr::V6(own)));
    ranges
}
