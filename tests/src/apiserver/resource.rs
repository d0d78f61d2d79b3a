//! The resources that are served, and where the API has them.

use std::fmt;

/// A resource of the API.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Resource {
    /// Namespaces.
    Namespaces,
    /// Pods.
    Pods,
    /// NetworkPolicies of networking.k8s.io.
    NetworkPolicies,
    /// Services.
    Services,
    /// Nodes.
    Nodes,
}

impl Resource {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Namespaces,
        Self::Pods,
        Self::NetworkPolicies,
        Self::Services,
        Self::Nodes,
    ];

    /// Its name in paths.
    #[must_use]
    pub const fn plural(self) -> &'static str {
        match self {
            Self::Namespaces => "namespaces",
            Self::Pods => "pods",
            Self::NetworkPolicies => "networkpolicies",
            Self::Services => "services",
            Self::Nodes => "nodes",
        }
    }

    /// The kind of its objects.
    #[must_use]
    pub const fn kind(self) -> &'static str {
        match self {
            Self::Namespaces => "Namespace",
            Self::Pods => "Pod",
            Self::NetworkPolicies => "NetworkPolicy",
            Self::Services => "Service",
            Self::Nodes => "Node",
        }
    }

    /// Its API group; empty for the core.
    #[must_use]
    pub const fn group(self) -> &'static str {
        match self {
            Self::NetworkPolicies => "networking.k8s.io",
            Self::Namespaces | Self::Pods | Self::Services | Self::Nodes => "",
        }
    }

    /// `apiVersion` of its objects.
    #[must_use]
    pub const fn api_version(self) -> &'static str {
        match self {
            Self::NetworkPolicies => "networking.k8s.io/v1",
            Self::Namespaces | Self::Pods | Self::Services | Self::Nodes => "v1",
        }
    }

    /// Whether its objects are in namespaces.
    #[must_use]
    pub const fn is_namespaced(self) -> bool {
        matches!(self, Self::Pods | Self::NetworkPolicies | Self::Services)
    }

    /// The path of its API group and version.
    #[must_use]
    pub const fn prefix(self) -> &'static str {
        match self {
            Self::NetworkPolicies => "/apis/networking.k8s.io/v1",
            Self::Namespaces | Self::Pods | Self::Services | Self::Nodes => "/api/v1",
        }
    }

    /// The path of one object, or of the collection when `name` is empty; `namespace` may be empty.
    #[must_use]
    pub fn path(self, namespace: &str, name: &str) -> String {
        let mut path = self.prefix().to_owned();
        if self.is_namespaced() && !namespace.is_empty() {
            path = format!("{path}/namespaces/{namespace}");
        }
        path = format!("{path}/{}", self.plural());
        if !name.is_empty() {
            path = format!("{path}/{name}");
        }
        path
    }

    /// The resource whose objects are of this kind.
    #[must_use]
    pub fn of_kind(api_version: &str, kind: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|resource| resource.api_version() == api_version && resource.kind() == kind)
    }

    pub(super) fn of_plural(prefix: &str, plural: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|resource| resource.prefix() == prefix && resource.plural() == plural)
    }
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.plural())
    }
}
