//! `farspan bugreport`: one text file with what helps to find a fault. What it reads holds no secret but the
//! log and the configuration might, so everything passes a filter that knows this node's keys.

use std::fmt::Write as _;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

use anyhow::{Result, anyhow};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use zeroize::Zeroizing;

use super::client::Client;
use super::{agent, print};
use crate::agent::state::write_atomic;
use crate::api;
use crate::cli::{AgentArgs, BugreportArgs, Global};
use crate::config::{self, Config};

/// The end of a log is what matters.
const LOG_MAX: u64 = 256 << 10;
/// Peers that are examined one by one: first those that are not direct.
const EXAMINED_MAX: usize = 16;
/// A key file is a line.
const KEY_FILE_MAX: u64 = 4096;
/// A shorter one protects nothing, and stands in many words.
const TURN_SECRET_MIN: usize = 4;
const REMOVED: &str = "(removed)";
const WITHOUT_AGENT: &str = "unknown";

pub fn run(global: &Global, args: &BugreportArgs) -> Result<()> {
    let agent = agent(global)?;
    let config = Config::load(global, &AgentArgs::default());
    let mut report = Report::default();
    report.host();
    let name = report.agent(&agent);
    report.files(global, config.as_ref());
    let secrets = Secrets::collect(global, config.as_ref().ok());
    let text = secrets.strip(&report.text);
    match &args.write {
        Some(path) if path == Path::new("-") => print(&text),
        path => {
            let path = path
                .clone()
                .unwrap_or_else(|| PathBuf::from(format!("farspan-bugreport-{name}.txt")));
            write_atomic(&path, text.as_bytes(), 0o600)
                .map_err(|error| anyhow!("cannot write {}: {error:#}", path.display()))?;
            print(&format!(
                "{} was written; no key is in it, but names and addresses of the mesh are: read it before you publish it\n",
                path.display()
            ))
        }
    }
}

#[derive(Debug, Default)]
struct Report {
    text: String,
}

impl Report {
    fn section(&mut self, title: &str, content: &str) {
        _ = writeln!(self.text, "===== {title} =====\n{}\n", content.trim_end());
    }

    fn host(&mut self) {
        let mut out = format!("farspan {}\n", env!("CARGO_PKG_VERSION"));
        for path in [
            "/proc/sys/kernel/osrelease",
            "/proc/version",
            "/etc/os-release",
            "/proc/uptime",
            "/proc/loadavg",
            "/proc/sys/net/ipv4/ip_forward",
            "/proc/sys/net/ipv6/conf/all/forwarding",
            "/proc/sys/net/ipv6/conf/all/disable_ipv6",
            "/proc/sys/net/ipv4/conf/all/rp_filter",
            "/proc/sys/net/ipv4/conf/all/src_valid_mark",
        ] {
            let text = std::fs::read_to_string(path).unwrap_or_else(|_| "cannot be read".into());
            _ = writeln!(out, "{path}: {}", text.trim_end());
        }
        self.section("host", &out);
    }

    /// What the agent says; its name.
    fn agent(&mut self, agent: &Client) -> String {
        let status = agent.get::<api::Status>("/status");
        let status = match status {
            Ok(status) => status,
            Err(error) => {
                self.section("status", &format!("{error:#}"));
                return WITHOUT_AGENT.to_owned();
            }
        };
        self.answer("status", Ok(&status));
        self.answer("netcheck", agent.get::<api::Netcheck>("/netcheck").as_ref());
        for (title, path) in [("plan", "/plan"), ("metrics", "/metrics")] {
            let text = match path {
                "/plan" => agent.get::<String>(path),
                _ => agent.text(path),
            };
            self.section(title, &text.unwrap_or_else(|error| format!("{error:#}")));
        }
        let mut peers: Vec<&api::Peer> = status.peers.iter().collect();
        peers.sort_by_key(|peer| peer.state == "direct");
        for peer in peers.into_iter().take(EXAMINED_MAX) {
            let body = api::Doctor {
                peer: peer.public_key.clone(),
            };
            let diagnosis = agent.post::<api::Diagnosis>("/doctor", &body);
            self.answer(&format!("doctor {}", peer.name), diagnosis.as_ref());
        }
        file_name(&status.node.name)
    }

    fn answer<A: serde::Serialize>(&mut self, title: &str, answer: Result<&A, &anyhow::Error>) {
        let text = match answer {
            Ok(answer) => serde_json::to_string_pretty(answer).unwrap_or_default(),
            Err(error) => format!("{error:#}"),
        };
        self.section(title, &text);
    }

