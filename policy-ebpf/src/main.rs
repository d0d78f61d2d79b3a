//! Portcullis's TC programs: `from_pod` and `to_pod`, one pair for all endpoints, and `exit` for the interfaces that
//! packets leave the node by.
//!
//! Files in the order of a packet's path: `parse`, `endpoint`, `hot`, `flow` (with `fragment` and
//! `quoted`), `policy`, `service`, `event`; `judge` here strings them together, and `action` is the one place that turns a
//! verdict into a TC action. Directions are the pod's: `from_pod` sees its egress, `to_pod` its ingress.
//!
//! The kernel offers the helpers used here to GPL-compatible programs, hence the object's licence.

#![cfg_attr(target_arch = "bpf", no_std, no_main)]
#![expect(
    unreachable_pub,
    missing_docs,
    reason = "the classifier macro makes items of its own"
)]
// By value a key would be copied to the stack, of which there is little.
#![expect(
    clippy::needless_borrows_for_generic_args,
    reason = "map helpers take keys by reference"
)]
// On the host the crate is only type-checked, as part of the workspace.
#![cfg_attr(
    not(target_arch = "bpf"),
    allow(dead_code, reason = "the programs are for BPF only")
)]

mod carrier;
mod config;
mod endpoint;
mod event;
mod family;
mod flow;
mod fragment;
mod hot;
mod link;
mod maps;
mod packet;
mod parse;
mod policy;
mod quoted;
mod scratch;
mod service;

use aya_ebpf::bindings::{__sk_buff, TC_ACT_SHOT, TC_ACT_UNSPEC};
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use policy_common::endpoint::Endpoint;
use policy_common::flow::FlowKey;
use policy_common::verdict::{Direction, Reason, Verdict};

use carrier::Carried;
use endpoint::Subject;
use family::{Family, V4, V6};
use flow::Fast;
use packet::Packet;
use parse::Fragment;
use policy::Decision;
use scratch::Scratch;

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_ARP: u16 = 0x0806;
const ETHERTYPE_IPV6: u16 = 0x86dd;

/// On TC ingress of an endpoint's host side: what leaves the pod.
#[classifier]
pub fn from_pod(skb: TcContext) -> i32 {
    run::<EGRESS>(&skb)
}

/// On TC egress of an endpoint's host side: what enters the pod. What `from_pod` of another endpoint has
/// deferred is judged twice: as what that one sends, and as what this one gets.
#[classifier]
pub fn to_pod(skb: TcContext) -> i32 {
    enter(&skb)
}

#[inline(always)]
fn enter(skb: &TcContext) -> i32 {
    let carried = carrier::read::<{ parse::NETWORK_OFFSET }>(skb);
    if carried.slot != 0 && judge_deferred::<{ parse::NETWORK_OFFSET }>(skb, carried) == TC_ACT_SHOT
    {
        return TC_ACT_SHOT;
    }
    let result = run::<INGRESS>(skb);
    // Whether there was anything or not: a branch would have the verifier follow all of the above twice.
    carrier::delivered(skb);
    result
}

/// On TC egress of every other interface of the host, of those with an Ethernet header: what leaves the node.
#[classifier]
pub fn exit(skb: TcContext) -> i32 {
    leave::<{ parse::NETWORK_OFFSET }>(&skb)
}

/// As `exit`, of interfaces without a link-layer header: tunnels.
#[classifier]
pub fn exit_l3(skb: TcContext) -> i32 {
    leave::<0>(&skb)
}

/// As `exit`, of IP over InfiniBand: 20 bytes of the driver's and 4 of its header (RFC 4391) come first.
#[classifier]
pub fn exit_ib(skb: TcContext) -> i32 {
    leave::<24>(&skb)
}

/// What leaves the node, its network header at `N`: of interest only when it was deferred.
#[inline(always)]
fn leave<const N: usize>(skb: &TcContext) -> i32 {
    let carried = carrier::read::<N>(skb);
    if carried.slot == 0 {
        return TC_ACT_UNSPEC;
    }
    let result = judge_deferred::<N>(skb, carried);
    carrier::judged(skb, carried.slot);
    result
}

/// On TC egress of a bridge: what this node made says so from here on, because the clones that the bridge makes of a packet
/// lose its socket.
#[classifier]
pub fn from_node(skb: TcContext) -> i32 {
    carrier::stamp_node(&skb);
    TC_ACT_UNSPEC
}

