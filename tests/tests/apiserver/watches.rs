//! Watches: where they begin, what they tell, how they end.

use std::pin::pin;

use kube::api::ListParams;
use serde_json::{Value, json};

use portcullis_tests::apiserver::{ApiServer, ApiServerConfig, Gone, Resource};

use super::{next, pod, pods, refusal, server, watch_params};

fn put(server: &ApiServer, name: &str, app: &str) {
    server.put(pod(name, &json!({"app": app}), "n1")).unwrap();
}

fn labels(app: &str) -> Value {
    json!({"metadata": {"labels": {"app": app}}})
}

#[tokio::test]
async fn a_watch_goes_on_from_a_version() {
    let server = server();
    put(&server, "a", "web");
    let pods = pods(&server).await;
    let list = pods.list(&ListParams::default()).await.unwrap();
    let listed = list.metadata.resource_version.unwrap();
    put(&server, "b", "web");
    server
        .patch(Resource::Pods, "default", "a", &labels("db"))
        .unwrap();
    let first = pods.watch(&watch_params(), &listed).await.unwrap();
    {
        let mut first = pin!(first);
        assert_eq!(next(&mut first).await, "added b");
        assert_eq!(next(&mut first).await, "modified a");
        server.delete(Resource::Pods, "default", "a").unwrap();
        assert_eq!(next(&mut first).await, "deleted a");
        server.drop_watches();
        assert_eq!(next(&mut first).await, "end");
    }
    // From a version in between, the rest comes again.
    let b = server.get(Resource::Pods, "default", "b").unwrap();
    let b = b["metadata"]["resourceVersion"].as_str().unwrap();
    let mut second = pin!(pods.watch(&watch_params(), b).await.unwrap());
    assert_eq!(next(&mut second).await, "modified a");
    assert_eq!(next(&mut second).await, "deleted a");
    server.delete(Resource::Pods, "default", "b").unwrap();
    assert_eq!(next(&mut second).await, "deleted b");
    assert_eq!(server.served(Resource::Pods).watches, 2);
    server.await_served(Resource::Pods, |served| served.watching == 1);
}

#[tokio::test]
async fn selectors_of_watches() {
    let server = server();
    put(&server, "a", "web");
    put(&server, "b", "db");
    let pods = pods(&server).await;
    let version = server.version().to_string();
    let params = watch_params().labels("app=web");
    let mut events = pin!(pods.watch(&params, &version).await.unwrap());
    server
        .patch(Resource::Pods, "default", "b", &labels("web"))
        .unwrap();
    server
        .patch(Resource::Pods, "default", "a", &labels("db"))
        .unwrap();
    server
        .patch(Resource::Pods, "default", "a", &labels("cache"))
        .unwrap();
    server.delete(Resource::Pods, "default", "a").unwrap();
    server.delete(Resource::Pods, "default", "b").unwrap();
    assert_eq!(next(&mut events).await, "added b", "it came into view");
    assert_eq!(next(&mut events).await, "deleted a", "it went out of view");
    assert_eq!(next(&mut events).await, "deleted b");
}

#[tokio::test]
async fn what_is_there_comes_first_where_asked_for() {
    let server = server();
    put(&server, "a", "web");
    let pods = pods(&server).await;
    let mut events = pin!(pods.watch(&watch_params(), "0").await.unwrap());
    assert_eq!(next(&mut events).await, "added a");
    let version = server.version();
    let params = watch_params().initial_events();
    let mut events = pin!(pods.watch(&params, "0").await.unwrap());
    assert_eq!(next(&mut events).await, "added a");
    assert_eq!(
        next(&mut events).await,
        format!("bookmark {version} (1 annotations)")
    );
    put(&server, "b", "web");
    assert_eq!(next(&mut events).await, "added b");
}

#[tokio::test]
async fn a_bookmark_outlives_a_compaction() {
    let server = server();
    put(&server, "a", "web");
    let pods = pods(&server).await;
    let old = server.version().to_string();
    let marks = {
        let mut events = pin!(pods.watch(&watch_params(), &old).await.unwrap());
        // Something else happens, which this watch is not told of.
        server
            .put(json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"}}))
            .unwrap();
        server.send_bookmarks();
        let marked = next(&mut events).await;
        let version = server.version();
        assert_eq!(marked, format!("bookmark {version} (0 annotations)"));
        // A watch that runs and has missed nothing goes on.
        server.compact();
        put(&server, "b", "web");
        assert_eq!(next(&mut events).await, "added b");
        version.to_string()
    };
    let mut events = pin!(pods.watch(&watch_params(), &old).await.unwrap());
    assert_eq!(next(&mut events).await, "error 410");
    assert_eq!(next(&mut events).await, "end");
    server.answer_gone(Gone::Status);
    let Err(error) = pods.watch(&watch_params(), &old).await else {
        panic!("a version that is forgotten");
    };
    assert_eq!(refusal(error), (410, "Expired".to_owned()));
    let mut events = pin!(pods.watch(&watch_params(), &marks).await.unwrap());
    assert_eq!(next(&mut events).await, "added b");
}

#[tokio::test]
async fn history_has_an_end() {
    let server = ApiServer::new(ApiServerConfig {
        history: 3,
        ..ApiServerConfig::default()
    })
    .unwrap();
    let pods = pods(&server).await;
    let versions: Vec<_> = ["a", "b", "c", "d", "e"]
        .into_iter()
        .map(|name| {
            put(&server, name, "web");
            server.version().to_string()
        })
        .collect();
    let mut events = pin!(pods.watch(&watch_params(), &versions[1]).await.unwrap());
    assert_eq!(next(&mut events).await, "added c");
    let mut events = pin!(pods.watch(&watch_params(), &versions[0]).await.unwrap());
    assert_eq!(next(&mut events).await, "error 410");
}

#[tokio::test]
async fn a_watch_ends_when_its_time_is_over() {
    let server = server();
    let pods = pods(&server).await;
    let version = server.version().to_string();
    let params = watch_params().timeout(1);
    let mut events = pin!(pods.watch(&params, &version).await.unwrap());
    assert_eq!(
        next(&mut events).await,
        format!("bookmark {version} (0 annotations)")
    );
    assert_eq!(next(&mut events).await, "end");
}

#[tokio::test]
async fn thousands_of_pods_arrive_at_once() {
    let server = server();
    for number in 0..10_000 {
        put(&server, &format!("old-{number:05}"), "web");
    }
    let pods = pods(&server).await;
    let list = pods.list(&ListParams::default()).await.unwrap();
    assert_eq!(list.items.len(), 10_000);
    let version = list.metadata.resource_version.unwrap();
    let mut first = pin!(pods.watch(&watch_params(), &version).await.unwrap());
    let mut second = pin!(pods.watch(&watch_params(), &version).await.unwrap());
    for number in 0..2_000 {
        put(&server, &format!("new-{number:04}"), "web");
    }
    for number in 0..2_000 {
        let expected = format!("added new-{number:04}");
        assert_eq!(next(&mut first).await, expected);
        assert_eq!(next(&mut second).await, expected);
    }
}
