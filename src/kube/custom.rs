//! `MeshPolicy` and `ExternalPeer` objects as the core's nouns. Their kinds may be missing, and single objects may be wrong:
//! that is told and does not stop the others.

use std::collections::BTreeMap;

use kube::Resource;
use mesh_types::cluster::ClusterEvent;
use mesh_types::observation::ConfigPeer;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use tokio::sync::{mpsc, oneshot};

use super::client::Kind;
use super::crd::{ExternalPeer, MeshPolicy, POLICY_NAME};
use super::node::Meta;
use super::watch::{Object, Seen};
use super::{Stopped, Teller};

const MEND: &str = "Mend the object: kubectl edit. What is wrong is left out until then.";

/// An object whose shape is not believed yet.
#[derive(Debug, Clone, PartialEq)]
pub struct Custom {
    metadata: Meta,
    whole: Value,
}

impl<'de> Deserialize<'de> for Custom {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let whole = Value::deserialize(deserializer)?;
        let metadata = whole.get("metadata").cloned().unwrap_or_default();
        let metadata = serde_json::from_value(metadata).map_err(serde::de::Error::custom)?;
        Ok(Self { metadata, whole })
    }
}

impl Object for Custom {
    fn meta(&self) -> &Meta {
        &self.metadata
    }
}

/// Objects by name.
#[derive(Debug, Default)]
struct Objects(BTreeMap<String, Custom>);

impl Objects {
    /// Did anything change?
    fn handle(&mut self, seen: Seen<Custom>) -> bool {
        match seen {
            Seen::Listed(objects) => {
                self.0 = objects
                    .into_iter()
                    .map(|object| (object.metadata.name.clone(), object))
                    .collect();
                true
            }
            Seen::Applied(object) => {
                self.0.insert(object.metadata.name.clone(), object);
                true
            }
            Seen::Deleted(object) => self.0.remove(&object.metadata.name).is_some(),
            Seen::Absent => {
                self.0.clear();
                true
            }
            Seen::Cluster(_) | Seen::Trouble(_) | Seen::Well => false,
        }
    }
}

/// Tells the core of the policy. `first` hears once something is known of it, be it that there is no such kind.
pub async fn policy(
    mut seen: mpsc::Receiver<Seen<Custom>>,
    tell: Teller,
    first: oneshot::Sender<()>,
) -> Result<(), Stopped> {
    let mut objects = Objects::default();
    let mut told = None;
    let mut first = Some(first);
    while let Some(seen) = seen.recv().await {
        // Dropped at the end of this round, after the core was told.
        let known = match &seen {
            Seen::Listed(_) | Seen::Applied(_) | Seen::Deleted(_) | Seen::Absent => true,
            Seen::Trouble(failure) => failure.kind == Kind::NotFound,
            Seen::Cluster(_) | Seen::Well => false,
        };
        let _heard = first.take_if(|_| known);
        if !objects.handle(seen) {
            continue;
        }
        let object = objects.0.get(POLICY_NAME);
        let (policy, wrong) = match object.map(shaped::<MeshPolicy>) {
            Some(Ok(object)) => {
                let (policy, wrong) = object.read();
                (Some(policy), wrong)
            }
            // What cannot be read at all must not lift the limits that held before.
            Some(Err(why)) => {
                tell.told("mesh-policy", vec![why], MEND).await?;
                continue;
            }
            None => (None, Vec::new()),
        };
        tell.told("mesh-policy", wrong, MEND).await?;
        if told.as_ref() != Some(&policy) {
            told = Some(policy.clone());
            tell.cluster(ClusterEvent::Policy(policy.map(Box::new)))
                .await?;
        }
    }
    Ok(())
}

/// An object as one of its kind.
fn shaped<K>(object: &Custom) -> Result<K, String>
where
    K: Resource<DynamicType = ()> + DeserializeOwned,
{
    serde_json::from_value(object.whole.clone()).map_err(|error| {
        let (kind, name) = (K::kind(&()), &object.metadata.name);
        format!("{kind} {name} cannot be read: {error}")
    })
}

/// Tells the core of the machines outside.
pub async fn externals(
    mut seen: mpsc::Receiver<Seen<Custom>>,
    tell: Teller,
) -> Result<(), Stopped> {
    let mut objects = Objects::default();
    let mut told = None;
    while let Some(seen) = seen.recv().await {
        if !objects.handle(seen) {
            continue;
        }
        let (peers, wrong) = read_externals(objects.0.values());
        tell.told("external-peer", wrong, MEND).await?;
        if told.as_ref() != Some(&peers) {
            told = Some(peers.clone());
            tell.cluster(ClusterEvent::Externals(peers)).await?;
        }
    }
    Ok(())
}

fn read_externals<'a>(objects: impl Iterator<Item = &'a Custom>) -> (Vec<ConfigPeer>, Vec<String>) {
    let (mut peers, mut sentences) = (Vec::new(), Vec::new());
    for object in objects {
        match shaped::<ExternalPeer>(object) {
            Ok(external) => {
                let (peer, wrong) = external.read();
                peers.extend(peer);
                sentences.extend(wrong);
            }
            Err(why) => sentences.push(why),
        }
    }
    (peers, sentences)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn custom(value: Value) -> Custom {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn one_wrong_peer_does_not_hide_the_others() {
        let right = custom(json!({
            "apiVersion": "farspan.io/v1alpha1", "kind": "ExternalPeer", "metadata": {"name": "laptop", "uid": "1"},
            "spec": {"publicKey": "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=", "addresses": ["10.77.0.9/32"]}
        }));
        let wrong =
            custom(json!({"metadata": {"name": "odd", "uid": "2"}, "spec": {"publicKey": 3}}));
        let (peers, sentences) = read_externals([&right, &wrong].into_iter());
        assert_eq!(peers.len(), 1);
        assert_eq!(peers[0].name.as_deref(), Some("laptop"));
        assert!(
            sentences[0].starts_with("ExternalPeer odd cannot be read"),
            "{sentences:?}"
        );
    }

    #[test]
    fn only_the_policy_named_default_counts() {
        let mut objects = Objects::default();
        let policy = |name: &str| {
            custom(
                json!({"metadata": {"name": name, "uid": name}, "spec": {"podCIDRs": ["10.244.0.0/16"]}}),
            )
        };
        assert!(objects.handle(Seen::Listed(vec![policy("default"), policy("other")])));
        assert!(!objects.handle(Seen::Well));
        assert!(objects.0.contains_key(POLICY_NAME));
        assert!(objects.handle(Seen::Deleted(policy("default"))));
        assert!(!objects.0.contains_key(POLICY_NAME));
        assert!(objects.handle(Seen::Absent));
        assert!(objects.0.is_empty());
    }
}
