//! What people ask of a running agent, and what they hear.

use std::path::PathBuf;
use std::time::Duration;

use axum::http::StatusCode;
use host_network::{HostError, Removed};
use mesh_types::command::{Command, Reload};
use mesh_types::{AuthorityKey, IdentitySecret, Now, WgSecret};
use overlay::Reply;
use serde_json::{Value, json};
use tokio::sync::oneshot;
use tracing::{info, warn};

use super::control::{Answer, Ask, Asked};
use super::{Agent, Next, finding, state, status};
use crate::api;
use crate::config::edit::{Edit, Only};
use crate::config::{self, Config};

/// A command under way.
#[derive(Debug)]
pub struct Waiting {
    answer: oneshot::Sender<Answer>,
    /// For the answer to a ping.
    peer: Option<String>,
    /// Worth knowing, beside the reply.
    notes: Vec<String>,
}

impl Agent {
    pub(super) async fn asked(&mut self, Asked { ask, answer }: Asked, now: Now) -> Next {
        let findings = self.own_findings();
        if matches!(ask, Ask::Status | Ask::Metrics | Ask::Doctor(_)) {
            // Counters as they are now, not as they were at the last round.
            self.tunnel_report();
        }
        let reply = match ask {
            Ask::Status => Ok(json!(status::status(
                &self.overlay.snapshot(now),
                &findings
            ))),
            Ask::Metrics => {
                let snapshot = self.overlay.snapshot(now);
                Ok(Value::String(self.metrics_text(&snapshot)))
            }
            Ask::Doctor(api::Doctor { peer }) => match self.overlay.diagnose(&peer, now) {
                Ok(diagnosis) => Ok(json!(status::diagnosis(&diagnosis))),
                Err(error) => Err((StatusCode::CONFLICT, error)),
            },
            Ask::Plan => Ok(Value::String(host_network::describe(
                self.overlay.host_plan(),
            ))),
            Ask::Alive => Ok(json!(done("alive"))),
            Ask::Ready => match self.ready() {
                Ok(()) => Ok(json!(done("ready"))),
                Err(why) => Err((StatusCode::SERVICE_UNAVAILABLE, why)),
            },
            Ask::Reload => match self.reload(None) {
                Ok(notes) => Ok(json!(api::Done {
                    message: "the file was read again".into(),
                    notes,
                    pending: false,
                })),
                Err(error) => Err((StatusCode::UNPROCESSABLE_ENTITY, error)),
            },
            Ask::Down => {
                // Whatever could not be removed: an agent without its tunnel is of no use.
                _ = answer.send(self.down().await);
                // The answer leaves before the socket closes.
                tokio::time::sleep(Duration::from_millis(50)).await;
                return Next::Stop;
            }
            Ask::Netcheck => return self.command(answer, None, now, |_| Ok(Command::Netcheck)),
            Ask::Invite(api::Invite { routes, lifetime_s }) => {
                return self.command(answer, None, now, |_| {
                    Ok(Command::Invite {
                        random: random()?,
                        routes,
                        lifetime: Duration::from_secs(lifetime_s),
                    })
                });
            }
            Ask::Join(token) => {
                return self.command(answer, None, now, |_| Ok(Command::Join { token }));
            }
            Ask::Revoke(api::Revoke { node }) => {
                return self.command(answer, None, now, |_| Ok(Command::Revoke { node }));
            }
            Ask::Approve(api::Approve { node, refuse }) => {
                return self.command(answer, None, now, |_| Ok(Command::Approve { node, refuse }));
            }
            Ask::Waiting => match self.overlay.petitions(now) {
                Ok(waiting) => Ok(json!(
                    waiting.iter().map(status::waiting).collect::<Vec<_>>()
                )),
                Err(error) => Err((StatusCode::CONFLICT, error)),
            },
            Ask::Rotate(api::Rotate { force }) => {
                return self.rotate(answer, force, now);
            }
            Ask::Ping(api::Ping { peer }) => {
                return self.command(answer, Some(peer.clone()), now, |_| {
                    Ok(Command::Ping { peer })
                });
            }
        };
        _ = answer.send(reply);
        Next::Go
    }

    fn command(
        &mut self,
        answer: oneshot::Sender<Answer>,
        peer: Option<String>,
        now: Now,
        make: impl FnOnce(&Self) -> Result<Command, String>,
    ) -> Next {
        match make(self) {
            Ok(command) => {
                self.last_command += 1;
                let waiting = Waiting {
                    answer,
                    peer,
                    notes: Vec::new(),
                };
                self.waiting.insert(self.last_command, waiting);
                self.overlay.handle_command(self.last_command, command, now);
            }
            Err(error) => _ = answer.send(Err((StatusCode::INTERNAL_SERVER_ERROR, error))),
        }
        Next::Go
    }

