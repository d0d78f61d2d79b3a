//! Lists: pages, selectors, versions.

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use kube::api::{Api, ListParams, ObjectList};
use serde_json::json;

use portcullis_tests::apiserver::Resource;

use super::{client, pod, pods, refusal, server};

#[tokio::test]
async fn pages_show_one_moment() {
    let server = server();
    for number in 0..25 {
        server
            .put(pod(&format!("p{number:02}"), &json!({}), "n1"))
            .unwrap();
    }
    let pods = pods(&server).await;
    let mut params = ListParams::default().limit(10);
    let mut names = Vec::new();
    let mut versions = Vec::new();
    loop {
        let page = pods.list(&params).await.unwrap();
        assert!(page.items.len() <= 10);
        let left = 25 - names.len() - page.items.len();
        assert_eq!(page.metadata.remaining_item_count.unwrap_or(0), left as i64);
        names.extend(page.items.iter().map(kube::ResourceExt::name_any));
        versions.push(page.metadata.resource_version.clone().unwrap());
        // What happens in between is not in the later pages.
        let number = versions.len();
        server
            .put(pod(&format!("p2{number}x"), &json!({}), "n1"))
            .unwrap();
        server
            .delete(Resource::Pods, "default", &format!("p2{number}"))
            .unwrap();
        match page.metadata.continue_ {
            Some(token) if !token.is_empty() => params = params.continue_token(&token),
            _ => break,
        }
    }
    let expected: Vec<_> = (0..25).map(|number| format!("p{number:02}")).collect();
    assert_eq!(names, expected);
    versions.dedup();
    assert_eq!(versions.len(), 1, "all pages are of one version");
    assert_eq!(server.served(Resource::Pods).lists, 3);
}

#[tokio::test]
async fn an_unfinished_list_expires() {
    let server = server();
    for name in ["a", "b", "c"] {
        server.put(pod(name, &json!({}), "n1")).unwrap();
    }
    let pods = pods(&server).await;
    let params = ListParams::default().limit(2);
    let page = pods.list(&params).await.unwrap();
    let params = params.continue_token(&page.metadata.continue_.unwrap());
    assert_eq!(pods.list(&params).await.unwrap().items.len(), 1);
    server.compact();
    let error = pods.list(&params).await.unwrap_err();
    assert_eq!(refusal(error), (410, "Expired".to_owned()));
}

#[tokio::test]
async fn selectors_and_namespaces() {
    let server = server();
    server
        .put(pod("web", &json!({"app": "web", "tier": "front"}), "n1"))
        .unwrap();
    server.put(pod("db", &json!({"app": "db"}), "n2")).unwrap();
    server.put(pod("bare", &json!({}), "n1")).unwrap();
    let mut other = pod("web", &json!({"app": "web"}), "n2");
    other["metadata"]["namespace"] = json!("kube-system");
    server.put(other).unwrap();
    let pods = pods(&server).await;
    let rows: &[(&str, &str, &[&str])] = &[
        (
            "",
            "",
            &[
                "default/bare",
                "default/db",
                "default/web",
                "kube-system/web",
            ],
        ),
        ("app=web", "", &["default/web", "kube-system/web"]),
        ("app==web,tier", "", &["default/web"]),
        ("app!=web", "", &["default/bare", "default/db"]),
        (
            "app in (web, db),!tier",
            "",
            &["default/db", "kube-system/web"],
        ),
        (
            "app notin (db,x)",
            "",
            &["default/bare", "default/web", "kube-system/web"],
        ),
        ("", "spec.nodeName=n1", &["default/bare", "default/web"]),
        (
            "",
            "metadata.name=web,metadata.namespace!=default",
            &["kube-system/web"],
        ),
        ("app=web", "spec.nodeName=n2", &["kube-system/web"]),
    ];
    for (labels, fields, expected) in rows {
        let params = ListParams::default().labels(labels).fields(fields);
        let list = pods.list(&params).await.unwrap();
        let names: Vec<_> = list
            .iter()
            .map(|pod| format!("{}/{}", pod.namespace().unwrap(), pod.name_any()))
            .collect();
        assert_eq!(names, *expected, "labels {labels:?}, fields {fields:?}");
    }
    for (labels, fields) in [
        ("app in web", ""),
        ("", "spec.color=red"),
        ("", "metadata.name"),
    ] {
        let params = ListParams::default().labels(labels).fields(fields);
        let error = pods.list(&params).await.unwrap_err();
        assert_eq!(
            refusal(error).0,
            400,
            "labels {labels:?}, fields {fields:?}"
        );
    }
    let inside: Api<Pod> = Api::namespaced(client(&server).await, "kube-system");
    assert_eq!(
        inside
            .list(&ListParams::default())
            .await
            .unwrap()
            .items
            .len(),
        1
    );
}

#[tokio::test]
async fn versions_of_lists() {
    let server = server();
    for number in 0..5 {
        server
            .put(pod(&format!("p{number}"), &json!({}), "n1"))
            .unwrap();
    }
    let pods = pods(&server).await;
    // The client sends no limit with version 0.
    let path = "/api/v1/pods?resourceVersion=0&limit=2";
    let request = hyper::Request::get(path).body(Vec::new()).unwrap();
    let list: ObjectList<Pod> = client(&server).await.request(request).await.unwrap();
    assert_eq!(list.items.len(), 5, "a cache knows no pages");
    assert_eq!(
        list.metadata.resource_version.unwrap(),
        server.version().to_string()
    );
    let now = server.version();
    let at_least = ListParams::default().at(&now.to_string());
    let not_older = at_least
        .clone()
        .matching(kube::api::VersionMatch::NotOlderThan);
    assert_eq!(pods.list(&not_older).await.unwrap().items.len(), 5);
    let future = ListParams::default()
        .at(&(now + 1).to_string())
        .matching(kube::api::VersionMatch::NotOlderThan);
    let error = pods.list(&future).await.unwrap_err();
    assert_eq!(refusal(error), (504, "Timeout".to_owned()));
}
