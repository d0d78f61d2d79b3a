//! Pod: addresses, named ports, and whether it takes part at all.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use policy_core::model::{NamedPort, ObjectName, Pod};

use super::address::address;
use super::{FieldPath, Invalid, Mistake, Mistakes, labels, object_name, port_number, protocol};

/// What a Pod object says, beyond what the compiler wants to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PodObject {
    /// A pod of the pod network.
    Pod {
        /// The compiler's view. Its `created` is 0 where the object has no creationTimestamp.
        pod: Pod,
        /// The node it is bound to, where it says so.
        node: Option<Arc<str>>,
        /// Whether the object has a creationTimestamp.
        dated: bool,
        /// `status.hostIPs`: addresses of the node that runs it; empty while unknown.
        host_addresses: Vec<IpAddr>,
    },
    /// A host-network pod, which is no subject and no peer.
    HostNetwork {
        /// Its namespace and name.
        name: ObjectName,
        /// The addresses of its node, from `status.podIPs` and `status.hostIPs`; empty while unknown.
        host_addresses: Vec<IpAddr>,
    },
}

impl PodObject {
    /// The pod's namespace and name.
    #[must_use]
    pub fn name(&self) -> &ObjectName {
        match self {
            Self::Pod { pod, .. } => &pod.name,
            Self::HostNetwork { name, .. } => name,
        }
    }

    /// Addresses of the node that runs the pod, as far as the object tells; none twice.
    #[must_use]
    pub fn host_addresses(&self) -> &[IpAddr] {
        match self {
            Self::Pod { host_addresses, .. } | Self::HostNetwork { host_addresses, .. } => {
                host_addresses
            }
        }
    }
}

/// A Pod in the compiler's terms.
///
/// # Errors
///
/// Every mistake in what is used of it.
pub fn pod(object: &core::Pod) -> Result<PodObject, Vec<Invalid>> {
    match pod_in_part(object) {
        (Some(pod), mistakes) if mistakes.is_empty() => Ok(pod),
        (_, mistakes) => Err(mistakes),
    }
}

/// A Pod without the addresses and named ports that are wrong in it, and what is wrong. Without them the pod
/// still is a subject, and the fewer of them are known, the less rules allow. `None` when it has no name.
#[must_use]
pub fn pod_in_part(object: &core::Pod) -> (Option<PodObject>, Vec<Invalid>) {
    let mut mistakes = Mistakes::default();
    let pod = convert(object, &mut mistakes);
    (pod, mistakes.0)
}

fn convert(object: &core::Pod, mistakes: &mut Mistakes) -> Option<PodObject> {
    let name = object_name(&object.metadata, mistakes)?;
    let spec = object.spec.as_ref();
    let status = object.status.as_ref();
    let mut host_addresses = host_addresses(status);
    if spec.is_some_and(|spec| spec.host_network == Some(true)) {
        for address in pod_ips(status).filter_map(|(_, text)| address(text)) {
            if !host_addresses.contains(&address) {
                host_addresses.push(address);
            }
        }
        return Some(PodObject::HostNetwork {
            name,
            host_addresses,
        });
    }
    let addresses = addresses(status, mistakes);
    let ports = spec.map(|spec| ports(spec, mistakes)).unwrap_or_default();
    let phase = status.and_then(|status| status.phase.as_deref());
    let created = object
        .metadata
        .creation_timestamp
        .as_ref()
        .map(|time| time.0.as_second());
    Some(PodObject::Pod {
        pod: Pod {
            name,
            labels: labels(object.metadata.labels.as_ref()).into(),
            addresses,
            ports: ports.into(),
            terminated: matches!(phase, Some("Succeeded" | "Failed")),
            created: created.unwrap_or(0),
            uid: uid(&object.metadata).into(),
        },
        node: spec
            .and_then(|spec| spec.node_name.as_deref())
            .filter(|node| !node.is_empty())
            .map(Arc::from),
        dated: created.is_some(),
        host_addresses,
    })
}

/// The annotation that a static pod's object in the API bears.
pub const MIRROR: &str = "kubernetes.io/config.mirror";

