//! Our own nftables table, over nfnetlink: compared with what is there, and rewritten in one atomic batch
//! where it differs.
//!
//! The kernel gives rules back in another shape than it took them in, so each rule carries a comment that
//! says all there is to it; equal comments in equal order in an equal chain are an equal chain. A comment
//! is also what a person who reads `nft list ruleset` wants.

mod adoption;
mod demux;
mod element;
mod expression;
mod filter;
mod forward;
mod keep_source;
mod map;
mod mark_input;
mod mss;
mod range;
mod relay;
mod span;

use std::collections::BTreeMap;
use std::io;

use mesh_types::consts::NFT_TABLE;
use netlink_packet_core::{
    Emitable as _, NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NLM_F_REQUEST, NetlinkMessage,
};
use netlink_packet_netfilter::nftables::{
    ChainAttribute, ChainMessage, Expressions, Hook, HookNumber, InetHookNumber, ListAttribute,
    NfTablesMessage, RuleAttribute, RuleMessage, TableAttribute, TableMessage,
};
use netlink_packet_netfilter::none::ControlMessage;
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily,
};
use netlink_sys::protocols::NETLINK_NETFILTER;

use crate::HostError;
use crate::netlink::{Channel, Raw};

pub use demux::Demux;
pub(crate) use filter::filter;
pub(crate) use forward::{Through, dropping_chains, forward_accept};
pub(crate) use keep_source::keep_source;
use map::{Batch, Elements, Map};
pub(crate) use mark_input::mark_input;
pub(crate) use mss::mss_chain;
pub(crate) use relay::{Link, carry, traffic};

/// What the kernel takes in one step, bytes. Memory is taken only while a batch is sent.
const SEND_BUFFER: usize = 16 * 1024 * 1024;
/// Half of a socket's usual buffer, which also counts overhead, where another cannot be had.
const USUAL_SEND_BUFFER: usize = 100 * 1024;
/// `NFNL_SUBSYS_NFTABLES`: what the batch is for.
const SUBSYSTEM: u16 = 10;
/// `NF_ACCEPT` as a chain's policy.
const ACCEPT: u32 = 1;
/// `NFTNL_UDATA_RULE_COMMENT`.
const COMMENT: u8 = 0;

/// What a base chain may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Filter,
    Nat,
}

/// A base chain of ours.
#[derive(Debug, Clone)]
pub(crate) struct Chain {
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
    pub(crate) hook: InetHookNumber,
    pub(crate) priority: i32,
    pub(crate) rules: Vec<Rule>,
}

/// A rule: what it does, and a comment that says all of that.
#[derive(Debug, Clone)]
pub(crate) struct Rule {
    pub(crate) comment: String,
    pub(crate) expressions: Vec<Expressions>,
}

impl Rule {
    pub(crate) fn new(comment: String, parts: Vec<Vec<Expressions>>) -> Self {
        Self {
            comment,
            expressions: parts.into_iter().flatten().collect(),
        }
    }

    fn message(&self, table: &str, chain: &str) -> RuleMessage {
        RuleMessage {
            attributes: vec![
                RuleAttribute::Table(table.to_owned()),
                RuleAttribute::Chain(chain.to_owned()),
                RuleAttribute::Expressions(
                    self.expressions
                        .iter()
                        .cloned()
                        .map(ListAttribute::from)
                        .collect(),
                ),
                RuleAttribute::UserData(user_data(&self.comment)),
            ],
        }
    }
}

fn user_data(comment: &str) -> Vec<u8> {
    let text = comment.as_bytes();
    let length = u8::try_from(text.len() + 1).unwrap_or(u8::MAX);
    let mut data = vec![COMMENT, length];
    data.extend(text.iter().take(usize::from(length) - 1));
    data.push(0);
    data
}

/// What a chain of ours looks like in the kernel.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Shape {
    hook: Option<u32>,
    priority: Option<u32>,
    policy: Option<u32>,
    comments: Vec<Vec<u8>>,
}

