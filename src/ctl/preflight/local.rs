//! What a node itself knows and the API server does not.

use std::fs;
use std::path::Path;

use serde::Serialize;

use crate::agent::cni;

/// This machine.
#[derive(Debug, Clone, Serialize)]
pub struct Local {
    /// The CNI file that the container runtime takes, with its first plugin.
    pub cni_file: Option<String>,
    /// The mode that fits to it.
    pub pod_network: String,
    /// The kernel has WireGuard, as far as this can be seen without loading anything.
    pub kernel_wireguard: bool,
    pub tun: bool,
    pub ip_forward: bool,
    pub rp_filter: Option<u8>,
    pub src_valid_mark: bool,
    /// The smallest of the devices that carry a default route.
    pub uplink_mtu: Option<u32>,
}

/// Looks at files only.
pub fn look(cni_folder: &Path) -> Local {
    let found = cni::detect(cni_folder);
    let net = |name: &str| {
        let text = fs::read_to_string(Path::new("/proc/sys/net").join(name)).ok()?;
        text.trim().parse::<u8>().ok()
    };
    Local {
        pod_network: found.mode.kind().to_owned(),
        cni_file: found.file.map(|file| format!("{file} ({})", found.plugin)),
        kernel_wireguard: Path::new("/sys/module/wireguard").exists() || built_as_module(),
        tun: Path::new("/dev/net/tun").exists(),
        ip_forward: net("ipv4/ip_forward") == Some(1),
        rp_filter: net("ipv4/conf/all/rp_filter"),
        src_valid_mark: net("ipv4/conf/all/src_valid_mark") == Some(1),
        uplink_mtu: uplink_mtu(),
    }
}

fn built_as_module() -> bool {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let list = Path::new("/lib/modules")
        .join(release.trim())
        .join("modules.dep");
    fs::read_to_string(list).is_ok_and(|list| list.contains("/wireguard.ko"))
}

fn uplink_mtu() -> Option<u32> {
    let routes = fs::read_to_string("/proc/net/route").ok()?;
    routes
        .lines()
        .skip(1)
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            let device = words.next()?;
            (words.next()? == "00000000").then_some(device)
        })
        .filter_map(|device| {
            let mtu = fs::read_to_string(format!("/sys/class/net/{device}/mtu")).ok()?;
            mtu.trim().parse().ok()
        })
        .min()
}

impl Local {
    /// For people.
    pub fn rows(&self) -> Vec<(&'static str, String)> {
        let yes = |is: bool| if is { "yes" } else { "no" };
        let rp = match self.rp_filter {
            Some(1) => "strict",
            Some(2) => "loose",
            Some(_) => "off",
            None => "unknown",
        };
        let file = self.cni_file.as_deref().unwrap_or("none");
        let mtu = self
            .uplink_mtu
            .map_or_else(|| "unknown".to_owned(), |mtu| mtu.to_string());
        vec![
            ("This node", format!("CNI file {file}; uplink MTU {mtu}")),
            (
                "",
                format!(
                    "WireGuard in the kernel: {}; /dev/net/tun: {}; ip_forward: {}; rp_filter: {rp}; src_valid_mark: {}",
                    yes(self.kernel_wireguard),
                    yes(self.tun),
                    yes(self.ip_forward),
                    yes(self.src_valid_mark)
                ),
            ),
        ]
    }
}
