//! Links, segments and the queue.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use sim_net::{
    Direction, Families, HostId, LinkSpec, Network, RouterSpec, Translation, Unreachable,
};

const PORT: u16 = 5000;

#[test]
fn equal_seeds_give_equal_runs_and_others_do_not() {
    let run = |seed| {
        let (mut net, hosts) = pair(seed, rough());
        let start = net.now();
        let arrivals = burst(&mut net, hosts, 500);
        arrivals
            .into_iter()
            .map(|(at, n)| (at - start, n))
            .collect::<Vec<_>>()
    };
    assert_eq!(run(1), run(1));
    assert_ne!(run(1), run(2));
}

#[test]
fn a_clean_link_loses_reorders_and_doubles_nothing() {
    let (mut net, hosts) = pair(1, LinkSpec::UPLINK);
    let numbers: Vec<u16> = burst(&mut net, hosts, 300)
        .iter()
        .map(|(_, n)| *n)
        .collect();
    assert_eq!(numbers, (0..300).collect::<Vec<_>>());
}

#[test]
fn loss_reordering_and_duplication_come_about_as_often_as_asked() {
    let (mut net, hosts) = pair(3, rough());
    let numbers: Vec<u16> = burst(&mut net, hosts, 10_000)
        .iter()
        .map(|(_, n)| *n)
        .collect();
    let mut distinct = numbers.clone();
    distinct.sort_unstable();
    distinct.dedup();
    // Two links of 10 %: 81 % arrive; each copy of the second link counts once more.
    assert!(
        (7_900..8_300).contains(&distinct.len()),
        "{}",
        distinct.len()
    );
    assert!(numbers.len() > distinct.len() + 100, "doubled");
    let late = numbers.windows(2).filter(|w| w[1] < w[0]).count();
    assert!(late > 50, "{late} came late");
}

#[test]
fn latency_of_both_links_adds_up() {
    let (mut net, hosts) = pair(1, LinkSpec::UPLINK);
    let start = net.now();
    let arrivals = burst(&mut net, hosts, 1);
    assert_eq!(arrivals[0].0 - start, Duration::from_millis(20));
}

#[test]
fn a_cut_link_carries_nothing_and_takes_the_hosts_addresses() {
    let (mut net, hosts) = pair(1, LinkSpec::UPLINK);
    let link = net.links(hosts[0])[0];
    net.cut(link);
    assert!(net.addresses(hosts[0]).is_empty());
    let to = SocketAddr::new(net.addresses(hosts[1])[0].ip, PORT);
    let any = SocketAddr::new([0, 0, 0, 0].into(), PORT);
    assert_eq!(net.send(hosts[0], any, to, vec![0], None), Err(Unreachable));
    net.mend(link);
    assert_eq!(burst(&mut net, hosts, 1).len(), 1);
}

#[test]
fn links_count_and_taps_show_what_crosses_them() {
    let (mut net, hosts) = pair(1, LinkSpec::UPLINK);
    let link = net.links(hosts[1])[0];
    net.tap(link);
    burst(&mut net, hosts, 3);
    let counters = net.counters(link, Direction::In);
    assert_eq!((counters.packets, counters.bytes), (3, 3 * (28 + 2)));
    assert_eq!(net.counters(link, Direction::Out).packets, 0);
    assert_eq!(net.tapped(link).len(), 3);
    assert_eq!(net.tapped(link)[2].bytes, [2, 0]);
}

#[test]
fn a_host_without_ipv6_cannot_send_it_and_its_address_is_gone() {
    let (mut net, hosts) = pair(1, LinkSpec::UPLINK);
    let v6 = net.addresses(hosts[1])[1].ip;
    assert!(v6.is_ipv6());
    net.set_ipv6_off(hosts[0], true);
    assert!(net.addresses(hosts[0]).iter().all(|a| a.ip.is_ipv4()));
    let any = SocketAddr::new([0, 0, 0, 0].into(), PORT);
    let sent = net.send(hosts[0], any, SocketAddr::new(v6, PORT), vec![0], None);
    assert_eq!(sent, Err(Unreachable));
}

#[test]
fn neighbours_in_a_lan_meet_without_passing_their_router() {
    let mut net = Network::new(1, sim_net::start());
    let site = net.add_router(RouterSpec {
        parent: net.core(),
        translation: Translation::None,
        inside: "192.168.7.0/24".parse().expect("a range"),
        ipv6: false,
        firewall: None,
        link: LinkSpec::UPLINK,
    });
    let hosts = ["a", "b"].map(|name| {
        let host = net.add_host(name, site.lan, Families::Both, LinkSpec::LAN);
        net.bind(host, PORT);
        host
    });
    let start = net.now();
    let arrivals = burst(&mut net, hosts, 1);
    assert_eq!(arrivals[0].0 - start, Duration::from_micros(400));
    assert_eq!(net.counters(site.uplink, Direction::Out).packets, 0);
}

#[test]
fn a_host_that_moves_gets_other_addresses_and_loses_the_old_ones() {
    let (mut net, hosts) = pair(1, LinkSpec::UPLINK);
    let old: Vec<IpAddr> = net.addresses(hosts[1]).iter().map(|a| a.ip).collect();
    net.readdress_host(hosts[1]);
    let new: Vec<IpAddr> = net.addresses(hosts[1]).iter().map(|a| a.ip).collect();
    assert!(old.iter().all(|ip| !new.contains(ip)));
    assert_eq!(burst(&mut net, hosts, 2).len(), 2);
}

fn rough() -> LinkSpec {
    LinkSpec {
        jitter: Duration::from_millis(2),
        loss: 100_000,
        reordered: 50_000,
        duplicated: 20_000,
        ..LinkSpec::UPLINK
    }
}

fn pair(seed: u64, link: LinkSpec) -> (Network, [HostId; 2]) {
    let mut net = Network::new(seed, sim_net::start());
    let core = net.core();
    let hosts = ["a", "b"].map(|name| {
        let host = net.add_host(name, core, Families::Both, link);
        net.bind(host, PORT);
        host
    });
    (net, hosts)
}

/// Sends numbered packets 1 ms apart; returns those that arrive.
fn burst(net: &mut Network, hosts: [HostId; 2], count: u16) -> Vec<(std::time::Instant, u16)> {
    let start = net.now();
    let mut arrivals = Vec::new();
    for number in 0..=count {
        let until = if number == count {
            Duration::from_secs(60)
        } else {
            Duration::from_millis(number.into())
        };
        while net.advance_to(start + until) < start + until
            || net.next_event_at() == Some(net.now())
        {
            while let Some(d) = net.poll() {
                arrivals.push((d.at, u16::from_le_bytes([d.bytes[0], d.bytes[1]])));
            }
        }
        if number < count {
            let to = SocketAddr::new(net.addresses(hosts[1])[0].ip, PORT);
            let any = SocketAddr::new([0, 0, 0, 0].into(), PORT);
            net.send(hosts[0], any, to, number.to_le_bytes().to_vec(), None)
                .expect("has an address");
        }
    }
    arrivals
}
