//! Names and labels, and every object but the DaemonSet.

use std::collections::BTreeMap;

use anyhow::Result;
use k8s_openapi::api::core::v1::{ConfigMap, ServiceAccount};
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, PolicyRule, RoleRef, Subject};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::settings;
use super::yaml::Document;

/// Name of all objects but the ConfigMap and the Secret.
pub(super) const NAME: &str = "portcullis";

/// Where all namespaced objects are.
pub(super) const NAMESPACE: &str = "kube-system";

/// Name of the ConfigMap.
pub(super) const CONFIG_MAP: &str = "portcullis-config";

/// The label that pods are selected by. A DaemonSet's selector can never change.
pub(super) const SELECTOR: (&str, &str) = ("k8s-app", NAME);

/// Installed version, which is the workspace's.
pub(super) const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The API group of roles.
const RBAC: &str = "rbac.authorization.k8s.io";

/// What kube-up's addon manager does about an object that it finds changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AddonMode {
    /// Makes it again as in the file.
    Reconcile,
    /// Leaves it, and only makes it where it is missing.
    EnsureExists,
}

impl AddonMode {
    /// The label that says so.
    pub(super) const LABEL: &'static str = "addonmanager.kubernetes.io/mode";

    /// The label's value.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Reconcile => "Reconcile",
            Self::EnsureExists => "EnsureExists",
        }
    }
}

/// Metadata of an object; `mode` when it is the addon manager's.
pub(super) fn metadata(name: &str, namespace: Option<&str>, mode: Option<AddonMode>) -> ObjectMeta {
    let mut labels = pod_labels();
    labels.insert("app.kubernetes.io/version".to_owned(), VERSION.to_owned());
    if let Some(mode) = mode {
        labels.insert(AddonMode::LABEL.to_owned(), mode.as_str().to_owned());
    }
    ObjectMeta {
        name: Some(name.to_owned()),
        namespace: namespace.map(str::to_owned),
        labels: Some(labels),
        ..ObjectMeta::default()
    }
}

/// Labels of pods, and with the version those of objects.
pub(super) fn pod_labels() -> BTreeMap<String, String> {
    [
        SELECTOR,
        ("app.kubernetes.io/name", NAME),
        ("app.kubernetes.io/component", "policy-agent"),
        ("app.kubernetes.io/part-of", NAME),
    ]
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
    .into()
}

/// Who the agent is to the API.
pub(super) fn service_account(mode: Option<AddonMode>) -> Result<Document> {
    Document::of(&ServiceAccount {
        metadata: metadata(NAME, Some(NAMESPACE), mode),
        ..ServiceAccount::default()
    })
}

/// What the agent may do: read what policies are made of and what leads to pods, and nothing else.
pub(super) fn cluster_role(mode: Option<AddonMode>) -> Result<Document> {
    let read = |group: &str, resources: &[&str]| PolicyRule {
        api_groups: strings(&[group]),
        resources: strings(resources),
        verbs: ["get", "list", "watch"].map(str::to_owned).into(),
        ..PolicyRule::default()
    };
    let role = Document::of(&ClusterRole {
        metadata: metadata(NAME, None, mode),
        rules: Some(vec![
            read("", &["namespaces", "nodes", "pods", "services"]),
            read("networking.k8s.io", &["networkpolicies"]),
        ]),
        ..ClusterRole::default()
    })?;
    Ok(role.about("What policies are made of and what leads to pods, to read. Portcullis writes nothing to the API."))
}

/// Who may do it.
pub(super) fn cluster_role_binding(mode: Option<AddonMode>) -> Result<Document> {
    Document::of(&ClusterRoleBinding {
        metadata: metadata(NAME, None, mode),
        role_ref: RoleRef {
            api_group: RBAC.to_owned(),
            kind: "ClusterRole".to_owned(),
            name: NAME.to_owned(),
        },
        subjects: Some(vec![Subject {
            kind: "ServiceAccount".to_owned(),
            name: NAME.to_owned(),
            namespace: Some(NAMESPACE.to_owned()),
            ..Subject::default()
        }]),
    })
}

/// What operators set.
pub(super) fn config_map(mode: Option<AddonMode>) -> Result<Document> {
    let given = settings::IN_CONFIG_MAP
        .iter()
        .filter_map(|setting| Some((setting.key.to_owned(), setting.given?.to_owned())));
    let map = Document::of(&ConfigMap {
        metadata: metadata(CONFIG_MAP, Some(NAMESPACE), mode),
        data: Some(given.collect()),
        ..ConfigMap::default()
    })?;
    Ok(map.about(&settings::explained()))
}

fn strings(values: &[&str]) -> Option<Vec<String>> {
    Some(values.iter().copied().map(str::to_owned).collect())
}
