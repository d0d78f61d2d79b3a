//! Objects of the cluster, as tests write them into a datastore.

use std::net::IpAddr;

use serde_json::{Map, Value, json};

/// Labels as pairs of key and value.
pub type Labels<'a> = &'a [(&'a str, &'a str)];

/// A Namespace.
#[must_use]
pub fn namespace(name: &str, labels: Labels<'_>) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": map(labels)},
    })
}

/// A running Pod; ports are name, protocol and number.
#[must_use]
pub fn pod(
    namespace: &str,
    name: &str,
    labels: Labels<'_>,
    ports: &[(&str, &str, u16)],
    addresses: &[IpAddr],
) -> Value {
    let ports: Vec<_> = ports
        .iter()
        .map(|(name, protocol, number)| {
            json!({"name": name, "protocol": protocol, "containerPort": number})
        })
        .collect();
    let all: Vec<_> = addresses.iter().map(|ip| json!({"ip": ip})).collect();
    let mut pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"namespace": namespace, "name": name, "labels": map(labels)},
        "spec": {"containers": [{"name": "main", "image": "main", "ports": ports}]},
        "status": {"phase": "Running", "podIPs": all},
    });
    if let Some(first) = addresses.first() {
        pod["status"]["podIP"] = json!(first);
    }
    pod
}

/// A Service that is reached at these addresses; without cluster IPs it is headless.
#[must_use]
pub fn service(
    namespace: &str,
    name: &str,
    cluster_ips: &[IpAddr],
    external_ips: &[IpAddr],
) -> Value {
    let cluster_ips = match cluster_ips {
        [] => json!(["None"]),
        ips => json!(ips),
    };
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"namespace": namespace, "name": name},
        "spec": {
            "clusterIP": cluster_ips[0], "clusterIPs": cluster_ips, "externalIPs": external_ips,
        },
    })
}

/// A NetworkPolicy.
#[must_use]
pub fn network_policy(namespace: &str, name: &str, spec: &Value) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"namespace": namespace, "name": name}, "spec": spec,
    })
}

fn map(labels: Labels<'_>) -> Map<String, Value> {
    labels
        .iter()
        .map(|(key, value)| ((*key).to_owned(), json!(value)))
        .collect()
}
