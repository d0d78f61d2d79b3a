//! Which device is which pod's, for as long as there is the device.
//!
//! A pod with NET_ADMIN gives its interfaces whatever addresses and names it likes, deletes some of them, and moves
//! others to network namespaces of its own; and its object may go from the API before its processes end. None of it
//! changes whose a device is. That is decided once, by what announced it, by the addresses that it bears when it is
//! first seen, or by the network namespace that it leads to, and written down for the agent's successor.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use policy_cni::api::PodReference;
use policy_core::model::{ObjectName, Origin, Pod, Subject};
use serde::{Deserialize, Serialize};

use super::known_pod;
use super::{Announced, Device, Interface, LocalPods, Scan};

/// How a device was found to be a pod's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Evidence {
    /// The CNI plugin announced it.
    Announced,
    /// It bore an address of the pod when it was first seen.
    Address,
    /// It leads to the network namespace of another device of the pod.
    Namespace,
}

/// A device that is a pod's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Binding {
    /// The device.
    pub device: Device,
    /// Name of the host side, as last seen.
    pub host_interface: String,
    /// Name of the pod's side, as last seen.
    pub interface: String,
    /// The pod.
    pub pod: PodReference,
    /// Why it is the pod's.
    pub evidence: Evidence,
    /// The addresses that are its own.
    pub addresses: Vec<IpAddr>,
    /// The plugin said that it is about to go: its addresses may be another pod's.
    pub released: bool,
    /// The pod, as it was last known.
    #[serde(with = "known_pod")]
    pub known: Option<Arc<Pod>>,
}

impl Binding {
    fn new(found: &Interface, pod: PodReference, evidence: Evidence) -> Self {
        Self {
            device: Device::of(found),
            host_interface: found.name.clone(),
            interface: found.peer.name.clone(),
            pod,
            evidence,
            addresses: Vec::new(),
            released: false,
            known: None,
        }
    }

    /// The pod's namespace and name.
    #[must_use]
    pub fn pod_name(&self) -> ObjectName {
        ObjectName::new(&self.pod.namespace, &self.pod.name)
    }

    /// The pod whose labels and ports count for it.
    #[must_use]
    pub fn subject(&self, pods: &LocalPods) -> Subject {
        match (&pods.current(&self.pod), &self.known) {
            (Some(_), _) => Subject::Current,
            (None, Some(known)) => Subject::Held(known.clone()),
            (None, None) => Subject::Unknown,
        }
    }

    /// The same in the compiler's terms.
    #[must_use]
    pub fn origin(&self) -> Origin {
        match self.evidence {
            Evidence::Announced => Origin::Announced,
            Evidence::Address => Origin::Found,
            Evidence::Namespace => Origin::Secondary,
        }
    }

    fn is_of(&self, pod: &PodReference) -> bool {
        let same_name = (&self.pod.namespace, &self.pod.name) == (&pod.namespace, &pod.name);
        same_name && (self.pod.uid.is_empty() || pod.uid.is_empty() || self.pod.uid == pod.uid)
    }
}

/// What becomes of a pod's further interfaces.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Secondaries {
    /// They are the pod's endpoints, too.
    #[default]
    Enforce,
    /// They are only named.
    Report,
}

/// A pod's further interface that is no endpoint, because it is only to be named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unenforced {
    /// Index of the host side.
    pub ifindex: u32,
    /// Name of the host side.
    pub host_interface: String,
    /// Name of the pod's side.
    pub interface: String,
    /// The pod.
    pub pod: ObjectName,
}

/// All devices that are pods'.
#[derive(Debug, Default)]
pub struct Bindings {
    bindings: BTreeMap<u32, Binding>,
    unenforced: Vec<Unenforced>,
    /// Changed since the last [`Bindings::take_changed`].
    changed: BTreeSet<u32>,
}

impl Bindings {
    /// Takes over a binding that an earlier agent wrote down.
    pub fn adopt(&mut self, binding: Binding) {
        self.bindings.insert(binding.device.ifindex, binding);
    }

    /// The binding of a host-side index.
    #[must_use]
    pub fn get(&self, ifindex: u32) -> Option<&Binding> {
        self.bindings.get(&ifindex)
    }

