//! The API server: how it is reached, one deadline for each request, and failures as sentences.

use std::fmt;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, anyhow};
use axum::http;
use axum::http::header::{AUTHORIZATION, HeaderValue};
use futures::StreamExt as _;
use futures::stream::BoxStream;
use kube::core::params::{GetParams, ListParams, Patch, PatchParams, PostParams, WatchParams};
use kube::core::request::{Error as RequestError, Request};
use kube::core::{Status, WatchEvent};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::kubeconfig;
use super::node::List;
use crate::agent::metrics;
use crate::config::kubernetes::Kubernetes;
use crate::config::sentence;

/// A server that is there answers sooner.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);
/// The listing of 5,000 nodes is 75 MB, 5 MB where the server compresses it.
const LIST_WITHIN: Duration = Duration::from_secs(120);
const CONNECT_WITHIN: Duration = Duration::from_secs(5);
/// How long the server keeps a watch open.
const WATCH_FOR: Duration = Duration::from_secs(270);
/// Who writes the announcement, for server-side apply.
const FIELD_MANAGER: &str = "farspan";
/// What the API server's certificate is valid for in every cluster.
const SERVER_NAME: &str = "kubernetes.default.svc";

/// A request that came to nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// What kind.
    pub kind: Kind,
    /// What the server or the network said.
    pub message: String,
}

/// Kinds of failures, as far as somebody acts differently on them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// 401: the token is not accepted.
    Unauthorized,
    /// 403: RBAC.
    Forbidden,
    /// 404.
    NotFound,
    /// 409.
    Conflict,
    /// 410: the revision is too old to go on from.
    Gone,
    /// 422: validation or an admission policy.
    Invalid,
    /// 429.
    Throttled,
    /// 5xx.
    Server,
    /// No answer in time.
    Timeout,
    /// No connection.
    Unreachable,
    /// An answer that is none.
    Malformed,
}

impl Kind {
    /// The word in metrics.
    pub fn kind(self) -> &'static str {
        match self {
            Self::Unauthorized => "unauthorized",
            Self::Forbidden => "forbidden",
            Self::NotFound => "not-found",
            Self::Conflict => "conflict",
            Self::Gone => "gone",
            Self::Invalid => "invalid",
            Self::Throttled => "throttled",
            Self::Server => "server",
            Self::Timeout => "timeout",
            Self::Unreachable => "unreachable",
            Self::Malformed => "malformed",
        }
    }

    fn of(code: u16) -> Self {
        match code {
            401 => Self::Unauthorized,
            403 => Self::Forbidden,
            404 => Self::NotFound,
            409 => Self::Conflict,
            410 => Self::Gone,
            400 | 422 => Self::Invalid,
            429 => Self::Throttled,
            _ => Self::Server,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.kind {
            Kind::Unauthorized => {
                "this agent's token is not accepted (401); a pod's token ends with its pod, one in a kubeconfig may have expired"
            }
            Kind::Forbidden => {
                "RBAC denies it (403); apply the ClusterRole that `farspan manifests` prints"
            }
            Kind::NotFound => "there is no such object (404)",
            Kind::Conflict => "the object is another one by now (409)",
            Kind::Gone => "the revision is too old (410)",
            Kind::Invalid => "the API server refuses it (422)",
            Kind::Throttled => "the API server is busy (429)",
            Kind::Server => "the API server failed",
            Kind::Timeout => "the API server gave no answer",
            Kind::Unreachable => "the API server cannot be reached",
            Kind::Malformed => "the API server's answer cannot be read",
        };
        write!(f, "{what}: {}", self.message)
    }
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        // A stored revision from another history of the cluster: begin anew.
        let ahead = status.code == 504 && status.message.contains("Too large resource version");
        Self {
            kind: if ahead {
                Kind::Gone
            } else {
                Kind::of(status.code)
            },
            message: short(&status.message),
        }
    }
}

