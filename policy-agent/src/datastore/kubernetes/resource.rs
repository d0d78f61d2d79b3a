//! The resources that are read.

use policy_core::model::ObjectName;

use crate::datastore::ObjectKey;

/// A resource of the API.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Resource {
    /// Policies of all namespaces.
    NetworkPolicies,
    /// Pods of all nodes: they are peers.
    Pods,
    /// Namespaces, for their labels.
    Namespaces,
    /// Services, for their addresses.
    Services,
    /// This node's object, to find out whether the node's name is right.
    Nodes,
}

impl Resource {
    /// All of them; the position is also that in arrays by resource.
    pub(super) const ALL: [Self; 5] = [
        Self::NetworkPolicies,
        Self::Pods,
        Self::Namespaces,
        Self::Services,
        Self::Nodes,
    ];

    /// Its name in paths and in RBAC rules.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::NetworkPolicies => "networkpolicies",
            Self::Pods => "pods",
            Self::Namespaces => "namespaces",
            Self::Services => "services",
            Self::Nodes => "nodes",
        }
    }

    /// Its API group, as RBAC rules have it.
    pub(super) const fn group(self) -> &'static str {
        match self {
            Self::NetworkPolicies => "networking.k8s.io",
            Self::Pods | Self::Namespaces | Self::Services | Self::Nodes => "",
        }
    }

    /// The kind of its objects.
    pub(super) const fn kind(self) -> &'static str {
        match self {
            Self::NetworkPolicies => "NetworkPolicy",
            Self::Pods => "Pod",
            Self::Namespaces => "Namespace",
            Self::Services => "Service",
            Self::Nodes => "Node",
        }
    }

    /// The kind of a list of them.
    pub(super) const fn list_kind(self) -> &'static str {
        match self {
            Self::NetworkPolicies => "NetworkPolicyList",
            Self::Pods => "PodList",
            Self::Namespaces => "NamespaceList",
            Self::Services => "ServiceList",
            Self::Nodes => "NodeList",
        }
    }

    /// The path of the whole collection.
    pub(super) const fn path(self) -> &'static str {
        match self {
            Self::NetworkPolicies => "/apis/networking.k8s.io/v1/networkpolicies",
            Self::Pods => "/api/v1/pods",
            Self::Namespaces => "/api/v1/namespaces",
            Self::Services => "/api/v1/services",
            Self::Nodes => "/api/v1/nodes",
        }
    }

    /// The path of the part of the collection that is in a namespace, for resources that are in namespaces.
    pub(super) fn path_in(self, namespace: &str) -> String {
        let path = self.path();
        let name = self.name();
        let group = path.strip_suffix(name).unwrap_or(path);
        format!("{group}namespaces/{namespace}/{name}")
    }

    /// Whether its objects are in namespaces.
    pub(super) const fn is_namespaced(self) -> bool {
        matches!(self, Self::NetworkPolicies | Self::Pods | Self::Services)
    }

    /// Whether enforcement cannot begin without it.
    pub(super) const fn is_enforced(self) -> bool {
        !matches!(self, Self::Nodes)
    }

    /// The key of the object of this name, for objects of which more counts than that they exist.
    pub(super) fn key(self, name: &ObjectName) -> Option<ObjectKey> {
        match self {
            Self::NetworkPolicies => Some(ObjectKey::Policy(name.clone())),
            Self::Pods => Some(ObjectKey::Pod(name.clone())),
            Self::Namespaces => Some(ObjectKey::Namespace(name.name.clone())),
            Self::Services => Some(ObjectKey::Service(name.clone())),
            Self::Nodes => None,
        }
    }

    /// Kind and name, for people.
    pub(super) fn describe(self, name: &ObjectName) -> String {
        match self.key(name) {
            Some(key) => key.to_string(),
            None => format!("{} {}", self.kind(), name.name),
        }
    }
}
