//! The pods of this node and their addresses.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use policy_cni::api::PodReference;
use policy_core::model::{ObjectName, Pod};

use super::Interface;

/// The pods of this node, those on the host's network aside.
#[derive(Debug)]
pub struct LocalPods {
    node: Arc<str>,
    pods: HashMap<ObjectName, Claim>,
    owners: HashMap<IpAddr, BTreeSet<(i64, ObjectName)>>,
}

#[derive(Debug)]
struct Claim {
    pod: Arc<Pod>,
}

impl Claim {
    /// Whether it is the pod that the kubelet means. Not every runtime or datastore has uids.
    fn is_of(&self, pod: &PodReference) -> bool {
        let uid = &self.pod.uid;
        uid.is_empty() || pod.uid.is_empty() || **uid == *pod.uid
    }

    /// The addresses that it owns; a pod that has ended owns none.
    fn addresses(&self) -> &[IpAddr] {
        if self.pod.terminated {
            &[]
        } else {
            &self.pod.addresses
        }
    }
}

impl LocalPods {
    /// No pods yet, on the node of this name.
    #[must_use]
    pub fn new(node: Arc<str>) -> Self {
        Self {
            node,
            pods: HashMap::new(),
            owners: HashMap::new(),
        }
    }

    /// A pod was added or changed. `node` is where it is bound; unbound pods count as ours, since
    /// an address on an interface of this node is proof enough.
    pub fn put(&mut self, pod: &Pod, node: Option<&str>) {
        self.remove(&pod.name);
        if node.is_some_and(|node| node != &*self.node) {
            return;
        }
        let claim = Claim {
            pod: Arc::new(pod.clone()),
        };
        for address in claim.addresses() {
            let claims = self.owners.entry(*address).or_default();
            claims.insert((pod.created, pod.name.clone()));
        }
        self.pods.insert(pod.name.clone(), claim);
    }

    /// A pod is gone, or became a host-network pod.
    pub fn remove(&mut self, name: &ObjectName) {
        let Some(claim) = self.pods.remove(name) else {
            return;
        };
        for address in claim.addresses() {
            if let Some(claims) = self.owners.get_mut(address) {
                claims.remove(&(claim.pod.created, name.clone()));
                if claims.is_empty() {
                    self.owners.remove(address);
                }
            }
        }
    }

    /// The pods that claim addresses of `interface`, each the newest that claims one, with those addresses.
    #[must_use]
    pub fn claimants(&self, interface: &Interface) -> BTreeMap<&ObjectName, Vec<IpAddr>> {
        let mut claimants: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for address in &interface.addresses {
            if let Some(name) = self.owner(address) {
                claimants.entry(name).or_default().push(*address);
            }
        }
        claimants
    }

    /// The newest live pod that claims an address.
    #[must_use]
    pub fn owner(&self, address: &IpAddr) -> Option<&ObjectName> {
        self.owners.get(address)?.last().map(|(_, name)| name)
    }

    /// A pod of this node by its name.
    #[must_use]
    pub fn named(&self, name: &ObjectName) -> Option<&Arc<Pod>> {
        self.pods.get(name).map(|claim| &claim.pod)
    }

    /// The pod that the kubelet means, as the datastore has it.
    #[must_use]
    pub fn current(&self, pod: &PodReference) -> Option<&Arc<Pod>> {
        let claim = self.pods.get(&ObjectName::new(&pod.namespace, &pod.name))?;
        claim.is_of(pod).then_some(&claim.pod)
    }

    /// Whether the pod that the kubelet means is known, and has not ended.
    #[must_use]
    pub fn knows(&self, pod: &PodReference) -> bool {
        self.current(pod).is_some_and(|pod| !pod.terminated)
    }

    /// Pods of this node that have no address yet, sorted.
    #[must_use]
    pub fn without_address(&self) -> Vec<ObjectName> {
        let mut names: Vec<_> = self
            .pods
            .iter()
            .filter(|(_, claim)| !claim.pod.terminated && claim.pod.addresses.is_empty())
            .map(|(name, _)| name.clone())
            .collect();
        names.sort();
        names
    }

