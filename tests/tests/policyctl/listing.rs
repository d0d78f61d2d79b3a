//! What is listed, and what is left out.

use portcullis_tests::objects;
use serde_json::{Value, json};

use super::{Machine, pod};

/// Three nodes, two namespaces, and pods of all kinds.
fn cluster() -> Machine {
    let machine = Machine::new();
    let put = |object: Value| machine.server.put(object).unwrap();
    put(objects::namespace("shop", &[]));
    let tbmi = "kubernetes-minion-group-tbmi";
    put(pod(
        "kube-system",
        "kube-dns-v20-jhk10",
        tbmi,
        &[],
        [10, 244, 1, 2],
    ));
    put(pod(
        "shop",
        "web-0",
        "node-b",
        &[("app", "web")],
        [10, 244, 2, 3],
    ));
    put(pod(
        "shop",
        "db-0",
        "node-a",
        &[("app", "db")],
        [10, 244, 0, 4],
    ));

    let mut host_network = pod("kube-system", "kube-proxy-x", "node-a", &[], [192, 0, 2, 1]);
    host_network["spec"]["hostNetwork"] = json!(true);
    put(host_network);
    let mut ended = pod(
        "shop",
        "job-1",
        "node-a",
        &[("app", "web")],
        [10, 244, 0, 5],
    );
    ended["status"]["phase"] = json!("Succeeded");
    put(ended);
    put(objects::pod("shop", "pending", &[("app", "web")], &[], &[]));

    put(objects::network_policy(
        "shop",
        "default-deny",
        &json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}),
    ));
    put(objects::network_policy(
        "shop",
        "web",
        &json!({"podSelector": {"matchLabels": {"app": "web"}}, "ingress": [{}]}),
    ));
    machine
}

#[test]
fn the_table_of_the_calico_document() {
    let machine = cluster();
    let table = machine.policyctl("get workloadendpoints").listed();
    assert_eq!(
        table,
        "HOSTNAME                       ORCHESTRATOR   WORKLOAD                         NAME\n\
         kubernetes-minion-group-tbmi   k8s            kube-system.kube-dns-v20-jhk10   eth0\n\
         node-a                         k8s            shop.db-0                        eth0\n\
         node-b                         k8s            shop.web-0                       eth0\n"
    );
    for same in ["get wep", "get weps -A", "get workloadendpoint"] {
        assert_eq!(machine.policyctl(same).listed(), table, "{same}");
    }
}

#[test]
fn namespace_node_and_name_choose() {
    let machine = cluster();
    let rows = [
        ("get wep -n shop -o name", "shop.db-0\nshop.web-0\n"),
        ("get wep --node node-a -o name", "shop.db-0\n"),
        ("get wep shop.web-0 -o name", "shop.web-0\n"),
        ("get wep -n shop web-0 -o name", "shop.web-0\n"),
        ("get netpol -o name", "shop/default-deny\nshop/web\n"),
        ("get netpol shop/web -o name", "shop/web\n"),
        ("get netpol -n shop web -o name", "shop/web\n"),
    ];
    for (arguments, names) in rows {
        assert_eq!(machine.policyctl(arguments).listed(), names, "{arguments}");
    }
}

#[test]
fn wide_json_and_yaml() {
    let machine = cluster();
    assert_eq!(
        machine.policyctl("get wep -n shop -o wide").listed(),
        "HOSTNAME   ORCHESTRATOR   WORKLOAD     NAME   ADDRESSES    INGRESS                      EGRESS\n\
         node-a     k8s            shop.db-0    eth0   10.244.0.4   shop/default-deny            shop/default-deny\n\
         node-b     k8s            shop.web-0   eth0   10.244.2.3   shop/default-deny,shop/web   shop/default-deny\n"
    );
    assert_eq!(
        machine.policyctl("get netpol -o wide").listed(),
        "NAMESPACE   NAME           TYPES            INGRESS-RULES   EGRESS-RULES   PODS   POD-SELECTOR\n\
         shop        default-deny   Ingress,Egress   0               0              2      <all>\n\
         shop        web            Ingress          1               -              1      app=web\n"
    );
    let json = |arguments| -> Value {
        serde_json::from_str(&machine.policyctl(arguments).listed()).unwrap()
    };
    let list = json("get wep -o json");
    assert_eq!(list.as_array().unwrap().len(), 3);
    assert_eq!(json("get wep shop.db-0 -o json"), list[1]);
    assert_eq!(list[0]["ingress"], Value::Null);
    assert_eq!(
        list[1]["egress"],
        json!({"policies": ["shop/default-deny"]})
    );
    let yaml = machine.policyctl("get netpol shop/web -o yaml").listed();
    assert!(yaml.contains("\nsubjects:\n- shop/web-0\n"), "{yaml}");
}

#[test]
fn the_kubeconfig_at_home_does_as_well() {
    let machine = cluster();
    machine.write(".kube/config", &machine.server.kubeconfig());
    let names = machine
        .policyctl_with(&[], "get wep -n shop -o name")
        .listed();
    assert_eq!(names, "shop.db-0\nshop.web-0\n");
}

#[test]
fn shells_are_taught() {
    let machine = Machine::new();
    for shell in ["bash", "zsh", "fish"] {
        let script = machine.policyctl(&format!("completion {shell}")).listed();
        for word in ["workloadendpoints", "networkpolicies", "kubeconfig"] {
            assert!(script.contains(word), "{shell}: {word}");
        }
    }
}
