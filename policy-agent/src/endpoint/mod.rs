//! Which interfaces on this node belong to which pods.
//!
//! `discovery` finds pod interfaces in the kernel, and beside them what else there is: this node's own
//! addresses, the interfaces by which packets leave it (`link`, and `appearing` for those that are new) and its tunnels
//! (`tunnels`); `local` knows the pods of this node; an interface
//! and a pod belong together when the CNI plugin said so (`announced`), else when the interface bears one
//! of the pod's addresses as it is first seen, or leads to the network namespace of an interface that is the
//! pod's. From then on they do until the device is gone (`bindings`).

mod announced;
mod appearing;
mod bindings;
mod device;
mod discovery;
mod known_pod;
mod link;
mod local;
mod tunnels;

pub use announced::{Announced, Announcement};
pub use bindings::{Binding, Bindings, Evidence, Secondaries, Unenforced};
pub use device::Device;
pub use discovery::{Discovery, Lookup, Report, ScanReport, start};
pub use link::Link;
pub use local::LocalPods;
pub use tunnels::Tunnels;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// A veth of this network namespace whose other end is in another one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Index of the host side, in this network namespace.
    pub ifindex: u32,
    /// Name of the host side.
    pub name: String,
    /// Hardware address of the host side; empty where it is not known.
    pub hardware_address: Vec<u8>,
    /// Index of the device that the host side is a port of, such as a bridge; 0 for none.
    pub master: u32,
    /// The other side.
    pub peer: Peer,
    /// Addresses on the other side, without link-local ones.
    pub addresses: Vec<IpAddr>,
    /// IPv4 link-local addresses there. Only on a pod's further interfaces they are addresses like others.
    pub link_local: Vec<IpAddr>,
}

/// The pod's side of an [`Interface`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// This network namespace's id for the one that the peer is in.
    pub netns: i32,
    /// Index in that namespace.
    pub ifindex: u32,
    /// Name there, such as `eth0`.
    pub name: String,
}

/// What was found at one time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scan {
    /// Pod interfaces by the ifindex of their host side.
    pub interfaces: BTreeMap<u32, Interface>,
    /// Every veth of this network namespace, those included whose other side could not be read.
    pub veths: BTreeSet<u32>,
    /// Interfaces of this network namespace by which packets leave it, by ifindex.
    pub links: BTreeMap<u32, Link>,
    /// The addresses of this network namespace, loopback's aside.
    pub addresses: BTreeSet<IpAddr>,
    /// What this network namespace decapsulates.
    pub tunnels: Tunnels,
}

impl Scan {
    /// Whether a device is not there any more. That its other side could not be looked at is no proof of it.
    #[must_use]
    pub fn is_gone(&self, device: &Device) -> bool {
        match self.interfaces.get(&device.ifindex) {
            Some(found) => !device.is(found),
            None => !self.veths.contains(&device.ifindex),
        }
    }

    /// Adds an interface that was looked at since, or by itself.
    pub fn add(&mut self, interface: Interface) {
        self.veths.insert(interface.ifindex);
        self.interfaces.insert(interface.ifindex, interface);
    }
}
