//! The command line as scripts and people meet it: one sentence for each fault, its exit status, and a folder
//! that is as it was. Needs no rights; what needs root is proven in the namespaces.

#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot set its scene has failed"
)]

#[path = "cli/cluster.rs"]
mod cluster;

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};

const KEY: &str = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=";
const OTHER: &str = "AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI=";

struct Ran {
    code: i32,
    stdout: String,
    stderr: String,
}

fn farspan(folder: &Path, arguments: &[&str], input: &str) -> Ran {
    let mut child = Command::new(env!("CARGO_BIN_EXE_farspan"))
        .args(arguments)
        .env_clear()
        .env("HOME", folder)
        .env("FARSPAN_STATE_DIR", folder.join("state"))
        .env("FARSPAN_SOCKET", folder.join("none.sock"))
        .env("FARSPAN_CONFIG", folder.join("farspan.toml"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A verb that reads nothing closes its end first.
    _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    ran(&child.wait_with_output().unwrap())
}

fn ran(output: &Output) -> Ran {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    Ran {
        code: output.status.code().unwrap(),
        stdout: text(&output.stdout),
        stderr: text(&output.stderr),
    }
}

fn folder(config: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("farspan.toml"), config).unwrap();
    folder
}

/// Every file below a folder with its content.
fn tree(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut open = vec![folder.to_path_buf()];
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.ends_with("lock") {
                continue; // names the last process that held it
            }
            if path.is_dir() {
                open.push(path);
            } else {
                found.insert(
                    path.display().to_string(),
                    fs::read(&path).unwrap_or_default(),
                );
            }
        }
    }
    found
}

#[track_caller]
fn refused(ran: &Ran, code: i32, expected: &str) {
    assert_eq!(ran.code, code, "{}", ran.stderr);
    assert_eq!(ran.stdout, "");
    assert_eq!(ran.stderr.lines().count(), 1, "{}", ran.stderr);
    assert!(ran.stderr.starts_with("farspan: "), "{}", ran.stderr);
    assert!(
        ran.stderr.contains(expected),
        "{}\nexpected: {expected}",
        ran.stderr
    );
}

