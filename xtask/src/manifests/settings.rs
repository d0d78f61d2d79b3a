//! The agent's settings as operators give them: entries of the ConfigMap, and what else becomes an
//! environment variable.

use std::fmt::Write as _;

use k8s_openapi::api::core::v1::{
    ConfigMapKeySelector, EnvVar, EnvVarSource, ObjectFieldSelector, SecretKeySelector,
};

use super::objects::CONFIG_MAP;

/// Name of the Secret with credentials, which need not exist.
pub(super) const SECRET: &str = "portcullis-credentials";

/// Where that Secret's entries are files.
pub(super) const SECRET_DIRECTORY: &str = "/etc/portcullis";

/// An entry of the ConfigMap.
pub(super) struct Setting {
    /// Its key.
    pub(super) key: &'static str,
    /// The environment variable that it becomes.
    pub(super) variable: &'static str,
    /// Its value when Portcullis is installed. Without one the entry is optional.
    pub(super) given: Option<&'static str>,
    /// What it means.
    meaning: &'static str,
}

/// Every entry. Not here: what other parts of the manifest depend on, such as HEALTH_ADDR.
pub(super) const IN_CONFIG_MAP: [Setting; 16] = [
    Setting {
        key: "datastore_type",
        variable: "DATASTORE_TYPE",
        given: Some("kubernetes"),
        meaning: "where policies come from",
    },
    Setting {
        key: "install_cni",
        variable: "PORTCULLIS_INSTALL_CNI",
        given: Some("true"),
        meaning: "whether policy-cni is kept in each node's CNI configuration",
    },
    Setting::optional(
        "cni_timeout",
        "PORTCULLIS_CNI_TIMEOUT",
        "seconds that a pod's start may wait for the agent: 1 to 120, 10 by default",
    ),
    Setting::optional(
        "cni_fail_open",
        "PORTCULLIS_CNI_FAIL_OPEN",
        "whether pods start UNPROTECTED where the agent is away: true or false (default)",
    ),
    Setting::optional(
        "cni_create",
        "PORTCULLIS_CNI_CREATE",
        "ptp or bridge: make a CNI configuration where a node has none",
    ),
    Setting::optional(
        "k8s_api_endpoint",
        "K8S_API_ENDPOINT",
        "URL of the API, where its Service does not answer on nodes (no kube-proxy)",
    ),
    Setting::optional(
        "k8s_ca_file",
        "K8S_CA_FILE",
        "the API's CA, such as /etc/portcullis/ca.crt",
    ),
    Setting::optional(
        "k8s_cert_file",
        "K8S_CERT_FILE",
        "client certificate instead of the service account's token",
    ),
    Setting::optional("k8s_key_file", "K8S_KEY_FILE", "that certificate's key"),
    Setting::optional(
        "kubeconfig",
        "KUBECONFIG",
        "a kubeconfig instead of all that, such as /etc/portcullis/kubeconfig",
    ),
    Setting::optional(
        "log_level",
        "PORTCULLIS_LOG_LEVEL",
        "error, warn, info (default), debug or trace",
    ),
    Setting::optional(
        "log_drops",
        "PORTCULLIS_LOG_DROPS",
        "whether dropped packets are logged: true (default) or false",
    ),
    Setting::optional(
        "log_decisions",
        "PORTCULLIS_LOG_DECISIONS",
        "whether each new connection's verdict is logged: true or false (default)",
    ),
    Setting::optional(
        "table_sizes",
        "PORTCULLIS_TABLE_SIZES",
        "sizes of BPF maps where the defaults do not fit: flows_v4=262144,peers=1000000",
    ),
    Setting::optional(
        "secondary_interfaces",
        "PORTCULLIS_SECONDARY_INTERFACES",
        "pods' further interfaces: enforce (default) or report",
    ),
    Setting::optional(
        "router_namespaces",
        "PORTCULLIS_ROUTER_NAMESPACES",
        "namespaces whose pods may send from any address: vpn,edge-routers",
    ),
];

impl Setting {
    const fn optional(key: &'static str, variable: &'static str, meaning: &'static str) -> Self {
        Self {
            key,
            variable,
            given: None,
            meaning,
        }
    }
}

/// The comment on the ConfigMap.
pub(super) fn explained() -> String {
    let mut text = format!(
        "Settings of the agent; they count from its next start:\n\
         kubectl -n kube-system rollout restart daemonset/portcullis\n\n\
         Files come from the Secret {SECRET}, which need not exist: its entries are files in\n\
         {SECRET_DIRECTORY}, and its entry \"token\" is a bearer token for the API. Optional entries:\n\n"
    );
    for setting in IN_CONFIG_MAP
        .iter()
        .filter(|setting| setting.given.is_none())
    {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{:16} {}", setting.key, setting.meaning);
    }
    text
}

/// The container's environment.
pub(super) fn environment() -> Vec<EnvVar> {
    let from = |name: &str, source| EnvVar {
        name: name.to_owned(),
        value_from: Some(source),
        ..EnvVar::default()
    };
    let mut variables = vec![from(
        "NODENAME",
        EnvVarSource {
            field_ref: Some(ObjectFieldSelector {
                field_path: "spec.nodeName".to_owned(),
                ..ObjectFieldSelector::default()
            }),
            ..EnvVarSource::default()
        },
    )];
    variables.extend(IN_CONFIG_MAP.iter().map(|setting| {
        let key = ConfigMapKeySelector {
            name: CONFIG_MAP.to_owned(),
            key: setting.key.to_owned(),
            optional: setting.given.is_none().then_some(true),
        };
        from(
            setting.variable,
            EnvVarSource {
                config_map_key_ref: Some(key),
                ..EnvVarSource::default()
            },
        )
    }));
    variables.push(from(
        "K8S_TOKEN",
        EnvVarSource {
            secret_key_ref: Some(SecretKeySelector {
                name: SECRET.to_owned(),
                key: "token".to_owned(),
                optional: Some(true),
            }),
            ..EnvVarSource::default()
        },
    ));
    variables
}
