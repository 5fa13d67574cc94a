//! Objects as far as the mesh reads them, parsed at the border into nouns of `mesh-types`.
//!
//! Every field may be absent: a watch of metadata has no spec, and no foreign object may end a listing.

use std::collections::BTreeMap;
use std::net::IpAddr;

use mesh_types::IpNet;
use mesh_types::cluster::Node;
use serde::{Deserialize, Deserializer};

/// Prefixes of the annotations that the mesh reads.
const PREFIXES: [&str; 2] = ["farspan.io/", "config.farspan.io/"];
const REGION: &str = "topology.kubernetes.io/region";

/// A listing.
#[derive(Debug, Clone, Deserialize)]
pub struct List<T> {
    /// Its own metadata.
    #[serde(default)]
    pub metadata: ListMeta,
    /// The objects.
    #[serde(
        deserialize_with = "none_is_empty",
        bound(deserialize = "T: Deserialize<'de>")
    )]
    pub items: Vec<T>,
}

/// Go writes a list that was never made as null.
fn none_is_empty<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<Vec<T>, D::Error> {
    Ok(Option::<Vec<T>>::deserialize(deserializer)?.unwrap_or_default())
}

/// Metadata of a listing.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ListMeta {
    /// The revision that it shows.
    pub resource_version: String,
}

/// Metadata of an object.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Meta {
    /// Its name.
    pub name: String,
    /// Which of all objects that ever had this name.
    pub uid: String,
    /// Its revision.
    pub resource_version: String,
    /// RFC 3339.
    pub creation_timestamp: Option<String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Annotations.
    pub annotations: BTreeMap<String, String>,
}

/// A Node, or its metadata alone.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Object {
    /// Metadata.
    pub metadata: Meta,
    /// Absent where only metadata came.
    pub spec: Spec,
    /// Absent where only metadata came.
    pub status: Status,
}

/// Of a Node's spec.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Spec {
    /// One range.
    #[serde(rename = "podCIDR")]
    pub pod_cidr: Option<String>,
    /// One of each family.
    #[serde(rename = "podCIDRs")]
    pub pod_cidrs: Vec<String>,
}

/// Of a Node's status.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Status {
    /// Addresses of every type.
    pub addresses: Vec<Address>,
}

/// One address.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Address {
    /// `InternalIP`, `Hostname`, ...
    #[serde(rename = "type")]
    pub kind: String,
    /// Its text.
    pub address: String,
}

impl Object {
    /// The noun. What is no range or no address is left out.
    pub fn node(&self) -> Node {
        let Self {
            metadata,
            spec,
            status,
        } = self;
        let ranges = if spec.pod_cidrs.is_empty() {
            spec.pod_cidr.as_slice()
        } else {
            &spec.pod_cidrs
        };
        Node {
            name: metadata.name.clone(),
            uid: metadata.uid.clone(),
            created: created(metadata),
            pod_cidrs: ranges.iter().filter_map(|text| range(text)).collect(),
            internal_ips: status
                .addresses
                .iter()
                .filter(|address| address.kind == "InternalIP")
                .filter_map(|address| address.address.parse().ok())
                .collect::<Vec<IpAddr>>(),
            region: region(metadata),
            annotations: annotations(metadata),
        }
    }
}

/// Unix seconds; who does not say when it was made is the youngest.
fn created(metadata: &Meta) -> u64 {
    let text = metadata.creation_timestamp.as_deref().unwrap_or_default();
    let time = text.parse::<jiff::Timestamp>().ok();
    time.and_then(|time| u64::try_from(time.as_second()).ok())
        .unwrap_or(u64::MAX)
}

/// The label, where it says something.
pub fn region(metadata: &Meta) -> Option<String> {
    let label = metadata.labels.get(REGION)?;
    Some(label.clone()).filter(|label| !label.is_empty())
}

/// Those that the mesh reads.
pub fn annotations(metadata: &Meta) -> BTreeMap<String, String> {
    let ours = |key: &str| PREFIXES.iter().any(|prefix| key.starts_with(prefix));
    metadata
        .annotations
        .iter()
        .filter(|(key, _)| ours(key))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect()
}

/// A range; host bits do not count.
pub fn range(text: &str) -> Option<IpNet> {
    text.parse::<IpNet>().ok().map(|net| net.trunc())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_node_is_read_as_far_as_the_mesh_needs_it() {
        let object: Object = serde_json::from_value(json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": {
                "name": "n1", "uid": "6f1c", "resourceVersion": "7", "creationTimestamp": "2026-11-22T10:00:00Z",
                "labels": {"topology.kubernetes.io/region": "eu", "x": "y"},
                "annotations": {"farspan.io/seq": "3", "config.farspan.io/relay": "true", "other.io/z": "1"},
                "managedFields": [{"manager": "kubelet"}]
            },
            "spec": {"podCIDR": "10.244.1.0/24", "podCIDRs": ["10.244.1.0/24", "fd00:1::/64"], "taints": []},
            "status": {"addresses": [
                {"type": "Hostname", "address": "n1"},
                {"type": "InternalIP", "address": "192.168.1.5"},
                {"type": "InternalIP", "address": "fd01::5"},
                {"type": "ExternalIP", "address": "203.0.113.5"}
            ], "images": [{"names": ["a"]}]}
        }))
        .unwrap();
        let node = object.node();
        assert_eq!(node.name, "n1");
        assert_eq!(node.created, 1_795_341_600);
        assert_eq!(node.region.as_deref(), Some("eu"));
        let text = |list: &[IpNet]| list.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(text(&node.pod_cidrs), ["10.244.1.0/24", "fd00:1::/64"]);
        assert_eq!(node.internal_ips.len(), 2);
        let keys: Vec<_> = node.annotations.keys().map(String::as_str).collect();
        assert_eq!(keys, ["config.farspan.io/relay", "farspan.io/seq"]);
    }

    #[test]
    fn what_is_absent_or_wrong_does_not_end_a_listing() {
        let list: List<Object> = serde_json::from_value(json!({
            "metadata": {"resourceVersion": "12"},
            "items": [
                {"metadata": {"name": "bare", "uid": "u"}},
                {"metadata": {"name": "odd", "uid": "v", "creationTimestamp": null},
                 "spec": {"podCIDR": "10.1.2.3/24"}, "status": {"addresses": [{"type": "InternalIP", "address": "nowhere"}]}}
            ]
        }))
        .unwrap();
        assert_eq!(list.metadata.resource_version, "12");
        let bare = list.items[0].node();
        assert!(bare.pod_cidrs.is_empty() && bare.internal_ips.is_empty());
        assert_eq!(bare.created, u64::MAX);
        let odd = list.items[1].node();
        assert_eq!(odd.pod_cidrs, [range("10.1.2.0/24").unwrap()]);
        assert!(odd.internal_ips.is_empty());
        let none: List<Object> = serde_json::from_value(json!({"items": null})).unwrap();
        assert!(none.items.is_empty());
    }
}