impl From<&Chain> for Shape {
    fn from(chain: &Chain) -> Self {
        Self {
            hook: Some(HookNumber::from(chain.hook).into()),
            priority: Some(chain.priority.cast_unsigned()),
            policy: Some(ACCEPT),
            comments: chain
                .rules
                .iter()
                .map(|rule| user_data(&rule.comment))
                .collect(),
        }
    }
}

/// nfnetlink, in the namespace of the thread that opened it.
#[derive(Debug)]
pub(crate) struct Tables {
    channel: Channel,
    /// Bytes of messages after which a batch ends.
    batch_size: usize,
    /// Batches that change something, since it was opened.
    pub(crate) changes: u64,
}

impl Tables {
    pub(crate) fn open() -> Result<Self, HostError> {
        let channel = Channel::open(NETLINK_NETFILTER)
            .map_err(|error| HostError::from_io("open a netfilter netlink connection", &error))?;
        // The privilege over this namespace alone is not enough to have more than usual.
        let batch_size = match channel.send_up_to(SEND_BUFFER) {
            Ok(()) => SEND_BUFFER / 2,
            Err(_) => USUAL_SEND_BUFFER,
        };
        Ok(Self {
            channel,
            batch_size,
            changes: 0,
        })
    }

    pub(crate) fn port(&self) -> u32 {
        self.channel.port()
    }

    /// Makes the chains named in `owned` equal to `wanted` and leaves the others of our table alone.
    /// Returns whether anything had to be changed.
    pub(crate) fn apply(&mut self, owned: &[&str], wanted: &[Chain]) -> Result<bool, HostError> {
        self.apply_with(owned, wanted, &[])
    }

    /// The same for chains whose rules name maps, which are there as long as any of the chains is. Their elements are
    /// the caller's.
    pub(crate) fn apply_with(
        &mut self,
        owned: &[&str],
        wanted: &[Chain],
        maps: &[Map],
    ) -> Result<bool, HostError> {
        let step = self
            .step(owned, wanted, maps)
            .map_err(|error| unread(&error))?;
        self.write(step.batch, &format!("write the nftables table {NFT_TABLE}"))
    }

    /// The same, and their elements too: all of it in one step. `tried` names it in the error.
    fn apply_filled(
        &mut self,
        tried: &str,
        owned: &[&str],
        wanted: &[Chain],
        filled: &[(Map, Elements)],
    ) -> Result<bool, HostError> {
        let maps: Vec<Map> = filled.iter().map(|(map, _)| *map).collect();
        let Step { mut batch, afresh } = self
            .step(owned, wanted, &maps)
            .map_err(|error| unread(&error))?;
        if !wanted.is_empty() {
            for (map, wanted) in filled {
                let held = if afresh {
                    Elements::new()
                } else {
                    self.elements(map).map_err(|error| unread(&error))?
                };
                map::withdraw(&mut batch, map, &map::without(&held, wanted));
                map::insert(&mut batch, map, &map::without(wanted, &held));
            }
        }
        self.write(batch, tried)
    }

    /// What has to be sent for chains and maps to be as wanted.
    fn step(&mut self, owned: &[&str], wanted: &[Chain], maps: &[Map]) -> io::Result<Step> {
        let Some(held) = self.shapes()? else {
            let batch = if wanted.is_empty() {
                Batch::new()
            } else {
                rewrite(&BTreeMap::new(), wanted, maps, &Change::default())
            };
            return Ok(Step {
                batch,
                afresh: true,
            });
        };
        let held_maps = self.maps_of(maps)?;
        // An earlier version may have had other maps of that name. Only a map that no rule names can go.
        let afresh = held_maps.values().any(|right| !right);
        let different: Vec<&Chain> = wanted
            .iter()
            .filter(|chain| afresh || held.get(chain.name) != Some(&Shape::from(*chain)))
            .collect();
        let stale: Vec<&str> = owned
            .iter()
            .copied()
            .filter(|name| held.contains_key(*name))
            .filter(|name| {
                different.iter().any(|chain| chain.name == *name)
                    || wanted.iter().all(|chain| chain.name != *name)
            })
            .collect();
        let gone: Vec<&str> = held_maps
            .keys()
            .copied()
            .filter(|_| afresh || wanted.is_empty())
            .collect();
        let missing: Vec<&Map> = maps
            .iter()
            .filter(|map| afresh || !held_maps.contains_key(map.name))
            .filter(|_| !wanted.is_empty())
            .collect();
        let same = different.is_empty() && stale.is_empty() && gone.is_empty();
        if same && missing.is_empty() && !(held.is_empty() && wanted.is_empty()) {
            return Ok(Step {
                batch: Batch::new(),
                afresh,
            });
        }
        let new: Vec<Chain> = different.into_iter().cloned().collect();
        let missing: Vec<Map> = missing.into_iter().copied().collect();
        let batch = rewrite(&held, &new, &missing, &Change { stale, gone });
        Ok(Step { batch, afresh })
    }

