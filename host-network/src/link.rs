//! Links: the overlay device and what surrounds it.

use mesh_types::plan::DevicePlan;
use rtnetlink::LinkUnspec;
use rtnetlink::packet_route::link::{
    AfSpecInet, AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InetDevConf, InfoKind, LinkAttribute,
    LinkFlags, LinkInfo, LinkMessage,
};

use crate::HostError;
use crate::netlink::{Routing, gather, is_absent};

/// `rp_filter` of our device. The kernel takes the larger of this and `all`, and 2 (loose) is the larger of any two:
/// strict would drop a peer's packet whose answer another peer carries.
const RP_FILTER_LOOSE: i32 = 2;

/// A link, as far as we care.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) name: String,
    /// What it is, in iproute2's words; empty for hardware.
    pub(crate) kind: String,
    pub(crate) mtu: u32,
    pub(crate) up: bool,
    /// (`forwarding`, `rp_filter`), where the link has IPv4.
    inet: Option<(i32, i32)>,
    /// How IPv6 addresses are made of nothing, where the link has IPv6.
    generation: Option<In6AddrGenMode>,
}

impl Link {
    /// Reads a link message.
    pub(crate) fn parse(message: &LinkMessage) -> Self {
        let mut link = Self {
            index: message.header.index,
            name: String::new(),
            kind: String::new(),
            mtu: 0,
            up: message.header.flags.contains(LinkFlags::Up),
            inet: None,
            generation: None,
        };
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name.clone_from(name),
                LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
                LinkAttribute::LinkInfo(infos) => {
                    for info in infos {
                        if let LinkInfo::Kind(kind) = info {
                            link.kind = kind.to_string();
                        }
                    }
                }
                LinkAttribute::AfSpecUnspec(families) => link.read_families(families),
                _ => {}
            }
        }
        link
    }

    fn read_families(&mut self, families: &[AfSpecUnspec]) {
        for family in families {
            match family {
                AfSpecUnspec::Inet(items) => {
                    for item in items {
                        if let AfSpecInet::DevConf(conf) = item {
                            self.inet = Some((conf.forwarding, conf.rp_filter));
                        }
                    }
                }
                AfSpecUnspec::Inet6(items) => {
                    for item in items {
                        if let AfSpecInet6::AddrGenMode(mode) = item {
                            self.generation = Some(*mode);
                        }
                    }
                }
                _ => {}
            }
        }
    }
}

/// All links of the namespace.
pub(crate) async fn list(routing: &Routing) -> Result<Vec<Link>, HostError> {
    let messages = gather("list the links", routing.handle.link().get().execute()).await?;
    Ok(messages.iter().map(Link::parse).collect())
}

/// The link of a name, if there is one.
pub(crate) async fn find(routing: &Routing, name: &str) -> Result<Option<Link>, HostError> {
    let request = routing.handle.link().get().match_name(name);
    let messages = gather(&format!("look for the link {name}"), request.execute()).await?;
    Ok(messages.first().map(Link::parse))
}

/// Makes MTU and per-device settings as planned. The settings go by netlink because /proc/sys is read-only in a container.
pub(crate) async fn configure(
    routing: &mut Routing,
    link: &Link,
    plan: &DevicePlan,
    forward: bool,
) -> Result<(), HostError> {
    if link.mtu != u32::from(plan.mtu) {
        let message = LinkUnspec::new_with_index(link.index).mtu(plan.mtu.into());
        let result = routing.handle.link().set(message.build()).execute().await;
        let tried = format!("set the MTU of {} to {}", link.name, plan.mtu);
        routing.changed(tried, result)?;
    }
    if let Some(mode) = link.generation
        && mode != In6AddrGenMode::None
    {
        let spec = AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(In6AddrGenMode::None)]);
        let tried = format!("keep link-local addresses off {}", link.name);
        set_family(routing, link, spec, tried).await?;
    }
    if let Some((forwarding, rp_filter)) = link.inet {
        let mut conf = InetDevConf::default();
        if rp_filter != RP_FILTER_LOOSE {
            conf.rp_filter = RP_FILTER_LOOSE;
        }
        if forward && forwarding != 1 {
            conf.forwarding = 1;
        }
        if conf != InetDevConf::default() {
            let spec = AfSpecUnspec::Inet(vec![AfSpecInet::DevConfRequest(conf)]);
            let tried = format!("set rp_filter and forwarding of {}", link.name);
            set_family(routing, link, spec, tried).await?;
        }
    }
    Ok(())
}

async fn set_family(
    routing: &mut Routing,
    link: &Link,
    spec: AfSpecUnspec,
    tried: String,
) -> Result<(), HostError> {
    let message = LinkUnspec::new_with_index(link.index)
        .append_extra_attribute(LinkAttribute::AfSpecUnspec(vec![spec]))
        .build();
    let result = routing.handle.link().set(message).execute().await;
    routing.changed(tried, result)
}

/// Brings a link up.
pub(crate) async fn up(routing: &mut Routing, link: &Link) -> Result<(), HostError> {
    if link.up {
        return Ok(());
    }
    let message = LinkUnspec::new_with_index(link.index).up().build();
    let result = routing.handle.link().set(message).execute().await;
    routing.changed(format!("bring {} up", link.name), result)
}

/// Deletes a link. One that is gone already counts as deleted.
pub(crate) async fn delete(routing: &mut Routing, link: &Link) -> Result<(), HostError> {
    let result = match routing.handle.link().del(link.index).execute().await {
        Err(error) if is_absent(&error) => Ok(()),
        result => result,
    };
    routing.changed(format!("delete the link {}", link.name), result)
}

/// Is it a kind of link that one of our backends makes?
pub(crate) fn is_tunnel(link: &Link) -> bool {
    link.kind == InfoKind::Wireguard.to_string() || link.kind == InfoKind::Tun.to_string()
}
