//! Pod interfaces that the CNI plugin announced.
//!
//! An announcement is bound to a device once: the veth that the plugins named, or any whose other side
//! has the announced name, and whose other side bears the announced addresses. From then on the device
//! is the pod's for as long as it exists, whatever the pod does to its names and addresses.

use std::collections::BTreeMap;

use policy_cni::api::{Attachment, AttachmentKey};
use serde::{Deserialize, Serialize};

use super::{Device, Interface, Scan};

/// One announcement.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Announcement {
    /// What the plugin said.
    #[serde(flatten)]
    pub attachment: Attachment,
    /// The device that it turned out to be.
    pub device: Option<Device>,
}

impl Announcement {
    fn is_of(&self, interface: &Interface) -> bool {
        let said = &self.attachment;
        interface.peer.name == said.key.ifname
            && (said.host_interfaces.is_empty() || said.host_interfaces.contains(&interface.name))
            && said
                .addresses
                .iter()
                .all(|address| interface.addresses.contains(address))
    }
}

/// All announcements in force.
#[derive(Debug, Default)]
pub struct Announced {
    announcements: BTreeMap<AttachmentKey, Announcement>,
    by_ifindex: BTreeMap<u32, AttachmentKey>,
    /// Changed since the last [`Announced::take_changed`].
    changed: Vec<AttachmentKey>,
}

impl Announced {
    /// Takes an announcement in, in place of an earlier one with its key.
    pub fn put(&mut self, announcement: Announcement) {
        let key = announcement.attachment.key.clone();
        self.remove(&key);
        if let Some(device) = &announcement.device {
            self.by_ifindex.insert(device.ifindex, key.clone());
        }
        self.announcements.insert(key.clone(), announcement);
        self.changed.push(key);
    }

    /// Forgets an announcement, and says whether there was one.
    pub fn remove(&mut self, key: &AttachmentKey) -> bool {
        let Some(announcement) = self.announcements.remove(key) else {
            return false;
        };
        if let Some(device) = &announcement.device
            && self.by_ifindex.get(&device.ifindex) == Some(key)
        {
            self.by_ifindex.remove(&device.ifindex);
        }
        self.changed.push(key.clone());
        true
    }

    /// The announcement with this key.
    #[must_use]
    pub fn get(&self, key: &AttachmentKey) -> Option<&Announcement> {
        self.announcements.get(key)
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Announcement> {
        self.announcements.values()
    }

    /// The announcement of this device.
    #[must_use]
    pub fn of(&self, interface: &Interface) -> Option<&Announcement> {
        let key = self.by_ifindex.get(&interface.ifindex)?;
        let announcement = self.announcements.get(key)?;
        let device = announcement.device.as_ref();
        device
            .is_some_and(|device| device.is(interface))
            .then_some(announcement)
    }

    /// Binds announcements to the devices that were found, and forgets those whose device is gone.
    pub fn follow(&mut self, scan: &Scan) {
        let is_gone = |announcement: &&Announcement| {
            let device = announcement.device.as_ref();
            device.is_some_and(|device| scan.is_gone(device))
        };
        let keys = |announcement: &Announcement| announcement.attachment.key.clone();
        let gone: Vec<_> = self.iter().filter(is_gone).map(keys).collect();
        for key in gone {
            tracing::info!(
                container = key.container_id,
                interface = key.ifname,
                "announced interface is gone"
            );
            self.remove(&key);
        }
        let moved = |announcement: &&Announcement| {
            let device = announcement.device.as_ref();
            let found = device.and_then(|device| scan.interfaces.get(&device.ifindex));
            found.is_some_and(|found| device != Some(&Device::of(found)))
        };
        let moved: Vec<_> = self.iter().filter(moved).cloned().collect();
        for mut announcement in moved {
            let device = announcement.device.as_ref();
            let found = device.and_then(|device| scan.interfaces.get(&device.ifindex));
            announcement.device = found.map(Device::of);
            self.put(announcement);
        }
        let unbound = |announcement: &&Announcement| announcement.device.is_none();
        let unbound: Vec<_> = self.iter().filter(unbound).cloned().collect();
        for mut announcement in unbound {
            let Some(found) = scan
                .interfaces
                .values()
                .find(|found| announcement.is_of(found))
            else {
                continue;
            };
            // Whoever announced it before is not there any more: a sandbox has one interface of a name.
            if let Some(former) = self.by_ifindex.get(&found.ifindex).cloned() {
                self.remove(&former);
            }
            announcement.device = Some(Device::of(found));
            self.put(announcement);
        }
    }

    /// Announcements that were put, bound or removed since the last call.
    pub fn take_changed(&mut self) -> Vec<AttachmentKey> {
        let mut changed = std::mem::take(&mut self.changed);
        changed.sort();
        changed.dedup();
        changed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::endpoint::Peer;
    use policy_cni::api::PodReference;

    fn announcement(container: &str, host_interfaces: &[&str], last: u8) -> Announcement {
        Announcement {
            attachment: Attachment {
                key: AttachmentKey {
                    container_id: container.to_owned(),
                    ifname: "eth0".to_owned(),
                },
                network: "pods".to_owned(),
                netns: format!("/run/netns/{container}"),
                pod: PodReference {
                    namespace: "shop".to_owned(),
                    name: "web".to_owned(),
                    uid: String::new(),
                },
                host_interfaces: host_interfaces
                    .iter()
                    .map(|name| (*name).to_owned())
                    .collect(),
                addresses: vec![[10, 0, 0, last].into()],
            },
            device: None,
        }
    }

    fn interface(ifindex: u32, netns: i32, last: u8) -> Interface {
        Interface {
            ifindex,
            name: format!("veth{ifindex}"),
            hardware_address: Vec::new(),
            master: 0,
            peer: Peer {
                netns,
                ifindex: 2,
                name: "eth0".to_owned(),
            },
            addresses: vec![[10, 0, 0, last].into()],
            link_local: Vec::new(),
        }
    }

    fn scan(interfaces: &[Interface]) -> Scan {
        Scan {
            interfaces: interfaces
                .iter()
                .map(|interface| (interface.ifindex, interface.clone()))
                .collect(),
            veths: interfaces
                .iter()
                .map(|interface| interface.ifindex)
                .collect(),
            ..Scan::default()
        }
    }

    fn container<'a>(announced: &'a Announced, interface: &Interface) -> Option<&'a str> {
        let announcement = announced.of(interface)?;
        Some(&announcement.attachment.key.container_id)
    }

