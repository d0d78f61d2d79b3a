//! The pods of this node and their addresses.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use policy_cni::api::PodReference;
use policy_core::model::{ObjectName, Pod};

use super::Interface;

/// The live, non-host-network pods of this node.
#[derive(Debug)]
pub struct LocalPods {
    node: Arc<str>,
    pods: HashMap<ObjectName, Claim>,
    owners: HashMap<IpAddr, BTreeSet<(i64, ObjectName)>>,
}

#[derive(Debug)]
struct Claim {
    created: i64,
    addresses: Vec<IpAddr>,
    uid: Arc<str>,
}

impl Claim {
    /// Whether it is the pod that the kubelet means. Not every runtime or datastore has uids.
    fn is_of(&self, pod: &PodReference) -> bool {
        self.uid.is_empty() || pod.uid.is_empty() || *self.uid == *pod.uid
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
        if pod.terminated || node.is_some_and(|node| node != &*self.node) {
            return;
        }
        for address in &pod.addresses {
            let claims = self.owners.entry(*address).or_default();
            claims.insert((pod.created, pod.name.clone()));
        }
        let claim = Claim {
            created: pod.created,
            addresses: pod.addresses.clone(),
            uid: pod.uid.clone(),
        };
        self.pods.insert(pod.name.clone(), claim);
    }

    /// A pod is gone, or became a host-network pod.
    pub fn remove(&mut self, name: &ObjectName) {
        let Some(claim) = self.pods.remove(name) else {
            return;
        };
        for address in claim.addresses {
            if let Some(claims) = self.owners.get_mut(&address) {
                claims.remove(&(claim.created, name.clone()));
                if claims.is_empty() {
                    self.owners.remove(&address);
                }
            }
        }
    }

    /// The pod that `interface` belongs to: the newest that claims one of its addresses.
    #[must_use]
    pub fn pod_of(&self, interface: &Interface) -> Option<&ObjectName> {
        interface
            .addresses
            .iter()
            .find_map(|address| self.owner(address))
    }

    /// `interface`'s addresses, those of the pod first.
    #[must_use]
    pub fn addresses_of(&self, pod: &ObjectName, interface: &Interface) -> Vec<IpAddr> {
        let own = |address: &&IpAddr| self.owner(address) == Some(pod);
        let first = interface.addresses.iter().filter(own);
        let rest = interface.addresses.iter().filter(|address| !own(address));
        first.chain(rest).copied().collect()
    }

    /// Those of `interface`'s addresses that the datastore says are the pod's.
    pub fn claimed(&self, pod: &ObjectName, interface: &Interface) -> impl Iterator<Item = IpAddr> {
        let claimed = self.pods.get(pod).map(|claim| &claim.addresses);
        let claimed = claimed.into_iter().flatten().copied();
        claimed.filter(|address| interface.addresses.contains(address))
    }

    /// Whether the pod that the kubelet means is known.
    #[must_use]
    pub fn knows(&self, pod: &PodReference) -> bool {
        let name = ObjectName::new(&pod.namespace, &pod.name);
        self.pods.get(&name).is_some_and(|claim| claim.is_of(pod))
    }

    /// What the pod that the kubelet means is to be called. Where its name is another pod's by now, it
    /// gets one that no pod can have: no policy is known to be about it, so it is denied everything.
    #[must_use]
    pub fn name_of(&self, pod: &PodReference) -> ObjectName {
        let name = ObjectName::new(&pod.namespace, &pod.name);
        match self.pods.get(&name) {
            Some(claim) if !claim.is_of(pod) => {
                ObjectName::new(&pod.namespace, &format!("{} (uid {})", pod.name, pod.uid))
            }
            _ => name,
        }
    }

    /// Pods of this node that have no address yet, sorted.
    #[must_use]
    pub fn without_address(&self) -> Vec<ObjectName> {
        let mut names: Vec<_> = self
            .pods
            .iter()
            .filter(|(_, claim)| claim.addresses.is_empty())
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
            .filter(|(_, claim)| !claim.addresses.is_empty())
            .map(|(name, _)| name.clone())
            .collect();
        names.sort();
        names
    }

    fn owner(&self, address: &IpAddr) -> Option<&ObjectName> {
        self.owners.get(address)?.last().map(|(_, name)| name)
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
        }
    }

    #[test]
    fn the_newest_live_local_pod_owns_an_address() {
        let mut pods = LocalPods::new("n1".into());
        let owner = |pods: &LocalPods| {
            pods.pod_of(&interface(&["10.0.0.5"]))
                .map(|name| name.name.to_string())
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
        pods.remove(&ObjectName::new("shop", "a"));
        assert!(pods.owners.is_empty() && pods.pods.is_empty());
    }

    #[test]
    fn the_pods_own_addresses_come_first() {
        let mut pods = LocalPods::new("n1".into());
        pods.put(&pod("a", 1, &["10.0.0.5"]), None);
        let interface = interface(&["10.0.0.4", "10.0.0.5"]);
        let addresses = pods.addresses_of(&ObjectName::new("shop", "a"), &interface);
        assert_eq!(
            addresses,
            [
                "10.0.0.5".parse::<IpAddr>().expect("v4"),
                "10.0.0.4".parse().expect("v4")
            ]
        );
        assert_eq!(pods.pod_of(&interface).map(|p| &*p.name), Some("a"));
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
        assert_eq!(&*pods.name_of(&meant("u1")).name, "a");
        let mut current = pod("a", 1, &[]);
        current.uid = "u2".into();
        pods.put(&current, None);
        assert!(!pods.knows(&meant("u1")) && pods.knows(&meant("u2")) && pods.knows(&meant("")));
        assert_eq!(&*pods.name_of(&meant("u1")).name, "a (uid u1)");
        assert_eq!(&*pods.name_of(&meant("u2")).name, "a");
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
