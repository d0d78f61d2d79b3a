//! The cluster's objects as last told, and what each change of them touches.

use std::borrow::Cow;
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use crate::model::{
    Change, Labels, LocalEndpoint, Namespace, NetworkPolicy, ObjectName, Pod, Protocol, Subject,
};

/// The label that every namespace has.
pub(crate) const NAMESPACE_NAME: &str = "kubernetes.io/metadata.name";

/// A named port without its number.
pub(crate) type PortName = (Arc<str>, Protocol);

/// What a batch of changes touched.
#[derive(Debug, Default)]
pub(crate) struct Dirty {
    /// Addresses whose owner, or whose owner's labels or ports, may have changed.
    pub(crate) addresses: BTreeSet<IpAddr>,
    /// Endpoints whose row or rule lists may have changed.
    pub(crate) endpoints: BTreeSet<u32>,
    /// Endpoints that ended, even if another took their ifindex since.
    pub(crate) ended: BTreeSet<u32>,
    /// Port names whose distinct numbers changed.
    pub(crate) names: BTreeSet<PortName>,
}

/// Every object, by what it is looked up by.
#[derive(Debug, Default)]
pub(crate) struct Store {
    namespaces: HashMap<Arc<str>, Labels>,
    pods: BTreeMap<Arc<str>, BTreeMap<Arc<str>, Pod>>,
    policies: BTreeMap<Arc<str>, BTreeMap<Arc<str>, NetworkPolicy>>,
    endpoints: BTreeMap<u32, LocalEndpoint>,
    endpoints_of: HashMap<ObjectName, BTreeSet<u32>>,
    /// Endpoints whose addresses count only where no live pod claims them, by address.
    weak_claims: BTreeMap<IpAddr, BTreeSet<u32>>,
    /// The live pod that claims an address; one of them where it is contested.
    claims: BTreeMap<IpAddr, ObjectName>,
    /// All who claim an address that several live pods do; rarely any.
    contested: BTreeMap<IpAddr, BTreeSet<ObjectName>>,
    /// Numbers of named ports of live pods, with how many pods have each.
    numbers: BTreeMap<PortName, BTreeMap<u16, usize>>,
}

impl Store {
    pub(crate) fn apply(&mut self, change: Change, dirty: &mut Dirty) {
        match change {
            Change::Namespace(namespace) => self.set_namespace(namespace, dirty),
            Change::NamespaceGone(name) => {
                if self.namespaces.remove(&name).is_some() {
                    self.touch_namespace(&name, dirty);
                }
            }
            Change::Pod(pod) => self.set_pod(pod.name.clone(), Some(pod), dirty),
            Change::PodGone(name) => self.set_pod(name, None, dirty),
            Change::Policy(policy) => self.set_policy(&policy.name.clone(), Some(policy), dirty),
            Change::PolicyGone(name) => self.set_policy(&name, None, dirty),
            Change::Endpoint(endpoint) => {
                self.set_endpoint(endpoint.ifindex, Some(endpoint), dirty);
            }
            Change::EndpointGone(ifindex) => self.set_endpoint(ifindex, None, dirty),
        }
    }

