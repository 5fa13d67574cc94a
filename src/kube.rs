//! Kubernetes beside the event loop: tasks that read and write the API server and put what they learn into the loop's
//! queue. None of them ever ends before the agent, and none spins: what fails is tried again, ever more rarely.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use mesh_types::cluster::{ClusterEvent, PodNetwork, Publication};
use overlay::{Finding, Severity};
use tokio::sync::{Notify, mpsc, oneshot, watch as latest};
use tracing::{debug, warn};

pub mod client;
pub mod crd;
pub mod custom;
pub mod events;
pub mod kubeconfig;
pub mod node;
pub mod nodes;
pub mod publish;
pub mod surroundings;
pub mod watch;

use crate::agent::{Event, clock, metrics};
use crate::config::kubernetes::Kubernetes;
use client::{Api, Backoff, Failure, Kind, Part, by_chance, path};
use events::Refused;
use nodes::Nodes;
use surroundings::Surroundings;
use watch::{Kindred, Seen};

/// A short outage is nobody's business.
const OUTAGE: Duration = Duration::from_secs(15);
/// How long the nodes wait for the policy.
const POLICY_WITHIN: Duration = Duration::from_secs(5);
/// One listing in place of many fetches, at most as often.
const RELIST_EVERY: Duration = Duration::from_secs(60);
/// Agents that all doubt one listing ask for the next within this time, not in one moment.
const LIST_AGAIN_WITHIN: Duration = Duration::from_secs(10);
const UNREACHABLE: &str = "The mesh goes on with the last good state. Check the network to the API server, the token and the ClusterRole (`farspan preflight`).";

/// What the tasks tell the loop.
#[derive(Debug)]
pub enum Told {
    /// News of the cluster.
    Cluster(ClusterEvent),
    /// Something is wrong, or no longer.
    Finding {
        /// Which.
        code: &'static str,
        /// What.
        finding: Option<Finding>,
    },
}

/// The loop's end of the tasks.
#[derive(Debug)]
pub struct Cluster {
    publish: latest::Sender<Option<Publication>>,
    refused: mpsc::Sender<Refused>,
    relist: Arc<Notify>,
    node: String,
}

/// The agent is gone.
#[derive(Debug)]
pub struct Stopped;

/// Puts into the loop's queue.
#[derive(Debug, Clone)]
pub struct Teller {
    events: mpsc::Sender<Event>,
}

impl Teller {
    /// News of the cluster.
    pub async fn cluster(&self, event: ClusterEvent) -> Result<(), Stopped> {
        self.told_to(Told::Cluster(event)).await
    }

    /// A finding, or that it stands no longer.
    pub async fn finding(
        &self,
        code: &'static str,
        finding: Option<Finding>,
    ) -> Result<(), Stopped> {
        self.told_to(Told::Finding { code, finding }).await
    }

    /// Something is wrong.
    pub async fn warn(
        &self,
        code: &'static str,
        message: String,
        remedy: &str,
    ) -> Result<(), Stopped> {
        let finding = Finding {
            code: code.into(),
            severity: Severity::Warning,
            message,
            remedy: remedy.to_owned(),
        };
        self.finding(code, Some(finding)).await
    }

    /// One finding of all sentences; none where there are none.
    pub async fn told(
        &self,
        code: &'static str,
        sentences: Vec<String>,
        remedy: &str,
    ) -> Result<(), Stopped> {
        if sentences.is_empty() {
            return self.finding(code, None).await;
        }
        for sentence in &sentences {
            warn!("{sentence}");
        }
        self.warn(code, sentences.join("; "), remedy).await
    }

    async fn told_to(&self, told: Told) -> Result<(), Stopped> {
        let event = Event::Cluster(told);
        self.events.send(event).await.map_err(|_| Stopped)
    }
}