/// Judges what the endpoint that `carried` names sends to where it now goes.
#[inline(always)]
fn judge_deferred<const N: usize>(skb: &TcContext, carried: Carried) -> i32 {
    let reason = service::judge::<N>(skb, carried);
    event::count(skb, Direction::Egress, reason);
    action(Reason::verdict_of(reason))
}

/// Directions as constants, so that each program holds the code of its own direction only.
const INGRESS: u8 = Direction::Ingress as u8;
const EGRESS: u8 = Direction::Egress as u8;

#[inline(always)]
const fn direction<const D: u8>() -> Direction {
    if D == INGRESS {
        Direction::Ingress
    } else {
        Direction::Egress
    }
}

#[inline(always)]
fn run<const D: u8>(skb: &TcContext) -> i32 {
    let reason = judge::<D>(skb);
    event::count(skb, direction::<D>(), reason);
    action(Reason::verdict_of(reason))
}

/// The only place where a verdict becomes a TC action. Passing means "no objection": programs of
/// others on the same hook have their say too.
#[inline(always)]
fn action(verdict: Verdict) -> i32 {
    match verdict {
        Verdict::Pass => TC_ACT_UNSPEC,
        Verdict::Drop => TC_ACT_SHOT,
    }
}

/// The verdict's `Reason`, as a number: BPF functions return numbers.
#[inline(always)]
fn judge<const D: u8>(skb: &TcContext) -> u32 {
    let Some(subject) = endpoint::find(skb) else {
        return unparsed(skb, 0, direction::<D>(), Reason::NoEndpoint);
    };
    // The kernel moves a VLAN tag out of the packet, so that a tagged packet looks like its payload.
    // SAFETY: a context field that the verifier lets TC programs read.
    let tagged = unsafe { (*skb.skb.skb).vlan_present } != 0;
    if D == EGRESS {
        carrier::scrub(skb);
    }
    match event::ethertype(skb) {
        ETHERTYPE_IPV4 if !tagged => judge_ip::<V4, D>(skb, &subject),
        ETHERTYPE_IPV6 if !tagged => judge_ip::<V6, D>(skb, &subject),
        ETHERTYPE_ARP if !tagged && D != EGRESS => Reason::LinkControl as u32,
        ETHERTYPE_ARP if !tagged => {
            let reason = link::judge_arp(skb.skb.skb, subject.row, subject.epoch);
            if reason != Reason::LinkControl as u32 {
                event::dropped_unparsed(skb.skb.skb, subject.id, D as u32, reason);
            }
            reason
        }
        // The kernel takes tags off later, so that a source which nobody has checked would be believed.
        ethertype
            if subject.is_isolated() || (D == EGRESS && (tagged || hides_packet(ethertype))) =>
        {
            unparsed(skb, subject.id, direction::<D>(), Reason::NotIp)
        }
        _ => Reason::NotIsolated as u32,
    }
}

/// Whether frames of this type hold another packet that a kernel may take out: VLAN tags (IEEE 802.1Q, 802.1ad, and
/// what came before it), MPLS (RFC 3032), NSH (RFC 8300).
#[inline(always)]
const fn hides_packet(ethertype: u16) -> bool {
    matches!(
        ethertype,
        0x8100 | 0x88a8 | 0x9100 | 0x8847 | 0x8848 | 0x894f
    )
}

/// Drops a packet that was not parsed.
#[inline(always)]
fn unparsed(skb: &TcContext, endpoint: u32, direction: Direction, reason: Reason) -> u32 {
    event::dropped_unparsed(skb.skb.skb, endpoint, direction as u32, reason as u32);
    reason as u32
}

/// An IP packet. What is unusual goes to functions of their own, called one after the other: the kernel
/// allows 512 bytes of stack to all functions that are in each other's way. What is not is inlined: on
/// processors that guard their returns a call costs as much as two lookups in an array.
#[inline(always)]
fn judge_ip<F: Family, const D: u8>(skb: &TcContext, subject: &Subject) -> u32 {
    let mut reason = hot::judge::<F, D>(skb, subject);
    if reason == UNUSUAL {
        reason = parse_unusual::<F, D>(skb.skb.skb, subject.row, subject.epoch);
        if D == EGRESS && reason == PARSED {
            reason = link::judge_sender::<F>(skb.skb.skb, subject.row);
        }
        if F::NUMBER == 6 && reason == PARSED {
            reason = link::judge_neighbour_message(skb.skb.skb, subject.row, D as u32);
            if D == EGRESS && reason == ADVERTISED {
                reason = link::judge_advertisement(skb.skb.skb, subject.row);
            }
        }
        if reason == PARSED {
            reason = judge_unusual::<F, D>(subject.row);
        }
        if reason == ICMP_ERROR {
            reason = judge_icmp_error::<F>(skb.skb.skb, subject.row);
            if reason != UNDECIDED {
                fragment::remember_error::<F>();
            }
        }
    }
    match reason {
        NEW | KNOWN | UNDECIDED => {
            judge_slowly::<F, D>(skb.skb.skb, subject.row, subject.epoch, reason)
        }
        reason => reason,
    }
}

