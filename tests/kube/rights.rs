//! What a stolen token is good for: each attack on the real API server, by its code and its sentence, beside what the
//! same token may do.

use std::time::Duration;

use serde_json::{Value, json};

use crate::cluster::{Cluster, NODES, PODS};
use crate::lab::wait::wait_until;
use crate::user::Refusal;

/// Good tokens are remembered for 10 s.
const TOKEN_CACHE: Duration = Duration::from_secs(60);

/// Of a patch that touches other annotations.
const KEYS_ONLY: &str = "only the agent's own farspan.io/* annotations may change";

#[test]
fn a_bound_token_changes_the_announcement_of_its_own_node_and_nothing_else() {
    let cluster = Cluster::with_nodes(&["n1", "n2"]);
    let by_pod = cluster.server.user(&cluster.pod_token("farspan-1", "n1"));
    let by_node = cluster.server.user(&cluster.node_token("n1"));
    let unbound = cluster.server.user(&cluster.token(Value::Null));
    cluster
        .admin
        .merge(&path("n1"), &annotations(json!({"example.org/rack": "7"})))
        .expect("admin may");
    cluster
        .admin
        .merge(&path("n2"), &annotations(json!({"farspan.io/seq": "1"})))
        .expect("admin may");
    let before = cluster.object(&path("n2"));

    for user in [&by_pod, &by_node] {
        allowed(user.apply(
            &path("n1"),
            &announcement(
                "n1",
                json!({"farspan.io/identity": "a", "farspan.io/seq": "1"}),
            ),
        ));
        allowed(user.apply(
            &path("n1"),
            &announcement(
                "n1",
                json!({"farspan.io/identity": "a", "farspan.io/seq": "2"}),
            ),
        ));
        allowed(user.merge(
            &path("n1"),
            &annotations(json!({"farspan.io/identity": null})),
        ));
        allowed(user.apply(
            &path("n1"),
            &announcement("n1", json!({"farspan.io/endpoints": "x".repeat(900)})),
        ));

        // Another's Node.
        let foreign = user.apply(
            &path("n2"),
            &announcement("n2", json!({"farspan.io/seq": "9"})),
        );
        denied(foreign, "token is for node n1, not n2");
        denied(
            user.merge(&path("n2"), &annotations(json!({"farspan.io/seq": null}))),
            "token is for node n1, not n2",
        );
        // Its own Node, beyond its own keys.
        let removal = annotations(json!({"example.org/rack": null}));
        denied(user.merge(&path("n1"), &removal), KEYS_ONLY);
        for (patch, sentence) in beyond() {
            denied(user.merge(&path("n1"), &patch), sentence);
            denied(user.apply(&path("n1"), &with_kind("n1", patch)), sentence);
        }
        allowed(user.apply(&path("n1"), &announcement("n1", json!({}))));
    }
    let nobody = unbound.apply(
        &path("n1"),
        &announcement("n1", json!({"farspan.io/seq": "9"})),
    );
    denied(nobody, "token is for node (none), not n1");

    let after = cluster.object(&path("n2"));
    assert_eq!(before, after, "what belongs to n2 has changed");
    let own = &cluster.object(&path("n1"))["metadata"]["annotations"];
    assert_eq!(
        own,
        &json!({"example.org/rack": "7"}),
        "n1 after its record was taken back"
    );
}

