//! The control socket: HTTP over a Unix socket that only its owner may open. Every request becomes an
//! [`Ask`] to the event loop and waits for its answer there.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use axum::body::Bytes;
use axum::extract::connect_info::{ConnectInfo, Connected};
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use axum::serve::IncomingStream;
use axum::{Json, Router};
use nix::sys::stat::{Mode, umask};
use serde_json::{Value, json};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tracing::{debug, warn};

use super::Event;
use crate::api;
use crate::config::sentence;

/// Longer than any verb's own timer; then the caller hears that the agent is stuck.
const ANSWER_WITHIN: Duration = Duration::from_secs(60);

/// What a person or a script asks of the agent.
#[derive(Debug)]
pub enum Ask {
    /// `GET /status`.
    Status,
    /// `GET /netcheck`.
    Netcheck,
    /// `GET /healthz`: does the loop answer?
    Alive,
    /// `GET /readyz`: has a plan been applied, and does the CNI file stand?
    Ready,
    /// `GET /metrics`.
    Metrics,
    /// `POST /invite`.
    Invite(api::Invite),
    /// `POST /join`.
    Join(Box<mesh_types::token::Token>),
    /// `POST /revoke`.
    Revoke(api::Revoke),
    /// `POST /approve`.
    Approve(api::Approve),
    /// `GET /approve`: who waits.
    Waiting,
    /// `POST /rotate`.
    Rotate(api::Rotate),
    /// `POST /ping`.
    Ping(api::Ping),
    /// `POST /doctor`.
    Doctor(api::Doctor),
    /// `GET /plan`: what the host should hold, for people.
    Plan,
    /// `POST /reload`.
    Reload,
    /// `POST /down`.
    Down,
}

/// An answer: JSON, or a status and one sentence.
pub type Answer = Result<Value, (StatusCode, String)>;

/// A question and where its answer goes.
#[derive(Debug)]
pub struct Asked {
    /// The question.
    pub ask: Ask,
    /// The answer.
    pub answer: oneshot::Sender<Answer>,
}

/// A loop that takes longer hangs.
const ALIVE_WITHIN: Duration = Duration::from_secs(5);

type Events = mpsc::Sender<Event>;

/// The bound socket, removed from the file system on drop.
#[derive(Debug)]
pub struct Server {
    path: PathBuf,
    listener: Option<UnixListener>,
}

impl Server {
    /// Binds the socket, inside a tokio runtime. A socket nobody answers on is a leftover and replaced.
    pub fn bind(path: &Path) -> Result<Self> {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(|error| {
                anyhow!("cannot make {}: {}", folder.display(), sentence(&error))
            })?;
        }
        if path.exists() {
            if UnixStream::connect(path).is_ok() {
                bail!(
                    "an agent answers on {} already; stop it with `farspan down`, or give another --interface or --socket",
                    path.display()
                );
            }
            _ = fs::remove_file(path);
        }
        let before = umask(Mode::from_bits_truncate(0o177));
        let bound = UnixListener::bind(path);
        umask(before);
        let listener = bound.map_err(|error| {
            anyhow!(
                "cannot open the control socket {}: {}",
                path.display(),
                sentence(&error)
            )
        })?;
        Ok(Self {
            path: path.to_path_buf(),
            listener: Some(listener),
        })
    }

    /// Serves it in a task of its own.
    pub fn serve(&mut self, events: Events) {
        let Some(listener) = self.listener.take() else {
            return;
        };
        let router = Router::new()
            .route("/status", get(|state| ask(state, Ask::Status)))
            .route("/netcheck", get(|state| ask(state, Ask::Netcheck)))
            .route("/healthz", get(healthy))
            .route("/readyz", get(|state| ask(state, Ask::Ready)))
            .route("/metrics", get(metrics))
            .route("/plan", get(|state| ask(state, Ask::Plan)))
            .route(
                "/invite",
                post(|state, Json(body)| ask(state, Ask::Invite(body))),
            )
            .route("/join", post(join))
            .route(
                "/revoke",
                post(|state, Json(body)| ask(state, Ask::Revoke(body))),
            )
            .route(
                "/approve",
                get(|state| ask(state, Ask::Waiting))
                    .post(|state, Json(body)| ask(state, Ask::Approve(body))),
            )
            .route(
                "/rotate",
                post(|state, Json(body)| ask(state, Ask::Rotate(body))),
            )
            .route(
                "/ping",
                post(|state, Json(body)| ask(state, Ask::Ping(body))),
            )
            .route(
                "/doctor",
                post(|state, Json(body)| ask(state, Ask::Doctor(body))),
            )
            // A body that nobody reads would break the connection under the answer.
            .route("/reload", post(|state, _: Bytes| ask(state, Ask::Reload)))
            .route("/down", post(|state, _: Bytes| ask(state, Ask::Down)))
            .layer(from_fn_with_state((), log_caller))
            .with_state(events)
            .into_make_service_with_connect_info::<Caller>();
        tokio::spawn(async move {
            if let Err(error) = axum::serve(listener, router).await {
                warn!(%error, "Control socket closed");
            }
        });
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        _ = fs::remove_file(&self.path);
    }
}