    /// Sends it, if there is anything; says whether there was.
    fn write(&mut self, batch: Batch, tried: &str) -> Result<bool, HostError> {
        if batch.is_empty() {
            return Ok(false);
        }
        self.batches(batch)
            .map_err(|error| HostError::from_io(tried, &error))?;
        Ok(true)
    }

    /// Deletes our table with all that is in it. Returns whether there was one.
    pub(crate) fn remove_table(&mut self) -> Result<bool, HostError> {
        let tried = format!("delete the nftables table {NFT_TABLE}");
        let held = self
            .shapes()
            .map_err(|error| HostError::from_io(tried.as_str(), &error))?;
        if held.is_none() {
            return Ok(false);
        }
        self.batch(vec![(NfTablesMessage::DeleteTable(table()), 0)])
            .map_err(|error| HostError::from_io(tried, &error))?;
        Ok(true)
    }

    /// The base chains of our table; `None` where there is no such table.
    fn shapes(&mut self) -> io::Result<Option<BTreeMap<String, Shape>>> {
        let found = self.dump(
            NetfilterProtoFamily::Inet,
            NfTablesMessage::GetTable(TableMessage { attributes: vec![] }),
        )?;
        let is_ours = |message: &(NetfilterProtoFamily, NfTablesMessage)| match &message.1 {
            NfTablesMessage::NewTable(table) => table
                .attributes
                .contains(&TableAttribute::Name(NFT_TABLE.to_owned())),
            _ => false,
        };
        if !found.iter().any(is_ours) {
            return Ok(None);
        }
        let mut shapes = BTreeMap::new();
        for chain in self.chains(NetfilterProtoFamily::Inet)? {
            if chain.table == NFT_TABLE {
                let comments = self
                    .rules(chain.family, NFT_TABLE, &chain.name)?
                    .into_iter()
                    .map(|rule| rule.user_data)
                    .collect();
                let shape = Shape {
                    hook: chain.hook,
                    priority: chain.priority,
                    policy: chain.policy,
                    comments,
                };
                shapes.insert(chain.name, shape);
            }
        }
        Ok(Some(shapes))
    }

    /// The chains of a family, or of all (`Unspec`).
    fn chains(&mut self, family: NetfilterProtoFamily) -> io::Result<Vec<HeldChain>> {
        let request = NfTablesMessage::GetChain(ChainMessage { attributes: vec![] });
        Ok(self
            .dump(family, request)?
            .into_iter()
            .filter_map(|(family, message)| match message {
                NfTablesMessage::NewChain(chain) => Some(HeldChain::parse(family, &chain)),
                _ => None,
            })
            .collect())
    }

    /// The rules of one chain, in order.
    fn rules(
        &mut self,
        family: NetfilterProtoFamily,
        table: &str,
        chain: &str,
    ) -> io::Result<Vec<HeldRule>> {
        let request = NfTablesMessage::GetRule(RuleMessage {
            attributes: vec![
                RuleAttribute::Table(table.to_owned()),
                RuleAttribute::Chain(chain.to_owned()),
            ],
        });
        let answers = self.ask(family, request)?;
        Ok(answers.iter().map(HeldRule::parse).collect())
    }

