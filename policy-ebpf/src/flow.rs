//! Step 3: flows. The fast path is in `established`; everything else is for packets that begin,
//! end or revive a flow.

use aya_ebpf::bindings::BPF_ANY;
use policy_common::flow::{Flow, FlowKey, FlowState, Signal, is_expired, next_state, opposite};
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
pub(crate) fn established<F: Family>(subject: &Subject, packet: &Packet<F>) -> Fast {
    let Some(flow) = F::flows().get_ptr_mut(packet.key) else {
        return Fast::Unknown;
    };
    // SAFETY: an LRU element may be reused for another flow while we look at it, as with every
    // LRU table; its fields are plain numbers, and the worst case is a flow judged again.
    unsafe {
        let now = now();
        if (*flow).epoch == subject.epoch
            && (*flow).state == FlowState::TWO_WAY
            && !ends_or_begins(packet.signal)
        {
            let last_seen = (*flow).last_seen;
            if last_seen == now {
                return Fast::Established;
            }
            if !is_expired(
                now,
                last_seen,
                config::flow_timeout(packet.key.protocol, FlowState::TWO_WAY),
            ) {
                (*flow).last_seen = now;
                return Fast::Established;
            }
        }
    }
    Fast::Known(flow)
}

/// Whether a packet says something about its connection's life.
#[inline(always)]
fn ends_or_begins(signal: Signal) -> bool {
    matches!(
        signal,
        Signal::Open | Signal::OpenReply | Signal::Close | Signal::Reset
    )
}

/// What the fast path found.
pub(crate) enum Fast {
    /// Done: the packet passes.
    Established,
    /// A flow that needs a second look.
    Known(*mut Flow),
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

/// Judges a flow by the policies of the direction it was opened in.
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

/// A packet of a flow that is in a table: old epoch, closing, cut, or with a signal. `None` when the
/// flow is over and the packet begins anew.
#[inline(always)]
pub(crate) fn revisit<F: Family>(
    subject: &Subject,
    packet: &Packet<F>,
    flow: *mut Flow,
    decision: &mut Decision,
) -> Option<Reason> {
    let now = now();
    // SAFETY (whole function): a row of an LRU table; see `established`.
    unsafe {
        let state = (*flow).state;
        let timeout = config::flow_timeout(packet.key.protocol, state);
        if is_expired(now, (*flow).last_seen, timeout) {
            return None;
        }
        let opened = initiator(flow);
        let reply = opened as u8 != packet.direction as u8;
        if (*flow).epoch != subject.epoch {
            let exempt = (*flow).flags & Flow::NODE_ORIGIN != 0;
            if !exempt && !judge::<F>(subject, &packet.key, opened, decision) {
                // Cut. The entry stays, so that the other side's packets cannot pass for a new
                // flow in their own direction.
                (*flow).state = FlowState::REVOKED;
                (*flow).epoch = subject.epoch;
                (*flow).last_seen = now;
                return Some(denied(decision));
            }
            (*flow).epoch = subject.epoch;
            if state == FlowState::REVOKED {
                (*flow).state = FlowState::TWO_WAY;
            }
        } else if state == FlowState::REVOKED {
            if packet.key.protocol == policy_common::flow::protocol::TCP {
                (*flow).last_seen = now;
            }
            decision.policy = subject.policy(opened);
            return Some(Reason::FlowRevoked);
        }
        let state = (*flow).state;
        let next = next_state(state, packet.signal, reply);
        if next != state {
            (*flow).state = next;
        }
        (*flow).last_seen = now;
    }
    Some(Reason::Established)
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

/// A packet without a live two-way flow: part of a one-way flow, or the beginning of a new one.
#[inline(always)]
pub(crate) fn begin<F: Family>(
    subject: &Subject,
    packet: &Packet<F>,
    from_node: bool,
    decision: &mut Decision,
) -> Reason {
    if packet.signal as u8 != Signal::Open as u8
        && let Some(flow) = F::new_flows().get_ptr_mut(packet.key)
        && let Some(reason) = revisit(subject, packet, flow, decision)
    {
        promote(packet, flow, reason);
        return reason;
    }
    let mut flags = 0;
    let mut passed = Reason::PolicyAllowed;
    if from_node {
        flags = Flow::NODE_ORIGIN;
        passed = Reason::NodeOrigin;
    } else if !judge::<F>(subject, &packet.key, packet.direction, decision) {
        return denied(decision);
    }
    if !begins_flow(packet.signal) {
        return passed;
    }
    let flow = Flow {
        epoch: subject.epoch,
        last_seen: now(),
        rule: decision.rule,
        state: FlowState::ONE_WAY,
        initiator: packet.direction as u8,
        flags,
        _pad: 0,
    };
    if packet.signal as u8 == Signal::Open as u8
        && let Some(old) = F::flows().get_ptr_mut(packet.key)
    {
        reopen(old, &flow);
        return passed;
    }
    match F::new_flows().insert(packet.key, flow, BPF_ANY as u64) {
        Ok(()) => passed,
        Err(_) => Reason::FlowTableError,
    }
}

/// Moves a one-way flow that has become two-way to the table of such flows.
#[inline(always)]
fn promote<F: Family>(packet: &Packet<F>, flow: *mut Flow, reason: Reason) {
    // SAFETY: a row of an LRU table; see `established`.
    let value = unsafe { *flow };
    let is_live = reason as u8 == Reason::Established as u8;
    let is_reply = value.initiator == opposite(packet.direction) as u8;
    if is_live && is_reply && F::flows().insert(packet.key, value, BPF_ANY as u64).is_ok() {
        // Where the insert fails the one-way entry goes on serving both directions.
        let _ = F::new_flows().remove(packet.key);
    }
}

/// Whether a packet that was allowed, but belongs to no flow, begins one. What only ever answers, or
/// ends a connection, must not make way for the other direction.
#[inline(always)]
fn begins_flow(signal: Signal) -> bool {
    matches!(signal, Signal::None | Signal::Open | Signal::Close)
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
    let flow = match F::flows().get_ptr_mut(*key) {
        Some(flow) => flow,
        None => match F::new_flows().get_ptr_mut(*key) {
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