impl From<kube::Error> for Failure {
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "kube's errors are an open set"
    )]
    fn from(error: kube::Error) -> Self {
        let (kind, message) = match error {
            kube::Error::Api(status) => return (*status).into(),
            kube::Error::SerdeError(error) => (Kind::Malformed, error.to_string()),
            kube::Error::BuildRequest(error) => (Kind::Malformed, error.to_string()),
            kube::Error::FromUtf8(error) => (Kind::Malformed, error.to_string()),
            // Credentials are made on the way to the server.
            kube::Error::Service(error) if error.is::<kube::client::AuthError>() => {
                (Kind::Unauthorized, chain(&*error))
            }
            kube::Error::Service(error) => (Kind::Unreachable, chain(&*error)),
            kube::Error::Auth(error) => (Kind::Unauthorized, chain(&error)),
            error => (Kind::Unreachable, chain(&error)),
        };
        Self {
            kind,
            message: short(&message),
        }
    }
}

/// An error with its causes; the outermost of a client library says little.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut said: Vec<String> = Vec::new();
    let mut next = Some(error);
    while let Some(error) = next {
        let text = error.to_string();
        if !said.iter().any(|before| before.contains(&text)) {
            said.push(text);
        }
        next = error.source();
    }
    said.join(": ")
}

/// One line, 512 bytes at most: a proxy's error page is no sentence.
fn short(text: &str) -> String {
    let line: String = text
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    let end = line.floor_char_boundary(512);
    line[..end].trim().to_owned()
}

/// How current a listing must be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fresh {
    /// Whatever the server has in its cache.
    Any,
    /// Not older than this revision.
    Since(String),
    /// What etcd says now.
    Now,
}

/// What of an object is watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Everything.
    Whole,
    /// Its metadata.
    Metadata,
}

/// Paths of the objects that the agent reads and writes.
pub mod path {
    /// Nodes.
    pub const NODES: &str = "/api/v1/nodes";
    /// The policy.
    pub const POLICIES: &str = "/apis/farspan.io/v1alpha1/meshpolicies";
    /// Machines outside.
    pub const EXTERNALS: &str = "/apis/farspan.io/v1alpha1/externalpeers";
    /// Namespaces.
    pub const NAMESPACES: &str = "/api/v1/namespaces";
    /// Services of namespace default.
    pub const SERVICES: &str = "/api/v1/namespaces/default/services";
    /// Services of namespace kube-system.
    pub const SYSTEM_SERVICES: &str = "/api/v1/namespaces/kube-system/services";
    /// Where Services of namespace default lead.
    pub const SLICES: &str = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices";
    /// Ranges of Services.
    pub const SERVICE_CIDRS: &str = "/apis/networking.k8s.io/v1/servicecidrs";
    /// Events about what belongs to no namespace.
    pub const EVENTS: &str = "/apis/events.k8s.io/v1/namespaces/default/events";
}

/// A connection to one API server.
#[derive(Clone)]
pub struct Api {
    client: kube::Client,
    /// Where the token is, read for every request: it is rotated.
    token_file: Option<PathBuf>,
    metrics: metrics::Api,
    server: String,
}

impl fmt::Debug for Api {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Api").field("server", &self.server).finish()
    }
}

impl Api {
    /// Reads credentials; speaks to nobody yet. Inside a tokio runtime.
    pub async fn open(config: &Kubernetes, metrics: metrics::Api) -> Result<Self> {
        let mut client = credentials(config).await?;
        if let Some(server) = &config.api_server {
            // The certificate may not name this address; it always names the Service.
            let named = client.tls_server_name.is_some() || server.is_name;
            client.cluster_url = server.url.clone();
            if !named {
                client.tls_server_name = Some(SERVER_NAME.to_owned());
            }
        }
        client.connect_timeout = Some(CONNECT_WITHIN);
        // Retries belong to the callers, who say what goes wrong.
        client.default_retry = false;
        let server = client.cluster_url.host().unwrap_or_default();
        let server = server.trim_matches(['[', ']']).to_owned();
        let token_file = match client.auth_info.token {
            // As everywhere, a token goes before a file of one.
            Some(_) => None,
            None => client.auth_info.token_file.take().map(PathBuf::from),
        };
        let client = kube::Client::try_from(client)
            .map_err(|error| anyhow!("cannot prepare the connection: {}", chain(&error)))?;
        Ok(Self {
            client,
            token_file,
            metrics,
            server,
        })
    }

