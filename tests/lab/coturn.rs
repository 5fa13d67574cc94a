//! A real coturn on a public host: TURN over UDP, TCP and TLS, credentials from a shared secret.

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command};

use super::internet::{Host, Lab};
use super::netns::{run, start_logging};
use super::wait::wait_until;

/// Port for UDP and TCP.
pub const PORT: u16 = 3478;
/// Port for TLS: what every network lets out.
pub const TLS_PORT: u16 = 443;

/// A running coturn. Dropping it ends it.
pub struct Coturn {
    /// Where it runs.
    pub host: Host,
    secret: String,
    directory: PathBuf,
    child: Option<Child>,
}

impl Coturn {
    /// Starts it and waits until it listens.
    pub fn start(lab: &Lab, host: Host, secret: &str) -> Self {
        let directory = lab.directory().join(&host.name);
        fs::create_dir_all(&directory).expect("the lab's directory is writable");
        let mut server = Self {
            host,
            secret: secret.to_owned(),
            directory,
            child: None,
        };
        server.certify();
        server.run();
        server
    }

    /// A certificate for its address, signed by an authority of its own.
    fn certify(&self) {
        let file = |name: &str| self.directory.join(name).display().to_string();
        let name = format!("subjectAltName=IP:{}", self.host.ipv4);
        let days = [
            "-nodes",
            "-days",
            "2",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
        ];
        let (key, ca, ca_key) = (file("key.pem"), file("ca.pem"), file("ca-key.pem"));
        run(Command::new("openssl")
            .args(["req", "-x509", "-subj", "/CN=lab"])
            .args(days)
            .args(["-keyout", &ca_key, "-out", &ca]));
        run(Command::new("openssl")
            .args(["req", "-x509", "-subj", "/CN=turn"])
            .args(days)
            .args([
                "-CA",
                &ca,
                "-CAkey",
                &ca_key,
                "-keyout",
                &key,
                "-out",
                &file("cert.pem"),
                "-addext",
                &name,
                "-addext",
                "basicConstraints=critical,CA:FALSE",
            ]));
    }

    /// The certificate of the authority that signed its own.
    pub fn authority(&self) -> PathBuf {
        self.directory.join("ca.pem")
    }

    /// What clients write into their configuration, by `udp`, `tcp` or `tls`.
    pub fn url(&self, transport: &str) -> String {
        let ip = self.host.ipv4;
        match transport {
            "udp" => format!("turn:{ip}:{PORT}"),
            "tcp" => format!("turn:{ip}:{PORT}?transport=tcp"),
            "tls" => format!("turns:{ip}:{TLS_PORT}"),
            other => panic!("{other} is no transport"),
        }
    }

    /// Starts it again after [`Self::kill`]: it remembers nothing.
    pub fn run(&mut self) {
        let log = self.directory.join("turnserver.log");
        let ip = self.host.ipv4.to_string();
        let file = |name: &str| self.directory.join(name).display().to_string();
        let mut command = self.host.namespace.command("turnserver");
        command.args([
            "-n",
            "--no-cli",
            "--log-file=stdout",
            "--verbose",
            "--use-auth-secret",
        ]);
        command.args(["--realm=example.org", "--no-multicast-peers", "--no-dtls"]);
        for (option, value) in [
            ("static-auth-secret", &self.secret),
            ("listening-ip", &ip),
            ("relay-ip", &ip),
            ("listening-port", &PORT.to_string()),
            ("tls-listening-port", &TLS_PORT.to_string()),
            ("cert", &file("cert.pem")),
            ("pkey", &file("key.pem")),
            ("userdb", &file("turn.db")),
            ("pidfile", &file("pid")),
        ] {
            command.arg(format!("--{option}={value}"));
        }
        self.child = Some(start_logging(&mut command, &log));
        let at = SocketAddr::new(self.host.ipv4.into(), TLS_PORT);
        wait_until("coturn listens", super::agent::PATIENCE, || {
            let connect = || std::net::TcpStream::connect(at).map(drop);
            self.host
                .namespace
                .enter(connect)
                .map_err(|error| error.to_string())
        });
    }

    /// Ends it without a word.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// What it has written.
    pub fn log(&self) -> String {
        fs::read_to_string(self.directory.join("turnserver.log")).unwrap_or_default()
    }
}

impl Drop for Coturn {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            let log = self.directory.join("turnserver.log");
            eprintln!(
                "--- end of coturn's log ---\n{}",
                super::agent::tail(&log, 40)
            );
        }
    }
}
