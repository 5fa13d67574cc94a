//! What a person asks. Every command gets exactly one reply.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use mesh_types::command::{Command, CommandId, Reload};
use mesh_types::message::Echo;
use mesh_types::observation::Fact;
use mesh_types::{Now, Observation, PeerId, Source};
use rand_core::Rng as _;

use crate::event::{Event, Reply};
use crate::overlay::Overlay;
use crate::rotation::Force;
use crate::turn::path_kind;

/// An echo is repeated after this,
const PING_REPEAT: Duration = Duration::from_secs(1);
/// and given up after this.
const PING_GIVE_UP: Duration = Duration::from_secs(3);
/// How long servers and peers are given to tell the NAT's behaviour.
const NETCHECK: Duration = Duration::from_secs(2);

/// An echo on its way.
#[derive(Debug)]
struct Ping {
    id: CommandId,
    peer: PeerId,
    token: u64,
    sent: Instant,
    repeat: Instant,
    deadline: Instant,
}

/// Commands whose reply is not known yet.
#[derive(Debug, Default)]
pub(crate) struct Pending {
    pings: Vec<Ping>,
    netchecks: Vec<(CommandId, Instant)>,
}

impl Pending {
    /// When something is due.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let pings = self.pings.iter().map(|ping| ping.repeat.min(ping.deadline));
        pings.chain(self.netchecks.iter().map(|(_, at)| *at)).min()
    }
}

impl Overlay {
    pub(crate) fn dispatch(&mut self, id: CommandId, command: Command, now: Now) {
        let result = match command {
            Command::Invite {
                random,
                routes,
                lifetime,
            } => self
                .invite(&random, &routes, lifetime, now)
                .map(|token| Some(Reply::Token(token))),
            Command::Join { token } => self.join(id, *token, now).map(|()| None),
            Command::Approve { node, refuse } => self.approve(&node, refuse, now).map(Some),
            Command::Revoke { node } => self.revoke(id, &node, now).map(|()| None),
            Command::Rotate { next, force } => {
                let force = if force { Force::Yes } else { Force::No };
                self.rotate(Some(id), next, force, now).map(|()| None)
            }
            Command::Ping { peer } => self.ping(id, &peer, now).map(|()| None),
            Command::Netcheck => {
                self.traversal.reprobe(now);
                self.resolve_stun();
                self.pending.netchecks.push((id, now.mono + NETCHECK));
                Ok(None)
            }
            Command::Reload(reload) => {
                self.reload(*reload, now);
                Ok(Some(Reply::Done("configuration reloaded".to_owned())))
            }
        };
        match result {
            Ok(Some(reply)) => self.reply(id, Ok(reply)),
            Ok(None) => {}
            Err(sentence) => self.reply(id, Err(sentence)),
        }
    }

    pub(crate) fn reply(&mut self, id: CommandId, reply: Result<Reply, String>) {
        self.events.push_back(Event::Reply { id, reply });
    }

    fn ping(&mut self, id: CommandId, text: &str, now: Now) -> Result<(), String> {
        let peer = *self
            .directory
            .find(text)
            .map_err(|error| format!("cannot ping: {error}"))?;
        if self.directory.peer(&peer).is_some_and(|peer| peer.plain) {
            return Err(format!(
                "cannot ping {text}: it is a plain WireGuard device without an agent; use ordinary `ping` with its address"
            ));
        }
        let token = self.rng.next_u64();
        let echo = Echo {
            token,
            reply: false,
        };
        if !self.send_message(&peer, &echo.into()) {
            return Err(format!(
                "cannot ping {text}: there is no overlay address or no common protocol version to reach it with; see `farspan status`"
            ));
        }
        self.pending.pings.push(Ping {
            id,
            peer,
            token,
            sent: now.mono,
            repeat: now.mono + PING_REPEAT,
            deadline: now.mono + PING_GIVE_UP,
        });
        Ok(())
    }

