//! Credentials as kubectl finds them. What is wrong with a file is told without its text, which may be a secret.

use std::io::ErrorKind;
use std::path::Path;

use anyhow::{Result, anyhow, bail};
use kube::config::{KubeConfigOptions, Kubeconfig, KubeconfigError};

use super::client::chain;

/// Those of a file: of its current context unless one is named.
///
/// # Errors
/// One sentence, when the file cannot be read or used.
pub async fn of_file(path: &Path, context: Option<&str>) -> Result<kube::Config> {
    let place = path.display().to_string();
    let file = Kubeconfig::read_from(path).map_err(|error| refusal(&place, &error))?;
    of_context(file, context, &place).await
}

/// Those of a file for an agent, which starts no program to get a token.
///
/// # Errors
/// One sentence, when the file cannot be read or used.
pub async fn for_an_agent(path: &Path) -> Result<kube::Config> {
    let config = of_file(path, None).await?;
    if config.auth_info.exec.is_some() || config.auth_info.auth_provider.is_some() {
        bail!(
            "cannot use {}: its user is known by a program (exec, auth-provider), and the agent starts none; give it a token or tokenFile",
            path.display()
        );
    }
    Ok(config)
}

/// Those of KUBECONFIG, else of ~/.kube/config, else of the pod's ServiceAccount.
///
/// # Errors
/// One sentence, when there are none, or those that were found cannot be used.
pub async fn found(context: Option<&str>) -> Result<kube::Config> {
    let named = std::env::var_os("KUBECONFIG").filter(|value| !value.is_empty());
    let place = named.as_ref().map_or_else(
        || "~/.kube/config".to_owned(),
        |files| format!("KUBECONFIG={}", files.display()),
    );
    match Kubeconfig::read() {
        Ok(file) => of_context(file, context, &place).await,
        Err(error) if named.is_some() || !missing(&error) => Err(refusal(&place, &error)),
        Err(_) if let Some(context) = context => {
            bail!("there is no ~/.kube/config with a context {context:?}; give --kubeconfig FILE")
        }
        Err(_) => kube::Config::incluster_env().map_err(|_| {
            anyhow!("there are no credentials for a cluster: no KUBECONFIG, no ~/.kube/config, no ServiceAccount; give --kubeconfig FILE")
        }),
    }
}

async fn of_context(file: Kubeconfig, context: Option<&str>, place: &str) -> Result<kube::Config> {
    let options = KubeConfigOptions {
        context: context.map(str::to_owned),
        ..KubeConfigOptions::default()
    };
    kube::Config::from_custom_kubeconfig(file, &options)
        .await
        .map_err(|error| refusal(place, &error))
}

fn missing(error: &KubeconfigError) -> bool {
    if let KubeconfigError::ReadConfig(error, _) = error {
        return error.kind() == ErrorKind::NotFound;
    }
    matches!(error, KubeconfigError::FindPath)
}

/// The parser quotes the lines around a mistake, with whatever token stands there.
fn refusal(place: &str, error: &KubeconfigError) -> anyhow::Error {
    if let KubeconfigError::ReadConfig(error, path) = error {
        return anyhow!("cannot read {}: {error}", path.display());
    }
    let KubeconfigError::Parse(error) = error else {
        return anyhow!("cannot use {place}: {}", chain(error));
    };
    let place_in_it = error.location().map_or_else(String::new, |at| {
        format!(" (line {}, column {})", at.line(), at.column())
    });
    anyhow!("cannot use {place}: it is no kubeconfig{place_in_it}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_broken_kubeconfig_is_told_in_a_line_without_its_secrets() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config");
        for text in [
            "users:\n- name: me\n  user:\n    token: hush\n   token: hush\n",
            "users: hush\n",
            "clusters:\n- name: a\n  cluster:\n    server: [hush]\n",
            "hush",
            "\t\0hush",
        ] {
            std::fs::write(&path, text).unwrap();
            let told = of_file(&path, None).await.unwrap_err().to_string();
            assert!(!told.contains("hush") && !told.contains('\n'), "{told}");
            assert!(
                told.starts_with("cannot use ") && told.contains("config: "),
                "{told}"
            );
        }
    }

    #[tokio::test]
    async fn credentials_of_a_program_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("kubeconfig");
        let write = |user: &str| {
            let text = format!(
                "apiVersion: v1\nkind: Config\ncurrent-context: c\n\
                 contexts: [{{name: c, context: {{cluster: c, user: u}}}}]\n\
                 clusters: [{{name: c, cluster: {{server: \"https://192.0.2.1:6443\"}}}}]\n\
                 users: [{{name: u, user: {user}}}]\n"
            );
            std::fs::write(&file, text).unwrap();
        };
        write(
            "{exec: {apiVersion: client.authentication.k8s.io/v1, command: /bin/true, interactiveMode: Never}}",
        );
        let error = for_an_agent(&file).await.unwrap_err().to_string();
        assert!(error.contains("the agent starts none"), "{error}");
        write("{token: t}");
        let config = for_an_agent(&file).await.unwrap();
        assert_eq!(config.cluster_url.host(), Some("192.0.2.1"));
        std::fs::write(&file, "{").unwrap();
        assert!(for_an_agent(&file).await.is_err());
    }
}
