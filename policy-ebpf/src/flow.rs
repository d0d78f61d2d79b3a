//! Step 3: flows. The fast path is in `established`; everything else is for packets that begin,
//! end or revive a flow.

use core::ptr::null_mut;

use aya_ebpf::bindings::BPF_ANY;
use aya_ebpf::programs::TcContext;
use policy_common::flow::{Flow, FlowKey, FlowState, Signal, is_expired, next_state, protocol};
use policy_common::verdict::{Direction, Reason};

use crate::config;
use crate::endpoint::Subject;
use crate::event::now;
use crate::family::Family;
use crate::maps::ONE_WAY_HINTS;
use crate::packet::Packet;
use crate::policy::{Decision, classify};
use crate::{EGRESS, carrier, service};

/// The fast path: whether the packet belongs to a live flow that was allowed in the current epoch, and says nothing about
/// the connection's life.
#[inline(always)]
pub(crate) fn established<F: Family, const D: u8>(
    subject: &Subject,
    key: &FlowKey<F::Address>,
    signal: Signal,
) -> Fast {
    let Some(flow) = F::flows().get_ptr_mut(key) else {
        return Fast::Unknown;
    };
    // SAFETY: an LRU element may be reused for another flow while we look at it, as with every
    // LRU table; its fields are plain numbers, and the worst case is a flow judged again.
    let row = unsafe { &mut *flow };
    let kind = row.state_and_flags();
    if !matches!(
        kind,
        Flow::TWO_WAY | Flow::TWO_WAY_DEFERRED | Flow::TWO_WAY_NODE
    ) || row.epoch != subject.epoch
        || signal.tells_life()
        || !is_fresh(row, key.protocol)
    {
        return Fast::Known;
    }
    if D == EGRESS && kind == Flow::TWO_WAY_DEFERRED {
        return Fast::Deferred;
    }
    if D != EGRESS && kind == Flow::TWO_WAY_NODE {
        return Fast::OfNode;
    }
    Fast::Established
}

/// As [`established`], of datagrams that nobody answers: among flows that were seen one way only. Only a hint leads here,
/// so that others pay nothing for it.
#[inline(always)]
pub(crate) fn unanswered<F: Family, const D: u8>(
    subject: &Subject,
    key: &FlowKey<F::Address>,
) -> Fast {
    let entropy = F::entropy(key);
    let hint = ONE_WAY_HINTS.get_ptr_mut(hint_row(entropy));
    // SAFETY: a row of this CPU's own.
    if hint.is_none_or(|hint| unsafe { *hint } != entropy) {
        return Fast::Unknown;
    }
    let Some(flow) = F::new_flows().get_ptr_mut(key) else {
        return Fast::Unknown;
    };
    // SAFETY: as in `established`.
    let row = unsafe { &mut *flow };
    if row.state != FlowState::ONE_WAY
        || row.initiator != D
        || row.epoch != subject.epoch
        || !is_fresh(row, key.protocol)
    {
        return Fast::Unknown;
    }
    if row.flags & Flow::DEFERRED != 0 {
        return Fast::Deferred;
    }
    if row.flags & Flow::NODE_ORIGIN != 0 {
        return Fast::OfNode;
    }
    Fast::Established
}

/// Remembers that the flow was seen one way only.
#[inline(always)]
fn hint_one_way<F: Family>(key: &FlowKey<F::Address>) {
    let entropy = F::entropy(key);
    if let Some(hint) = ONE_WAY_HINTS.get_ptr_mut(hint_row(entropy)) {
        // SAFETY: a row of this CPU's own.
        unsafe { *hint = entropy };
    }
}

#[inline(always)]
fn hint_row(entropy: u32) -> u32 {
    entropy >> 22
}

const _: () = assert!(policy_common::flow::ONE_WAY_HINTS == 1 << (32 - 22));

/// Whether a flow lives; notes that it was seen.
#[inline(always)]
fn is_fresh(row: &mut Flow, protocol: u8) -> bool {
    let now = now();
    if row.last_seen != now {
        if is_over(row, protocol, now) {
            return false;
        }
        row.last_seen = now;
    }
    true
}

/// What the fast path found.
pub(crate) enum Fast {
    /// Done: the packet passes.
    Established,
    /// Done: the packet passes, and is judged where it leaves.
    Deferred,
    /// A flow that this node began: the packet passes if this node made it.
    OfNode,
    /// A flow that needs a second look.
    Known,
    /// No such flow.
    Unknown,
}