const DEFERRED: u32 = Reason::Deferred as u32;

/// `hot` understood the packet, and found no two-way flow; no `Reason`, like the others below.
const NEW: u32 = 0x100;
/// `hot` understood the packet, and its two-way flow needs a second look.
const KNOWN: u32 = 0x101;
/// The packet is not for `hot`.
const UNUSUAL: u32 = 0x102;
/// [`Scratch`] is filled for [`judge_slowly`].
const UNDECIDED: u32 = 0x103;
/// [`Scratch`] is filled with an ICMP error.
const ICMP_ERROR: u32 = 0x104;
/// [`Scratch`] is filled, and nothing else is done.
const PARSED: u32 = 0x105;
/// As `PARSED`, a neighbour advertisement.
const ADVERTISED: u32 = 0x106;

/// All of parsing, into [`Scratch`].
#[inline(never)]
fn parse_unusual<F: Family, const D: u8>(
    skb: *mut __sk_buff,
    row: *const Endpoint,
    epoch: u32,
) -> u32 {
    let skb = &TcContext::new(skb);
    let subject = &Subject::again(row, epoch);
    let parsed = F::parse_network(skb, parse::NETWORK_OFFSET)
        .and_then(|network| parse::transport(skb, &network).map(|transport| (network, transport)));
    let (network, transport) = match parsed {
        Ok(parsed) => parsed,
        // Without a header nobody knows whose it is and what it would do to its receiver, so that not even an un-isolated
        // pod may send it.
        Err(reason) if D == EGRESS || subject.is_isolated() => {
            return unparsed(skb, subject.id, direction::<D>(), reason);
        }
        Err(_) => return Reason::NotIsolated as u32,
    };
    let key = packet::flow_key(subject.id, direction::<D>(), &network, &transport);
    let Some(scratch) = Scratch::fill(direction::<D>(), &key, &network, &transport) else {
        return Reason::NoPolicy as u32;
    };
    scratch.epoch = subject.epoch;
    scratch.in_table = 0;
    scratch.icmp_type = transport.icmp_type;
    scratch.hop_limit = network.hop_limit;
    PARSED
}

/// The packet in [`Scratch`], as far as one lookup decides.
#[inline(never)]
fn judge_unusual<F: Family, const D: u8>(row: *const Endpoint) -> u32 {
    let Some(scratch) = scratch::memory::<Scratch<F>>() else {
        return Reason::NoPolicy as u32;
    };
    let subject = &Subject::again(row, scratch.epoch);
    let packet = &scratch.packet;
    // An un-isolated endpoint needs no flows now, but the day a policy selects it, its connections
    // must be judged in the direction they were opened in: so their beginnings and ends are kept,
    // and only those.
    if !packet.signal.tells_life() && !subject.tracks() {
        return Reason::NotIsolated as u32;
    }
    // An ICMP error belongs to the flow that it quotes.
    if F::is_icmp_error(scratch.icmp_type) {
        return ICMP_ERROR;
    }
    // What opens a connection is never part of an older one; a later fragment has no ports yet.
    if !packet.signal.opens() && !packet.fragment.is_later() {
        match flow::established::<F, D>(subject, &packet.key, packet.signal) {
            Fast::Established if packet.fragment == Fragment::WHOLE => {
                return Reason::Established as u32;
            }
            Fast::Unknown => {}
            Fast::Established | Fast::Deferred | Fast::OfNode | Fast::Known => scratch.in_table = 1,
        }
    }
    UNDECIDED
}

