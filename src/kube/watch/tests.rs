//! The test is the API server: it sees each request and says what is answered.

use axum::Router;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use serde_json::{Value, json};
use tokio::sync::oneshot;

use super::*;
use crate::kube::client::path;
use crate::kube::node::Object as Node;

struct Asked {
    path: String,
    query: String,
    accept: String,
    answer: oneshot::Sender<(StatusCode, String)>,
}

struct Server {
    asked: mpsc::Receiver<Asked>,
    seen: mpsc::Receiver<Seen<Node>>,
}

const WITHIN: Duration = Duration::from_secs(30);

impl Server {
    async fn start(known: &[&str]) -> Self {
        Self::start_with(nodes(known)).await
    }

    async fn start_with(what: Kindred) -> Self {
        let (sender, asked) = mpsc::channel(1);
        let router = Router::new().fallback(pass_on).with_state(sender);
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, router).await });
        let seen = follow(Api::at(&url), what);
        Self { asked, seen }
    }

    /// The next request: its query and what it accepts.
    async fn answer(&mut self, status: u16, body: String) -> (String, String) {
        let asked = self.asked().await;
        assert_eq!(asked.path, path::NODES);
        let status = StatusCode::from_u16(status).unwrap();
        asked.answer.send((status, body)).unwrap();
        (asked.query, asked.accept)
    }

    /// The next request asks which cluster this is; it is the one of this number.
    async fn answer_cluster(&mut self, number: u8) {
        let asked = self.asked().await;
        assert_eq!(asked.path, format!("{}/kube-system", path::NAMESPACES));
        let uid = format!("{number:08x}-0000-0000-0000-000000000000");
        let body = json!({"metadata": {"name": "kube-system", "uid": uid}}).to_string();
        asked.answer.send((StatusCode::OK, body)).unwrap();
        let mut bytes = [0; 16];
        bytes[3] = number;
        assert_eq!(self.seen().await, Seen::Cluster(DomainId(bytes)));
    }

    async fn asked(&mut self) -> Asked {
        let asked = tokio::time::timeout(WITHIN, self.asked.recv()).await;
        asked.expect("a request").unwrap()
    }

    async fn seen(&mut self) -> Seen<Node> {
        let seen = tokio::time::timeout(WITHIN, self.seen.recv()).await;
        seen.expect("news").unwrap()
    }
}

fn nodes(known: &[&str]) -> Kindred {
    Kindred {
        path: path::NODES,
        part: Part::Metadata,
        name: "nodes",
        named: false,
        known: known.iter().map(ToString::to_string).collect(),
        relist: Arc::default(),
    }
}

async fn pass_on(State(sender): State<mpsc::Sender<Asked>>, request: Request) -> Response {
    let (answer, answered) = oneshot::channel();
    let accept = request.headers().get("accept");
    let asked = Asked {
        path: request.uri().path().to_owned(),
        query: request.uri().query().unwrap_or_default().to_owned(),
        accept: accept.map_or_else(String::new, |value| value.to_str().unwrap().to_owned()),
        answer,
    };
    sender.send(asked).await.unwrap();
    answered.await.unwrap().into_response()
}

fn node(name: &str, revision: u64) -> Value {
    json!({"metadata": {"name": name, "uid": format!("uid-{name}"), "resourceVersion": revision.to_string()}})
}

fn listing(revision: u64, names: &[&str]) -> String {
    let items: Vec<_> = names.iter().map(|name| node(name, 1)).collect();
    json!({"metadata": {"resourceVersion": revision.to_string()}, "items": items}).to_string()
}

fn event(kind: &str, object: &Value) -> String {
    format!("{}\n", json!({"type": kind, "object": object}))
}

fn status(code: u16, message: &str) -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "message": message, "reason": "x", "metadata": {}})
}

fn names(seen: &Seen<Node>) -> Vec<&str> {
    let Seen::Listed(nodes) = seen else {
        panic!("{seen:?}")
    };
    nodes
        .iter()
        .map(|node| node.metadata.name.as_str())
        .collect()
}

