//! The pods that clean up: on every node that an agent was on, with the agent's rights and folders.

use anyhow::{Result, anyhow};
use serde_json::{Value, json};

use super::{AGENTS, CLEANUP};
use crate::cli::UninstallArgs;
use crate::ctl::manifests;

/// A pod is ready once its init container, which does the work, has ended; then it waits to be deleted.
pub fn daemon_set(agents: Option<&Value>, image: &str, args: &UninstallArgs) -> Result<Value> {
    let fresh;
    let set = match agents {
        Some(set) => set,
        None => {
            let all = manifests::every_object(&args.namespace)?;
            fresh = all.into_iter().find(|object| object["kind"] == "DaemonSet");
            fresh
                .as_ref()
                .ok_or_else(|| anyhow!("the manifests have no DaemonSet"))?
        }
    };
    let mut pod = set["spec"]["template"]["spec"].clone();
    let mut worker = pod["containers"][0].clone();
    let mut words = vec!["uninstall".to_owned(), "--this-node".to_owned()];
    if set["metadata"]["name"] == CLEANUP {
        let known = worker["args"].as_array().cloned().unwrap_or_default();
        words = known
            .iter()
            .filter_map(Value::as_str)
            .filter(|word| !matches!(*word, "--stay" | "--purge"))
            .map(str::to_owned)
            .collect();
    } else {
        words.extend(settings(&worker, agents.is_none().then_some(args)));
    }
    if args.purge {
        words.push("--purge".to_owned());
    }
    if let Some(worker) = worker.as_object_mut() {
        for field in [
            "livenessProbe",
            "readinessProbe",
            "startupProbe",
            "ports",
            "env",
            "command",
        ] {
            worker.remove(field);
        }
    }
    worker["image"] = image.into();
    worker["name"] = "cleanup".into();
    worker["args"] = json!(words);
    let mut waiter = worker.clone();
    words.push("--stay".to_owned());
    waiter["name"] = "done".into();
    waiter["args"] = json!(words);
    pod["initContainers"] = json!([worker]);
    pod["containers"] = json!([waiter]);
    pod["automountServiceAccountToken"] = false.into();
    // The agents' file may be deleted before these pods are.
    without_config(&mut pod);
    let labels = json!({ "app.kubernetes.io/name": CLEANUP });
    Ok(json!({
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": { "name": CLEANUP, "namespace": args.namespace, "labels": labels },
        "spec": {
            "selector": { "matchLabels": labels },
            "updateStrategy": { "type": "RollingUpdate", "rollingUpdate": { "maxUnavailable": "100%" } },
            "template": { "metadata": { "labels": labels }, "spec": pod }
        }
    }))
}

/// Those of the agent's arguments that say where its things are.
fn settings(agent: &Value, told: Option<&UninstallArgs>) -> Vec<String> {
    if let Some(args) = told {
        return vec![format!("--cni-conf-dir={}", args.cni_conf_dir)];
    }
    let args = agent["args"].as_array();
    args.into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .filter(|word| {
            ["--interface=", "--state-dir=", "--cni-conf-dir="]
                .iter()
                .any(|flag| word.starts_with(flag))
        })
        .map(str::to_owned)
        .collect()
}

fn without_config(pod: &mut Value) {
    let lists = [
        "/volumes",
        "/containers/0/volumeMounts",
        "/initContainers/0/volumeMounts",
    ];
    let Some(volumes) = pod["volumes"].as_array() else {
        return;
    };
    let maps: Vec<Value> = volumes
        .iter()
        .filter(|volume| volume["configMap"]["name"] == AGENTS)
        .map(|volume| volume["name"].clone())
        .collect();
    for list in lists {
        if let Some(list) = pod.pointer_mut(list).and_then(Value::as_array_mut) {
            list.retain(|entry| !maps.contains(&entry["name"]));
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::cli::{Cli, Verb};

    fn args(flags: &[&str]) -> UninstallArgs {
        let cli = Cli::try_parse_from(["farspan", "uninstall"].iter().chain(flags)).unwrap();
        let Verb::Uninstall(args) = cli.verb else {
            panic!("the verb is `uninstall`");
        };
        args
    }

    #[test]
    fn pods_that_clean_up_have_the_agents_rights_and_folders_and_nothing_of_its_tasks() {
        let mut agents = manifests::every_object("farspan")
            .unwrap()
            .into_iter()
            .find(|object| object["kind"] == "DaemonSet")
            .unwrap();
        let list = agents
            .pointer_mut("/spec/template/spec/containers/0/args")
            .unwrap();
        list.as_array_mut()
            .unwrap()
            .push("--interface=mesh0".into());
        let made = daemon_set(Some(&agents), "farspan:2", &args(&["--purge"])).unwrap();
        let pod = &made["spec"]["template"]["spec"];
        let (work, wait) = (&pod["initContainers"][0], &pod["containers"][0]);
        let words = ["uninstall", "--this-node", "--interface=mesh0", "--purge"];
        assert_eq!(work["args"], json!(words));
        assert_eq!(wait["args"], json!([&words[..], &["--stay"]].concat()));
        assert_eq!(work["image"], "farspan:2");
        assert_eq!(
            work["securityContext"]["capabilities"]["add"],
            json!(["NET_ADMIN"])
        );
        assert!(wait["livenessProbe"].is_null() && wait["ports"].is_null());
        let text = made.to_string();
        assert!(
            !text.contains("configMap") && text.contains("/etc/cni/net.d"),
            "{text}"
        );
        assert_eq!(pod["tolerations"], json!([{ "operator": "Exists" }]));

        // Interrupted, and run again.
        let again = daemon_set(Some(&made), "farspan:2", &args(&["--purge"])).unwrap();
        assert_eq!(again, made);
    }

    #[test]
    fn an_image_is_enough_where_the_agents_are_gone() {
        let made = daemon_set(None, "farspan:2", &args(&["--cni-conf-dir", "/k3s"])).unwrap();
        let pod = &made["spec"]["template"]["spec"];
        assert_eq!(
            pod["initContainers"][0]["args"],
            json!(["uninstall", "--this-node", "--cni-conf-dir=/k3s"])
        );
    }
}
