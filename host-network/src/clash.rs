//! Who else uses our routing table or our bits of the packet mark. An equal rule priority is no clash.

use mesh_types::consts::ROUTE_TABLE;

use crate::netlink::Routing;
use crate::{route, rule};

/// Says it in one sentence, if anybody does.
pub(crate) async fn clash(routing: &Routing, (mark, mask): (u32, u32)) -> Option<String> {
    for held in rule::list(routing).await.unwrap_or_default() {
        if held.is_ours() {
            continue;
        }
        let rule = held.rule;
        if rule.table == ROUTE_TABLE {
            return Some(format!(
                "another program's policy rule at priority {} uses routing table {ROUTE_TABLE}, which is farspan's; remove that rule",
                rule.priority
            ));
        }
        // A rule that asks for a whole mark of its own, our bits not among it, does not see our packets.
        if rule.mark & rule.mask & mask & mark != 0 && !held.inverted {
            return Some(format!(
                "another program's policy rule at priority {} takes packets marked {:#x}/{:#x}, and farspan's are marked {mark:#x}/{mask:#x}; set another fwmark",
                rule.priority, rule.mark, rule.mask
            ));
        }
    }
    let routes = route::list(routing, ROUTE_TABLE).await.unwrap_or_default();
    let foreign = routes.iter().find(|message| !route::is_ours(message))?;
    let prefix = route::destination(foreign)?;
    Some(format!(
        "another program's route to {prefix} is in routing table {ROUTE_TABLE}, which is farspan's; remove that route"
    ))
}
