//! Writes the announcement: annotations of the own Node, by server-side apply. One attempt for each publication; when to
//! try again is the core's business.

use mesh_types::annotations::KEYS;
use mesh_types::cluster::{ClusterEvent, Publication};
use serde_json::{Map, Value, json};
use tokio::sync::watch;

use super::Teller;
use super::client::{Api, Failure, Kind, path};

/// Writes what comes last, in a task of its own.
pub fn start(
    api: Api,
    node: String,
    mut wanted: watch::Receiver<Option<Publication>>,
    tell: Teller,
) {
    tokio::spawn(async move {
        // What was wanted before this task began counts as well.
        wanted.mark_changed();
        while wanted.changed().await.is_ok() {
            let Some(publication) = wanted.borrow_and_update().clone() else {
                continue;
            };
            let result = write(&api, &node, &publication).await;
            let word = result.as_ref().map_or_else(|f| f.kind.kind(), |()| "ok");
            api.metrics().written(word);
            let published = match result {
                Ok(()) => Ok(publication.seq),
                Err(failure) => Err(sentence(&node, &failure)),
            };
            if tell
                .cluster(ClusterEvent::Published(published))
                .await
                .is_err()
            {
                return;
            }
        }
    });
}

/// What is ours, and nothing else under our keys.
async fn write(api: &Api, node: &str, publication: &Publication) -> Result<(), Failure> {
    let object = patch(node, publication);
    let shown = api.apply(path::NODES, node, &object).await?;
    if let Some(removal) = removal(&shown, publication) {
        api.merge(path::NODES, node, &removal).await?;
    }
    Ok(())
}

/// An apply leaves alone what another manager has added; beside it, no proof would be good.
fn removal(shown: &Value, publication: &Publication) -> Option<Value> {
    let annotations = shown.pointer("/metadata/annotations")?;
    let foreign = KEYS
        .into_iter()
        .filter(|key| annotations.get(key).is_some() && !publication.annotations.contains_key(key));
    let nulls: Map<_, _> = foreign.map(|key| (key.to_owned(), Value::Null)).collect();
    (!nulls.is_empty())
        .then(|| json!({ "metadata": { "uid": publication.uid, "annotations": nulls } }))
}

/// All our fields: what is not among them and was ours is removed.
fn patch(node: &str, publication: &Publication) -> Value {
    let Publication {
        uid,
        seq: _,
        annotations,
    } = publication;
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": { "name": node, "uid": uid, "annotations": annotations },
    })
}

fn sentence(node: &str, failure: &Failure) -> String {
    let why = match failure.kind {
        Kind::NotFound => "there is no Node of this name (404); the kubelet makes it, or --node-name names another one".to_owned(),
        Kind::Conflict => format!("the Node was made anew since it was read (409: {})", failure.message),
        // A UID that differs is told as a change of what cannot change.
        Kind::Invalid if failure.message.contains("metadata.uid") => {
            format!("the Node was made anew since it was read (422: {})", failure.message)
        }
        Kind::Invalid => format!(
            "an admission policy or the schema refuses it (422: {}); the token must be bound to a pod on this node, or to the Node",
            failure.message
        ),
        Kind::Unauthorized
        | Kind::Forbidden
        | Kind::Gone
        | Kind::Throttled
        | Kind::Server
        | Kind::Timeout
        | Kind::Unreachable
        | Kind::Malformed => failure.to_string(),
    };
    format!("cannot write the announcement into the annotations of Node {node}: {why}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_patch_names_the_uid_and_nothing_but_annotations() {
        let publication = Publication {
            uid: "6f1c".into(),
            seq: 7,
            annotations: [("farspan.io/seq", "7".to_owned())].into(),
        };
        assert_eq!(
            patch("n1", &publication).to_string(),
            r#"{"apiVersion":"v1","kind":"Node","metadata":{"name":"n1","uid":"6f1c","annotations":{"farspan.io/seq":"7"}}}"#
        );
    }

    #[test]
    fn what_another_manager_has_added_under_our_keys_is_removed() {
        let publication = Publication {
            uid: "6f1c".into(),
            seq: 7,
            annotations: [("farspan.io/seq", "7".to_owned())].into(),
        };
        let shown = |more: &str| {
            let mut shown = patch("n1", &publication);
            shown["metadata"]["annotations"][more] = json!("x");
            shown
        };
        let removed = removal(&shown("farspan.io/relay"), &publication).unwrap();
        assert_eq!(
            removed.to_string(),
            r#"{"metadata":{"uid":"6f1c","annotations":{"farspan.io/relay":null}}}"#
        );
        assert_eq!(
            removal(&shown("config.farspan.io/relay"), &publication),
            None
        );
        assert_eq!(removal(&json!({"metadata": {}}), &publication), None);
    }

    #[test]
    fn refusals_are_told_apart() {
        let said = |kind, message: &str| {
            let failure = Failure {
                kind,
                message: message.into(),
            };
            sentence("n1", &failure)
        };
        assert!(said(Kind::Unauthorized, "x").contains("401"));
        assert!(said(Kind::Forbidden, "x").contains("RBAC"));
        assert!(said(Kind::Conflict, "uid mismatch").contains("made anew"));
        assert!(said(Kind::Invalid, "metadata.uid: field is immutable").contains("made anew"));
        assert!(said(Kind::Invalid, "token is for node n1, not n2").contains("admission policy"));
    }
}
