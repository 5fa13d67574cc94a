//! The internet of a lab: a router namespace, public hosts, and sites behind NAT routers.

use std::cell::Cell;
use std::fs;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use super::nat::{self, Nat};
use super::netns::Namespace;

/// Labs made by this process.
static LABS: AtomicU32 = AtomicU32::new(0);

/// The internet is so many routers wide, though only one stands there: what is meant to end on the way does.
const WIDTH: u8 = 8;

/// One isolated internet. Dropping it removes everything it made.
pub struct Lab {
    prefix: String,
    directory: PathBuf,
    internet: Namespace,
    attachments: Cell<u8>,
}

/// A machine with one uplink, `eth0`.
#[derive(Clone, Debug)]
pub struct Host {
    /// Where it runs.
    pub namespace: Namespace,
    /// Its name, unique in the lab.
    pub name: String,
    /// Its IPv4 address on `eth0`.
    pub ipv4: Ipv4Addr,
    /// Its IPv6 address on `eth0`.
    pub ipv6: Option<Ipv6Addr>,
}

/// A NAT router and the LAN behind it.
pub struct Site {
    /// The router of the site; its interfaces are `wan` and `lan`.
    pub router: Namespace,
    /// The provider's NAT in front of the router.
    pub carrier: Option<Namespace>,
    nat: Nat,
    number: u8,
    generation: Cell<u8>,
    hosts: Cell<u8>,
    prefix: String,
}

impl Lab {
    /// Makes an empty internet. Fails unless run as root.
    pub fn new() -> Self {
        assert!(
            nix::unistd::geteuid().is_root(),
            "network namespaces need root: run as root or through sudo"
        );
        let prefix = format!(
            "fs-{}-{}",
            std::process::id(),
            LABS.fetch_add(1, Ordering::Relaxed)
        );
        let directory = std::env::temp_dir().join(&prefix);
        fs::create_dir_all(&directory).expect("the temporary directory is writable");
        let internet = Namespace::create(format!("{prefix}-internet"));
        forwarding(&internet);
        internet.nft(&format!(
            "table inet distance {{ chain f {{ type filter hook forward priority -20; ip ttl < {WIDTH} drop\n ip6 hoplimit < {WIDTH} drop\n }}\n }}\n"
        ));
        Self {
            prefix,
            directory,
            internet,
            attachments: Cell::new(0),
        }
    }

    /// Where nodes of this lab keep their files.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The router in the middle: every packet between two attachments crosses it.
    pub fn internet(&self) -> &Namespace {
        &self.internet
    }

    /// A namespace of this lab without any link.
    pub fn namespace(&self, name: &str) -> Namespace {
        Namespace::create(format!("{}-{name}", self.prefix))
    }

    /// A machine with public addresses of both families.
    pub fn public_host(&self, name: &str) -> Host {
        let namespace = self.namespace(name);
        let number = self.attach(&namespace, "eth0");
        Host {
            namespace,
            name: name.to_owned(),
            ipv4: public(number, 0, 2),
            ipv6: Some(public6(number, 2)),
        }
    }

    /// A second public IPv4 address of a public host: an RFC 5780 server needs two.
    pub fn second_address(&self, host: &Host) -> Ipv4Addr {
        let number = host.ipv4.octets()[2];
        let (near, far) = (public(number, 1, 1), public(number, 1, 2));
        self.internet
            .ip(&format!("addr add {near}/24 dev w{number}"));
        host.namespace.ip(&format!("addr add {far}/24 dev eth0"));
        far
    }

    /// A NAT router with an empty LAN behind it.
    pub fn site(&self, name: &str, nat: Nat) -> Site {
        let router = self.namespace(&format!("{name}-router"));
        forwarding(&router);
        router.ip("link add lan type bridge\nlink set lan up");
        let (number, carrier) = match nat.carrier {
            None => (self.attach(&router, "wan"), None),
            Some(kind) => {
                let carrier = self.namespace(&format!("{name}-carrier"));
                forwarding(&carrier);
                let number = self.attach(&carrier, "wan");
                let (near, far) = (carrier_lan(number, 1), carrier_lan(number, 2));
                let inner = router.name();
                carrier.ip(&format!("link add lan type veth peer name wan netns {inner}\nlink set lan up\naddr add {near}/24 dev lan"));
                router.ip(&format!(
                    "link set wan up\naddr add {far}/24 dev wan\nroute add default via {near}"
                ));
                if nat.ipv6 {
                    carrier.ip(&format!(
                        "addr add 2a0c:3:{number}::1/64 dev lan nodad\nroute add 2a0c:2:{number}::/64 via 2a0c:3:{number}::2"
                    ));
                    router.ip(&format!(
                        "addr add 2a0c:3:{number}::2/64 dev wan nodad\nroute add default via 2a0c:3:{number}::1"
                    ));
                }
                carrier.nft(&nat::rules(Nat::new(kind), public(number, 0, 2), far));
                (number, Some(carrier))
            }
        };
        router.ip(&format!("addr add 192.168.{number}.1/24 dev lan"));
        if nat.ipv6 {
            router.ip(&format!("addr add 2a0c:2:{number}::1/64 dev lan nodad"));
            self.internet.ip(&format!(
                "route add 2a0c:2:{number}::/64 via {}",
                public6(number, 2)
            ));
        }
        let site = Site {
            router,
            carrier,
            nat,
            number,
            generation: Cell::new(0),
            hosts: Cell::new(0),
            prefix: self.prefix.clone(),
        };
        site.router.nft(&site.rules());
        site
    }