    /// A key that cannot be kept must not be announced, so it is on disk before the core hears of it.
    fn rotate(&mut self, answer: oneshot::Sender<Answer>, force: bool, now: Now) -> Next {
        let mut written = None;
        let next = self.command(answer, None, now, |agent| {
            let failed = |error: anyhow::Error| format!("cannot rotate the key: {error:#}");
            if agent.store.next_key().map_err(failed)?.is_some() {
                return Err(
                    "a key rotation is under way already; try again in 15 seconds".to_owned(),
                );
            }
            let key = WgSecret::from_bytes(random()?);
            let kept = agent.store.save(&agent.overlay.state());
            kept.and_then(|()| agent.store.set_next_key(Some(&key)))
                .map_err(failed)?;
            written = Some(key.clone());
            Ok(Command::Rotate { next: key, force })
        });
        // The core may have refused, by plain peers or by a rotation that is not over.
        if written.is_some_and(|key| !self.overlay.has_key(&key))
            && let Err(error) = self.store.set_next_key(None)
        {
            warn!("{error:#}");
        }
        next
    }

    pub(super) fn replied(&mut self, id: u64, reply: Result<Reply, String>) {
        let Some(Waiting {
            answer,
            peer,
            notes,
        }) = self.waiting.remove(&id)
        else {
            // A reload by signal has nobody waiting.
            if let Err(error) = reply {
                warn!("{error}");
            }
            return;
        };
        let reply = match reply {
            Ok(Reply::Token(token)) => Ok(json!(api::Token {
                token: token.to_string(),
                approval: !self.overlay.signs(),
            })),
            Ok(Reply::Done(message)) => Ok(json!(api::Done {
                message,
                notes,
                pending: false,
            })),
            Ok(Reply::Pending(message)) => Ok(json!(api::Done {
                message,
                notes,
                pending: true,
            })),
            Ok(Reply::Pong { rtt, path, remote }) => {
                let snapshot = self.overlay.snapshot(self.clock.now());
                let wanted = peer.unwrap_or_default();
                let found = snapshot.peers.iter().find(|peer| {
                    peer.name == wanted
                        || peer.public_key.to_string() == wanted
                        || peer
                            .allowed_ips
                            .iter()
                            .any(|net| net.addr().to_string() == wanted)
                });
                Ok(json!(api::Pong {
                    address: found
                        .and_then(|peer| peer.allowed_ips.first())
                        .map(|net| net.addr().to_string()),
                    peer: found.map_or(wanted, |peer| peer.name.clone()),
                    rtt_ms: status::milliseconds(rtt),
                    path: path.map(|path| path.kind().to_owned()),
                    via: found
                        .and_then(|peer| peer.path.as_ref())
                        .and_then(|path| path.via.clone()),
                    remote: remote.map(|remote| remote.to_string()),
                }))
            }
            Ok(Reply::Netcheck(netcheck)) => Ok(json!(status::netcheck(&netcheck))),
            Err(error) => Err((StatusCode::CONFLICT, error)),
        };
        _ = answer.send(reply);
    }

    /// Reads the file again. A bad one changes nothing. Gives notes on what needs a restart.
    pub(super) fn reload(
        &mut self,
        authority: Option<AuthorityKey>,
    ) -> Result<Vec<String>, String> {
        let read = Config::load(&self.global, &self.flags).map_err(|error| error.to_string());
        let key = state::read_key(&self.config.authority_key_file, IdentitySecret::from_base64);
        let (mut new, key) = match (read, key) {
            (Ok(new), Ok(key)) => (new, key),
            (Err(error), _) => return Err(self.keep_old(&error)),
            (_, Err(error)) => return Err(self.keep_old(&error.to_string())),
        };
        self.findings.remove("config-file");
        let mut notes = Vec::new();
        let old = &self.config;
        for (what, changed) in [
            ("listen-port", new.listen_port != old.listen_port),
            ("interface", new.interface != old.interface),
            ("backend", new.backend != old.backend),
            ("state-dir", new.state_dir != old.state_dir),
            (
                "private-key-file",
                new.private_key_file != old.private_key_file,
            ),
            ("socket", new.socket != old.socket),
            ("fwmark", new.fwmark != old.fwmark),
        ] {
            if changed {
                notes.push(format!(
                    "`{what}` changes with the next start of the agent only"
                ));
            }
        }
        new.listen_port = old.listen_port;
        new.interface.clone_from(&old.interface);
        new.backend = old.backend;
        new.state_dir.clone_from(&old.state_dir);
        new.private_key_file.clone_from(&old.private_key_file);
        new.socket.clone_from(&old.socket);
        new.fwmark = old.fwmark;
        notes.extend(new.warnings.iter().cloned());
        for note in &notes {
            warn!("{note}");
        }
        let now = self.clock.now();
        self.names.set(new.names.clone(), now.mono);
        let mut authorities = new.authorities.clone();
        authorities.extend(authority.filter(|key| !new.authorities.contains(key)));
        let reload = Reload {
            peers: self.names.resolve(&new.peers),
            name: new.name.clone(),
            region: new.region.clone(),
            routes: new.routes.clone(),
            addresses: new.addresses.clone(),
            stun: new.stun.clone(),
            turn: new.turn.clone(),
            may_relay: new.relay_serve,
            relay_ports: new.relay_ports,
            pair_rate: new.relay_pair_rate,
            node_rate: new.relay_node_rate,
            birthday_search: new.birthday_search,
            authorities,
            forward_accept: new.forward_accept,
            authority: key,
        };
        self.portmap.set_on(new.port_mapping, now.mono);
        self.config = new;
        self.last_command += 1;
        self.overlay
            .handle_command(self.last_command, Command::Reload(Box::new(reload)), now);
        info!("File read again");
        Ok(notes)
    }

