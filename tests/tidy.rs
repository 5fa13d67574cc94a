//! The shape of the tree, as ARCHITECTURE.md promises it. Each guard lists what it objects to; the last test
//! shows every guard a tree that breaks it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// What a crate may depend on: crates of this workspace, then others.
struct Allowed {
    internal: &'static [&'static str],
    external: &'static [&'static str],
}

/// Pure crates: same `clippy.toml`, no I/O among their dependencies.
const PURE: [&str; 4] = ["peer-discovery", "nat-traversal", "overlay", "sim-net"];

/// The table of allowed dependencies. Imports point downward; siblings never import each other.
const DEPENDENCIES: [(&str, Allowed); 11] = [
    (
        "mesh-types",
        Allowed {
            internal: &[],
            external: &[
                "base64",
                "chacha20poly1305",
                "ed25519-dalek",
                "hkdf",
                "ipnet",
                "minicbor",
                "sha2",
                "thiserror",
                "x25519-dalek",
                "zeroize",
            ],
        },
    ),
    (
        "peer-discovery",
        Allowed {
            internal: &["mesh-types"],
            external: &["ipnet", "thiserror", "tracing"],
        },
    ),
    (
        "nat-traversal",
        Allowed {
            internal: &["mesh-types"],
            external: &[
                "base64",
                "chacha20poly1305",
                "hkdf",
                "hmac-sha1",
                "ipnet",
                "litemap",
                "md5",
                "rand_chacha",
                "rand_core",
                "sha2",
                "stun-rs",
                "thiserror",
                "tracing",
                "zeroize",
            ],
        },
    ),
    (
        "overlay",
        Allowed {
            internal: &["mesh-types", "nat-traversal", "peer-discovery"],
            external: &["ipnet", "rand_chacha", "rand_core", "thiserror", "tracing"],
        },
    ),
    (
        "sim-net",
        Allowed {
            internal: &["mesh-types"],
            external: &["ipnet", "rand_chacha", "rand_core"],
        },
    ),
    (
        "tests/benchmark",
        Allowed {
            internal: &[],
            external: &["anyhow", "clap", "nix", "serde", "serde_json", "socket2"],
        },
    ),
    (
        "batch-aead",
        Allowed {
            internal: &[],
            external: &["ring", "zeroize"],
        },
    ),
    (
        "third-party/boringtun",
        Allowed {
            internal: &["batch-aead"],
            external: &[
                "aead",
                "blake2",
                "chacha20poly1305",
                "hmac",
                "mock_instant",
                "nix",
                "parking_lot",
                "portable-atomic",
                "rand_core",
                "ring",
                "tracing",
                "x25519-dalek",
            ],
        },
    ),
    (
        "data-plane",
        Allowed {
            internal: &["batch-aead", "mesh-types"],
            external: &[
                "arrayvec",
                "boringtun",
                "bytes",
                "getrandom",
                "ipnet",
                "libc",
                "nix",
                "parking_lot",
                "prefix-trie",
                "quinn-udp",
                "rustls",
                "rustls-native-certs",
                "socket2",
                "thiserror",
                "tracing",
                "tun-rs",
            ],
        },
    ),
    (
        "host-network",
        Allowed {
            internal: &["mesh-types"],
            external: &[
                "bytes",
                "defguard_wireguard_rs",
                "futures",
                "ipnet",
                "libc",
                "netlink-packet-core",
                "netlink-packet-generic",
                "netlink-packet-netfilter",
                "netlink-packet-route",
                "netlink-packet-wireguard",
                "netlink-proto",
                "netlink-sys",
                "nix",
                "rtnetlink",
                "socket2",
                "thiserror",
                "tokio",
                "tracing",
            ],
        },
    ),
    (
        ".",
        Allowed {
            internal: &[
                "mesh-types",
                "peer-discovery",
                "nat-traversal",
                "overlay",
                "host-network",
                "data-plane",
            ],
            external: &[
                "anyhow",
                "axum",
                "base64",
                "clap",
                "clap_complete",
                "clap_mangen",
                "crab_nat",
                "futures",
                "getrandom",
                "http-body-util",
                "hyper",
                "hyper-util",
                "igd-next",
                "ipnet",
                "jiff",
                "k8s-openapi",
                "kube",
                "nix",
                "prometheus-client",
                "qrcode",
                "schemars",
                "serde",
                "serde-saphyr",
                "serde_json",
                "socket2",
                "strsim",
                "terminal_size",
                "thiserror",
                "tokio",
                "toml",
                "toml_edit",
                "tracing",
                "tracing-subscriber",
                "zeroize",
            ],
        },
    ),
];

