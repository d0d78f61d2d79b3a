use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Bytes;
use kube::client::Body;
use serde_json::{Value, json};

use super::*;

/// What is answered to a path and its parameters, sorted, with a space before each.
type Answers = HashMap<&'static str, (u16, Value)>;

/// An API that knows these answers. It proves what is asked for and what is made of the answers, and nothing
/// about a real API or about connections.
fn api(answers: Answers) -> (Api, Arc<Mutex<Vec<String>>>) {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let log = asked.clone();
    let service = tower::service_fn(move |request: Request<Body>| {
        let mut parameters: Vec<_> = request
            .uri()
            .query()
            .unwrap_or_default()
            .split('&')
            .collect();
        parameters.sort_unstable();
        parameters[0] = request.uri().path();
        let uri = parameters.join(" ");
        let answer = answers.get(uri.as_str()).cloned();
        log.lock().expect("log").push(uri);
        async move {
            let (code, body) = answer.ok_or(std::io::ErrorKind::ConnectionRefused)?;
            let response = Response::builder().status(code);
            let body = Full::new(Bytes::from(body.to_string()));
            response.body(body).map_err(std::io::Error::other)
        }
    });
    let client = Client::new(service, "default");
    (Api::of(client, "Kubernetes API x (test)".to_owned()), asked)
}

fn list(kind: &str, items: &[Value], next: &str) -> (u16, Value) {
    let metadata = json!({"resourceVersion": "7", "continue": next});
    (
        200,
        json!({"kind": kind, "metadata": metadata, "items": items}),
    )
}

fn pods(items: &[Value], next: &str) -> (u16, Value) {
    list("PodList", items, next)
}

fn policies(items: &[Value]) -> (u16, Value) {
    list("NetworkPolicyList", items, "")
}

fn pod(namespace: &str, name: &str, spec: &Value, status: &Value) -> Value {
    json!({
        "metadata": {"namespace": namespace, "name": name, "labels": {"app": "web"}, "managedFields": [{}]},
        "spec": spec, "status": status,
    })
}

fn web(namespace: &str, name: &str) -> Value {
    let status = json!({"phase": "Running", "podIPs": [{"ip": "10.0.0.7"}]});
    pod(namespace, name, &json!({"nodeName": "n1"}), &status)
}

fn deny(namespace: &str) -> Value {
    json!({"metadata": {"namespace": namespace, "name": "deny"}, "spec": {"podSelector": {}}})
}

fn forbidden(what: &str) -> (u16, Value) {
    let message = format!("{what} is forbidden: User \"u\" cannot list resource");
    (
        403,
        json!({"kind": "Status", "status": "Failure", "code": 403, "reason": "Forbidden", "message": message}),
    )
}

const PODS: &str = "/api/v1/pods limit=1000";
const POLICIES: &str = "/apis/networking.k8s.io/v1/networkpolicies limit=1000";

#[tokio::test]
async fn pages_are_put_together_and_policies_only_read_when_shown() {
    let (api, asked) = api(Answers::from([
        (PODS, pods(&[web("b", "two")], "more")),
        (
            "/api/v1/pods continue=more limit=1000",
            pods(&[web("a", "one")], ""),
        ),
        (POLICIES, policies(&[deny("b")])),
    ]));
    let get = async |format| {
        let found = api
            .get(Resource::WorkloadEndpoints, Selection::default(), format)
            .await;
        let found = found.expect("an answer");
        assert_eq!(found.warnings, [""; 0]);
        found.listing.render(format, false)
    };
    assert_eq!(get(Some(ListFormat::Name)).await, "a.one\nb.two\n");
    assert_eq!(asked.lock().expect("log").len(), 2);
    let wide = get(Some(ListFormat::Wide)).await;
    assert!(wide.contains("10.0.0.7    b/deny    -"), "{wide}");
}

#[tokio::test]
async fn the_api_selects_by_namespace_name_and_node() {
    let path = "/api/v1/namespaces/shop/pods fieldSelector=metadata.name%3Dproxy%2Cspec.nodeName%3Dn1 limit=1000";
    let proxy = pod(
        "shop",
        "proxy",
        &json!({"nodeName": "n1", "hostNetwork": true}),
        &json!({}),
    );
    let (api, _) = api(Answers::from([(path, pods(&[proxy], ""))]));
    let selection = Selection {
        namespace: Some("shop".to_owned()),
        name: Some("proxy".to_owned()),
        node: Some("n1".to_owned()),
    };
    let found = api
        .get(Resource::WorkloadEndpoints, selection, None)
        .await
        .expect("an answer");
    assert!(found.listing.is_empty());
    assert!(found.why_none.expect("a reason").contains("host's network"));
}

