//! The test API server itself, through the client that the agent uses.

#![expect(
    clippy::unwrap_used,
    reason = "a test's set-up that fails should fail the test, where it stands"
)]

mod faults;
mod lists;
mod objects;
mod watches;

use std::time::Duration;

use futures_util::{Stream, StreamExt as _};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, WatchEvent, WatchParams};
use kube::config::{Config, KubeConfigOptions, Kubeconfig};
use kube::{Client, Error, ResourceExt as _};
use portcullis_tests::apiserver::{ApiServer, ApiServerConfig};
use serde_json::{Value, json};

/// How long what must happen may take.
const PATIENCE: Duration = Duration::from_secs(60);

fn server() -> ApiServer {
    ApiServer::new(ApiServerConfig::default()).unwrap()
}

async fn client(server: &ApiServer) -> Client {
    client_of(&server.kubeconfig()).await
}

async fn client_of(kubeconfig: &str) -> Client {
    let kubeconfig = Kubeconfig::from_yaml(kubeconfig).unwrap();
    let options = KubeConfigOptions::default();
    let mut config = Config::from_custom_kubeconfig(kubeconfig, &options)
        .await
        .unwrap();
    // Answers as they are.
    config.default_retry = false;
    Client::try_from(config).unwrap()
}

async fn pods(server: &ApiServer) -> Api<Pod> {
    Api::all(client(server).await)
}

fn pod(name: &str, labels: &Value, node: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"namespace": "default", "name": name, "labels": labels},
        "spec": {"nodeName": node, "containers": [{"name": "main"}]},
        "status": {"phase": "Running", "podIPs": [{"ip": "10.0.0.1"}]},
    })
}

/// The HTTP code and reason of an error.
fn refusal(error: Error) -> (u16, String) {
    match error {
        Error::Api(status) => (status.code, status.reason),
        other => panic!("not an answer of the API: {other}"),
    }
}

/// The next event of a watch, as its type and a name, version or code.
async fn next<S>(events: &mut S) -> String
where
    S: Stream<Item = Result<WatchEvent<Pod>, Error>> + Unpin,
{
    let event = tokio::time::timeout(PATIENCE, events.next()).await;
    match event.expect("no event comes") {
        Some(Ok(WatchEvent::Added(pod))) => format!("added {}", pod.name_any()),
        Some(Ok(WatchEvent::Modified(pod))) => format!("modified {}", pod.name_any()),
        Some(Ok(WatchEvent::Deleted(pod))) => format!("deleted {}", pod.name_any()),
        Some(Ok(WatchEvent::Bookmark(mark))) => {
            let version = mark.metadata.resource_version;
            let ends = mark.metadata.annotations.len();
            format!("bookmark {version} ({ends} annotations)")
        }
        Some(Ok(WatchEvent::Error(status))) => format!("error {}", status.code),
        // The client makes no difference between an end and a connection that is cut.
        None => "end".to_owned(),
        Some(Err(error)) => panic!("{error}"),
    }
}

fn watch_params() -> WatchParams {
    WatchParams::default().timeout(120)
}