/// Lines a file may have.
const LINES_MAX: usize = 800;
/// Lines a script may have.
const SCRIPT_LINES_MAX: usize = 80;
/// Where `unsafe` may stand: (folder, start of the file's name).
const UNSAFE: [(&str, &str); 4] = [
    ("batch-aead/src", "avx512"),
    ("data-plane/src", "udp"),
    ("data-plane/src", "tun"),
    ("host-network/src", "sys"),
];
/// What the CLI may start: systemd's tool, and itself (`program`) as the detached agent.
const STARTED: [&str; 2] = ["Command::new(\"systemctl\")", "Command::new(program)"];
/// Paths of a developer's machine; written in two halves so that this file passes.
const MACHINE_PATHS: [&str; 3] = [
    concat!("/wo", "rk/"),
    concat!("/ro", "ot/"),
    concat!("/ho", "me/"),
];

#[test]
fn crates_depend_only_on_what_the_table_allows() {
    assert_tidy(dependencies);
}

#[test]
fn no_file_is_longer_than_800_lines_and_no_script_than_80() {
    assert_tidy(lengths);
}

#[test]
fn the_agent_starts_no_process_and_the_cli_only_systemctl_and_itself() {
    assert_tidy(processes);
}

#[test]
fn unsafe_code_stands_in_the_named_files_only_and_says_why_it_is_sound() {
    assert_tidy(unsafety);
}

#[test]
fn address_sanitizer_runs_over_every_crate_with_unsafe_code() {
    assert_tidy(sanitised);
}

#[test]
fn pure_crates_share_one_clippy_configuration() {
    assert_tidy(clippy_files);
}

#[test]
fn the_code_map_of_the_architecture_page_is_the_tree() {
    assert_tidy(code_map);
}

#[test]
fn lints_are_silenced_with_a_reason_only() {
    assert_tidy(silenced_lints);
}

#[test]
fn no_test_is_ignored_and_no_test_sleeps() {
    assert_tidy(lazy_tests);
}

#[test]
fn no_file_names_a_path_of_a_developers_machine() {
    assert_tidy(machine_paths);
}

#[test]
fn every_script_is_strict_bash_with_a_usage_line() {
    assert_tidy(scripts);
}

#[test]
fn main_only_starts_things() {
    assert_tidy(|tree| {
        let long = |path: &Path| path == Path::new("src/main.rs") && tree.lines(path).count() > 60;
        tree.files()
            .filter(|path| long(path))
            .map(|path| format!("{}: over 60 lines", path.display()))
            .collect()
    });
}

#[test]
fn every_guard_objects_to_a_tree_that_breaks_it() {
    type Guard = fn(&Tree) -> Vec<String>;
    type Case<'a> = (&'a str, Guard, &'a [(&'a str, &'a str)]);
    let broken: [Case; 13] = [
        (
            "upward import",
            dependencies,
            &[(
                "mesh-types/Cargo.toml",
                "[dependencies]\noverlay.workspace = true\n",
            )],
        ),
        (
            "sideways import",
            dependencies,
            &[(
                "nat-traversal/Cargo.toml",
                "[dependencies]\npeer-discovery = \"1\"\n",
            )],
        ),
        (
            "I/O in a pure crate",
            dependencies,
            &[(
                "overlay/Cargo.toml",
                "[target.'cfg(unix)'.dependencies]\ntokio = \"1\"\n",
            )],
        ),
        (
            "long file",
            lengths,
            &[("src/long.rs", "x\n".repeat(801).leak())],
        ),
        (
            "process in an edge",
            processes,
            &[(
                "host-network/src/run.rs",
                "fn f() { std::process::Command::new(\"ip\"); }\n",
            )],
        ),
        (
            "another process in the CLI",
            processes,
            &[("src/ctl/up.rs", "fn f() { Command::new(\"nft\"); }\n")],
        ),
        (
            "unsafe elsewhere",
            unsafety,
            &[("overlay/src/lib.rs", "fn f() { unsafe { g() } }\n")],
        ),
        (
            "unsafe without a reason",
            unsafety,
            &[("data-plane/src/udp.rs", "fn f() { unsafe { g() } }\n")],
        ),
        (
            "unsafe without the sanitizer",
            sanitised,
            &[("scripts/asan", "cargo test -p data-plane -q\n")],
        ),
        (
            "map without a folder",
            code_map,
            &[
                ("ARCHITECTURE.md", "## Code map\n```\nsrc/main.rs  x\n```\n"),
                ("docs/a", ""),
            ],
        ),
        (
            "bare allow",
            silenced_lints,
            &[("src/a.rs", concat!("#[al", "low(dead_code)]\nfn f() {}\n"))],
        ),
        (
            "machine path",
            machine_paths,
            &[("README.md", concat!("see /ho", "me/me\n"))],
        ),
        (
            "loose script",
            scripts,
            &[("scripts/demo", "#!/bin/sh\necho\n")],
        ),
    ];
    for (what, guard, files) in broken {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        for (name, text) in files {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().expect("the name has a folder"))
                .expect("the folder can be made");
            fs::write(path, text).expect("the file can be written");
        }
        assert!(
            !guard(&Tree::read(folder.path())).is_empty(),
            "nobody objects to: {what}"
        );
    }
}