    fn files(&mut self, global: &Global, config: Result<&Config, &config::ConfigError>) {
        if let Err(error) = config {
            self.section("configuration error", &error.to_string());
        }
        let path = config::file_to_read(global);
        let text = match &path {
            Some(path) => config::read(path).unwrap_or_else(|error| error.to_string()),
            None => "there is no file".to_owned(),
        };
        let title = path.map_or_else(String::new, |path| format!(" {}", path.display()));
        self.section(&format!("configuration{title}"), &without_values(&text));
        let folder = state_dir(global, config.ok());
        self.section("state folder", &listing(&folder));
        let log = folder.join("agent.log");
        let text = tail(&log).unwrap_or_else(|error| {
            format!(
                "{}: {}; where systemd runs the agent its log is shown by: journalctl -u farspan",
                log.display(),
                config::sentence(&error)
            )
        });
        self.section("log", &text);
    }
}

/// Also where the configuration cannot be read.
fn state_dir(global: &Global, config: Option<&Config>) -> PathBuf {
    match (config, &global.state_dir) {
        (Some(config), _) => config.state_dir.clone(),
        (None, Some(folder)) => folder.clone(),
        (None, None) => PathBuf::from(config::DEFAULT_STATE_DIR),
    }
}

/// A label as a part of a file's name.
fn file_name(label: &str) -> String {
    let shown = |c: char| {
        if c.is_ascii_alphanumeric() || matches!(c, '-' | '_') {
            c
        } else {
            '_'
        }
    };
    label.chars().map(shown).take(64).collect()
}

/// The configuration without what follows a key that sounds secret, to the end of its line; a secret has no place in
/// the file, but people put things where they have no place.
fn without_values(text: &str) -> String {
    const SECRET: [&str; 6] = [
        "private",
        "preshared",
        "secret",
        "password",
        "passwd",
        "token",
    ];
    let is_secret = |before: &str| {
        let key = before.rsplit(['=', ',', '{', '[']).next();
        let key = key.unwrap_or_default().to_lowercase();
        // The path of a file is no secret.
        let path = key.trim_matches([' ', '\t', '"', '\'']).ends_with("-file");
        !path && SECRET.iter().any(|word| key.contains(word))
    };
    let mut out = String::new();
    for line in text.lines() {
        let mut befores = line.match_indices('=').map(|(at, _)| &line[..at]);
        match befores.find(|before| is_secret(before)) {
            Some(before) => _ = writeln!(out, "{before}= {REMOVED}"),
            None => _ = writeln!(out, "{line}"),
        }
    }
    out
}

/// Names, modes, owners and sizes.
fn listing(folder: &Path) -> String {
    use std::os::unix::fs::MetadataExt as _;
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) => return format!("{}: {}", folder.display(), config::sentence(&error)),
    };
    let mut lines: Vec<String> = entries
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let about = entry.metadata().ok()?;
            Some(format!(
                "{} mode {:03o}, user {}, {} bytes",
                entry.file_name().to_string_lossy(),
                about.mode() & 0o7777,
                about.uid(),
                about.len()
            ))
        })
        .collect();
    lines.sort();
    lines.join("\n")
}

fn tail(path: &Path) -> std::io::Result<String> {
    let mut file = std::fs::File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(LOG_MAX)))?;
    let mut bytes = Vec::new();
    file.take(LOG_MAX).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let from = if length > LOG_MAX {
        text.find('\n').map_or(0, |at| at + 1)
    } else {
        0
    };
    Ok(text[from..].to_owned())
}

/// Every spelling of every secret of this node.
struct Secrets(Vec<Zeroizing<String>>);

impl Secrets {
    fn collect(global: &Global, config: Option<&Config>) -> Self {
        let folder = state_dir(global, config);
        let mut files = Vec::new();
        // Old authority keys are kept under names of their own.
        if let Ok(entries) = std::fs::read_dir(&folder) {
            let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
            files.extend(paths.filter(|path| path.to_string_lossy().contains(".key")));
        }
        let mut spellings = Vec::new();
        if let Some(config) = config {
            files.push(config.private_key_file.clone());
            files.push(config.authority_key_file.clone());
            let preshared = config
                .peers
                .iter()
                .filter_map(|peer| peer.preshared_key.as_ref());
            for key in preshared {
                spell(key.as_bytes(), &mut spellings);
            }
            let turn = config.turn.iter().filter_map(|turn| turn.secret.as_ref());
            for secret in turn.filter(|secret| secret.as_bytes().len() >= TURN_SECRET_MIN) {
                let text = String::from_utf8_lossy(secret.as_bytes()).into_owned();
                spellings.push(Zeroizing::new(text));
            }
        }
        for path in files {
            let mut text = Zeroizing::new(String::new());
            let file = std::fs::File::open(path);
            if file.is_ok_and(|file| file.take(KEY_FILE_MAX).read_to_string(&mut text).is_ok()) {
                let line = text.trim();
                if line.len() >= 8 {
                    spellings.push(Zeroizing::new(line.to_owned()));
                }
                if let Ok(bytes) = STANDARD.decode(line).map(Zeroizing::new) {
                    spell(&bytes, &mut spellings);
                }
            }
        }
        Self(spellings)
    }

