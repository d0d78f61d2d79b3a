//! The cluster as the compiler sees it: validated, trimmed, free of any API library.
//!
//! Datastores turn API objects into these types and report what is invalid there; from here on a
//! value that exists is a value that makes sense.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

/// Labels of a pod or namespace.
pub type Labels = BTreeMap<Arc<str>, Arc<str>>;

/// Namespace and name of a namespaced object.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectName {
    /// The Kubernetes namespace.
    pub namespace: Arc<str>,
    /// The object's name.
    pub name: Arc<str>,
}

impl ObjectName {
    /// A name from its two parts.
    #[must_use]
    pub fn new(namespace: &str, name: &str) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
        }
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// A Kubernetes namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespace {
    /// Its name.
    pub name: Arc<str>,
    /// Its labels; the compiler adds `kubernetes.io/metadata.name` where it is absent.
    pub labels: Labels,
}

/// L4 protocols that a NetworkPolicy port can name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    /// TCP, the default.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Protocol {
    /// IANA number.
    #[must_use]
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => policy_common::flow::protocol::TCP,
            Self::Udp => policy_common::flow::protocol::UDP,
            Self::Sctp => policy_common::flow::protocol::SCTP,
        }
    }
}

/// A named container port of a pod (sidecar init containers included).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NamedPort {
    /// The port's name.
    pub name: Arc<str>,
    /// Its protocol.
    pub protocol: Protocol,
    /// Its number, 1 to 65535.
    pub port: u16,
}

/// A pod. Host-network pods never become one of these.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Namespace and name.
    pub name: ObjectName,
    /// Its labels; copies of a pod share them.
    pub labels: Arc<Labels>,
    /// `status.podIPs`, at most one of each family; empty while unknown.
    pub addresses: Vec<IpAddr>,
    /// Its named ports; copies of a pod share them.
    pub ports: Arc<BTreeSet<NamedPort>>,
    /// Phase Succeeded or Failed: owns no address any more.
    pub terminated: bool,
    /// Orders pods that claim one address: the newest live pod owns it. Seconds since 1970 of
    /// `creationTimestamp`, or the order of arrival where there is none.
    pub created: i64,
    /// The uid that the kubelet knows it by, empty where there is none.
    pub uid: Arc<str>,
}

/// A label selector. An absent selector is `Option::None`, an empty one selects everything.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LabelSelector {
    /// All must hold. `matchLabels` entries become `In` with one value. Sorted, without duplicates.
    pub requirements: Vec<Requirement>,
}

/// One requirement of a selector.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Requirement {
    /// The key is there with one of these values (never empty).
    In(Arc<str>, BTreeSet<Arc<str>>),
    /// The key is absent, or its value is none of these.
    NotIn(Arc<str>, BTreeSet<Arc<str>>),
    /// The key is there.
    Exists(Arc<str>),
    /// The key is not there.
    DoesNotExist(Arc<str>),
}

impl LabelSelector {
    /// Whether `labels` satisfy every requirement
    /// (<https://kubernetes.io/docs/concepts/overview/working-with-objects/labels/>).
    #[must_use]
    pub fn matches(&self, labels: &Labels) -> bool {
        self.requirements
            .iter()
            .all(|requirement| match requirement {
                Requirement::In(key, values) => {
                    labels.get(key).is_some_and(|value| values.contains(value))
                }
                Requirement::NotIn(key, values) => {
                    labels.get(key).is_none_or(|value| !values.contains(value))
                }
                Requirement::Exists(key) => labels.contains_key(key),
                Requirement::DoesNotExist(key) => !labels.contains_key(key),
            })
    }
}

/// As `kubectl --selector` takes it.
impl fmt::Display for LabelSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, requirement) in self.requirements.iter().enumerate() {
            let comma = if position > 0 { "," } else { "" };
            write!(f, "{comma}{requirement}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |values: &BTreeSet<Arc<str>>| {
            let values: Vec<_> = values.iter().map(AsRef::as_ref).collect();
            values.join(",")
        };
        match self {
            Self::In(key, values) if values.len() == 1 => write!(f, "{key}={}", list(values)),
            Self::In(key, values) => write!(f, "{key} in ({})", list(values)),
            Self::NotIn(key, values) => write!(f, "{key} notin ({})", list(values)),
            Self::Exists(key) => f.write_str(key),
            Self::DoesNotExist(key) => write!(f, "!{key}"),
        }
    }
}