/// All text files of a checkout, by path from its root.
struct Tree {
    files: BTreeMap<PathBuf, String>,
}

impl Tree {
    fn read(root: &Path) -> Self {
        let mut files = BTreeMap::new();
        let mut folders = vec![root.to_path_buf()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(&folder)
                .expect("a folder of the tree is readable")
                .flatten()
            {
                let (path, name) = (
                    entry.path(),
                    entry.file_name().to_string_lossy().into_owned(),
                );
                let hidden = name.starts_with('.') && name != ".ci";
                let made = name.starts_with("target") || name == "proptest-regressions";
                let built = path.parent() == Some(root) && made;
                if hidden || built {
                } else if path.is_dir() {
                    folders.push(path);
                } else if let Ok(text) = fs::read_to_string(&path) {
                    let relative = path
                        .strip_prefix(root)
                        .expect("found below the root")
                        .to_path_buf();
                    files.insert(relative, text);
                }
            }
        }
        Self { files }
    }

    fn files(&self) -> impl Iterator<Item = &PathBuf> {
        self.files.keys()
    }

    fn rust(&self) -> impl Iterator<Item = (&PathBuf, &String)> {
        self.files
            .iter()
            .filter(|(path, _)| path.extension().is_some_and(|extension| extension == "rs"))
    }

    /// Rust files of the product, without their inline tests.
    fn product(&self) -> impl Iterator<Item = (&PathBuf, &str)> {
        let test = |path: &Path| {
            path.components().any(|part| part.as_os_str() == "tests") || path.ends_with("tests.rs")
        };
        self.rust()
            .filter(move |(path, _)| !test(path))
            .map(|(path, text)| {
                let end = text.find("#[cfg(test)]\nmod ").unwrap_or(text.len());
                (path, &text[..end])
            })
    }

    fn lines(&self, path: &Path) -> impl Iterator<Item = &str> {
        self.files
            .get(path)
            .map(String::as_str)
            .unwrap_or_default()
            .lines()
    }
}

fn assert_tidy(guard: impl Fn(&Tree) -> Vec<String>) {
    let objections = guard(&Tree::read(Path::new(env!("CARGO_MANIFEST_DIR"))));
    assert!(objections.is_empty(), "\n{}\n", objections.join("\n"));
}