#[test]
fn a_token_has_no_other_verb_and_even_an_administrators_role_does_not_widen_it() {
    let cluster = Cluster::with_nodes(&["n1"]);
    let token = cluster.pod_token("farspan-1", "n1");
    let user = cluster.server.user(&token);
    let new = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n3"}});
    let status = json!({"status": {"addresses": [{"type": "InternalIP", "address": "10.96.0.1"}]}});
    let attempts = || {
        [
            user.merge(&format!("{}/status", path("n1")), &status),
            user.create(NODES, &new),
            user.delete(&path("n1")),
        ]
    };
    for answer in attempts() {
        refused(
            answer,
            403,
            "Forbidden",
            "system:serviceaccount:farspan:farspan",
        );
    }
    for path in [
        "/api/v1/secrets",
        "/api/v1/namespaces/farspan/pods",
        "/api/v1/namespaces/default",
        "/api/v1/namespaces/kube-system/services/other",
        "/apis/rbac.authorization.k8s.io/v1/clusterroles",
    ] {
        refused(user.get(path), 403, "Forbidden", "cannot");
    }
    let account = json!({"spec": {"expirationSeconds": 3600}});
    let more = user.create(
        "/api/v1/namespaces/farspan/serviceaccounts/farspan/token",
        &account,
    );
    refused(more, 403, "Forbidden", "serviceaccounts/token");

    // What it needs.
    for path in [
        NODES,
        "/api/v1/nodes/n1",
        "/api/v1/namespaces/kube-system",
        "/api/v1/namespaces/default/services/kubernetes",
        "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/kubernetes",
        "/apis/networking.k8s.io/v1/servicecidrs",
    ] {
        allowed(user.get(path));
    }
    let regarding = json!({"apiVersion": "v1", "kind": "Node", "name": "n1"});
    let event = json!({"apiVersion": "events.k8s.io/v1", "kind": "Event", "metadata": {"generateName": "farspan-"},
        "eventTime": "2026-01-01T00:00:00.000000Z", "reportingController": "farspan.io/agent", "reportingInstance": "n1",
        "action": "Refused", "reason": "ClaimRefused", "type": "Warning", "note": "x", "regarding": regarding});
    allowed(user.create("/apis/events.k8s.io/v1/namespaces/default/events", &event));
    let elsewhere = user.create(
        "/apis/events.k8s.io/v1/namespaces/kube-system/events",
        &event,
    );
    refused(elsewhere, 403, "Forbidden", "events");

    // A binding made by mistake.
    let subject = json!({"kind": "ServiceAccount", "name": "farspan", "namespace": "farspan"});
    let role = json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"});
    let binding = json!({"metadata": {"name": "mistake"}, "roleRef": role, "subjects": [subject]});
    allowed(cluster.admin.create(
        "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings",
        &binding,
    ));
    wait_until("the role counts", TOKEN_CACHE, || {
        user.get("/api/v1/secrets")
            .map_err(|refusal| refusal.to_string())
    });
    for answer in attempts() {
        denied(answer, "the agent may only patch Node objects");
    }
}

#[test]
fn config_annotations_are_peoples_and_not_nodes() {
    let cluster = Cluster::with_nodes(&["n1"]);
    let kubelet = cluster.server.kubelet("n1");
    let key = "config.farspan.io/extra-cidrs";
    let sentence = "config.farspan.io/* is set by people and not by nodes";
    let status = format!("{}/status", path("n1"));

    denied(
        kubelet.merge(&path("n1"), &annotations(json!({key: "0.0.0.0/0"}))),
        sentence,
    );
    denied(
        kubelet.merge(&status, &annotations(json!({key: "0.0.0.0/0"}))),
        sentence,
    );
    allowed(
        cluster
            .admin
            .merge(&path("n1"), &annotations(json!({key: "192.168.7.0/24"}))),
    );
    denied(
        kubelet.merge(&path("n1"), &annotations(json!({key: null}))),
        sentence,
    );
    denied(
        kubelet.merge(&status, &annotations(json!({key: "0.0.0.0/0"}))),
        sentence,
    );
    allowed(kubelet.merge(&path("n1"), &annotations(json!({"example.org/rack": "7"}))));
    allowed(kubelet.merge(&status, &json!({"status": {"conditions": []}})));

    // A kubelet that takes its Node away and comes back with more.
    allowed(
        kubelet
            .delete(&path("n1"))
            .or_else(|_| cluster.admin.delete(&path("n1"))),
    );
    let mut richer = crate::cluster::node("n1");
    richer["metadata"]["annotations"] = json!({key: "0.0.0.0/0"});
    denied(kubelet.create(NODES, &richer), sentence);
    allowed(kubelet.create(NODES, &crate::cluster::node("n1")));
}

