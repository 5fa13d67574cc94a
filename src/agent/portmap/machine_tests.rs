use mesh_types::report::{Gateway, HostAddress};

use super::*;

const PORT: u16 = 22514;

fn start() -> Instant {
    #[expect(
        clippy::disallowed_methods,
        reason = "tests need some instant to start from"
    )]
    Instant::now()
}

fn host(ip: &str, gateway: &str) -> HostReport {
    let interface = "eth0".to_owned();
    HostReport {
        addresses: vec![HostAddress {
            interface: interface.clone(),
            ip: ip.parse().unwrap(),
            prefix_len: 24,
            stable: true,
        }],
        gateways: vec![Gateway {
            interface,
            ip: gateway.parse().unwrap(),
        }],
        ..HostReport::default()
    }
}

fn home() -> HostReport {
    host("192.168.1.10", "192.168.1.1")
}

fn asked(machine: &mut Machine, now: Instant) -> (u64, MappingProtocol, Uplink, Option<Lease>) {
    match machine.poll_ask(now) {
        Some(Ask::Map {
            question,
            by,
            uplink,
            renew,
        }) => (question, by, uplink, renew),
        other => panic!("not a wish for a port: {other:?}"),
    }
}

fn lease(uplink: Uplink, by: MappingProtocol, seconds: u64) -> Lease {
    Lease {
        uplink,
        by,
        external: "203.0.113.9:22514".parse().unwrap(),
        nonce: None,
        lifetime: Some(Duration::from_secs(seconds)),
    }
}

fn mapped(machine: &mut Machine, seconds: u64, now: Instant) -> Lease {
    let (question, by, uplink, _) = asked(machine, now);
    let lease = lease(uplink, by, seconds);
    machine.handle_mapped(question, Ok(lease), now);
    lease
}

fn held(machine: &mut Machine) -> Option<SocketAddr> {
    match machine.poll_news()? {
        PortMapping::Mapped { external, .. } => Some(external),
        PortMapping::Off | PortMapping::Asking | PortMapping::Unmapped { .. } => None,
    }
}

#[test]
fn protocols_are_asked_one_after_another_until_one_gives_a_port() {
    let (mut machine, now) = (Machine::new(true, None), start());
    assert_eq!(machine.poll_news(), Some(PortMapping::Asking));
    machine.handle_host(&home(), PORT, now);
    let mut order = Vec::new();
    for _ in 0..2 {
        let (question, by, uplink, renew) = asked(&mut machine, now);
        assert_eq!(uplink.local.to_string(), "192.168.1.10");
        assert_eq!((uplink.port, renew), (PORT, None));
        assert_eq!(
            machine.poll_ask(now),
            None,
            "the next one waits for the answer"
        );
        machine.handle_mapped(question, Err("no answer".into()), now);
        order.push(by);
    }
    let lease = mapped(&mut machine, 7200, now);
    order.push(lease.by);
    assert_eq!(order, PROTOCOLS);
    assert_eq!(held(&mut machine), Some(lease.external));
    assert_eq!(machine.poll_ask(now), None);
}

#[test]
fn a_lease_is_renewed_in_time_by_its_own_protocol_first() {
    for (lifetime, after) in [(7200, 600), (120, 60), (10, 20)] {
        let (mut machine, now) = (Machine::new(true, None), start());
        machine.handle_host(&home(), PORT, now);
        let (question, ..) = asked(&mut machine, now);
        machine.handle_mapped(question, Err("no".into()), now);
        let lease = mapped(&mut machine, lifetime, now);
        assert_eq!(lease.by, MappingProtocol::NatPmp);
        let due = now + Duration::from_secs(after.min(lifetime));
        assert_eq!(machine.poll_timeout(), Some(due));
        if lifetime > after {
            let (_, by, _, renew) = asked(&mut machine, due);
            assert_eq!((by, renew), (MappingProtocol::NatPmp, Some(lease)));
        }
    }
}