fn dependencies(tree: &Tree) -> Vec<String> {
    let names: BTreeSet<_> = DEPENDENCIES.iter().map(|(name, _)| *name).collect();
    let mut objections = Vec::new();
    for (path, text) in tree
        .files
        .iter()
        .filter(|(path, _)| path.ends_with("Cargo.toml"))
    {
        let folder = path
            .parent()
            .and_then(Path::to_str)
            .filter(|folder| !folder.is_empty())
            .unwrap_or(".");
        let Some((_, allowed)) = DEPENDENCIES.iter().find(|(name, _)| *name == folder) else {
            objections.push(format!(
                "{folder}: not in the table of allowed dependencies"
            ));
            continue;
        };
        let manifest: toml::Table = text.parse().expect("cargo has read this file");
        let targets = manifest
            .get("target")
            .and_then(toml::Value::as_table)
            .into_iter()
            .flat_map(toml::Table::values);
        let sections = targets
            .filter_map(toml::Value::as_table)
            .chain(std::iter::once(&manifest));
        for name in sections
            .flat_map(|section| {
                ["dependencies", "build-dependencies"].map(|kind| section.get(kind))
            })
            .flatten()
            .filter_map(toml::Value::as_table)
            .flat_map(toml::Table::keys)
        {
            let list = if names.contains(name.as_str()) {
                allowed.internal
            } else {
                allowed.external
            };
            if !list.contains(&name.as_str()) {
                objections.push(format!(
                    "{folder}: depends on {name}, which the table does not allow"
                ));
            }
        }
    }
    objections
}

fn lengths(tree: &Tree) -> Vec<String> {
    let files = tree
        .files
        .iter()
        .filter(|(path, _)| !path.ends_with("Cargo.lock"));
    files
        .filter_map(|(path, text)| {
            let script = path.starts_with("scripts") && path.extension().is_none();
            let most = if script { SCRIPT_LINES_MAX } else { LINES_MAX };
            let count = text.lines().count();
            (count > most).then(|| format!("{}: {count} lines, {most} allowed", path.display()))
        })
        .collect()
}

fn processes(tree: &Tree) -> Vec<String> {
    let mut objections = Vec::new();
    for (path, text) in tree.product() {
        let cli = path.starts_with("src/ctl") || path.ends_with("src/ctl.rs");
        for (number, line) in code_lines(text) {
            let starts = line.contains("Command::new(") && !line.contains("clap::Command");
            let allowed = cli && STARTED.iter().any(|program| line.contains(program));
            if (starts && !allowed)
                || ["fork()", "execv", "posix_spawn"]
                    .iter()
                    .any(|call| line.contains(call))
            {
                objections.push(format!(
                    "{}:{number}: starts a process: {}",
                    path.display(),
                    line.trim()
                ));
            }
        }
    }
    objections
}

fn sanitised(tree: &Tree) -> Vec<String> {
    let script = tree.files.get(Path::new("scripts/asan"));
    let options: BTreeSet<_> = UNSAFE
        .iter()
        .filter_map(|(folder, _)| Some(format!("-p {} ", folder.split('/').next()?)))
        .collect();
    let lacks = |option: &String| !script.is_some_and(|text| text.contains(option));
    let missing = options.into_iter().filter(lacks);
    missing
        .map(|option| format!("scripts/asan: lacks {option}"))
        .collect()
}

fn unsafety(tree: &Tree) -> Vec<String> {
    let mut objections = Vec::new();
    for (path, text) in tree
        .rust()
        .filter(|(path, _)| !path.ends_with("tests/tidy.rs"))
    {
        let folder = path.parent().and_then(Path::to_str).unwrap_or_default();
        let name = path
            .file_name()
            .and_then(|name| name.to_str())
            .unwrap_or_default();
        // `udp/batch.rs` belongs to `udp.rs`.
        let named = UNSAFE.iter().any(|(place, start)| {
            (folder == *place && name.starts_with(start))
                || folder.starts_with(&format!("{place}/{start}"))
        });
        let lines: Vec<_> = text.lines().collect();
        for (number, line) in code_lines(text) {
            // What stands between quotes is no code.
            let code: String = line.split('"').step_by(2).collect();
            let words: Vec<_> = code
                .split(|c: char| !c.is_alphanumeric() && c != '_')
                .collect();
            if !words.contains(&"unsafe") {
                continue;
            }
            let reasoned = lines[..number]
                .iter()
                .rev()
                .take(8)
                .any(|line| line.contains("SAFETY:"));
            if !named || !reasoned {
                objections.push(format!(
                    "{}:{number}: unsafe not allowed here or without SAFETY",
                    path.display()
                ));
            }
        }
    }
    objections
}

fn clippy_files(tree: &Tree) -> Vec<String> {
    let file = |name: &str| tree.files.get(&Path::new(name).join("clippy.toml"));
    let first = file(PURE[0]);
    PURE.iter()
        .filter(|name| file(name).is_none() || file(name) != first)
        .map(|name| format!("{name}/clippy.toml differs"))
        .collect()
}

