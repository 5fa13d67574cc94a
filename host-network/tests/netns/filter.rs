//! What peers may send, and what of it arrives.

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::UdpSocket;
use std::time::Duration;

use mesh_types::HostPlan;
use mesh_types::cluster::Allowed;
use nix::time::{ClockId, clock_gettime};

use crate::bed::{Bed, FAR, FAR_NODE, NODE, POD, at, hears, is_silent, pings};
use crate::support::{in_namespace, net, plan, run};

fn allowed(destination: &str, ports: Option<(u16, u16)>) -> Allowed {
    Allowed {
        destination: net(destination),
        ports,
    }
}

/// A plan with these filters.
fn filtered(filters: &[(&str, &[Allowed])]) -> HostPlan {
    let mut plan = plan();
    plan.filters = filters
        .iter()
        .map(|(range, to)| (net(range), to.iter().copied().collect()))
        .collect();
    plan
}

/// Both far pods may go to port 80 to 81 of the pod, and nowhere else.
fn web_only() -> HostPlan {
    filtered(&[
        ("10.201.2.0/24", &[allowed("10.201.1.5/32", Some((80, 81)))]),
        ("fd77:2::/64", &[allowed("fd77:1::/64", Some((80, 81)))]),
    ])
}

/// Sends a datagram from the far end, to the pod or to the node itself, and gives who is to hear it.
fn sent(bed: &Bed, from: &str, to: &str, port: u16) -> UdpSocket {
    let server = if NODE.contains(&to) {
        UdpSocket::bind(at(to, port)).unwrap()
    } else {
        bed.pod.udp(to, port)
    };
    let client = bed.far.udp(from, 0);
    client.send_to(b"hello", at(to, port)).unwrap();
    server
}

/// It arrives.
#[track_caller]
fn arrives(bed: &Bed, from: &str, to: &str, port: u16) {
    hears(&sent(bed, from, to, port));
}

/// It does not.
#[track_caller]
fn is_lost(bed: &Bed, from: &str, to: &str, port: u16) {
    assert!(is_silent(&sent(bed, from, to, port)), "{to} port {port}");
}

#[test]
fn a_filtered_peer_reaches_what_it_may_and_nothing_else_forwarded_or_not() {
    in_namespace(|| async {
        let mut bed = Bed::new(&plan()).await;
        for family in [0, 1] {
            arrives(&bed, FAR[family], POD[family], 79);
            arrives(&bed, FAR[family], NODE[family], 79);
            assert!(bed.far.pings(POD[family]) && bed.far.pings(NODE[family]));
        }

        bed.converge(&web_only()).await;

        for family in [0, 1] {
            let (far, pod, node) = (FAR[family], POD[family], NODE[family]);
            for (port, wanted) in [(79, false), (80, true), (81, true), (82, false)] {
                if wanted {
                    arrives(&bed, far, pod, port);
                } else {
                    is_lost(&bed, far, pod, port);
                }
            }
            is_lost(&bed, far, node, 80);
            let _listener = bed.pod.listen(pod, 80);
            assert!(bed.far.connect(at(pod, 80)).is_some());
            let _listener = bed.pod.listen(pod, 82);
            assert!(bed.far.connects_in_vain(at(pod, 82)));
            assert!(!bed.far.pings(pod) && !bed.far.pings(node));
            arrives(&bed, FAR_NODE[family], node, 79);
        }
    });
}

#[test]
fn everything_is_every_protocol_and_nothing_is_nothing() {
    in_namespace(|| async {
        let mut bed = Bed::new(&plan()).await;
        let everywhere = filtered(&[
            ("10.200.0.0/14", &[allowed("10.201.1.0/24", None)]),
            ("fd77:2::9/128", &[allowed("::/0", None)]),
        ]);
        bed.converge(&everywhere).await;
        for family in [0, 1] {
            assert!(bed.far.pings(POD[family]));
            arrives(&bed, FAR[family], POD[family], 7);
        }
        assert!(!bed.far.pings(NODE[0]) && bed.far.pings(NODE[1]));

        let nowhere = filtered(&[("10.201.2.0/24", &[]), ("fd77:2::/64", &[])]);
        bed.converge(&nowhere).await;

        for family in [0, 1] {
            is_lost(&bed, FAR[family], POD[family], 7);
            is_lost(&bed, FAR[family], NODE[family], 7);
        }
    });
}

