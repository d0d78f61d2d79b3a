//! What is read of Pods, Namespaces and Services; everything else is skipped while deserializing.
//!
//! Pods are many and big. Each is trimmed, converted and dropped before the next one is read.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use serde::Deserialize;

use crate::datastore::convert::MIRROR;

/// What identifies an object.
#[derive(Debug, Deserialize)]
pub(super) struct Head {
    pub metadata: HeadMetadata,
}

/// Of [`Head`].
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct HeadMetadata {
    #[serde(default)]
    pub namespace: String,
    #[serde(default)]
    pub name: String,
    #[serde(default)]
    pub resource_version: String,
}

/// A Namespace.
#[derive(Debug, Deserialize)]
pub(super) struct Namespace {
    metadata: Metadata,
}

/// A Pod.
#[derive(Debug, Deserialize)]
pub(super) struct Pod {
    metadata: Metadata,
    spec: Option<PodSpec>,
    status: Option<PodStatus>,
}

/// A Service.
#[derive(Debug, Deserialize)]
pub(super) struct Service {
    metadata: Metadata,
    spec: Option<ServiceSpec>,
    status: Option<ServiceStatus>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ServiceSpec {
    #[serde(rename = "type")]
    kind: Option<String>,
    #[serde(rename = "clusterIP")]
    cluster_ip: Option<String>,
    #[serde(rename = "clusterIPs")]
    cluster_ips: Option<Vec<String>>,
    #[serde(rename = "externalIPs")]
    external_ips: Option<Vec<String>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ServiceStatus {
    load_balancer: Option<LoadBalancer>,
}

#[derive(Debug, Deserialize)]
struct LoadBalancer {
    ingress: Option<Vec<LoadBalancerIngress>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct LoadBalancerIngress {
    ip: Option<String>,
    ip_mode: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    name: Option<String>,
    namespace: Option<String>,
    uid: Option<String>,
    labels: Option<BTreeMap<String, String>>,
    annotations: Option<Annotations>,
    creation_timestamp: Option<Time>,
}

/// Of annotations, which can be long, the one that is used.
#[derive(Debug, Deserialize)]
struct Annotations {
    #[serde(rename = "kubernetes.io/config.mirror")]
    mirror: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct PodSpec {
    node_name: Option<String>,
    host_network: Option<bool>,
    containers: Option<Vec<Container>>,
    init_containers: Option<Vec<Container>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Container {
    restart_policy: Option<String>,
    ports: Option<Vec<Port>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Port {
    name: Option<String>,
    #[serde(default)]
    container_port: i32,
    protocol: Option<String>,
}

#[derive(Debug, Deserialize)]
struct PodStatus {
    phase: Option<String>,
    #[serde(rename = "podIP")]
    pod_ip: Option<String>,
    #[serde(rename = "podIPs")]
    pod_ips: Option<Vec<Ip>>,
    #[serde(rename = "hostIP")]
    host_ip: Option<String>,
    #[serde(rename = "hostIPs")]
    host_ips: Option<Vec<Ip>>,
}

/// Of `podIPs` and `hostIPs`.
#[derive(Debug, Deserialize)]
struct Ip {
    #[serde(default)]
    ip: String,
}

impl From<Namespace> for core::Namespace {
    fn from(namespace: Namespace) -> Self {
        Self {
            metadata: namespace.metadata.into(),
            ..Self::default()
        }
    }
}

impl From<Pod> for core::Pod {
    fn from(pod: Pod) -> Self {
        Self {
            metadata: pod.metadata.into(),
            spec: pod.spec.map(Into::into),
            status: pod.status.map(Into::into),
        }
    }
}

impl From<Service> for core::Service {
    fn from(service: Service) -> Self {
        Self {
            metadata: service.metadata.into(),
            spec: service.spec.map(|spec| core::ServiceSpec {
                type_: spec.kind,
                cluster_ip: spec.cluster_ip,
                cluster_ips: spec.cluster_ips,
                external_ips: spec.external_ips,
                ..core::ServiceSpec::default()
            }),
            status: service.status.map(|status| core::ServiceStatus {
                load_balancer: status.load_balancer.map(Into::into),
                ..core::ServiceStatus::default()
            }),
        }
    }
}

impl From<LoadBalancer> for core::LoadBalancerStatus {
    fn from(balancer: LoadBalancer) -> Self {
        let ingress = |entry: LoadBalancerIngress| core::LoadBalancerIngress {
            ip: entry.ip,
            ip_mode: entry.ip_mode,
            ..core::LoadBalancerIngress::default()
        };
        Self {
            ingress: balancer
                .ingress
                .map(|list| list.into_iter().map(ingress).collect()),
        }
    }
}

impl From<Metadata> for ObjectMeta {
    fn from(metadata: Metadata) -> Self {
        Self {
            name: metadata.name,
            namespace: metadata.namespace,
            uid: metadata.uid,
            labels: metadata.labels,
            annotations: metadata
                .annotations
                .and_then(|annotations| annotations.mirror)
                .map(|uid| BTreeMap::from([(MIRROR.to_owned(), uid)])),
            creation_timestamp: metadata.creation_timestamp,
            ..Self::default()
        }
    }
}

impl From<PodSpec> for core::PodSpec {
    fn from(spec: PodSpec) -> Self {
        let containers = |list: Vec<Container>| list.into_iter().map(Into::into).collect();
        Self {
            node_name: spec.node_name,
            host_network: spec.host_network,
            containers: spec.containers.map(containers).unwrap_or_default(),
            init_containers: spec.init_containers.map(containers),
            ..Self::default()
        }
    }
}

impl From<Container> for core::Container {
    fn from(container: Container) -> Self {
        Self {
            restart_policy: container.restart_policy,
            ports: container
                .ports
                .map(|ports| ports.into_iter().map(Into::into).collect()),
            ..Self::default()
        }
    }
}

impl From<Port> for core::ContainerPort {
    fn from(port: Port) -> Self {
        Self {
            name: port.name,
            container_port: port.container_port,
            protocol: port.protocol,
            ..Self::default()
        }
    }
}

impl From<PodStatus> for core::PodStatus {
    fn from(status: PodStatus) -> Self {
        Self {
            phase: status.phase,
            pod_ip: status.pod_ip,
            pod_ips: status.pod_ips.map(|ips| {
                ips.into_iter()
                    .map(|Ip { ip }| core::PodIP { ip })
                    .collect()
            }),
            host_ip: status.host_ip,
            host_ips: status.host_ips.map(|ips| {
                ips.into_iter()
                    .map(|Ip { ip }| core::HostIP { ip })
                    .collect()
            }),
            ..Self::default()
        }
    }
}
