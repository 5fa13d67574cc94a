//! Free overlay IPv4 addresses, for the authority's side of an invitation.

use std::net::Ipv4Addr;

use mesh_types::{IpNet, Ipv4Net};

/// The lowest host address of `range` outside all of `taken`. Network and broadcast address stay free
/// where the range has them (RFC 3021: a /31 does not).
pub(crate) fn lowest_free(
    range: Ipv4Net,
    taken: impl IntoIterator<Item = IpNet>,
) -> Option<Ipv4Addr> {
    let (first, last) = (u32::from(range.network()), u32::from(range.broadcast()));
    let (mut free, last) = if range.prefix_len() >= 31 {
        (first, last)
    } else {
        (first + 1, last - 1)
    };
    let mut taken: Vec<(u32, u32)> = taken
        .into_iter()
        .filter_map(|net| match net {
            IpNet::V4(net) => Some((u32::from(net.network()), u32::from(net.broadcast()))),
            IpNet::V6(_) => None,
        })
        .collect();
    taken.sort_unstable();
    for (from, to) in taken {
        if from > free {
            break;
        }
        if to >= free {
            free = to.checked_add(1)?;
        }
    }
    (free <= last).then(|| Ipv4Addr::from(free))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn free(range: &str, taken: &[&str]) -> Option<String> {
        let taken: Vec<IpNet> = taken.iter().map(|t| t.parse().expect("prefix")).collect();
        lowest_free(range.parse().expect("range"), taken).map(|ip| ip.to_string())
    }

    #[test]
    fn the_lowest_address_that_nobody_has_is_free() {
        let one = free("10.77.0.0/16", &[]);
        assert_eq!(one.as_deref(), Some("10.77.0.1"));
        let gap = free(
            "10.77.0.0/16",
            &["10.77.0.3/32", "10.77.0.1/32", "fd00::/8"],
        );
        assert_eq!(gap.as_deref(), Some("10.77.0.2"));
        let after = free(
            "10.77.0.0/16",
            &["10.77.0.0/24", "10.77.0.7/32", "10.77.1.0/32"],
        );
        assert_eq!(after.as_deref(), Some("10.77.1.1"));
    }

    #[test]
    fn a_full_range_has_none_and_the_last_address_of_all_is_no_overflow() {
        assert_eq!(free("10.0.0.0/30", &["10.0.0.1/32", "10.0.0.2/32"]), None);
        assert_eq!(free("255.255.255.255/32", &["255.255.255.255/32"]), None);
        assert_eq!(free("0.0.0.0/0", &["0.0.0.0/0"]), None);
        assert_eq!(
            free("10.0.0.0/31", &["10.0.0.0/32"]).as_deref(),
            Some("10.0.0.1")
        );
    }
}
