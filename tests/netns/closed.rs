//! Nothing leaves in clear, whatever happens to the agents, their keys and the links.

use std::net::IpAddr;
use std::time::Duration;

use crate::lab::internet::LinkState;
use crate::lab::tap::Tap;
use crate::lab::traffic::{Echo, MARKER, MarkedStream, Pings};
use crate::lab::wait::wait_until;
use crate::lab::{Nat, NatKind};
use crate::scene::TwoRegions;

const PATIENCE: Duration = Duration::from_secs(30);

#[test]
fn a_marker_never_appears_on_an_underlay_link_through_kill_rotation_link_cut_and_down() {
    let mut scene =
        TwoRegions::connected(Nat::new(NatKind::Prc).ipv6(), Nat::new(NatKind::Prc).ipv6());
    let (from, to) = (scene.paris.pod().clone(), scene.tokyo.pod().clone());
    // Every underlay link has an end in one of these namespaces.
    let underlay = [scene.lab.internet(), &scene.west.router, &scene.east.router]
        .map(|place| Tap::start(place, MARKER));
    let inside = Tap::start(&to.namespace, MARKER);
    let echo = Echo::start(&to.namespace);
    let streams = [IpAddr::V4(to.ipv4), IpAddr::V6(to.ipv6)]
        .map(|server| MarkedStream::start(&from.namespace, server));
    let pings = [IpAddr::V4(to.ipv4), IpAddr::V6(to.ipv6)].map(|target| {
        Pings::start(
            &from.namespace,
            target,
            1_000_000,
            Duration::from_millis(20),
        )
    });
    let closed = |what: &str| {
        for tap in &underlay {
            assert_eq!(
                tap.hits(),
                0,
                "{what}, the marker was in clear on a link of {}",
                tap.name()
            );
        }
    };
    let flows = |what: &str| {
        let before = streams.each_ref().map(MarkedStream::answered);
        wait_until(what, PATIENCE, || {
            let now = streams.each_ref().map(MarkedStream::answered);
            if now
                .iter()
                .zip(before)
                .all(|(now, before)| *now > before + 10)
            {
                Ok(())
            } else {
                Err(format!("{now:?}"))
            }
        });
    };

    flows("packets of both families are answered");
    closed("when connected");
    scene.paris.kill();
    scene.paris.up();
    flows("they are answered again after kill -9 and restart");
    closed("after kill -9 of the sender");
    scene.tokyo.kill();
    scene.tokyo.up();
    flows("they are answered again after kill -9 of the other side");
    closed("after kill -9 of the receiver");
    scene.paris.ok(&["key", "rotate"]);
    flows("they are answered again after key rotate");
    closed("after key rotate");
    scene
        .lab
        .set_uplink(scene.west.public_address(), LinkState::Cut);
    wait_until("the path is noticed as dead", PATIENCE * 2, || {
        let peer = scene.paris.peer("tokyo")?;
        if peer["state"] == "direct" {
            Err(peer.to_string())
        } else {
            Ok(())
        }
    });
    scene
        .lab
        .set_uplink(scene.west.public_address(), LinkState::Whole);
    flows("they are answered again after the link was cut");
    closed("after a link cut");
    // A machine that left the mesh sends what its own pods still have to say by its ordinary routes, as before
    // it joined: those that stay are asked here. So the pod that leaves has said everything first.
    drop(echo);
    wait_until("the pod's connections are closed", PATIENCE, || {
        let open = to.namespace.output(
            "ss",
            &["-Htn", "state", "connected", "exclude", "time-wait"],
        );
        if open.trim().is_empty() {
            Ok(())
        } else {
            Err(open)
        }
    });
    scene.tokyo.ok(&["down"]);
    wait_until("the path is noticed as dead", PATIENCE * 2, || {
        let peer = scene.paris.peer("tokyo")?;
        if peer["state"] == "direct" {
            Err(peer.to_string())
        } else {
            Ok(())
        }
    });

    drop(streams);
    for pings in pings {
        pings.stop();
    }
    closed("after down of the receiver");
    for tap in &underlay {
        assert!(
            tap.frames() > 100,
            "the tap in {} saw {} frames only",
            tap.name(),
            tap.frames()
        );
    }
    assert!(
        inside.hits() > 100,
        "the marker reached the pod {} times only",
        inside.hits()
    );
}
