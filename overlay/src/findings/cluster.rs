//! What is wrong or worth knowing about the cluster.

use super::{LIKE_MAX, finding};
use crate::overlay::Overlay;
use crate::plan::LeftOut;
use crate::snapshot::{Finding, Severity};

impl Overlay {
    pub(super) fn cluster_findings(&self, out: &mut Vec<Finding>) {
        let Some(kubernetes) = &self.config.kubernetes else {
            return;
        };
        let name = &kubernetes.node;
        match &self.cluster.own {
            _ if self.cluster.domain.is_none() => out.push(finding(
                "cluster-unknown",
                Severity::Warning,
                "the API server has not answered yet, so no Node is known".to_owned(),
                "check that the API server is reached from this machine without the mesh, and the agent's token",
            )),
            None if !kubernetes.external => out.push(finding(
                "no-node",
                Severity::Warning,
                format!("the cluster has no Node {name}, so this node is announced to nobody"),
                "start its kubelet, or correct --node-name",
            )),
            Some(own) if kubernetes.pod_network.carries_pods() => {
                if !own.pod_cidrs.iter().any(|net| net.addr().is_ipv4()) {
                    out.push(finding(
                        "no-pod-cidr",
                        Severity::Warning,
                        format!("Node {name} has no IPv4 podCIDR, so it has no overlay IPv4 address and sends no IPv4 to peers"),
                        "let kube-controller-manager hand out ranges (--allocate-node-cidrs), or use --pod-network nodes",
                    ));
                }
            }
            Some(_) | None => {}
        }
        let publisher = &self.cluster.publisher;
        if let Some(sentence) = publisher.failure() {
            out.push(finding(
                "publish-failed",
                Severity::Warning,
                format!("the announcement could not be written to Node {name}: {sentence}"),
                "it is tried again by itself; if it persists, check the agent's ClusterRole and admission policies",
            ));
        }
        if publisher.is_contested() {
            out.push(finding(
                "node-contested",
                Severity::Warning,
                format!("somebody else writes farspan's annotations of Node {name}"),
                "run one agent a Node, each with a --node-name and an identity.key of its own",
            ));
        }
        self.left_out_findings(out);
    }

    fn left_out_findings(&self, out: &mut Vec<Finding>) {
        let left_out = self.all_left_out();
        let told = left_out.iter().filter_map(|((id, net), why)| {
            let (what, remedy) = match why {
                LeftOut::Neighbour => (
                    "lies in a network of this host, where the peer is not",
                    "use --pod-network nodes with addresses that occur once, or give the sites different networks",
                ),
                LeftOut::RpFilter => (
                    "is where its datagrams come from, and a strict rp_filter would drop them",
                    "set net.ipv4.conf.all.src_valid_mark=1, or rp_filter=2 on the uplink",
                ),
                // The first stands among the refused claims, the second is as it should be.
                LeftOut::Protected | LeftOut::Region => return None,
            };
            let name = self.peer_name(id);
            Some(finding(
                "node-address-left-out",
                Severity::Warning,
                format!("{net} of {name} is not routed: it {what}"),
                remedy,
            ))
        });
        out.extend(told.take(LIKE_MAX));
    }
}
