//! What a person wishes of a Node: annotations under [`CONFIG_PREFIX`].

use std::net::SocketAddr;

use mesh_types::annotations::{CONFIG_PREFIX, quoted};
use mesh_types::cluster::Node;
use mesh_types::{IpNet, consts::CANDIDATES_MAX};

use crate::describe::printable;

/// Ranges of one Node, at most.
const EXTRA_MAX: usize = 256;

/// A Node's wishes, as far as they can be read.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Wishes {
    /// `region`, else the Node's label.
    pub region: Option<String>,
    /// `force-endpoint`: where it is reached, before all else.
    pub forced: Vec<SocketAddr>,
    /// `extra-cidrs`: ranges behind it.
    pub extra: Vec<IpNet>,
    /// `relay`: it may relay, as far as the policy allows. It may unless it is told not to.
    pub relay: bool,
    /// One sentence for each that cannot be read.
    pub flaws: Vec<String>,
}

impl Wishes {
    pub(super) fn of(node: &Node) -> Self {
        let mut out = Self::default();
        let value = |key: &str| node.annotations.get(&format!("{CONFIG_PREFIX}{key}"));
        let region = value("region").or(node.region.as_ref());
        out.region = region
            .map(|text| printable(text))
            .filter(|region| !region.is_empty());
        if let Some(text) = value("force-endpoint") {
            out.forced = out.list(node, "force-endpoint", text, "ADDRESS:PORT", endpoint);
            out.forced.truncate(CANDIDATES_MAX);
        }
        if let Some(text) = value("extra-cidrs") {
            out.extra = out.list(node, "extra-cidrs", text, "an address range", |text| {
                text.parse().ok().map(|net: IpNet| net.trunc())
            });
            if out.extra.len() > EXTRA_MAX {
                out.flaws.push(format!(
                    "annotation {CONFIG_PREFIX}extra-cidrs of Node {} names {} ranges; the first {EXTRA_MAX} count",
                    node.name,
                    out.extra.len()
                ));
                out.extra.truncate(EXTRA_MAX);
            }
        }
        out.relay = match value("relay").map(|text| text.trim()) {
            None | Some("true") => true,
            Some("false") => false,
            Some(text) => {
                out.flaws
                    .push(unreadable(node, "relay", text, "true or false"));
                false
            }
        };
        out
    }

    /// What of a list can be read; the rest becomes one flaw.
    fn list<T>(
        &mut self,
        node: &Node,
        key: &str,
        text: &str,
        expected: &str,
        parse: impl Fn(&str) -> Option<T>,
    ) -> Vec<T> {
        let mut out = Vec::new();
        let mut bad = None;
        for item in text
            .split(',')
            .map(str::trim)
            .filter(|item| !item.is_empty())
        {
            match parse(item) {
                Some(value) => out.push(value),
                None => bad = bad.or(Some(item)),
            }
        }
        self.flaws
            .extend(bad.map(|item| unreadable(node, key, item, expected)));
        out
    }
}

fn endpoint(text: &str) -> Option<SocketAddr> {
    let address: SocketAddr = text.parse().ok()?;
    (address.port() != 0).then_some(address)
}

fn unreadable(node: &Node, key: &str, text: &str, expected: &str) -> String {
    format!(
        "annotation {CONFIG_PREFIX}{key} of Node {} has {}, which is not {expected}; that is ignored",
        node.name,
        quoted(text)
    )
}
