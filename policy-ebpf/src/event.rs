//! Step 6: counters, and a record of what was dropped.

use aya_ebpf::helpers::generated::bpf_jiffies64;
use aya_ebpf::programs::TcContext;
use policy_common::event::{Event, NO_RULE};
use policy_common::verdict::{Direction, counter_index};

use crate::config;
use crate::endpoint::ifindex;
use crate::family::Family;
use crate::maps::{COUNTERS, EVENT_BUDGET, EVENTS};
use crate::packet::Packet;
use crate::policy::Decision;

/// The clock of flows and budgets, in ticks of a sixteenth of a second or so: jiffies, a memory read rather than a clock
/// read, and shifted, so that 32 bits last for years and a busy flow's row is not written on every jiffy.
#[inline(always)]
pub(crate) fn now() -> u32 {
    // SAFETY: a helper without arguments.
    unsafe { (bpf_jiffies64() >> config::clock_shift()) as u32 }
}

/// Counts a verdict, by its reason's number.
#[inline(always)]
pub(crate) fn count(skb: &TcContext, direction: Direction, reason: u32) {
    if let Some(counter) = COUNTERS.get_ptr_mut(counter_index(direction, reason)) {
        // SAFETY: a row of this CPU's own.
        unsafe {
            (*counter).packets += 1;
            (*counter).bytes += skb.len() as u64;
        }
    }
}

/// Whether this CPU may still send an event in this window.
#[inline(always)]
fn within_budget() -> bool {
    let Some(budget) = EVENT_BUDGET.get_ptr_mut(0) else {
        return false;
    };
    let now = now();
    // SAFETY: a row of this CPU's own.
    unsafe {
        if now.wrapping_sub((*budget).window_start) >= config::event_window() {
            (*budget).window_start = now;
            (*budget).sent = 0;
        }
        if (*budget).sent >= config::event_limit() {
            (*budget).limited += 1;
            return false;
        }
        (*budget).sent += 1;
    }
    true
}

/// Records a packet that was dropped before it was parsed.
#[inline(never)]
pub(crate) fn dropped_unparsed(
    skb: *mut aya_ebpf::bindings::__sk_buff,
    endpoint: u32,
    direction: u32,
    reason: u32,
) -> u32 {
    if config::event_limit() == 0 || !within_budget() {
        return 0;
    }
    let skb = TcContext::new(skb);
    submit(Event {
        endpoint,
        ifindex: ifindex(&skb),
        rule: NO_RULE,
        length: skb.len(),
        ethertype: ethertype(&skb),
        direction: direction as u8,
        reason: reason as u8,
        ..EMPTY
    });
    0
}

/// Records a parsed packet that was dropped. Under a flood nearly all ends at the budget, hence here
/// and not behind a call.
#[inline(always)]
pub(crate) fn dropped<F: Family>(
    skb: *mut aya_ebpf::bindings::__sk_buff,
    packet: &Packet<F>,
    decision: &Decision,
    reason: u32,
) {
    if config::event_limit() != 0 && within_budget() {
        record(skb, packet, decision, reason);
    }
}

#[inline(never)]
fn record<F: Family>(
    skb: *mut aya_ebpf::bindings::__sk_buff,
    packet: &Packet<F>,
    decision: &Decision,
    reason: u32,
) -> u32 {
    let skb = TcContext::new(skb);
    submit(Event {
        endpoint: packet.key.endpoint,
        ifindex: ifindex(&skb),
        policy: decision.policy,
        rule: decision.rule,
        identity: decision.identity,
        length: skb.len(),
        saddr: F::octets(packet.saddr),
        daddr: F::octets(packet.daddr),
        sport: packet.sport,
        dport: packet.dport,
        ethertype: ethertype(&skb),
        protocol: packet.key.protocol,
        direction: packet.direction as u8,
        reason: reason as u8,
        tcp_flags: packet.tcp_flags,
        _pad: [0; 6],
    });
    0
}

const EMPTY: Event = Event {
    endpoint: 0,
    ifindex: 0,
    policy: 0,
    rule: NO_RULE,
    identity: 0,
    length: 0,
    saddr: [0; 16],
    daddr: [0; 16],
    sport: 0,
    dport: 0,
    ethertype: 0,
    protocol: 0,
    direction: 0,
    reason: 0,
    tcp_flags: 0,
    _pad: [0; 6],
};

#[inline(always)]
fn submit(event: Event) {
    match EVENTS.reserve(0) {
        Some(mut record) => {
            record.write(event);
            record.submit(0);
        }
        None => {
            if let Some(budget) = EVENT_BUDGET.get_ptr_mut(0) {
                // SAFETY: a row of this CPU's own.
                unsafe { (*budget).lost += 1 };
            }
        }
    }
}

/// The packet's ethertype in host order.
#[inline(always)]
pub(crate) fn ethertype(skb: &TcContext) -> u16 {
    // SAFETY: a context field that the verifier lets TC programs read; network order.
    u16::from_be(unsafe { (*skb.skb.skb).protocol } as u16)
}
