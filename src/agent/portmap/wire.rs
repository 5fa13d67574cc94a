//! Speaking with the gateway: PCP and NAT-PMP by `crab_nat`, UPnP by `igd-next`. No policy here.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::NonZeroU16;
use std::time::Duration;

use crab_nat::{
    GatewayAddress, InternetProtocol, PortMapping, PortMappingOptions, PortMappingType,
    TimeoutConfig, natpmp, pcp,
};
use igd_next::aio::Gateway;
use igd_next::aio::tokio::{Tokio, search_gateway};
use igd_next::{AddPortError, PortMappingProtocol, SearchError, SearchOptions};
use mesh_types::report::MappingProtocol;

use super::machine::{LIFETIME, Lease, Uplink};

/// The gateway is one hop away: it answers within milliseconds or not at all. 0.25 + 0.5 + 1 s.
const PATIENCE: TimeoutConfig = TimeoutConfig {
    initial_timeout: Duration::from_millis(250),
    max_retries: 2,
    max_retry_timeout: Some(Duration::from_secs(1)),
};
/// Where Internet Gateway Devices answer (UPnP Device Architecture 1.3.2).
const SSDP: (Ipv4Addr, u16) = (Ipv4Addr::new(239, 255, 255, 250), 1900);
/// Finding an Internet Gateway Device: it may answer up to MX seconds late (UPnP Device Architecture 1.3.2).
const SEARCH: Duration = Duration::from_secs(3);
/// Everything asked of a gateway by one protocol, however slow its web server.
const ALL: Duration = Duration::from_secs(12);
/// What people see in the gateway's list of mappings.
const DESCRIPTION: &str = "farspan";

/// Asks a gateway for a port.
pub async fn map(
    by: MappingProtocol,
    uplink: Uplink,
    renew: Option<Lease>,
) -> Result<Lease, String> {
    let asking = async {
        match by {
            MappingProtocol::Pcp => map_by_pcp(uplink, renew).await,
            MappingProtocol::NatPmp => map_by_nat_pmp(uplink, renew).await,
            MappingProtocol::Upnp => map_by_upnp(uplink, renew).await,
        }
    };
    let answer = tokio::time::timeout(ALL, asking);
    answer.await.unwrap_or_else(|_| Err(no_answer()))
}

/// Gives a port back.
pub async fn unmap(lease: Lease) -> Result<(), String> {
    let asking = async {
        match lease.by {
            MappingProtocol::Pcp => unmap_by_pcp(lease).await,
            MappingProtocol::NatPmp => unmap_by_nat_pmp(lease).await,
            MappingProtocol::Upnp => unmap_by_upnp(lease).await,
        }
    };
    let answer = tokio::time::timeout(ALL, asking);
    answer.await.unwrap_or_else(|_| Err(no_answer()))
}

async fn map_by_pcp(uplink: Uplink, renew: Option<Lease>) -> Result<Lease, String> {
    let (nonce, ip) = renew.map_or((None, None), |lease| {
        (lease.nonce, Some(lease.external.ip()))
    });
    let ours = |lease: &Lease| lease.by == MappingProtocol::Pcp;
    let ip = ip.filter(|_| renew.as_ref().is_some_and(ours));
    let mapping = pcp::port_mapping(pcp_request(uplink)?, nonce, ip, options(uplink, renew))
        .await
        .map_err(|failure| pcp_reason(&failure))?;
    match mapping.mapping_type() {
        PortMappingType::Pcp {
            nonce, external_ip, ..
        } => Ok(lease(
            uplink,
            MappingProtocol::Pcp,
            external_ip,
            Some(nonce),
            &mapping,
        )),
        PortMappingType::NatPmp => Err("its answer is not understood".to_owned()),
    }
}

async fn unmap_by_pcp(lease: Lease) -> Result<(), String> {
    let request = pcp_request(lease.uplink)?;
    let range = pcp::DropMappingRange::Single {
        protocol: InternetProtocol::Udp,
        internal_port: request.internal_port,
    };
    let nonce = lease.nonce.ok_or("its nonce is not known")?;
    pcp::try_drop_mapping(
        request.gateway,
        request.client,
        nonce,
        range,
        Some(PATIENCE),
    )
    .await
    .map_err(|failure| pcp_reason(&failure))
}

fn pcp_request(uplink: Uplink) -> Result<pcp::BaseMapRequest, String> {
    Ok(pcp::BaseMapRequest::new(
        gateway(uplink),
        uplink.local.into(),
        InternetProtocol::Udp,
        port(uplink)?,
    ))
}

async fn map_by_nat_pmp(uplink: Uplink, renew: Option<Lease>) -> Result<Lease, String> {
    let reason = |failure| nat_pmp_reason(&failure);
    // First, because a gateway that does not know its own address maps in vain.
    let external = natpmp::external_address(gateway(uplink), Some(PATIENCE));
    let external = external.await.map_err(reason)?;
    let wish = options(uplink, renew);
    let mapping = natpmp::port_mapping(gateway(uplink), InternetProtocol::Udp, port(uplink)?, wish)
        .await
        .map_err(reason)?;
    let by = MappingProtocol::NatPmp;
    Ok(lease(uplink, by, external.into(), None, &mapping))
}

