//! The host's own filters at the forward hook: which of them drop by default, and the opt-in rule that lets
//! the mesh through. An accept in our own table would not do: a packet must pass every chain of a hook.

use std::io;

use netlink_packet_core::NLM_F_CREATE;
use netlink_packet_netfilter::NetfilterProtoFamily;
use netlink_packet_netfilter::nftables::{
    InetHookNumber, MetaKey, NfTablesMessage, RuleAttribute, RuleMessage,
};

use super::expression::{accept, interface, marked};
use super::{HeldChain, Rule, Tables, user_data};
use crate::HostError;

/// `NF_DROP` as a chain's policy.
const DROP: u32 = 0;
/// Docker keeps what stands in this chain, and asks it first.
const DOCKER_USER: &str = "DOCKER-USER";

impl HeldChain {
    fn drops_forwarded(&self) -> bool {
        self.kind == "filter"
            && self.hook == Some(u32::from(InetHookNumber::Forward))
            && self.policy == Some(DROP)
            && forwards(self.family)
    }

    fn label(&self) -> String {
        let family = match self.family {
            NetfilterProtoFamily::IPv4 => "ip",
            NetfilterProtoFamily::IPv6 => "ip6",
            _ => "inet",
        };
        format!("{family} {} {}", self.table, self.name)
    }
}

fn forwards(family: NetfilterProtoFamily) -> bool {
    matches!(
        family,
        NetfilterProtoFamily::IPv4 | NetfilterProtoFamily::IPv6 | NetfilterProtoFamily::Inet
    )
}

/// Names of the chains at the forward hook that drop what no rule of theirs accepts, as "family table chain".
pub(crate) fn dropping_chains(tables: &mut Tables) -> io::Result<Vec<String>> {
    Ok(tables
        .chains(NetfilterProtoFamily::Unspec)?
        .iter()
        .filter(|chain| chain.drops_forwarded())
        .map(HeldChain::label)
        .collect())
}

/// Which forwarded packets the host's own filters are to let through.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Through<'a> {
    /// From and to this device.
    pub(crate) device: &'a str,
    pub(crate) of_device: bool,
    /// Relayed ones: those with this mark.
    pub(crate) relayed: Option<u32>,
}

/// Sees to it that every chain that drops forwarded packets by default accepts what is wanted: in Docker's own chain
/// for such rules where the table has one. Takes rules that are not wanted away, from every chain.
pub(crate) fn forward_accept(tables: &mut Tables, through: Through<'_>) -> Result<(), HostError> {
    let Through {
        device,
        of_device,
        relayed,
    } = through;
    let tried = "let forwarded packets of the mesh through the host's own filter";
    let failed = |error: io::Error| HostError::from_io(tried, &error);
    let chains = tables
        .chains(NetfilterProtoFamily::Unspec)
        .map_err(failed)?;
    let [from, to] = [(MetaKey::Iifname, "from"), (MetaKey::Oifname, "to")].map(|(key, word)| {
        Rule::new(
            format!("farspan: forward {word} {device}"),
            vec![interface(key, device), accept()],
        )
    });
    let mark = relayed.unwrap_or(0);
    let of_relay = Rule::new(
        "farspan: forward what is relayed".to_owned(),
        vec![marked(mark), accept()],
    );
    let rules = [
        (from, of_device),
        (to, of_device),
        (of_relay, relayed.is_some()),
    ];
    for chain in chains.iter().filter(|chain| forwards(chain.family)) {
        let docker = chain.name == DOCKER_USER;
        let replaced = chains.iter().any(|other| {
            other.name == DOCKER_USER && other.family == chain.family && other.table == chain.table
        });
        let here = docker || (chain.drops_forwarded() && !replaced);
        let candidate = docker || chain.hook == Some(u32::from(InetHookNumber::Forward));
        if !candidate {
            continue;
        }
        let held = tables
            .rules(chain.family, &chain.table, &chain.name)
            .map_err(failed)?;
        let mut batch = Vec::new();
        for (rule, wanted) in &rules {
            let comment = user_data(&rule.comment);
            let found = held.iter().find(|held| held.user_data == comment);
            match (here && *wanted, found) {
                (true, None) => {
                    // Without NLM_F_APPEND a rule is put first.
                    let message = rule.message(&chain.table, &chain.name);
                    batch.push((NfTablesMessage::NewRule(message), NLM_F_CREATE));
                }
                (false, Some(found)) => {
                    let attributes = vec![
                        RuleAttribute::Table(chain.table.clone()),
                        RuleAttribute::Chain(chain.name.clone()),
                        RuleAttribute::Handle(found.handle),
                    ];
                    let message = RuleMessage { attributes };
                    batch.push((NfTablesMessage::DeleteRule(message), 0));
                }
                (true, Some(_)) | (false, None) => {}
            }
        }
        if !batch.is_empty() {
            tables.batch_in(chain.family, batch).map_err(failed)?;
        }
    }
    Ok(())
}