#[test]
fn a_filter_cuts_the_peer_s_open_flows_at_once_spares_ours_and_frees_when_it_goes() {
    in_namespace(|| async {
        // As any rule of state or NAT does, kube-proxy's for one.
        run("nft 'add table inet fw; \
             add chain inet fw in { type filter hook input priority 0; }; \
             add rule inet fw in ct state established accept'");
        let mut bed = Bed::new(&plan()).await;
        for family in [0, 1] {
            let (far, pod) = (FAR[family], POD[family]);
            let listener = bed.pod.listen(pod, 5000);
            let mut theirs = bed.far.connect(at(pod, 5000)).unwrap();
            let mut at_pod = listener.accept().unwrap().0;
            let listener = bed.far.listen(far, 5000);
            let mut ours = bed.pod.connect(at(far, 5000)).unwrap();
            let mut at_far = listener.accept().unwrap().0;
            let (far_socket, pod_socket) = (bed.far.udp(far, 6000), bed.pod.udp(pod, 6000));
            let (far_server, pod_client) = (bed.far.udp(far, 6001), bed.pod.udp(pod, 6001));
            far_socket.send_to(b"1", at(pod, 6000)).unwrap();
            pod_socket.send_to(b"2", hears(&pod_socket)).unwrap();
            hears(&far_socket);
            pod_client.send_to(b"1", at(far, 6001)).unwrap();
            hears(&far_server);

            bed.converge(&web_only()).await;

            far_socket.send_to(b"3", at(pod, 6000)).unwrap();
            assert!(is_silent(&pod_socket), "UDP that the peer began");
            far_server.send_to(b"2", at(pod, 6001)).unwrap();
            assert_eq!(hears(&pod_client), at(far, 6001), "UDP that we began");
            theirs.write_all(b"late").unwrap();
            at_pod
                .set_read_timeout(Some(Duration::from_millis(500)))
                .unwrap();
            let mut read = [0; 4];
            at_pod.read(&mut read).expect_err("TCP that the peer began");
            ours.write_all(b"ping").unwrap();
            at_far.read_exact(&mut read).unwrap();
            at_far.write_all(b"pong").unwrap();
            ours.read_exact(&mut read).unwrap();
            assert_eq!(&read, b"pong", "TCP that we began");
            let to = at(far, 5001);
            let _listener = bed.far.listen(far, 5001);
            assert!(bed.pod.connect(to).is_some(), "and begin");

            bed.converge(&plan()).await;

            at_pod
                .set_read_timeout(Some(Duration::from_secs(20)))
                .unwrap();
            at_pod.read_exact(&mut read).unwrap();
            assert_eq!(&read, b"late", "TCP sends again what was dropped");
            far_socket.send_to(b"4", at(pod, 6000)).unwrap();
            hears(&pod_socket);
            let listed = run("nft list table inet farspan");
            assert!(!listed.contains("filter_") && !listed.contains("allowed"));
        }
    });
}

#[test]
fn errors_about_what_we_sent_come_back_to_us_through_a_filter() {
    in_namespace(|| async {
        let bed = Bed::new(&filtered(&[("10.201.2.0/24", &[]), ("fd77:2::/64", &[])])).await;
        for family in [0, 1] {
            let (far, pod) = (FAR[family], POD[family]);
            assert!(bed.pod.pings(far), "the answer to our ping");
            let client = bed.pod.udp(pod, 0);
            client.connect(at(far, 9)).unwrap();
            client
                .set_read_timeout(Some(Duration::from_secs(10)))
                .unwrap();
            client.send(b"anybody?").unwrap();
            let error = client.recv(&mut [0; 8]).unwrap_err();
            assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
        }
        assert!(pings(FAR[0]), "the node's own");
    });
}

#[test]
fn of_ranges_in_each_other_the_longest_prefix_counts_and_only_it() {
    in_namespace(|| async {
        let mut bed = Bed::new(&plan()).await;
        let wide = ("10.200.0.0/14", [allowed("10.201.1.0/24", Some((80, 80)))]);
        let narrow = ("10.201.2.9/32", [allowed("10.201.1.0/24", Some((90, 90)))]);
        let open = ("10.201.2.0/24", [allowed("0.0.0.0/0", None)]);
        for (filters, wanted) in [
            (vec![(wide.0, &wide.1[..])], vec![80]),
            (vec![(wide.0, &wide.1[..]), (narrow.0, &narrow.1)], vec![90]),
            (
                vec![(wide.0, &wide.1[..]), (open.0, &open.1)],
                vec![80, 90, 100],
            ),
            (
                vec![
                    (wide.0, &wide.1[..]),
                    (open.0, &open.1),
                    (narrow.0, &narrow.1),
                ],
                vec![90],
            ),
            (vec![(narrow.0, &narrow.1[..])], vec![90]),
        ] {
            bed.converge(&filtered(&filters)).await;
            for port in [80, 90, 100] {
                if wanted.contains(&port) {
                    arrives(&bed, FAR[0], POD[0], port);
                } else {
                    is_lost(&bed, FAR[0], POD[0], port);
                }
            }
        }
    });
}