async fn unmap_by_nat_pmp(lease: Lease) -> Result<(), String> {
    let port = Some(port(lease.uplink)?);
    let gateway = gateway(lease.uplink);
    natpmp::try_drop_mapping(gateway, InternetProtocol::Udp, port, Some(PATIENCE))
        .await
        .map_err(|failure| nat_pmp_reason(&failure))
}

fn gateway(uplink: Uplink) -> GatewayAddress {
    GatewayAddress::IpV4(uplink.gateway)
}

fn port(uplink: Uplink) -> Result<NonZeroU16, String> {
    NonZeroU16::new(uplink.port).ok_or_else(|| "the own port is not known yet".to_owned())
}

/// The port that we had, else the one that we listen on, is the easiest to explain and to keep.
fn wished_port(uplink: Uplink, renew: Option<Lease>) -> u16 {
    renew.map_or(uplink.port, |lease| lease.external.port())
}

fn options(uplink: Uplink, renew: Option<Lease>) -> PortMappingOptions {
    PortMappingOptions {
        external_port: NonZeroU16::new(wished_port(uplink, renew)),
        lifetime_seconds: u32::try_from(LIFETIME.as_secs()).ok(),
        timeout_config: Some(PATIENCE),
    }
}

fn lease(
    uplink: Uplink,
    by: MappingProtocol,
    ip: IpAddr,
    nonce: Option<[u32; 3]>,
    mapping: &PortMapping,
) -> Lease {
    Lease {
        uplink,
        by,
        external: SocketAddr::new(ip, mapping.external_port().get()),
        nonce,
        lifetime: Some(Duration::from_secs(mapping.lifetime().into())),
    }
}

async fn map_by_upnp(uplink: Uplink, renew: Option<Lease>) -> Result<Lease, String> {
    let gateway = device(uplink).await?;
    let ip = gateway.get_external_ip().await.map_err(words)?;
    let local = SocketAddr::new(uplink.local.into(), uplink.port);
    let mut wish = wished_port(uplink, renew);
    let seconds = u32::try_from(LIFETIME.as_secs()).unwrap_or(0);
    let udp = PortMappingProtocol::UDP;
    let mut lifetime = Some(LIFETIME);
    let mut added = gateway
        .add_port(udp, wish, local, seconds, DESCRIPTION)
        .await;
    if matches!(added, Err(AddPortError::OnlyPermanentLeasesSupported)) {
        lifetime = None;
        added = gateway.add_port(udp, wish, local, 0, DESCRIPTION).await;
    }
    match added {
        Ok(()) => {}
        Err(AddPortError::PortInUse) => {
            let seconds = lifetime.map_or(0, |_| seconds);
            let any = gateway.add_any_port(udp, local, seconds, DESCRIPTION);
            wish = any.await.map_err(words)?;
        }
        Err(error) => return Err(words(error)),
    }
    Ok(Lease {
        uplink,
        by: MappingProtocol::Upnp,
        external: SocketAddr::new(ip, wish),
        nonce: None,
        lifetime,
    })
}

async fn unmap_by_upnp(lease: Lease) -> Result<(), String> {
    let gateway = device(lease.uplink).await?;
    gateway
        .remove_port(PortMappingProtocol::UDP, lease.external.port())
        .await
        .map_err(words)
}

/// The gateway as a UPnP device. Others in the network that claim to be one are not asked.
async fn device(uplink: Uplink) -> Result<Gateway<Tokio>, String> {
    let mut search = SearchOptions::default();
    search.bind_addr = SocketAddr::new(uplink.local.into(), 0);
    search.broadcast_address = SSDP.into();
    search.timeout = Some(SEARCH);
    let found = search_gateway(search).await.map_err(|error| {
        if matches!(error, SearchError::NoResponseWithinTimeout) {
            no_answer()
        } else {
            words(error)
        }
    })?;
    if found.addr.ip() == IpAddr::V4(uplink.gateway) {
        Ok(found)
    } else {
        Err(format!("{} answered instead", found.addr.ip()))
    }
}

fn no_answer() -> String {
    "no answer".to_owned()
}

fn words(error: impl std::fmt::Display) -> String {
    error.to_string()
}

fn socket_reason(error: &io::Error) -> String {
    if error.kind() == io::ErrorKind::ConnectionRefused {
        "not spoken".to_owned()
    } else {
        crate::config::sentence(error)
    }
}

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "what else a gateway may answer has words of its own"
)]
fn pcp_reason(failure: &pcp::Failure) -> String {
    match failure {
        pcp::Failure::Socket(error) => socket_reason(error),
        pcp::Failure::Timeout => no_answer(),
        pcp::Failure::UnsupportedVersion(_) => "not spoken".to_owned(),
        other => lower(&other.to_string()),
    }
}

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "what else a gateway may answer has words of its own"
)]
fn nat_pmp_reason(failure: &natpmp::Failure) -> String {
    match failure {
        natpmp::Failure::Socket(error) => socket_reason(error),
        natpmp::Failure::Timeout => no_answer(),
        natpmp::Failure::UnsupportedVersion(_) => "not spoken".to_owned(),
        other => lower(&other.to_string()),
    }
}

/// "Server responded with code: Not authorized" becomes "not authorized".
fn lower(text: &str) -> String {
    let text = text.rsplit_once(": ").map_or(text, |(_, last)| last);
    text.to_lowercase()
}
