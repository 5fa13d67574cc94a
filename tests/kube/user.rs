//! Somebody with a token, and what the API server answers to them.

use std::fmt;
use std::pin::pin;

use axum::http::Request;
use futures::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt, StreamExt};
use kube::config::{KubeConfigOptions, Kubeconfig};
use serde_json::Value;
use tokio::runtime::{Builder, Runtime};

use crate::lab::netns::Namespace;

/// Content type of an object.
pub const JSON: &str = "application/json";
/// Content type of a server-side apply.
pub const APPLY: &str = "application/apply-patch+yaml";
/// Content type of a merge patch (RFC 7386).
pub const MERGE: &str = "application/merge-patch+json";
/// Accepts a list of objects without spec and status.
pub const METADATA_LIST: &str = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1";
/// Accepts such objects one by one, as a watch brings them.
pub const METADATA: &str = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1";

/// A client with one identity, in one namespace.
pub struct User {
    namespace: Namespace,
    runtime: Runtime,
    client: kube::Client,
}

/// The API server's no.
#[derive(Debug)]
pub struct Refusal {
    /// The HTTP status.
    pub code: u16,
    /// In one word.
    pub reason: String,
    /// In a sentence.
    pub message: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: {}", self.code, self.reason, self.message)
    }
}

impl User {
    /// The one whom a kubeconfig file names.
    pub fn new(namespace: Namespace, kubeconfig: &str) -> Self {
        let runtime = Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime can be made");
        let client = runtime.block_on(async {
            let file = Kubeconfig::from_yaml(kubeconfig).expect("a kubeconfig");
            let options = KubeConfigOptions::default();
            let mut config = kube::Config::from_custom_kubeconfig(file, &options)
                .await
                .expect("a complete kubeconfig");
            // Each answer counts, also `too many requests`.
            config.default_retry = false;
            // What is weighed is what was asked for.
            config.disable_compression = true;
            kube::Client::try_from(config).expect("the server's certificate is readable")
        });
        Self {
            namespace,
            runtime,
            client,
        }
    }

    /// GET.
    pub fn get(&self, path: &str) -> Result<Value, Refusal> {
        self.send("GET", path, JSON, None)
    }

    /// What a path that does not speak JSON answers.
    pub fn text(&self, path: &str) -> Result<String, Refusal> {
        let sent = request("GET", path, &[], None);
        let text = self.block_on(self.client.request_text(sent));
        text.map_err(|error| refusal(&error))
    }

    /// POST.
    pub fn create(&self, path: &str, object: &Value) -> Result<Value, Refusal> {
        self.send("POST", path, JSON, Some(object))
    }

    /// DELETE, at once.
    pub fn delete(&self, path: &str) -> Result<Value, Refusal> {
        let path = format!("{path}?gracePeriodSeconds=0");
        self.send("DELETE", &path, JSON, None)
    }

    /// Server-side apply as the agent does it: its field manager, by force.
    pub fn apply(&self, path: &str, object: &Value) -> Result<Value, Refusal> {
        let join = if path.contains('?') { '&' } else { '?' };
        let path = format!("{path}{join}fieldManager=farspan&force=true");
        self.send("PATCH", &path, APPLY, Some(object))
    }

    /// A merge patch: `null` removes.
    pub fn merge(&self, path: &str, patch: &Value) -> Result<Value, Refusal> {
        self.send("PATCH", path, MERGE, Some(patch))
    }

    /// Sends many requests, some at a time; panics when one is refused.
    pub fn all(&self, method: &'static str, content: &'static str, requests: &[(String, Value)]) {
        self.block_on(async {
            for some in requests.chunks(32) {
                let mut running = tokio::task::JoinSet::new();
                for (path, body) in some.iter().cloned() {
                    let client = self.client.clone();
                    let sent = request(method, &path, &[("content-type", content)], Some(&body));
                    running.spawn(async move { (path, answer(&client, sent).await) });
                }
                while let Some(done) = running.join_next().await {
                    let (path, answer) = done.expect("nothing panics there");
                    if let Err(refusal) = answer {
                        panic!("{method} {path}: {refusal}");
                    }
                }
            }
        });
    }

    /// The body of an answer, as it comes over the wire.
    pub fn bytes(&self, path: &str, headers: &[(&str, &str)]) -> Vec<u8> {
        self.block_on(async {
            let mut whole = Vec::new();
            let mut body = pin!(self.open(path, headers).await);
            body.read_to_end(&mut whole).await.expect("a whole body");
            whole
        })
    }

    /// The first `count` lines of a watch: an event each.
    pub fn watch(&self, path: &str, accept: &str, count: usize) -> Vec<String> {
        self.block_on(async {
            let body = pin!(self.open(path, &[("accept", accept)]).await);
            let lines: Vec<_> = body.lines().take(count).collect().await;
            let lines = lines.into_iter().collect::<Result<Vec<_>, _>>();
            lines.expect("the watch goes on")
        })
    }

    fn send(
        &self,
        method: &str,
        path: &str,
        content: &str,
        body: Option<&Value>,
    ) -> Result<Value, Refusal> {
        let sent = request(method, path, &[("content-type", content)], body);
        self.block_on(answer(&self.client, sent))
    }

    async fn open(&self, path: &str, headers: &[(&str, &str)]) -> impl AsyncBufRead + use<> {
        let sent = request("GET", path, headers, None);
        let body = self.client.request_stream(sent).await;
        body.unwrap_or_else(|error| panic!("GET {path}: {error}"))
    }

    fn block_on<T: Send>(&self, future: impl Future<Output = T> + Send) -> T {
        self.namespace.enter(|| self.runtime.block_on(future))
    }
}

fn request(
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: Option<&Value>,
) -> Request<Vec<u8>> {
    let mut request = Request::builder().method(method).uri(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let body = body.map(|body| body.to_string().into_bytes());
    request
        .body(body.unwrap_or_default())
        .expect("a well-formed request")
}

async fn answer(client: &kube::Client, request: Request<Vec<u8>>) -> Result<Value, Refusal> {
    client
        .request(request)
        .await
        .map_err(|error| refusal(&error))
}

fn refusal(error: &kube::Error) -> Refusal {
    let kube::Error::Api(status) = error else {
        // No answer at all.
        return Refusal {
            code: 0,
            reason: "NoAnswer".to_owned(),
            message: error.to_string(),
        };
    };
    Refusal {
        code: status.code,
        reason: status.reason.clone(),
        message: status.message.clone(),
    }
}
