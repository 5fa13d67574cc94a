//! Plans become kernel state, stay so, and go without a trace.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use host_network::Host;
use mesh_types::consts::{INTERFACE, MAIN_TABLE, ROUTE_METRIC, SOURCE_RULE_PRIORITY};
use mesh_types::plan::{RouteKind, Rule};
use tokio::time::timeout;

use crate::support::{add_device, everything, in_namespace, net, plan, route, run, sh};

#[test]
fn a_plan_becomes_device_addresses_routes_rules_and_clamp() {
    in_namespace(|| async {
        add_device();
        let mut host = Host::new(INTERFACE).await.unwrap();

        let applied = host.converge(&plan()).await;

        assert_eq!(applied.generation, 7);
        assert_eq!(applied.failures, Vec::<String>::new());
        let link = run("ip -d link show farspan0");
        assert!(link.contains("mtu 1420") && link.contains("UP"), "{link}");
        assert!(link.contains("addrgenmode none"), "{link}");
        let routes = run("ip route show table 22512");
        for line in [
            "10.77.0.2 dev farspan0 proto 201 scope link src 10.77.0.1 metric 100",
            "blackhole 10.77.0.2 proto 201 metric 4096",
            "blackhole 10.77.0.0/16 proto 201 metric 4096",
            "throw 10.201.1.0/24 proto 201 metric 100",
            "10.201.2.0/24 dev farspan0 proto 201 scope link src 10.77.0.1 metric 100 linkdown mtu 1300 advmss 1260",
        ] {
            assert!(routes.contains(line), "{line} is missing in\n{routes}");
        }
        let routes = run("ip -6 route show table 22512");
        for line in [
            "fd77::2 dev farspan0 proto 201 src fd77::1 metric 100",
            "blackhole fd77::2 dev lo proto 201 metric 4096",
            "throw fd77:1::/64 dev lo proto 201 metric 100",
        ] {
            assert!(routes.contains(line), "{line} is missing in\n{routes}");
        }
        for family in ["-4", "-6"] {
            let rules = run(&format!("ip -d {family} rule"));
            assert!(
                rules
                    .contains("5300:\tnot from all fwmark 0x2000/0x2000 lookup 22512 proto kernel"),
                "{rules}"
            );
        }
        let clamp = run("nft list table inet farspan");
        for line in [
            "type filter hook forward priority mangle; policy accept;",
            "iifname \"farspan0\" tcp flags syn tcp option maxseg size set rt mtu",
            "oifname \"farspan0\" tcp flags syn tcp option maxseg size set rt mtu",
        ] {
            assert!(clamp.contains(line), "{line} is missing in\n{clamp}");
        }
        assert_eq!(run("cat /proc/sys/net/ipv4/conf/farspan0/rp_filter"), "2\n");
        assert_eq!(
            run("cat /proc/sys/net/ipv4/conf/farspan0/forwarding"),
            "1\n"
        );
    });
}

#[test]
fn a_node_without_ranges_of_its_own_does_not_forward_from_the_device() {
    in_namespace(|| async {
        add_device();
        run("echo 0 >/proc/sys/net/ipv4/ip_forward");
        let mut host = Host::new(INTERFACE).await.unwrap();
        let mut plan = plan();
        plan.routes.retain(|route| route.kind != RouteKind::Throw);

        assert!(host.converge(&plan).await.failures.is_empty());

        assert_eq!(
            run("cat /proc/sys/net/ipv4/conf/farspan0/forwarding"),
            "0\n"
        );
    });
}

#[test]
fn converging_twice_changes_nothing_the_second_time() {
    in_namespace(|| async {
        add_device();
        let mut host = Host::new(INTERFACE).await.unwrap();
        host.converge(&plan()).await;
        let (requests, state) = (host.requests(), everything());
        assert!(requests > 20);

        let applied = host.converge(&plan()).await;

        assert_eq!(applied.failures, Vec::<String>::new());
        assert_eq!(host.requests(), requests);
        assert_eq!(everything(), state);
        let mut another = Host::new(INTERFACE).await.unwrap();
        another.converge(&plan()).await;
        assert_eq!(another.requests(), 0, "a restart changes nothing either");
    });
}

