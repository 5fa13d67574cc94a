//! Nodes of a cluster whose machines never answer: objects with valid records.

use std::collections::BTreeMap;
use std::net::IpAddr;

use mesh_types::annotations;
use mesh_types::cluster::Node;
use mesh_types::record::{Announcement, Features, Signed};
use mesh_types::{
    Candidate, CandidateKind, IdentitySecret, IpNet, Ipv4Net, NatReport, WgKey, WgSecret,
};

use super::World;

impl World {
    /// The Node of a machine that never answers; `number` is one that no other has.
    pub fn stranger(&mut self, number: u16) -> Node {
        let [high, low] = number.to_be_bytes();
        let identity = IdentitySecret::from_bytes(&self.random.bytes());
        let key: WgKey = WgSecret::from_bytes(self.random.bytes()).public();
        let inside = [172, 16 + high / 16, high % 16, low];
        let mut node = Node {
            name: format!("ip-10-200-{high}-{low}.eu-central-1.compute.internal"),
            uid: self.api().uid(),
            created: 1_000 + u64::from(number),
            pod_cidrs: vec![IpNet::V4(Ipv4Net::new_assert(
                [10, high, low, 0].into(),
                24,
            ))],
            internal_ips: vec![IpAddr::from(inside)],
            region: Some(format!("region-{}", number % 5)),
            annotations: BTreeMap::new(),
        };
        let endpoint = |kind, ip: [u8; 4]| Candidate {
            kind,
            address: (ip, 22_514).into(),
        };
        let announcement = Announcement {
            domain: self.api().domain,
            identity: identity.identity(),
            key,
            next_key: None,
            endpoints: vec![
                endpoint(CandidateKind::ServerReflexive, [45, 1, high, low]),
                endpoint(CandidateKind::Host, inside),
            ],
            nat: NatReport::default(),
            relays: Vec::new(),
            region: None,
            features: Features::KERNEL,
            protocol_min: 1,
            protocol_max: 1,
            seq: 1_790_000_000_000,
            name: Some(node.name.clone()),
            node_uid: Some(node.uid.clone()),
        };
        let signed = Signed::sign(annotations::fit(announcement), &identity);
        let written = annotations::encode(&signed).into_iter();
        node.annotations = written
            .map(|(key, value)| (key.to_owned(), value))
            .collect();
        node
    }
}
