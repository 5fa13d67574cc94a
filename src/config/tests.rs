use proptest::prelude::*;

use super::*;

const KEY: &str = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=";
const OTHER: &str = "AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI=";

const SAMPLE: &str = r#"
[node]
name = "paris-1"
state-dir = "/var/lib/farspan"
private-key-file = "/var/lib/farspan/private.key"
listen-port = 22514
region = "eu-west"
addresses = ["10.77.0.1/32"]
routes = ["10.244.1.0/24"]
interface = "farspan0"
backend = "auto"
socket = "/run/farspan/farspan0.sock"

[mesh]
authorities = ["AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE="]

[nat]
stun = ["stun.example.org:3478"]
port-mapping = true
birthday-search = false

[relay]
serve = false
ports = "28672-29183"
pair-rate = "50Mbit/s"
node-rate = "200Mbit/s"
turn = [{ url = "turns:turn.example.org:443" }]

[host]
fwmark = "0x2000/0x2000"
forward-accept = false

[[peer]]
name = "tokyo-1"
public-key = "AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI="
endpoints = ["203.0.113.9:22514"]
allowed-ips = ["10.77.0.2/32", "10.244.2.0/24"]
plain = false
persistent-keepalive = 25
"#;

fn parse(text: &str) -> Result<Config, ConfigError> {
    Config::parse(
        text,
        Some(Path::new("f.toml")),
        &Global::default(),
        &AgentArgs::default(),
    )
}

fn error(text: &str) -> String {
    parse(text).unwrap_err().to_string()
}

#[test]
fn the_documented_file_is_understood() {
    let config = parse(SAMPLE).unwrap();
    assert_eq!(config.name, "paris-1");
    assert_eq!(config.listen_port, Some(22514));
    assert_eq!(config.routes, vec!["10.244.1.0/24".parse().unwrap()]);
    assert_eq!(config.authorities.len(), 1);
    assert_eq!(
        config.peers[0].persistent_keepalive,
        Some(Duration::from_secs(25))
    );
    assert!(!config.birthday_search && parse("").unwrap().birthday_search);
    assert_eq!(config.warnings, Vec::<String>::new());
}

#[test]
fn the_gateway_is_asked_for_a_port_unless_told_not_to() {
    assert!(parse("").unwrap().port_mapping);
    assert!(parse("[nat]\nport-mapping = true\n").unwrap().port_mapping);
    assert!(!parse("[nat]\nport-mapping = false\n").unwrap().port_mapping);
}

#[test]
fn an_empty_file_is_all_defaults() {
    let config = parse("").unwrap();
    assert_eq!(config.interface, "farspan0");
    assert_eq!(config.state_dir, Path::new(DEFAULT_STATE_DIR));
    assert_eq!(config.socket, Path::new("/run/farspan/farspan0.sock"));
    assert_eq!(config.fwmark, (0x2000, 0x2000));
    assert!(config.peers.is_empty());
}

#[test]
fn flags_win_over_the_file() {
    let global = Global {
        interface: Some("fs9".into()),
        state_dir: Some("/tmp/x".into()),
        ..Global::default()
    };
    let flags = AgentArgs {
        name: Some("other".into()),
        listen_port: Some(4000),
        ..AgentArgs::default()
    };
    let config = Config::parse(
        &SAMPLE.replace("/var/lib/farspan/private.key", "/tmp/x/private.key"),
        None,
        &global,
        &flags,
    )
    .unwrap();
    assert_eq!(
        (config.name.as_str(), config.listen_port),
        ("other", Some(4000))
    );
    assert_eq!(config.interface, "fs9");
    assert_eq!(config.socket, Path::new("/run/farspan/fs9.sock"));
}

