//! What the API lists as tables.

use super::cluster::{ClusterEndpoint, ClusterPolicy, IsolatedBy, Isolation};
use super::print::{ENDPOINT, addresses, name, or_dash, rules};
use super::table::render;

/// In the place of what cannot be known.
const UNKNOWN: &str = "unknown";

pub(super) fn endpoints(list: &[ClusterEndpoint], wide: bool) -> String {
    if !wide {
        let rows = list.iter().map(|found| name(&found.endpoint));
        return render(ENDPOINT, rows.collect());
    }
    let rows = list.iter().map(|endpoint| {
        let [hostname, orchestrator, workload, name] = name(&endpoint.endpoint);
        let isolation = endpoint.isolation.as_ref();
        [
            hostname,
            orchestrator,
            workload,
            name,
            addresses(&endpoint.addresses),
            direction(isolation, |isolation| &isolation.ingress),
            direction(isolation, |isolation| &isolation.egress),
        ]
    });
    let [hostname, orchestrator, workload, name] = ENDPOINT;
    render(
        [
            hostname,
            orchestrator,
            workload,
            name,
            "ADDRESSES",
            "INGRESS",
            "EGRESS",
        ],
        rows.collect(),
    )
}

/// The policies that isolate; `-` where none does.
fn direction(
    isolation: Option<&Isolation>,
    direction: fn(&Isolation) -> &Option<IsolatedBy>,
) -> String {
    match isolation.map(direction) {
        None => UNKNOWN.to_owned(),
        Some(None) => or_dash(&[]),
        Some(Some(by)) => or_dash(&by.policies),
    }
}

/// `PODS` are those of the whole cluster.
pub(super) fn policies(list: &[ClusterPolicy], wide: bool) -> String {
    let basic = |policy: &ClusterPolicy| {
        [
            policy.namespace.clone(),
            policy.name.clone(),
            or_dash(&policy.policy_types),
            rules(&policy.policy_types, "Ingress", policy.ingress_rules),
            rules(&policy.policy_types, "Egress", policy.egress_rules),
            policy.subjects.len().to_string(),
        ]
    };
    const HEADER: [&str; 6] = [
        "NAMESPACE",
        "NAME",
        "TYPES",
        "INGRESS-RULES",
        "EGRESS-RULES",
        "PODS",
    ];
    if !wide {
        return render(HEADER, list.iter().map(basic).collect());
    }
    let [namespace, name, types, ingress, egress, pods] = HEADER;
    let rows = list.iter().map(|policy| {
        let [namespace, name, types, ingress, egress, pods] = basic(policy);
        let selector = match policy.pod_selector.as_str() {
            "" => "<all>".to_owned(),
            selector => selector.to_owned(),
        };
        [namespace, name, types, ingress, egress, pods, selector]
    });
    render(
        [
            namespace,
            name,
            types,
            ingress,
            egress,
            pods,
            "POD-SELECTOR",
        ],
        rows.collect(),
    )
}
