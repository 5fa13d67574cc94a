//! Pods' own addresses past the host's masquerading.

use mesh_types::HostPlan;

use crate::bed::{Bed, FAR, NODE, POD, at, hears};
use crate::support::{in_namespace, net, plan, run};

/// To this port kube-proxy marks what it will masquerade.
const NODE_PORT: u16 = 7001;

fn kept() -> HostPlan {
    let mut plan = plan();
    plan.keep_source = [
        "10.201.1.0/24",
        "10.201.2.0/24",
        "10.77.0.2/32",
        "fd77:1::/64",
        "fd77:2::/64",
    ]
    .map(net)
    .into();
    plan
}

/// From where the pod's UDP and TCP are seen to come at the far end, and whether its pings come from itself. The far end
/// answers no others.
fn seen(bed: &Bed, family: usize, port: u16) -> (String, String, bool) {
    let to = at(FAR[family], port);
    let (server, listener) = (
        bed.far.udp(FAR[family], port),
        bed.far.listen(FAR[family], port),
    );
    bed.pod
        .udp(POD[family], 0)
        .send_to(b"who am I", to)
        .unwrap();
    let udp = hears(&server).ip().to_string();
    let _stream = bed.pod.connect(to).expect("somebody listens");
    let tcp = listener.accept().unwrap().1.ip().to_string();
    (udp, tcp, bed.pod.pings(FAR[family]))
}

/// Rules as kube-proxy and CNIs write them.
fn keeps(masquerade: &'static [&'static str]) {
    in_namespace(move || async move {
        let mut bed = Bed::new(&plan()).await;
        assert!(FAR.iter().all(|ip| bed.pod.pings(ip)));
        bed.far.sh(&format!(
            "nft 'add table inet far; \
             add chain inet far in {{ type filter hook input priority 0; }}; \
             add rule inet far in icmp type echo-request ip saddr != {} drop; \
             add rule inet far in icmpv6 type echo-request ip6 saddr != {} drop'",
            POD[0], POD[1]
        ));
        for line in masquerade {
            run(line);
        }
        for family in [0, 1] {
            let node = NODE[family].to_owned();
            assert_eq!(seen(&bed, family, 7000), (node.clone(), node, false));
        }

        bed.converge(&kept()).await;

        for family in [0, 1] {
            let (node, pod) = (NODE[family].to_owned(), POD[family].to_owned());
            assert_eq!(seen(&bed, family, 7000), (pod.clone(), pod, true));
            let marked = seen(&bed, family, NODE_PORT);
            assert_eq!(marked, (node.clone(), node, true), "kube-proxy's own");
        }

        bed.converge(&plan()).await;

        for family in [0, 1] {
            let node = NODE[family].to_owned();
            assert_eq!(seen(&bed, family, 7000), (node.clone(), node, false));
        }
        let listed = run("nft list table inet farspan");
        assert!(
            !listed.contains("keep_source") && !listed.contains("mesh"),
            "{listed}"
        );
    });
}

#[test]
fn sources_are_kept_past_masquerading_by_nft() {
    keeps(&["nft 'add table inet kube-proxy; \
         add chain inet kube-proxy marking { type filter hook prerouting priority mangle; }; \
         add rule inet kube-proxy marking th dport 7001 meta mark set meta mark or 0x4000; \
         add chain inet kube-proxy post { type nat hook postrouting priority srcnat; }; \
         add rule inet kube-proxy post oifname farspan0 masquerade fully-random'"]);
}

#[test]
fn sources_are_kept_past_masquerading_by_iptables_over_nftables() {
    keeps(&[
        "iptables-nft -t nat -A POSTROUTING -o farspan0 -j MASQUERADE --random-fully",
        "ip6tables-nft -t nat -A POSTROUTING -o farspan0 -j MASQUERADE --random-fully",
        "iptables-nft -t mangle -A PREROUTING -p udp --dport 7001 -j MARK --or-mark 0x4000",
        "iptables-nft -t mangle -A PREROUTING -p tcp --dport 7001 -j MARK --or-mark 0x4000",
        "ip6tables-nft -t mangle -A PREROUTING -p udp --dport 7001 -j MARK --or-mark 0x4000",
        "ip6tables-nft -t mangle -A PREROUTING -p tcp --dport 7001 -j MARK --or-mark 0x4000",
    ]);
}

