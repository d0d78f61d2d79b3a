//! Step 3: flows. The fast path is in `established`; everything else is for packets that begin,
//! end or revive a flow.

use aya_ebpf::bindings::BPF_ANY;
use policy_common::flow::{Flow, FlowKey, FlowState, Signal, is_expired, next_state, protocol};
use policy_common::verdict::{Direction, Reason};

use crate::config;
use crate::endpoint::Subject;
use crate::event::now;
use crate::family::Family;
use crate::packet::Packet;
use crate::policy::{Decision, classify};

/// The fast path: whether the packet belongs to a live two-way flow that was allowed in the current
/// epoch, and says nothing about the connection's life.
#[inline(always)]
pub(crate) fn established<F: Family>(
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
    if row.epoch != subject.epoch || row.state != FlowState::TWO_WAY || signal.tells_life() {
        return Fast::Known;
    }
    let now = now();
    if row.last_seen != now {
        if is_over(row, key.protocol, now) {
            return Fast::Known;
        }
        row.last_seen = now;
    }
    Fast::Established
}

/// What the fast path found.
pub(crate) enum Fast {
    /// Done: the packet passes.
    Established,
    /// A flow that needs a second look.
    Known,
    /// No two-way flow.
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

/// Judges a flow by the policies of the direction it was opened in, and writes how to `decision`.
#[inline(always)]
fn judge<F: Family>(
    subject: &Subject,
    key: &FlowKey<F::Address>,
    direction: Direction,
    decision: &mut Decision,
) -> bool {
    let policy = subject.policy(direction);
    if policy == 0 {
        *decision = Decision::NOT_ISOLATED;
        return true;
    }
    classify::<F>(policy, key, opened_port(key, direction), decision);
    decision.outcome == Decision::ALLOW
}

/// The slow path, for packets that begin, end or revive a flow. `known` is the two-way flow that the
/// fast path found, or null; `from_node` says whether a socket of this node made the packet.
#[inline(always)]
pub(crate) fn resolve<F: Family>(
    subject: &Subject,
    packet: &Packet<F>,
    known: *mut Flow,
    from_node: impl FnOnce() -> bool,
    decision: &mut Decision,
) -> Reason {
    let now = now();
    let mut flow = known;
    if flow.is_null() && !packet.signal.opens() {
        flow = F::new_flows()
            .get_ptr_mut(&packet.key)
            .unwrap_or(core::ptr::null_mut());
    }
    // SAFETY (here and below): a row of an LRU table; see `established`.
    if !flow.is_null() && unsafe { is_over(&*flow, packet.key.protocol, now) } {
        flow = core::ptr::null_mut();
    }
    let (opened, exempt, judged) = if flow.is_null() {
        (packet.direction, from_node(), false)
    } else {
        let row = unsafe { &*flow };
        (
            initiator(flow),
            row.flags & Flow::NODE_ORIGIN != 0,
            row.epoch == subject.epoch,
        )
    };
    let allowed = judged || exempt || judge::<F>(subject, &packet.key, opened, decision);
    if flow.is_null() {
        return if allowed {
            begin(subject, packet, exempt, now, decision)
        } else {
            denied(decision)
        };
    }
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
    if known.is_null() && reply {
        promote(packet, row);
    }
    Reason::Established
}

/// Whether a flow has not been heard of for too long.
#[inline(always)]
fn is_over(flow: &Flow, protocol: u8, now: u32) -> bool {
    is_expired(
        now,
        flow.last_seen,
        config::flow_timeout(protocol, flow.state),
    )
}

/// The reason of a drop by classification.
#[inline(always)]
fn denied(decision: &Decision) -> Reason {
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
    from_node: bool,
    now: u32,
    decision: &Decision,
) -> Reason {
    let passed = if from_node {
        Reason::NodeOrigin
    } else {
        Reason::PolicyAllowed
    };
    if !packet.signal.begins_flow() {
        return passed;
    }
    let flow = Flow {
        epoch: subject.epoch,
        last_seen: now,
        rule: decision.rule,
        state: FlowState::ONE_WAY,
        initiator: packet.direction as u8,
        flags: if from_node { Flow::NODE_ORIGIN } else { 0 },
        _pad: 0,
    };
    if packet.signal.opens()
        && let Some(old) = F::flows().get_ptr_mut(&packet.key)
    {
        reopen(old, &flow);
        return passed;
    }
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

/// An allowed SYN on a key that has a two-way entry. A live flow opened the same way is left as it
/// is: the SYN may be a stray. Everything else begins anew, in place.
#[inline(always)]
fn reopen(old: *mut Flow, new: &Flow) {
    // SAFETY: a row of an LRU table; see `established`.
    unsafe {
        if (*old).state == FlowState::TWO_WAY && (*old).initiator == new.initiator {
            (*old).epoch = new.epoch;
            (*old).last_seen = new.last_seen;
        } else {
            *old = *new;
        }
    }
}

/// Whether a flow of `key` is known and allowed now: what an ICMP error that quotes it needs.
#[inline(always)]
pub(crate) fn is_allowed<F: Family>(
    subject: &Subject,
    key: &FlowKey<F::Address>,
    decision: &mut Decision,
) -> bool {
    let flow = match F::flows().get_ptr_mut(key) {
        Some(flow) => flow,
        None => match F::new_flows().get_ptr_mut(key) {
            Some(flow) => flow,
            None => return false,
        },
    };
    // SAFETY: a row of an LRU table; see `established`.
    unsafe {
        let timeout = config::flow_timeout(key.protocol, (*flow).state);
        if is_expired(now(), (*flow).last_seen, timeout) {
            return false;
        }
        if (*flow).epoch == subject.epoch {
            return (*flow).state != FlowState::REVOKED;
        }
        (*flow).flags & Flow::NODE_ORIGIN != 0
            || judge::<F>(subject, key, initiator(flow), decision)
    }
}
