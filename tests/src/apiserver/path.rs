//! What the path of a request names.

use serde_json::{Value, json};

use super::Resource;

/// What a path names.
#[derive(Debug)]
pub(super) enum Place {
    /// Objects, or one.
    Object(Target),
    /// Something that never changes.
    Fixed(Value),
    /// Whether the server lives.
    Health,
}

/// A collection, an object, or an object's status.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) resource: Resource,
    /// Empty for all of them, and where there is none.
    pub(super) namespace: String,
    /// Empty for a collection.
    pub(super) name: String,
    pub(super) status: bool,
}

impl Place {
    /// What `path` names, if anything.
    pub(super) fn of(path: &str) -> Option<Self> {
        let group = |group: &str| json!({"groupVersion": format!("{group}/v1"), "version": "v1"});
        Some(match path {
            "/livez" | "/readyz" | "/healthz" => Self::Health,
            "/version" => Self::Fixed(json!({
                "major": "1", "minor": "34", "gitVersion": "v1.34.0-portcullis-test",
                "gitCommit": "", "gitTreeState": "clean", "buildDate": "2026-01-01T00:00:00Z",
                "goVersion": "none", "compiler": "rustc", "platform": "linux/amd64",
            })),
            "/api" => Self::Fixed(json!({
                "kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": [],
            })),
            "/apis" => Self::Fixed(json!({
                "kind": "APIGroupList", "apiVersion": "v1", "groups": [{
                    "name": "networking.k8s.io",
                    "versions": [group("networking.k8s.io")],
                    "preferredVersion": group("networking.k8s.io"),
                }],
            })),
            "/api/v1" => Self::Fixed(resources("v1")),
            "/apis/networking.k8s.io/v1" => Self::Fixed(resources("networking.k8s.io/v1")),
            _ => Self::Object(Target::of(path)?),
        })
    }
}

impl Target {
    fn of(path: &str) -> Option<Self> {
        let (prefix, rest) = ["/api/v1", "/apis/networking.k8s.io/v1"]
            .into_iter()
            .find_map(|prefix| Some((prefix, path.strip_prefix(prefix)?.strip_prefix('/')?)))?;
        let parts: Vec<_> = rest.split('/').collect();
        let (namespace, rest) = match parts.as_slice() {
            // A namespace's own status is `namespaces/NAME/status`.
            ["namespaces", namespace, rest @ ..] if !rest.is_empty() && rest[0] != "status" => {
                (*namespace, rest)
            }
            all => ("", all),
        };
        let (plural, name, status) = match rest {
            [plural] => (*plural, "", false),
            [plural, name] => (*plural, *name, false),
            [plural, name, "status"] => (*plural, *name, true),
            _ => return None,
        };
        let resource = Resource::of_plural(prefix, plural)?;
        let fits = match (resource.is_namespaced(), namespace.is_empty()) {
            (true, true) => name.is_empty(),
            (true, false) => true,
            (false, is_cluster_wide) => is_cluster_wide,
        };
        let has_status = !status || resource == Resource::Pods;
        (fits && has_status && !parts.contains(&"")).then(|| Self {
            resource,
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            status,
        })
    }
}

/// The resources of a group, as clients discover them.
fn resources(api_version: &str) -> Value {
    let verbs = json!([
        "create", "delete", "get", "list", "patch", "update", "watch"
    ]);
    let resources: Vec<_> = Resource::ALL
        .into_iter()
        .filter(|resource| resource.api_version() == api_version)
        .map(|resource| {
            json!({
                "name": resource.plural(), "kind": resource.kind(), "verbs": verbs,
                "singularName": resource.kind().to_lowercase(), "namespaced": resource.is_namespaced(),
            })
        })
        .collect();
    json!({
        "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": api_version,
        "resources": resources,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_name_objects_and_collections() {
        let target = |resource, namespace: &str, name: &str, status| {
            Some(Target {
                resource,
                namespace: namespace.to_owned(),
                name: name.to_owned(),
                status,
            })
        };
        let rows = [
            ("/api/v1/pods", target(Resource::Pods, "", "", false)),
            (
                "/api/v1/namespaces",
                target(Resource::Namespaces, "", "", false),
            ),
            (
                "/api/v1/namespaces/a",
                target(Resource::Namespaces, "", "a", false),
            ),
            ("/api/v1/nodes/n", target(Resource::Nodes, "", "n", false)),
            (
                "/api/v1/namespaces/a/pods",
                target(Resource::Pods, "a", "", false),
            ),
            (
                "/api/v1/namespaces/a/pods/p",
                target(Resource::Pods, "a", "p", false),
            ),
            (
                "/api/v1/namespaces/a/pods/p/status",
                target(Resource::Pods, "a", "p", true),
            ),
            (
                "/apis/networking.k8s.io/v1/namespaces/a/networkpolicies/x",
                target(Resource::NetworkPolicies, "a", "x", false),
            ),
            ("/api/v1/networkpolicies", None),
            ("/api/v1/pods/p", None),
            ("/api/v1/namespaces/a/nodes", None),
            ("/api/v1/namespaces/a/status", None),
            ("/api/v1/namespaces//pods", None),
            ("/api/v1/namespaces/a/pods/p/log", None),
            ("/", None),
        ];
        for (path, expected) in rows {
            assert_eq!(Target::of(path), expected, "{path}");
            let place = Place::of(path).map(|place| matches!(place, Place::Object(_)));
            assert_eq!(place, expected.map(|_| true), "{path}");
        }
    }
}
