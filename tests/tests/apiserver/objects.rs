//! Single objects: made, read, changed, deleted.

use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::ResourceExt as _;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};

use portcullis_tests::apiserver::Resource;

use super::{client, pod, refusal, server};

fn typed(value: Value) -> Pod {
    serde_json::from_value(value).unwrap()
}

#[tokio::test]
async fn a_pod_and_its_status() {
    let server = server();
    let pods: Api<Pod> = Api::default_namespaced(client(&server).await);
    let post = PostParams::default();
    let made = pods
        .create(&post, &typed(pod("a", &json!({"app": "web"}), "n1")))
        .await
        .unwrap();
    assert!(made.uid().is_some() && made.creation_timestamp().is_some());
    let phase = |pod: &Pod| pod.status.clone().unwrap().phase.unwrap();
    assert_eq!(
        phase(&made),
        "Pending",
        "who creates a pod does not say how it is"
    );
    let again = pods.create(&post, &made_anew(&made)).await.unwrap_err();
    assert_eq!(refusal(again), (409, "AlreadyExists".to_owned()));

    let mut wanted = made.clone();
    wanted.status = typed(pod("a", &json!({}), "n1")).status;
    wanted
        .labels_mut()
        .insert("app".to_owned(), "db".to_owned());
    let replaced = pods.replace_status("a", &post, &wanted).await.unwrap();
    assert_eq!(
        (phase(&replaced).as_str(), &replaced.labels()["app"][..]),
        ("Running", "web")
    );
    let stale = pods.replace("a", &post, &wanted).await.unwrap_err();
    assert_eq!(refusal(stale), (409, "Conflict".to_owned()));

    let merge = |patch: Value| Patch::Merge(patch);
    let params = PatchParams::default();
    let patch = merge(json!({
        "metadata": {"labels": {"app": null, "x": "y"}}, "status": {"phase": "Failed"},
    }));
    let patched = pods.patch("a", &params, &patch).await.unwrap();
    assert_eq!(
        phase(&patched),
        "Running",
        "the status is a resource of its own"
    );
    assert_eq!(
        patched.labels().iter().collect::<Vec<_>>(),
        [(&"x".to_owned(), &"y".to_owned())]
    );
    let patch = merge(json!({"status": {"phase": "Succeeded"}}));
    let patched = pods.patch_status("a", &params, &patch).await.unwrap();
    assert_eq!(phase(&patched), "Succeeded");
    let version = server.version();
    pods.patch_status("a", &params, &patch).await.unwrap();
    assert_eq!(
        server.version(),
        version,
        "what changes nothing is no change"
    );
    let strategic = Patch::Strategic(json!({"metadata": {"labels": {"x": "z"}}}));
    let error = pods.patch("a", &params, &strategic).await.unwrap_err();
    assert_eq!(refusal(error).0, 415);

    pods.delete("a", &DeleteParams::default()).await.unwrap();
    for error in [
        pods.get("a").await.unwrap_err(),
        pods.delete("a", &DeleteParams::default())
            .await
            .unwrap_err(),
        pods.replace("a", &post, &made_anew(&made))
            .await
            .unwrap_err(),
    ] {
        assert_eq!(refusal(error), (404, "NotFound".to_owned()));
    }
}

fn made_anew(pod: &Pod) -> Pod {
    let mut pod = pod.clone();
    pod.metadata.resource_version = None;
    pod
}

#[tokio::test]
async fn namespaces_bear_their_names_and_take_their_objects_along() {
    let server = server();
    let client = client(&server).await;
    let post = PostParams::default();
    let policies: Api<NetworkPolicy> = Api::namespaced(client.clone(), "shop");
    let policy: NetworkPolicy = serde_json::from_value(json!({
        "metadata": {"name": "deny"}, "spec": {"podSelector": {}},
    }))
    .unwrap();
    let error = policies.create(&post, &policy).await.unwrap_err();
    assert_eq!(refusal(error).0, 404, "there is no such namespace yet");

    let namespaces: Api<Namespace> = Api::all(client.clone());
    let mut shop = Namespace::default();
    shop.metadata.name = Some("shop".to_owned());
    let shop = namespaces.create(&post, &shop).await.unwrap();
    assert_eq!(shop.labels()["kubernetes.io/metadata.name"], "shop");
    let created = policies.create(&post, &policy).await.unwrap();
    assert_eq!(created.namespace().unwrap(), "shop");
    server.put(&created).unwrap();
    let kept = policies.get("deny").await.unwrap();
    assert_eq!(
        (kept.uid(), kept.creation_timestamp()),
        (created.uid(), created.creation_timestamp())
    );

    namespaces
        .delete("shop", &DeleteParams::default())
        .await
        .unwrap();
    assert_eq!(server.get(Resource::NetworkPolicies, "shop", "deny"), None);
    let names: Vec<_> = namespaces
        .list(&ListParams::default())
        .await
        .unwrap()
        .iter()
        .map(kube::ResourceExt::name_any)
        .collect();
    assert_eq!(
        names,
        ["default", "kube-node-lease", "kube-public", "kube-system"]
    );

    server
        .put(json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"}}))
        .unwrap();
    let nodes: Api<Node> = Api::all(client);
    assert_eq!(nodes.get("n1").await.unwrap().name_any(), "n1");
}

#[tokio::test]
async fn what_makes_no_sense_is_refused() {
    let server = server();
    let pods: Api<Pod> = Api::default_namespaced(client(&server).await);
    let post = PostParams::default();
    let nameless = typed(pod("", &json!({}), "n1"));
    let error = pods.create(&post, &nameless).await.unwrap_err();
    assert_eq!(refusal(error), (422, "Invalid".to_owned()));
    let mut elsewhere = typed(pod("a", &json!({}), "n1"));
    elsewhere.metadata.namespace = Some("kube-system".to_owned());
    let error = pods.create(&post, &elsewhere).await.unwrap_err();
    assert_eq!(refusal(error).0, 400);
    assert!(
        server
            .put(json!({"apiVersion": "v1", "kind": "Secret"}))
            .is_err()
    );
    let broken = json!({
        "apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "x", "labels": "none"},
    });
    assert!(server.put(broken).is_err());
}

#[tokio::test]
async fn what_clients_ask_first() {
    let server = server();
    let client = client(&server).await;
    assert_eq!(client.apiserver_version().await.unwrap().major, "1");
    let groups = client.list_api_groups().await.unwrap().groups;
    assert_eq!(groups.len(), 1);
    let core = client.list_core_api_versions().await.unwrap().versions;
    assert_eq!(core, ["v1"]);
    let resources = client
        .list_core_api_resources("v1")
        .await
        .unwrap()
        .resources;
    assert_eq!(resources.len(), 4);
    let live = hyper::Request::get("/livez").body(Vec::new()).unwrap();
    assert_eq!(client.request_text(live).await.unwrap(), "ok");
}