    pub(crate) fn handle_pong(&mut self, from: &PeerId, token: u64, now: Now) {
        let matches = |ping: &Ping| ping.peer == *from && ping.token == token;
        let Some(index) = self.pending.pings.iter().position(matches) else {
            return self.count("echo-unasked");
        };
        let ping = self.pending.pings.swap_remove(index);
        let path = self.traversal.path(from);
        let learned: Option<SocketAddr> = self
            .peers
            .get(from)
            .and_then(|record| record.stats.endpoint);
        let reply = Reply::Pong {
            rtt: now.mono.saturating_duration_since(ping.sent),
            path: path.map(path_kind),
            remote: path
                .map(|path| self.traversal.real_address(path.remote))
                .or(learned),
        };
        self.reply(ping.id, Ok(reply));
    }

    /// Repeats echoes, gives up on them, and ends netchecks.
    pub(crate) fn commands_due(&mut self, now: Now) {
        let (over, under_way): (Vec<Ping>, Vec<Ping>) = std::mem::take(&mut self.pending.pings)
            .into_iter()
            .partition(|ping| ping.deadline <= now.mono);
        self.pending.pings = under_way;
        for ping in over {
            let name = self.peer_name(&ping.peer);
            let reason = self.reason(&ping.peer, now);
            self.reply(
                ping.id,
                Err(format!("no answer from {name} within 3 s: {reason}")),
            );
        }
        let mut repeat = Vec::new();
        for ping in &mut self.pending.pings {
            if ping.repeat <= now.mono {
                // The round trip counts from the last one sent.
                ping.sent = now.mono;
                ping.repeat = now.mono + PING_REPEAT;
                repeat.push((ping.peer, ping.token));
            }
        }
        for (peer, token) in repeat {
            let echo = Echo {
                token,
                reply: false,
            };
            self.send_message(&peer, &echo.into());
        }
        let (over, under_way): (Vec<_>, Vec<_>) = std::mem::take(&mut self.pending.netchecks)
            .into_iter()
            .partition(|(_, at)| *at <= now.mono);
        self.pending.netchecks = under_way;
        for (id, _) in over {
            let netcheck = self.netcheck(now);
            self.reply(id, Ok(Reply::Netcheck(Box::new(netcheck))));
        }
    }

    /// Takes the file's new content over.
    fn reload(&mut self, reload: Reload, now: Now) {
        let Reload {
            peers,
            name,
            region,
            routes,
            addresses,
            stun,
            turn,
            may_relay,
            relay_ports,
            pair_rate,
            node_rate,
            birthday_search,
            authorities,
            forward_accept,
            authority,
        } = reload;
        let config = &mut self.config;
        config.name = name;
        config.region = region;
        config.routes = routes;
        config.addresses = addresses;
        config.forward_accept = forward_accept;
        config.authorities = authorities;
        config.peers.clone_from(&peers);
        config.may_relay = may_relay;
        config.relay_ports = relay_ports;
        config.pair_rate = pair_rate;
        config.node_rate = node_rate;
        config.birthday_search = birthday_search;
        self.traversal.set_birthday_search(birthday_search);
        self.identity.authority = authority;
        if self.config.stun != stun {
            self.config.stun = stun;
            self.stun.clear();
            self.resolve_stun();
            self.tell_stun(now);
        }
        self.config.turn = turn;
        self.tell_turn(now);
        self.adopt_authorities(now);
        self.tell_own_ranges(now);
        self.directory.handle_observation(
            Observation {
                source: Source::Config,
                fact: Fact::Listed(peers),
            },
            now,
        );
        self.refresh_own_membership(now);
        self.refresh_relay(now);
        self.wish_soon(now);
        self.announcement_changed(now);
        if self.host_known {
            self.tell_host_addresses(now);
        }
        self.excluded_dirty = true;
        self.stale.everything();
    }
}