    fn keep_old(&mut self, error: &str) -> String {
        let sentence = format!("{error}; the agent goes on with what it read before");
        let remedy =
            "Correct the file, then run: systemctl reload farspan (or send the agent SIGHUP)";
        self.findings.insert(
            "config-file",
            finding("config-file", sentence.clone(), remedy),
        );
        sentence
    }

    /// Pins the authority in the file. Where that fails the state remembers it, and a finding says so.
    pub(super) fn joined(&mut self, authority: &AuthorityKey) {
        let file = self.config.file.clone();
        let path: PathBuf = file.unwrap_or_else(|| config::file_to_write(&self.global));
        let written = Edit::open(&path)
            .map_err(anyhow::Error::from)
            .and_then(|mut edit| {
                edit.set_authority(authority, Only::Beside)?;
                edit.save()
            });
        match written {
            Ok(()) => {
                self.config.file = Some(path);
                if !self.config.authorities.contains(authority) {
                    self.config.authorities.push(*authority);
                }
            }
            Err(error) => {
                let message = format!(
                    "the mesh was joined, but its authority could not be written to {}: {error:#}",
                    path.display()
                );
                warn!("{message}");
                let remedy = format!("Add authorities = [\"{authority}\"] under [mesh] there.");
                for waiting in self.waiting.values_mut() {
                    waiting.notes.push(message.clone());
                }
                self.findings
                    .insert("config-write", finding("config-write", message, &remedy));
            }
        }
    }

    /// Takes everything away from the host; the state folder stays.
    async fn down(&mut self) -> Answer {
        self.persist();
        self.overlay_port = None;
        self.bench.close();
        let mut lines = self.portmap.release().await;
        if let Some(super::Tunnel::Userspace { engine, .. }) = self.tunnel.take()
            && engine.is_some()
        {
            // Its device goes with it; the blackholes go after that.
            drop(engine);
            lines.push(format!("removed device {}", self.config.interface));
        }
        lines.extend(self.remove_cni());
        let done = lines_of_removal(self.host.remove().await, lines);
        let notes = done.map_err(|error| (StatusCode::INTERNAL_SERVER_ERROR, error))?;
        info!("Everything was removed from this host");
        Ok(json!(api::Done {
            message: "everything was removed from this host".into(),
            notes,
            pending: false,
        }))
    }
}

/// What `down` prints, `lines` first, or what could not be removed.
pub fn lines_of_removal(removed: Removed, lines: Vec<String>) -> Result<Vec<String>, String> {
    let Removed { gone, failures } = removed;
    let gone = gone.into_iter().map(|what| format!("removed {what}"));
    let lines: Vec<String> = lines.into_iter().chain(gone).collect();
    if failures.is_empty() {
        return Ok(lines);
    }
    let failures: Vec<String> = failures.iter().map(HostError::to_string).collect();
    let done = if lines.is_empty() {
        "nothing".to_owned()
    } else {
        lines.join("; ")
    };
    Err(format!(
        "not everything was removed from this host: {} (done: {done}); run `farspan down` again",
        failures.join("; ")
    ))
}

fn done(message: &str) -> api::Done {
    api::Done {
        message: message.to_owned(),
        notes: Vec::new(),
        pending: false,
    }
}

fn random<const N: usize>() -> Result<[u8; N], String> {
    state::random().map_err(|error| error.to_string())
}
