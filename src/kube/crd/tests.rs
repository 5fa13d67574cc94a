use serde_json::{Value, json};

use super::*;

const KEY_OF_B: &str = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=";

fn policy(spec: &Value) -> MeshPolicy {
    object("MeshPolicy", POLICY_NAME, spec)
}

fn external(spec: &Value) -> ExternalPeer {
    object("ExternalPeer", "laptop", spec)
}

fn object<T: serde::de::DeserializeOwned>(kind: &str, name: &str, spec: &Value) -> T {
    serde_json::from_value(json!({
        "apiVersion": "farspan.io/v1alpha1", "kind": kind, "metadata": { "name": name }, "spec": spec
    }))
    .unwrap()
}

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

#[test]
fn a_policy_is_read_whole() {
    let (read, wrong) = policy(&json!({
        "nodeCIDRs": ["192.168.0.0/16", "2001:db8::/32"],
        "podCIDRs": ["10.244.0.0/16"],
        "extraCIDRs": [{ "node": "a", "cidrs": ["172.20.0.0/24"] }, { "node": "a", "cidrs": ["172.20.1.7/24"] }],
        "relays": ["a"],
        "topology": "mesh",
        "filters": [{
            "from": { "regions": ["eu"], "peers": ["laptop"] },
            "to": [{ "cidr": "10.244.0.0/16", "ports": { "from": 80, "to": 443 } }, { "cidr": "10.245.0.0/16" }]
        }]
    }))
    .read();
    assert_eq!(wrong, Vec::<String>::new());
    assert_eq!(
        read.node_cidrs,
        [net("192.168.0.0/16"), net("2001:db8::/32")]
    );
    assert_eq!(read.pod_cidrs, [net("10.244.0.0/16")]);
    assert_eq!(
        read.extra_cidrs["a"],
        [net("172.20.0.0/24"), net("172.20.1.0/24")]
    );
    assert_eq!(read.relays, Some(BTreeSet::from(["a".to_owned()])));
    let to = &read.filters[0].to;
    assert_eq!(to[0].ports, Some((80, 443)));
    assert_eq!(
        (to[1].destination, to[1].ports),
        (net("10.245.0.0/16"), None)
    );
}

#[test]
fn an_empty_policy_limits_nothing() {
    let (read, wrong) = policy(&json!({})).read();
    assert_eq!(wrong, Vec::<String>::new());
    assert_eq!(read, Policy::default());
}

#[test]
fn a_limit_of_which_nothing_can_be_read_admits_nobody() {
    let (read, wrong) =
        policy(&json!({ "nodeCIDRs": ["192.168.0.0"], "podCIDRs": ["x", "10.0.0.0/8"] })).read();
    assert_eq!(read.node_cidrs, [net("::/128")]);
    assert_eq!(read.pod_cidrs, [net("10.0.0.0/8")]);
    assert_eq!(
        wrong,
        [
            "MeshPolicy default: spec.nodeCIDRs[0]: \"192.168.0.0\" is not a range; write it like 10.244.1.0/24",
            "MeshPolicy default: spec.podCIDRs[0]: \"x\" is not a range; write it like 10.244.1.0/24",
        ]
    );
}

#[test]
fn a_rule_never_allows_more_because_a_part_of_it_is_wrong() {
    let (read, wrong) = policy(&json!({
        "topology": "ring",
        "extraCIDRs": [{ "node": "", "cidrs": ["10.9.0.0/24"] }, { "node": "a", "cidrs": ["0.0.0.0/0"] }],
        "filters": [
            { "from": {}, "to": [{ "cidr": "10.0.0.0/8" }] },
            { "from": { "peers": ["a"] }, "to": [{ "cidr": "10.0.0.0/8", "ports": { "from": 9, "to": 1 } }, { "cidr": "?" }] },
            { "from": { "peers": ["b"] }, "to": [{ "cidr": "10.0.0.0/8", "ports": { "from": -1, "to": 70000 } }] }
        ]
    }))
    .read();
    assert_eq!(wrong.len(), 7, "{wrong:#?}");
    assert_eq!(read.extra_cidrs["a"], []);
    let peers = |at: usize| read.filters[at].peers.iter().cloned().collect::<String>();
    assert_eq!((peers(0), peers(1)), ("a".to_owned(), "b".to_owned()));
    assert!(read.filters.iter().all(|filter| filter.to.is_empty()));
}