    /// A server without TLS that asks nobody who they are.
    #[cfg(test)]
    pub fn at(url: &str) -> Self {
        let mut config = kube::Config::new(url.parse().unwrap());
        config.default_retry = false;
        Self {
            client: kube::Client::try_from(config).unwrap(),
            token_file: None,
            metrics: metrics::Api::default(),
            server: url.to_owned(),
        }
    }

    /// Host of the server's URL: a name or an address.
    pub fn server(&self) -> &str {
        &self.server
    }

    /// Counters of what is asked.
    pub fn metrics(&self) -> &metrics::Api {
        &self.metrics
    }

    /// One object as it is now.
    pub async fn get<T: DeserializeOwned>(&self, path: &str, name: &str) -> Result<T, Failure> {
        let request = Request::new(path).get(name, &GetParams::default());
        self.call("get", request, |request| self.client.request(request))
            .await
    }

    /// All objects, and the revision to watch from.
    pub async fn list<T: DeserializeOwned>(
        &self,
        path: &str,
        fresh: &Fresh,
    ) -> Result<List<T>, Failure> {
        let params = match fresh {
            Fresh::Any => ListParams::default().match_any(),
            Fresh::Since(revision) => ListParams::default()
                .at(revision)
                .matching(kube::core::params::VersionMatch::NotOlderThan),
            Fresh::Now => ListParams::default(),
        };
        let request = Request::new(path).list(&params);
        self.call("list", request, |request| self.client.request(request))
            .await
    }

    /// What happens from `revision` on; ends after some minutes.
    pub async fn watch<T>(
        &self,
        path: &str,
        part: Part,
        revision: &str,
    ) -> Result<BoxStream<'static, Result<WatchEvent<T>, Failure>>, Failure>
    where
        T: Clone + DeserializeOwned + Send + 'static,
    {
        let params = WatchParams {
            timeout: u32::try_from(WATCH_FOR.as_secs()).ok(),
            bookmarks: true,
            ..WatchParams::default()
        };
        let request = Request::new(path);
        let request = match part {
            Part::Whole => request.watch(&params, revision),
            Part::Metadata => request.watch_metadata(&params, revision),
        };
        let stream = self
            .call("watch", request, |request| {
                self.client.request_events::<T>(request)
            })
            .await?;
        Ok(stream.map(|event| event.map_err(Failure::from)).boxed())
    }

    /// Server-side apply of an object's fields that are ours; gives its metadata as they are then.
    pub async fn apply(&self, path: &str, name: &str, object: &Value) -> Result<Value, Failure> {
        let params = PatchParams::apply(FIELD_MANAGER).force();
        self.patch("apply", path, name, (&params, &Patch::Apply(object)))
            .await
    }

    /// Merge patch (RFC 7386) of an object's metadata; `null` removes.
    pub async fn merge(&self, path: &str, name: &str, patch: &Value) -> Result<Value, Failure> {
        let params = PatchParams {
            field_manager: Some(FIELD_MANAGER.to_owned()),
            ..PatchParams::default()
        };
        self.patch("merge", path, name, (&params, &Patch::Merge(patch)))
            .await
    }

    async fn patch(
        &self,
        verb: &'static str,
        path: &str,
        name: &str,
        (params, patch): (&PatchParams, &Patch<&Value>),
    ) -> Result<Value, Failure> {
        let request = Request::new(path).patch_metadata(name, params, patch);
        self.call(verb, request, |request| self.client.request(request))
            .await
    }