/// The uid that the kubelet knows the pod by: a static pod's is not that of its object in the API.
fn uid(metadata: &ObjectMeta) -> &str {
    let mirrored = metadata
        .annotations
        .as_ref()
        .and_then(|annotations| annotations.get(MIRROR));
    mirrored
        .or(metadata.uid.as_ref())
        .map_or("", String::as_str)
}

/// `podIPs`, or `podIP` where a hand-written object has only that: each field with its text. The API clears an
/// address by an empty string.
fn pod_ips(status: Option<&core::PodStatus>) -> impl Iterator<Item = (FieldPath, &str)> {
    let path = FieldPath::root().field("status");
    let list = status.and_then(|status| status.pod_ips.as_deref());
    let list = list.unwrap_or_default();
    let single = status.filter(|_| list.is_empty());
    let single = single.and_then(|status| status.pod_ip.as_deref());
    let single = single.map(|ip| (path.field("podIP"), ip));
    let list = list.iter().enumerate().map(move |(position, entry)| {
        let path = path.field("podIPs").index(position).field("ip");
        (path, entry.ip.as_str())
    });
    single
        .into_iter()
        .chain(list)
        .filter(|(_, text)| !text.is_empty())
}

/// `hostIPs` and `hostIP`: clusters before 1.28 have only the latter. The kubelet writes them, and what cannot be
/// read takes nothing from the pod itself.
fn host_addresses(status: Option<&core::PodStatus>) -> Vec<IpAddr> {
    let mut addresses = Vec::new();
    let Some(status) = status else {
        return addresses;
    };
    let list = status.host_ips.iter().flatten();
    let texts = list.map(|entry| &entry.ip).chain(&status.host_ip);
    for address in texts.filter_map(|text| address(text)) {
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    addresses
}

/// The pod's own addresses, at most one of each family.
fn addresses(status: Option<&core::PodStatus>, mistakes: &mut Mistakes) -> Vec<IpAddr> {
    let mut addresses: Vec<IpAddr> = Vec::new();
    for (path, text) in pod_ips(status) {
        match address(text) {
            Some(address) if addresses.iter().any(|a| a.is_ipv4() == address.is_ipv4()) => {
                let family = if address.is_ipv4() { "IPv4" } else { "IPv6" };
                mistakes.report(path, Mistake::SecondAddress(family));
            }
            Some(address) => addresses.push(address),
            None => mistakes.report(path, Mistake::InvalidAddress(text.to_owned())),
        }
    }
    addresses
}

/// Named ports of containers and of init containers that keep running (sidecars).
fn ports(spec: &core::PodSpec, mistakes: &mut Mistakes) -> BTreeSet<NamedPort> {
    let path = FieldPath::root().field("spec");
    let containers = spec.containers.iter().map(|container| (true, container));
    let init_containers = spec.init_containers.iter().flatten().map(|container| {
        (
            container.restart_policy.as_deref() == Some("Always"),
            container,
        )
    });
    let mut named = BTreeSet::new();
    let lists: [(&str, &mut dyn Iterator<Item = (bool, &core::Container)>); 2] = [
        ("containers", &mut { containers }),
        ("initContainers", &mut { init_containers }),
    ];
    for (field, list) in lists {
        for (position, (keeps_running, container)) in list.enumerate() {
            let path = path.field(field).index(position).field("ports");
            for (position, port) in container.ports.iter().flatten().enumerate() {
                match named_port(port, &path.index(position)) {
                    Ok(Some(port)) if keeps_running => {
                        named.insert(port);
                    }
                    Ok(_) => {}
                    Err(Invalid { path, mistake }) => mistakes.report(path, mistake),
                }
            }
        }
    }
    named
}

fn named_port(port: &core::ContainerPort, path: &FieldPath) -> Result<Option<NamedPort>, Invalid> {
    let at = |field: &str, mistake| Invalid {
        path: path.field(field),
        mistake,
    };
    let number = port_number(i64::from(port.container_port))
        .map_err(|mistake| at("containerPort", mistake))?;
    let protocol = protocol(port.protocol.as_deref()).map_err(|mistake| at("protocol", mistake))?;
    Ok(port
        .name
        .as_deref()
        .filter(|name| !name.is_empty())
        .map(|name| NamedPort {
            name: name.into(),
            protocol,
            port: number,
        }))
}
