//! What `netcheck` and `doctor` tell of the NAT, against routers whose behaviour is known.

use std::time::Duration;

use serde_json::Value;

use crate::lab::wait::wait_until;
use crate::lab::{Nat, NatKind, Node};
use crate::scene::TwoRegions;

/// A lifetime is found by halving, in real time.
const HALVING: Duration = Duration::from_secs(240);

/// A router that forgets a silent flow after so many seconds.
const SHORT: u32 = 8;

fn netcheck(node: &Node) -> Value {
    let output = node.verb(&["netcheck", "-o", "json"], "");
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| {
        panic!("{error}: {}", String::from_utf8_lossy(&output.stderr));
    })
}

#[test]
fn netcheck_tells_hairpin_and_a_short_memory_and_doctor_what_follows() {
    let strict = Nat::new(NatKind::Prc);
    let scene = TwoRegions::joined(strict, strict.hairpin());
    for timeout in [
        "nf_conntrack_udp_timeout",
        "nf_conntrack_udp_timeout_stream",
    ] {
        let path = format!("net/netfilter/{timeout}");
        scene.west.router.sysctl(&path, &SHORT.to_string());
    }
    // Where the host's bridges ask iptables, what a host sends to itself does not leave its port again.
    scene.east.router.enter(|| {
        _ = std::fs::write("/proc/sys/net/bridge/bridge-nf-call-iptables", "0");
    });
    for (node, expected) in [(&scene.paris, "no"), (&scene.tokyo, "yes")] {
        wait_until("netcheck tells hairpin", HALVING, || {
            let told = netcheck(node);
            let why = told["reasons"]["hairpin"].as_str().unwrap_or_default();
            if told["hairpin"] == expected && !why.is_empty() {
                Ok(())
            } else {
                Err(format!("{told:#}"))
            }
        });
    }
    let (told, _) = wait_until("the short memory is measured", HALVING, || {
        let told = netcheck(&scene.paris);
        let memory = &told["mapping_lifetime"];
        let known = memory["at_least_s"].is_f64() && memory["below_s"].is_f64();
        if known {
            Ok(told)
        } else {
            Err(format!("{told:#}"))
        }
    });
    let number = |value: &Value| value.as_f64().expect("a number");
    let memory = &told["mapping_lifetime"];
    let (alive, dead) = (number(&memory["at_least_s"]), number(&memory["below_s"]));
    // Connection tracking counts whole seconds, and is swept by and by.
    let real = f64::from(SHORT);
    assert!(alive <= real + 1.0 && real <= dead, "{told:#}");
    assert!(number(&told["keepalive_s"]) <= real * 2.0 / 3.0, "{told:#}");
    assert_eq!(netcheck(&scene.tokyo)["keepalive_s"], 25.0);

    let table = scene.paris.verb(&["netcheck"], "");
    let table = String::from_utf8_lossy(&table.stdout);
    for part in [
        "NAT hairpin    no: ",
        "NAT memory     a silent flow is remembered for ",
    ] {
        assert!(table.contains(part), "{part}: {table}");
    }
    let doctor = scene.paris.verb(&["doctor", "tokyo"], "");
    let doctor = String::from_utf8_lossy(&doctor.stdout);
    assert!(
        doctor.contains("forgets a flow after less than"),
        "{doctor}"
    );
}