#[test]
fn each_broken_file_is_one_sentence_and_changes_nothing() {
    let peer = |rest: &str| format!("[[peer]]\npublic-key = \"{KEY}\"\n{rest}\n");
    let cases: Vec<(String, &str)> = vec![
        ("[nodee]\n".into(), "did you mean `node`?"),
        (
            "[node]\nnam = \"a\"\n".into(),
            "line 2: unknown key `nam`; did you mean `name`?",
        ),
        (
            "[node]\nname = \"a\"\nname = \"b\"\n".into(),
            "line 3: duplicate key",
        ),
        ("[node".into(), "line 1: "),
        ("[node]\nname = [\n".into(), "farspan.toml, line "),
        (
            "[node]\nlisten-port = \"x\"\n".into(),
            "line 2: `listen-port`: invalid type",
        ),
        ("[node]\nlisten-port = 0\n".into(), "0 is not a port"),
        (
            "[node]\nlisten-port = 65536\n".into(),
            "65536 is not a port",
        ),
        (
            "[node]\nlisten-port = 22511\n".into(),
            "used inside the tunnel",
        ),
        ("[node]\nname = \"\"\n".into(), "is not a name"),
        (
            "[node]\ninterface = \"a/b\"\n".into(),
            "cannot name a network device",
        ),
        ("[node]\nbackend = \"x\"\n".into(), "is not a backend"),
        (
            "[node]\naddresses = [\"10.0.0.1/8\"]\n".into(),
            "write the single address 10.0.0.1/32",
        ),
        (
            "[node]\nroutes = [\"10.0.0.0/40\"]\n".into(),
            "is not a range",
        ),
        ("[node]\nroutes = [\"224.0.0.0/4\"]\n".into(), "multicast"),
        (
            "[node]\nprivate-key-file = \"/nowhere/key\"\n".into(),
            "/nowhere/key does not exist",
        ),
        ("[mesh]\nauthorities = [\"AAAA\"]\n".into(), "not a key"),
        ("[nat]\nstun = [\"a b\"]\n".into(), "is not a server"),
        ("[host]\nfwmark = \"0\"\n".into(), "the mark must not be 0"),
        (
            peer("allowed-ips = [\"0.0.0.0/0\"]"),
            "use a plain wg-quick tunnel as an exit",
        ),
        (
            peer("allowed-ips = [\"::/0\"]"),
            "use a plain wg-quick tunnel as an exit",
        ),
        (peer(""), "missing field `allowed-ips`"),
        (
            peer("allowed-ips = []\nendpoints = [\"a b:1\"]"),
            "is not an address or a name",
        ),
        (
            peer("allowed-ips = []") + &peer("allowed-ips = []"),
            "has the same key",
        ),
        (
            peer("allowed-ips = [\"10.1.0.0/16\"]")
                + &format!("[[peer]]\npublic-key = \"{OTHER}\"\nallowed-ips = [\"10.1.9.9/16\"]\n"),
            "10.1.0.0/16 of",
        ),
        (
            peer("allowed-ips = []\npreshared-key-file = \"/nowhere\""),
            "no such file",
        ),
    ];
    for (text, expected) in cases {
        let folder = folder(&text);
        let before = tree(folder.path());
        for arguments in [
            &["config", "check"][..],
            &["agent"],
            &["agent", "--dry-run"],
            &["up"],
            &["init"],
            &["peer", "list"],
        ] {
            let ran = farspan(folder.path(), arguments, "");
            refused(&ran, 2, expected);
        }
        assert_eq!(tree(folder.path()), before, "{text}");
    }
}

#[test]
fn a_file_that_is_no_text_or_no_file_is_one_sentence() {
    let folder = folder("");
    let path = folder.path().join("farspan.toml");
    fs::write(&path, b"[node]\nname = \"\xff\"\n").unwrap();
    refused(
        &farspan(folder.path(), &["config", "check"], ""),
        2,
        "line 2 is not UTF-8",
    );
    fs::write(&path, vec![b'#'; (1 << 20) + 1]).unwrap();
    refused(
        &farspan(folder.path(), &["config", "check"], ""),
        2,
        "larger than 1 MiB",
    );
    fs::remove_file(&path).unwrap();
    refused(
        &farspan(folder.path(), &["config", "check"], ""),
        2,
        "no such file",
    );
    fs::create_dir(&path).unwrap();
    refused(
        &farspan(folder.path(), &["config", "check"], ""),
        2,
        "it is a folder",
    );
}

