//! What people apply: a second time it changes nothing.

use crate::cluster::{Cluster, manifest};

#[test]
fn rights_and_policies_applied_again_are_unchanged() {
    let cluster = Cluster::start(&[]);
    for file in ["namespace", "rbac", "admission"] {
        let path = manifest(&format!("base/{file}.yaml"));
        let said = cluster.server.kubectl_ok(&["apply", "-f", &path], "");
        assert!(!said.is_empty(), "{file}.yaml has no object");
        for line in said.lines() {
            assert!(
                line.ends_with(" unchanged"),
                "{file}.yaml, applied twice: {line}"
            );
        }
    }
}
