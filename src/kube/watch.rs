//! One kind of objects, followed for ever: a listing, then a watch from its revision, listed anew only where the server
//! cannot go on from there.
//!
//! Where it matters whose objects they are, the server is asked which cluster it is before each listing, and before a watch
//! goes on after anything went wrong: another server, or another history, may have come behind the address.
//!
//! A listing out of a server's cache may be older than what is known. It never takes anything away: where it lacks an
//! object that was there, the same is asked of etcd before anybody hears of it.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use kube::core::WatchEvent;
use mesh_types::DomainId;
use serde::de::DeserializeOwned;
use tokio::sync::{Notify, mpsc};
use tracing::{debug, info, warn};

use super::client::{Api, Backoff, Failure, Fresh, Kind, Part, by_chance};
use super::node::{List, Meta};
use super::surroundings;
use crate::agent::clock;

/// Bookmarks come about once a minute: a connection that is silent for longer is dead.
const SILENCE: Duration = Duration::from_secs(150);
/// A watch that lived as long was a good one.
const LIVED: Duration = Duration::from_secs(5);
/// How often a kind is looked for that the server does not know.
const ABSENT_EVERY: Duration = Duration::from_secs(60);
/// A server that starts does not know its own kinds yet.
const ABSENT_AGAIN: Duration = Duration::from_secs(20);

/// How long the first listing is put off by chance: for each object known from an earlier life, and at most.
const START_EACH: Duration = Duration::from_millis(2);
const START_MOST: Duration = Duration::from_secs(10);

/// What has metadata.
pub trait Object: Clone + fmt::Debug + DeserializeOwned + Send + 'static {
    /// It.
    fn meta(&self) -> &Meta;
}

impl Object for super::node::Object {
    fn meta(&self) -> &Meta {
        &self.metadata
    }
}

/// What becomes of the objects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seen<T> {
    /// Which cluster what follows is of, if it was to be asked.
    Cluster(DomainId),
    /// All there are.
    Listed(Vec<T>),
    /// One is new or differs.
    Applied(T),
    /// One is gone.
    Deleted(T),
    /// The server does not know this kind, and said so twice.
    Absent,
    /// What goes wrong for now; it is tried again.
    Trouble(Failure),
    /// It goes well again.
    Well,
}

/// Which objects, and how.
#[derive(Debug, Clone)]
pub struct Kindred {
    /// Their path.
    pub path: &'static str,
    /// What of them is watched; they are listed whole.
    pub part: Part,
    /// Their name in logs and metrics.
    pub name: &'static str,
    /// Whether [`Seen::Cluster`] is told.
    pub named: bool,
    /// UIDs known from an earlier life.
    pub known: BTreeSet<String>,
    /// Asks for a listing.
    pub relist: Arc<Notify>,
}

/// Follows them in a task of its own, until nobody listens.
pub fn follow<T: Object>(api: Api, what: Kindred) -> mpsc::Receiver<Seen<T>> {
    let (seen, receiver) = mpsc::channel(64);
    let mut follower = Follower {
        api,
        known: what.known.clone(),
        what,
        seen,
        fresh: Fresh::Any,
        backoff: Backoff::default(),
        absent: 0,
        troubled: None,
        cluster: None,
        certain: false,
    };
    tokio::spawn(async move {
        // Ends with the agent only.
        _ = follower.run().await;
    });
    receiver
}

struct Follower<T> {
    api: Api,
    what: Kindred,
    known: BTreeSet<String>,
    seen: mpsc::Sender<Seen<T>>,
    fresh: Fresh,
    backoff: Backoff,
    absent: u32,
    troubled: Option<Kind>,
    /// The cluster that answered last, if that is asked.
    cluster: Option<DomainId>,
    /// Nothing went wrong since then.
    certain: bool,
}

/// Nobody listens any more.
struct Done;