fn code_map(tree: &Tree) -> Vec<String> {
    let page = tree
        .files
        .get(Path::new("ARCHITECTURE.md"))
        .map(String::as_str)
        .unwrap_or_default();
    let block = page
        .split("## Code map")
        .nth(1)
        .and_then(|rest| rest.split("```").nth(1))
        .unwrap_or_default();
    let first_words = block
        .lines()
        .skip(1)
        .filter_map(|line| line.split_whitespace().next());
    let listed: BTreeSet<String> = first_words.flat_map(expand).collect();
    let mut expected = BTreeSet::new();
    for path in tree.files() {
        let mut parts = path.iter().filter_map(|part| part.to_str());
        if let (Some(top), Some(_)) = (parts.next(), parts.next()) {
            expected.insert(format!("{top}/"));
        }
        if path.starts_with("src") {
            expected.insert(path.display().to_string());
        }
    }
    let missing = expected
        .difference(&listed)
        .map(|name| format!("ARCHITECTURE.md: the code map lacks {name}"));
    let exists = |name: &str| {
        tree.files()
            .any(|path| path.starts_with(name.trim_end_matches('/')))
    };
    let gone = listed
        .iter()
        .filter(|name| !exists(name))
        .map(|name| format!("ARCHITECTURE.md: there is no {name}"));
    missing.chain(gone).collect()
}

/// `a/{b,c}.rs` as `a/b.rs` and `a/c.rs`.
fn expand(name: &str) -> Vec<String> {
    let Some((before, rest)) = name.split_once('{') else {
        return vec![name.to_owned()];
    };
    let (choices, after) = rest.split_once('}').unwrap_or((rest, ""));
    choices
        .split(',')
        .map(|choice| format!("{before}{choice}{after}"))
        .collect()
}

fn silenced_lints(tree: &Tree) -> Vec<String> {
    let mut objections = Vec::new();
    for (path, text) in tree
        .rust()
        .filter(|(path, _)| !path.ends_with("tests/tidy.rs"))
    {
        for silence in ["#[allow(", "#![allow(", "#[expect(", "#![expect("] {
            for attribute in text
                .split(silence)
                .skip(1)
                .filter_map(|rest| rest.split(")]").next())
            {
                if !attribute.contains("reason") {
                    objections.push(format!(
                        "{}: {silence}{attribute})] gives no reason",
                        path.display()
                    ));
                }
            }
        }
    }
    objections
}

fn lazy_tests(tree: &Tree) -> Vec<String> {
    let mut objections = Vec::new();
    for (path, text) in tree
        .rust()
        .filter(|(path, _)| !path.ends_with("tests/tidy.rs"))
    {
        let test = path.components().any(|part| part.as_os_str() == "tests");
        for (number, line) in code_lines(text) {
            if line.contains("#[ignore") || (test && line.contains("::sleep(")) {
                objections.push(format!("{}:{number}: {}", path.display(), line.trim()));
            }
        }
    }
    objections
}

fn machine_paths(tree: &Tree) -> Vec<String> {
    let named = |text: &str| MACHINE_PATHS.iter().any(|path| text.contains(path));
    let bad = tree.files.iter().filter(|(_, text)| named(text));
    bad.map(|(path, _)| format!("{}: names a path of a developer's machine", path.display()))
        .collect()
}

fn scripts(tree: &Tree) -> Vec<String> {
    let mut objections = Vec::new();
    let verb = |path: &Path| {
        path.starts_with("scripts") && path.extension().is_none() && path.components().count() == 2
    };
    for (path, text) in tree.files.iter().filter(|(path, _)| verb(path)) {
        for must in ["#!/usr/bin/env bash\n", "\nset -euo pipefail\n", "usage:"] {
            if !text.contains(must) {
                objections.push(format!("{}: lacks {:?}", path.display(), must.trim()));
            }
        }
    }
    objections
}

/// Lines that are not comments, with their numbers from 1.
fn code_lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let numbered = text
        .lines()
        .enumerate()
        .map(|(index, line)| (index + 1, line));
    numbered.filter(|(_, line)| !line.trim_start().starts_with("//"))
}