    /// What the kernel has to tell, as it tells it. The library's parser writes out all that is around each attribute, lest
    /// that be wrong, and what is long takes it long.
    fn ask(
        &mut self,
        family: NetfilterProtoFamily,
        request: NfTablesMessage,
    ) -> io::Result<Vec<Raw>> {
        let header = NetfilterHeader::new(family, 0, 0);
        let request = Raw::of(&NetfilterMessage::new(header, request));
        self.channel.dump(&request)
    }

    fn dump(
        &mut self,
        family: NetfilterProtoFamily,
        request: NfTablesMessage,
    ) -> io::Result<Vec<(NetfilterProtoFamily, NfTablesMessage)>> {
        let message = NetfilterMessage::new(NetfilterHeader::new(family, 0, 0), request);
        let answers = self.channel.dump(&message)?;
        Ok(answers
            .into_iter()
            .filter_map(|answer| match answer.inner {
                NetfilterMessageInner::NfTables(inner) => Some((answer.header.family, inner)),
                _ => None,
            })
            .collect())
    }

    /// Carries out all messages or none, in our table's family.
    fn batch(&mut self, messages: Vec<(NfTablesMessage, u16)>) -> io::Result<()> {
        self.batch_in(NetfilterProtoFamily::Inet, messages)
    }

    /// The same in as few steps as the socket's buffer allows: one, unless hundreds of elements change.
    fn batches(&mut self, messages: Vec<(NfTablesMessage, u16)>) -> io::Result<()> {
        let (mut batch, mut bytes) = (Vec::new(), 0);
        for message in messages {
            bytes += message.0.buffer_len();
            batch.push(message);
            if bytes >= self.batch_size {
                self.batch(std::mem::take(&mut batch))?;
                bytes = 0;
            }
        }
        if batch.is_empty() {
            return Ok(());
        }
        self.batch(batch)
    }

    fn batch_in(
        &mut self,
        family: NetfilterProtoFamily,
        messages: Vec<(NfTablesMessage, u16)>,
    ) -> io::Result<()> {
        let control = |message: ControlMessage| {
            let header = NetfilterHeader::new(NetfilterProtoFamily::Unspec, 0, SUBSYSTEM);
            let mut message = NetlinkMessage::from(NetfilterMessage::new(header, message));
            message.header.flags = NLM_F_REQUEST;
            message
        };
        let mut batch = vec![control(ControlMessage::BatchBegin)];
        for (message, flags) in messages {
            let header = NetfilterHeader::new(family, 0, 0);
            let mut message = NetlinkMessage::from(NetfilterMessage::new(header, message));
            message.header.flags = NLM_F_REQUEST | flags;
            batch.push(message);
        }
        // Errors are told of every message; one acknowledgement is enough, and hundreds would not fit the buffer.
        if let Some(last) = batch.last_mut() {
            last.header.flags |= NLM_F_ACK;
        }
        batch.push(control(ControlMessage::BatchEnd));
        self.changes += 1;
        self.channel.exchange(batch).map(drop)
    }
}

/// What has to be sent.
struct Step {
    batch: Batch,
    /// Are the maps made anew, and so empty, whatever they held?
    afresh: bool,
}

/// Everything that makes the chains new, takes the stale ones away, and the table with the last of them.
fn rewrite(
    held: &BTreeMap<String, Shape>,
    new: &[Chain],
    maps: &[Map],
    Change { stale, gone }: &Change<'_>,
) -> Batch {
    let mut batch = Vec::new();
    if new.is_empty() && held.keys().all(|name| stale.contains(&name.as_str())) {
        batch.push((NfTablesMessage::DeleteTable(table()), 0));
    } else {
        batch.push((NfTablesMessage::NewTable(table()), NLM_F_CREATE));
        for name in stale {
            let rules = RuleMessage {
                attributes: vec![
                    RuleAttribute::Table(NFT_TABLE.to_owned()),
                    RuleAttribute::Chain((*name).to_owned()),
                ],
            };
            batch.push((NfTablesMessage::DeleteRule(rules), 0));
            batch.push((NfTablesMessage::DeleteChain(chain_name(name)), 0));
        }
        for name in gone {
            map::delete(&mut batch, name);
        }
        for (id, map) in (1..).zip(maps) {
            map::create(&mut batch, map, id);
        }
        for chain in new {
            batch.push((NfTablesMessage::NewChain(base_chain(chain)), NLM_F_CREATE));
            for rule in &chain.rules {
                let message = rule.message(NFT_TABLE, chain.name);
                batch.push((
                    NfTablesMessage::NewRule(message),
                    NLM_F_CREATE | NLM_F_APPEND,
                ));
            }
        }
    }
    batch
}

