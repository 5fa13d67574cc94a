//! Paths outside that carry less than IPv6 asks for.

use std::net::UdpSocket;

use host_network::Host;
use mesh_types::consts::{FWMARK, INTERFACE};

use crate::support::{add_device, in_namespace, plan, run};

/// What the kernel would send whole to a destination, bytes, as it tells `ip`; `None`: what the link carries.
fn known(to: &str) -> Option<u16> {
    let told = run(&format!("ip route get {to}"));
    let rest = told.split(" mtu ").nth(1)?;
    rest.split(' ').next()?.trim().parse().ok()
}

#[test]
fn the_kernel_sends_fragments_where_a_path_is_narrow_and_is_told_again_when_it_forgets() {
    in_namespace(|| async {
        add_device();
        run("ip link add wan type veth peer name far && ip link set wan up && ip link set far up");
        run("ip addr add 192.0.2.1/24 dev wan && ip addr add 2001:db8::1/64 dev wan nodad");
        run("ip route add default via 192.0.2.254 && ip -6 route add default via 2001:db8::fe");
        let remotes = ["198.51.100.7", "2001:db8:7::7"];
        let mut host = Host::new(INTERFACE).await.unwrap();
        let mut plan = plan();
        plan.narrow = remotes.map(|ip| (ip.parse().unwrap(), 1290)).into();
        plan.narrow.insert("192.0.2.99".parse().unwrap(), 1500);

        assert_eq!(host.converge(&plan).await.failures, Vec::<String>::new());
        assert_eq!(remotes.map(known), [Some(1290); 2]);
        assert_eq!(known("192.0.2.99"), None, "as the link carries");
        assert_eq!(known("198.51.100.8"), None, "another destination");
        let sent = host.requests();
        host.hold_narrow(FWMARK).unwrap();
        assert_eq!(host.requests(), sent);

        // Not what the device has sent: IPv6 says things of its own.
        let fragments = || -> usize {
            let told = run("nstat -asz IpFragCreates");
            let mut words = told.split_whitespace();
            assert!(words.any(|word| word == "IpFragCreates"), "{told}");
            words.next().unwrap().parse().unwrap()
        };
        run("ip neigh add 192.0.2.254 lladdr 02:00:00:00:00:01 dev wan");
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        let before = fragments();
        socket.send_to(&[0; 1340], ("198.51.100.7", 9)).unwrap();
        assert_eq!(fragments() - before, 2);

        run("ip route flush cache && ip -6 route flush cache");
        assert_eq!(remotes.map(known), [None; 2]);
        host.hold_narrow(FWMARK).unwrap();
        assert_eq!(remotes.map(known), [Some(1290); 2]);

        plan.narrow = remotes.map(|ip| (ip.parse().unwrap(), 1280)).into();
        host.converge(&plan).await;
        assert_eq!(remotes.map(known), [Some(1280); 2]);
        plan.narrow = remotes.map(|ip| (ip.parse().unwrap(), 1300)).into();
        host.converge(&plan).await;
        assert_eq!(
            remotes.map(known),
            [Some(1300); 2],
            "it carries more by now"
        );
        plan.narrow.clear();
        assert_eq!(host.converge(&plan).await.failures, Vec::<String>::new());
        assert_eq!(remotes.map(known), [None; 2]);
        plan.narrow = remotes.map(|ip| (ip.parse().unwrap(), 1290)).into();

        // A destination that cannot be reached for the moment is no failure.
        run("ip link set wan down");
        assert_eq!(host.converge(&plan).await.failures, Vec::<String>::new());
        host.hold_narrow(FWMARK).unwrap();
    });
}
