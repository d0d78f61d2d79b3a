use std::sync::Arc;

use policy_core::model::{LabelSelector, Requirement, Rule};
use serde_json::json;

use super::super::args::ListFormat;
use super::super::output::Listing;
use super::*;

fn pod(namespace: &str, name: &str, app: &str, node: &str) -> PodObject {
    PodObject::Pod {
        pod: Pod {
            name: ObjectName::new(namespace, name),
            labels: Arc::new([("app".into(), app.into())].into()),
            addresses: vec![[10, 0, 0, 7].into()],
            ports: Arc::default(),
            terminated: false,
            created: 0,
            uid: "".into(),
        },
        node: Some(node.into()),
        dated: true,
        host_addresses: Vec::new(),
    }
}

fn changed(mut object: PodObject, change: impl FnOnce(&mut Pod)) -> PodObject {
    if let PodObject::Pod { pod, .. } = &mut object {
        change(pod);
    }
    object
}

/// Selects `app` (all pods where empty), with so many rules for each direction that it isolates.
fn policy(
    namespace: &str,
    name: &str,
    app: &str,
    ingress: Option<usize>,
    egress: Option<usize>,
) -> NetworkPolicy {
    let rules = |count: usize| {
        let rule = Rule {
            peers: Vec::new(),
            ports: Vec::new(),
        };
        vec![rule; count]
    };
    let mut subjects = LabelSelector::default();
    if !app.is_empty() {
        let requirement = Requirement::In("app".into(), [app.into()].into());
        subjects.requirements.push(requirement);
    }
    NetworkPolicy {
        name: ObjectName::new(namespace, name),
        subjects,
        ingress: ingress.map(rules),
        egress: egress.map(rules),
    }
}

/// Out of order, with pods that do not count.
fn workloads() -> Workloads {
    Workloads::of(vec![
        pod("shop", "web-1", "web", "n2"),
        pod("shop", "db-0", "db", "n1"),
        pod(
            "kube-system",
            "kube-dns-v20-jhk10",
            "dns",
            "kubernetes-minion-group-tbmi",
        ),
        changed(pod("shop", "job-x", "web", "n1"), |pod| {
            pod.terminated = true
        }),
        pod("shop", "pending", "web", ""),
        changed(pod("shop", "starting", "web", "n1"), |pod| {
            pod.addresses.clear()
        }),
        PodObject::HostNetwork {
            name: ObjectName::new("kube-system", "kube-proxy"),
            host_addresses: Vec::new(),
        },
    ])
}

fn policies() -> Vec<NetworkPolicy> {
    vec![
        policy("shop", "web", "web", Some(2), Some(0)),
        policy("shop", "default-deny", "", Some(0), None),
        policy("dev", "default-deny", "", Some(0), None),
    ]
}

#[test]
fn the_table_is_that_of_calico() {
    let list = Listing::ClusterEndpoints(workloads().endpoints(None));
    assert_eq!(
        list.render(None, false),
        "HOSTNAME                       ORCHESTRATOR   WORKLOAD                         NAME\n\
         kubernetes-minion-group-tbmi   k8s            kube-system.kube-dns-v20-jhk10   eth0\n\
         n1                             k8s            shop.db-0                        eth0\n\
         n1                             k8s            shop.starting                    eth0\n\
         n2                             k8s            shop.web-1                       eth0\n"
    );
    assert_eq!(
        list.render(Some(ListFormat::Name), false),
        "kube-system.kube-dns-v20-jhk10\nshop.db-0\nshop.starting\nshop.web-1\n"
    );
}

#[test]
fn wide_says_what_isolates() {
    let wide = |policies: Option<Vec<_>>| {
        let list = Listing::ClusterEndpoints(workloads().endpoints(policies.as_deref()));
        let text = list.render(Some(ListFormat::Wide), false);
        text.lines()
            .skip(1)
            .map(|line| {
                line.split_whitespace()
                    .skip(2)
                    .collect::<Vec<_>>()
                    .join(" ")
            })
            .collect::<Vec<_>>()
    };
    assert_eq!(
        wide(Some(policies())),
        [
            "kube-system.kube-dns-v20-jhk10 eth0 10.0.0.7 - -",
            "shop.db-0 eth0 10.0.0.7 shop/default-deny -",
            "shop.starting eth0 - shop/default-deny,shop/web shop/web",
            "shop.web-1 eth0 10.0.0.7 shop/default-deny,shop/web shop/web",
        ]
    );
    assert_eq!(wide(None)[1], "shop.db-0 eth0 10.0.0.7 unknown unknown");
}

#[test]
fn policies_have_the_pods_of_the_whole_cluster() {
    let list = Listing::ClusterPolicies(workloads().policies(&policies()));
    assert_eq!(
        list.render(None, false),
        "NAMESPACE   NAME           TYPES            INGRESS-RULES   EGRESS-RULES   PODS\n\
         dev         default-deny   Ingress          0               -              0\n\
         shop        default-deny   Ingress          0               -              3\n\
         shop        web            Ingress,Egress   2               0              2\n"
    );
    let wide = list.render(Some(ListFormat::Wide), false);
    let selectors: Vec<_> = wide
        .lines()
        .map(|line| line.split_whitespace().last())
        .collect();
    assert_eq!(
        selectors,
        [
            Some("POD-SELECTOR"),
            Some("<all>"),
            Some("<all>"),
            Some("app=web")
        ]
    );
    assert_eq!(
        list.render(Some(ListFormat::Name), false),
        "dev/default-deny\nshop/default-deny\nshop/web\n"
    );
}

#[test]
fn json_and_yaml_have_the_same_fields() {
    let shape = |text: &str| -> serde_json::Value { serde_json::from_str(text).expect(text) };
    let endpoints = workloads().endpoints(Some(&policies()));
    let list = Listing::ClusterEndpoints(endpoints[1..2].to_vec());
    let expected = json!({
        "hostname": "n1", "orchestrator": "k8s", "workload": "shop.db-0", "name": "eth0",
        "namespace": "shop", "pod": "db-0", "addresses": ["10.0.0.7"],
        "ingress": {"policies": ["shop/default-deny"]}, "egress": null,
    });
    let json = Some(ListFormat::Json);
    assert_eq!(shape(&list.render(json, false)), json!([expected]));
    assert_eq!(shape(&list.render(json, true)), expected);
    assert_eq!(
        list.render(Some(ListFormat::Yaml), true),
        "hostname: n1\norchestrator: k8s\nworkload: shop.db-0\nname: eth0\nnamespace: shop\npod: db-0\n\
         addresses:\n- \"10.0.0.7\"\ningress:\n  policies:\n  - shop/default-deny\negress: null\n"
    );
    // What is not known is not there, rather than as if there were nothing.
    let unknown = Listing::ClusterEndpoints(workloads().endpoints(None)[1..2].to_vec());
    let unknown = shape(&unknown.render(json, true));
    assert!(
        unknown.get("ingress").is_none() && unknown.get("pod").is_some(),
        "{unknown}"
    );

    let policies = Listing::ClusterPolicies(workloads().policies(&policies()[..1]));
    assert_eq!(
        shape(&policies.render(json, true)),
        json!({
            "namespace": "shop", "name": "web", "policyTypes": ["Ingress", "Egress"],
            "ingressRules": 2, "egressRules": 0, "podSelector": "app=web",
            "subjects": ["shop/starting", "shop/web-1"],
        })
    );
}
