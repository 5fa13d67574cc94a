//! The CNI configuration: which network a node has already, and in mode own the one file that makes farspan its network.
//!
//! The container runtime takes the first file of the folder by name. Files of others are read and never touched.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use mesh_types::IpNet;
use mesh_types::cluster::PodNetwork;
use overlay::{CniPlan, Finding, Severity};
use serde_json::{Value, json};
use tracing::info;

use crate::config::sentence;

/// Our file.
pub const FILE: &str = "10-farspan.conflist";
/// What it names: the interface, its addresses, hostPort.
const PLUGINS: [&str; 3] = ["ptp", "host-local", "portmap"];
/// Leases end with the boot, as pods do.
const LEASES: &str = "/run/cni-ipam-state";

/// What a node's CNI folder says about its pods' network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// The mode that fits.
    pub mode: PodNetwork,
    /// The file that says so.
    pub file: Option<String>,
    /// Its first plugin, and who hands out addresses.
    pub plugin: String,
}

/// Reads the folder. Nothing there: farspan may be the network.
pub fn detect(folder: &Path) -> Found {
    let foreign = configurations(folder)
        .into_iter()
        .filter(|name| name != FILE);
    for name in foreign {
        // The runtime skips what it cannot read, too.
        let Some((plugin, ipam)) = first_plugin(&folder.join(&name)) else {
            continue;
        };
        let follows = matches!(plugin.as_str(), "flannel" | "kindnet")
            || matches!(ipam.as_str(), "host-local");
        return Found {
            mode: if follows {
                PodNetwork::Existing
            } else {
                PodNetwork::Nodes
            },
            file: Some(name),
            plugin: if ipam.is_empty() {
                plugin
            } else {
                format!("{plugin} with {ipam}")
            },
        };
    }
    Found {
        mode: PodNetwork::Own,
        file: None,
        plugin: String::new(),
    }
}

/// Why `existing` cannot be, where the addresses of the network that is there ignore podCIDRs for certain.
pub fn unfit(found: &Found) -> Option<String> {
    let Found { file, plugin, .. } = found;
    let file = file.as_ref().filter(|_| plugin.ends_with("calico-ipam"))?;
    Some(format!(
        "pod network mode existing needs addresses out of each Node's podCIDRs, and {file} hands them out by {plugin}, which ignores those; use --pod-network nodes"
    ))
}

/// Names of configuration files, in the order in which the runtime looks at them.
fn configurations(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| {
            let extension = Path::new(name).extension().and_then(|text| text.to_str());
            matches!(extension, Some("conf" | "conflist" | "json"))
        })
        .collect();
    names.sort();
    names
}

fn first_plugin(path: &Path) -> Option<(String, String)> {
    let text = fs::read_to_string(path).ok()?;
    let json: Value = serde_json::from_str(&text).ok()?;
    let plugin = json["plugins"].get(0).unwrap_or(&json);
    let kind = plugin["type"].as_str()?.to_owned();
    let ipam = plugin["ipam"]["type"].as_str().unwrap_or_default();
    Some((kind, ipam.to_owned()))
}

/// Keeps our file as it should be.
#[derive(Debug)]
pub struct Cni {
    conf_dir: PathBuf,
    bin_dir: PathBuf,
    /// The mode was not asked for: a network that comes later goes before ours.
    auto: bool,
    written: bool,
    findings: Vec<Finding>,
}

impl Cni {
    /// Nothing is written yet.
    pub fn new(conf_dir: &Path, bin_dir: &Path, auto: bool) -> Self {
        Self {
            conf_dir: conf_dir.to_path_buf(),
            bin_dir: bin_dir.to_path_buf(),
            auto,
            written: false,
            findings: Vec::new(),
        }
    }

    /// Does the file stand as it should, with everything that it names?
    pub fn ready(&self) -> bool {
        self.written
    }

    /// What is in the way.
    pub fn findings(&self) -> &[Finding] {
        &self.findings
    }