    /// A new object.
    pub async fn create(&self, path: &str, object: &Value) -> Result<(), Failure> {
        let params = PostParams {
            field_manager: Some(FIELD_MANAGER.to_owned()),
            ..PostParams::default()
        };
        let request = Request::new(path).create(&params, object.to_string().into_bytes());
        self.call("create", request, |request| {
            self.client.request::<Value>(request)
        })
        .await
        .map(drop)
    }

    fn authorized(
        &self,
        mut request: http::Request<Vec<u8>>,
    ) -> Result<http::Request<Vec<u8>>, Failure> {
        if let Some(file) = &self.token_file {
            request.headers_mut().insert(AUTHORIZATION, bearer(file)?);
        }
        Ok(request)
    }

    async fn call<T, F>(
        &self,
        verb: &'static str,
        request: Result<http::Request<Vec<u8>>, RequestError>,
        send: impl FnOnce(http::Request<Vec<u8>>) -> F,
    ) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, kube::Error>>,
    {
        let within = if verb == "list" {
            LIST_WITHIN
        } else {
            ANSWER_WITHIN
        };
        let request = request.map_err(|error| Failure {
            kind: Kind::Malformed,
            message: error.to_string(),
        });
        let result = match request.and_then(|request| self.authorized(request)) {
            Ok(request) => match tokio::time::timeout(within, send(request)).await {
                Ok(result) => result.map_err(Failure::from),
                Err(_) => Err(Failure {
                    kind: Kind::Timeout,
                    message: format!("{} s passed", within.as_secs()),
                }),
            },
            Err(failure) => Err(failure),
        };
        self.metrics.request(
            verb,
            result.as_ref().map_or_else(|f| f.kind.kind(), |_| "ok"),
        );
        result
    }
}

/// `Bearer` and what a token's file holds, whatever white space an editor or a shell left around it.
fn bearer(file: &Path) -> Result<HeaderValue, Failure> {
    let refuse = |what: String| Failure {
        kind: Kind::Unauthorized,
        message: format!("the token in {} {what}", file.display()),
    };
    let text = std::fs::read_to_string(file)
        .map_err(|error| refuse(format!("cannot be read: {}", sentence(&error))))?;
    let token = text.trim();
    if token.is_empty() {
        return Err(refuse("is empty".to_owned()));
    }
    let mut value = HeaderValue::from_str(&format!("Bearer {token}"))
        .map_err(|_| refuse("is no token: it has characters that none has".to_owned()))?;
    value.set_sensitive(true);
    Ok(value)
}

/// From the file that was named, else from the pod's ServiceAccount.
async fn credentials(config: &Kubernetes) -> Result<kube::Config> {
    let Some(file) = &config.kubeconfig else {
        return kube::Config::incluster_env().map_err(|error| {
            anyhow!(
                "cannot read the ServiceAccount of this pod: {}; outside of a pod give --kubeconfig",
                chain(&error)
            )
        });
    };
    kubeconfig::for_an_agent(file).await
}

/// Waits between attempts: from 1 s to 30 s, doubling, half of it by chance.
#[derive(Debug, Clone)]
pub struct Backoff {
    next: Duration,
    most: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self::up_to(Duration::from_secs(30))
    }
}

impl Backoff {
    const FIRST: Duration = Duration::from_secs(1);

    /// Ends at `most`.
    pub fn up_to(most: Duration) -> Self {
        Self {
            next: Self::FIRST,
            most,
        }
    }

    /// How long to wait now.
    pub fn wait(&mut self) -> Duration {
        let full = self.next.min(self.most);
        self.next = (full * 2).min(self.most);
        full / 2 + by_chance(full / 2)
    }

    /// What went wrong goes well again.
    pub fn reset(&mut self) {
        self.next = Self::FIRST;
    }
}