/// An ICMP error, in [`Scratch`]: whether it belongs to an allowed flow, or has to be judged by itself.
#[inline(never)]
fn judge_icmp_error<F: Family>(skb: *mut __sk_buff, row: *const Endpoint) -> u32 {
    let Some(scratch) = scratch::memory::<Scratch<F>>() else {
        return Reason::NoPolicy as u32;
    };
    let subject = Subject::again(row, scratch.epoch);
    let skb = TcContext::new(skb);
    if quoted::find_flow_key(&skb, &subject, scratch, FlowKey::<F::Address>::AT_POD)
        && let Some(deferred) =
            flow::is_allowed::<F>(&subject, &scratch.quoted, &mut scratch.decision)
    {
        return if deferred && matches!(scratch.packet.direction, Direction::Egress) {
            carrier::defer::<F>(&skb, &scratch.quoted);
            DEFERRED
        } else {
            Reason::IcmpError as u32
        };
    }
    scratch.decision = Decision::NOT_ISOLATED;
    UNDECIDED
}

/// Everything past the fast path; `seen` says who read the packet, and what is known of its flow.
#[inline(always)]
fn judge_slowly<F: Family, const D: u8>(
    skb: *mut __sk_buff,
    row: *const Endpoint,
    epoch: u32,
    seen: u32,
) -> u32 {
    let subject = Subject::again(row, epoch);
    let filled = if seen == UNDECIDED {
        scratch::memory::<Scratch<F>>()
    } else {
        hot::fill::<F, D>(&TcContext::new(skb), &subject, seen == KNOWN)
    };
    let Some(scratch) = filled else {
        return Reason::NoPolicy as u32;
    };
    if D == INGRESS {
        let context = TcContext::new(skb);
        scratch.source = service::hidden_source::<F>(&context, scratch.packet.saddr);
    }
    let mut reason = slow_reason::<F, D>(skb, &subject, scratch);
    // What is only recorded is never dropped, whatever became of its record.
    if matches!(reason.verdict(), Verdict::Drop) && !subject.is_isolated() {
        reason = Reason::NotIsolated;
    }
    let Scratch {
        packet, decision, ..
    } = scratch;
    match reason.verdict() {
        Verdict::Pass => {
            if packet.fragment.is_first() {
                fragment::remember(packet);
            }
        }
        Verdict::Drop => {
            event::dropped(skb, packet, decision, reason as u32);
        }
    }
    if config::log_decisions() {
        log_decision(skb, packet, decision, reason);
    }
    reason as u32
}

#[inline(always)]
fn slow_reason<F: Family, const D: u8>(
    skb: *mut __sk_buff,
    subject: &Subject,
    scratch: &mut Scratch<F>,
) -> Reason {
    let context = &TcContext::new(skb);
    if F::own_address(subject.row()) == Some(scratch.packet.key.remote) {
        // What enters with the pod's own address has to come from the pod.
        let is_own =
            D == EGRESS || carrier::sender(context).is_some_and(|sender| sender.id == subject.id);
        return if is_own {
            Reason::OwnAddress
        } else {
            Reason::SpoofedSource
        };
    }
    let Scratch {
        packet,
        decision,
        source,
        ..
    } = scratch;
    // A later fragment takes part in its datagram's flow, like any packet of it.
    if packet.fragment.is_later() && fragment::recall(packet) == 0 {
        return Reason::FragmentUnknown;
    }
    let known = if scratch.in_table != 0 || packet.fragment.is_later() {
        F::flows()
            .get_ptr_mut(&packet.key)
            .unwrap_or(core::ptr::null_mut())
    } else {
        core::ptr::null_mut()
    };
    // Fragments of IPv6 that were made on the way look as clones do.
    let may_be_clone = F::NUMBER == 4 || packet.fragment == Fragment::WHOLE;
    let from_node = D != EGRESS && carrier::is_from_node(context, may_be_clone);
    flow::resolve(
        context, subject, packet, known, from_node, *source, decision,
    )
}

/// A line for developers; the verifier removes it unless it was asked for at load.
#[inline(always)]
fn log_decision<F: Family>(
    skb: *mut __sk_buff,
    packet: &Packet<F>,
    decision: &Decision,
    reason: Reason,
) {
    let skb = TcContext::new(skb);
    aya_log_ebpf::debug!(
        &skb,
        "endpoint {} direction {} protocol {} {} -> {}: reason {} policy {} rule {} identity {}",
        packet.key.endpoint,
        packet.direction as u8,
        packet.key.protocol,
        packet.sport,
        packet.dport,
        reason as u8,
        decision.policy,
        decision.rule,
        decision.identity
    );
}

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // Unreachable: the verifier refuses a program that could get here.
    loop {}
}

/// The licence that the kernel reads.
#[cfg(target_arch = "bpf")]
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[cfg(not(target_arch = "bpf"))]
fn main() {}