    /// Makes the file so. Without a plan what is there stays: pods go on.
    pub fn converge(&mut self, plan: Option<&CniPlan>) {
        self.findings.clear();
        let Some(plan) = plan else { return };
        self.written = false;
        let names = configurations(&self.conf_dir);
        let foreign: Vec<&String> = names.iter().filter(|name| *name != FILE).collect();
        if let Some(name) = foreign.first().filter(|_| self.auto) {
            let ours = match names.iter().find(|name| *name == FILE) {
                Some(_) if FILE < name.as_str() => {
                    format!(
                        "beside {FILE}, which comes first, so pods still get farspan's addresses"
                    )
                }
                Some(_) => format!("and goes before {FILE}, so new pods are that network's"),
                None => format!("so {FILE} is not written"),
            };
            let message = format!(
                "another network has put {name} into {} after mode auto had found none there and become own, {ours}",
                self.conf_dir.display()
            );
            let remedy = "Say which network the pods get: --pod-network existing or nodes for the other one (this file is then removed; make pods anew that have addresses already), or --pod-network own, and remove the other.";
            self.tell("cni-conflict", Severity::Error, message, remedy);
            return;
        }
        if let Some(name) = foreign.iter().find(|name| name.as_str() < FILE) {
            let message = format!(
                "the container runtime takes {name} and not {FILE}, because it comes first by name in {}",
                self.conf_dir.display()
            );
            let remedy = "Remove it, or give it a name that comes later.";
            self.tell("cni-shadowed", Severity::Warning, message, remedy);
        }
        let missing: Vec<&str> = PLUGINS
            .into_iter()
            .filter(|plugin| !self.bin_dir.join(plugin).is_file())
            .collect();
        if !missing.is_empty() {
            let message = format!(
                "pods cannot be connected: CNI plugins {} are not in {}",
                missing.join(", "),
                self.bin_dir.display()
            );
            let remedy = "Install the CNI plugins (package containernetworking-plugins or kubernetes-cni), or give their folder: --cni-bin-dir.";
            self.tell("cni-plugins", Severity::Error, message, remedy);
            return;
        }
        let Some(text) = conflist(plan) else {
            let message = format!(
                "no pod address can be taken from {}",
                plan.pod_cidrs
                    .iter()
                    .map(ToString::to_string)
                    .collect::<Vec<_>>()
                    .join(", ")
            );
            let remedy =
                "Give Nodes larger ranges: --node-cidr-mask-size of kube-controller-manager.";
            self.tell("cni-range", Severity::Error, message, remedy);
            return;
        };
        match self.write(&text) {
            Ok(()) => self.written = true,
            Err(error) => {
                let message = format!(
                    "{FILE} cannot be written to {}: {}",
                    self.conf_dir.display(),
                    sentence(&error)
                );
                let remedy = "In a pod this folder of the host must be mounted writable; elsewhere give it with --cni-conf-dir.";
                self.tell("cni-write", Severity::Error, message, remedy);
            }
        }
    }

    /// Removes our file; true where there was one.
    pub fn remove(&mut self) -> io::Result<bool> {
        self.written = false;
        remove(&self.conf_dir)
    }

    fn tell(&mut self, code: &'static str, severity: Severity, message: String, remedy: &str) {
        self.findings.push(Finding {
            code: code.into(),
            severity,
            message,
            remedy: remedy.to_owned(),
        });
    }

    /// The runtime watches the folder and must never see half a file: it is written under a name that it skips.
    fn write(&self, text: &str) -> io::Result<()> {
        let path = self.conf_dir.join(FILE);
        if fs::read_to_string(&path).is_ok_and(|found| found == text) {
            return Ok(());
        }
        fs::create_dir_all(&self.conf_dir)?;
        let temporary = self.conf_dir.join(format!(".{FILE}.new"));
        fs::write(&temporary, text)
            .and_then(|()| fs::File::open(&temporary)?.sync_all())
            .and_then(|()| fs::rename(&temporary, &path))
            .inspect_err(|_| _ = fs::remove_file(&temporary))?;
        info!(file = %path.display(), "CNI configuration written");
        Ok(())
    }
}