/// Up to `most`, so that thousands of agents do not ask in one moment.
pub fn by_chance(most: Duration) -> Duration {
    let mut bytes = [0; 4];
    // Without randomness all wait for the longest time.
    if getrandom::fill(&mut bytes).is_err() {
        return most;
    }
    most.mul_f64(f64::from(u32::from_le_bytes(bytes)) / f64::from(u32::MAX))
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD as BASE64;

    use super::*;

    #[test]
    fn answers_are_told_apart_by_their_code() {
        let failure = |code: u16, message: &str| {
            Failure::from(Status {
                code,
                message: message.into(),
                ..Status::default()
            })
        };
        for (code, kind) in [
            (401, Kind::Unauthorized),
            (403, Kind::Forbidden),
            (409, Kind::Conflict),
            (410, Kind::Gone),
            (422, Kind::Invalid),
            (429, Kind::Throttled),
            (503, Kind::Server),
        ] {
            assert_eq!(failure(code, "x").kind, kind);
        }
        let ahead = failure(504, "Timeout: Too large resource version: 9, current: 3");
        assert_eq!(ahead.kind, Kind::Gone);
        let denied = failure(422, "token is for node n1, not n2").to_string();
        assert_eq!(
            denied,
            "the API server refuses it (422): token is for node n1, not n2"
        );
        let page = failure(500, &"<html>\n".repeat(1000)).to_string();
        assert!(page.len() < 600 && !page.contains('\n'));
    }

    #[tokio::test]
    async fn a_listing_is_asked_for_compressed_and_read_either_way() {
        let plain = r#"{"metadata":{"resourceVersion":"7"},"items":[]}"#;
        let packed = BASE64
            .decode("H4sIAAAAAAAAA6tWyk0tSUxJLElUsqpWKkotzi8tSk4NSy0qzszPU7JSMleq1VHKLEnNLVayio6tBQA2MeV8LwAAAA==")
            .unwrap();
        for (encoding, body) in [("identity", plain.into()), ("gzip", packed)] {
            let answer = move |headers: http::HeaderMap| {
                let body = body.clone();
                async move {
                    let asked = headers.get(http::header::ACCEPT_ENCODING);
                    assert_eq!(asked.unwrap(), "gzip");
                    ([("content-encoding", encoding)], body)
                }
            };
            let router = axum::Router::new().fallback(answer);
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let url = format!("http://{}", listener.local_addr().unwrap());
            tokio::spawn(async move { axum::serve(listener, router).await });
            let listed = Api::at(&url).list::<Value>(path::NODES, &Fresh::Any).await;
            let listed = listed.unwrap_or_else(|failure| panic!("{encoding}: {failure}"));
            assert_eq!(listed.metadata.resource_version, "7");
        }
    }

    #[test]
    fn a_token_is_read_from_its_file_without_the_end_of_the_line() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("token");
        std::fs::write(&file, "abc.def\r\n").unwrap();
        assert_eq!(bearer(&file).unwrap(), "Bearer abc.def");
        for (wrong, what) in [(" \n", "is empty"), ("a\nb", "is no token")] {
            std::fs::write(&file, wrong).unwrap();
            let failure = bearer(&file).unwrap_err();
            assert_eq!(failure.kind, Kind::Unauthorized);
            assert!(failure.message.contains(what), "{failure}");
        }
        let failure = bearer(&folder.path().join("none")).unwrap_err();
        assert!(failure.message.contains("cannot be read"), "{failure}");
    }

    #[test]
    fn attempts_come_ever_more_rarely_and_never_in_step() {
        let mut backoff = Backoff::default();
        let waits: Vec<_> = (0..8).map(|_| backoff.wait()).collect();
        for (at, wait) in waits.iter().enumerate() {
            let full = Duration::from_secs((1 << at).min(30));
            assert!(*wait >= full / 2 && *wait <= full, "{at}: {wait:?}");
        }
        backoff.reset();
        assert!(backoff.wait() <= Duration::from_secs(1));
        let spread: std::collections::BTreeSet<_> = (0..16)
            .map(|_| by_chance(Duration::from_secs(30)))
            .collect();
        assert!(spread.len() > 8);
    }
}