#[tokio::test]
async fn a_listing_from_the_cache_is_followed_by_a_watch_of_metadata_that_goes_on_from_bookmarks() {
    let mut server = Server::start(&[]).await;
    let (query, _) = server.answer(200, listing(5, &["a"])).await;
    assert!(query.contains("resourceVersion=0"), "{query}");
    assert_eq!(server.seen().await, Seen::Well);
    assert_eq!(names(&server.seen().await), ["a"]);
    let bookmark =
        json!({"kind": "Node", "apiVersion": "v1", "metadata": {"resourceVersion": "9"}});
    let lines = [
        event("MODIFIED", &node("a", 7)),
        event("DELETED", &node("a", 8)),
        event("BOOKMARK", &bookmark),
    ];
    let (query, accept) = server.answer(200, lines.concat()).await;
    assert!(
        query.contains("resourceVersion=5") && query.contains("allowWatchBookmarks=true"),
        "{query}"
    );
    assert!(accept.contains("PartialObjectMetadata"), "{accept}");
    assert_eq!(server.seen().await, Seen::Well);
    assert!(
        matches!(server.seen().await, Seen::Applied(object) if object.metadata.resource_version == "7")
    );
    assert!(matches!(server.seen().await, Seen::Deleted(_)));
    let (query, _) = server.answer(200, String::new()).await;
    assert!(query.contains("resourceVersion=9"), "{query}");
}

#[tokio::test]
async fn a_stale_cache_takes_nothing_away() {
    // Known from the state file: the cache has not heard of it yet.
    let mut server = Server::start(&["uid-a", "uid-b"]).await;
    let (query, _) = server.answer(200, listing(3, &["a"])).await;
    assert!(query.contains("resourceVersion=0"), "{query}");
    let (query, _) = server.answer(200, listing(5, &["a", "b"])).await;
    assert!(!query.contains("resourceVersion"), "{query}");
    assert_eq!(server.seen().await, Seen::Well);
    assert_eq!(names(&server.seen().await), ["a", "b"]);
    // Nor does one after the watch's revision is too old.
    let gone = event("ERROR", &status(410, "too old resource version"));
    server.answer(200, gone).await;
    let (query, _) = server.answer(200, listing(6, &["b"])).await;
    assert!(
        query.contains("resourceVersionMatch=NotOlderThan"),
        "{query}"
    );
    server.answer(200, listing(7, &["b"])).await;
    assert_eq!(server.seen().await, Seen::Well);
    assert_eq!(server.seen().await, Seen::Well);
    assert_eq!(names(&server.seen().await), ["b"]);
}

#[tokio::test]
async fn a_refused_token_is_told_and_tried_again() {
    let mut server = Server::start(&[]).await;
    server
        .answer(401, status(401, "Unauthorized").to_string())
        .await;
    let seen = server.seen().await;
    assert!(
        matches!(&seen, Seen::Trouble(failure) if failure.kind == Kind::Unauthorized),
        "{seen:?}"
    );
    server.answer(200, listing(5, &["a"])).await;
    assert_eq!(server.seen().await, Seen::Well);
    assert_eq!(names(&server.seen().await), ["a"]);
    // The watch as well, and it does not list again for that.
    server
        .answer(403, status(403, "nodes is forbidden").to_string())
        .await;
    let seen = server.seen().await;
    assert!(
        matches!(&seen, Seen::Trouble(failure) if failure.kind == Kind::Forbidden),
        "{seen:?}"
    );
    let (query, _) = server.answer(200, String::new()).await;
    assert!(
        query.contains("watch=true") && query.contains("resourceVersion=5"),
        "{query}"
    );
}

#[tokio::test]
async fn which_cluster_it_is_is_told_before_each_listing_and_asked_before_a_watch_that_was_in_trouble_goes_on()
 {
    let what = Kindred {
        named: true,
        ..nodes(&[])
    };
    let mut server = Server::start_with(what).await;
    server.answer_cluster(1).await;
    server.answer(200, listing(5, &["a"])).await;
    assert_eq!(server.seen().await, Seen::Well);
    assert_eq!(names(&server.seen().await), ["a"]);
    // A watch that ends as all do.
    server.answer(200, String::new()).await;
    assert_eq!(server.seen().await, Seen::Well);

    let busy = status(503, "busy").to_string();
    server.answer(503, busy.clone()).await;
    assert!(matches!(server.seen().await, Seen::Trouble(_)));
    server.answer_cluster(1).await;
    let (query, _) = server.answer(503, busy).await;
    assert!(
        query.contains("watch=true") && query.contains("resourceVersion=5"),
        "{query}"
    );
    assert!(matches!(server.seen().await, Seen::Trouble(_)));

    // Another one has come, whose revisions are others.
    server.answer_cluster(2).await;
    server.answer_cluster(2).await;
    let (query, _) = server.answer(200, listing(3, &["b"])).await;
    assert!(!query.contains("resourceVersion"), "{query}");
    assert_eq!(server.seen().await, Seen::Well);
    assert_eq!(names(&server.seen().await), ["b"]);
    let gone = event("ERROR", &status(410, "too old resource version"));
    server.answer(200, gone).await;
    assert_eq!(server.seen().await, Seen::Well);
    server.answer_cluster(2).await;
}