/// Serves metrics and health by TCP.
pub async fn serve_metrics(address: SocketAddr, events: Events) -> Result<()> {
    let router = Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(healthy))
        .route("/readyz", get(|state| ask(state, Ask::Ready)))
        .with_state(events);
    serve_tcp(address, router).await.map(drop)
}

/// The same where another agent owns the device: this one is as it should be.
pub async fn serve_standby(address: SocketAddr) -> Result<JoinHandle<()>> {
    let router = Router::new()
        .route(
            "/metrics",
            get(|| async { open_metrics(super::metrics::standby()) }),
        )
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(|| async { "standing by\n" }));
    serve_tcp(address, router).await
}

async fn serve_tcp(address: SocketAddr, router: Router) -> Result<JoinHandle<()>> {
    let listener = TcpListener::bind(address)
        .await
        .map_err(|error| anyhow!("{}", sentence(&error)))
        .with_context(|| format!("cannot listen on {address} (--metrics-listen)"))?;
    Ok(tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, router).await {
            warn!(%error, "Metrics listener closed");
        }
    }))
}

/// The loop takes what is put into its queue.
async fn healthy(State(events): State<Events>) -> Response {
    let (sender, receiver) = oneshot::channel();
    let asked = Asked {
        ask: Ask::Alive,
        answer: sender,
    };
    let alive = async {
        events.send(Event::Asked(asked)).await.ok()?;
        receiver.await.ok()
    };
    match tokio::time::timeout(ALIVE_WITHIN, alive).await {
        Ok(Some(_)) => "ok\n".into_response(),
        Ok(None) | Err(_) => refuse(
            StatusCode::SERVICE_UNAVAILABLE,
            "the event loop does not answer",
        ),
    }
}

/// Who opened the socket.
#[derive(Debug, Clone, Copy)]
struct Caller {
    uid: Option<u32>,
    pid: Option<i32>,
}

impl Connected<IncomingStream<'_, UnixListener>> for Caller {
    fn connect_info(stream: IncomingStream<'_, UnixListener>) -> Self {
        let credentials = stream.io().peer_cred().ok();
        Self {
            uid: credentials.map(|found| found.uid()),
            pid: credentials.and_then(|found| found.pid()),
        }
    }
}

async fn log_caller(
    State(()): State<()>,
    ConnectInfo(Caller { uid, pid }): ConnectInfo<Caller>,
    request: Request,
    next: Next,
) -> Response {
    let path = request.uri().path();
    debug!(uid, pid, path, "Control request");
    // The socket's mode keeps others out; a folder that was opened up later must not let them in.
    let me = nix::unistd::geteuid().as_raw();
    if !uid.is_some_and(|uid| uid == 0 || uid == me) {
        warn!(uid, pid, path, "Control request refused");
        return refuse(
            StatusCode::FORBIDDEN,
            "only root may control this agent; use sudo",
        );
    }
    next.run(request).await
}

async fn join(state: State<Events>, Json(body): Json<api::Token>) -> Response {
    match body.token.parse() {
        Ok(token) => ask(state, Ask::Join(Box::new(token))).await,
        Err(error) => refuse(StatusCode::BAD_REQUEST, &error.to_string()),
    }
}

async fn metrics(state: State<Events>) -> Response {
    match put(&state.0, Ask::Metrics).await {
        Ok(text) => open_metrics(text.as_str().unwrap_or_default().to_owned()),
        Err((status, error)) => refuse(status, &error),
    }
}

fn open_metrics(text: String) -> Response {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], text).into_response()
}

async fn ask(State(events): State<Events>, ask: Ask) -> Response {
    match put(&events, ask).await {
        Ok(value) => Json(value).into_response(),
        Err((status, error)) => refuse(status, &error),
    }
}

async fn put(events: &Events, ask: Ask) -> Answer {
    let (sender, receiver) = oneshot::channel();
    let stopping = || {
        (
            StatusCode::SERVICE_UNAVAILABLE,
            "the agent is stopping".to_owned(),
        )
    };
    let asked = Asked {
        ask,
        answer: sender,
    };
    events
        .send(Event::Asked(asked))
        .await
        .map_err(|_| stopping())?;
    match tokio::time::timeout(ANSWER_WITHIN, receiver).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(_)) => Err(stopping()),
        Err(_) => Err((
            StatusCode::GATEWAY_TIMEOUT,
            "the agent gave no answer within a minute; see its log".to_owned(),
        )),
    }
}

fn refuse(status: StatusCode, error: &str) -> Response {
    (
        status,
        Json(json!(api::Error {
            error: error.to_owned()
        })),
    )
        .into_response()
}
