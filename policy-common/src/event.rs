//! The record that the programs put into the `events` ring buffer.

use bytemuck::{Pod, Zeroable};

/// One packet that was dropped, as seen from the endpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Event {
    /// Endpoint id; 0 when the interface has no row.
    pub endpoint: u32,
    /// Host-side interface on which the program ran.
    pub ifindex: u32,
    /// Policy id that judged, 0 where none did.
    pub policy: u32,
    /// Index of the deciding rule counted over all pages, [`NO_RULE`] where none matched.
    pub rule: u32,
    /// Identity of the remote address, where it was looked up.
    pub identity: u32,
    /// Length of the packet in bytes, Ethernet header included.
    pub length: u32,
    /// Source address; IPv4 in the first four octets.
    pub saddr: [u8; 16],
    /// Destination address; IPv4 in the first four octets.
    pub daddr: [u8; 16],
    /// Source port, or ICMP id, in host order.
    pub sport: u16,
    /// Destination port, or ICMP type * 256 + code, in host order.
    pub dport: u16,
    /// Ethertype in host order.
    pub ethertype: u16,
    /// L4 protocol number; valid when the ethertype is IPv4 or IPv6.
    pub protocol: u8,
    /// `Direction` as a number.
    pub direction: u8,
    /// `Reason` as a number.
    pub reason: u8,
    /// TCP flags byte, 0 for other protocols.
    pub tcp_flags: u8,
    /// Zero.
    pub _pad: [u8; 6],
}

/// No rule matched.
pub const NO_RULE: u32 = u32::MAX;

const _: () = assert!(size_of::<Event>() == 72);

/// Value of `event_budget`, one per CPU: rate limit and loss count of events.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct EventBudget {
    /// Jiffy (lower 32 bits) at which the current window began.
    pub window_start: u32,
    /// Events sent in the current window.
    pub sent: u32,
    /// Events not sent since load, because of the rate limit.
    pub limited: u64,
    /// Events not sent since load, because the ring buffer was full.
    pub lost: u64,
}