/// The direction that a flow was opened in.
#[inline(always)]
fn initiator(flow: *const Flow) -> Direction {
    // SAFETY: a row of a map.
    if unsafe { (*flow).initiator } == Direction::Ingress as u8 {
        Direction::Ingress
    } else {
        Direction::Egress
    }
}

/// The port that a flow of `key`, opened in `direction`, was opened towards.
#[inline(always)]
fn opened_port<A: Copy>(key: &FlowKey<A>, direction: Direction) -> u16 {
    match direction {
        Direction::Ingress => key.local_port,
        Direction::Egress => key.remote_port,
    }
}

/// Judges a flow by the policies of the direction it was opened in, and writes how to `decision`. `peer` is
/// the endpoint that opened it, where the key has another address than that endpoint's.
#[inline(always)]
fn judge<F: Family>(
    subject: &Subject,
    key: &FlowKey<F::Address>,
    direction: Direction,
    peer: u32,
    decision: &mut Decision,
) -> bool {
    let policy = subject.policy(direction);
    // A pod can always reach itself, through a Service too.
    if policy == 0 || peer == subject.id {
        *decision = Decision::NOT_ISOLATED;
        return true;
    }
    let mut remote = key.remote;
    if peer != 0
        && let Some(address) = service::address_of::<F>(peer)
    {
        remote = address;
    }
    let port = opened_port(key, direction);
    classify::<F>(policy, &remote, key.protocol, port, decision);
    decision.outcome == Decision::ALLOW
}

/// Whether what the pod opens towards this address is judged where it leaves.
#[inline(always)]
fn is_deferred<F: Family>(subject: &Subject, remote: &F::Address, flags: u8) -> bool {
    // What was once deferred stays so: its translation lives on in the kernel's connection tracking. Where nothing
    // isolates the pod for egress there is nothing to judge.
    flags & Flow::DEFERRED != 0
        || (subject.policy(Direction::Egress) != 0 && service::is_service::<F>(remote))
}

/// The slow path, for packets that begin, end or revive a flow. `known` is the two-way flow that the
/// fast path found, or null; `from_node` says whether this node made the packet; `source` is the
/// endpoint that sent it, where its address was replaced.
#[inline(always)]
pub(crate) fn resolve<F: Family>(
    skb: &TcContext,
    subject: &Subject,
    packet: &Packet<F>,
    known: *mut Flow,
    from_node: bool,
    source: u32,
    decision: &mut Decision,
) -> Reason {
    let now = now();
    let mut flow = alive(known, packet.key.protocol, now);
    let mut two_way = !flow.is_null();
    if !packet.signal.opens() && (flow.is_null() || packet.signal.may_answer_opening()) {
        let new = F::new_flows().get_ptr_mut(&packet.key);
        let new = alive(new.unwrap_or(null_mut()), packet.key.protocol, now);
        // A connection that was opened while an older one of the same key is still known: the answer
        // belongs to the newer one, which then takes the older one's place.
        if flow.is_null() || is_opening_of_other_side(new, packet.direction) {
            flow = new;
            two_way = false;
        }
    }
    let (opened, flags, peer, judged) = if flow.is_null() {
        let flags = if from_node { Flow::NODE_ORIGIN } else { 0 };
        (packet.direction, flags, source, false)
    } else {
        // SAFETY: a row of an LRU table; see `established`.
        let row = unsafe { &*flow };
        (
            initiator(flow),
            row.flags,
            row.peer,
            row.epoch == subject.epoch,
        )
    };
    if matches!(opened, Direction::Egress)
        && (if judged {
            flags & Flow::DEFERRED != 0
        } else {
            is_deferred::<F>(subject, &packet.key.remote, flags)
        })
    {
        return defer(
            skb, subject, packet, flow, two_way, from_node, now, decision,
        );
    }
    if !flow.is_null()
        && flags & Flow::NODE_ORIGIN != 0
        && matches!(packet.direction, Direction::Ingress)
        && !from_node
    {
        // Somebody else has got the address and port that this node once used, and is judged by himself. The node's flow
        // stays what it is, and serves the answers.
        return if judge::<F>(subject, &packet.key, Direction::Ingress, source, decision) {
            Reason::PolicyAllowed
        } else {
            denied(decision)
        };
    }
    let allowed = judged
        || flags & Flow::NODE_ORIGIN != 0
        || judge::<F>(subject, &packet.key, opened, peer, decision);
    if flow.is_null() {
        return if allowed {
            begin(subject, packet, flags, peer, now, decision)
        } else {
            denied(decision)
        };
    }
    // SAFETY: as above.
    let row = unsafe { &mut *flow };
    if !allowed {
        // Cut. The entry stays, so that the other side's packets cannot pass for a new flow in their
        // own direction.
        row.state = FlowState::REVOKED;
        row.epoch = subject.epoch;
        row.last_seen = now;
        return denied(decision);
    }
    if row.state == FlowState::REVOKED {
        if judged {
            if packet.key.protocol == protocol::TCP {
                row.last_seen = now;
            }
            decision.policy = subject.policy(opened);
            return Reason::FlowRevoked;
        }
        row.state = FlowState::TWO_WAY;
    }
    row.epoch = subject.epoch;
    row.last_seen = now;
    let reply = opened as u8 != packet.direction as u8;
    row.state = next_state(row.state, packet.signal, reply);
    if !two_way {
        if reply {
            promote(packet, row);
        } else if packet.key.protocol == protocol::UDP {
            hint_one_way::<F>(&packet.key);
        }
    }
    Reason::Established
}

