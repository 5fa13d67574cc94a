//! `farspan approve`: lists who waits for the authority's key, and lets them in.

use anyhow::Result;

use super::{agent, print, show, status, table::columns};
use crate::api;
use crate::cli::{ApproveArgs, Global};

pub fn run(global: &Global, args: &ApproveArgs) -> Result<()> {
    let agent = agent(global)?;
    if let Some(node) = &args.node {
        let body = api::Approve {
            node: node.clone(),
            refuse: args.refuse,
        };
        let answer: api::Done = agent.post("/approve", &body)?;
        return print(&format!("{}\n", answer.message));
    }
    let waiting: Vec<api::Waiting> = agent.get("/approve")?;
    show(args.output, &waiting, || table(&waiting))
}

fn table(waiting: &[api::Waiting]) -> String {
    if waiting.is_empty() {
        return "Nobody waits. Members without the authority key may invite too: who comes by them is shown here.\n".to_owned();
    }
    let rows: Vec<_> = waiting.iter().map(row).collect();
    columns(
        &[
            "NAME",
            "ASKED BY",
            "WAITS",
            "WOULD CARRY",
            "IS NOW",
            "IDENTITY",
        ],
        &rows,
    )
}

fn row(one: &api::Waiting) -> Vec<String> {
    let mut carries = one.ranges.clone();
    if one.may_relay {
        carries.push("others' packets (relay)".to_owned());
    }
    vec![
        one.name.clone(),
        one.by.clone(),
        status::seconds(one.waits_s),
        if carries.is_empty() {
            "nothing but itself".to_owned()
        } else {
            carries.join(", ")
        },
        match (one.member, one.revoked) {
            (true, _) => "a member",
            (false, true) => "REVOKED",
            (false, false) => "no member",
        }
        .to_owned(),
        one.identity.clone(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_be_allowed_is_shown_before_it_is() {
        let one = api::Waiting {
            name: "tokyo".into(),
            identity: "ID".into(),
            by: "paris".into(),
            ranges: vec!["10.244.2.0/24".into()],
            may_relay: true,
            member: false,
            revoked: true,
            waits_s: 75,
        };
        let text = table(&[one]);
        assert!(
            text.ends_with(
                "tokyo  paris     1 min  10.244.2.0/24, others' packets (relay)  REVOKED  ID\n"
            ),
            "{text}"
        );
        assert!(table(&[]).starts_with("Nobody waits"));
    }
}
