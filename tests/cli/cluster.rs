//! Verbs about a Kubernetes cluster, where there is none.

use super::{farspan, folder};

#[test]
fn manifests_are_printed_whole_or_refused_in_one_sentence() {
    let folder = folder("");
    let printed = farspan(folder.path(), &["manifests", "--pod-network", "own"], "");
    assert_eq!(printed.code, 0, "{}", printed.stderr);
    assert!(printed.stdout.contains("--pod-network=own"));
    let last = printed.stdout.lines().last().unwrap();
    assert!(last.starts_with("# Verify: kubectl -n farspan "), "{last}");
    for (flags, sentence) in [
        (&["--namespace", "kube-system"][..], "belongs to Kubernetes"),
        (&["--cluster-cidr", "10.0.0.0"], ""),
        (&["--cluster-cidr", "10.0.0/8"], "is not a range"),
        (&["--api-server", "203.0.113.1"], "https://203.0.113.1:6443"),
        (&["--cni-conf-dir", "net.d"], "write its whole path"),
        (
            &["--pod-network", "cross"],
            "possible values: auto, own, existing, nodes",
        ),
        (&["--topology", "cross"], "unexpected argument"),
        (
            &["--agent-config", "/nonexistent"],
            "cannot read /nonexistent",
        ),
    ] {
        let ran = farspan(folder.path(), &[&["manifests"], flags].concat(), "");
        if sentence.is_empty() {
            assert_eq!(
                ran.code, 0,
                "a bare address is a range of one: {}",
                ran.stderr
            );
            continue;
        }
        assert_eq!(ran.code, 2, "{flags:?}: {}", ran.stderr);
        assert!(ran.stderr.contains(sentence), "{}", ran.stderr);
        assert_eq!(ran.stderr.lines().count(), 1, "{}", ran.stderr);
    }
    let crds = farspan(folder.path(), &["crds"], "");
    assert_eq!(
        crds.stdout
            .matches("kind: CustomResourceDefinition")
            .count(),
        2
    );
}

#[test]
fn verbs_about_a_cluster_say_what_is_missing_where_there_is_none() {
    let folder = folder("");
    let missing = folder.path().join("none");
    let missing = missing.to_str().unwrap();
    for verb in ["preflight", "uninstall"] {
        let ran = farspan(folder.path(), &[verb, "--kubeconfig", missing], "");
        assert_eq!(ran.code, 1, "{}", ran.stderr);
        assert!(
            ran.stderr.contains(&format!("cannot read {missing}")),
            "{}",
            ran.stderr
        );
        assert_eq!(ran.stderr.lines().count(), 1, "{}", ran.stderr);
        let ran = farspan(folder.path(), &[verb], "");
        assert_eq!(ran.code, 1, "{}", ran.stderr);
        assert!(
            ran.stderr.contains("give --kubeconfig FILE"),
            "{}",
            ran.stderr
        );
    }
}