    /// All of them, by host-side index.
    pub fn iter(&self) -> impl Iterator<Item = &Binding> {
        self.bindings.values()
    }

    /// Pods' further interfaces that are only named.
    #[must_use]
    pub fn unenforced(&self) -> &[Unenforced] {
        &self.unenforced
    }

    /// Host-side indexes of bindings that came, changed or went since the last call.
    pub fn take_changed(&mut self) -> BTreeSet<u32> {
        std::mem::take(&mut self.changed)
    }

    /// Could not be written down, and is to be tried again.
    pub fn retry(&mut self, ifindex: u32) {
        self.changed.insert(ifindex);
    }

    /// The plugin said that a device is about to go. Until it does, it stays the pod's, without addresses.
    pub fn release(&mut self, ifindex: u32) {
        if let Some(binding) = self.bindings.get_mut(&ifindex) {
            binding.released = true;
            binding.addresses.clear();
            self.changed.insert(ifindex);
        }
    }

    /// Follows what was found, announced and read. `is_reserved` says of an address that it is this node's or a Service's.
    pub fn follow(
        &mut self,
        scan: &Scan,
        announced: &Announced,
        pods: &LocalPods,
        secondaries: Secondaries,
        is_reserved: impl Fn(&IpAddr) -> bool,
    ) {
        self.follow_devices(scan, secondaries);
        self.bind_announced(scan, announced);
        self.bind_found(scan, pods, &is_reserved);
        self.bind_secondary(scan, secondaries);
        self.correct(pods);
        self.learn(scan, pods);
        self.give_addresses(scan, is_reserved);
    }

    /// Lets go of devices that are gone, and follows those whose other side was moved or renamed.
    fn follow_devices(&mut self, scan: &Scan, secondaries: Secondaries) {
        let changed = &mut self.changed;
        self.bindings.retain(|ifindex, binding| {
            let only_named =
                binding.evidence == Evidence::Namespace && secondaries == Secondaries::Report;
            if only_named || scan.is_gone(&binding.device) {
                changed.insert(*ifindex);
                return false;
            }
            if let Some(found) = scan.interfaces.get(ifindex) {
                let device = Device::of(found);
                if (&binding.device, &binding.host_interface, &binding.interface)
                    != (&device, &found.name, &found.peer.name)
                {
                    binding.device = device;
                    binding.host_interface.clone_from(&found.name);
                    binding.interface.clone_from(&found.peer.name);
                    changed.insert(*ifindex);
                }
            }
            true
        });
    }

    fn put(&mut self, binding: Binding) {
        let ifindex = binding.device.ifindex;
        self.changed.insert(ifindex);
        self.bindings.insert(ifindex, binding);
    }

    fn bind_announced(&mut self, scan: &Scan, announced: &Announced) {
        for announcement in announced.iter() {
            let Some(device) = &announcement.device else {
                continue;
            };
            let said = &announcement.attachment;
            let former = self.bindings.get(&device.ifindex);
            let former = former.filter(|former| former.is_of(&said.pod));
            if let Some(former) = former
                && former.evidence == Evidence::Announced
                && !former.released
                && said
                    .addresses
                    .iter()
                    .all(|address| former.addresses.contains(address))
            {
                continue;
            }
            let mut binding = match (scan.interfaces.get(&device.ifindex), former) {
                (Some(found), _) => Binding::new(found, said.pod.clone(), Evidence::Announced),
                // Its other side cannot be looked at.
                (None, former) => Binding {
                    device: device.clone(),
                    host_interface: said.host_interfaces.first().cloned().unwrap_or_default(),
                    interface: said.key.ifname.clone(),
                    pod: said.pod.clone(),
                    evidence: Evidence::Announced,
                    addresses: Vec::new(),
                    released: false,
                    known: former.and_then(|former| former.known.clone()),
                },
            };
            binding.known = former.and_then(|former| former.known.clone());
            binding.addresses.clone_from(&said.addresses);
            self.put(binding);
        }
    }