    /// The text without any of them, and without what looks like a token.
    fn strip(&self, text: &str) -> String {
        let mut out = text.to_owned();
        for secret in &self.0 {
            out = out.replace(secret.as_str(), REMOVED);
        }
        without_tokens(&out)
    }
}

/// As they may stand in a text. Padding is left out, so that the padded form is found as well.
fn spell(bytes: &[u8], out: &mut Vec<Zeroizing<String>>) {
    if bytes.len() < 16 {
        return;
    }
    let hex = |upper: bool| {
        let mut text = Zeroizing::new(String::new());
        for byte in bytes {
            _ = if upper {
                write!(text, "{byte:02X}")
            } else {
                write!(text, "{byte:02x}")
            };
        }
        text
    };
    out.push(Zeroizing::new(STANDARD_NO_PAD.encode(bytes)));
    out.push(Zeroizing::new(URL_SAFE_NO_PAD.encode(bytes)));
    out.push(hex(false));
    out.push(hex(true));
}

fn without_tokens(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("fsp1_") {
        out.push_str(&rest[..at]);
        out.push_str(REMOVED);
        let token = &rest[at..];
        let end = token.find(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '-' | '_')));
        rest = &token[end.unwrap_or(token.len())..];
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_spelling_of_a_key_and_no_token_passes() {
        let key = [0xfb; 32];
        let mut spellings = Vec::new();
        spell(&key, &mut spellings);
        let secrets = Secrets(spellings);
        let hex: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
        let text = format!(
            "a {} b {} c {hex} d {} e fsp1_Ab-9_x, f",
            STANDARD.encode(key),
            URL_SAFE_NO_PAD.encode(key),
            hex.to_uppercase()
        );
        assert_eq!(
            secrets.strip(&text),
            "a (removed)= b (removed) c (removed) d (removed) e (removed), f"
        );
    }

    #[test]
    fn values_that_sound_secret_are_left_out_of_the_configuration() {
        let text =
            "[node]\nname = \"a\"\nprivate-key = \"hunter2\"\nprivate-key-file = \"/etc/k\"\n";
        let shown = without_values(text);
        assert!(!shown.contains("hunter2"), "{shown}");
        assert!(shown.contains("\"/etc/k\"") && shown.contains("name = \"a\""));
        for line in [
            "turn = [{ url = \"turn:a\", secret = \"hunter2\" }]",
            "  { url = \"turn:a\", \"Secret\"=\"hunter2\" },",
            "stun = [\"a?token=hunter2\"]",
        ] {
            let shown = without_values(line);
            assert!(!shown.contains("hunter2"), "{shown}");
        }
        let path = "turn = [{ secret-file = \"/etc/k\", url = \"turn:a\" }]\n";
        assert_eq!(without_values(path), path);
    }

    #[test]
    fn the_secret_of_a_turn_server_is_stripped() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("secret");
        std::fs::write(&file, "hunter2\n").unwrap();
        let text = format!(
            "[relay]\nturn = [{{ url = \"turn:turn.example\", secret-file = \"{}\" }}]\n",
            file.display()
        );
        let global = global(folder.path());
        let config = Config::parse(&text, None, &global, &AgentArgs::default()).unwrap();
        let secrets = Secrets::collect(&global, Some(&config));
        assert_eq!(secrets.strip("a hunter2 b"), "a (removed) b");
    }

    #[test]
    fn where_the_configuration_is_broken_the_given_state_folder_is_looked_at() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("agent.log"), "the last words").unwrap();
        let mut report = Report::default();
        let error = config::ConfigError("broken".to_owned());
        report.files(&global(folder.path()), Err(&error));
        assert!(report.text.contains("the last words"), "{}", report.text);
    }

    fn global(state_dir: &Path) -> Global {
        Global {
            state_dir: Some(state_dir.to_path_buf()),
            ..Global::default()
        }
    }

    #[test]
    fn the_end_of_a_long_log_begins_with_a_whole_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        std::fs::write(&path, "é line\n".repeat(100_000)).unwrap();
        let text = tail(&path).unwrap();
        assert!(text.starts_with("é line\n") && text.ends_with("é line\n"));
        assert!(text.len() as u64 <= LOG_MAX);
    }
}
