//! What the API server tells of a cluster's network.

use std::net::IpAddr;

use anyhow::Result;
use mesh_types::IpNet;
use serde::Serialize;
use serde_json::Value;

use crate::ctl::cluster::Cluster;

/// A cluster, as far as its network goes.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Facts {
    /// The URL that was asked.
    pub api_server: String,
    /// Where the Service `kubernetes` leads.
    pub api_addresses: Vec<String>,
    /// Such as `v1.34.4`.
    pub version: String,
    pub nodes: Vec<Node>,
    /// The CNI's name, or `none`.
    pub cni: String,
    pub ipam: Ipam,
    /// Its mode, or who replaces it.
    pub kube_proxy: String,
    /// Marks that others put on packets.
    pub marks: Vec<Mark>,
    /// What the CNI is told.
    pub mtu: Option<u64>,
    /// Of all nodes, or what the control plane was told.
    pub pod_cidrs: Vec<String>,
    pub service_cidrs: Vec<String>,
    /// `ipv4-native-routing-cidr` of a Cilium that masquerades by eBPF.
    pub cilium_native: Option<String>,
    /// The image of the agents that are here.
    pub installed: Option<String>,
}

/// One node.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Node {
    pub name: String,
    pub ready: bool,
    pub region: Option<String>,
    pub os: String,
    pub kernel: String,
    pub pod_cidrs: Vec<String>,
    pub internal_ips: Vec<String>,
}

/// Do pods' addresses come from their node's podCIDRs?
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Ipam {
    /// What hands them out, as far as known.
    pub by: String,
    /// By its configuration.
    pub follows: Option<bool>,
    /// Pods whose address was compared with their node's ranges.
    pub pods_inside: usize,
    pub pods_outside: usize,
    /// One of those outside.
    pub example: Option<String>,
}

/// A mark that somebody uses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Mark {
    pub owner: String,
    pub mark: u32,
    pub mask: u32,
}

impl Ipam {
    /// What configuration and pods say together; `None` where neither says anything.
    pub fn verdict(&self) -> Option<bool> {
        if self.pods_outside > 0 {
            return Some(false);
        }
        self.follows.or((self.pods_inside > 0).then_some(true))
    }

    /// For people.
    pub fn in_words(&self) -> String {
        let by = if self.by.is_empty() {
            "unknown"
        } else {
            &self.by
        };
        let verdict = match self.verdict() {
            Some(true) => "follows the nodes' podCIDRs",
            Some(false) => "ignores the nodes' podCIDRs",
            None => "no pod shows whether it follows the nodes' podCIDRs",
        };
        format!("{by}: {verdict}")
    }
}

/// DaemonSets by which a CNI is known, and its name.
const CNIS: [(&str, &str); 13] = [
    ("cilium", "Cilium"),
    ("canal", "Canal"),
    ("calico-node", "Calico"),
    ("kube-flannel-ds", "Flannel"),
    ("kube-flannel", "Flannel"),
    ("kindnet", "kindnet"),
    ("kube-router", "kube-router"),
    ("antrea-agent", "Antrea"),
    ("weave-net", "Weave Net"),
    ("aws-node", "Amazon VPC CNI"),
    ("azure-cns", "Azure CNI"),
    ("ovnkube-node", "OVN-Kubernetes"),
    ("kilo", "Kilo"),
];

