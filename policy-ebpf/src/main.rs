//! Portcullis's TC programs: `from_pod` and `to_pod`, one pair for all endpoints.
//!
//! Files in the order of a packet's path: `parse`, `endpoint`, `flow` (with `fragment` and `quoted`),
//! `policy`, `event`; `judge` here strings them together, and `action` is the one place that turns a
//! verdict into a TC action. Directions are the pod's: `from_pod` sees its egress, `to_pod` its ingress.
//!
//! The kernel offers the helpers used here to GPL-compatible programs, hence the object's licence.

#![cfg_attr(target_arch = "bpf", no_std, no_main)]
#![expect(
    unreachable_pub,
    missing_docs,
    reason = "the classifier macro makes items of its own"
)]
// On the host the crate is only type-checked, as part of the workspace.
#![cfg_attr(
    not(target_arch = "bpf"),
    allow(dead_code, reason = "the programs are for BPF only")
)]

mod config;
mod endpoint;
mod event;
mod family;
mod flow;
mod fragment;
mod maps;
mod packet;
mod parse;
mod policy;
mod quoted;

use aya_ebpf::bindings::{__sk_buff, TC_ACT_SHOT, TC_ACT_UNSPEC};
use aya_ebpf::helpers::generated::bpf_sk_fullsock;
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use policy_common::flow::{Flow, Signal};
use policy_common::verdict::{Direction, Reason, Verdict};

use endpoint::Subject;
use family::{Family, V4, V6};
use flow::Fast;
use packet::Packet;
use parse::{Fragment, Network, Transport};
use policy::Decision;

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_ARP: u16 = 0x0806;
const ETHERTYPE_IPV6: u16 = 0x86dd;

/// On TC ingress of an endpoint's host side: what leaves the pod.
#[classifier]
pub fn from_pod(skb: TcContext) -> i32 {
    run(&skb, Direction::Egress)
}

/// On TC egress of an endpoint's host side: what enters the pod.
#[classifier]
pub fn to_pod(skb: TcContext) -> i32 {
    run(&skb, Direction::Ingress)
}

