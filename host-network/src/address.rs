//! Addresses: those of the overlay device are ours alone, those of all others are reported.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage,
};

use crate::HostError;
use crate::link::Link;
use crate::netlink::{Routing, gather, is_absent};

/// An address of a link.
#[derive(Debug, Clone)]
pub(crate) struct Address {
    pub(crate) link: u32,
    pub(crate) net: IpNet,
    pub(crate) flags: AddressFlags,
    message: AddressMessage,
}

impl Address {
    fn parse(message: AddressMessage) -> Option<Self> {
        let mut ip = None;
        let mut flags = AddressFlags::from_bits_retain(message.header.flags.bits().into());
        for attribute in &message.attributes {
            match attribute {
                // Where both stand, the local end is the address and the other one is the peer's.
                AddressAttribute::Local(local) => ip = Some(*local),
                AddressAttribute::Address(address) => ip = ip.or(Some(*address)),
                AddressAttribute::Flags(all) => flags = *all,
                _ => {}
            }
        }
        let net = IpNet::new(ip?, message.header.prefix_len).ok()?;
        Some(Self {
            link: message.header.index,
            net,
            flags,
            message,
        })
    }

    /// Will it be the same, and usable, in an hour?
    pub(crate) fn is_stable(&self) -> bool {
        // In IPv4 the bit of "temporary" means "secondary", which is as good as any.
        let mut bad = AddressFlags::Deprecated | AddressFlags::Tentative | AddressFlags::Dadfailed;
        if self.net.addr().is_ipv6() {
            bad |= AddressFlags::Secondary;
        }
        !self.flags.intersects(bad)
    }

    fn is_link_local(&self) -> bool {
        matches!(self.net.addr(), IpAddr::V6(ip) if ip.is_unicast_link_local())
    }
}

/// All addresses of the namespace.
pub(crate) async fn list(routing: &Routing) -> Result<Vec<Address>, HostError> {
    let request = routing.handle.address().get();
    let messages = gather("list the addresses", request.execute()).await?;
    Ok(messages.into_iter().filter_map(Address::parse).collect())
}

/// Adds the planned addresses that the link lacks.
pub(crate) async fn add_missing(
    routing: &mut Routing,
    link: &Link,
    planned: &BTreeSet<IpNet>,
    held: &[Address],
) -> Vec<HostError> {
    let mut failures = Vec::new();
    for net in planned {
        if held
            .iter()
            .any(|address| address.link == link.index && address.net == *net)
        {
            continue;
        }
        let mut request = routing
            .handle
            .address()
            .add(link.index, net.addr(), net.prefix_len());
        if net.addr().is_ipv6() {
            // Nobody else on a tunnel can have the address, and a tentative one is refused as a source of routes.
            request.message_mut().header.flags |= AddressHeaderFlags::Nodad;
            request
                .message_mut()
                .attributes
                .push(AddressAttribute::Flags(
                    AddressFlags::Nodad | AddressFlags::Noprefixroute,
                ));
        }
        let result = request.replace().execute().await;
        let tried = format!("add the address {net} to {}", link.name);
        failures.extend(routing.changed(tried, result).err());
    }
    failures
}

/// Takes away what is not planned. Link-local addresses are the kernel's.
pub(crate) async fn remove_stale(
    routing: &mut Routing,
    link: &Link,
    planned: &BTreeSet<IpNet>,
    held: &[Address],
) -> Vec<HostError> {
    let mut failures = Vec::new();
    for address in held {
        if address.link != link.index || planned.contains(&address.net) || address.is_link_local() {
            continue;
        }
        let mut message = AddressMessage::default();
        message.header.family = address.message.header.family;
        message.header.prefix_len = address.message.header.prefix_len;
        message.header.index = link.index;
        message.attributes = vec![AddressAttribute::Local(address.net.addr())];
        if message.header.family == AddressFamily::Inet6 {
            message.attributes = vec![AddressAttribute::Address(address.net.addr())];
        }
        let result = match routing.handle.address().del(message).execute().await {
            Err(error) if is_absent(&error) => Ok(()),
            result => result,
        };
        let tried = format!("remove the address {} from {}", address.net, link.name);
        failures.extend(routing.changed(tried, result).err());
    }
    failures
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stable(net: &str, flags: AddressFlags) -> bool {
        let address = Address {
            link: 1,
            net: net.parse().unwrap(),
            flags,
            message: AddressMessage::default(),
        };
        address.is_stable()
    }

    #[test]
    fn temporary_and_dying_addresses_are_not_stable() {
        assert!(stable("2001:db8::1/64", AddressFlags::Permanent));
        assert!(stable("2001:db8::1/64", AddressFlags::Managetempaddr));
        for bad in [
            AddressFlags::Secondary,
            AddressFlags::Deprecated,
            AddressFlags::Tentative,
            AddressFlags::Dadfailed,
        ] {
            assert!(!stable("2001:db8::1/64", bad | AddressFlags::Permanent));
        }
        assert!(stable("192.0.2.5/24", AddressFlags::Secondary));
    }
}
