//! What the real binary says where it cannot work, and what it tells to machines that ask.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use crate::lab::agent::{PATIENCE, tail};
use crate::lab::wait::wait_until;
use crate::lab::{Lab, Node};
use crate::scene::{founder, static_pair};

/// Runs the agent after `prepare`, in a mount namespace of its own.
fn prepared(prepare: &str) -> [String; 6] {
    [
        "unshare".into(),
        "--mount".into(),
        "sh".into(),
        "-ec".into(),
        format!("{prepare}\nexec \"$@\""),
        "sh".into(),
    ]
}

/// Starts an agent that must give up, and returns its only line.
#[track_caller]
fn last_words(node: &mut Node, prepare: &str) -> String {
    let words = prepared(prepare);
    node.start_by(&words.each_ref().map(String::as_str));
    assert!(!node.wait_ended(), "the agent gives up");
    let log = tail(&node.file("agent-1.log"), 20);
    assert!(!log.contains("panicked"), "{log}");
    let mut said = log.lines().filter(|line| line.starts_with("farspan: "));
    let sentence = said.next().expect("a sentence").to_owned();
    assert_eq!(said.next(), None, "{log}");
    sentence
}

#[test]
fn without_the_tun_device_one_sentence_says_so_and_nothing_is_left() {
    let lab = Lab::new();
    let (mut a, _b) = static_pair(&lab);
    let before = a.kernel_state();
    let sentence = last_words(&mut a, "mount -t tmpfs none /dev/net");
    assert!(sentence.contains("/dev/net/tun"), "{sentence}");
    assert_eq!(a.kernel_state(), before);
}

#[test]
fn a_full_disk_is_one_sentence_and_nothing_is_left() {
    let lab = Lab::new();
    let (mut a, _b) = static_pair(&lab);
    let before = a.kernel_state();
    let state = a.file("state").display().to_string();
    let prepare = format!(
        "mkdir -p {state}; chmod 700 {state}; mount -t tmpfs -o size=8k,mode=700 none {state}\n\
         dd if=/dev/zero of={state}/fill bs=4k 2>/dev/null || true"
    );
    let sentence = last_words(&mut a, &prepare);
    assert!(sentence.contains("no space left on the disk"), "{sentence}");
    assert_eq!(a.kernel_state(), before);
}

#[test]
fn metrics_and_health_are_served_by_tcp() {
    let lab = Lab::new();
    let mut hub = founder(&lab, lab.public_host("hub"));
    hub.start_by(&["env", "FARSPAN_METRICS_LISTEN=127.0.0.1:9586"]);
    hub.wait_answering();
    let get = |path: &str| {
        hub.host.namespace.enter(|| {
            let mut stream = TcpStream::connect("127.0.0.1:9586").expect("the listener answers");
            let request = format!("GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
            stream.write_all(request.as_bytes()).expect("it reads");
            let mut answer = String::new();
            stream.read_to_string(&mut answer).expect("it answers");
            answer
        })
    };
    wait_until("the first plan is made", PATIENCE, || {
        let ready = get("/readyz");
        if ready.starts_with("HTTP/1.1 200") {
            Ok(())
        } else {
            Err(ready)
        }
    });
    assert!(get("/healthz").ends_with("\r\n\r\nok\n"));
    let metrics = get("/metrics");
    assert!(metrics.starts_with("HTTP/1.1 200"), "{metrics}");
    assert!(
        metrics.contains("content-type: application/openmetrics-text"),
        "{metrics}"
    );
    assert!(
        metrics.contains("farspan_peers{region=\"\",state=\"direct\"} 0\n"),
        "{metrics}"
    );
    assert!(metrics.ends_with("\n# EOF\n"), "{metrics}");
    // Verbs are for the Unix socket alone.
    assert!(get("/status").starts_with("HTTP/1.1 404"));
}

#[test]
fn a_peers_host_name_is_looked_up_and_a_wrong_one_is_a_finding() {
    let lab = Lab::new();
    let (mut a, mut b) = static_pair(&lab);
    let file = a.file("farspan.toml");
    let text = fs::read_to_string(&file).expect("the lab wrote it");
    let address = b.host.ipv4;
    assert!(text.contains(&format!("\"{address}:")), "{text}");
    let named = text.replace(&format!("\"{address}:"), "\"peer-b.example:");
    a.write_config(&named);
    // b waits to be called: only the name leads to a path.
    let called = fs::read_to_string(b.file("farspan.toml")).expect("the lab wrote it");
    b.write_config(&called.replace(&format!("\"{}:22000\"", a.host.ipv4), ""));
    let hosts = a.file("hosts");
    let name = |known: &str| {
        fs::write(&hosts, format!("{address} {known}\n")).expect("the lab's directory is writable");
    };
    name("someone-else.example");
    let resolver = a.file("resolv.conf");
    fs::write(&resolver, "nameserver 127.0.0.1\n").expect("the lab's directory is writable");
    let words = prepared(&format!(
        "mount --bind {} /etc/hosts; mount --bind {} /etc/resolv.conf",
        hosts.display(),
        resolver.display()
    ));
    a.start_by(&words.each_ref().map(String::as_str));
    a.wait_answering();
    b.up();
    let finding = a.wait_finding("endpoint-unresolved", PATIENCE);
    assert!(finding.to_string().contains("peer-b.example"), "{finding}");
    // In place: the agent sees the file that was bound.
    name("peer-b.example");
    a.wait_direct("b", PATIENCE);
}