#[test]
fn a_lease_counts_until_it_expires_whatever_its_renewals_come_to() {
    let (mut machine, mut now) = (Machine::new(true, None), start());
    machine.handle_host(&home(), PORT, now);
    let lease = mapped(&mut machine, 120, now);
    let end = now + Duration::from_secs(120);
    assert_eq!(held(&mut machine), Some(lease.external));
    let mut rounds = 0;
    while now < end {
        now = machine.poll_timeout().unwrap();
        if let Some(Ask::Map { question, .. }) = machine.poll_ask(now) {
            rounds += 1;
            assert_eq!(machine.poll_news(), None, "still announced");
            machine.handle_mapped(question, Err("no answer".into()), now);
            for _ in 0..2 {
                let (question, ..) = asked(&mut machine, now);
                machine.handle_mapped(question, Err("no answer".into()), now);
            }
        }
    }
    assert_eq!(rounds, 3, "at 60, 75 and 105 s");
    assert_eq!(machine.poll_news(), Some(PortMapping::Asking));
    assert_eq!(machine.lease(), None);
}

#[test]
fn a_gateway_that_never_answers_is_asked_ever_more_rarely_and_the_reason_is_told() {
    let (mut machine, mut now) = (Machine::new(true, None), start());
    machine.handle_host(&home(), PORT, now);
    let mut pauses = Vec::new();
    for _ in 0..6 {
        for _ in PROTOCOLS {
            let (question, ..) = asked(&mut machine, now);
            machine.handle_mapped(question, Err("no answer".into()), now);
        }
        let at = machine.poll_timeout().unwrap();
        assert_eq!(machine.poll_ask(now), None);
        pauses.push((at - now).as_secs());
        now = at;
    }
    assert_eq!(pauses, [15, 60, 300, 1800, 1800, 1800]);
    let Some(PortMapping::Unmapped { reason }) = machine.poll_news() else {
        panic!("the failure is told");
    };
    assert_eq!(
        reason,
        "the gateway 192.168.1.1 gave no port (PCP: no answer; NAT-PMP: no answer; UPnP: no answer)"
    );
}

#[test]
fn another_gateway_is_asked_at_once_and_the_old_lease_ends() {
    let (mut machine, now) = (Machine::new(true, None), start());
    machine.handle_host(&home(), PORT, now);
    let old = mapped(&mut machine, 7200, now);
    assert_eq!(held(&mut machine), Some(old.external));
    machine.handle_host(&host("10.0.0.5", "10.0.0.1"), PORT, now);
    assert_eq!(
        machine.poll_news(),
        Some(PortMapping::Asking),
        "no longer announced"
    );
    let (_, _, uplink, renew) = asked(&mut machine, now);
    assert_eq!(
        (uplink.gateway.to_string(), renew),
        ("10.0.0.1".into(), None)
    );
}

#[test]
fn the_same_report_again_changes_nothing() {
    let (mut machine, now) = (Machine::new(true, None), start());
    machine.handle_host(&home(), PORT, now);
    mapped(&mut machine, 7200, now);
    machine.poll_news();
    machine.handle_host(&home(), PORT, now);
    assert_eq!((machine.poll_news(), machine.poll_ask(now)), (None, None));
}

#[test]
fn another_port_of_ours_is_mapped_and_the_first_one_given_back() {
    let (mut machine, now) = (Machine::new(true, None), start());
    machine.handle_host(&home(), PORT, now);
    let old = mapped(&mut machine, 7200, now);
    machine.handle_host(&home(), PORT + 1, now);
    assert_eq!(machine.poll_ask(now), Some(Ask::Unmap(old)));
    assert_eq!(asked(&mut machine, now).2.port, PORT + 1);
}

#[test]
fn an_answer_of_a_gateway_that_was_left_is_given_back() {
    let (mut machine, now) = (Machine::new(true, None), start());
    machine.handle_host(&home(), PORT, now);
    let (question, by, uplink, _) = asked(&mut machine, now);
    machine.handle_host(&host("10.0.0.5", "10.0.0.1"), PORT, now);
    let late = lease(uplink, by, 7200);
    machine.handle_mapped(question, Ok(late), now);
    assert_eq!(held(&mut machine), None);
    assert_eq!(machine.poll_ask(now), Some(Ask::Unmap(late)));
    assert_eq!(asked(&mut machine, now).2.gateway.to_string(), "10.0.0.1");
    machine.handle_mapped(question, Err("no answer".into()), now);
    assert_eq!(
        machine.poll_ask(now),
        None,
        "an old refusal ends no new question"
    );
}