#[test]
fn every_foreign_change_is_noticed_and_repaired() {
    in_namespace(|| async {
        add_device();
        let mut host = Host::new(INTERFACE).await.unwrap();
        let mut changes = host.changes();
        assert!(host.converge(&plan()).await.failures.is_empty());
        let state = everything_but_handles();

        for damage in [
            "ip addr del 10.77.0.1/32 dev farspan0",
            "ip addr del fd77::1/128 dev farspan0",
            "ip addr add 10.99.0.1/24 dev farspan0",
            "ip route del 10.201.2.0/24 table 22512 metric 100",
            "ip route del blackhole 10.77.0.0/16 table 22512",
            "ip route del throw 10.201.1.0/24 table 22512",
            "ip route change 10.201.2.0/24 dev farspan0 table 22512 proto 201 metric 100",
            "ip route flush table 22512",
            "ip -6 route flush table 22512",
            "ip rule del priority 5300",
            "ip -6 rule del priority 5300",
            "ip rule add not fwmark 0x1/0x1 lookup 22512 priority 5300 protocol kernel",
            "ip link set farspan0 mtu 1300",
            "ip link set farspan0 down",
            "nft flush ruleset",
            "nft flush chain inet farspan mss",
            "nft insert rule inet farspan mss drop",
        ] {
            while changes.try_recv().is_ok() {}
            run(damage);
            assert_ne!(everything_but_handles(), state, "{damage} did nothing");
            let notice = timeout(Duration::from_millis(500), changes.recv()).await;
            assert!(matches!(notice, Ok(Some(_))), "{damage} went unnoticed");

            let applied = host.converge(&plan()).await;

            assert_eq!(applied.failures, Vec::<String>::new(), "{damage}");
            assert_eq!(everything_but_handles(), state, "{damage}");
        }
    });
}

/// Handles and the order of equal things differ after a repair. The kernel makes the route to an own address of IPv6
/// a moment after the address: both lists of routes are read again until they have it.
fn everything_but_handles() -> String {
    let patience = Instant::now() + Duration::from_secs(5);
    let mut state = everything();
    while state.contains("inet6 fd77::1/")
        && state.matches("local fd77::1 dev").count() < 2
        && Instant::now() < patience
    {
        state = everything();
    }
    let mut lines: Vec<String> = state.lines().map(str::to_owned).collect();
    lines.sort();
    lines.join("\n")
}

#[test]
fn an_own_address_is_kept_out_of_the_tunnel_by_a_rule_before_the_meshs() {
    in_namespace(|| async {
        add_device();
        // Where the main table knows no way, the next rule is asked.
        run("ip link add wan type veth peer name isp && ip link set wan up && ip link set isp up");
        run("ip addr add 192.0.2.1/24 dev wan && ip route add default via 192.0.2.254");
        run("ip rule add from 192.0.2.7 lookup main priority 5298");
        let mut host = Host::new(INTERFACE).await.unwrap();
        let mut kept = plan();
        kept.rules.insert(Rule {
            ipv6: false,
            priority: SOURCE_RULE_PRIORITY,
            table: MAIN_TABLE,
            mark: 0,
            mask: 0,
            from: Some("192.0.2.1".parse().unwrap()),
        });
        for _ in 0..2 {
            let applied = host.converge(&kept).await;
            assert_eq!(applied.failures, Vec::<String>::new());
            let rules = run("ip -d rule");
            let ours = "5299:\tfrom 192.0.2.1 ipproto tcp sport 1-32767 lookup main proto kernel";
            assert_eq!(rules.matches(ours).count(), 1, "{rules}");
        }
        let by = |port: u16| {
            let tcp = format!("ipproto tcp sport {port} dport 40000");
            run(&format!(
                "ip route get 10.77.0.2 from 192.0.2.1 {tcp} || true"
            ))
        };
        assert!(!by(6443).contains(INTERFACE), "an answer");
        assert!(by(40_000).contains(INTERFACE), "a call");

        host.converge(&plan()).await;

        let rules = run("ip rule");
        assert!(!rules.contains("5299:"), "{rules}");
        assert!(rules.contains("5298:"), "{rules}");
        assert!(by(6443).contains(INTERFACE), "{}", by(6443));
        host.converge(&kept).await;
        host.remove().await;
        let rules = run("ip rule");
        assert!(
            !rules.contains("5299:") && rules.contains("5298:"),
            "{rules}"
        );
    });
}

#[test]
fn own_changes_are_no_news() {
    in_namespace(|| async {
        add_device();
        let mut host = Host::new(INTERFACE).await.unwrap();
        let mut changes = host.changes();
        host.converge(&plan()).await;
        // The device came up, which is news.
        let _ = timeout(Duration::from_millis(500), changes.recv()).await;
        while changes.try_recv().is_ok() {}
        let mut moved = plan();
        moved
            .routes
            .insert(route("10.77.0.3/32", ROUTE_METRIC, RouteKind::Blackhole));
        moved.rules.clear();
        moved.mss_clamp = false;

        host.converge(&moved).await;

        let notice = timeout(Duration::from_millis(400), changes.recv()).await;
        assert!(notice.is_err(), "{notice:?}");
    });
}

