//! What is told of the host, and who else is in our way.

use std::process::Command;

use host_network::{Host, HostError};
use mesh_types::consts::INTERFACE;

use crate::support::{add_device, in_namespace, net, plan, run};

#[test]
fn addresses_routes_and_sysctls_are_reported() {
    in_namespace(|| async {
        run("ip link add eth0 type veth peer name eth1");
        run("ip addr add 192.0.2.1/24 dev eth0");
        run("ip addr add 2001:db8::1/64 dev eth0 nodad");
        run("ip addr add 2001:db8::2/64 dev eth0 nodad preferred_lft 0 valid_lft 1000");
        run("ip link set eth0 up; ip link set eth1 up");
        run("ip addr add 192.0.2.77/24 dev eth1");
        run("ip route add default via 192.0.2.254 dev eth0");
        run("ip route add default via 192.0.2.253 dev eth0 metric 5");
        run("ip route add 10.77.3.0/24 dev eth1");
        run("ip route add 10.201.1.0/24 dev eth1");
        run("echo 1 >/proc/sys/net/ipv4/conf/eth0/rp_filter");
        run("echo 0 >/proc/sys/net/ipv4/ip_forward");
        add_device();
        let mut host = Host::new(INTERFACE).await.unwrap();
        host.converge(&plan()).await;

        let report = host.report().await;

        let of = |ip: &str| {
            report
                .addresses
                .iter()
                .find(|a| a.ip == ip.parse::<std::net::IpAddr>().unwrap())
        };
        assert!(of("192.0.2.1").unwrap().stable);
        assert_eq!(of("192.0.2.1").unwrap().interface, "eth0");
        assert_eq!(of("192.0.2.1").unwrap().prefix_len, 24);
        assert!(of("2001:db8::1").unwrap().stable);
        assert!(!of("2001:db8::2").unwrap().stable, "deprecated");
        assert!(report.default_route_v4 && !report.default_route_v6);
        let gateways: Vec<_> = report
            .gateways
            .iter()
            .map(|gateway| (gateway.interface.as_str(), gateway.ip.to_string()))
            .collect();
        assert_eq!(
            gateways,
            [
                ("eth0", "192.0.2.254".to_owned()),
                ("eth0", "192.0.2.253".to_owned())
            ],
            "the preferred route's first"
        );
        assert!(!report.ipv6_off && !report.forwarding_v4 && !report.forwarding_v6);
        assert_eq!(report.strict_rp_filter, ["eth0"]);
        assert_eq!(
            report.foreign_routes,
            [(net("10.77.3.0/24"), "eth1".to_owned())],
            "a range left to the host by a throw is nobody's fault"
        );
        run("echo 1 >/proc/sys/net/ipv4/conf/eth0/src_valid_mark");
        assert_eq!(host.report().await.strict_rp_filter, Vec::<String>::new());
        run("ip link set eth1 down");
        let report = host.report().await;
        assert!(
            report
                .addresses
                .iter()
                .all(|address| address.interface != "eth1")
        );
    });
}

#[test]
fn chains_that_drop_forwarded_packets_are_named() {
    in_namespace(|| async {
        let mut host = Host::new(INTERFACE).await.unwrap();
        assert_eq!(host.report().await.forward_drop, Vec::<String>::new());
        run("nft add table ip filter");
        run(
            "nft add chain ip filter FORWARD '{ type filter hook forward priority 0; policy drop; }'",
        );
        run("nft add chain ip filter INPUT '{ type filter hook input priority 0; policy drop; }'");
        run("nft add table inet fw");
        run(
            "nft add chain inet fw through '{ type filter hook forward priority 0; policy accept; }'",
        );

        assert_eq!(host.report().await.forward_drop, ["ip filter FORWARD"]);
    });
}

#[test]
fn the_old_iptables_is_asked_too_and_only_where_it_is_in_use() {
    in_namespace(|| async {
        let mut host = Host::new(INTERFACE).await.unwrap();
        host.report().await;
        assert_eq!(
            run("cat /proc/thread-self/net/ip_tables_names"),
            "",
            "asking made no table"
        );
        for (tool, name) in [
            ("iptables-legacy", "iptables-legacy filter FORWARD"),
            ("ip6tables-legacy", "ip6tables-legacy filter FORWARD"),
        ] {
            run(&format!(
                "{tool} -A FORWARD -s ::/0 -j ACCEPT 2>/dev/null || {tool} -A FORWARD -s 192.0.2.1 -j ACCEPT"
            ));
            run(&format!("{tool} -P INPUT DROP"));
            assert_eq!(host.report().await.forward_drop, Vec::<String>::new());
            run(&format!("{tool} -P FORWARD DROP"));
            assert_eq!(host.report().await.forward_drop, [name]);
            run(&format!("{tool} -P FORWARD ACCEPT"));
        }
    });
}