/// Asks for everything; what is not there is not known.
pub async fn gather(cluster: &Cluster) -> Result<Facts> {
    let version = cluster.get("/version").await?.unwrap_or_default();
    let nodes = cluster.list("/api/v1/nodes").await?;
    let sets = cluster.list("/apis/apps/v1/daemonsets").await?;
    let running = "/api/v1/pods?fieldSelector=status.phase%3DRunning&limit=500";
    let pods = cluster.get(running).await?.unwrap_or_default();
    let system = |name: &str| format!("/api/v1/namespaces/kube-system/configmaps/{name}");
    let proxy = cluster.get(&system("kube-proxy")).await?;
    let kubeadm = cluster.get(&system("kubeadm-config")).await?;
    let slices = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices?labelSelector=kubernetes.io%2Fservice-name%3Dkubernetes";
    let slices = cluster.list(slices).await?;
    let cidrs = cluster
        .list("/apis/networking.k8s.io/v1/servicecidrs")
        .await?;

    let mut facts = Facts {
        api_server: cluster.url.clone(),
        version: text(&version, "/gitVersion"),
        nodes: nodes.iter().map(node).collect(),
        api_addresses: addresses(&slices),
        ..Facts::default()
    };
    let found = CNIS.iter().find_map(|(name, cni)| {
        let set = sets
            .iter()
            .find(|set| text(set, "/metadata/name") == *name)?;
        Some((*cni, text(set, "/metadata/namespace")))
    });
    // K3s has Flannel inside its own process.
    let inside = || {
        let key = "/metadata/annotations/flannel.alpha.coreos.com~1backend-type";
        let flannel = nodes.iter().any(|node| node.pointer(key).is_some());
        flannel.then(|| ("Flannel", "kube-system".to_owned()))
    };
    if let Some((cni, namespace)) = found.or_else(inside) {
        facts.cni = cni.to_owned();
        cni_details(cluster, &mut facts, &namespace).await?;
    } else {
        facts.cni = "none".to_owned();
    }
    kube_proxy(&mut facts, proxy.as_ref(), &sets, &nodes);
    let pods = pods["items"].as_array().map_or(&[][..], Vec::as_slice);
    compare(&mut facts, pods);
    ranges(&mut facts, &cidrs, kubeadm.as_ref(), pods);
    facts.installed = sets
        .iter()
        .find(|set| text(set, "/metadata/name") == "farspan")
        .map(|set| text(set, "/spec/template/spec/containers/0/image"));
    Ok(facts)
}

fn node(object: &Value) -> Node {
    let strings = |pointer: &str| -> Vec<String> {
        let list = object.pointer(pointer).and_then(Value::as_array);
        let texts = list.into_iter().flatten().filter_map(Value::as_str);
        texts.map(str::to_owned).collect()
    };
    let list = |pointer: &str| {
        let list = object.pointer(pointer).and_then(Value::as_array);
        list.cloned().unwrap_or_default()
    };
    let region = [
        "/metadata/annotations/config.farspan.io~1region",
        "/metadata/labels/topology.kubernetes.io~1region",
    ];
    Node {
        name: text(object, "/metadata/name"),
        ready: list("/status/conditions")
            .iter()
            .any(|one| one["type"] == "Ready" && one["status"] == "True"),
        region: region
            .iter()
            .map(|pointer| text(object, pointer))
            .find(|region| !region.is_empty()),
        os: text(object, "/status/nodeInfo/operatingSystem"),
        kernel: text(object, "/status/nodeInfo/kernelVersion"),
        pod_cidrs: strings("/spec/podCIDRs"),
        internal_ips: list("/status/addresses")
            .iter()
            .filter(|one| one["type"] == "InternalIP")
            .map(|one| text(one, "/address"))
            .collect(),
    }
}

fn addresses(slices: &[Value]) -> Vec<String> {
    let mut found = Vec::new();
    for slice in slices {
        let port = slice.pointer("/ports/0/port").and_then(Value::as_u64);
        let endpoints = slice["endpoints"].as_array();
        for ip in endpoints
            .into_iter()
            .flatten()
            .filter_map(|endpoint| endpoint.pointer("/addresses/0")?.as_str()?.parse().ok())
        {
            let port = port.unwrap_or(6443);
            found.push(match ip {
                IpAddr::V4(ip) => format!("https://{ip}:{port}"),
                IpAddr::V6(ip) => format!("https://[{ip}]:{port}"),
            });
        }
    }
    found
}

