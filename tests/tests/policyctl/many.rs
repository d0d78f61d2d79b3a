//! A big cluster. The times are printed, not judged: `cargo xtask bench` is for that.

use std::time::Instant;

use portcullis_tests::objects;
use serde_json::{Value, json};

use super::{Machine, pod};

const PODS: u32 = 10_000;
const NAMESPACES: u32 = 20;
const NODES: u32 = 100;
const POLICIES: u32 = 1_000;

fn namespace(index: u32) -> String {
    format!("team-{:02}", index % NAMESPACES)
}

/// As big as pods are in clusters, most of which nobody reads here.
fn big_pod(index: u32) -> Value {
    let [_, a, b, c] = index.to_be_bytes();
    let name = format!("web-7c5ddbdf54-{index:05}");
    let node = format!("node-{:03}", index % NODES);
    let app = format!("app-{}", index % 50);
    let labels = [("app", app.as_str())];
    let mut pod = pod(&namespace(index), &name, &node, &labels, [10, a, b, c]);
    let fields: Vec<_> = (0..40)
        .map(|field| json!({"f:spec": {format!("k:{{\"name\":\"field-{field}\"}}"): {".": {}, "f:value": {}}}}))
        .collect();
    pod["metadata"]["managedFields"] = json!([{"manager": "kubelet", "fieldsV1": fields}]);
    let variables: Vec<_> = (0..20)
        .map(|number| json!({"name": format!("VARIABLE_{number}"), "value": "something of some length"}))
        .collect();
    pod["spec"]["containers"][0]["env"] = json!(variables);
    pod
}

#[test]
fn ten_thousand_pods() {
    let machine = Machine::new();
    for index in 0..NAMESPACES {
        machine
            .server
            .put(objects::namespace(&namespace(index), &[]))
            .unwrap();
    }
    for index in 0..PODS {
        machine.server.put(big_pod(index)).unwrap();
    }
    for index in 0..POLICIES {
        let app = format!("app-{}", index % 50);
        let spec = json!({"podSelector": {"matchLabels": {"app": app}}, "ingress": [{}]});
        let name = format!("policy-{index:04}");
        let policy = objects::network_policy(&namespace(index), &name, &spec);
        machine.server.put(policy).unwrap();
    }
    let size = big_pod(PODS - 1).to_string().len();
    let listed = |arguments: &str| {
        let began = Instant::now();
        let text = machine.policyctl(arguments).listed();
        let took = began.elapsed().as_millis();
        println!(
            "policyctl {arguments}: {took} ms ({PODS} pods of {size} bytes, {POLICIES} policies)"
        );
        text
    };
    let table = listed("get workloadendpoints");
    assert_eq!(table.lines().count(), PODS as usize + 1);
    // All pages, each pod once, in order, and its policies with it.
    let json = listed("get workloadendpoints -o json");
    let list: Vec<Value> = serde_json::from_str(&json).unwrap();
    let names: Vec<_> = list
        .iter()
        .map(|found| found["workload"].as_str())
        .collect();
    assert_eq!(names.len(), PODS as usize);
    assert!(names.is_sorted_by(|a, b| a < b));
    for endpoint in &list {
        assert_eq!(
            endpoint["ingress"]["policies"].as_array().unwrap().len(),
            10
        );
        assert_eq!(endpoint["egress"], Value::Null);
    }
    let policies = listed("get networkpolicies");
    assert_eq!(policies.lines().count(), POLICIES as usize + 1);
    let of_node = listed("get workloadendpoints --node node-007 -o name");
    assert_eq!(of_node.lines().count(), (PODS / NODES) as usize);
}
