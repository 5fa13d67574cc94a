//! `down`: everything of ours goes, and the host is as it was before.

use mesh_types::consts::ROUTE_TABLE;

use crate::netlink::Routing;
use crate::nft::{self, Tables};
use crate::{HostError, link, route, rule};

/// Takes it away and says what it was, one line each. The device goes first and the blackholes after it, so that
/// what was meant for the tunnel is dropped rather than sent in clear while this lasts.
pub(crate) async fn remove(
    routing: &mut Routing,
    tables: Option<&mut Tables>,
    interface: &str,
) -> Result<Vec<String>, HostError> {
    let mut gone = Vec::new();
    if let Some(found) = link::find(routing, interface).await?
        && link::is_tunnel(&found)
    {
        link::delete(routing, &found).await?;
        gone.push(format!("device {interface}"));
    }
    for held in rule::list(routing).await? {
        if held.is_ours() {
            let family = if held.rule.ipv6 { "IPv6" } else { "IPv4" };
            gone.push(format!(
                "{family} policy rule at priority {} for table {}",
                held.rule.priority, held.rule.table
            ));
            rule::delete(routing, held).await?;
        }
    }
    let mut routes = route::list(routing, ROUTE_TABLE).await?;
    routes.retain(route::is_ours);
    if !routes.is_empty() {
        gone.push(format!("{} routes of table {ROUTE_TABLE}", routes.len()));
    }
    for message in routes {
        route::delete(routing, message).await?;
    }
    if let Some(tables) = tables {
        let nothing = nft::Through {
            device: interface,
            of_device: false,
            relayed: None,
        };
        nft::forward_accept(tables, nothing)?;
        if tables.remove_table()? {
            gone.push("nftables table inet farspan".to_owned());
        }
    }
    Ok(gone)
}
