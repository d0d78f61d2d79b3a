//! Faults: wrong and expired tokens, what is forbidden, servers that are away, slow or refuse.

use std::pin::pin;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::Error;
use kube::api::{Api, ListParams};
use serde_json::json;

use portcullis_tests::apiserver::{ApiServer, ApiServerConfig, Identity, Resource};

use super::{client, client_of, next, pod, pods, refusal, server, watch_params};

/// The code and reason of a list that fails.
async fn list_fails(pods: &Api<Pod>) -> (u16, String) {
    refusal(pods.list(&ListParams::default()).await.unwrap_err())
}

#[tokio::test]
async fn tokens() {
    let server = server();
    let unauthorized = (401, "Unauthorized".to_owned());
    let wrong = client_of(&server.kubeconfig_with("wrong")).await;
    assert_eq!(list_fails(&Api::all(wrong.clone())).await, unauthorized);
    assert_eq!(
        refusal(wrong.apiserver_version().await.unwrap_err()),
        unauthorized
    );
    let pods = pods(&server).await;
    pods.list(&ListParams::default()).await.unwrap();
    server.set_token("wrong");
    assert_eq!(list_fails(&pods).await, unauthorized);
    let wrong: Api<Pod> = Api::all(wrong);
    wrong.list(&ListParams::default()).await.unwrap();
    server.expire_token();
    assert_eq!(list_fails(&wrong).await, unauthorized);
    assert_eq!(server.served(Resource::Pods).refused, 3);
}

#[tokio::test]
async fn certificates() {
    let server = server();
    server.expire_token();
    let config = |server: &ApiServer, identity: &Identity| {
        // Without a token, and with a certificate in its place.
        let token = format!("token: {}", "none");
        let kubeconfig = server.kubeconfig_with("none");
        assert!(kubeconfig.contains(&token));
        let encode = |text: &str| STANDARD.encode(text);
        let certificate = format!(
            "client-certificate-data: {}\n    client-key-data: {}",
            encode(&identity.certificate),
            encode(&identity.key)
        );
        kubeconfig.replace(&token, &certificate)
    };
    let own = client_of(&config(&server, server.client_identity())).await;
    let pods: Api<Pod> = Api::all(own);
    pods.list(&ListParams::default()).await.unwrap();
    let other = ApiServer::new(ApiServerConfig::default()).unwrap();
    let other = client_of(&config(&server, other.client_identity())).await;
    let pods: Api<Pod> = Api::all(other);
    let error = pods.list(&ListParams::default()).await.unwrap_err();
    assert!(
        !matches!(error, Error::Api(_)),
        "another authority's: {error}"
    );
}

#[tokio::test]
async fn one_resource_is_forbidden() {
    let server = server();
    let client = client(&server).await;
    let (pods, nodes): (Api<Pod>, Api<Node>) = (Api::all(client.clone()), Api::all(client));
    server.forbid(Resource::Pods);
    assert_eq!(list_fails(&pods).await, (403, "Forbidden".to_owned()));
    let version = server.version().to_string();
    let Err(error) = pods.watch(&watch_params(), &version).await else {
        panic!("a watch of what is forbidden");
    };
    assert_eq!(refusal(error).0, 403);
    nodes.list(&ListParams::default()).await.unwrap();
    server.permit(Resource::Pods);
    pods.list(&ListParams::default()).await.unwrap();
}

#[tokio::test]
async fn everybody_is_refused() {
    let server = server();
    let pods = pods(&server).await;
    for (code, reason) in [
        (500, "InternalError"),
        (503, "ServiceUnavailable"),
        (429, "TooManyRequests"),
    ] {
        server.refuse_with(Some(code));
        assert_eq!(list_fails(&pods).await, (code, reason.to_owned()));
    }
    server.refuse_with(None);
    pods.list(&ListParams::default()).await.unwrap();
}

#[tokio::test]
async fn stopped_and_started() {
    let server = server();
    server.put(pod("a", &json!({}), "n1")).unwrap();
    let pods = pods(&server).await;
    let version = server.version().to_string();
    for round in 0..3 {
        let now = server.version().to_string();
        let (endpoint, ca) = (server.endpoint(), server.ca_pem().to_owned());
        let mut events = pin!(pods.watch(&watch_params(), &now).await.unwrap());
        server.await_served(Resource::Pods, |served| served.watching == 1);
        server.stop().unwrap();
        assert_eq!(server.served(Resource::Pods).watching, 0);
        assert_eq!(next(&mut events).await, "end", "round {round}");
        let error = pods.list(&ListParams::default()).await.unwrap_err();
        assert!(
            !matches!(error, Error::Api(_)),
            "nobody is there to answer: {error}"
        );
        server
            .put(pod(&format!("b{round}"), &json!({}), "n1"))
            .unwrap();
        server.stop().unwrap();
        server.start().unwrap();
        server.start().unwrap();
        assert_eq!((server.endpoint(), server.ca_pem()), (endpoint, &*ca));
        assert_eq!(
            pods.list(&ListParams::default()).await.unwrap().items.len(),
            2 + round
        );
    }
    let mut events = pin!(pods.watch(&watch_params(), &version).await.unwrap());
    assert_eq!(next(&mut events).await, "added b0", "history is kept, too");
}

#[tokio::test]
async fn events_are_held_back() {
    let server = server();
    let pods = pods(&server).await;
    let version = server.version().to_string();
    let mut events = pin!(pods.watch(&watch_params(), &version).await.unwrap());
    server.slow_watches(Duration::from_millis(200));
    let began = Instant::now();
    server.put(pod("a", &json!({}), "n1")).unwrap();
    assert_eq!(next(&mut events).await, "added a");
    assert!(began.elapsed() >= Duration::from_millis(200));
    server.slow_watches(Duration::from_hours(1));
    server.put(pod("b", &json!({}), "n1")).unwrap();
    server.send_bookmarks();
    let version = server.version() - 1;
    let marked = next(&mut events).await;
    assert_eq!(
        marked,
        format!("bookmark {version} (0 annotations)"),
        "no further than was told"
    );
    server.slow_watches(Duration::ZERO);
    assert_eq!(next(&mut events).await, "added b");
}

#[tokio::test]
async fn nothing_is_left_of_a_dropped_server() {
    let server = server();
    let pods = pods(&server).await;
    let version = server.version().to_string();
    let mut events = pin!(pods.watch(&watch_params(), &version).await.unwrap());
    let address = server.endpoint().replace("https://", "");
    drop::<ApiServer>(server);
    assert_eq!(next(&mut events).await, "end");
    let refused = std::net::TcpStream::connect(address).unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
}