/// A packet of a flow that is judged elsewhere. The pod's packets pass, to be judged where they leave. The answers pass
/// once a judge has granted the flow: where the packets are never seen by one, nothing comes back.
#[inline(always)]
#[expect(
    clippy::too_many_arguments,
    reason = "inlined; a structure would be put together on the stack"
)]
fn defer<F: Family>(
    skb: &TcContext,
    subject: &Subject,
    packet: &Packet<F>,
    flow: *mut Flow,
    two_way: bool,
    from_node: bool,
    now: u32,
    decision: &mut Decision,
) -> Reason {
    let leaves = matches!(packet.direction, Direction::Egress);
    // 0 stands for "has not asked".
    let asking = now | 1;
    if flow.is_null() {
        return match begin_at(0, packet, Flow::DEFERRED, asking, now, decision) {
            Reason::PolicyAllowed => {
                carrier::ask::<F>(skb, &packet.key);
                Reason::Deferred
            }
            failed => failed,
        };
    }
    // SAFETY: a row of an LRU table; see `established`.
    let row = unsafe { &mut *flow };
    row.flags |= Flow::DEFERRED;
    let is_closed = row.state == FlowState::REVOKED;
    if is_closed && !leaves {
        decision.policy = subject.policy(Direction::Egress);
        return Reason::FlowRevoked;
    }
    let granted = row.epoch == subject.epoch && !is_closed;
    if leaves {
        if granted {
            carrier::defer::<F>(skb, &packet.key);
        } else {
            if row.peer == 0 {
                row.peer = asking;
            }
            carrier::ask::<F>(skb, &packet.key);
        }
    } else if !granted {
        if from_node {
            // The node itself answers: what is delivered here meets no judge, and needs none.
            row.epoch = subject.epoch;
            row.peer = 0;
        } else if packet.signal.0 & Signal::RST == 0 {
            let waits =
                row.peer != 0 && now.wrapping_sub(row.peer) as i32 > config::second() as i32;
            if row.epoch == 0 || waits {
                return Reason::ServiceUnverified;
            }
        }
    }
    row.last_seen = now;
    if !is_closed {
        row.state = next_state(row.state, packet.signal, !leaves);
    }
    if leaves {
        if !two_way && packet.key.protocol == protocol::UDP {
            hint_one_way::<F>(&packet.key);
        }
        return Reason::Deferred;
    }
    if !two_way {
        promote(packet, row);
    }
    Reason::Established
}

/// A judge has seen a packet of a deferred flow, and allows it or not.
#[inline(always)]
pub(crate) fn grant<F: Family>(key: &FlowKey<F::Address>, epoch: u32, allowed: bool) {
    let mut found = F::new_flows().get_ptr_mut(key);
    let mut opened = FlowState::ONE_WAY;
    if found.is_none() {
        found = F::flows().get_ptr_mut(key);
        opened = FlowState::TWO_WAY;
    }
    let Some(flow) = found else {
        return;
    };
    // SAFETY: a row of an LRU table; see `established`.
    let row = unsafe { &mut *flow };
    if row.flags & Flow::DEFERRED == 0 {
        return;
    }
    if !allowed {
        row.state = FlowState::REVOKED;
        return;
    }
    if row.state == FlowState::REVOKED {
        row.state = opened;
    }
    row.peer = 0;
    row.epoch = epoch;
}