#[inline(always)]
fn run(skb: &TcContext, direction: Direction) -> i32 {
    let reason = judge(skb, direction);
    event::count(skb, direction, reason);
    action(reason.verdict())
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

#[inline(always)]
fn judge(skb: &TcContext, direction: Direction) -> Reason {
    let Some(subject) = endpoint::find(skb) else {
        return unparsed(skb, 0, direction, Reason::NoEndpoint);
    };
    // The kernel moves a VLAN tag out of the packet, so that a tagged packet looks like its payload.
    // SAFETY: a context field that the verifier lets TC programs read.
    let tagged = unsafe { (*skb.skb.skb).vlan_present } != 0;
    match event::ethertype(skb) {
        ETHERTYPE_IPV4 if !tagged => judge_ip::<V4>(skb, &subject, direction),
        ETHERTYPE_IPV6 if !tagged => judge_ip::<V6>(skb, &subject, direction),
        ETHERTYPE_ARP if !tagged => Reason::LinkControl,
        _ if subject.is_isolated() => unparsed(skb, subject.id, direction, Reason::NotIp),
        _ => Reason::NotIsolated,
    }
}

/// Drops a packet that was not parsed.
#[inline(always)]
fn unparsed(skb: &TcContext, endpoint: u32, direction: Direction, reason: Reason) -> Reason {
    event::dropped_unparsed(skb.skb.skb, endpoint, direction as u32, reason as u32);
    reason
}

#[inline(always)]
fn judge_ip<F: Family>(skb: &TcContext, subject: &Subject, direction: Direction) -> Reason {
    let mut network = match F::parse_network(skb, parse::NETWORK_OFFSET) {
        Ok(network) => network,
        // Without addresses the source cannot be checked, so not even an un-isolated pod may send it.
        Err(reason) if subject.is_isolated() || matches!(direction, Direction::Egress) => {
            return unparsed(skb, subject.id, direction, reason);
        }
        Err(_) => return Reason::NotIsolated,
    };
    let own_source = matches!(direction, Direction::Ingress)
        || F::own_address(subject.row()) == Some(network.saddr)
        || F::is_harmless_source(network.saddr);
    let transport = if matches!(network.fragment, Fragment::Later) {
        Ok(Transport {
            sport: 0,
            dport: 0,
            signal: Signal::None,
            tcp_flags: 0,
            icmp_type: 0,
        })
    } else {
        parse::transport(skb, &network)
    };
    let mut transport = match transport {
        Ok(transport) => transport,
        Err(_) if own_source && !subject.is_isolated() => return Reason::NotIsolated,
        Err(reason) => return unparsed(skb, subject.id, direction, reason),
    };
    let is_icmp = network.protocol == F::ICMP && !matches!(network.fragment, Fragment::Later);
    if is_icmp && F::is_link_control(transport.icmp_type, network.hop_limit) {
        return Reason::LinkControl;
    }
    if !own_source {
        let packet = Packet::<F>::new(subject, direction, &network, &transport);
        let decision = Decision::NOT_ISOLATED;
        event::dropped(
            skb.skb.skb,
            &packet,
            &decision,
            Reason::SpoofedSource as u32,
        );
        return Reason::SpoofedSource;
    }
    // An un-isolated endpoint needs no flows now, but the day a policy selects it, its connections
    // must be judged in the direction they were opened in: so their beginnings and ends are kept,
    // and only those.
    let tells_life = !matches!(transport.signal, Signal::None | Signal::NoFlow);
    if !tells_life && !subject.is_isolated() {
        return Reason::NotIsolated;
    }
    if matches!(network.fragment, Fragment::Later) {
        let Some(ports) = fragment::recall(subject, direction, &network) else {
            return unparsed(skb, subject.id, direction, Reason::FragmentUnknown);
        };
        return later_fragment(
            skb,
            subject,
            direction,
            &mut network,
            &mut transport,
            &ports,
        );
    }
    if is_icmp
        && F::is_icmp_error(transport.icmp_type)
        && icmp_error::<F>(
            skb.skb.skb,
            subject,
            direction as u32,
            network.l4,
            network.end,
        ) != 0
    {
        return Reason::IcmpError;
    }
    judge_flow(
        skb,
        subject,
        &Packet::new(subject, direction, &network, &transport),
    )
}

/// A later fragment takes part in its datagram's flow, like any packet of it.
#[inline(always)]
fn later_fragment<F: Family>(
    skb: &TcContext,
    subject: &Subject,
    direction: Direction,
    network: &mut Network<F>,
    transport: &mut Transport,
    ports: &policy_common::flow::FragmentPorts,
) -> Reason {
    network.protocol = ports.protocol;
    let mut packet = Packet::<F>::new(subject, direction, network, transport);
    packet.key.local_port = ports.local_port;
    packet.key.remote_port = ports.remote_port;
    packet.signal = Signal::None;
    judge_flow(skb, subject, &packet)
}

#[inline(always)]
fn judge_flow<F: Family>(skb: &TcContext, subject: &Subject, packet: &Packet<F>) -> Reason {
    // What opens a connection is never part of an older one.
    let known = if matches!(packet.signal, Signal::Open) {
        core::ptr::null_mut()
    } else {
        match flow::established(subject, packet) {
            Fast::Established => {
                if matches!(packet.fragment, Fragment::First) {
                    fragment::remember(packet);
                }
                return Reason::Established;
            }
            Fast::Known(flow) => flow,
            Fast::Unknown => core::ptr::null_mut(),
        }
    };
    let bits = judge_slowly(skb.skb.skb, subject, packet, known);
    // Never fails: `judge_slowly` returns nothing else.
    Reason::try_from(bits as u8).unwrap_or(Reason::NoPolicy)
}

/// Everything past the fast path, in a function of its own; returns a `Reason` as a number.
#[inline(never)]
fn judge_slowly<F: Family>(
    skb: *mut __sk_buff,
    subject: &Subject,
    packet: &Packet<F>,
    known: *mut Flow,
) -> u32 {
    let mut decision = Decision::NOT_ISOLATED;
    let reason = slow_reason(skb, subject, packet, known, &mut decision);
    match reason.verdict() {
        Verdict::Pass => {
            if matches!(packet.fragment, Fragment::First) {
                fragment::remember(packet);
            }
        }
        Verdict::Drop => {
            event::dropped(skb, packet, &decision, reason as u32);
        }
    }
    if config::log_decisions() {
        log_decision(skb, packet, &decision, reason);
    }
    reason as u32
}

#[inline(always)]
fn slow_reason<F: Family>(
    skb: *mut __sk_buff,
    subject: &Subject,
    packet: &Packet<F>,
    known: *mut Flow,
    decision: &mut Decision,
) -> Reason {
    if F::own_address(subject.row()) == Some(packet.key.remote) {
        return Reason::OwnAddress;
    }
    if !known.is_null()
        && let Some(reason) = flow::revisit(subject, packet, known, decision)
    {
        return reason;
    }
    let from_node = matches!(packet.direction, Direction::Ingress) && is_from_node(skb);
    flow::begin(subject, packet, from_node, decision)
}

/// Whether a socket of this node made the packet. What is forwarded, translated or not, has none.
#[inline(always)]
fn is_from_node(skb: *mut __sk_buff) -> bool {
    // SAFETY: the verifier lets TC programs read `sk`, and its fields once it is not null.
    unsafe {
        let socket = (*skb).__bindgen_anon_2.sk;
        if socket.is_null() {
            return false;
        }
        let full = bpf_sk_fullsock(socket);
        // Not a full socket: a connection that this node is just accepting. A full one without a type
        // is the stand-in of the kernel's test runs; every socket that someone opened has one.
        full.is_null() || (*full).type_ != 0
    }
}

/// Whether the ICMP error at `l4` belongs to an allowed flow.
#[inline(never)]
fn icmp_error<F: Family>(
    skb: *mut __sk_buff,
    subject: &Subject,
    direction: u32,
    l4: usize,
    end: usize,
) -> u32 {
    let skb = TcContext::new(skb);
    let direction = if direction == Direction::Ingress as u32 {
        Direction::Ingress
    } else {
        Direction::Egress
    };
    // The verifier wants a bound on the offset; no packet has headers this long.
    if l4 > 0x3fff {
        return 0;
    }
    let Some(key) = quoted::flow_key::<F>(&skb, subject, direction, l4, end) else {
        return 0;
    };
    let mut decision = Decision::NOT_ISOLATED;
    flow::is_allowed::<F>(subject, &key, &mut decision) as u32
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