#[test]
fn wrong_usage_is_one_sentence() {
    let folder = folder("");
    for (arguments, expected) in [
        (
            &["stauts"][..],
            "unrecognized subcommand 'stauts'; a similar subcommand exists: 'status'; see `farspan --help`",
        ),
        (&["status", "--chekc"], "unexpected argument '--chekc'"),
        (&["status", "-o", "xml"], "invalid value 'xml'"),
        (
            &["peer", "add", "--keepalive", "x"],
            "see `farspan peer add --help`",
        ),
        (
            &["agent", "--backend", "magic"],
            "possible values: auto, kernel, userspace",
        ),
        (&["agent", "--listen-port", "0"], "0 is not in 1..=65535"),
        (
            &["agent", "--listen-port", "22511"],
            "used inside the tunnel",
        ),
        (
            &["agent", "--interface", "a b"],
            "cannot name a network device",
        ),
        (&["agent", "--metrics-listen", "x"], "invalid value 'x'"),
        (&["invite", "--lifetime", "soon"], "is not a time"),
        (&["invite", "--routes", "0.0.0.0/0"], "whole internet"),
        (&["init", "--range", "10.0.0.0"], "invalid value"),
        (&["init", "--range", "10.0.0.0/31"], "from /8 to /30"),
        (&["init", "--name", "a b"], "is not a name"),
        (&["ping"], "required arguments were not provided"),
        (&["ping", "b", "-c", "0"], "0 is not in 1..=10000"),
        (
            &["bench", "b", "--time", "31s"],
            "is not a time from 1s to 30s",
        ),
        (&["bench", "b", "--streams", "9"], "9 is not in 1..=8"),
        (&["capture", "b", "--size", "x"], "is not a size"),
        (
            &["approve", "--refuse"],
            "required arguments were not provided",
        ),
        (
            &["graph", "-o", "png"],
            "possible values: dot, svg, mermaid",
        ),
        (&["man", "stauts"], "there is no page farspan-stauts"),
        (&["status", "--watch", "--check"], "cannot be used with"),
        (
            &["peer", "add", "b"],
            "required arguments were not provided",
        ),
        (
            &[
                "peer",
                "add",
                "b",
                "--public-key",
                "x",
                "--allowed-ips",
                "10.0.0.1",
            ],
            "--public-key: not a key",
        ),
        (
            &[
                "peer",
                "add",
                "b",
                "--public-key",
                KEY,
                "--allowed-ips",
                "0.0.0.0/0",
            ],
            "whole internet",
        ),
        (&["completions", "tcsh9"], "invalid value 'tcsh9'"),
        (
            &["config", "export", "x", "--address", "10.0.0.1"],
            "--generate",
        ),
    ] {
        let before = tree(folder.path());
        refused(&farspan(folder.path(), arguments, ""), 2, expected);
        assert_eq!(tree(folder.path()), before, "{arguments:?}");
    }
}

#[test]
fn verbs_without_an_agent_name_the_likely_cause() {
    let folder = folder("");
    for arguments in [
        &["status"][..],
        &["netcheck", "-o", "json"],
        &["ping", "b"],
        &["invite"],
        &["revoke", "b"],
        &["key", "rotate"],
        &["approve"],
        &["approve", "b"],
        &["doctor"],
        &["doctor", "b", "-o", "yaml"],
        &["bench", "b"],
        &["graph"],
        &["capture", "b", "-w", "packets"],
    ] {
        let ran = farspan(folder.path(), arguments, "");
        refused(&ran, 1, "no agent runs here");
        assert!(ran.stderr.contains("sudo farspan up"), "{}", ran.stderr);
    }
}

#[test]
fn what_is_no_token_is_refused_before_anything_starts() {
    let folder = folder("");
    let before = tree(folder.path());
    for (input, expected) in [
        ("", "no token was given"),
        ("hello\n", "not a farspan token"),
        ("fsp1_AAAA\n", "damaged or cut off"),
        ("fsp1_\u{1F980}\n", "damaged or cut off"),
        (
            &format!("fsp1_{}\n", "A".repeat(5000)),
            "damaged or cut off",
        ),
    ] {
        refused(&farspan(folder.path(), &["join"], input), 2, expected);
    }
    refused(
        &farspan(folder.path(), &["join", "fsp1_x"], ""),
        2,
        "damaged or cut off",
    );
    assert_eq!(tree(folder.path()), before);
}

#[test]
fn every_verb_has_help() {
    let folder = folder("");
    let verbs = [
        "agent",
        "init",
        "up",
        "down",
        "invite",
        "join",
        "approve",
        "revoke",
        "peer",
        "key",
        "status",
        "netcheck",
        "doctor",
        "ping",
        "bench",
        "capture",
        "graph",
        "bugreport",
        "config",
        "preflight",
        "manifests",
        "crds",
        "uninstall",
        "completions",
        "man",
        "version",
    ];
    let overview = farspan(folder.path(), &["--help"], "");
    assert_eq!(overview.code, 0);
    for verb in verbs {
        assert!(overview.stdout.contains(&format!("\n  {verb} ")), "{verb}");
        let help = farspan(folder.path(), &[verb, "--help"], "");
        assert_eq!(help.code, 0);
        assert!(help.stdout.contains("Usage:"), "{verb}");
    }
    assert_eq!(farspan(folder.path(), &[], "").code, 2);
}