/// Removes our file; true where there was one.
pub fn remove(conf_dir: &Path) -> io::Result<bool> {
    match fs::remove_file(conf_dir.join(FILE)) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// The file's text; None where no range holds a pod.
fn conflist(plan: &CniPlan) -> Option<String> {
    // A network's address is the node's own, the next one the pods' gateway.
    let holds = |net: &&IpNet| net.prefix_len() + 2 <= net.max_prefix_len();
    let of = |v6: bool| {
        let nets = plan.pod_cidrs.iter().filter(holds);
        nets.filter(|net| matches!(net.addr(), IpAddr::V6(_)) == v6)
            .map(|net| json!({ "subnet": net.to_string() }))
            .collect::<Vec<_>>()
    };
    let (mut ranges, mut routes) = (Vec::new(), Vec::new());
    // One address out of each of these lists.
    for (nets, default) in [(of(false), "0.0.0.0/0"), (of(true), "::/0")] {
        if !nets.is_empty() {
            ranges.push(nets);
            routes.push(json!({ "dst": default }));
        }
    }
    if ranges.is_empty() {
        return None;
    }
    let file = json!({
        "cniVersion": "0.4.0",
        "name": "farspan",
        "plugins": [
            {
                "type": "ptp",
                "mtu": plan.mtu,
                // Towards the internet; inside the mesh the host plan keeps the source.
                "ipMasq": true,
                "ipam": { "type": "host-local", "dataDir": LEASES, "ranges": ranges, "routes": routes },
            },
            { "type": "portmap", "capabilities": { "portMappings": true } },
        ],
    });
    Some(format!("{file:#}\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan() -> CniPlan {
        CniPlan {
            pod_cidrs: ["10.244.1.0/24", "fd00:1::/64"]
                .map(|net| net.parse().unwrap())
                .into(),
            mtu: 1380,
        }
    }

    struct Folders {
        _temporary: tempfile::TempDir,
        conf: PathBuf,
        bin: PathBuf,
    }

    fn folders() -> Folders {
        let temporary = tempfile::tempdir().unwrap();
        let (conf, bin) = (temporary.path().join("net.d"), temporary.path().join("bin"));
        fs::create_dir(&conf).unwrap();
        fs::create_dir(&bin).unwrap();
        for plugin in PLUGINS {
            fs::write(bin.join(plugin), "").unwrap();
        }
        Folders {
            _temporary: temporary,
            conf,
            bin,
        }
    }

    fn codes(cni: &Cni) -> Vec<&str> {
        cni.findings().iter().map(|f| f.code.as_ref()).collect()
    }

    #[test]
    fn both_families_get_an_address_and_a_default_route() {
        let json: Value = serde_json::from_str(&conflist(&plan()).unwrap()).unwrap();
        let ptp = &json["plugins"][0];
        assert_eq!(ptp["mtu"], 1380);
        assert_eq!(
            ptp["ipam"]["ranges"],
            json!([[{"subnet": "10.244.1.0/24"}], [{"subnet": "fd00:1::/64"}]])
        );
        assert_eq!(
            ptp["ipam"]["routes"],
            json!([{"dst": "0.0.0.0/0"}, {"dst": "::/0"}])
        );
        let mut one = plan();
        one.pod_cidrs.remove(0);
        one.pod_cidrs.push("10.0.0.4/32".parse().unwrap());
        let json: Value = serde_json::from_str(&conflist(&one).unwrap()).unwrap();
        assert_eq!(
            json["plugins"][0]["ipam"]["ranges"],
            json!([[{"subnet": "fd00:1::/64"}]])
        );
        one.pod_cidrs.clear();
        assert_eq!(conflist(&one), None);
    }

    #[test]
    fn the_file_is_written_once_and_mended() {
        let folders = folders();
        let mut cni = Cni::new(&folders.conf, &folders.bin, false);
        cni.converge(None);
        assert!(!cni.ready() && !folders.conf.join(FILE).exists());
        cni.converge(Some(&plan()));
        assert!(cni.ready() && codes(&cni).is_empty());
        let names: Vec<_> = fs::read_dir(&folders.conf)
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert_eq!(names, [FILE]);
        let before = fs::metadata(folders.conf.join(FILE)).unwrap();
        cni.converge(Some(&plan()));
        let after = fs::metadata(folders.conf.join(FILE)).unwrap();
        assert_eq!(before.modified().unwrap(), after.modified().unwrap());
        fs::write(folders.conf.join(FILE), "{").unwrap();
        cni.converge(Some(&plan()));
        let text = fs::read_to_string(folders.conf.join(FILE)).unwrap();
        assert_eq!(Some(text), conflist(&plan()));
        assert!(cni.remove().unwrap());
        assert!(!cni.ready() && !cni.remove().unwrap());
    }

    #[test]
    fn what_is_in_the_way_is_told() {
        let folders = folders();
        let mut cni = Cni::new(&folders.conf, &folders.bin, false);
        fs::write(folders.conf.join("05-other.conf"), r#"{"type": "bridge"}"#).unwrap();
        cni.converge(Some(&plan()));
        assert!(cni.ready());
        assert_eq!(codes(&cni), ["cni-shadowed"]);
        fs::remove_file(folders.bin.join("portmap")).unwrap();
        cni.converge(Some(&plan()));
        assert!(!cni.ready());
        assert_eq!(codes(&cni), ["cni-shadowed", "cni-plugins"]);
        let message = &cni.findings()[1].message;
        assert!(
            message.contains("portmap") && !message.contains("ptp"),
            "{message}"
        );
        let mut auto = Cni::new(&folders.conf, &folders.bin, true);
        auto.converge(Some(&plan()));
        assert_eq!(codes(&auto), ["cni-conflict"]);
        let nowhere = PathBuf::from("/proc/nowhere");
        fs::write(folders.bin.join("portmap"), "").unwrap();
        let mut cni = Cni::new(&nowhere, &folders.bin, false);
        cni.converge(Some(&plan()));
        assert_eq!(codes(&cni), ["cni-write"]);
    }

    #[test]
    fn a_network_that_comes_after_auto_became_own_is_a_conflict_that_names_both_files() {
        for (other, ours) in [
            ("05-cilium.conflist", "goes before 10-farspan.conflist"),
            ("10-flannel.conflist", "beside 10-farspan.conflist"),
        ] {
            let folders = folders();
            let mut cni = Cni::new(&folders.conf, &folders.bin, true);
            cni.converge(Some(&plan()));
            assert!(cni.ready() && cni.findings().is_empty());
            fs::write(folders.conf.join(other), r#"{"type": "x"}"#).unwrap();
            cni.converge(Some(&plan()));
            assert_eq!(codes(&cni), ["cni-conflict"]);
            let message = &cni.findings()[0].message;
            assert!(
                message.contains(other) && message.contains(ours),
                "{message}"
            );
            assert!(!cni.ready());
            // Cilium puts others' files out of the way.
            fs::remove_file(folders.conf.join(FILE)).unwrap();
            cni.converge(Some(&plan()));
            let message = &cni.findings()[0].message;
            assert!(
                message.contains(&format!("{FILE} is not written")),
                "{message}"
            );
            assert!(!folders.conf.join(FILE).exists());
        }
    }

    #[test]
    fn the_network_that_is_there_says_which_mode_fits() {
        let folders = folders();
        let put = |name: &str, text: &str| fs::write(folders.conf.join(name), text).unwrap();
        assert_eq!(detect(&folders.conf).mode, PodNetwork::Own);
        assert_eq!(detect(Path::new("/nowhere")).mode, PodNetwork::Own);
        put(FILE, "{}");
        put("README", "{}");
        put("00-broken.conflist", "{");
        assert_eq!(detect(&folders.conf).mode, PodNetwork::Own);
        for (text, mode, unfit_) in [
            (
                r#"{"plugins": [{"type": "flannel", "delegate": {}}, {"type": "portmap"}]}"#,
                PodNetwork::Existing,
                false,
            ),
            (
                r#"{"plugins": [{"type": "ptp", "ipam": {"type": "host-local"}}]}"#,
                PodNetwork::Existing,
                false,
            ),
            (
                r#"{"type": "calico", "ipam": {"type": "calico-ipam"}}"#,
                PodNetwork::Nodes,
                true,
            ),
            (
                r#"{"plugins": [{"type": "calico", "ipam": {"type": "host-local", "subnet": "usePodCidr"}}]}"#,
                PodNetwork::Existing,
                false,
            ),
            (
                r#"{"plugins": [{"type": "cilium-cni"}]}"#,
                PodNetwork::Nodes,
                false,
            ),
        ] {
            put("10-a.conflist", text);
            let found = detect(&folders.conf);
            assert_eq!(found.mode, mode, "{text}");
            assert_eq!(found.file.as_deref(), Some("10-a.conflist"));
            assert_eq!(unfit(&found).is_some(), unfit_, "{text}");
        }
    }
}
