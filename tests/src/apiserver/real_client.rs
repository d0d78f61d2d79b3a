//! What a test does to the real API server.

use anyhow::{Context as _, Result, bail, ensure};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use hyper::{Method, Request};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config, Error};
use serde_json::Value;

use super::Resource;
use super::real::RealServer;

/// Requests at a time where there are many.
const AT_ONCE: usize = 32;

impl RealServer {
    /// Creates objects or replaces them, then their status where they have one.
    ///
    /// # Errors
    ///
    /// The first that the server does not accept.
    pub fn put_all(&self, objects: Vec<Value>) -> Result<()> {
        self.call(|client| async move {
            stream::iter(objects)
                .map(|object| put(client.clone(), object))
                .buffer_unordered(AT_ONCE)
                .try_collect::<Vec<()>>()
                .await?;
            Ok(())
        })
    }

    /// Deletes an object, and waits until it is gone.
    ///
    /// # Errors
    ///
    /// When it is not there, or is a namespace: there is no controller that would clear it up.
    pub fn delete(&self, resource: Resource, namespace: &str, name: &str) -> Result<()> {
        ensure!(
            resource != Resource::Namespaces,
            "without a controller, a namespace is never gone"
        );
        // Without a kubelet, a pod goes at once or not at all.
        let path = resource.path(namespace, name) + "?gracePeriodSeconds=0";
        self.call(|client| async move {
            send(&client, Method::DELETE, &path, None).await?;
            Ok(())
        })
    }

    pub(super) fn ask_readyz(&self) -> Result<()> {
        self.call(|client| async move {
            let request = Request::get("/readyz").body(Vec::new())?;
            let answer = client.request_text(request).await?;
            ensure!(answer == "ok", "{answer}");
            Ok(())
        })
    }

    /// Runs `work` inside the node, with a client of its own: none that remembers connections of a server
    /// that was stopped since.
    fn call<F>(&self, work: impl FnOnce(Client) -> F + Send) -> Result<()>
    where
        F: Future<Output = Result<()>>,
    {
        let kubeconfig = self.kubeconfig();
        self.inside.enter(|| {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            runtime.block_on(async { work(client_of(&kubeconfig).await?).await })
        })
    }
}

async fn client_of(kubeconfig: &str) -> Result<Client> {
    let kubeconfig = Kubeconfig::from_yaml(kubeconfig)?;
    let options = KubeConfigOptions::default();
    let mut config = Config::from_custom_kubeconfig(kubeconfig, &options).await?;
    config.default_retry = false;
    Ok(Client::try_from(config)?)
}

async fn put(client: Client, object: Value) -> Result<()> {
    let text = |pointer: &str| {
        let found = object.pointer(pointer).and_then(Value::as_str);
        found.unwrap_or_default().to_owned()
    };
    let (api_version, kind) = (text("/apiVersion"), text("/kind"));
    let resource = Resource::of_kind(&api_version, &kind)
        .with_context(|| format!("objects of kind {api_version}/{kind} are not for tests"))?;
    let (namespace, name) = (text("/metadata/namespace"), text("/metadata/name"));
    let (all, one) = (
        resource.path(&namespace, ""),
        resource.path(&namespace, &name),
    );
    let mut there = match send(&client, Method::POST, &all, Some(&object)).await {
        Ok(created) => created,
        Err(Error::Api(status)) if status.reason == "AlreadyExists" => {
            let mut there = send(&client, Method::GET, &one, None).await?;
            for field in ["labels", "annotations"] {
                there["metadata"][field] = object["metadata"][field].clone();
            }
            // What a pod is, is decided once.
            if resource != Resource::Pods && !object["spec"].is_null() {
                there["spec"] = object["spec"].clone();
            }
            send(&client, Method::PUT, &one, Some(&there)).await?
        }
        Err(error) => bail!("{kind} {namespace}/{name}: {error}"),
    };
    if resource == Resource::Pods
        && let (Some(wanted), Some(status)) = (
            object["status"].as_object(),
            there["status"].as_object_mut(),
        )
    {
        // The server has more in it, some of which may not change.
        for ours in ["podIP", "podIPs"] {
            status.remove(ours);
        }
        status.extend(wanted.clone());
        let status = one + "/status";
        send(&client, Method::PUT, &status, Some(&there)).await?;
    }
    Ok(())
}

async fn send(
    client: &Client,
    method: Method,
    path: &str,
    body: Option<&Value>,
) -> Result<Value, Error> {
    let body = body.map_or_else(Vec::new, |body| body.to_string().into_bytes());
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("content-type", "application/json")
        .body(body)
        .map_err(Error::HttpError)?;
    client.request(request).await
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use serde_json::json;

    use super::*;
    use crate::apiserver::{ApiServer, ApiServerConfig};
    use crate::objects;

    /// The same requests, to the server that can be had everywhere.
    #[tokio::test]
    async fn objects_are_put_with_their_status() {
        let server = ApiServer::new(ApiServerConfig::default()).unwrap();
        let client = client_of(&server.kubeconfig()).await.unwrap();
        let one = IpAddr::from([10, 0, 0, 1]);
        for (app, addresses) in [("web", &[one][..]), ("db", &[])] {
            let pod = objects::pod("default", "a", &[("app", app)], &[], addresses);
            put(client.clone(), pod.clone()).await.unwrap();
            let there = server.get(Resource::Pods, "default", "a").unwrap();
            assert_eq!(there["metadata"]["labels"], json!({"app": app}));
            assert_eq!(there["status"], pod["status"]);
        }
        for spec in [json!({"podSelector": {}}), json!({"egress": []})] {
            let policy = objects::network_policy("default", "x", &spec);
            put(client.clone(), policy).await.unwrap();
            let there = server.get(Resource::NetworkPolicies, "default", "x");
            assert_eq!(there.unwrap()["spec"], spec);
        }
        let path = Resource::Pods.path("default", "a") + "?gracePeriodSeconds=0";
        send(&client, Method::DELETE, &path, None).await.unwrap();
        assert_eq!(server.get(Resource::Pods, "default", "a"), None);
        let lost = objects::pod("nowhere", "a", &[], &[], &[]);
        let error = put(client, lost).await.unwrap_err().to_string();
        assert!(error.contains("\"nowhere\" not found"), "{error}");
    }
}
