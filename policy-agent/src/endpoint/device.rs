//! What tells one veth from another.

use serde::{Deserialize, Serialize};

use super::Interface;

/// A veth, even where its ifindex is used again. The pod may move its side to a network namespace of its own making,
/// which changes what the kernel says of that side, so either that or the hardware address of the host side has to
/// agree. The pod cannot change the latter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Device {
    /// Index of the host side.
    pub ifindex: u32,
    /// Our network namespace's id for the other side's.
    pub netns: i32,
    /// Index of the other side.
    pub peer: u32,
    /// Hardware address of the host side; empty where it is not known.
    #[serde(default)]
    pub hardware_address: Vec<u8>,
}

impl Device {
    /// The device that an interface is.
    #[must_use]
    pub fn of(interface: &Interface) -> Self {
        Self {
            ifindex: interface.ifindex,
            netns: interface.peer.netns,
            peer: interface.peer.ifindex,
            hardware_address: interface.hardware_address.clone(),
        }
    }

    /// Whether an interface is this device.
    #[must_use]
    pub fn is(&self, interface: &Interface) -> bool {
        let same_peer = (self.netns, self.peer) == (interface.peer.netns, interface.peer.ifindex);
        let same_address = !self.hardware_address.is_empty()
            && self.hardware_address == interface.hardware_address;
        self.ifindex == interface.ifindex && (same_peer || same_address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::endpoint::Peer;

    #[test]
    fn a_device_stays_the_same_wherever_its_pod_moves_its_side() {
        let interface = |ifindex, netns, peer, hardware_address: &[u8]| Interface {
            ifindex,
            name: "veth7".to_owned(),
            hardware_address: hardware_address.to_vec(),
            master: 0,
            peer: Peer {
                netns,
                ifindex: peer,
                name: "eth0".to_owned(),
            },
            addresses: Vec::new(),
            link_local: Vec::new(),
        };
        let device = Device::of(&interface(7, 1, 2, &[2, 7]));
        let rows = [
            (interface(7, 1, 2, &[2, 7]), true),
            (interface(7, 9, 5, &[2, 7]), true),
            (interface(7, 1, 2, &[2, 8]), true),
            (interface(7, 9, 5, &[2, 8]), false),
            (interface(8, 1, 2, &[2, 7]), false),
        ];
        for (found, same) in rows {
            assert_eq!(device.is(&found), same, "{found:?}");
        }
        let unknown = Device::of(&interface(7, 1, 2, &[]));
        assert!(!unknown.is(&interface(7, 9, 5, &[])));
    }
}
