//! Addresses that are somebody's: what a pod may not claim to be, and where it may not tunnel to.

use bytemuck::{Pod, Zeroable};

/// Value of `guarded_v4/6`, by longest prefix: whose the addresses are, [`Guard::POD`] and others added up.
///
/// A pod that no policy isolates may send from addresses that are nobody's (routers, VPN and NAT pods, virtual
/// machines): they have no row here. What has one is a name by which some policy of the cluster may know a sender.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Guard {
    /// [`Guard::POD`] and others.
    pub kind: u32,
}

impl Guard {
    /// An address of a pod of the cluster.
    pub const POD: u32 = 1;
    /// An address of a node of the cluster.
    pub const NODE: u32 = 2;
    /// An `ipBlock` of an ingress rule of the cluster; a rule's own `except` is part of it.
    pub const BLOCK: u32 = 4;
    /// The other end of a tunnel of this node: packets that pods send there could be decapsulated.
    pub const REMOTE: u32 = 8;
}