    /// Pods of this node that have an address, sorted.
    #[must_use]
    pub fn with_address(&self) -> Vec<ObjectName> {
        let mut names: Vec<_> = self
            .pods
            .iter()
            .filter(|(_, claim)| !claim.addresses().is_empty())
            .map(|(name, _)| name.clone())
            .collect();
        names.sort();
        names
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::endpoint::Peer;

    fn pod(name: &str, created: i64, addresses: &[&str]) -> Pod {
        Pod {
            name: ObjectName::new("shop", name),
            labels: Default::default(),
            addresses: addresses
                .iter()
                .map(|a| a.parse().expect("address"))
                .collect(),
            ports: Default::default(),
            terminated: false,
            created,
            uid: "".into(),
        }
    }

    fn interface(addresses: &[&str]) -> Interface {
        Interface {
            ifindex: 7,
            name: "veth7".into(),
            hardware_address: Vec::new(),
            master: 0,
            peer: Peer {
                netns: 0,
                ifindex: 2,
                name: "eth0".into(),
            },
            addresses: addresses
                .iter()
                .map(|a| a.parse().expect("address"))
                .collect(),
            link_local: Vec::new(),
        }
    }

    #[test]
    fn the_newest_live_local_pod_owns_an_address() {
        let mut pods = LocalPods::new("n1".into());
        let owner = |pods: &LocalPods| {
            let owner = pods.owner(&[10, 0, 0, 5].into());
            owner.map(|name| name.name.to_string())
        };
        assert_eq!(owner(&pods), None);
        pods.put(&pod("a", 10, &["10.0.0.5"]), None);
        pods.put(&pod("b", 20, &["10.0.0.5"]), Some("n1"));
        pods.put(&pod("c", 30, &["10.0.0.5"]), Some("n2"));
        assert_eq!(owner(&pods).as_deref(), Some("b"));
        let mut done = pod("b", 20, &["10.0.0.5"]);
        done.terminated = true;
        pods.put(&done, Some("n1"));
        assert_eq!(owner(&pods).as_deref(), Some("a"));
        pods.put(&pod("a", 10, &["10.0.0.6"]), None);
        assert_eq!(owner(&pods), None);
        for name in ["a", "b"] {
            pods.remove(&ObjectName::new("shop", name));
        }
        assert!(pods.owners.is_empty() && pods.pods.is_empty());
    }

    #[test]
    fn an_interface_may_bear_addresses_of_several_pods() {
        let mut pods = LocalPods::new("n1".into());
        pods.put(&pod("a", 1, &["10.0.0.5"]), None);
        pods.put(&pod("b", 2, &["10.0.0.4", "10.0.0.6"]), None);
        let interface = interface(&["10.0.0.4", "10.0.0.5", "10.0.0.6", "10.0.0.7"]);
        let claimants = pods.claimants(&interface);
        let claimants: Vec<_> = claimants
            .into_iter()
            .map(|(name, addresses)| (&*name.name, addresses.len()))
            .collect();
        assert_eq!(claimants, [("a", 1), ("b", 2)]);
    }

    #[test]
    fn a_pod_of_the_same_name_is_another_pod() {
        let mut pods = LocalPods::new("n1".into());
        let meant = |uid: &str| PodReference {
            namespace: "shop".to_owned(),
            name: "a".to_owned(),
            uid: uid.to_owned(),
        };
        assert!(!pods.knows(&meant("u1")));
        let mut current = pod("a", 1, &[]);
        current.uid = "u2".into();
        pods.put(&current, None);
        assert!(!pods.knows(&meant("u1")) && pods.knows(&meant("u2")) && pods.knows(&meant("")));
        assert!(pods.current(&meant("u1")).is_none());
        current.terminated = true;
        pods.put(&current, None);
        assert!(!pods.knows(&meant("u2")) && pods.current(&meant("u2")).is_some());
        pods.put(&pod("a", 1, &[]), None);
        assert!(pods.knows(&meant("u1")), "a datastore without uids");
    }

    #[test]
    fn pods_without_address_are_listed() {
        let mut pods = LocalPods::new("n1".into());
        pods.put(&pod("a", 1, &[]), None);
        pods.put(&pod("b", 1, &["10.0.0.5"]), None);
        assert_eq!(pods.without_address(), [ObjectName::new("shop", "a")]);
        assert_eq!(pods.with_address(), [ObjectName::new("shop", "b")]);
    }
}