#[test]
fn completions_and_version_are_printed() {
    let folder = folder("");
    for shell in ["bash", "zsh", "fish"] {
        let script = farspan(folder.path(), &["completions", shell], "");
        assert_eq!(script.code, 0);
        assert!(script.stdout.contains("netcheck"), "{shell}");
    }
    let version = farspan(folder.path(), &["version"], "");
    assert_eq!(
        version.stdout,
        format!("farspan {}\n", env!("CARGO_PKG_VERSION"))
    );
}

#[test]
fn manual_pages_are_printed_and_written() {
    let folder = folder("");
    let page = farspan(folder.path(), &["man"], "");
    assert_eq!(page.code, 0, "{}", page.stderr);
    assert!(page.stdout.contains(".TH farspan 1"), "{}", page.stdout);
    assert!(
        page.stdout.contains("farspan\\-bugreport(1)"),
        "{}",
        page.stdout
    );
    let page = farspan(folder.path(), &["man", "peer", "add"], "").stdout;
    assert!(
        page.contains(".TH farspan\\-peer\\-add 1") || page.contains(".TH farspan-peer-add 1"),
        "{page}"
    );
    let pages = folder.path().join("man1");
    fs::create_dir(&pages).unwrap();
    let written = farspan(
        folder.path(),
        &["man", "--dir", pages.to_str().unwrap()],
        "",
    );
    assert_eq!(written.code, 0, "{}", written.stderr);
    for name in ["farspan.1", "farspan-status.1", "farspan-key-rotate.1"] {
        assert!(pages.join(name).exists(), "{name}");
    }
    let unit = include_str!("../manifests/systemd/farspan.service");
    let named = unit
        .lines()
        .find_map(|line| line.strip_prefix("Documentation=man:"));
    let (name, section) = named
        .unwrap()
        .trim_end_matches(')')
        .split_once('(')
        .unwrap();
    let page = pages.join(format!("{name}.{section}"));
    assert!(page.exists(), "the unit names {}", page.display());
}

/// Every spelling in which the content of a key file could stand in a text.
fn spellings(key: &str) -> Vec<String> {
    use base64::Engine as _;
    use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE_NO_PAD};
    let bytes = STANDARD.decode(key.trim()).unwrap();
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    vec![
        STANDARD_NO_PAD.encode(&bytes),
        URL_SAFE_NO_PAD.encode(&bytes),
        hex.to_uppercase(),
        hex,
    ]
}

#[test]
fn a_bugreport_holds_no_key_even_where_somebody_wrote_one_into_file_and_log() {
    let folder = folder("");
    assert_eq!(farspan(folder.path(), &["init"], "").code, 0);
    let state = folder.path().join("state");
    fs::write(state.join("next.key"), format!("{KEY}\n")).unwrap();
    let preshared = folder.path().join("preshared");
    let third = "AwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwM=";
    fs::write(&preshared, format!("{third}\n")).unwrap();
    let mut secrets = vec![KEY.to_owned(), third.to_owned()];
    for name in ["authority.key", "identity.key", "private.key"] {
        secrets.push(fs::read_to_string(state.join(name)).unwrap());
    }
    let config = folder.path().join("farspan.toml");
    let mut text = fs::read_to_string(&config).unwrap();
    text.push_str(&format!(
        "# my key is {}\n[[peer]]\nname = \"b\"\npublic-key = \"{OTHER}\"\nallowed-ips = []\npreshared-key-file = \"{}\"\n",
        secrets[2].trim(),
        preshared.display()
    ));
    fs::write(&config, text).unwrap();
    let log: String = secrets
        .iter()
        .flat_map(|key| spellings(key))
        .map(|text| text + "\n")
        .collect();
    fs::write(
        state.join("agent.log"),
        log + "\nfsp1_c2VjcmV0\nlast words\n",
    )
    .unwrap();
    let file = folder.path().join("report.txt");
    let made = farspan(
        folder.path(),
        &["bugreport", "-w", file.to_str().unwrap()],
        "",
    );
    assert_eq!(made.code, 0, "{}", made.stderr);
    assert_eq!(
        fs::metadata(&file).unwrap().permissions().mode() & 0o777,
        0o600
    );
    let report = fs::read_to_string(&file).unwrap();
    for part in [
        "last words",
        "no agent runs here",
        "authority.key mode 600",
        "osrelease",
    ] {
        assert!(report.contains(part), "{part}: {report}");
    }
    for text in secrets.iter().flat_map(|key| spellings(key)) {
        assert!(!report.contains(&text), "{text} is in {report}");
    }
    assert!(!report.contains("c2VjcmV0"), "{report}");
}

