//! The cluster's objects as last told, and what each change of them touches.

use std::borrow::Cow;
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use crate::model::{
    Change, Labels, LocalEndpoint, Namespace, NetworkPolicy, ObjectName, Pod, Protocol,
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

    /// Addresses that a pod claims, by its status and by its interfaces on this node.
    pub(crate) fn claimed_by(&self, name: &ObjectName) -> BTreeSet<IpAddr> {
        let Some(pod) = self.pod(name).filter(|pod| !pod.terminated) else {
            return BTreeSet::new();
        };
        let mut addresses: BTreeSet<_> = pod.addresses.iter().copied().collect();
        for ifindex in self.endpoints_of.get(name).into_iter().flatten() {
            if let Some(endpoint) = self.endpoints.get(ifindex) {
                addresses.extend(&endpoint.addresses);
            }
        }
        addresses
    }

    /// The newest live pod that claims an address.
    pub(crate) fn owner(&self, address: &IpAddr) -> Option<&Pod> {
        let Some(claimants) = self.contested.get(address) else {
            return self.pod(self.claims.get(address)?);
        };
        claimants
            .iter()
            .filter_map(|name| self.pod(name))
            .max_by_key(|pod| (pod.created, &pod.name))
    }

    /// Claimed addresses within a range.
    pub(crate) fn claimed_within(
        &self,
        first: IpAddr,
        last: IpAddr,
    ) -> impl Iterator<Item = &IpAddr> {
        self.claims.range(first..=last).map(|(address, _)| address)
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
            dirty.addresses.extend(self.claimed_by(&pod.name));
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
        let endpoints = self.endpoints_of.get(&name).into_iter().flatten();
        dirty.endpoints.extend(endpoints);
        self.count_ports(former.as_ref(), &name, dirty);
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

    fn count_ports(&mut self, former: Option<&Pod>, name: &ObjectName, dirty: &mut Dirty) {
        let current = self.pods.get(&name.namespace);
        let current = current.and_then(|pods| pods.get(&name.name));
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
                    && let Some(pod) = self
                        .pods
                        .get(&name.namespace)
                        .and_then(|pods| pods.get(&endpoint.pod.name))
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
        let former_pod = former.map(|former| former.pod.clone());
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