/// Why a watch ended.
enum End {
    /// Go on from the last revision.
    Continue,
    /// Begin with a listing.
    Relist,
}

impl<T: Object> Follower<T> {
    async fn run(&mut self) -> Result<(), Done> {
        // After a power cut all agents of a large cluster begin at once.
        let count = u32::try_from(self.known.len()).unwrap_or(u32::MAX);
        self.rest(by_chance((START_EACH * count).min(START_MOST)))
            .await?;
        loop {
            let mut revision = self.list().await?;
            self.fresh = Fresh::Since(revision.clone());
            while let End::Continue = self.watch(&mut revision).await? {
                self.fresh = Fresh::Since(revision.clone());
            }
            let name = self.what.name;
            self.api.metrics().relisted(name);
            debug!(watch = name, "Listing anew");
        }
    }

    /// Until one succeeds.
    async fn list(&mut self) -> Result<String, Done> {
        loop {
            if let Err(failure) = self.recognize().await? {
                self.trouble(failure).await?;
                self.pause().await?;
                continue;
            }
            match self.api.list::<T>(self.what.path, &self.fresh).await {
                Ok(List { metadata, items }) => {
                    let uids: BTreeSet<String> =
                        items.iter().map(|item| item.meta().uid.clone()).collect();
                    if self.fresh != Fresh::Now && !self.known.is_subset(&uids) {
                        self.fresh = Fresh::Now;
                        continue;
                    }
                    self.known = uids;
                    self.absent = 0;
                    self.well().await?;
                    self.tell(Seen::Listed(items)).await?;
                    return Ok(metadata.resource_version);
                }
                Err(failure) if failure.kind == Kind::Gone => {
                    self.fresh = Fresh::Now;
                    self.trouble(failure).await?;
                    self.pause().await?;
                }
                Err(failure) if failure.kind == Kind::NotFound => self.missing(failure).await?,
                Err(failure) => {
                    self.trouble(failure).await?;
                    self.pause().await?;
                }
            }
        }
    }

    /// Asks which cluster this is, and tells; says whether it is another one than before.
    async fn recognize(&mut self) -> Result<Result<bool, Failure>, Done> {
        if !self.what.named {
            return Ok(Ok(false));
        }
        let cluster = match surroundings::cluster(&self.api).await {
            Ok(cluster) => cluster,
            Err(failure) => return Ok(Err(failure)),
        };
        self.certain = true;
        let before = self.cluster.replace(cluster);
        let other = before.is_some_and(|before| before != cluster);
        if other {
            info!(%cluster, watch = self.what.name, "Another cluster is behind the address");
            // Revisions of the one say nothing in the other.
            self.fresh = Fresh::Now;
        }
        self.tell(Seen::Cluster(cluster)).await?;
        Ok(Ok(other))
    }

    /// One connection's life.
    async fn watch(&mut self, revision: &mut String) -> Result<End, Done> {
        if !self.certain {
            match self.recognize().await? {
                Ok(false) => {}
                Ok(true) => return Ok(End::Relist),
                Err(failure) => {
                    self.trouble(failure).await?;
                    self.pause().await?;
                    return Ok(End::Continue);
                }
            }
        }
        let opened = clock::instant();
        let watch = self
            .api
            .watch::<T>(self.what.path, self.what.part, revision);
        let mut stream = match watch.await {
            Ok(stream) => stream,
            Err(failure) if matches!(failure.kind, Kind::Gone | Kind::NotFound) => {
                self.pause().await?;
                return Ok(End::Relist);
            }
            Err(failure) => {
                self.trouble(failure).await?;
                self.pause().await?;
                return Ok(End::Continue);
            }
        };
        self.well().await?;
        let relist = Arc::clone(&self.what.relist);
        loop {
            let next = tokio::select! {
                next = tokio::time::timeout(SILENCE, stream.next()) => next,
                () = relist.notified() => return Ok(End::Relist),
                () = self.seen.closed() => return Err(Done),
            };
            match next {
                Ok(Some(Ok(event))) => {
                    self.api.metrics().heard(self.what.name, clock::wall());
                    if let Some(end) = self.handle(event, revision).await? {
                        return Ok(end);
                    }
                }
                Ok(Some(Err(failure))) => {
                    debug!(watch = self.what.name, %failure, "Watch broke");
                    self.certain = false;
                    break;
                }
                // The server ends each after some minutes.
                Ok(None) => break,
                Err(_) => {
                    debug!(watch = self.what.name, "Watch fell silent");
                    self.certain = false;
                    break;
                }
            }
        }
        if clock::instant().duration_since(opened) >= LIVED {
            self.backoff.reset();
            self.rest(by_chance(Duration::from_secs(1))).await?;
        } else {
            self.pause().await?;
        }
        Ok(End::Continue)
    }