impl Cluster {
    /// Starts all tasks, inside a tokio runtime. `known`: UIDs of the Nodes of the state file.
    pub fn start(
        config: &Kubernetes,
        pod_network: PodNetwork,
        known: BTreeSet<String>,
        metrics: metrics::Api,
        events: mpsc::Sender<Event>,
    ) -> Self {
        let (publish, wanted) = latest::channel(None);
        let (refused, claims) = mpsc::channel(64);
        let relist = Arc::new(Notify::new());
        let tasks = Tasks {
            relist: Arc::clone(&relist),
            config: config.clone(),
            pod_network,
            known,
            tell: Teller { events },
        };
        tokio::spawn(async move {
            // Ends with the agent only.
            _ = tasks.run(metrics, wanted, claims).await;
        });
        Self {
            publish,
            refused,
            relist,
            node: config.node.clone(),
        }
    }

    /// Writes the announcement; what was waiting to be written is forgotten.
    pub fn publish(&self, publication: Publication) {
        self.publish.send_replace(Some(publication));
    }

    /// Has the Nodes listed anew, soon: not by all agents at once.
    pub fn list_again(&self) {
        let relist = Arc::clone(&self.relist);
        tokio::spawn(async move {
            tokio::time::sleep(by_chance(LIST_AGAIN_WITHIN)).await;
            relist.notify_one();
        });
    }

    /// Makes an Event of a claim that is not believed.
    pub fn refused(&self, node: Option<String>, reason: &'static str, sentence: String) {
        let refused = Refused {
            node: node.unwrap_or_else(|| self.node.clone()),
            reason,
            sentence,
        };
        if self.refused.try_send(refused).is_err() {
            debug!(
                "No Event is made of a refused claim: too many wait, or this machine writes none"
            );
        }
    }
}

struct Tasks {
    relist: Arc<Notify>,
    config: Kubernetes,
    pod_network: PodNetwork,
    known: BTreeSet<String>,
    tell: Teller,
}

impl Tasks {
    async fn run(
        self,
        metrics: metrics::Api,
        wanted: latest::Receiver<Option<Publication>>,
        claims: mpsc::Receiver<Refused>,
    ) -> Result<(), Stopped> {
        let api = self.open(&metrics).await?;
        if self.config.external {
            // Nobody waits for what is not to be written.
            drop(claims);
        } else {
            publish::start(
                api.clone(),
                self.config.node.clone(),
                wanted,
                self.tell.clone(),
            );
            events::start(api.clone(), self.config.node.clone(), claims);
        }
        let services = self.config.service_cidrs.clone();
        let mut surroundings = Surroundings::new(api.clone(), self.tell.clone(), services);
        surroundings.first().await?;
        // What is read anew where another cluster has come behind the address.
        let beside: [Arc<Notify>; 3] = std::array::from_fn(|_| Arc::default());
        let [look, policies, externals] = beside.clone();
        tokio::spawn(surroundings.follow(look, Arc::clone(&self.relist)));
        let kindred = |path, name, relist| Kindred {
            path,
            part: Part::Whole,
            name,
            named: false,
            known: BTreeSet::new(),
            relist,
        };
        let policies = kindred(path::POLICIES, "meshpolicies", policies);
        let policies = watch::follow(api.clone(), policies);
        let (first, policy_heard) = oneshot::channel();
        tokio::spawn(custom::policy(policies, self.tell.clone(), first));
        let externals = kindred(path::EXTERNALS, "externalpeers", externals);
        let externals = watch::follow(api.clone(), externals);
        tokio::spawn(custom::externals(externals, self.tell.clone()));
        // What the policy forbids should not be believed even for a moment. The sender is dropped, not used.
        _ = tokio::time::timeout(POLICY_WITHIN, policy_heard).await;
        self.nodes(api, &beside).await
    }

    async fn open(&self, metrics: &metrics::Api) -> Result<Api, Stopped> {
        let mut backoff = Backoff::default();
        let mut last = String::new();
        loop {
            match Api::open(&self.config, metrics.clone()).await {
                Ok(api) => {
                    self.tell.finding("kubernetes-config", None).await?;
                    return Ok(api);
                }
                Err(error) => {
                    let message = format!("{error:#}");
                    if message != last {
                        warn!("{message}");
                    }
                    let remedy = "It is tried again by itself.";
                    self.tell
                        .warn("kubernetes-config", message.clone(), remedy)
                        .await?;
                    last = message;
                }
            }
            tokio::time::sleep(backoff.wait()).await;
        }
    }

