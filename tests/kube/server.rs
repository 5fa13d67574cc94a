//! A kube-apiserver with its etcd: Node and RBAC authorization, NodeRestriction, an audit log of what agents ask.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use crate::lab::Host;
use crate::lab::agent::tail;
use crate::lab::netns::{pipe, run, start_logging};
use crate::lab::wait::wait_until;
use crate::user::User;

/// Where it listens.
pub const PORT: u16 = 6443;
/// Starting takes some 4 s of a processor.
const START: Duration = Duration::from_secs(120);
/// The accounts of agents, and of machines outside.
const ACCOUNTS: &str = "system:serviceaccounts:farspan";

/// A control plane without controllers. It is ended when dropped; its data stay as long as the lab.
pub struct ApiServer {
    /// The machine it runs on.
    pub host: Host,
    directory: PathBuf,
    process: Option<Child>,
    starts: u32,
}

impl ApiServer {
    /// Starts one with an empty etcd, and kubelets' tokens for nodes of these names.
    pub fn start(host: Host, directory: PathBuf, kubelets: &[&str]) -> Self {
        fs::create_dir_all(&directory).expect("the lab's directory is writable");
        let mut server = Self {
            host,
            directory,
            process: None,
            starts: 0,
        };
        // PKCS#8 is refused.
        run(Command::new("openssl")
            .args([
                "ecparam",
                "-name",
                "prime256v1",
                "-genkey",
                "-noout",
                "-out",
            ])
            .arg(server.file("sa.key")));
        let mut tokens = "admin,admin,admin,system:masters\n".to_owned();
        for name in kubelets {
            tokens.push_str(&format!(
                "kubelet-{name},system:node:{name},{name},system:nodes\n"
            ));
        }
        server.write("tokens.csv", &tokens);
        let rules = json!([{"level": "Metadata", "userGroups": [ACCOUNTS]}, {"level": "None"}]);
        let policy = json!({"apiVersion": "audit.k8s.io/v1", "kind": "Policy", "omitStages": ["RequestReceived"], "rules": rules});
        server.write("audit.json", &policy.to_string());
        server.restart();
        server.write("admin.kubeconfig", &server.kubeconfig("token: admin"));
        server
    }

    /// Starts it on the data it has, and waits until it is ready.
    pub fn restart(&mut self) {
        assert!(self.process.is_none(), "the API server runs already");
        self.starts += 1;
        let mut command = self.host.namespace.command(&tool("kube-apiserver"));
        command.current_dir(&self.directory).args([
            "--cert-dir=certs",
            "--bind-address=0.0.0.0",
            &format!("--advertise-address={}", self.host.ipv4),
            &format!("--secure-port={PORT}"),
            "--service-cluster-ip-range=10.96.0.0/16,fd10:96::/112",
            "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction",
            "--allow-privileged=true",
            "--token-auth-file=tokens.csv",
            "--service-account-issuer=https://kubernetes.default.svc",
            "--service-account-key-file=sa.key",
            "--service-account-signing-key-file=sa.key",
            "--audit-policy-file=audit.json",
            "--audit-log-path=audit.log",
        ]);
        let mut process = start_logging(&mut command, &self.log());
        let log = self.log();
        wait_until("the API server is ready", START, || {
            if let Ok(Some(status)) = process.try_wait() {
                panic!("the API server ended ({status}): {}", tail(&log, 20));
            }
            // Its certificate is made by its first start.
            let certificate = self.file("certs/apiserver.crt");
            fs::metadata(&certificate)
                .map_err(|error| format!("{}: {error}", certificate.display()))?;
            let ready = self
                .admin()
                .text("/readyz")
                .map_err(|refusal| refusal.to_string());
            ready.map(drop)
        });
        self.process = Some(process);
    }

    /// Ends it with SIGKILL; etcd ends with it.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }

    /// Removes what etcd holds.
    pub fn forget(&mut self) {
        assert!(self.process.is_none(), "the API server runs");
        fs::remove_dir_all(self.file("etcd")).expect("etcd has a folder");
    }

    /// Its address, as agents and kubelets are told.
    pub fn url(&self) -> String {
        format!("https://{}:{PORT}", self.host.ipv4)
    }

    /// A kubeconfig file with these credentials: `token: T` or `tokenFile: PATH`.
    pub fn kubeconfig(&self, credentials: &str) -> String {
        format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: c\ncontexts: [{{name: c, context: {{cluster: c, user: u}}}}]\n\
             clusters: [{{name: c, cluster: {{server: \"{}\", certificate-authority: \"{}\"}}}}]\n\
             users: [{{name: u, user: {{{credentials}}}}}]\n",
            self.url(),
            self.file("certs/apiserver.crt").display()
        )
    }

    /// Somebody who shows this token, on the server's own machine.
    pub fn user(&self, token: &str) -> User {
        let kubeconfig = self.kubeconfig(&format!("token: \"{token}\""));
        User::new(self.host.namespace.clone(), &kubeconfig)
    }

    /// Who may do everything.
    pub fn admin(&self) -> User {
        self.user("admin")
    }

    /// The kubelet of a node.
    pub fn kubelet(&self, node: &str) -> User {
        self.user(&format!("kubelet-{node}"))
    }

    /// Runs kubectl as admin with `input` on its stdin.
    pub fn kubectl(&self, arguments: &[&str], input: &str) -> Output {
        let mut command = self.host.namespace.command(&tool("kubectl"));
        command
            .env("KUBECONFIG", self.file("admin.kubeconfig"))
            .env("HOME", &self.directory)
            .args(arguments);
        pipe(&mut command, input)
    }

    /// Runs kubectl as admin; returns what it printed, and panics when it fails.
    pub fn kubectl_ok(&self, arguments: &[&str], input: &str) -> String {
        let output = self.kubectl(arguments, input);
        assert!(
            output.status.success(),
            "kubectl {arguments:?}: {}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// What agents have asked since the first start: an audit event each, at its end.
    pub fn audit(&self) -> Vec<Value> {
        let text = fs::read_to_string(self.file("audit.log")).unwrap_or_default();
        // The last line may be half written.
        text.lines()
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect()
    }

    /// A file of the server.
    pub fn file(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.file(name), text).expect("the server's directory is writable");
    }

    fn log(&self) -> PathBuf {
        self.file(&format!("apiserver-{}.log", self.starts))
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!(
                "--- end of the API server's log ---\n{}",
                tail(&self.log(), 20)
            );
        }
        self.kill();
    }
}

/// The path of one of the programs that scripts/lib/kube.sh builds.
pub fn tool(name: &str) -> String {
    let folder = std::env::var("FARSPAN_KUBE_TOOLS").expect(
        "FARSPAN_KUBE_TOOLS is the folder of kube-apiserver and kubectl: run scripts/test kube",
    );
    let path = Path::new(&folder).join(name);
    assert!(
        path.exists(),
        "{} is missing: run scripts/test kube",
        path.display()
    );
    path.display().to_string()
}