#[test]
fn an_external_peer_is_read_whole() {
    let (read, wrong) = external(&json!({
        "publicKey": KEY_OF_B, "addresses": ["10.77.0.9/32"], "routes": ["172.20.0.0/24"],
        "endpoints": ["203.0.113.9:51820", "[2001:db8::9]:51820"], "plain": true, "persistentKeepalive": 25
    }))
    .read();
    assert_eq!(wrong, Vec::<String>::new());
    let peer = read.unwrap();
    assert_eq!(peer.name.as_deref(), Some("laptop"));
    assert_eq!(peer.key.to_string(), KEY_OF_B);
    assert_eq!(
        peer.allowed_ips,
        [net("10.77.0.9/32"), net("172.20.0.0/24")]
    );
    assert_eq!(peer.endpoints.len(), 2);
    assert!(peer.plain);
    assert_eq!(peer.persistent_keepalive, Some(Duration::from_secs(25)));
}

#[test]
fn of_an_external_peer_only_what_is_right_counts() {
    let (read, wrong) = external(&json!({
        "publicKey": KEY_OF_B, "addresses": ["10.77.0.9/32", "10.77.0.0/24", "127.0.0.1/32"],
        "routes": ["0.0.0.0/0"], "endpoints": ["vpn.example.org:51820", "1.2.3.4:0"], "persistentKeepalive": 70000
    }))
    .read();
    assert_eq!(wrong.len(), 6, "{wrong:#?}");
    let peer = read.unwrap();
    assert_eq!(peer.allowed_ips, [net("10.77.0.9/32")]);
    assert_eq!(peer.endpoints, []);
    assert_eq!(peer.persistent_keepalive, None);
}

#[test]
fn an_external_peer_without_key_or_address_is_none() {
    for spec in [
        json!({ "publicKey": "short", "addresses": ["10.77.0.9/32"] }),
        json!({ "publicKey": "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=", "addresses": ["10.77.0.9/32"] }),
        json!({ "publicKey": KEY_OF_B, "addresses": [] }),
    ] {
        let (read, wrong) = external(&spec).read();
        assert_eq!(read, None);
        assert_eq!(wrong.len(), 1, "{wrong:?}");
        assert!(wrong[0].ends_with("the peer is left out"), "{wrong:?}");
    }
}

#[test]
fn the_definitions_are_cluster_wide_and_hold_their_rules() {
    let [policy, external] = definitions().map(|crd| serde_json::to_value(crd).unwrap());
    for (crd, name) in [
        (&policy, "meshpolicies.farspan.io"),
        (&external, "externalpeers.farspan.io"),
    ] {
        assert_eq!(crd["metadata"]["name"], name);
        assert_eq!(crd["spec"]["scope"], "Cluster");
        assert_eq!(crd["spec"]["versions"][0]["name"], "v1alpha1");
    }
    let schema = |crd: &Value| crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"].clone();
    let policy = schema(&policy);
    assert_eq!(
        policy["x-kubernetes-validations"][0]["rule"],
        "self.metadata.name == 'default'"
    );
    let spec = &policy["properties"]["spec"]["properties"];
    assert_eq!(spec["nodeCIDRs"]["items"]["pattern"], CIDR);
    assert_eq!(spec["topology"]["enum"], json!(["mesh"]));
    assert_eq!(spec["topology"]["default"], "mesh");
    let ports = &spec["filters"]["items"]["properties"]["to"]["items"]["properties"]["ports"];
    assert_eq!(
        ports["x-kubernetes-validations"][0]["rule"],
        "self.from <= self.to"
    );
    let spec = &schema(&external)["properties"]["spec"];
    assert_eq!(spec["required"], json!(["addresses", "publicKey"]));
    assert_eq!(spec["properties"]["publicKey"]["pattern"], KEY);
    assert_eq!(
        spec["properties"]["endpoints"]["items"]["pattern"],
        ENDPOINT
    );
}