    /// The devices of each network namespace that one of a pod leads to: the first of each.
    fn by_netns(&self) -> BTreeMap<i32, u32> {
        let mut by_netns = BTreeMap::new();
        for (ifindex, binding) in self.bindings.iter().rev() {
            by_netns.insert(binding.device.netns, *ifindex);
        }
        by_netns
    }

    /// Interfaces that are nobody's yet.
    fn unbound<'a>(&self, scan: &'a Scan) -> Vec<&'a Interface> {
        let interfaces = scan.interfaces.values();
        interfaces
            .filter(|found| !self.bindings.contains_key(&found.ifindex))
            .collect()
    }

    /// Binds interfaces that bear an address of a pod. An address that is another device's proves nothing, unless
    /// there is nothing else to go by: a pod's former sandbox may live for some time beside its next one.
    fn bind_found(
        &mut self,
        scan: &Scan,
        pods: &LocalPods,
        is_reserved: &impl Fn(&IpAddr) -> bool,
    ) {
        let mut taken: BTreeSet<IpAddr> = self
            .bindings
            .values()
            .flat_map(|binding| binding.addresses.iter().copied())
            .collect();
        let mut unbound = self.unbound(scan);
        // Those first of which there is one pod only, then those that have a choice, then all others.
        for (is_sole, is_free) in [(true, true), (false, true), (false, false)] {
            let mut left = Vec::new();
            for found in unbound {
                if self.by_netns().contains_key(&found.peer.netns) {
                    continue;
                }
                let claimants = pods.claimants(found);
                let chosen = claimants.iter().find(|(_, addresses)| {
                    !is_free || addresses.iter().all(|address| !taken.contains(address))
                });
                let Some((name, claimed)) = chosen.filter(|_| !is_sole || claimants.len() == 1)
                else {
                    left.push(found);
                    continue;
                };
                if !is_free {
                    tracing::warn!(
                        pod = %name, interface = found.name, addresses = ?claimed,
                        "two interfaces bear an address of one pod; both are taken for the pod's"
                    );
                }
                let pod = pods.named(name);
                let pod = PodReference {
                    namespace: name.namespace.to_string(),
                    name: name.name.to_string(),
                    uid: pod.map(|pod| pod.uid.to_string()).unwrap_or_default(),
                };
                let mut binding = Binding::new(found, pod, Evidence::Address);
                binding.addresses.clone_from(claimed);
                // Such as one of IPv6 that the interface made for itself.
                let others = found.addresses.iter().copied().filter(|address| {
                    pods.owner(address).is_none()
                        && !taken.contains(address)
                        && !is_reserved(address)
                });
                binding.addresses.extend(others);
                taken.extend(&binding.addresses);
                self.put(binding);
            }
            unbound = left;
        }
    }

    /// Binds what leads to a network namespace of a pod.
    fn bind_secondary(&mut self, scan: &Scan, secondaries: Secondaries) {
        self.unenforced.clear();
        let by_netns = self.by_netns();
        for found in self.unbound(scan) {
            let Some(first) = by_netns
                .get(&found.peer.netns)
                .and_then(|ifindex| self.bindings.get(ifindex))
            else {
                continue;
            };
            match secondaries {
                Secondaries::Enforce => {
                    let mut binding = Binding::new(found, first.pod.clone(), Evidence::Namespace);
                    binding.known.clone_from(&first.known);
                    self.put(binding);
                }
                Secondaries::Report => self.unenforced.push(Unenforced {
                    ifindex: found.ifindex,
                    host_interface: found.name.clone(),
                    interface: found.peer.name.clone(),
                    pod: first.pod_name(),
                }),
            }
        }
    }

    /// Takes back what a stale status led to: an address was claimed by two pods when the device was bound, and the newer
    /// one, which got it, does not claim it any more. Only the API counts here, not what the interface bears by now.
    fn correct(&mut self, pods: &LocalPods) {
        let mut corrected = Vec::new();
        for (ifindex, binding) in &self.bindings {
            if binding.evidence != Evidence::Address {
                continue;
            }
            let Some(known) = &binding.known else {
                continue;
            };
            let current = pods.current(&binding.pod);
            let still_claims = current.is_some_and(|pod| {
                let addresses = &binding.addresses;
                addresses
                    .iter()
                    .any(|address| pod.addresses.contains(address))
            });
            if still_claims {
                continue;
            }
            let owner = binding
                .addresses
                .iter()
                .filter_map(|address| pods.named(pods.owner(address)?))
                .find(|owner| owner.created <= known.created && owner.name != known.name);
            let Some(owner) = owner else { continue };
            if self.bindings.values().any(|other| {
                other.evidence != Evidence::Namespace && other.pod_name() == owner.name
            }) {
                continue;
            }
            corrected.push((*ifindex, owner.clone()));
        }
        for (ifindex, owner) in corrected {
            let Some(binding) = self.bindings.get_mut(&ifindex) else {
                continue;
            };
            tracing::warn!(
                interface = binding.host_interface, was = %binding.pod_name(), is = %owner.name,
                "two pods claimed the address of an interface, and the one that it was taken for has another address now"
            );
            binding.pod = PodReference {
                namespace: owner.name.namespace.to_string(),
                name: owner.name.name.to_string(),
                uid: owner.uid.to_string(),
            };
            binding.known = None;
            self.changed.insert(ifindex);
        }
    }

    /// Remembers the pods as they are now, and their addresses as far as the interfaces bear them.
    fn learn(&mut self, scan: &Scan, pods: &LocalPods) {
        for (ifindex, binding) in &mut self.bindings {
            let Some(pod) = pods.current(&binding.pod) else {
                continue;
            };
            if binding.known.as_ref() != Some(pod) {
                binding.known = Some(pod.clone());
                self.changed.insert(*ifindex);
            }
            if binding.evidence == Evidence::Address && *binding.pod.uid != *pod.uid {
                binding.pod.uid = pod.uid.to_string();
                self.changed.insert(*ifindex);
            }
            if binding.evidence == Evidence::Namespace || binding.released || pod.terminated {
                continue;
            }
            let Some(found) = scan.interfaces.get(ifindex) else {
                continue;
            };
            for address in &pod.addresses {
                if found.addresses.contains(address)
                    && !binding.addresses.contains(address)
                    && pods.owner(address) == Some(&pod.name)
                {
                    binding.addresses.push(*address);
                    self.changed.insert(*ifindex);
                }
            }
        }
    }

    /// Gives further interfaces the addresses that they bear, as far as nobody else has them. Whoever has an address
    /// keeps it.
    fn give_addresses(&mut self, scan: &Scan, is_reserved: impl Fn(&IpAddr) -> bool) {
        let is_secondary = |binding: &&mut Binding| binding.evidence == Evidence::Namespace;
        let mut taken: BTreeSet<IpAddr> = self
            .bindings
            .values()
            .filter(|binding| binding.evidence != Evidence::Namespace)
            .flat_map(|binding| binding.addresses.iter().copied())
            .collect();
        let mut given: BTreeMap<u32, Vec<IpAddr>> = BTreeMap::new();
        for binding in self.bindings.values_mut().filter(|b| is_secondary(b)) {
            let ifindex = binding.device.ifindex;
            let mut kept = binding.addresses.clone();
            if let Some(found) = scan.interfaces.get(&ifindex) {
                kept.retain(|address| {
                    found.addresses.contains(address) || found.link_local.contains(address)
                });
            }
            kept.retain(|address| !is_reserved(address) && taken.insert(*address));
            given.insert(ifindex, kept);
        }
        for (ifindex, mut addresses) in given {
            let Some(binding) = self.bindings.get_mut(&ifindex) else {
                continue;
            };
            if let Some(found) = scan.interfaces.get(&ifindex) {
                let borne = found.addresses.iter().chain(&found.link_local);
                addresses.extend(
                    borne
                        .copied()
                        .filter(|address| !is_reserved(address) && taken.insert(*address)),
                );
            }
            if binding.addresses != addresses {
                binding.addresses = addresses;
                self.changed.insert(ifindex);
            }
        }
    }
}

#[cfg(test)]
#[path = "bindings_tests.rs"]
mod tests;