#[test]
fn every_fault_is_one_sentence_with_its_line() {
    let peer = |rest: &str| format!("[[peer]]\npublic-key = \"{KEY}\"\n{rest}");
    let cases = [
        (
            "[nod]\n".to_owned(),
            "line 1: unknown key `nod`; did you mean `node`?",
        ),
        (
            "[node]\nlisten_port = 1\n".to_owned(),
            "line 2: unknown key `listen_port`; did you mean `listen-port`?",
        ),
        (
            "[node]\nzzz = 1\n".to_owned(),
            "line 2: unknown key `zzz`; known here: name, ",
        ),
        (
            "[node]\nname = \"a\"\nname = \"b\"\n".to_owned(),
            "line 3: duplicate key",
        ),
        ("[node\n".to_owned(), "line 1: "),
        ("[node]\nname = \n".to_owned(), "line 2: "),
        (
            "[node]\nname = 5\n".to_owned(),
            "line 2: `name`: invalid type",
        ),
        (
            "[node]\nname = \"a b\"\n".to_owned(),
            "line 2: `name`: \"a b\" is not a name",
        ),
        (
            "[node]\nlisten-port = 0\n".to_owned(),
            "line 2: `listen-port`: 0 is not a port",
        ),
        (
            "[node]\nlisten-port = 70000\n".to_owned(),
            "70000 is not a port",
        ),
        (
            "[node]\nlisten-port = 22511\n".to_owned(),
            "used inside the tunnel",
        ),
        (
            "[node]\ninterface = \"much-too-long-a-name\"\n".to_owned(),
            "cannot name a network device",
        ),
        (
            "[node]\ninterface = \"a/b\"\n".to_owned(),
            "cannot name a network device",
        ),
        (
            "[node]\nbackend = \"quantum\"\n".to_owned(),
            "is not a backend",
        ),
        (
            "[node]\naddresses = [\"10.77.0.1/24\"]\n".to_owned(),
            "write the single address 10.77.0.1/32",
        ),
        (
            "[node]\naddresses = [\"10.77.0\"]\n".to_owned(),
            "is not an address",
        ),
        (
            "[node]\nroutes = [\"0.0.0.0/0\"]\n".to_owned(),
            "whole internet",
        ),
        (
            "[node]\nroutes = [\"127.0.0.0/8\"]\n".to_owned(),
            "loopback",
        ),
        (
            "[node]\nprivate-key-file = \"/nowhere/private.key\"\n".to_owned(),
            "/nowhere/private.key does not exist",
        ),
        (
            "[mesh]\nauthorities = [\"x\"]\n".to_owned(),
            "line 2: `authorities`: not a key",
        ),
        (
            "[nat]\nstun = [\"stun.example.org\"]\n".to_owned(),
            "is not a server",
        ),
        (
            "[host]\nfwmark = \"0x4/0x3\"\n".to_owned(),
            "inside its mask",
        ),
        ("[host]\nfwmark = \"blue\"\n".to_owned(), "is not a mark"),
        ("[relay]\nports = \"9-1\"\n".to_owned(), "range of ports"),
        (
            "[relay]\npair-rate = \"fast\"\n".to_owned(),
            "is not a rate",
        ),
        (peer(""), "missing field `allowed-ips`"),
        (
            "[[peer]]\nallowed-ips = []\n".to_owned(),
            "missing field `public-key`",
        ),
        (
            peer("allowed-ips = [\"0.0.0.0/0\"]\n"),
            "line 3: `allowed-ips`: 0.0.0.0/0 is the whole internet",
        ),
        (
            peer("allowed-ips = [\"::/0\"]\n"),
            "list those ranges, or use a plain wg-quick tunnel as an exit",
        ),
        (peer("allowed-ips = [\"10.0.0.0/33\"]\n"), "is not a range"),
        (
            peer("allowed-ips = []\nendpoints = [\"300.1.1.9:1\"]\n"),
            "is not an address or a name",
        ),
        (
            peer("allowed-ips = []\nendpoints = [\"0.0.0.0:1\"]\n"),
            "cannot be sent to",
        ),
        (
            peer("allowed-ips = []\npersistent-keepalive = 99999\n"),
            "from 0 (off) to 65535",
        ),
        (
            peer("allowed-ips = []\npreshared-key-file = \"/nowhere\"\n"),
            "/nowhere: no such file",
        ),
        (
            peer("allowed-ips = []\n") + &peer("allowed-ips = []\n"),
            "the peer on line 2 has the same key",
        ),
        (
            peer("allowed-ips = [\"10.77.0.0/24\"]\n")
                + &format!(
                    "[[peer]]\npublic-key = \"{OTHER}\"\nallowed-ips = [\"10.77.0.9/24\"]\n"
                ),
            "a range belongs to one peer",
        ),
        (
            peer("name = \"a\"\nallowed-ips = []\n")
                + &format!("[[peer]]\nname = \"a\"\npublic-key = \"{OTHER}\"\nallowed-ips = []\n"),
            "two peers are called \"a\"",
        ),
    ];
    for (text, expected) in cases {
        let error = error(&text);
        assert!(
            error.contains(expected),
            "{text}\ngave: {error}\nexpected: {expected}"
        );
        assert!(!error.contains('\n'), "{error}");
        assert!(error.starts_with("f.toml, line "), "{error}");
    }
}

