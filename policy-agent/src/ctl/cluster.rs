//! The cluster's workload endpoints and policies, from what the API lists. Pure.

use std::collections::BTreeMap;
use std::net::IpAddr;

use policy_core::model::{NetworkPolicy, ObjectName, Pod};
use serde::Serialize;

use crate::datastore::convert::PodObject;
use crate::report::EndpointName;

/// A pod of the cluster that policies can apply to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ClusterEndpoint {
    /// Its name.
    #[serde(flatten)]
    pub endpoint: EndpointName,
    /// The pod's addresses, as far as the API knows them.
    pub addresses: Vec<IpAddr>,
    /// Which policies isolate it; absent where the policies are not known.
    #[serde(flatten)]
    pub isolation: Option<Isolation>,
}

/// How an endpoint is isolated.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Isolation {
    /// Ingress, absent when not isolated.
    pub ingress: Option<IsolatedBy>,
    /// Egress, absent when not isolated.
    pub egress: Option<IsolatedBy>,
}

/// What isolates an endpoint in one direction.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct IsolatedBy {
    /// NetworkPolicies, as `namespace/name`.
    pub policies: Vec<String>,
}

/// A NetworkPolicy and what it applies to in the whole cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ClusterPolicy {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Directions that it isolates: `Ingress`, `Egress`.
    pub policy_types: Vec<String>,
    /// Its ingress rules.
    pub ingress_rules: usize,
    /// Its egress rules.
    pub egress_rules: usize,
    /// Its pod selector as `kubectl --selector` takes it; empty: all pods of the namespace.
    pub pod_selector: String,
    /// Workload endpoints that it selects, as `namespace/name` of the pod.
    pub subjects: Vec<String>,
}

/// The pods that policies apply to, with their nodes, by name.
pub(super) struct Workloads(BTreeMap<ObjectName, (Pod, String)>);

impl Workloads {
    /// Leaves out pods that have none of their own network, no node yet, or have ended.
    pub(super) fn of(pods: Vec<PodObject>) -> Self {
        let workloads = pods.into_iter().filter_map(|object| {
            let node = node_of(&object).ok()?.to_owned();
            match object {
                PodObject::Pod { pod, .. } => Some((pod.name.clone(), (pod, node))),
                PodObject::HostNetwork { .. } => None,
            }
        });
        Self(workloads.collect())
    }

    /// As endpoints, with the policies that isolate them where those are known.
    pub(super) fn endpoints(&self, policies: Option<&[NetworkPolicy]>) -> Vec<ClusterEndpoint> {
        let policies = policies.map(by_namespace);
        let endpoints = self.0.values().map(|(pod, node)| ClusterEndpoint {
            // The API does not know the interface; every network plugin names a pod's first one so.
            endpoint: EndpointName::new(node, &pod.name, "eth0"),
            addresses: pod.addresses.clone(),
            isolation: policies.as_ref().map(|policies| {
                let of_namespace = policies.get(&*pod.name.namespace);
                isolation(pod, of_namespace.map_or(&[], Vec::as_slice))
            }),
        });
        endpoints.collect()
    }

    /// Policies, sorted by name, with the pods that each selects.
    pub(super) fn policies(&self, policies: &[NetworkPolicy]) -> Vec<ClusterPolicy> {
        let mut views: Vec<_> = policies.iter().map(|policy| self.policy(policy)).collect();
        views.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
        views
    }

    fn policy(&self, policy: &NetworkPolicy) -> ClusterPolicy {
        let ObjectName { namespace, name } = &policy.name;
        // The empty name is before all others of the namespace.
        let subjects = self
            .0
            .range(ObjectName::new(namespace, "")..)
            .take_while(|(pod, _)| pod.namespace == *namespace)
            .filter(|(_, (pod, _))| policy.subjects.matches(&pod.labels))
            .map(|(name, _)| name.to_string());
        let types = [("Ingress", &policy.ingress), ("Egress", &policy.egress)];
        ClusterPolicy {
            namespace: namespace.to_string(),
            name: name.to_string(),
            policy_types: types
                .iter()
                .filter(|(_, rules)| rules.is_some())
                .map(|(name, _)| (*name).to_owned())
                .collect(),
            ingress_rules: policy.ingress.as_ref().map_or(0, Vec::len),
            egress_rules: policy.egress.as_ref().map_or(0, Vec::len),
            pod_selector: policy.subjects.to_string(),
            subjects: subjects.collect(),
        }
    }
}

/// The node of a pod that policies apply to, or why they do not.
pub(super) fn node_of(object: &PodObject) -> Result<&str, &'static str> {
    match object {
        PodObject::HostNetwork { .. } => {
            Err("the pod is on the host's network, where NetworkPolicy does not apply")
        }
        PodObject::Pod { pod, .. } if pod.terminated => Err("the pod has ended"),
        PodObject::Pod { node, .. } => match node.as_deref() {
            None | Some("") => Err("the pod is not bound to a node yet"),
            Some(node) => Ok(node),
        },
    }
}

fn by_namespace(policies: &[NetworkPolicy]) -> BTreeMap<&str, Vec<&NetworkPolicy>> {
    let mut map: BTreeMap<&str, Vec<&NetworkPolicy>> = BTreeMap::new();
    for policy in policies {
        map.entry(&policy.name.namespace).or_default().push(policy);
    }
    for list in map.values_mut() {
        list.sort_by(|a, b| a.name.cmp(&b.name));
    }
    map
}

/// `policies` are those of the pod's namespace.
fn isolation(pod: &Pod, policies: &[&NetworkPolicy]) -> Isolation {
    let mut isolation = Isolation::default();
    for policy in policies {
        if !policy.subjects.matches(&pod.labels) {
            continue;
        }
        let directions = [
            (&policy.ingress, &mut isolation.ingress),
            (&policy.egress, &mut isolation.egress),
        ];
        for (rules, isolated_by) in directions {
            if rules.is_some() {
                let by = isolated_by.get_or_insert_default();
                by.policies.push(policy.name.to_string());
            }
        }
    }
    isolation
}

#[cfg(test)]
#[path = "cluster_tests.rs"]
mod tests;