    async fn handle(
        &mut self,
        event: WatchEvent<T>,
        revision: &mut String,
    ) -> Result<Option<End>, Done> {
        match event {
            WatchEvent::Added(object) | WatchEvent::Modified(object) => {
                let meta = object.meta();
                revision.clone_from(&meta.resource_version);
                self.known.insert(meta.uid.clone());
                self.tell(Seen::Applied(object)).await?;
            }
            WatchEvent::Deleted(object) => {
                let meta = object.meta();
                revision.clone_from(&meta.resource_version);
                self.known.remove(&meta.uid);
                self.tell(Seen::Deleted(object)).await?;
            }
            WatchEvent::Bookmark(bookmark) => {
                *revision = bookmark.metadata.resource_version;
            }
            WatchEvent::Error(status) => {
                let failure = Failure::from(*status);
                debug!(watch = self.what.name, %failure, "Watch ended by the server");
                self.pause().await?;
                return Ok(Some(if failure.kind == Kind::Gone {
                    End::Relist
                } else {
                    End::Continue
                }));
            }
        }
        Ok(None)
    }

    /// The server does not know the kind: CustomResourceDefinitions may come later, and a server that starts may not
    /// have read its own yet.
    async fn missing(&mut self, failure: Failure) -> Result<(), Done> {
        self.absent += 1;
        let wait = match self.absent {
            1 => {
                self.tell(Seen::Trouble(failure)).await?;
                ABSENT_AGAIN
            }
            2 => {
                self.known.clear();
                info!(
                    kind = self.what.name,
                    "The API server does not know this kind; `farspan crds` prints its definition"
                );
                self.tell(Seen::Absent).await?;
                ABSENT_EVERY
            }
            _ => ABSENT_EVERY,
        };
        self.rest(wait / 2 + by_chance(wait / 2)).await
    }

    async fn trouble(&mut self, failure: Failure) -> Result<(), Done> {
        if self.troubled != Some(failure.kind) {
            warn!(watch = self.what.name, %failure, "Kubernetes is not heard");
        }
        self.troubled = Some(failure.kind);
        self.certain = false;
        self.tell(Seen::Trouble(failure)).await
    }

    async fn well(&mut self) -> Result<(), Done> {
        self.api.metrics().heard(self.what.name, clock::wall());
        if self.troubled.take().is_some() {
            info!(watch = self.what.name, "Kubernetes is heard again");
        }
        self.tell(Seen::Well).await
    }

    async fn pause(&mut self) -> Result<(), Done> {
        let wait = self.backoff.wait();
        self.rest(wait).await
    }

    async fn rest(&mut self, time: Duration) -> Result<(), Done> {
        tokio::select! {
            () = tokio::time::sleep(time) => Ok(()),
            () = self.seen.closed() => Err(Done),
        }
    }

    async fn tell(&mut self, seen: Seen<T>) -> Result<(), Done> {
        self.seen.send(seen).await.map_err(|_| Done)
    }
}

#[cfg(test)]
mod tests;
