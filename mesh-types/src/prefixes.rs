//! A few prefixes that many places hold.

use std::ops::Deref;
use std::sync::Arc;

use ipnet::IpNet;

/// A sorted set of prefixes that is made once and only read from then on: directory, plan and backends hold one and the
/// same. Thousands of peers have three prefixes each, for which a B-tree would take room for eleven, in each place.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Prefixes(Arc<[IpNet]>);

impl Prefixes {
    /// Is this very prefix among them?
    pub fn contains(&self, net: &IpNet) -> bool {
        self.0.binary_search(net).is_ok()
    }
}

impl Deref for Prefixes {
    type Target = [IpNet];

    fn deref(&self) -> &[IpNet] {
        &self.0
    }
}

impl FromIterator<IpNet> for Prefixes {
    fn from_iter<I: IntoIterator<Item = IpNet>>(nets: I) -> Self {
        let mut nets: Vec<IpNet> = nets.into_iter().collect();
        nets.sort_unstable();
        nets.dedup();
        Self(nets.into())
    }
}

impl Extend<IpNet> for Prefixes {
    fn extend<I: IntoIterator<Item = IpNet>>(&mut self, nets: I) {
        *self = self.iter().copied().chain(nets).collect();
    }
}

impl<const N: usize> From<[IpNet; N]> for Prefixes {
    fn from(nets: [IpNet; N]) -> Self {
        nets.into_iter().collect()
    }
}

impl<'a> IntoIterator for &'a Prefixes {
    type Item = &'a IpNet;
    type IntoIter = std::slice::Iter<'a, IpNet>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_are_a_set_whatever_order_they_came_in() {
        let net = |text: &str| text.parse::<IpNet>().expect("a prefix");
        let nets = ["10.2.0.0/16", "fd00::/64", "10.1.0.0/16"].map(net);
        let prefixes = Prefixes::from(nets);
        assert_eq!(prefixes, nets.into_iter().rev().chain(nets).collect());
        assert_eq!(prefixes.len(), 3);
        assert!(nets.iter().all(|net| prefixes.contains(net)));
        assert!(!prefixes.contains(&net("10.0.0.0/8")));
    }
}