#[test]
fn forward_accept_puts_one_rule_each_way_into_chains_that_drop_and_takes_them_back() {
    in_namespace(|| async {
        run("nft add table ip filter");
        run("nft add chain ip filter DOCKER-USER");
        run(
            "nft add chain ip filter FORWARD '{ type filter hook forward priority 0; policy drop; }'",
        );
        run("nft add rule ip filter FORWARD jump DOCKER-USER");
        run("nft add table inet fw");
        run(
            "nft add chain inet fw through '{ type filter hook forward priority 0; policy drop; }'",
        );
        run("nft add rule inet fw through ct state established accept");
        let before = run("nft list ruleset");
        let mut host = Host::new(INTERFACE).await.unwrap();
        let mut plan = plan();
        plan.mss_clamp = false;
        plan.forward_accept = true;

        assert_eq!(host.converge(&plan).await.failures, Vec::<String>::new());

        let docker = run("nft list chain ip filter DOCKER-USER");
        for text in [
            "iifname \"farspan0\" accept comment \"farspan: forward from farspan0\"",
            "oifname \"farspan0\" accept comment \"farspan: forward to farspan0\"",
        ] {
            assert!(docker.contains(text), "{docker}");
            assert!(run("nft list chain inet fw through").contains(text));
        }
        assert!(!run("nft list chain ip filter FORWARD").contains("farspan"));
        let requests = host.requests();
        host.converge(&plan).await;
        assert_eq!(host.requests(), requests);
        plan.forward_accept = false;
        host.converge(&plan).await;
        assert_eq!(run("nft list ruleset"), before);
    });
}

#[test]
fn foreign_use_of_our_table_or_mark_is_a_clash() {
    in_namespace(|| async {
        let mut host = Host::new(INTERFACE).await.unwrap();
        let fwmark = (0x2000, 0x2000);
        host.converge(&plan()).await;
        assert_eq!(host.clash(fwmark).await, None, "our own rules are none");
        for (add, del, word) in [
            (
                "ip rule add lookup 22512 priority 9",
                "ip rule del priority 9",
                "table 22512",
            ),
            (
                "ip rule add fwmark 0x2000/0xf000 lookup 5 priority 9",
                "ip rule del priority 9",
                "0x2000/0xf000",
            ),
            (
                "ip route add 203.0.113.0/24 dev lo table 22512 proto static",
                "ip route del 203.0.113.0/24 table 22512",
                "203.0.113.0/24",
            ),
        ] {
            run(add);
            let sentence = host.clash(fwmark).await.expect(add);
            assert!(sentence.contains(word), "{sentence}");
            run(del);
        }
        for neighbour in [
            "ip rule add not fwmark 0xca6c lookup 51820 priority 5300",
            "ip rule add fwmark 0x4000/0x4000 lookup 5 priority 100",
            "ip rule add fwmark 0x80000/0xff0000 lookup 52 priority 5210",
        ] {
            run(neighbour);
            assert_eq!(host.clash(fwmark).await, None, "{neighbour}");
        }
    });
}

/// What the child of the next test does.
const CHILD: &str = "FARSPAN_TEST_WITHOUT_PRIVILEGE";

#[test]
fn without_the_privilege_opening_says_so_in_one_sentence() {
    if std::env::var_os(CHILD).is_some() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let error = runtime.block_on(Host::new(INTERFACE)).unwrap_err();
        assert!(matches!(error, HostError::NotPermitted { .. }), "{error}");
        assert_eq!(
            error.to_string(),
            "failed to change the host's network: the kernel refused it for want of CAP_NET_ADMIN; run as root or grant the capability"
        );
        assert!(!host_network::Wireguard::probe());
        return;
    }
    let output = Command::new("setpriv")
        .args(["--bounding-set=-all", "--inh-caps=-all"])
        .arg(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "facts::without_the_privilege_opening_says_so_in_one_sentence",
        ])
        .env(CHILD, "1")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && said.contains("1 passed"),
        "{said}"
    );
}
