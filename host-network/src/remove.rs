//! `down`: everything of ours goes, and the host is as it was before.

use mesh_types::consts::ROUTE_TABLE;

use crate::netlink::Routing;
use crate::nft::{self, Tables};
use crate::{HostError, link, route, rule};

/// What was taken away, and what could not be.
#[derive(Debug, Default)]
pub struct Removed {
    /// One line for each thing that is gone.
    pub gone: Vec<String>,
    /// Each failure; what came after it was tried all the same.
    pub failures: Vec<HostError>,
}

/// Takes it away. The device goes first and the blackholes after it, so that what was meant for the tunnel is dropped
/// rather than sent in clear while this lasts.
pub(crate) async fn remove(
    routing: &mut Routing,
    tables: Option<&mut Tables>,
    interface: &str,
) -> Removed {
    let mut removed = Removed::default();
    let steps = [
        device(routing, interface, &mut removed.gone).await,
        rules(routing, &mut removed).await,
        routes(routing, &mut removed).await,
    ];
    removed
        .failures
        .extend(steps.into_iter().filter_map(Result::err));
    if let Some(tables) = tables {
        let nothing = nft::Through {
            device: interface,
            of_device: false,
            relayed: None,
        };
        removed
            .failures
            .extend(nft::forward_accept(tables, nothing).err());
        match tables.remove_table() {
            Ok(true) => removed.gone.push("nftables table inet farspan".to_owned()),
            Ok(false) => {}
            Err(error) => removed.failures.push(error),
        }
    }
    removed
}

async fn device(
    routing: &mut Routing,
    interface: &str,
    gone: &mut Vec<String>,
) -> Result<(), HostError> {
    if let Some(found) = link::find(routing, interface).await?
        && link::is_tunnel(&found)
    {
        link::delete(routing, &found).await?;
        gone.push(format!("device {interface}"));
    }
    Ok(())
}

async fn rules(routing: &mut Routing, removed: &mut Removed) -> Result<(), HostError> {
    for held in rule::list(routing).await? {
        if held.is_ours() {
            let family = if held.rule.ipv6 { "IPv6" } else { "IPv4" };
            let line = format!(
                "{family} policy rule at priority {} for table {}",
                held.rule.priority, held.rule.table
            );
            match rule::delete(routing, held).await {
                Ok(()) => removed.gone.push(line),
                Err(error) => removed.failures.push(error),
            }
        }
    }
    Ok(())
}

async fn routes(routing: &mut Routing, removed: &mut Removed) -> Result<(), HostError> {
    let mut routes = route::list(routing, ROUTE_TABLE).await?;
    routes.retain(route::is_ours);
    let mut count = 0;
    for message in routes {
        match route::delete(routing, message).await {
            Ok(()) => count += 1,
            Err(error) => removed.failures.push(error),
        }
    }
    if count > 0 {
        let line = format!("{count} routes of table {ROUTE_TABLE}");
        removed.gone.push(line);
    }
    Ok(())
}
