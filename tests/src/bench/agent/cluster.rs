//! A large made-up cluster as the API has it: objects of the size and with the fields that real ones have.

use std::net::{IpAddr, Ipv4Addr};

use serde_json::{Value, json};

use crate::objects;

/// Pods of one namespace.
const PODS_PER_NAMESPACE: usize = 100;
/// Pods of one application: copies, which differ in name, address and uid alone.
const PODS_PER_APP: usize = 5;
/// Nodes that they run on.
const PODS_PER_NODE: usize = 50;

/// What is left of a cluster when names are left out.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cluster {
    pub(super) pods: usize,
    pub(super) policies: usize,
}

impl Cluster {
    fn namespaces(self) -> usize {
        self.pods.div_ceil(PODS_PER_NAMESPACE).max(1)
    }

    /// All objects, namespaces first.
    pub(super) fn objects(self) -> impl Iterator<Item = Value> {
        let namespaces = (0..self.namespaces()).map(|index| {
            let team = format!("team-{}", index % 20);
            objects::namespace(&format!("ns-{index}"), &[("team", &team)])
        });
        let policies = (0..self.policies).map(move |index| self.policy(index));
        namespaces.chain(policies).chain((0..self.pods).map(pod))
    }

    /// Lets two applications, one of its namespace and one of a team's, come to a third.
    fn policy(self, index: usize) -> Value {
        let namespace = format!("ns-{}", index % self.namespaces());
        let app = index / self.namespaces() % (PODS_PER_NAMESPACE / PODS_PER_APP);
        let spec = json!({
            "podSelector": {"matchLabels": {"app": format!("app-{app}")}},
            "policyTypes": ["Ingress"],
            "ingress": [{
                "from": [
                    {"podSelector": {"matchLabels": {"app": format!("app-{}", app + 1)}}},
                    {
                        "namespaceSelector": {"matchLabels": {"team": format!("team-{}", index % 20)}},
                        "podSelector": {"matchLabels": {"tier": format!("tier-{}", index % 3)}},
                    },
                ],
                "ports": [{"port": 8000 + index % 50}],
            }],
        });
        objects::network_policy(&namespace, &format!("policy-{index}"), &spec)
    }
}

/// Labels of pod number `index`.
pub(super) fn labels(index: usize) -> [(&'static str, String); 5] {
    let app = index % PODS_PER_NAMESPACE / PODS_PER_APP;
    [
        ("app", format!("app-{app}")),
        ("tier", format!("tier-{}", app % 3)),
        ("app.kubernetes.io/managed-by", "Helm".to_owned()),
        (
            "app.kubernetes.io/version",
            format!("1.{}.{app}", index % 7 % 2),
        ),
        (
            "pod-template-hash",
            format!("{:010x}", index / PODS_PER_APP),
        ),
    ]
}

/// Pod number `index`, on some other node.
fn pod(index: usize) -> Value {
    let namespace = format!("ns-{}", index / PODS_PER_NAMESPACE);
    let [(_, app), ..] = labels(index);
    let hash = index / PODS_PER_APP;
    let name = format!("{app}-{hash:010x}-{:05x}", index % 0x10_0000);
    let owned = labels(index);
    let labels: Vec<(&str, &str)> = owned
        .iter()
        .map(|(key, value)| (*key, value.as_str()))
        .collect();
    // Beside the node's own pods, which are in 10.244.0.0/24.
    let address = IpAddr::V4(Ipv4Addr::from(0x0a40_0000 + index as u32));
    let ports = [("http", "TCP", 8000 + (index % 50) as u16)];
    let mut pod = objects::pod(&namespace, &name, &labels, &ports, &[address]);
    pod["metadata"]["generateName"] = json!(format!("{app}-{hash:010x}-"));
    pod["metadata"]["ownerReferences"] = json!([{
        "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": format!("{app}-{hash:010x}"),
        "uid": format!("00000000-0000-4000-9000-{hash:012x}"), "controller": true, "blockOwnerDeletion": true,
    }]);
    pod["spec"]["nodeName"] = json!(format!("node-{}", index / PODS_PER_NODE));
    fill(&mut pod, address);
    pod
}

/// Adds what real pods have and policy does not ask for; about 2,500 bytes of JSON.
fn fill(pod: &mut Value, address: IpAddr) {
    let container = &mut pod["spec"]["containers"][0];
    container["image"] = json!("registry.example/team/application:1.27.4");
    container["imagePullPolicy"] = json!("IfNotPresent");
    container["resources"] = json!({
        "limits": {"cpu": "500m", "memory": "256Mi"}, "requests": {"cpu": "100m", "memory": "128Mi"},
    });
    container["env"] = json!([
        {"name": "POD_NAME", "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.name"}}},
        {"name": "DATABASE_URL", "value": "postgres://database.example:5432/application"},
    ]);
    container["volumeMounts"] = json!([{
        "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount", "name": "kube-api-access", "readOnly": true,
    }]);
    container["terminationMessagePath"] = json!("/dev/termination-log");
    pod["spec"]["restartPolicy"] = json!("Always");
    pod["spec"]["serviceAccountName"] = json!("default");
    pod["spec"]["tolerations"] = json!([
        {"effect": "NoExecute", "key": "node.kubernetes.io/not-ready", "operator": "Exists", "tolerationSeconds": 300},
        {"effect": "NoExecute", "key": "node.kubernetes.io/unreachable", "operator": "Exists", "tolerationSeconds": 300},
    ]);
    pod["spec"]["volumes"] = json!([{"name": "kube-api-access", "projected": {"defaultMode": 420, "sources": [
        {"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}},
        {"configMap": {"items": [{"key": "ca.crt", "path": "ca.crt"}], "name": "kube-root-ca.crt"}},
    ]}}]);
    let conditions = [
        "PodReadyToStartContainers",
        "Initialized",
        "Ready",
        "ContainersReady",
        "PodScheduled",
    ];
    let conditions = conditions.map(|condition| {
        json!({"type": condition, "status": "True", "lastProbeTime": null, "lastTransitionTime": "2026-01-01T00:00:00Z"})
    });
    pod["status"]["conditions"] = json!(conditions);
    pod["status"]["qosClass"] = json!("Burstable");
    pod["status"]["hostIP"] = json!("192.0.2.1");
    pod["status"]["startTime"] = json!("2026-01-01T00:00:00Z");
    pod["status"]["containerStatuses"] = json!([{
        "name": "main", "ready": true, "started": true, "restartCount": 0,
        "image": "registry.example/team/application:1.27.4",
        "containerID": format!("containerd://{address}"),
        "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}},
    }]);
}
