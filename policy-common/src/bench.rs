//! What the programs of benchmarks and tests and their user space share; no part of the dataplane.

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

/// What the program `carry` gives a packet before it goes on with another program, and what it finds on it afterwards: a
/// test run's context has no place for these fields.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Carriage {
    /// `skb->hash`; 0 leaves it as it is.
    pub hash: u32,
    /// `skb->tc_index`.
    pub tag: u32,
    /// How often the packet came by.
    pub runs: u32,
    /// Zero: give at every run, without looking.
    pub looks: u32,
    /// `skb->hash` when it came by for the second time.
    pub hash_after: u32,
    /// `skb->tc_index`, likewise.
    pub tag_after: u32,
}