#[test]
fn after_a_restart_the_lease_of_the_earlier_run_is_renewed() {
    let (mut first, now) = (Machine::new(true, None), start());
    first.handle_host(&home(), PORT, now);
    let (question, ..) = asked(&mut first, now);
    first.handle_mapped(question, Err("no answer".into()), now);
    let lease = Lease {
        nonce: Some([1, 2, 3]),
        ..mapped(&mut first, 7200, now)
    };

    let mut second = Machine::new(true, Some(lease));
    second.handle_host(&home(), PORT, now);
    let (_, by, _, renew) = asked(&mut second, now);
    assert_eq!((by, renew), (MappingProtocol::NatPmp, Some(lease)));

    let mut moved = Machine::new(true, Some(lease));
    moved.handle_host(&host("10.0.0.5", "10.0.0.1"), PORT, now);
    let (_, by, _, renew) = asked(&mut moved, now);
    assert_eq!(
        (by, renew),
        (MappingProtocol::Pcp, None),
        "a lease of another network"
    );
}

#[test]
fn a_lease_is_asked_for_again_with_its_nonce_after_the_gateway_was_gone_or_silent() {
    let (mut machine, now) = (Machine::new(true, None), start());
    machine.handle_host(&home(), PORT, now);
    let (question, by, uplink, _) = asked(&mut machine, now);
    let lease = Lease {
        nonce: Some([1, 2, 3]),
        ..lease(uplink, by, 7200)
    };
    machine.handle_mapped(question, Ok(lease), now);

    machine.handle_host(&HostReport::default(), PORT, now);
    assert_eq!((machine.held(), machine.poll_ask(now)), (None, None));
    machine.handle_host(&home(), PORT, now);
    for _ in PROTOCOLS {
        let (question, _, _, renew) = asked(&mut machine, now);
        assert_eq!(renew, Some(lease), "a flap");
        machine.handle_mapped(question, Err("no answer".into()), now);
    }
    let later = machine.poll_timeout().unwrap();
    let (_, by, _, renew) = asked(&mut machine, later);
    assert_eq!((by, renew), (lease.by, Some(lease)), "a failed round");
}

#[test]
fn switched_off_it_gives_back_what_it_holds_and_asks_no_more() {
    let (mut machine, now) = (Machine::new(true, None), start());
    machine.handle_host(&home(), PORT, now);
    let lease = mapped(&mut machine, 7200, now);
    machine.set_on(false, now);
    assert_eq!(machine.poll_news(), Some(PortMapping::Off));
    assert_eq!(machine.poll_ask(now), Some(Ask::Unmap(lease)));
    assert_eq!(machine.poll_ask(now), None);
    assert_eq!(machine.poll_timeout(), None);
    machine.set_on(true, now);
    assert_eq!(machine.poll_news(), Some(PortMapping::Asking));
    assert_eq!(
        asked(&mut machine, now).2.gateway.to_string(),
        "192.168.1.1"
    );
}

#[test]
fn a_host_with_a_public_address_or_without_a_gateway_asks_nobody() {
    for (report, why) in [
        (host("203.0.113.5", "203.0.113.1"), "public"),
        (HostReport::default(), "no IPv4 gateway"),
        (host("2001:db8::5", "fe80::1"), "no IPv4 gateway"),
    ] {
        let (mut machine, now) = (Machine::new(true, None), start());
        machine.handle_host(&report, PORT, now);
        machine.handle_host(&report, PORT, now);
        assert_eq!(
            (machine.poll_ask(now), machine.poll_timeout()),
            (None, None)
        );
        match machine.poll_news() {
            Some(PortMapping::Unmapped { reason }) => assert!(reason.contains(why), "{reason}"),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn of_several_addresses_the_one_in_the_gateway_s_network_is_used() {
    let (mut machine, now) = (Machine::new(true, None), start());
    let mut report = host("10.99.0.7", "192.168.1.1");
    report.addresses.extend(home().addresses);
    machine.handle_host(&report, PORT, now);
    assert_eq!(asked(&mut machine, now).2.local.to_string(), "192.168.1.10");
}

#[test]
fn release_ends_everything_and_tells_what_was_held() {
    let (mut machine, now) = (Machine::new(true, None), start());
    machine.handle_host(&home(), PORT, now);
    let lease = mapped(&mut machine, 7200, now);
    assert_eq!(machine.release(), Some(lease));
    assert_eq!(
        (machine.poll_ask(now), machine.poll_timeout()),
        (None, None)
    );
    let mut remembers = Machine::new(true, Some(lease));
    assert_eq!(remembers.release(), Some(lease));
}