#[test]
fn a_record_goes_to_the_node_it_was_made_for_and_a_token_ends_with_its_pod() {
    let mut cluster = Cluster::with_nodes(&["n1", "n2"]);
    let first = cluster.server.user(&cluster.pod_token("farspan-1", "n1"));
    let second = cluster.server.user(&cluster.pod_token("farspan-2", "n2"));
    let mut record = announcement("n1", json!({"farspan.io/seq": "1"}));
    record["metadata"]["uid"] = cluster.object(&path("n1"))["metadata"]["uid"].clone();
    allowed(first.apply(&path("n1"), &record));

    // The Node is made anew, and gone.
    allowed(cluster.admin.delete(&path("n1")));
    refused(
        first.apply(&path("n1"), &record),
        409,
        "Conflict",
        "uid mismatch",
    );
    cluster.add_node("n1", 1, "192.0.2.1");
    let answer = first.apply(&path("n1"), &record);
    refused(answer, 422, "Invalid", "field is immutable");

    allowed(cluster.admin.delete(&format!("{PODS}/farspan-2")));
    wait_until("the dead token is refused", TOKEN_CACHE, || {
        match second.get(NODES) {
            Err(Refusal { code: 401, .. }) => Ok(()),
            other => Err(format!("{other:?}").chars().take(100).collect()),
        }
    });
    let record = announcement("n2", json!({"farspan.io/seq": "1"}));
    refused(
        second.apply(&path("n2"), &record),
        401,
        "Unauthorized",
        "Unauthorized",
    );
    allowed(first.apply(
        &path("n1"),
        &announcement("n1", json!({"farspan.io/seq": "2"})),
    ));

    // Both verdicts outlive the server's process.
    cluster.server.kill();
    cluster.server.restart();
    refused(
        second.apply(&path("n2"), &record),
        401,
        "Unauthorized",
        "Unauthorized",
    );
    wait_until("the other's token counts", TOKEN_CACHE, || {
        let answer = first.apply(
            &path("n1"),
            &announcement("n1", json!({"farspan.io/seq": "3"})),
        );
        answer.map_err(|refusal| refusal.to_string())
    });
}

/// Patches of a Node that its own agent has no right to, and the sentence that each is answered with.
fn beyond() -> Vec<(Value, &'static str)> {
    let keys = KEYS_ONLY;
    let rest = "spec, labels, finalizers and owners are not the agent's";
    vec![
        (
            annotations(json!({"config.farspan.io/extra-cidrs": "0.0.0.0/0"})),
            keys,
        ),
        (annotations(json!({"farspan.io/other": "x"})), keys),
        (annotations(json!({"example.org/rack": "8"})), keys),
        (
            json!({"metadata": {"labels": {"topology.kubernetes.io/region": "mars"}}}),
            rest,
        ),
        (
            json!({"metadata": {"finalizers": ["farspan.io/stay"]}}),
            rest,
        ),
        (
            json!({"spec": {"taints": [{"key": "farspan.io/no", "effect": "NoExecute"}]}}),
            rest,
        ),
        (json!({"spec": {"unschedulable": true}}), rest),
        (
            annotations(json!({"farspan.io/endpoints": "x".repeat(1100)})),
            "the record is over 1 KiB",
        ),
        (
            annotations(json!({"farspan.io/endpoints": "é".repeat(600)})),
            "the record is over 1 KiB",
        ),
    ]
}

fn path(node: &str) -> String {
    format!("{NODES}/{node}")
}

fn annotations(pairs: Value) -> Value {
    let mut object = json!({"metadata": {}});
    object["metadata"]["annotations"] = pairs;
    object
}

/// What an agent applies.
fn announcement(node: &str, pairs: Value) -> Value {
    with_kind(node, annotations(pairs))
}

fn with_kind(node: &str, mut object: Value) -> Value {
    object["apiVersion"] = json!("v1");
    object["kind"] = json!("Node");
    object["metadata"]["name"] = json!(node);
    object
}

#[track_caller]
fn allowed(answer: Result<Value, Refusal>) {
    if let Err(refusal) = answer {
        panic!("refused, though it is a right: {refusal}");
    }
}

/// By an admission policy.
#[track_caller]
fn denied(answer: Result<Value, Refusal>, sentence: &str) {
    refused(answer, 422, "Invalid", sentence);
}

#[track_caller]
fn refused(answer: Result<Value, Refusal>, code: u16, reason: &str, sentence: &str) {
    match answer {
        Ok(object) => panic!("allowed, though it should end with {code} `{sentence}`: {object}"),
        Err(refusal) => assert!(
            refusal.code == code && refusal.reason == reason && refusal.message.contains(sentence),
            "expected {code} {reason} `{sentence}`, got {refusal}"
        ),
    }
}