/// The flow, or null when it has not been heard of for too long.
#[inline(always)]
fn alive(flow: *mut Flow, protocol: u8, now: u32) -> *mut Flow {
    // SAFETY: a row of an LRU table; see `established`.
    if flow.is_null() || unsafe { is_over(&*flow, protocol, now) } {
        return null_mut();
    }
    flow
}

/// Whether a flow, which may be null, was opened against `direction` and not answered yet.
#[inline(always)]
fn is_opening_of_other_side(flow: *mut Flow, direction: Direction) -> bool {
    // SAFETY: a row of an LRU table; see `established`.
    !flow.is_null()
        && unsafe { (*flow).state } == FlowState::ONE_WAY
        && initiator(flow) as u8 != direction as u8
}

/// Whether a flow has not been heard of for too long.
#[inline(always)]
fn is_over(flow: &Flow, number: u8, now: u32) -> bool {
    // What this node asks by UDP is over when its connection tracking thinks so: the port may be another's then.
    let state = if flow.flags & Flow::NODE_ORIGIN != 0 && number == protocol::UDP {
        FlowState::ONE_WAY
    } else {
        flow.state
    };
    is_expired(now, flow.last_seen, config::flow_timeout(number, state))
}

/// The reason of a drop by classification.
#[inline(always)]
pub(crate) fn denied(decision: &Decision) -> Reason {
    if decision.outcome == Decision::INCOMPLETE {
        Reason::NoPolicy
    } else {
        Reason::PolicyDenied
    }
}

/// Records a flow that an allowed packet begins.
#[inline(always)]
fn begin<F: Family>(
    subject: &Subject,
    packet: &Packet<F>,
    flags: u8,
    peer: u32,
    now: u32,
    decision: &Decision,
) -> Reason {
    begin_at(subject.epoch, packet, flags, peer, now, decision)
}

/// As [`begin`], granted in `epoch`.
#[inline(always)]
fn begin_at<F: Family>(
    epoch: u32,
    packet: &Packet<F>,
    flags: u8,
    peer: u32,
    now: u32,
    decision: &Decision,
) -> Reason {
    let passed = if flags & Flow::NODE_ORIGIN != 0 {
        Reason::NodeOrigin
    } else {
        Reason::PolicyAllowed
    };
    if !packet.signal.begins_flow() {
        return passed;
    }
    let flow = Flow {
        epoch,
        last_seen: now,
        rule: decision.rule,
        state: FlowState::ONE_WAY,
        initiator: packet.direction as u8,
        flags,
        _pad: 0,
        peer,
    };
    match F::new_flows().insert(&packet.key, flow, BPF_ANY as u64) {
        Ok(()) => passed,
        Err(_) => Reason::FlowTableError,
    }
}

/// Moves a one-way flow that has become two-way to the table of such flows. Where the insert fails,
/// the one-way entry goes on serving both directions.
#[inline(always)]
fn promote<F: Family>(packet: &Packet<F>, flow: &Flow) {
    let value = *flow;
    if F::flows()
        .insert(&packet.key, value, BPF_ANY as u64)
        .is_ok()
    {
        let _ = F::new_flows().remove(&packet.key);
    }
}

/// Whether a flow of `key` is known and allowed now, which is what an ICMP error that quotes it needs; then whether
/// it is deferred.
#[inline(always)]
pub(crate) fn is_allowed<F: Family>(
    subject: &Subject,
    key: &FlowKey<F::Address>,
    decision: &mut Decision,
) -> Option<bool> {
    let now = now();
    let find = |flow: Option<*mut Flow>| alive(flow.unwrap_or(null_mut()), key.protocol, now);
    // Where a connection was opened while an older one of the same key is still known, it is the newer.
    let mut flow = find(F::new_flows().get_ptr_mut(key));
    if flow.is_null() {
        flow = find(F::flows().get_ptr_mut(key));
    }
    if flow.is_null() {
        return None;
    }
    // SAFETY: a row of an LRU table; see `established`.
    let row = unsafe { &*flow };
    let deferred = row.flags & Flow::DEFERRED != 0;
    let allowed = if deferred || row.epoch == subject.epoch {
        row.state != FlowState::REVOKED
    } else {
        row.flags & Flow::NODE_ORIGIN != 0
            || judge::<F>(subject, key, initiator(flow), row.peer, decision)
    };
    allowed.then_some(deferred)
}
