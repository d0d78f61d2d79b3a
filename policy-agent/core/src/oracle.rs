//! The truth, told naively: NetworkPolicy semantics straight from the API's documentation
//! (<https://kubernetes.io/docs/concepts/services-networking/network-policies/>), pod by pod and rule by
//! rule, with none of the compiler's ideas. Slow, and meant to be obviously right.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use policy_common::verdict::Direction;

use crate::model::{
    Change, Labels, LocalEndpoint, NetworkPolicy, ObjectName, Origin, Peer, Pod, PolicyPort,
    PortMatch, Protocol, Rule, Subject,
};

/// A cluster as last told.
#[derive(Clone, Debug, Default)]
pub struct Cluster {
    namespaces: BTreeMap<Arc<str>, Labels>,
    pods: BTreeMap<ObjectName, Pod>,
    policies: BTreeMap<ObjectName, NetworkPolicy>,
    endpoints: BTreeMap<u32, LocalEndpoint>,
}

/// What a packet goes to: `None` for protocols that have no ports.
pub type Target = Option<(Protocol, u16)>;

impl Cluster {
    /// Takes in a change.
    pub fn apply(&mut self, change: Change) {
        match change {
            Change::Namespace(namespace) => {
                drop(self.namespaces.insert(namespace.name, namespace.labels));
            }
            Change::NamespaceGone(name) => drop(self.namespaces.remove(&name)),
            Change::Pod(pod) => drop(self.pods.insert(pod.name.clone(), pod)),
            Change::PodGone(name) => drop(self.pods.remove(&name)),
            Change::Policy(policy) => drop(self.policies.insert(policy.name.clone(), policy)),
            Change::PolicyGone(name) => drop(self.policies.remove(&name)),
            Change::Endpoint(endpoint) => {
                drop(self.endpoints.insert(endpoint.ifindex, endpoint));
            }
            Change::EndpointGone(ifindex) => drop(self.endpoints.remove(&ifindex)),
        }
    }

    /// Local endpoints by ifindex.
    #[must_use]
    pub const fn endpoints(&self) -> &BTreeMap<u32, LocalEndpoint> {
        &self.endpoints
    }

    /// The newest live pod that has an address by its status, or by what was announced; else that of the endpoint
    /// which has it.
    #[must_use]
    pub fn owner(&self, address: IpAddr) -> Option<&Pod> {
        let has = |pod: &&Pod| {
            let announced = self.endpoints.values().any(|endpoint| {
                endpoint.pod == pod.name
                    && endpoint.subject == Subject::Current
                    && endpoint.origin == Origin::Announced
                    && endpoint.addresses.contains(&address)
            });
            !pod.terminated && (pod.addresses.contains(&address) || announced)
        };
        let live = self.pods.values().filter(has);
        let newest = live.max_by_key(|pod| (pod.created, &pod.name));
        newest.or_else(|| {
            let endpoints = self.endpoints.values();
            endpoints
                .filter(|endpoint| endpoint.addresses.contains(&address))
                .filter_map(|endpoint| Some((self.subject(endpoint)?, endpoint.ifindex)))
                .filter(|(pod, _)| !pod.terminated)
                .max_by_key(|(pod, ifindex)| (pod.created, &pod.name, *ifindex))
                .map(|(pod, _)| pod)
        })
    }

    fn subject<'a>(&'a self, endpoint: &'a LocalEndpoint) -> Option<&'a Pod> {
        match &endpoint.subject {
            Subject::Current => self.pods.get(&endpoint.pod),
            Subject::Held(pod) => Some(pod),
            Subject::Unknown => None,
        }
    }

    /// Whether traffic of an endpoint with a remote address is allowed in one direction.
    #[must_use]
    pub fn allows(
        &self,
        endpoint: &LocalEndpoint,
        direction: Direction,
        remote: IpAddr,
        target: Target,
    ) -> bool {
        let Some(pod) = self.subject(endpoint) else {
            return false;
        };
        let mut isolated = false;
        for policy in self.policies.values() {
            if policy.name.namespace != pod.name.namespace || !policy.subjects.matches(&pod.labels)
            {
                continue;
            }
            let rules = match direction {
                Direction::Ingress => &policy.ingress,
                Direction::Egress => &policy.egress,
            };
            let Some(rules) = rules else { continue };
            isolated = true;
            for rule in rules {
                if self.rule_allows(policy, rule, pod, direction, remote, target) {
                    return true;
                }
            }
        }
        !isolated
    }

    fn rule_allows(
        &self,
        policy: &NetworkPolicy,
        rule: &Rule,
        subject: &Pod,
        direction: Direction,
        remote: IpAddr,
        target: Target,
    ) -> bool {
        let peer_matches = rule.peers.is_empty()
            || rule
                .peers
                .iter()
                .any(|peer| self.peer_matches(policy, peer, remote));
        let port_owner = match direction {
            Direction::Ingress => Some(subject),
            Direction::Egress => self.owner(remote),
        };
        let port_matches = rule.ports.is_empty()
            || rule
                .ports
                .iter()
                .any(|port| port_matches(port, port_owner, target));
        peer_matches && port_matches
    }

    fn peer_matches(&self, policy: &NetworkPolicy, peer: &Peer, remote: IpAddr) -> bool {
        match peer {
            Peer::IpBlock { cidr, except } => {
                let within = |net: &IpNet| net.contains(&remote);
                within(cidr) && !except.iter().any(within)
            }
            Peer::Pods { namespaces, pods } => {
                let Some(pod) = self.owner(remote) else {
                    return false;
                };
                let name = &pod.name.namespace;
                let namespace_matches = match namespaces {
                    None => *name == policy.name.namespace,
                    Some(selector) => {
                        let mut labels = self.namespaces.get(name).cloned().unwrap_or_default();
                        let own = Arc::from("kubernetes.io/metadata.name");
                        labels.entry(own).or_insert_with(|| name.clone());
                        selector.matches(&labels)
                    }
                };
                namespace_matches
                    && pods
                        .as_ref()
                        .is_none_or(|selector| selector.matches(&pod.labels))
            }
        }
    }
}

fn port_matches(port: &PolicyPort, owner: Option<&Pod>, target: Target) -> bool {
    let Some((protocol, number)) = target else {
        return false;
    };
    port.protocol == protocol
        && match &port.port {
            PortMatch::Any => true,
            PortMatch::Range(first, last) => (*first..=*last).contains(&number),
            PortMatch::Named(name) => owner.is_some_and(|pod| {
                pod.ports
                    .iter()
                    .any(|own| own.name == *name && own.protocol == protocol && own.port == number)
            }),
        }
}
