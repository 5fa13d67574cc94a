//! Where packets of pods and of the host go between our table and the main one.

use mesh_types::consts::INTERFACE;

use crate::bed::{Bed, FAR, POD, pings};
use crate::support::{in_namespace, plan, run, sh};

#[test]
fn own_pods_are_reached_while_the_cluster_s_range_around_theirs_is_dropped() {
    in_namespace(|| async {
        let mut bed = Bed::new(&plan()).await;
        // What a node with a default route would leak.
        run("ip link add wan type veth peer name isp && ip link set wan up && ip link set isp up");
        run("ip addr add 192.0.2.1/24 dev wan && ip addr add 2001:db8::1/64 dev wan nodad");
        run("ip route add default via 192.0.2.254 && ip route add default via 2001:db8::fe");
        let (others, own) = (["10.201.7.7", "fd77:7::7"], POD);
        for (other, pod) in others.into_iter().zip(own) {
            assert!(run(&format!("ip route get {pod}")).contains("dev pod0"));
            assert!(!sh(&format!("ip route get {other}")).status.success());
            assert!(pings(pod), "the host reaches its pod");
            assert!(bed.far.pings(pod), "a peer reaches it through the host");
            assert!(!bed.pod.pings(other), "nobody carries that");
        }
        assert!(FAR.into_iter().all(|ip| bed.pod.pings(ip)));

        // As it was before the tunnel was there, and after it is gone.
        run(&format!("ip link del {INTERFACE}"));
        bed.converge(&plan()).await;

        for (far, pod) in FAR.into_iter().zip(own) {
            assert!(pings(pod));
            assert!(!sh(&format!("ip route get {far}")).status.success());
        }
    });
}