#[tokio::test]
async fn policies_of_a_namespace_count_its_pods() {
    let (api, _) = api(Answers::from([
        (
            "/api/v1/namespaces/shop/pods limit=1000",
            pods(&[web("shop", "web")], ""),
        ),
        (
            "/apis/networking.k8s.io/v1/namespaces/shop/networkpolicies fieldSelector=metadata.name%3Ddeny limit=1000",
            policies(&[deny("shop")]),
        ),
    ]));
    let selection = Selection {
        namespace: Some("shop".to_owned()),
        name: Some("deny".to_owned()),
        node: None,
    };
    let found = api
        .get(Resource::NetworkPolicies, selection, None)
        .await
        .expect("an answer");
    let Listing::ClusterPolicies(policies) = found.listing else {
        panic!("policies")
    };
    assert_eq!(policies[0].subjects, ["shop/web"]);
}

#[tokio::test]
async fn what_cannot_be_taken_or_known_is_said() {
    let bad = pod(
        "shop",
        "bad",
        &json!({"nodeName": "n1"}),
        &json!({"podIPs": [{"ip": "10.0.0"}]}),
    );
    let worse = pod("shop", "worse", &json!({"hostNetwork": "yes"}), &json!({}));
    let (api, _) = api(Answers::from([
        (PODS, pods(&[web("shop", "web"), bad, worse], "")),
        (POLICIES, forbidden("networkpolicies")),
    ]));
    let json = Some(ListFormat::Json);
    let found = api
        .get(Resource::WorkloadEndpoints, Selection::default(), json)
        .await;
    let found = found.expect("pods can be listed");
    let not_valid = [
        "not valid: Pod shop/bad: status.podIPs[0].ip: \"10.0.0\" is not an IP address",
        "left out as not valid: Pod shop/worse: spec.hostNetwork: invalid type",
    ];
    for (warning, expected) in found.warnings.iter().zip(not_valid) {
        assert!(warning.starts_with(expected), "{warning}");
    }
    let Listing::ClusterEndpoints(endpoints) = &found.listing else {
        panic!("endpoints")
    };
    let workloads = endpoints.iter().map(|e| e.endpoint.workload.as_str());
    assert_eq!(workloads.collect::<Vec<_>>(), ["shop.bad", "shop.web"]);
    assert!(
        found.warnings[2].starts_with(
            "which policies isolate these endpoints is not known: not allowed to list networkpolicies (403"
        ),
        "{:?}",
        found.warnings
    );
    let failed = api
        .get(Resource::NetworkPolicies, Selection::default(), None)
        .await;
    let failed = failed.expect_err("policies cannot be listed").to_string();
    assert!(
        failed.starts_with(
            "Kubernetes API x (test): not allowed to list networkpolicies (403 Forbidden"
        ),
        "{failed}"
    );
}

#[tokio::test]
async fn a_policy_that_is_not_valid_isolates_as_on_the_nodes() {
    let mut future = deny("shop");
    future["spec"]["ingress"] = json!([{"onlyAtNight": true}]);
    let (api, _) = api(Answers::from([
        (PODS, pods(&[web("shop", "web")], "")),
        (POLICIES, policies(&[future])),
    ]));
    let wide = Some(ListFormat::Wide);
    let found = api
        .get(Resource::WorkloadEndpoints, Selection::default(), wide)
        .await
        .expect("an answer");
    let Listing::ClusterEndpoints(endpoints) = &found.listing else {
        panic!("endpoints")
    };
    let isolation = endpoints[0].isolation.as_ref().expect("known");
    let ingress = isolation.ingress.as_ref().expect("isolated");
    assert_eq!(ingress.policies, ["shop/deny"]);
    assert!(
        found.warnings[0]
            .starts_with("not valid: NetworkPolicy shop/deny: spec.ingress[0].onlyAtNight")
            && found.warnings[0].ends_with("allows nothing"),
        "{:?}",
        found.warnings
    );
}

#[tokio::test]
async fn without_an_answer_there_is_no_list() {
    let (api, _) = api(Answers::new());
    for resource in [Resource::WorkloadEndpoints, Resource::NetworkPolicies] {
        let failed = api
            .get(resource, Selection::default(), None)
            .await
            .expect_err("no answer");
        assert!(
            failed.to_string().contains("connection refused"),
            "{failed}"
        );
    }
}