#[test]
fn a_change_of_one_filter_is_one_step_and_lets_nothing_slip_meanwhile() {
    in_namespace(|| async {
        let mut bed = Bed::new(&web_only()).await;
        let requests = bed.host.requests();
        bed.converge(&web_only()).await;
        assert_eq!(bed.host.requests(), requests, "nothing to do");
        let rules = run("nft -a -s list chain inet farspan filter_forward");
        let mut changed = web_only();
        let to = [
            allowed("10.201.1.0/25", Some((80, 443))),
            allowed("10.201.1.0/24", Some((400, 500))),
            allowed("10.201.1.0/24", Some((7, 6))),
            allowed("fd77:1::/64", None),
        ];
        changed.filters.insert(net("10.201.2.0/24"), to.into());
        changed.filters.remove(&net("fd77:2::/64"));

        bed.converge(&changed).await;

        assert_eq!(bed.host.requests(), requests + 1);
        assert_eq!(
            run("nft -a -s list chain inet farspan filter_forward"),
            rules
        );
        let listed = run("nft list set inet farspan allowed_ports4");
        for text in [
            "10.201.2.0/24 . 10.201.1.0/25 . 80-500",
            "10.201.2.0/24 . 10.201.1.128/25 . 400-500",
        ] {
            assert!(listed.contains(text), "{text} is missing in\n{listed}");
        }
        bed.converge(&changed).await;
        assert_eq!(bed.host.requests(), requests + 1, "and read back as it is");
        arrives(&bed, FAR[0], POD[0], 443);
        is_lost(&bed, FAR[0], POD[0], 501);
        arrives(&bed, FAR[1], POD[1], 7);
        for damage in [
            "nft flush set inet farspan filtered4",
            "nft flush set inet farspan allowed_ports4",
            "nft flush chain inet farspan filter_input",
            "nft insert rule inet farspan filter_forward accept",
        ] {
            run(damage);
            bed.converge(&changed).await;
            arrives(&bed, FAR[0], POD[0], 443);
            is_lost(&bed, FAR[0], POD[0], 501);
            is_lost(&bed, FAR[0], NODE[0], 443);
        }
    });
}

#[test]
fn a_thousand_filters_of_either_family_are_one_step() {
    in_namespace(|| async {
        let mut bed = Bed::new(&plan()).await;
        let mut many = plan();
        for n in 0..1000_u16 {
            let (a, b) = (n / 250, n % 250);
            for (range, to) in [
                (format!("10.202.{a}.{b}/32"), format!("10.201.1.{b}/32")),
                (format!("fd77:{n:x}::/64"), format!("fd77:1::{n:x}/128")),
            ] {
                let to: BTreeSet<Allowed> = [
                    allowed(&to, Some((n, 2000))),
                    allowed(&to, Some((5000, 5001))),
                ]
                .into();
                many.filters.insert(net(&range), to);
            }
        }
        many.filters
            .extend(web_only().filters.into_iter().chain(filtered(&[]).filters));
        let requests = bed.host.requests();
        let clock = || Duration::from(clock_gettime(ClockId::CLOCK_MONOTONIC).unwrap());
        let start = clock();

        bed.converge(&many).await;

        let written = clock() - start;
        assert_eq!(bed.host.requests(), requests + 1);
        for family in [0, 1] {
            arrives(&bed, FAR[family], POD[family], 80);
            is_lost(&bed, FAR[family], POD[family], 82);
        }
        let start = clock();
        bed.converge(&many).await;
        assert_eq!(bed.host.requests(), requests + 1, "and read back as it is");
        let compared = clock() - start;
        println!("2,002 filters: written in {written:?}, compared in {compared:?}");
        let most = Duration::from_secs(10);
        assert!(written < most && compared < most);
        bed.converge(&plan()).await;
        assert!(!run("nft list table inet farspan").contains("allowed"));
    });
}