    /// Gives a site without a carrier another public IPv4 address; the router forgets all mappings.
    pub fn renumber(&self, site: &Site) {
        assert!(
            site.carrier.is_none(),
            "the address of a carrier's NAT is the carrier's"
        );
        let (number, old) = (site.number, site.generation.get());
        let new = old + 1;
        site.generation.set(new);
        self.internet.ip(&format!(
            "addr del {}/24 dev w{number}\naddr add {}/24 dev w{number}",
            public(number, old, 1),
            public(number, new, 1)
        ));
        site.router.ip(&format!(
            "addr del {}/24 dev wan\naddr add {}/24 dev wan\nroute replace default via {}",
            public(number, old, 2),
            public(number, new, 2),
            public(number, new, 1)
        ));
        site.router.nft(&format!("flush ruleset\n{}", site.rules()));
        site.router.output("conntrack", &["-F"]);
    }

    /// Bytes that crossed the uplink of a public host or a site, both ways.
    pub fn uplink_bytes(&self, address: Ipv4Addr) -> u64 {
        let directory = format!("/sys/class/net/w{}/statistics", address.octets()[2]);
        let read = |file: &str| {
            let text = self
                .internet
                .output("cat", &[&format!("{directory}/{file}")]);
            text.trim()
                .parse::<u64>()
                .expect("an interface counter is a number")
        };
        read("rx_bytes") + read("tx_bytes")
    }

    /// Takes the link of a public host or a site down or up again, on the internet's side.
    pub fn set_uplink(&self, address: Ipv4Addr, state: LinkState) {
        let number = address.octets()[2];
        match state {
            LinkState::Cut => self.internet.nft(&format!(
                "table inet cut{number} {{ chain f {{ type filter hook forward priority 0; iifname w{number} drop\n oifname w{number} drop\n }}\n }}\n"
            )),
            LinkState::Whole => self.internet.nft(&format!("delete table inet cut{number}\n")),
        }
    }

    /// Lets nothing pass between two public hosts or sites, or lets it pass again; others reach both all the time.
    pub fn set_between(&self, a: Ipv4Addr, b: Ipv4Addr, state: LinkState) {
        let (a, b) = (a.octets()[2], b.octets()[2]);
        match state {
            LinkState::Cut => self.internet.nft(&format!(
                "table inet between{a}and{b} {{ chain f {{ type filter hook forward priority 0; iifname w{a} oifname w{b} drop\n \
                 iifname w{b} oifname w{a} drop\n }}\n }}\n"
            )),
            LinkState::Whole => self
                .internet
                .nft(&format!("delete table inet between{a}and{b}\n")),
        }
    }

    fn attach(&self, namespace: &Namespace, interface: &str) -> u8 {
        let number = self.attachments.get() + 1;
        self.attachments.set(number);
        let (near, far) = (public(number, 0, 1), public(number, 0, 2));
        let (near6, far6) = (public6(number, 1), public6(number, 2));
        let name = namespace.name();
        self.internet.ip(&format!(
            "link add w{number} type veth peer name {interface} netns {name}\nlink set w{number} up\n\
             addr add {near}/24 dev w{number}\naddr add {near6}/64 dev w{number} nodad"
        ));
        namespace.ip(&format!(
            "link set {interface} up\naddr add {far}/24 dev {interface}\naddr add {far6}/64 dev {interface} nodad\n\
             route add default via {near}\nroute add default via {near6}"
        ));
        number
    }
}

/// Whether a link passes packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkState {
    /// Every packet is lost, silently.
    Cut,
    /// As made.
    Whole,
}

