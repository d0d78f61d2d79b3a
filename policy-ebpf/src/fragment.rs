//! Fragments: later ones have no ports, and find them by what the first one left behind.

use aya_ebpf::bindings::BPF_ANY;
use policy_common::flow::{FragmentKey, FragmentPorts, is_expired};
use policy_common::verdict::Direction;

use crate::config;
use crate::endpoint::Subject;
use crate::event::now;
use crate::family::Family;
use crate::maps::FRAGMENTS;
use crate::packet::Packet;
use crate::parse::Network;

#[inline(always)]
fn key<F: Family>(
    endpoint: u32,
    direction: Direction,
    saddr: F::Address,
    daddr: F::Address,
    protocol: u8,
    identification: u32,
) -> FragmentKey {
    FragmentKey {
        saddr: F::octets(saddr),
        daddr: F::octets(daddr),
        identification,
        endpoint,
        protocol: if F::NUMBER == 4 { protocol } else { 0 },
        direction: direction as u8,
        family: F::NUMBER,
        _pad: 0,
    }
}

/// Remembers the ports of a datagram whose first fragment passed. A table that cannot take the row
/// means that the later fragments drop.
#[inline(always)]
pub(crate) fn remember<F: Family>(packet: &Packet<F>) {
    let ports = FragmentPorts {
        local_port: packet.key.local_port,
        remote_port: packet.key.remote_port,
        seen: now(),
        protocol: packet.key.protocol,
        _pad: [0; 3],
    };
    let key = key::<F>(
        packet.key.endpoint,
        packet.direction,
        packet.saddr,
        packet.daddr,
        packet.key.protocol,
        packet.identification,
    );
    let _ = FRAGMENTS.insert(key, ports, BPF_ANY as u64);
}

/// The ports of the datagram that a later fragment belongs to.
#[inline(always)]
pub(crate) fn recall<F: Family>(
    subject: &Subject,
    direction: Direction,
    network: &Network<F>,
) -> Option<FragmentPorts> {
    let key = key::<F>(
        subject.id,
        direction,
        network.saddr,
        network.daddr,
        network.protocol,
        network.identification,
    );
    // SAFETY: the value is copied at once.
    let ports = unsafe { *FRAGMENTS.get(key)? };
    if is_expired(now(), ports.seen, config::fragment_timeout()) {
        None
    } else {
        Some(ports)
    }
}