#[test]
fn a_burst_of_changes_is_one_notice() {
    in_namespace(|| async {
        let mut host = Host::new(INTERFACE).await.unwrap();
        let mut changes = host.changes();
        let batch: String = (0..200)
            .map(|n| format!("route add blackhole 10.9.{n}.0/24\n"))
            .collect();
        run(&format!(
            "printf '{}' | ip -batch -",
            batch.replace('\n', "\\n")
        ));
        tokio::task::yield_now().await;

        let first = timeout(Duration::from_secs(1), changes.recv()).await;

        assert!(first.unwrap().unwrap().routes);
        let second = timeout(Duration::from_millis(300), changes.recv()).await;
        assert!(second.is_err(), "{second:?}");
    });
}

#[test]
fn a_flood_of_changes_is_reported_as_an_overrun() {
    in_namespace(|| async {
        let mut host = Host::new(INTERFACE).await.unwrap();
        let mut changes = host.changes();
        // Nothing reads while the kernel writes: this thread is waiting for ip.
        let routes: String = (0..20_000)
            .map(|n| {
                format!(
                    "route add blackhole 10.{}.{}.{}/32\n",
                    1 + n / 62_500,
                    n / 250 % 250,
                    n % 250
                )
            })
            .collect();
        let file = std::env::temp_dir().join(format!("fs-host-{}", std::process::id()));
        std::fs::write(&file, routes).unwrap();
        run(&format!("ip -batch {}", file.display()));
        std::fs::remove_file(&file).unwrap();

        let notice = timeout(Duration::from_secs(2), changes.recv()).await;

        assert!(notice.unwrap().unwrap().overrun);
    });
}

#[test]
fn removing_leaves_the_host_as_it_was() {
    in_namespace(|| async {
        run("ip link add fs-host-v0 type veth peer name fs-host-v1");
        run("ip addr add 192.0.2.1/24 dev fs-host-v0");
        run("ip link set fs-host-v0 up");
        run("ip rule add fwmark 0x1 lookup 77 priority 5300");
        run("ip route add blackhole 203.0.113.0/24 table 22512 proto static");
        run("nft add table inet other");
        run(
            "nft add chain inet other forward '{ type filter hook forward priority 0; policy drop; }'",
        );
        run("nft add rule inet other forward ip saddr 192.0.2.7 accept");
        let before = everything();
        add_device();
        let mut host = Host::new(INTERFACE).await.unwrap();
        let mut plan = plan();
        plan.forward_accept = true;
        plan.mark_input = true;
        plan.keep_source = [net("10.201.0.0/16"), net("fd77::/16")].into();
        plan.filters = [(net("10.201.2.0/24"), BTreeSet::new())].into();
        assert_eq!(host.converge(&plan).await.failures, Vec::<String>::new());
        assert_ne!(everything(), before);

        let gone = host.remove().await.gone;

        assert_eq!(everything(), before);
        assert!(gone.contains(&"device farspan0".to_owned()), "{gone:?}");
        assert_eq!(gone.len(), 5, "{gone:?}");
        let again = host.remove().await;
        assert!(again.gone.is_empty() && again.failures.is_empty());
    });
}

#[test]
fn what_cannot_be_removed_is_told_of_and_the_rest_goes_all_the_same() {
    in_namespace(|| async {
        // A rule of ours in a table that only its owner may change.
        let mut owner = Command::new("nft")
            .arg("-i")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = owner.stdin.take().unwrap();
        writeln!(
            lines,
            "add table inet owned {{ flags owner; }}\n\
             add chain inet owned forward {{ type filter hook forward priority 0; policy drop; }}\n\
             add rule inet owned forward iifname {INTERFACE} accept comment \"farspan: forward from {INTERFACE}\"\n"
        )
        .unwrap();
        let is_there = || run("nft list ruleset").contains("farspan: forward from");
        assert!((0..500).any(|_| is_there()), "the owner has made its table");
        add_device();
        let mut host = Host::new(INTERFACE).await.unwrap();
        host.converge(&plan()).await;
        assert!(everything().contains("table inet farspan"));

        let removed = host.remove().await;

        assert_eq!(removed.failures.len(), 1, "{removed:?}");
        assert!(!everything().contains("table inet farspan"));
        drop(lines);
        owner.wait().unwrap();
    });
}

#[test]
fn removing_spares_a_device_of_our_name_that_is_no_tunnel() {
    in_namespace(|| async {
        run("ip link add farspan0 type bridge");
        let mut host = Host::new(INTERFACE).await.unwrap();

        host.remove().await;

        run("ip link show farspan0");
    });
}

