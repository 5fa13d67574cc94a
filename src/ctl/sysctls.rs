//! `farspan sysctls`: global settings of the kernel that a node of a pod network needs and that an agent in a pod may only
//! check. The opt-in init container runs it.

use std::fs;
use std::path::Path;

use anyhow::{Result, anyhow};

use super::{must_be_root, print};
use crate::config::sentence;

const ROOT: &str = "/proc/sys/net";
/// Forwarding for pods; reverse-path checks that know the mark of outer packets.
const WANTED: [&str; 3] = [
    "ipv4/conf/all/src_valid_mark",
    "ipv4/ip_forward",
    "ipv6/conf/all/forwarding",
];

pub fn run() -> Result<()> {
    must_be_root("sysctls")?;
    for line in set(Path::new(ROOT))? {
        print(&format!("{line}\n"))?;
    }
    Ok(())
}

/// Sets what is not set; one line each.
fn set(root: &Path) -> Result<Vec<String>> {
    let mut done = Vec::new();
    for name in WANTED {
        let path = root.join(name);
        let now = match fs::read_to_string(&path) {
            Ok(now) => now,
            // A kernel without IPv6.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => return Err(failed(&path, &error)),
        };
        if now.trim() == "1" {
            continue;
        }
        if name.starts_with("ipv6/") {
            done.extend(keep_router_advertisements(root)?);
        }
        write(&path, "1")?;
        done.push(format!("net/{name} set to 1"));
    }
    if done.is_empty() {
        done.push("Everything is set already.".to_owned());
    }
    Ok(done)
}

/// A router ignores advertisements unless told: without this a node loses its IPv6 default route when it begins to forward.
fn keep_router_advertisements(root: &Path) -> Result<Vec<String>> {
    let folder = root.join("ipv6/conf");
    let mut done = Vec::new();
    let entries = fs::read_dir(&folder).map_err(|error| failed(&folder, &error))?;
    let mut names: Vec<_> = entries.flatten().map(|entry| entry.file_name()).collect();
    names.sort();
    for name in names {
        let path = folder.join(&name).join("accept_ra");
        if fs::read_to_string(&path).is_ok_and(|now| now.trim() == "1") {
            write(&path, "2")?;
            done.push(format!(
                "net/ipv6/conf/{}/accept_ra set to 2",
                name.to_string_lossy()
            ));
        }
    }
    Ok(done)
}

fn write(path: &Path, value: &str) -> Result<()> {
    fs::write(path, value).map_err(|error| failed(path, &error))
}

fn failed(path: &Path, error: &std::io::Error) -> anyhow::Error {
    anyhow!(
        "cannot set {}: {}; it takes root, and in a container `privileged: true`",
        path.display(),
        sentence(error)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, value) in files {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, format!("{value}\n")).unwrap();
        }
        folder
    }

    #[test]
    fn what_is_missing_is_set_and_a_second_time_nothing() {
        let folder = tree(&[
            ("ipv4/conf/all/src_valid_mark", "0"),
            ("ipv4/ip_forward", "1"),
            ("ipv6/conf/all/forwarding", "0"),
            ("ipv6/conf/eth0/accept_ra", "1"),
            ("ipv6/conf/eth1/accept_ra", "0"),
        ]);
        assert_eq!(
            set(folder.path()).unwrap(),
            [
                "net/ipv4/conf/all/src_valid_mark set to 1",
                "net/ipv6/conf/eth0/accept_ra set to 2",
                "net/ipv6/conf/all/forwarding set to 1",
            ]
        );
        assert_eq!(set(folder.path()).unwrap(), ["Everything is set already."]);
        let eth1 = folder.path().join("ipv6/conf/eth1/accept_ra");
        assert_eq!(fs::read_to_string(eth1).unwrap(), "0\n");
    }

    #[test]
    fn a_kernel_without_ipv6_is_no_fault() {
        let folder = tree(&[
            ("ipv4/conf/all/src_valid_mark", "1"),
            ("ipv4/ip_forward", "0"),
        ]);
        assert_eq!(
            set(folder.path()).unwrap(),
            ["net/ipv4/ip_forward set to 1"]
        );
    }
}