    /// Follows the Nodes; `beside` is told when they are another cluster's.
    async fn nodes(self, api: Api, beside: &[Arc<Notify>]) -> Result<(), Stopped> {
        let relist = Arc::clone(&self.relist);
        let mut seen = watch::follow::<node::Object>(
            api.clone(),
            Kindred {
                path: path::NODES,
                part: Part::Metadata,
                name: "nodes",
                named: true,
                known: self.known,
                relist: Arc::clone(&relist),
            },
        );
        let mut nodes = Nodes::new(self.pod_network.carries_pods(), by_chance);
        let mut fetches = FuturesUnordered::new();
        let mut outage = Outage::default();
        let mut relisted: Option<Instant> = None;
        let mut cluster = None;
        let fetch = |name: String| {
            let api = api.clone();
            async move {
                let found = api.get::<node::Object>(path::NODES, &name).await;
                (name, found)
            }
        };
        loop {
            let due = nodes.due();
            let alarm = async {
                match due {
                    Some(due) => tokio::time::sleep_until(due.into()).await,
                    None => std::future::pending().await,
                }
            };
            let told: Vec<ClusterEvent> = tokio::select! {
                next = seen.recv() => {
                    let Some(next) = next else { return Err(Stopped) };
                    let now = clock::instant();
                    match next {
                        Seen::Cluster(domain) => {
                            if cluster.replace(domain).is_some_and(|before| before != domain) {
                                beside.iter().for_each(|other| other.notify_one());
                            }
                            vec![ClusterEvent::Domain(domain)]
                        }
                        Seen::Listed(objects) => vec![nodes.listed(&objects, now)],
                        Seen::Applied(object) => nodes.applied(&object, now),
                        Seen::Deleted(object) => nodes.gone(&object).into_iter().collect(),
                        Seen::Absent => Vec::new(),
                        Seen::Well => {
                            api.metrics().up(true);
                            if outage.end() {
                                self.tell.finding("kubernetes-api", None).await?;
                            }
                            Vec::new()
                        }
                        Seen::Trouble(failure) => {
                            api.metrics().up(false);
                            if let Some(message) = outage.told(&failure, now) {
                                self.tell.warn("kubernetes-api", message, UNREACHABLE).await?;
                            }
                            Vec::new()
                        }
                    }
                }
                Some(fetched) = fetches.next() => {
                    let (name, found): (String, Result<node::Object, Failure>) = fetched;
                    nodes.fetched(&name, found, clock::instant()).into_iter().collect()
                }
                () = alarm => {
                    let now = clock::instant();
                    if nodes.wants_listing()
                        && relisted.is_none_or(|at| now.duration_since(at) >= RELIST_EVERY)
                    {
                        relisted = Some(now);
                        relist.notify_one();
                    }
                    fetches.extend(nodes.take_due(now).into_iter().map(&fetch));
                    Vec::new()
                }
            };
            api.metrics().nodes(nodes.len());
            for event in told {
                self.tell.cluster(event).await?;
            }
        }
    }
}

/// A time without the API server, and whether somebody was told.
#[derive(Debug, Default)]
struct Outage {
    since: Option<Instant>,
    told: bool,
}

impl Outage {
    /// What to say, if anything.
    fn told(&mut self, failure: &Failure, now: Instant) -> Option<String> {
        let since = *self.since.get_or_insert(now);
        let denied = matches!(failure.kind, Kind::Unauthorized | Kind::Forbidden);
        if !denied && now.duration_since(since) < OUTAGE {
            return None;
        }
        self.told = true;
        Some(format!("the cluster's nodes cannot be watched: {failure}"))
    }

    /// Was anything said?
    fn end(&mut self) -> bool {
        self.since = None;
        std::mem::take(&mut self.told)
    }
}
