//! Policy rules: `not fwmark MARK/MASK lookup TABLE`, and before it `from ADDRESS ipproto tcp sport 1-32767 lookup main`.

use std::collections::BTreeSet;

use mesh_types::consts::{
    MAIN_TABLE, ROUTE_TABLE, RULE_PRIORITY, SERVED_PORTS, SOURCE_RULE_PRIORITY,
};
use mesh_types::plan::Rule;
use rtnetlink::IpVersion;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::IpProtocol;
use rtnetlink::packet_route::route::RouteProtocol;
use rtnetlink::packet_route::rule::{
    RuleAction, RuleAttribute, RuleFlags, RuleMessage, RulePortRange,
};

use crate::HostError;
use crate::netlink::{Routing, gather, is_absent};

/// A rule of the kernel, with what ours are recognised by.
#[derive(Debug, Clone)]
pub(crate) struct Held {
    pub(crate) rule: Rule,
    /// Does it match everything *but* the mark?
    pub(crate) inverted: bool,
    /// Has it no other selector?
    pub(crate) plain: bool,
    message: RuleMessage,
}

impl Held {
    fn parse(message: RuleMessage) -> Self {
        let mut rule = Rule {
            ipv6: message.header.family == AddressFamily::Inet6,
            priority: 0,
            table: message.header.table.into(),
            mark: 0,
            mask: 0,
            from: None,
        };
        let whole = if rule.ipv6 { 128 } else { 32 };
        let mut plain = message.header.action == RuleAction::ToTable
            && (message.header.src_len == 0 || message.header.src_len == whole)
            && message.header.dst_len == 0;
        let (mut protocol, mut ports) = (None, None);
        for attribute in &message.attributes {
            match attribute {
                RuleAttribute::Priority(priority) => rule.priority = *priority,
                RuleAttribute::Table(table) => rule.table = *table,
                RuleAttribute::FwMark(mark) => rule.mark = *mark,
                RuleAttribute::FwMask(mask) => rule.mask = *mask,
                RuleAttribute::Source(from) => rule.from = Some(*from),
                RuleAttribute::Iifname(_)
                | RuleAttribute::Oifname(_)
                | RuleAttribute::UidRange(_)
                | RuleAttribute::DestinationPortRange(_) => plain = false,
                RuleAttribute::IpProtocol(only) => protocol = Some(*only),
                RuleAttribute::SourcePortRange(only) => ports = Some(*only),
                _ => {}
            }
        }
        plain &= match rule.from {
            Some(_) => protocol == Some(IpProtocol::Tcp) && ports == Some(served()),
            None => protocol.is_none() && ports.is_none(),
        };
        Self {
            inverted: message.header.flags.contains(RuleFlags::Invert),
            rule,
            plain,
            message,
        }
    }

    /// Did we make it, now or under another mark? The protocol field says "kernel", as do the kernel's own rules.
    pub(crate) fn is_ours(&self) -> bool {
        let rule = &self.rule;
        let mesh = self.inverted
            && rule.from.is_none()
            && rule.table == ROUTE_TABLE
            && rule.priority == RULE_PRIORITY;
        let source = !self.inverted
            && rule.from.is_some()
            && rule.mark == 0
            && rule.table == MAIN_TABLE
            && rule.priority == SOURCE_RULE_PRIORITY;
        self.plain && (mesh || source)
    }
}

/// Ports of what answers.
fn served() -> RulePortRange {
    let (start, end) = SERVED_PORTS;
    RulePortRange { start, end }
}

/// All rules, both families. A kernel without IPv6 has none of that family.
pub(crate) async fn list(routing: &Routing) -> Result<Vec<Held>, HostError> {
    let mut rules = Vec::new();
    for version in [IpVersion::V4, IpVersion::V6] {
        let request = routing.handle.rule().get(version);
        let messages = gather("list the policy rules", request.execute()).await?;
        rules.extend(messages.into_iter().map(Held::parse));
    }
    Ok(rules)
}

/// Makes our rules equal to the plan: each once. New ones come before stale ones go.
pub(crate) async fn converge<'a>(
    routing: &mut Routing,
    planned: impl Iterator<Item = &'a Rule>,
) -> Vec<HostError> {
    let held = match list(routing).await {
        Ok(held) => held,
        Err(error) => return vec![error],
    };
    let mut wanted: BTreeSet<Rule> = planned.copied().collect();
    let mut stale = Vec::new();
    for held in held {
        let known = held.is_ours() || (held.inverted && held.plain && wanted.contains(&held.rule));
        if known && !wanted.remove(&held.rule) {
            stale.push(held);
        }
    }
    let mut failures = Vec::new();
    for rule in wanted {
        failures.extend(add(routing, &rule).await.err());
    }
    for held in stale {
        failures.extend(delete(routing, held).await.err());
    }
    failures
}

async fn add(routing: &mut Routing, rule: &Rule) -> Result<(), HostError> {
    let mut request = routing
        .handle
        .rule()
        .add()
        .table_id(rule.table)
        .priority(rule.priority)
        .action(RuleAction::ToTable);
    let message = request.message_mut();
    message.header.family = if rule.ipv6 {
        AddressFamily::Inet6
    } else {
        AddressFamily::Inet
    };
    if rule.table > 255 {
        message.header.table = 0;
    }
    if let Some(from) = rule.from {
        message.header.src_len = if rule.ipv6 { 128 } else { 32 };
        message.attributes.push(RuleAttribute::Source(from));
        let tcp = RuleAttribute::IpProtocol(IpProtocol::Tcp);
        message.attributes.push(tcp);
        let ports = RuleAttribute::SourcePortRange(served());
        message.attributes.push(ports);
    } else {
        message.header.flags |= RuleFlags::Invert;
        message.attributes.push(RuleAttribute::FwMark(rule.mark));
        message.attributes.push(RuleAttribute::FwMask(rule.mask));
    }
    // systemd-networkd deletes rules of every protocol but this one.
    message
        .attributes
        .push(RuleAttribute::Protocol(RouteProtocol::Kernel));
    let result = request.execute().await;
    let family = if rule.ipv6 { "IPv6" } else { "IPv4" };
    routing.changed(
        format!(
            "add the {family} policy rule for table {} at priority {}",
            rule.table, rule.priority
        ),
        result,
    )
}

/// Deletes a rule. One that is gone already counts as deleted.
pub(crate) async fn delete(routing: &mut Routing, held: Held) -> Result<(), HostError> {
    let tried = format!(
        "delete the policy rule at priority {} for table {}",
        held.rule.priority, held.rule.table
    );
    let result = match routing.handle.rule().del(held.message).execute().await {
        Err(error) if is_absent(&error) => Ok(()),
        result => result,
    };
    routing.changed(tried, result)
}
