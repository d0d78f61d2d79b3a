//! Working memory of the slow path: one per-CPU map row, for one thing at a time.
//!
//! It is a map rather than the stack for the verifier's sake, which forgets what it knows of a value
//! that goes through a map. On the stack it would follow every combination of protocol, signal,
//! fragment and header sequence through the whole slow path, and refuse the program as too large.

use policy_common::flow::FlowKey;
use policy_common::verdict::Direction;

use crate::family::Family;
use crate::maps::{SCRATCH, SCRATCH_WORDS};
use crate::packet::Packet;
use crate::parse::{Network, Transport};
use crate::policy::Decision;

/// This CPU's memory as a `T`.
#[inline(always)]
pub(crate) fn memory<T>() -> Option<&'static mut T> {
    const { assert!(size_of::<T>() <= SCRATCH_WORDS * 8 && align_of::<T>() <= 8) };
    // SAFETY: large and aligned enough, as asserted; programs of one CPU do not interrupt each other,
    // so that nobody else holds it. The types placed here are plain numbers.
    SCRATCH
        .get_ptr_mut(0)
        .map(|memory| unsafe { &mut *memory.cast::<T>() })
}

/// This CPU's memory with `value` in it.
#[inline(always)]
pub(crate) fn place<T>(value: T) -> Option<&'static mut T> {
    let memory = memory::<T>()?;
    // SAFETY: a valid place for a `T`; nothing here needs to be dropped.
    unsafe { core::ptr::write(memory, value) };
    Some(memory)
}

/// What the slow path works on.
#[repr(C)]
pub(crate) struct Scratch<F: Family> {
    /// The packet.
    pub(crate) packet: Packet<F>,
    /// How it is judged.
    pub(crate) decision: Decision,
    /// The endpoint's epoch, as read first.
    pub(crate) epoch: u32,
    /// Offset of the L4 header in the packet.
    pub(crate) l4: u32,
    /// Offset of the end of the IP datagram in the packet.
    pub(crate) end: u32,
    /// The flow that the packet quoted in an ICMP error belongs to, once it is known.
    pub(crate) quoted: FlowKey<F::Address>,
    /// The endpoint of this node that sent the packet, where its address was replaced on the way; else 0.
    pub(crate) source: u32,
    /// Whether the fast path found the flow in the table of two-way flows.
    pub(crate) in_table: u8,
    /// ICMP type, where it matters.
    pub(crate) icmp_type: u8,
    /// TTL or hop limit, where it matters.
    pub(crate) hop_limit: u8,
}

impl<F: Family> Scratch<F> {
    /// Filled with a packet that nothing was decided about. Field by field: as a whole it would be
    /// put together on the stack first, which has no room for it.
    #[inline(always)]
    pub(crate) fn fill(
        direction: Direction,
        key: &FlowKey<F::Address>,
        network: &Network<F>,
        transport: &Transport,
    ) -> Option<&'static mut Self> {
        let scratch = memory::<Self>()?;
        let packet = &mut scratch.packet;
        packet.key = *key;
        packet.direction = direction;
        packet.signal = transport.signal;
        packet.fragment = network.fragment;
        packet.tcp_flags = transport.tcp_flags;
        packet.sport = transport.sport;
        packet.dport = transport.dport;
        packet.identification = network.identification;
        packet.saddr = network.saddr;
        packet.daddr = network.daddr;
        scratch.decision = Decision::NOT_ISOLATED;
        scratch.source = 0;
        scratch.l4 = network.l4 as u32;
        scratch.end = network.end as u32;
        Some(scratch)
    }
}