#[test]
fn a_range_inside_another_peers_is_legal() {
    let text = format!(
        "[[peer]]\npublic-key = \"{KEY}\"\nallowed-ips = [\"10.0.0.0/16\"]\n\
         [[peer]]\npublic-key = \"{OTHER}\"\nallowed-ips = [\"10.0.1.0/24\"]\n"
    );
    assert_eq!(parse(&text).unwrap().peers.len(), 2);
}

#[test]
fn a_key_file_others_may_read_is_warned_of() {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = tempfile::tempdir().unwrap();
    let psk = folder.path().join("psk");
    fs::write(&psk, KEY).unwrap();
    fs::set_permissions(&psk, fs::Permissions::from_mode(0o644)).unwrap();
    let text = format!(
        "[[peer]]\npublic-key = \"{KEY}\"\nallowed-ips = []\npreshared-key-file = \"{}\"\n",
        psk.display()
    );
    let config = parse(&text).unwrap();
    assert!(
        config.warnings[0].contains("chmod 600"),
        "{:?}",
        config.warnings
    );
    assert!(config.peers[0].preshared_key.is_some());
}

#[test]
fn what_a_terminal_obeys_is_shown_escaped() {
    let said = error("[node]\nstate-dir = \"/s\"\nprivate-key-file = \"/a\\nb\\u001b[2J\"\n");
    assert!(said.contains("/a\\nb\\u{1b}[2J does not exist"), "{said}");
}

proptest! {
    #[test]
    fn no_change_to_a_file_makes_the_parser_panic(
        at in 0..SAMPLE.len(), cut in 0..40usize, insert in "\\PC{0,12}", newline in any::<bool>()
    ) {
        let mut bytes = SAMPLE.as_bytes().to_vec();
        let end = (at + cut).min(bytes.len());
        let mut with = insert.into_bytes();
        if newline { with.push(b'\n'); }
        bytes.splice(at..end, with);
        let text = String::from_utf8_lossy(&bytes);
        if let Err(error) = parse(&text) {
            prop_assert!(!error.to_string().contains('\n'), "{}", error);
        }
        let _ = wgquick::check(&text, Path::new("x.conf"));
    }

    #[test]
    fn no_text_makes_the_value_parsers_panic(text in "\\PC{0,40}") {
        let _ = (value::name(&text), value::interface(&text), value::range(&text), value::server(&text));
        let _ = (value::fwmark(&text), value::rate(&text), value::turn_url(&text), value::endpoint(&text));
        let _ = (value::port_range(&text), value::host_address(&text), crate::cli::duration(&text));
    }
}

#[test]
fn turn_servers_are_read_with_their_secrets() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("turn.secret");
    let text = |url: &str, file: &Path| {
        let file = file.display();
        format!("[relay]\nturn = [{{ url = \"{url}\", secret-file = \"{file}\" }}]\n")
    };
    fs::write(&file, "north\n").unwrap();
    let config = parse(&text("turn:h:443?transport=tcp", &file)).unwrap();
    let [server] = config.turn.as_slice() else {
        panic!("{:?}", config.turn)
    };
    assert_eq!(server.address.to_string(), "turn:h:443?transport=tcp");
    assert_eq!(server.secret.as_ref().unwrap().as_bytes(), b"north");
    assert!(!format!("{config:?}").contains("north"));

    let wrong = error(&text("stun:h:3478", &file));
    assert!(wrong.contains("is not a TURN server"), "{wrong}");
    fs::write(&file, " \n").unwrap();
    let empty = error(&text("turn:h", &file));
    assert!(empty.contains("is empty"), "{empty}");
    let missing = error(&text("turn:h", &folder.path().join("none")));
    assert!(
        missing.contains("cannot be read: no such file"),
        "{missing}"
    );
}

#[test]
fn a_node_gets_the_rate_of_a_few_pairs_unless_configured() {
    let of = |text: &str| {
        let config = parse(&format!("[relay]\n{text}")).unwrap();
        (config.relay_pair_rate, config.relay_node_rate)
    };
    assert_eq!(of(""), (50_000_000, 200_000_000));
    assert_eq!(
        of("pair-rate = \"1Gbit/s\""),
        (1_000_000_000, 4_000_000_000)
    );
    assert_eq!(of("node-rate = \"70Mbit/s\""), (50_000_000, 70_000_000));
}