#[test]
fn the_live_view_needs_a_terminal() {
    let folder = folder("");
    refused(
        &farspan(folder.path(), &["status", "--watch"], ""),
        2,
        "standard output is none",
    );
}

#[test]
fn keys_are_made_and_read_as_wg_does() {
    let folder = folder("");
    let private = farspan(folder.path(), &["key", "gen"], "").stdout;
    assert_eq!(private.len(), 45);
    let public = farspan(folder.path(), &["key", "public"], &private).stdout;
    assert_eq!(public.len(), 45);
    assert_ne!(private, public);
    // The pair of RFC 7748 6.1 (Alice).
    let private = "dwdtCnMYpX08FsFyUbJmRd9ML4frwJkqsXf7pR25LCo=\n";
    let public = farspan(folder.path(), &["key", "public"], private).stdout;
    assert_eq!(public, "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=\n");
    let wrong = farspan(folder.path(), &["key", "public"], "secret-word\n");
    refused(&wrong, 1, "not a key");
    assert!(!wrong.stderr.contains("secret-word"));
    refused(
        &farspan(folder.path(), &["key", "public"], ""),
        1,
        "this node has no key yet",
    );
}

#[test]
fn init_makes_a_mesh_once() {
    let folder = folder("# kept\n[node]\nname = \"paris-1\"\n");
    let made = farspan(
        folder.path(),
        &["init", "--routes", "10.244.1.0/24", "--lifetime", "30d"],
        "",
    );
    assert_eq!(made.code, 0, "{}", made.stderr);
    assert!(made.stdout.contains("10.77.0.1 and fd"), "{}", made.stdout);
    assert!(made.stdout.contains("Back up"), "{}", made.stdout);
    let text = fs::read_to_string(folder.path().join("farspan.toml")).unwrap();
    assert!(text.starts_with("# kept\n"), "{text}");
    assert!(text.contains("routes = [\"10.244.1.0/24\"]"), "{text}");
    assert!(text.contains("authorities = [\""), "{text}");
    for name in ["authority.key", "identity.key", "private.key", "state"] {
        let mode = fs::metadata(folder.path().join("state").join(name))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
    let secret = fs::read_to_string(folder.path().join("state/authority.key")).unwrap();
    assert!(!made.stdout.contains(secret.trim()));
    assert_eq!(farspan(folder.path(), &["config", "check"], "").code, 0);
    let before = tree(folder.path());
    refused(
        &farspan(folder.path(), &["init"], ""),
        1,
        "in a mesh already",
    );
    assert_eq!(tree(folder.path()), before);
    assert_eq!(farspan(folder.path(), &["init", "--force"], "").code, 0);
    assert_ne!(tree(folder.path()), before);
}

#[test]
fn init_makes_the_file_that_is_named_and_keeps_the_authority_key_of_an_old_mesh() {
    let folder = tempfile::tempdir().unwrap();
    let made = farspan(folder.path(), &["init"], "");
    assert_eq!(made.code, 0, "{}", made.stderr);
    let path = folder.path().join("farspan.toml");
    assert!(fs::read_to_string(path).unwrap().contains("authorities"));
    let state = folder.path().join("state");
    let first = fs::read(state.join("authority.key")).unwrap();
    let again = farspan(folder.path(), &["init", "--force"], "");
    assert_eq!(again.code, 0, "{}", again.stderr);
    assert!(again.stdout.contains("is kept as"), "{}", again.stdout);
    assert_ne!(fs::read(state.join("authority.key")).unwrap(), first);
    let mut kept = fs::read_dir(&state).unwrap().filter_map(|entry| {
        let path = entry.unwrap().path();
        let name = path.file_name()?.to_str()?.to_owned();
        name.starts_with("authority.key.").then_some(path)
    });
    let kept = kept.next().unwrap();
    assert_eq!(fs::read(&kept).unwrap(), first);
    assert_eq!(
        fs::metadata(&kept).unwrap().permissions().mode() & 0o777,
        0o600
    );
}

#[test]
fn a_named_file_whose_folder_is_missing_is_one_sentence() {
    let folder = tempfile::tempdir().unwrap();
    let named = folder.path().join("none/farspan.toml");
    let named = named.to_str().unwrap();
    let ran = farspan(folder.path(), &["init", "--config", named], "");
    refused(&ran, 2, "there is no folder");
    assert!(tree(folder.path()).is_empty());
    // Verbs that only read need the file itself.
    refused(&farspan(folder.path(), &["up"], ""), 2, "no such file");
}

#[test]
fn a_folder_of_keys_that_cannot_be_used_is_one_sentence() {
    let folder = folder("");
    let state = folder.path().join("state");
    fs::create_dir(&state).unwrap();
    fs::write(state.join("identity.key"), "not a key").unwrap();
    refused(&farspan(folder.path(), &["init"], ""), 1, "identity.key");
    assert!(!state.join("authority.key").exists());
    fs::remove_dir_all(&state).unwrap();
    fs::write(&state, "a file").unwrap();
    refused(&farspan(folder.path(), &["init"], ""), 1, "is not a folder");
}

#[test]
fn peers_are_added_listed_and_removed_without_touching_the_rest() {
    let text = "# mine\n[node]\nname = \"a\"\n";
    let folder = folder(text);
    let add = [
        "peer",
        "add",
        "b",
        "--public-key",
        KEY,
        "--allowed-ips",
        "10.77.0.2,10.244.2.0/24",
        "--endpoint",
        "203.0.113.9:22514",
    ];
    let added = farspan(folder.path(), &add, "");
    assert_eq!(added.code, 0, "{}", added.stderr);
    assert!(added.stdout.contains("no agent runs"), "{}", added.stdout);
    refused(&farspan(folder.path(), &add, ""), 2, "has the same key");
    let list = farspan(folder.path(), &["peer", "list"], "").stdout;
    assert!(
        list.contains(KEY) && list.contains("10.77.0.2/32, 10.244.2.0/24"),
        "{list}"
    );
    let json = farspan(folder.path(), &["peer", "list", "-o", "json"], "").stdout;
    assert_eq!(
        serde_json::from_str::<serde_json::Value>(&json).unwrap()[0]["name"],
        "b"
    );
    assert_eq!(farspan(folder.path(), &["peer", "remove", "b"], "").code, 0);
    refused(
        &farspan(folder.path(), &["peer", "remove", "b"], ""),
        1,
        "no peer with the name",
    );
    let after = fs::read_to_string(folder.path().join("farspan.toml")).unwrap();
    assert_eq!(after.trim_end(), text.trim_end());
}

#[test]
fn a_phone_gets_a_plain_configuration() {
    let folder = folder("[node]\naddresses = [\"10.77.0.1\"]\nroutes = [\"10.77.0.9/32\"]\n");
    refused(
        &farspan(folder.path(), &["config", "export", "phone"], ""),
        1,
        "this node has no key yet",
    );
    assert_eq!(farspan(folder.path(), &["init"], "").code, 0);
    refused(
        &farspan(folder.path(), &["config", "export", "phone"], ""),
        2,
        "--generate --address IP",
    );
    let export = [
        "config",
        "export",
        "phone",
        "--generate",
        "--address",
        "10.77.0.9",
        "--endpoint",
        "203.0.113.1:22514",
    ];
    let exported = farspan(folder.path(), &export, "");
    assert_eq!(exported.code, 0, "{}", exported.stderr);
    for line in [
        "Address = 10.77.0.9/32",
        "Endpoint = 203.0.113.1:22514",
        "AllowedIPs = 10.77.0.1/32",
    ] {
        assert!(exported.stdout.contains(line), "{}", exported.stdout);
    }
    let file = folder.path().join("phone.conf");
    fs::write(&file, &exported.stdout).unwrap();
    let check = farspan(
        folder.path(),
        &["config", "check", file.to_str().unwrap()],
        "",
    );
    assert_eq!(check.code, 0, "{}", check.stderr);
    let list = farspan(folder.path(), &["peer", "list"], "").stdout;
    assert!(
        list.contains("plain") && list.contains("10.77.0.9/32"),
        "{list}"
    );
    let again = farspan(
        folder.path(),
        &[
            "config",
            "export",
            "phone",
            "--qr",
            "--endpoint",
            "203.0.113.1:22514",
        ],
        "",
    );
    assert_eq!(again.code, 0, "{}", again.stderr);
    assert!(again.stdout.contains('█'), "{}", again.stdout);
}

#[test]
fn other_users_hear_that_root_is_needed() {
    if !nix::unistd::geteuid().is_root() {
        let folder = folder("");
        refused(
            &farspan(folder.path(), &["up"], ""),
            1,
            "must be run as root",
        );
        refused(
            &farspan(folder.path(), &["down"], ""),
            1,
            "must be run as root",
        );
        refused(&farspan(folder.path(), &["agent"], ""), 1, "CAP_NET_ADMIN");
        return;
    }
    // Root drops to nobody; the program is copied to where nobody may run it.
    let folder = folder("");
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let program = folder.path().join("farspan");
    fs::copy(env!("CARGO_BIN_EXE_farspan"), &program).unwrap();
    let as_nobody = |arguments: &[&str]| {
        use std::os::unix::process::CommandExt as _;
        let mut command = Command::new(&program);
        command
            .args(arguments)
            .env_clear()
            .env("FARSPAN_CONFIG", folder.path().join("farspan.toml"))
            .env("FARSPAN_STATE_DIR", folder.path().join("state"))
            .env("FARSPAN_SOCKET", folder.path().join("none.sock"))
            .stdin(Stdio::null())
            .uid(65534)
            .gid(65534);
        loop {
            match command.output() {
                // A child that another test is just starting still holds the copy open for writing.
                Err(error) if error.kind() == std::io::ErrorKind::ExecutableFileBusy => {}
                output => return ran(&output.unwrap()),
            }
        }
    };
    refused(&as_nobody(&["up"]), 1, "must be run as root");
    refused(&as_nobody(&["down"]), 1, "must be run as root");
    refused(&as_nobody(&["agent"]), 1, "CAP_NET_ADMIN");
    refused(&as_nobody(&["init"]), 1, "permission denied");
    let config = folder.path().join("farspan.toml");
    fs::set_permissions(&config, fs::Permissions::from_mode(0o600)).unwrap();
    refused(&as_nobody(&["config", "check"]), 2, "permission denied");
    assert!(!folder.path().join("state").exists());
}