/// How this CNI hands out addresses, its MTU, its marks.
async fn cni_details(cluster: &Cluster, facts: &mut Facts, namespace: &str) -> Result<()> {
    let map = async |name: &str| {
        let path = format!("/api/v1/namespaces/{namespace}/configmaps/{name}");
        cluster
            .get(&path)
            .await
            .map(|map| map.map_or(Value::Null, |map| map["data"].clone()))
    };
    let number = |data: &Value, key: &str| data[key].as_str().and_then(|mtu| mtu.parse().ok());
    let (by, follows) = match facts.cni.as_str() {
        "Cilium" => {
            let data = map("cilium-config").await?;
            facts.mtu = number(&data, "mtu").filter(|mtu| *mtu > 0);
            let on = |key: &str| data[key].as_str() == Some("true");
            let ipsec = on("enable-ipsec");
            facts.marks.push(Mark {
                owner: if ipsec { "Cilium with IPsec" } else { "Cilium" }.to_owned(),
                mark: if ipsec { 0xff00 } else { 0x0f00 },
                mask: if ipsec { 0xff00 } else { 0x0f00 },
            });
            if on("enable-bpf-masquerade") {
                let native = data["ipv4-native-routing-cidr"].as_str();
                facts.cilium_native = Some(native.unwrap_or_default().to_owned());
            }
            if on("kube-proxy-replacement") || data["kube-proxy-replacement"] == "strict" {
                facts.kube_proxy = "replaced by Cilium".to_owned();
            }
            let ipam = data["ipam"].as_str().unwrap_or("cluster-pool").to_owned();
            let follows = ipam == "kubernetes";
            (format!("Cilium ipam.mode={ipam}"), Some(follows))
        }
        "Calico" | "Canal" => {
            let data = map("calico-config").await?;
            facts.mtu = number(&data, "veth_mtu").filter(|mtu| *mtu > 0);
            let file = data["cni_network_config"].as_str().unwrap_or_default();
            let installation = "/apis/operator.tigera.io/v1/installations/default";
            let installation = cluster.get(installation).await?.unwrap_or_default();
            let told = installation.pointer("/spec/calicoNetwork/mtu");
            let told = told.and_then(Value::as_u64).filter(|mtu| *mtu > 0);
            facts.mtu = facts.mtu.or(told);
            let felix = "/apis/crd.projectcalico.org/v1/felixconfigurations/default";
            let felix = cluster.get(felix).await?.unwrap_or_default();
            let mask = felix
                .pointer("/spec/iptablesMarkMask")
                .and_then(Value::as_u64)
                .and_then(|mask| u32::try_from(mask).ok())
                .unwrap_or(0xffff_0000);
            facts.marks.push(Mark {
                owner: "Calico".to_owned(),
                mark: mask,
                mask,
            });
            let local = facts.cni == "Canal"
                || file.contains("host-local")
                || text(&installation, "/spec/cni/ipam/type") == "HostLocal";
            let by = if local { "host-local" } else { "calico-ipam" };
            (by.to_owned(), Some(local))
        }
        "Flannel" => {
            let data = map("kube-flannel-cfg").await?;
            let net = data["net-conf.json"].as_str().unwrap_or_default();
            let net: Value = serde_json::from_str(net).unwrap_or_default();
            facts.mtu = net.pointer("/Backend/MTU").and_then(Value::as_u64);
            let backend = text(&net, "/Backend/Type");
            if !backend.is_empty() {
                facts.cni = format!("Flannel ({backend})");
            }
            ("host-local".to_owned(), Some(true))
        }
        "kindnet" | "kube-router" | "Kilo" => ("host-local".to_owned(), Some(true)),
        "Antrea" => ("Antrea".to_owned(), None),
        other => (other.to_owned(), Some(false)),
    };
    facts.ipam.by = by;
    facts.ipam.follows = follows;
    Ok(())
}

fn kube_proxy(facts: &mut Facts, map: Option<&Value>, sets: &[Value], nodes: &[Value]) {
    let file = map.and_then(|map| map.pointer("/data/config.conf")?.as_str());
    let config: Value = file
        .and_then(|file| serde_saphyr::from_str(file).ok())
        .unwrap_or_default();
    let bit = config
        .pointer("/iptables/masqueradeBit")
        .and_then(Value::as_u64)
        .filter(|bit| *bit < 32)
        .unwrap_or(14);
    let set = sets.iter().find(|set| {
        matches!(
            text(set, "/metadata/name").as_str(),
            "kube-proxy" | "kube-proxy-ds"
        )
    });
    let k3s = nodes
        .iter()
        .any(|node| text(node, "/status/nodeInfo/kubeletVersion").contains("+k3s"));
    if facts.kube_proxy.is_empty() {
        facts.kube_proxy = if !config.is_null() || set.is_some() {
            match config["mode"].as_str() {
                None | Some("") => "iptables (its default)".to_owned(),
                Some(mode) => mode.to_owned(),
            }
        } else if k3s {
            "iptables (inside k3s)".to_owned()
        } else {
            "not found".to_owned()
        };
    }
    if !facts.kube_proxy.starts_with("replaced") {
        let mark = 1 << bit;
        facts.marks.push(Mark {
            owner: "kube-proxy".to_owned(),
            mark,
            mask: mark,
        });
    }
    if let Some(range) = config["clusterCIDR"].as_str() {
        facts.pod_cidrs = split(range);
    }
}