impl Drop for Lab {
    fn drop(&mut self) {
        let listed = fs::read_dir("/run/netns").into_iter().flatten().flatten();
        let own = format!("{}-", self.prefix);
        for name in listed
            .filter_map(|entry| entry.file_name().into_string().ok())
            .filter(|name| name.starts_with(&own))
        {
            if let Ok(output) = Command::new("ip").args(["netns", "pids", &name]).output() {
                for pid in String::from_utf8_lossy(&output.stdout).split_whitespace() {
                    let _ = Command::new("kill").args(["-9", pid]).status();
                }
            }
            let _ = Command::new("ip").args(["netns", "del", &name]).status();
        }
        if thread::panicking() {
            eprintln!(
                "files of the nodes are kept in {}",
                self.directory.display()
            );
        } else {
            let _ = fs::remove_dir_all(&self.directory);
        }
    }
}

impl Site {
    /// The address strangers see: the router's, or its carrier's.
    pub fn public_address(&self) -> Ipv4Addr {
        public(self.number, self.generation.get(), 2)
    }

    /// A machine in the LAN.
    pub fn host(&self, name: &str) -> Host {
        let namespace = Namespace::create(format!("{}-{name}", self.prefix));
        let mut host = Host {
            namespace,
            name: name.to_owned(),
            ipv4: Ipv4Addr::UNSPECIFIED,
            ipv6: None,
        };
        self.plug(&mut host);
        host
    }

    /// Connects a machine without an uplink to this LAN.
    pub fn plug(&self, host: &mut Host) {
        let index = self.hosts.get() + 1;
        self.hosts.set(index);
        host.ipv4 = self.lan(9 + index);
        let (router, inside, number) = (&self.router, host.namespace.name(), self.number);
        router.ip(&format!(
            "link add p{index} type veth peer name eth0 netns {inside}\nlink set p{index} master lan\nlink set p{index} up"
        ));
        host.namespace.ip(&format!(
            "link set eth0 up\naddr add {}/24 dev eth0\nroute add default via {}",
            host.ipv4,
            self.lan(1)
        ));
        host.ipv6 = None;
        if self.nat.ipv6 {
            let address = Ipv6Addr::new(
                0x2a0c,
                2,
                hex_digits(number),
                0,
                0,
                0,
                0,
                u16::from(9 + index),
            );
            host.namespace.ip(&format!(
                "addr add {address}/64 dev eth0 nodad\nroute add default via 2a0c:2:{number}::1"
            ));
            host.ipv6 = Some(address);
        }
    }

    /// The router, and its carrier, forget every mapping.
    pub fn forget_mappings(&self) {
        // What is learned goes first: it would let a packet in before one has gone out.
        let learned = nat::learned(self.nat).into_iter();
        let flush: String = learned
            .map(|what| format!("flush {}\n", what.object()))
            .collect();
        if !flush.is_empty() {
            self.router.nft(&flush);
        }
        for router in std::iter::once(&self.router).chain(&self.carrier) {
            router.output("conntrack", &["-F"]);
        }
    }

    /// Lets no UDP through any more, as many an office does, or lets it through again.
    pub fn set_udp(&self, state: LinkState) {
        match state {
            LinkState::Cut => self.router.nft(
                "table inet no_udp { chain f { type filter hook forward priority -10; meta l4proto udp drop\n }\n }\n",
            ),
            LinkState::Whole => self.router.nft("delete table inet no_udp\n"),
        }
    }

    fn lan(&self, host: u8) -> Ipv4Addr {
        Ipv4Addr::new(192, 168, self.number, host)
    }

    fn rules(&self) -> String {
        let wan = if self.carrier.is_some() {
            carrier_lan(self.number, 2)
        } else {
            self.public_address()
        };
        nat::rules(self.nat, wan, self.lan(10))
    }
}

impl Host {
    /// Takes the uplink away, as pulling the cable does.
    pub fn unplug(&self) {
        self.namespace.ip("link del eth0");
    }
}

fn forwarding(namespace: &Namespace) {
    namespace.sysctl("net/ipv4/ip_forward", "1");
    namespace.sysctl("net/ipv6/conf/all/forwarding", "1");
}

fn public(number: u8, generation: u8, host: u8) -> Ipv4Addr {
    Ipv4Addr::new(185, 1 + generation, number, host)
}

fn public6(number: u8, host: u8) -> Ipv6Addr {
    Ipv6Addr::new(0x2a0c, 1, hex_digits(number), 0, 0, 0, 0, u16::from(host))
}

fn carrier_lan(number: u8, host: u8) -> Ipv4Addr {
    Ipv4Addr::new(100, 64, number, host)
}

/// The group that prints as the decimal digits of `number`.
fn hex_digits(number: u8) -> u16 {
    u16::from_str_radix(&number.to_string(), 16).expect("decimal digits are hexadecimal ones")
}
