//! What the benchmark's programs and its user space share; no part of the dataplane.

use bytemuck::{Pod, Zeroable};

/// How the benchmark varies packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Rotation {
    /// State of the generator.
    pub seed: u32,
    /// Lowest source port.
    pub first_port: u32,
    /// Number of source ports; 0 leaves the port as it is.
    pub ports: u32,
    /// Lowest destination address, in host order.
    pub first_peer: u32,
    /// Number of destination addresses; 0 leaves the address as it is.
    pub peers: u32,
}