/// Pods' addresses beside their nodes' ranges: what no configuration can talk away.
fn compare(facts: &mut Facts, pods: &[Value]) {
    for pod in pods {
        if pod.pointer("/spec/hostNetwork") == Some(&Value::Bool(true)) {
            continue;
        }
        let on = text(pod, "/spec/nodeName");
        let Some(node) = facts.nodes.iter().find(|node| node.name == on) else {
            continue;
        };
        let Ok(ip) = text(pod, "/status/podIP").parse::<IpAddr>() else {
            continue;
        };
        let inside = node
            .pod_cidrs
            .iter()
            .filter_map(|range| range.parse::<IpNet>().ok())
            .any(|range| range.contains(&ip));
        if inside {
            facts.ipam.pods_inside += 1;
        } else {
            facts.ipam.pods_outside += 1;
            facts.ipam.example.get_or_insert_with(|| {
                let name = text(pod, "/metadata/name");
                let ranges = if node.pod_cidrs.is_empty() {
                    "none".to_owned()
                } else {
                    node.pod_cidrs.join(", ")
                };
                format!("pod {name} has {ip}, and podCIDRs of its node {on} are {ranges}")
            });
        }
    }
}

/// Ranges of pods and Services: from the objects that say so, else from how the control plane was started.
fn ranges(facts: &mut Facts, cidrs: &[Value], kubeadm: Option<&Value>, pods: &[Value]) {
    for cidr in cidrs {
        let list = cidr.pointer("/spec/cidrs").and_then(Value::as_array);
        let ranges = list.into_iter().flatten().filter_map(Value::as_str);
        facts.service_cidrs.extend(ranges.map(str::to_owned));
    }
    let flag = |component: &str, flag: &str| -> Vec<String> {
        let words = pods
            .iter()
            .filter(|pod| text(pod, "/metadata/labels/component") == component)
            .filter_map(|pod| pod.pointer("/spec/containers/0/command")?.as_array())
            .flatten()
            .filter_map(Value::as_str);
        words
            .filter_map(|word| word.strip_prefix(flag))
            .next()
            .map_or_else(Vec::new, split)
    };
    let file = kubeadm.and_then(|map| map.pointer("/data/ClusterConfiguration")?.as_str());
    let kubeadm: Value = file
        .and_then(|file| serde_saphyr::from_str(file).ok())
        .unwrap_or_default();
    let told = |key: &str| kubeadm.pointer(key).and_then(Value::as_str).map(split);
    if facts.service_cidrs.is_empty() {
        facts.service_cidrs = flag("kube-apiserver", "--service-cluster-ip-range=");
    }
    if facts.service_cidrs.is_empty() {
        facts.service_cidrs = told("/networking/serviceSubnet").unwrap_or_default();
    }
    if facts.pod_cidrs.is_empty() {
        facts.pod_cidrs = flag("kube-controller-manager", "--cluster-cidr=");
    }
    if facts.pod_cidrs.is_empty() {
        facts.pod_cidrs = told("/networking/podSubnet").unwrap_or_default();
    }
}

fn split(list: &str) -> Vec<String> {
    list.split(',')
        .map(str::trim)
        .filter(|range| !range.is_empty())
        .map(str::to_owned)
        .collect()
}

/// A string in an object; empty where there is none.
fn text(object: &Value, pointer: &str) -> String {
    let found = object.pointer(pointer).and_then(Value::as_str);
    found.unwrap_or_default().to_owned()
}