fn unread(error: &io::Error) -> HostError {
    HostError::from_io(format!("read the nftables table {NFT_TABLE}"), error)
}

/// What goes before anything new comes.
#[derive(Debug, Default)]
struct Change<'a> {
    /// Chains.
    stale: Vec<&'a str>,
    /// Maps, which rules of those chains named.
    gone: Vec<&'a str>,
}

/// A chain as the kernel has it. The last four are a base chain's.
#[derive(Debug, Clone)]
struct HeldChain {
    family: NetfilterProtoFamily,
    table: String,
    name: String,
    kind: String,
    hook: Option<u32>,
    priority: Option<u32>,
    policy: Option<u32>,
}

impl HeldChain {
    fn parse(family: NetfilterProtoFamily, message: &ChainMessage) -> Self {
        let mut chain = Self {
            family,
            table: String::new(),
            name: String::new(),
            kind: String::new(),
            hook: None,
            priority: None,
            policy: None,
        };
        for attribute in &message.attributes {
            match attribute {
                ChainAttribute::Table(table) => chain.table.clone_from(table),
                ChainAttribute::Name(name) => chain.name.clone_from(name),
                ChainAttribute::Type(kind) => chain.kind.clone_from(kind),
                ChainAttribute::Policy(policy) => chain.policy = Some(*policy),
                ChainAttribute::Hook(hooks) => {
                    for hook in hooks {
                        match hook {
                            Hook::Number(number) => chain.hook = Some((*number).into()),
                            Hook::Priority(priority) => chain.priority = Some(*priority),
                            _ => {}
                        }
                    }
                }
                _ => {}
            }
        }
        chain
    }
}

/// A rule as the kernel has it.
#[derive(Debug, Clone, Default)]
struct HeldRule {
    handle: u64,
    user_data: Vec<u8>,
}

impl HeldRule {
    fn parse(message: &Raw) -> Self {
        /// `NFTA_RULE_HANDLE` and `NFTA_RULE_USERDATA`.
        const HANDLE: u16 = 3;
        const USER_DATA: u16 = 7;
        let mut rule = Self::default();
        for (kind, value) in element::attributes(message) {
            match kind {
                HANDLE => rule.handle = value.first_chunk().map_or(0, |it| u64::from_be_bytes(*it)),
                USER_DATA => rule.user_data = value,
                _ => {}
            }
        }
        rule
    }
}

fn table() -> TableMessage {
    TableMessage {
        attributes: vec![TableAttribute::Name(NFT_TABLE.to_owned())],
    }
}

fn chain_name(name: &str) -> ChainMessage {
    ChainMessage {
        attributes: vec![
            ChainAttribute::Table(NFT_TABLE.to_owned()),
            ChainAttribute::Name(name.to_owned()),
        ],
    }
}

fn base_chain(chain: &Chain) -> ChainMessage {
    let mut message = chain_name(chain.name);
    message.attributes.extend([
        ChainAttribute::Hook(vec![
            Hook::Number(chain.hook.into()),
            Hook::Priority(chain.priority.cast_unsigned()),
        ]),
        ChainAttribute::Policy(ACCEPT),
        ChainAttribute::Type(
            match chain.kind {
                Kind::Filter => "filter",
                Kind::Nat => "nat",
            }
            .to_owned(),
        ),
    ]);
    message
}
