//! Kernels that know less than this one, and the engine that goes on without: system calls are refused as such kernels
//! refuse them, by a filter on the engine's own threads. Needs root: `cargo test -p data-plane --test fallbacks_netns`.

use std::collections::BTreeMap;

use data_plane::Offload;
use netns::{Lab, Pair, counter};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule,
};

#[expect(dead_code, reason = "the lab serves other tests too")]
mod netns;

/// `ioctl` of a TUN device, and its flags of USO.
const TUNSETOFFLOAD: u64 = 0x4004_54d0;
const TUN_F_USO: u64 = 0x60;

/// Refuses a system call where all these arguments are so, on this thread and those it starts.
fn refuse(call: i64, arguments: &[(u8, SeccompCmpOp, u64)], errno: i32) {
    let conditions = arguments.iter().map(|(number, op, value)| {
        let length = SeccompCmpArgLen::Dword;
        SeccompCondition::new(*number, length, op.clone(), *value).expect("an argument")
    });
    let rule = SeccompRule::new(conditions.collect()).expect("a condition at least");
    let filter = SeccompFilter::new(
        BTreeMap::from([(call, vec![rule])]),
        SeccompAction::Allow,
        SeccompAction::Errno(errno as u32),
        std::env::consts::ARCH.try_into().expect("a known machine"),
    );
    let program: BpfProgram = filter.expect("valid").try_into().expect("short enough");
    seccompiler::apply_filter(&program).expect("any thread may restrict itself");
}

/// Both engines with all offloads, on a kernel that refuses this; everything is carried intact.
fn carried(tag: &'static str, before: impl Fn() + Sync) -> (Lab, Pair) {
    let lab = Lab::new(tag);
    let pair = lab.pair_after(false, Offload::default(), before);
    assert!(lab.transfer("10.0.0.2", 8 << 20), "IPv4");
    assert!(lab.transfer("fd00::2", 8 << 20), "IPv6");
    assert!(lab.ping("b", "-c 20 -s 1300 10.0.0.1"));
    for engine in [&pair.a, &pair.b] {
        assert_eq!(counter(engine, "udp_refused"), 0);
        assert_eq!(engine.failure(), None);
    }
    (lab, pair)
}

/// Packets a system call, in tenths.
fn tenths(pair: &Pair, packets: &str, calls: &str) -> u64 {
    10 * counter(&pair.a, packets) / counter(&pair.a, calls).max(1)
}

#[test]
fn a_tun_without_uso_keeps_tso() {
    let uso = (2, SeccompCmpOp::MaskedEq(TUN_F_USO), TUN_F_USO);
    let (_lab, pair) = carried("nouso", || {
        let offload = (1, SeccompCmpOp::Eq, TUNSETOFFLOAD);
        refuse(libc::SYS_ioctl, &[offload, uso.clone()], libc::EINVAL);
    });
    assert!(tenths(&pair, "tun_packets", "tun_reads") > 40);
}

#[test]
fn a_tun_that_takes_no_offload_at_all_gets_single_packets() {
    for errno in [libc::EINVAL, libc::ENOTTY, libc::EPERM] {
        let (_lab, pair) = carried("nooff", || {
            let offload = (1, SeccompCmpOp::Eq, TUNSETOFFLOAD);
            refuse(libc::SYS_ioctl, &[offload], errno);
        });
        assert_eq!(tenths(&pair, "tun_packets", "tun_reads"), 10);
        assert_eq!(tenths(&pair, "tun_written", "tun_writes"), 10);
        assert_eq!(counter(&pair.b, "tun_merge_off"), 0, "nothing was tried");
    }
}

#[test]
fn super_packets_that_the_tun_refuses_at_run_time_are_no_longer_made() {
    // A header, a packet, and at least one more: what is not merged has two parts.
    let (_lab, pair) = carried("nomerge", || {
        refuse(libc::SYS_writev, &[(2, SeccompCmpOp::Ge, 3)], libc::EINVAL);
    });
    assert_eq!(counter(&pair.b, "tun_merge_off"), 1, "TCP is tried once");
    assert!(counter(&pair.b, "tun_refused") <= 64, "one super-packet");
    let writes = counter(&pair.b, "tun_writes");
    assert_eq!(writes, counter(&pair.b, "tun_written"));
}

#[test]
fn a_kernel_without_udp_segmentation_gets_one_datagram_a_send() {
    let (_lab, pair) = carried("nogso", || {
        let level = (1, SeccompCmpOp::Eq, libc::SOL_UDP as u64);
        let option = (2, SeccompCmpOp::Eq, libc::UDP_SEGMENT as u64);
        refuse(libc::SYS_setsockopt, &[level, option], libc::ENOPROTOOPT);
    });
    assert_eq!(tenths(&pair, "udp_sent", "udp_sends"), 10);
    assert_eq!(counter(&pair.a, "udp_unsegmented"), 0, "nothing was tried");
}

#[test]
fn a_kernel_without_udp_coalescing_gives_one_datagram_at_a_time() {
    let (_lab, pair) = carried("nogro", || {
        let level = (1, SeccompCmpOp::Eq, libc::SOL_UDP as u64);
        let option = (2, SeccompCmpOp::Eq, libc::UDP_GRO as u64);
        refuse(libc::SYS_setsockopt, &[level, option], libc::ENOPROTOOPT);
    });
    assert!(tenths(&pair, "udp_sent", "udp_sends") > 40);
}