    /// Labels of a namespace; one that was never told has only the label that all have.
    pub(crate) fn namespace(&self, name: &str) -> Cow<'_, Labels> {
        match self.namespaces.get(name) {
            Some(labels) => Cow::Borrowed(labels),
            None => Cow::Owned(Labels::from([(NAMESPACE_NAME.into(), name.into())])),
        }
    }

    pub(crate) fn pod(&self, name: &ObjectName) -> Option<&Pod> {
        self.pods.get(&name.namespace)?.get(&name.name)
    }

    /// Pods by namespace.
    pub(crate) fn pods(&self) -> impl Iterator<Item = (&Arc<str>, impl Iterator<Item = &Pod>)> {
        self.pods.iter().map(|(name, pods)| (name, pods.values()))
    }

    pub(crate) fn policies_in(&self, namespace: &str) -> impl Iterator<Item = &NetworkPolicy> {
        self.policies
            .get(namespace)
            .into_iter()
            .flat_map(BTreeMap::values)
    }

    pub(crate) fn policies(&self) -> impl Iterator<Item = &NetworkPolicy> {
        self.policies.values().flat_map(BTreeMap::values)
    }

    pub(crate) fn endpoint(&self, ifindex: u32) -> Option<&LocalEndpoint> {
        self.endpoints.get(&ifindex)
    }

    /// The pod whose labels and ports count for an endpoint.
    pub(crate) fn subject<'a>(&'a self, endpoint: &'a LocalEndpoint) -> Option<&'a Pod> {
        match &endpoint.subject {
            Subject::Current => self.pod(&endpoint.pod),
            Subject::Held(pod) => Some(pod),
            Subject::Unknown => None,
        }
    }

    /// Pods that are held for endpoints, with those endpoints.
    pub(crate) fn held(&self) -> impl Iterator<Item = (&Pod, &LocalEndpoint)> {
        self.endpoints
            .values()
            .filter_map(|endpoint| match &endpoint.subject {
                Subject::Held(pod) => Some((&**pod, endpoint)),
                Subject::Current | Subject::Unknown => None,
            })
    }

    /// Addresses that a pod claims, by its status and by what the container network announced.
    fn claimed_by(&self, name: &ObjectName) -> BTreeSet<IpAddr> {
        let Some(pod) = self.pod(name).filter(|pod| !pod.terminated) else {
            return BTreeSet::new();
        };
        let mut addresses: BTreeSet<_> = pod.addresses.iter().copied().collect();
        for endpoint in self.current_endpoints(name) {
            if endpoint.claims_as_its_pod() {
                addresses.extend(&endpoint.addresses);
            }
        }
        addresses
    }

    /// Addresses that count as a pod's, or would if nobody else claimed them.
    pub(crate) fn addresses_of(&self, name: &ObjectName) -> BTreeSet<IpAddr> {
        let mut addresses = self.claimed_by(name);
        for endpoint in self.current_endpoints(name) {
            addresses.extend(&endpoint.addresses);
        }
        addresses
    }

    /// The endpoints for which the pod of this name counts as the cluster has it.
    fn current_endpoints(&self, name: &ObjectName) -> impl Iterator<Item = &LocalEndpoint> {
        let ifindexes = self.endpoints_of.get(name).into_iter().flatten();
        let endpoints = ifindexes.filter_map(|ifindex| self.endpoints.get(ifindex));
        endpoints.filter(|endpoint| endpoint.subject == Subject::Current)
    }

    /// The pod that an address counts for: the newest live one that claims it, else that of an endpoint which has it.
    pub(crate) fn owner(&self, address: &IpAddr) -> Option<&Pod> {
        if let Some(claimants) = self.contested.get(address) {
            return claimants
                .iter()
                .filter_map(|name| self.pod(name))
                .max_by_key(|pod| (pod.created, &pod.name));
        }
        match self.claims.get(address) {
            Some(name) => self.pod(name),
            None => self.subject(self.weak_owner(address)?),
        }
    }

    /// Of the endpoints that have an address which no live pod claims, the one that it counts for.
    fn weak_owner(&self, address: &IpAddr) -> Option<&LocalEndpoint> {
        let claimants = self.weak_claims.get(address)?.iter();
        let claimants = claimants.filter_map(|ifindex| {
            let endpoint = self.endpoints.get(ifindex)?;
            let pod = self.subject(endpoint).filter(|pod| !pod.terminated)?;
            Some((pod, endpoint))
        });
        claimants
            .max_by_key(|(pod, endpoint)| (pod.created, &pod.name, endpoint.ifindex))
            .map(|(_, endpoint)| endpoint)
    }

    /// An endpoint's addresses, without those that it must yield.
    pub(crate) fn own_addresses(&self, endpoint: &LocalEndpoint) -> Vec<IpAddr> {
        let mut addresses = endpoint.addresses.clone();
        if endpoint.yields_addresses() {
            addresses.retain(|address| self.has(endpoint, address));
        }
        addresses
    }

    /// Whether an address of an endpoint counts for the pod of the endpoint.
    fn has(&self, endpoint: &LocalEndpoint, address: &IpAddr) -> bool {
        let is_current = endpoint.subject == Subject::Current;
        if self.contested.contains_key(address) || self.claims.contains_key(address) {
            return is_current
                && self
                    .owner(address)
                    .is_some_and(|pod| pod.name == endpoint.pod);
        }
        self.weak_owner(address)
            .is_none_or(|owner| owner.pod == endpoint.pod && owner.subject == endpoint.subject)
    }

    /// Endpoints whose own addresses depend on who has an address.
    pub(crate) fn dependents(&self, address: &IpAddr) -> impl Iterator<Item = u32> {
        let ifindexes = self.weak_claims.get(address).into_iter().flatten();
        ifindexes.copied().filter(|ifindex| {
            let endpoint = self.endpoints.get(ifindex);
            endpoint.is_some_and(LocalEndpoint::yields_addresses)
        })
    }

    /// Claimed addresses within a range.
    pub(crate) fn claimed_within(
        &self,
        first: IpAddr,
        last: IpAddr,
    ) -> impl Iterator<Item = &IpAddr> {
        let weak = self.weak_claims.range(first..=last);
        let claims = self.claims.range(first..=last);
        claims
            .map(|(address, _)| address)
            .chain(weak.map(|(address, _)| address))
    }

    /// Addresses that more than one live pod claims, with those who claim them.
    pub(crate) fn conflicts(&self) -> impl Iterator<Item = (&IpAddr, &BTreeSet<ObjectName>)> {
        self.contested.iter()
    }

    /// Distinct numbers that live pods give a port name.
    pub(crate) fn numbers(&self, name: &PortName) -> impl Iterator<Item = u16> {
        self.numbers
            .get(name)
            .into_iter()
            .flat_map(|numbers| numbers.keys().copied())
    }

    fn set_namespace(&mut self, namespace: Namespace, dirty: &mut Dirty) {
        let Namespace { name, mut labels } = namespace;
        labels
            .entry(NAMESPACE_NAME.into())
            .or_insert_with(|| name.clone());
        if self.namespaces.get(&name) != Some(&labels) {
            self.namespaces.insert(name.clone(), labels);
            self.touch_namespace(&name, dirty);
        }
    }

    fn touch_namespace(&self, name: &str, dirty: &mut Dirty) {
        for pod in self.pods.get(name).into_iter().flat_map(BTreeMap::values) {
            dirty.addresses.extend(self.addresses_of(&pod.name));
        }
        for (pod, endpoint) in self.held() {
            if *pod.name.namespace == *name {
                dirty.addresses.extend(&endpoint.addresses);
            }
        }
    }

    fn set_pod(&mut self, name: ObjectName, pod: Option<Pod>, dirty: &mut Dirty) {
        if self.pod(&name) == pod.as_ref() {
            return;
        }
        let before = self.claimed_by(&name);
        let former = self.put_pod(&name, pod);
        let after = self.claimed_by(&name);
        self.claim(&name, &before, &after);
        dirty.addresses.extend(before);
        dirty.addresses.extend(after);
        for endpoint in self.current_endpoints(&name) {
            dirty.endpoints.insert(endpoint.ifindex);
            dirty.addresses.extend(&endpoint.addresses);
        }
        let current = self.pod(&name).cloned();
        self.count_ports(former.as_ref(), current.as_ref(), dirty);
    }

    fn put_pod(&mut self, name: &ObjectName, pod: Option<Pod>) -> Option<Pod> {
        let Some(pod) = pod else {
            let pods = self.pods.get_mut(&name.namespace)?;
            let former = pods.remove(&name.name);
            if pods.is_empty() {
                self.pods.remove(&name.namespace);
            }
            return former;
        };
        let pods = self.pods.entry(name.namespace.clone()).or_default();
        pods.insert(name.name.clone(), pod)
    }

    /// Counts the named ports of one pod in place of another's.
    fn count_ports(&mut self, former: Option<&Pod>, current: Option<&Pod>, dirty: &mut Dirty) {
        if let Some(pod) = current.filter(|pod| !pod.terminated) {
            for port in &*pod.ports {
                let key = (port.name.clone(), port.protocol);
                let numbers = self.numbers.entry(key.clone()).or_default();
                let count = numbers.entry(port.port).or_default();
                *count += 1;
                if *count == 1 {
                    dirty.names.insert(key);
                }
            }
        }
        if let Some(pod) = former.filter(|pod| !pod.terminated) {
            for port in &*pod.ports {
                let key = (port.name.clone(), port.protocol);
                let Some(numbers) = self.numbers.get_mut(&key) else {
                    continue;
                };
                if let Some(count) = numbers.get_mut(&port.port) {
                    *count -= 1;
                    if *count == 0 {
                        numbers.remove(&port.port);
                        dirty.names.insert(key.clone());
                    }
                }
                if numbers.is_empty() {
                    self.numbers.remove(&key);
                }
            }
        }
    }

    fn set_policy(&mut self, name: &ObjectName, policy: Option<NetworkPolicy>, dirty: &mut Dirty) {
        let policies = self.policies.entry(name.namespace.clone()).or_default();
        let former = match policy {
            Some(policy) => policies.insert(name.name.clone(), policy),
            None => policies.remove(&name.name),
        };
        let current = policies.get(&name.name);
        if former.as_ref() != current {
            for (ifindex, endpoint) in &self.endpoints {
                if endpoint.pod.namespace == name.namespace
                    && let Some(pod) = match &endpoint.subject {
                        // Not `subject`: what else is in `self` is borrowed.
                        Subject::Current => self
                            .pods
                            .get(&name.namespace)
                            .and_then(|pods| pods.get(&endpoint.pod.name)),
                        Subject::Held(pod) => Some(&**pod),
                        Subject::Unknown => None,
                    }
                    && [former.as_ref(), current]
                        .into_iter()
                        .flatten()
                        .any(|policy| policy.subjects.matches(&pod.labels))
                {
                    dirty.endpoints.insert(*ifindex);
                }
            }
        }
        if policies.is_empty() {
            self.policies.remove(&name.namespace);
        }
    }

    fn set_endpoint(&mut self, ifindex: u32, endpoint: Option<LocalEndpoint>, dirty: &mut Dirty) {
        let former = self.endpoints.get(&ifindex);
        if former == endpoint.as_ref() {
            return;
        }
        let former = former.cloned();
        let former_pod = former.as_ref().map(|former| former.pod.clone());
        let pod = endpoint.as_ref().map(|endpoint| endpoint.pod.clone());
        let touched: BTreeSet<_> = former_pod.iter().chain(&pod).cloned().collect();
        let before: Vec<_> = touched
            .iter()
            .map(|name| (name.clone(), self.claimed_by(name)))
            .collect();
        if let Some(name) = &former_pod
            && let Some(endpoints) = self.endpoints_of.get_mut(name)
        {
            endpoints.remove(&ifindex);
            if endpoints.is_empty() {
                self.endpoints_of.remove(name);
            }
        }
        if let Some(former) = &former {
            self.unclaim_weakly(former);
            dirty.addresses.extend(&former.addresses);
        }
        let held = endpoint.as_ref().and_then(held_pod).cloned();
        if let Some(endpoint) = &endpoint {
            self.claim_weakly(endpoint);
            dirty.addresses.extend(&endpoint.addresses);
        }
        self.count_ports(former.as_ref().and_then(held_pod), held.as_ref(), dirty);
        match (endpoint, &pod) {
            (Some(endpoint), Some(name)) => {
                let endpoints = self.endpoints_of.entry(name.clone()).or_default();
                endpoints.insert(ifindex);
                self.endpoints.insert(ifindex, endpoint);
            }
            _ => drop(self.endpoints.remove(&ifindex)),
        }
        for (name, before) in before {
            let after = self.claimed_by(&name);
            self.claim(&name, &before, &after);
            dirty
                .addresses
                .extend(before.symmetric_difference(&after).copied());
        }
        if former_pod.is_some() && former_pod != pod {
            dirty.ended.insert(ifindex);
        }
        dirty.endpoints.insert(ifindex);
    }

    fn claim_weakly(&mut self, endpoint: &LocalEndpoint) {
        if endpoint.claims_as_its_pod() {
            return;
        }
        for address in &endpoint.addresses {
            let claimants = self.weak_claims.entry(*address).or_default();
            claimants.insert(endpoint.ifindex);
        }
    }

    fn unclaim_weakly(&mut self, endpoint: &LocalEndpoint) {
        for address in &endpoint.addresses {
            if let Some(claimants) = self.weak_claims.get_mut(address) {
                claimants.remove(&endpoint.ifindex);
                if claimants.is_empty() {
                    self.weak_claims.remove(address);
                }
            }
        }
    }

    fn claim(&mut self, name: &ObjectName, before: &BTreeSet<IpAddr>, after: &BTreeSet<IpAddr>) {
        for address in before.difference(after) {
            self.unclaim(name, address);
        }
        for address in after.difference(before) {
            match self.claims.entry(*address) {
                Entry::Vacant(free) => drop(free.insert(name.clone())),
                Entry::Occupied(first) => {
                    let claimants = self.contested.entry(*address).or_default();
                    claimants.insert(first.get().clone());
                    claimants.insert(name.clone());
                }
            }
        }
    }

    fn unclaim(&mut self, name: &ObjectName, address: &IpAddr) {
        let Some(claimants) = self.contested.get_mut(address) else {
            self.claims.remove(address);
            return;
        };
        claimants.remove(name);
        if let Some(left) = claimants.first() {
            self.claims.insert(*address, left.clone());
        }
        if claimants.len() < 2 {
            self.contested.remove(address);
        }
    }
}

/// The pod that is held for an endpoint.
fn held_pod(endpoint: &LocalEndpoint) -> Option<&Pod> {
    match &endpoint.subject {
        Subject::Held(pod) => Some(pod),
        Subject::Current | Subject::Unknown => None,
    }
}