#[test]
fn sources_are_kept_past_masquerading_by_the_old_iptables() {
    keeps(&[
        "iptables-legacy -t nat -A POSTROUTING -o farspan0 -j MASQUERADE --random-fully",
        "ip6tables-legacy -t nat -A POSTROUTING -o farspan0 -j MASQUERADE --random-fully",
        "iptables-legacy -t mangle -A PREROUTING -p udp --dport 7001 -j MARK --or-mark 0x4000",
        "iptables-legacy -t mangle -A PREROUTING -p tcp --dport 7001 -j MARK --or-mark 0x4000",
        "ip6tables-legacy -t mangle -A PREROUTING -p udp --dport 7001 -j MARK --or-mark 0x4000",
        "ip6tables-legacy -t mangle -A PREROUTING -p tcp --dport 7001 -j MARK --or-mark 0x4000",
    ]);
}

#[test]
fn what_leaves_the_mesh_is_masqueraded_as_before() {
    in_namespace(|| async {
        let mut without = kept();
        without.keep_source.remove(&net("10.201.2.0/24"));
        let bed = Bed::new(&without).await;
        run("iptables-nft -t nat -A POSTROUTING -o farspan0 -j MASQUERADE");
        let server = bed.far.udp(FAR[0], 7000);
        bed.pod
            .udp(POD[0], 0)
            .send_to(b"who", at(FAR[0], 7000))
            .unwrap();
        assert_eq!(hears(&server).ip().to_string(), NODE[0]);
    });
}

#[test]
fn a_new_range_is_an_element_and_leaves_rules_and_connections_alone() {
    in_namespace(|| async {
        let mut bed = Bed::new(&kept()).await;
        let server = bed.far.udp(FAR[0], 7000);
        let client = bed.pod.udp(POD[0], 0);
        client.send_to(b"who", at(FAR[0], 7000)).unwrap();
        hears(&server);
        let rules = || run("nft -a -s list chain inet farspan keep_source");
        let connections = || run("conntrack -L -o id -p udp 2>/dev/null | grep -o ' id=.*'");
        let (rules_before, connections_before) = (rules(), connections());
        assert_eq!(connections_before.lines().count(), 1);

        let requests = bed.host.requests();
        bed.converge(&kept()).await;
        assert_eq!(bed.host.requests(), requests, "nothing to do");
        let mut more = kept();
        more.keep_source.extend([
            net("10.201.3.0/24"),
            net("255.255.255.0/24"),
            net("0.0.0.0/8"),
            net("fd77:8000::/18"),
        ]);
        bed.converge(&more).await;
        assert_eq!(bed.host.requests(), requests + 1, "one step");
        let listed = run("nft list table inet farspan");
        for text in [
            "10.201.1.0-10.201.3.255",
            "255.255.255.0/24",
            "0.0.0.0/8",
            "fd77:8000::/18",
        ] {
            assert!(listed.contains(text), "{text} is missing in\n{listed}");
        }
        bed.converge(&more).await;
        assert_eq!(bed.host.requests(), requests + 1, "and read back as it is");
        bed.converge(&kept()).await;
        assert!(!run("nft list table inet farspan").contains("0.0.0.0/8"));

        assert_eq!(rules(), rules_before);
        assert_eq!(connections(), connections_before);
    });
}

#[test]
fn foreign_changes_to_chain_and_sets_are_repaired() {
    in_namespace(|| async {
        let mut bed = Bed::new(&kept()).await;
        // Chains that were made anew stand last.
        let listed = || {
            let listed = run("nft list table inet farspan");
            let mut lines: Vec<String> = listed.lines().map(str::to_owned).collect();
            lines.sort();
            lines
        };
        let before = listed();
        for damage in [
            "nft delete element inet farspan mesh4 '{ 10.201.1.0-10.201.2.255 }'",
            "nft flush set inet farspan mesh6",
            "nft add element inet farspan mesh4 '{ 192.0.2.0/24 }'",
            "nft flush chain inet farspan keep_source",
            "nft delete table inet farspan",
        ] {
            run(damage);
            bed.converge(&kept()).await;
            assert_eq!(listed(), before, "{damage}");
        }
    });
}
