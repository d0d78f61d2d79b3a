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
    },
    /// A host-network pod, which is no subject and no peer.
    HostNetwork(ObjectName),
}

impl PodObject {
    /// The pod's namespace and name.
    #[must_use]
    pub fn name(&self) -> &ObjectName {
        match self {
            Self::Pod { pod, .. } => &pod.name,
            Self::HostNetwork(name) => name,
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
    if spec.is_some_and(|spec| spec.host_network == Some(true)) {
        return Some(PodObject::HostNetwork(name));
    }
    let addresses = addresses(object.status.as_ref(), mistakes);
    let ports = spec.map(|spec| ports(spec, mistakes)).unwrap_or_default();
    let phase = object
        .status
        .as_ref()
        .and_then(|status| status.phase.as_deref());
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

/// `podIPs`, or `podIP` where a hand-written object has only that.
fn addresses(status: Option<&core::PodStatus>, mistakes: &mut Mistakes) -> Vec<IpAddr> {
    let path = FieldPath::root().field("status");
    let Some(status) = status else {
        return Vec::new();
    };
    let list = status.pod_ips.as_deref().unwrap_or_default();
    let given: Vec<(FieldPath, &str)> = if list.is_empty() {
        status
            .pod_ip
            .iter()
            .map(|ip| (path.field("podIP"), ip.as_str()))
            .collect()
    } else {
        list.iter()
            .enumerate()
            .map(|(position, entry)| {
                (
                    path.field("podIPs").index(position).field("ip"),
                    entry.ip.as_str(),
                )
            })
            .collect()
    };
    let mut addresses: Vec<IpAddr> = Vec::with_capacity(given.len());
    for (path, text) in given {
        // The API clears an address by an empty string.
        if text.is_empty() {
            continue;
        }
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
