//! The API server as the verbs about a cluster ask it: objects by path, as JSON.

use std::time::Duration;

use anyhow::{Result, anyhow};
use axum::http::{Method, Request, header};
use serde_json::Value;

use crate::cli::ClusterArgs;
use crate::kube::kubeconfig;

const CONNECT_WITHIN: Duration = Duration::from_secs(5);
/// A large listing takes its time.
const ANSWER_WITHIN: Duration = Duration::from_secs(60);
/// Objects in one answer to a listing.
const PAGE: usize = 500;

/// An API server.
pub struct Cluster {
    client: kube::Client,
    /// Its URL.
    pub url: String,
}

/// What a patch is.
#[derive(Debug, Clone, Copy)]
pub enum Patch {
    /// RFC 7386.
    Merge,
    /// Server-side apply.
    Apply,
}

impl Cluster {
    /// Credentials as kubectl finds them.
    pub async fn connect(args: &ClusterArgs) -> Result<Self> {
        let context = args.context.as_deref();
        let mut config = match &args.kubeconfig {
            Some(path) => kubeconfig::of_file(path, context).await?,
            None => kubeconfig::found(context).await?,
        };
        config.connect_timeout = Some(CONNECT_WITHIN);
        config.read_timeout = Some(ANSWER_WITHIN);
        config.default_retry = false;
        let url = config.cluster_url.to_string();
        let client = kube::Client::try_from(config).map_err(|error| {
            anyhow!(
                "cannot prepare the connection to {url}: {}",
                crate::kube::client::chain(&error)
            )
        })?;
        Ok(Self {
            client,
            url: url.trim_end_matches('/').to_owned(),
        })
    }

    /// An object; `None` where there is none, or no such kind.
    pub async fn get(&self, path: &str) -> Result<Option<Value>> {
        self.call(Method::GET, path, "", Vec::new()).await
    }

    /// All objects of a kind; none where there is no such kind.
    pub async fn list(&self, path: &str) -> Result<Vec<Value>> {
        let mut objects = Vec::new();
        let mut next = String::new();
        loop {
            let page = format!(
                "{path}{}limit={PAGE}&continue={next}",
                if path.contains('?') { '&' } else { '?' }
            );
            let Some(mut answer) = self.get(&page).await? else {
                return Ok(objects);
            };
            if let Some(items) = answer["items"].as_array_mut() {
                objects.append(items);
            }
            match answer["metadata"]["continue"].as_str() {
                None | Some("") => return Ok(objects),
                Some(token) => next = token.to_owned(),
            }
        }
    }

    /// Deletes an object; was it there?
    pub async fn delete(&self, path: &str) -> Result<bool> {
        self.delete_by(path, "Background").await
    }

    /// Deletes an object once what it owns is gone; was it there?
    pub async fn delete_last(&self, path: &str) -> Result<bool> {
        self.delete_by(path, "Foreground").await
    }

    async fn delete_by(&self, path: &str, policy: &str) -> Result<bool> {
        let body = serde_json::json!({ "propagationPolicy": policy }).to_string();
        let kind = "application/json";
        let answer = self.call(Method::DELETE, path, kind, body.into_bytes());
        Ok(answer.await?.is_some())
    }

    /// Changes an object; `None` where it is gone.
    pub async fn patch(&self, path: &str, how: Patch, body: &Value) -> Result<Option<Value>> {
        let (kind, path) = match how {
            Patch::Merge => ("application/merge-patch+json", path.to_owned()),
            Patch::Apply => (
                "application/apply-patch+yaml",
                format!("{path}?fieldManager=farspan&force=true"),
            ),
        };
        let body = serde_json::to_vec(body)?;
        self.call(Method::PATCH, &path, kind, body).await
    }

    async fn call(
        &self,
        method: Method,
        path: &str,
        kind: &str,
        body: Vec<u8>,
    ) -> Result<Option<Value>> {
        let what = format!("{method} {}", path.split('?').next().unwrap_or(path));
        let mut request = Request::builder().method(method).uri(path);
        if !kind.is_empty() {
            request = request.header(header::CONTENT_TYPE, kind);
        }
        let request = request
            .body(body)
            .map_err(|error| anyhow!("{what} cannot be asked: {error}"))?;
        match self.client.request::<Value>(request).await {
            Ok(answer) => Ok(Some(answer)),
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(None),
            Err(kube::Error::Api(status)) => Err(match status.code {
                401 => anyhow!(
                    "{} does not accept these credentials (401); see `kubectl auth whoami`",
                    self.url
                ),
                403 => anyhow!(
                    "these credentials may not {what} (403); use those of a cluster administrator"
                ),
                code => anyhow!("{what} failed ({code}): {}", status.message),
            }),
            Err(error) => Err(anyhow!(
                "{} cannot be asked: {}; see that `kubectl get nodes` works from here",
                self.url,
                crate::kube::client::chain(&error)
            )),
        }
    }
}
