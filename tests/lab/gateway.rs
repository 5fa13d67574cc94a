//! A real miniupnpd on the router of a site: gives ports by PCP, NAT-PMP and UPnP-IGD.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Stdio};

use super::internet::{Lab, Site};

/// What the gateway speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Speaks {
    /// PCP, NAT-PMP and UPnP.
    Everything,
    /// NAT-PMP and UPnP; PCP stays unanswered.
    NatPmp,
    /// UPnP only.
    Upnp,
}

/// A running miniupnpd. Dropping it ends it; what it has mapped stays in the packet filter.
pub struct Gateway<'a> {
    site: &'a Site,
    config: PathBuf,
    child: Child,
}

impl<'a> Gateway<'a> {
    /// Starts it; leases last `lifetime` seconds at most.
    pub fn start(lab: &Lab, site: &'a Site, speaks: Speaks, lifetime: u32) -> Self {
        site.router.nft(
            "table inet miniupnpd {
 chain forward { type filter hook forward priority 0; policy accept; jump miniupnpd; }
 chain prerouting { type nat hook prerouting priority -100; policy accept; jump prerouting_miniupnpd; }
 chain postrouting { type nat hook postrouting priority 100; policy accept; jump postrouting_miniupnpd; }
 chain miniupnpd { }
 chain prerouting_miniupnpd { }
 chain postrouting_miniupnpd { }
}
",
        );
        if speaks == Speaks::NatPmp {
            // The first byte of a request is the version.
            site.router.nft(
                "table inet no_pcp {
 chain input { type filter hook input priority 0; udp dport 5351 @th,64,8 2 drop; }
}
",
            );
        }
        let config = lab.directory().join(format!("{}.conf", site.router.name()));
        let pmp = if speaks == Speaks::Upnp { "no" } else { "yes" };
        let text = format!(
            "ext_ifname=wan\nlistening_ip=lan\nhttp_port=5000\nenable_natpmp={pmp}\nenable_upnp=yes\nsecure_mode=yes\n\
             min_lifetime=5\nmax_lifetime={lifetime}\nuuid=5f3c9c1e-6d0a-4c5e-9d55-0b1c7d0e9a01\n\
             upnp_table_name=miniupnpd\nupnp_nat_table_name=miniupnpd\nupnp_forward_chain=miniupnpd\n\
             upnp_nat_chain=prerouting_miniupnpd\nupnp_nat_postrouting_chain=postrouting_miniupnpd\n\
             allow 1024-65535 192.168.0.0/16 1024-65535\ndeny 0-65535 0.0.0.0/0 0-65535\n"
        );
        fs::write(&config, text).expect("the lab's directory is writable");
        let child = run(site, &config);
        Self {
            site,
            config,
            child,
        }
    }

    /// Switches the router off and on again: it forgets what it has mapped.
    pub fn reboot(&mut self) {
        self.end();
        self.site.router.nft(
            "flush chain inet miniupnpd miniupnpd
flush chain inet miniupnpd prerouting_miniupnpd
flush chain inet miniupnpd postrouting_miniupnpd
",
        );
        self.child = run(self.site, &self.config);
    }

    /// The mappings, one a line, as rules of the packet filter.
    pub fn mappings(&self) -> Vec<String> {
        mappings(self.site)
    }

    fn end(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The mappings on the router of a site.
pub fn mappings(site: &Site) -> Vec<String> {
    let arguments = ["list", "chain", "inet", "miniupnpd", "prerouting_miniupnpd"];
    let rules = site.router.output("nft", &arguments);
    let of_rules = rules.lines().filter(|line| line.contains("dnat"));
    of_rules.map(|line| line.trim().to_owned()).collect()
}

impl Drop for Gateway<'_> {
    fn drop(&mut self) {
        self.end();
    }
}

fn run(site: &Site, config: &std::path::Path) -> Child {
    let log = File::create(config.with_extension("log")).expect("a log can be made");
    let both = log.try_clone().expect("a file can be opened twice");
    let pid = config.with_extension("pid");
    let mut command = site.router.command("miniupnpd");
    command.arg("-d").arg("-f").arg(config).arg("-P").arg(pid);
    command
        .stdin(Stdio::null())
        .stdout(both)
        .stderr(log)
        .spawn()
        .expect("ip is installed")
}