#[test]
fn a_host_without_ipv6_takes_the_ipv4_part_of_the_plan() {
    in_namespace(|| async {
        run("echo 1 >/proc/sys/net/ipv6/conf/all/disable_ipv6");
        run("echo 1 >/proc/sys/net/ipv6/conf/default/disable_ipv6");
        add_device();
        let mut host = Host::new(INTERFACE).await.unwrap();

        let applied = host.converge(&plan()).await;

        assert_eq!(applied.failures, Vec::<String>::new());
        assert!(host.report().await.ipv6_off);
        assert!(run("ip route show table 22512").contains("10.77.0.2 dev farspan0"));
        assert_eq!(run("ip -6 addr show dev farspan0"), "");
        let requests = host.requests();
        host.converge(&plan()).await;
        assert_eq!(host.requests(), requests);
    });
}

#[test]
fn the_blackhole_takes_over_when_the_device_goes_and_gives_way_when_it_is_back() {
    in_namespace(|| async {
        run("ip link add fs-host-v0 type veth peer name fs-host-v1");
        run("ip addr add 192.0.2.1/24 dev fs-host-v0");
        run("ip link set fs-host-v0 up");
        run("ip route add default via 192.0.2.254");
        add_device();
        let mut host = Host::new(INTERFACE).await.unwrap();
        host.converge(&plan()).await;
        for peer in ["10.77.0.2", "10.201.2.9", "fd77:2::9"] {
            assert!(run(&format!("ip route get {peer}")).contains("dev farspan0"));
        }
        assert!(run("ip route get 10.77.0.2 mark 0x2000").contains("fs-host-v0"));

        run("ip link del farspan0");

        for peer in ["10.77.0.2", "10.201.2.9", "10.77.9.9", "fd77:2::9"] {
            assert!(
                !sh(&format!("ip route get {peer}")).status.success(),
                "{peer} leaks"
            );
        }
        assert!(run("ip route get 198.51.100.1").contains("fs-host-v0"));
        let applied = host.converge(&plan()).await;
        assert_eq!(
            applied.failures,
            Vec::<String>::new(),
            "no device is no failure"
        );
        assert!(!sh("ip route get 10.77.0.2").status.success());
        add_device();
        host.converge(&plan()).await;
        assert!(run("ip route get 10.77.0.2").contains("dev farspan0"));
    });
}

#[test]
fn a_new_address_moves_every_route_to_it() {
    in_namespace(|| async {
        add_device();
        let mut host = Host::new(INTERFACE).await.unwrap();
        host.converge(&plan()).await;
        let mut moved = plan();
        moved.device.addresses = [net("10.77.0.9/32"), net("fd77::1/128")].into();
        moved.routes = moved
            .routes
            .into_iter()
            .map(|mut route| {
                if let RouteKind::Unicast {
                    source: Some(source),
                    ..
                } = &mut route.kind
                    && source.is_ipv4()
                {
                    *source = "10.77.0.9".parse().unwrap();
                }
                route
            })
            .collect();

        let applied = host.converge(&moved).await;

        assert_eq!(applied.failures, Vec::<String>::new());
        assert!(!run("ip addr").contains("10.77.0.1/"));
        assert!(run("ip route get 10.201.2.1").contains("src 10.77.0.9"));
        let requests = host.requests();
        host.converge(&moved).await;
        assert_eq!(host.requests(), requests);
    });
}

#[test]
fn what_cannot_be_done_is_one_sentence_and_the_rest_is_done() {
    in_namespace(|| async {
        add_device();
        let mut host = Host::new(INTERFACE).await.unwrap();
        let mut plan = plan();
        let foreign = RouteKind::Unicast {
            source: Some("198.51.100.77".parse().unwrap()),
            mtu: None,
        };
        plan.routes
            .insert(route("10.77.0.5/32", ROUTE_METRIC, foreign));

        let applied = host.converge(&plan).await;

        assert_eq!(applied.failures.len(), 1, "{:?}", applied.failures);
        assert!(
            applied.failures[0].starts_with("failed to add the unicast route to 10.77.0.5/32: ")
        );
        assert!(run("ip route get 10.77.0.2").contains("dev farspan0"));
    });
}

#[test]
fn a_thousand_peers_converge_and_go() {
    in_namespace(|| async {
        add_device();
        let mut host = Host::new(INTERFACE).await.unwrap();
        let mut plan = plan();
        for n in 0..1000 {
            let prefix = format!("10.78.{}.{}/32", n / 250, n % 250);
            let kind = RouteKind::Unicast {
                source: None,
                mtu: None,
            };
            plan.routes.insert(route(&prefix, ROUTE_METRIC, kind));
            plan.routes
                .insert(route(&prefix, 4096, RouteKind::Blackhole));
        }

        assert_eq!(host.converge(&plan).await.failures, Vec::<String>::new());

        assert_eq!(run("ip route show table 22512 | wc -l"), "2007\n");
        let requests = host.requests();
        host.converge(&plan).await;
        assert_eq!(host.requests(), requests);
        host.remove().await;
        assert_eq!(sh("ip route show table 22512").stdout, b"");
    });
}