/// One entry of a rule's `from` or `to`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Peer {
    /// Pods, by `namespaceSelector` (absent: the policy's own namespace) and `podSelector` (absent:
    /// all pods). At least one is present.
    Pods {
        /// Which namespaces.
        namespaces: Option<LabelSelector>,
        /// Which pods in them.
        pods: Option<LabelSelector>,
    },
    /// Addresses, pods' included.
    IpBlock {
        /// The block, truncated.
        cidr: IpNet,
        /// Parts of it that this peer does not match; each inside `cidr`, truncated, sorted.
        except: Vec<IpNet>,
    },
}

/// One entry of a rule's `ports`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PolicyPort {
    /// Protocol, TCP where absent.
    pub protocol: Protocol,
    /// Which ports of it.
    pub port: PortMatch,
}

/// The `port` and `endPort` of a policy port.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum PortMatch {
    /// Absent: every port of the protocol.
    Any,
    /// `first..=last`, both 1 to 65535.
    Range(u16, u16),
    /// By name, resolved on the pod that owns the port.
    Named(Arc<str>),
}

/// One element of `ingress` or `egress`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Rule {
    /// Empty or absent in the API: every address. Otherwise any of these.
    pub peers: Vec<Peer>,
    /// Empty or absent in the API: every protocol and port. Otherwise any of these.
    pub ports: Vec<PolicyPort>,
}

/// A NetworkPolicy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkPolicy {
    /// Namespace and name.
    pub name: ObjectName,
    /// Its subjects, within its namespace.
    pub subjects: LabelSelector,
    /// `None`: does not isolate for ingress. `Some(vec![])`: isolates and allows nothing.
    pub ingress: Option<Vec<Rule>>,
    /// `None`: does not isolate for egress. `Some(vec![])`: isolates and allows nothing.
    pub egress: Option<Vec<Rule>>,
}

/// A pod interface found on this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalEndpoint {
    /// Host-side interface; the endpoint's key.
    pub ifindex: u32,
    /// Host-side interface name, for people.
    pub host_interface: String,
    /// The interface's name inside the pod, such as `eth0`.
    pub interface: String,
    /// The pod that it belongs to.
    pub pod: ObjectName,
    /// Whose labels and ports count for it.
    pub subject: Subject,
    /// How it is known to be the pod's.
    pub origin: Origin,
    /// Its own addresses.
    pub addresses: Vec<IpAddr>,
    /// See [`Endpoint::ROUTER`](policy_common::endpoint::Endpoint::ROUTER).
    pub is_router: bool,
    /// See [`Endpoint::RECORD`](policy_common::endpoint::Endpoint::RECORD).
    pub records: bool,
}

impl LocalEndpoint {
    /// Whether its addresses count as its pod's as the pod's status does. Those of other endpoints count only
    /// where no live pod claims them.
    #[must_use]
    pub fn claims_as_its_pod(&self) -> bool {
        self.origin == Origin::Announced && self.subject == Subject::Current
    }

    /// Whether an address stops being its own when a live pod or another endpoint has it.
    #[must_use]
    pub fn yields_addresses(&self) -> bool {
        self.origin == Origin::Secondary || matches!(self.subject, Subject::Held(_))
    }
}

/// The pod whose labels and named ports count for an endpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Subject {
    /// The pod of the endpoint's name, as the cluster has it.
    #[default]
    Current,
    /// A pod that is gone from the cluster, or whose name is another pod's by now, as it was last known. Policies
    /// go on selecting it, and it goes on being a peer.
    Held(Arc<Pod>),
    /// A pod that nothing was ever known of. It could be any policy's subject, so all of its traffic is denied.
    Unknown,
}

/// How an endpoint is known to be its pod's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Origin {
    /// The container network said so, the addresses included.
    #[default]
    Announced,
    /// Its interface had the pod's address when it was first seen.
    Found,
    /// It is a further interface in the network namespace of an endpoint of the pod, which gives it any address.
    Secondary,
}

/// Something in the cluster or on the node changed. Upserts carry the whole object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A namespace was added or changed.
    Namespace(Namespace),
    /// A namespace is gone; its pods and policies go by changes of their own.
    NamespaceGone(Arc<str>),
    /// A pod was added or changed.
    Pod(Pod),
    /// A pod is gone, or turned out to be a host-network pod.
    PodGone(ObjectName),
    /// A policy was added or changed.
    Policy(NetworkPolicy),
    /// A policy is gone.
    PolicyGone(ObjectName),
    /// A local pod interface was found or changed.
    Endpoint(LocalEndpoint),
    /// A local pod interface is gone, by ifindex.
    EndpointGone(u32),
}