    #[test]
    fn binds_what_was_named_and_bears_the_addresses() {
        let (seven, eight) = (interface(7, 1, 5), interface(8, 2, 5));
        let mut renamed = interface(9, 3, 5);
        renamed.peer.name = "net1".to_owned();
        let scan = scan(&[renamed, seven.clone(), eight.clone()]);
        for (said, bound) in [
            (announcement("c", &["cni0", "veth8"], 5), Some(8)),
            (announcement("c", &[], 5), Some(7)),
            (announcement("c", &["veth8"], 6), None),
            (announcement("c", &["veth9"], 5), None),
            (announcement("c", &["veth10"], 5), None),
        ] {
            let mut announced = Announced::default();
            announced.put(said.clone());
            announced.follow(&scan);
            let device = announced
                .get(&said.attachment.key)
                .and_then(|found| found.device.clone());
            assert_eq!(device.map(|device| device.ifindex), bound, "{said:?}");
        }
    }

    #[test]
    fn a_bound_device_stays_the_pods_whatever_the_pod_does_to_it() {
        let mut announced = Announced::default();
        announced.put(announcement("c", &["veth7"], 5));
        announced.follow(&scan(&[interface(7, 1, 5)]));
        let mut disguised = interface(7, 1, 99);
        disguised.peer.name = "lo7".to_owned();
        disguised.name = "other".to_owned();
        announced.follow(&scan(&[disguised.clone()]));
        assert_eq!(container(&announced, &disguised), Some("c"));
        let mut unreadable = scan(&[]);
        unreadable.veths.insert(7);
        announced.follow(&unreadable);
        assert_eq!(container(&announced, &disguised), Some("c"));
        // Another device with its index.
        let reused = interface(7, 2, 5);
        assert_eq!(container(&announced, &reused), None);
        announced.take_changed();
        announced.follow(&scan(&[reused]));
        assert_eq!(announced.iter().count(), 0);
        assert_eq!(announced.take_changed().len(), 1);
    }

    #[test]
    fn the_newest_announcement_of_a_device_counts() {
        let mut announced = Announced::default();
        let device = interface(7, 1, 5);
        for name in ["c2", "c1"] {
            announced.put(announcement(name, &["veth7"], 5));
            announced.follow(&scan(std::slice::from_ref(&device)));
            assert_eq!(container(&announced, &device), Some(name));
        }
        assert_eq!(announced.iter().count(), 1);
        assert!(announced.remove(&announcement("c1", &[], 5).attachment.key));
        assert_eq!(container(&announced, &device), None);
        assert!(!announced.remove(&announcement("c1", &[], 5).attachment.key));
    }
}
