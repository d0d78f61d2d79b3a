//! Fragments: later ones have no ports, and find them by what the first one left behind.

use aya_ebpf::bindings::BPF_ANY;
use policy_common::flow::{FragmentKey, FragmentPorts, is_expired};

use crate::config;
use crate::event::now;
use crate::family::Family;
use crate::maps::FRAGMENTS;
use crate::packet::Packet;
use crate::scratch::{self, Scratch};

#[inline(always)]
fn key<F: Family>(packet: &Packet<F>) -> FragmentKey {
    FragmentKey {
        saddr: F::octets(packet.saddr),
        daddr: F::octets(packet.daddr),
        identification: packet.identification,
        endpoint: packet.key.endpoint,
        protocol: if F::NUMBER == 4 {
            packet.key.protocol
        } else {
            0
        },
        direction: packet.direction as u8,
        family: F::NUMBER,
        _pad: 0,
    }
}

/// Remembers the ports of a datagram whose first fragment passed. A table that cannot take the row
/// means that the later fragments drop.
#[inline(never)]
pub(crate) fn remember<F: Family>(packet: &Packet<F>) -> u32 {
    let ports = FragmentPorts {
        local_port: packet.key.local_port,
        remote_port: packet.key.remote_port,
        seen: now(),
        protocol: packet.key.protocol,
        _pad: [0; 3],
    };
    FRAGMENTS.insert(key(packet), ports, BPF_ANY as u64).is_ok() as u32
}

/// As [`remember`], of an ICMP error in [`Scratch`] that passed, where it is a first fragment. Not called from where that is
/// decided, for the sake of the stack.
#[inline(never)]
pub(crate) fn remember_error<F: Family>() -> u32 {
    match scratch::memory::<Scratch<F>>() {
        Some(scratch) if scratch.packet.fragment.is_first() => remember(&scratch.packet),
        _ => 0,
    }
}

/// Gives a later fragment the protocol and ports of its datagram; 0 when its first fragment was not
/// seen.
#[inline(never)]
pub(crate) fn recall<F: Family>(packet: &mut Packet<F>) -> u32 {
    // SAFETY: the value is copied at once.
    let Some(ports) = (unsafe { FRAGMENTS.get(key(packet)) }) else {
        return 0;
    };
    if is_expired(now(), ports.seen, config::fragment_timeout()) {
        return 0;
    }
    packet.key.local_port = ports.local_port;
    packet.key.remote_port = ports.remote_port;
    packet.key.protocol = ports.protocol;
    1
}
