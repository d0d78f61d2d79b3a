//! Step 5: packets to addresses that are translated after `from_pod` saw them, judged where they leave.
//!
//! `from_pod` lets them through with the endpoint's slot in the mark; `exit` and `to_pod` judge the endpoint's
//! egress by the destination that they have by then, and clear the mark. What the policies allowed in the
//! current epoch is kept as a flow of its own (`FlowKey::TRANSLATED`), so that the next packet needs one lookup.
//! Nothing else is kept there: such a flow has one direction and no states, and forgetting it costs a
//! classification.

use aya_ebpf::bindings::{__sk_buff, BPF_ANY};
use aya_ebpf::programs::TcContext;
use policy_common::endpoint::Endpoint;
use policy_common::flow::{Flow, FlowKey, FlowState, Signal};
use policy_common::service::MarkBits;
use policy_common::verdict::{Direction, Reason, Verdict};

use crate::endpoint::{self, Subject};
use crate::family::{Family, V4, V6};
use crate::flow::denied;
use crate::maps::SERVICE_HINTS;
use crate::packet::translated_key;
use crate::policy::{Decision, classify};
use crate::scratch::{self, Scratch};
use crate::{
    EGRESS, ETHERTYPE_IPV4, ETHERTYPE_IPV6, UNDECIDED, config, event, fragment, hot, parse, quoted,
};

/// The slot in the packet's mark; 0 when it bears none.
#[inline(always)]
pub(crate) fn slot(skb: &TcContext) -> u32 {
    // SAFETY: a context field that the verifier lets TC programs read.
    config::mark().slot(unsafe { (*skb.skb.skb).mark })
}

/// Marks a packet that is to be judged later as the endpoint's.
#[inline(always)]
pub(crate) fn defer(skb: &TcContext, endpoint: u32) {
    set(skb, endpoint & 0xffff);
}

/// Takes the mark off a packet that is judged.
#[inline(always)]
pub(crate) fn settle(skb: &TcContext) {
    set(skb, config::settled_slot());
}

#[inline(always)]
fn set(skb: &TcContext, slot: u32) {
    let bits: MarkBits = config::mark();
    // SAFETY: a context field that the verifier lets TC programs read and write.
    unsafe { (*skb.skb.skb).mark = bits.with_slot((*skb.skb.skb).mark, slot) };
}

/// Judges the egress of the endpoint in `slot`, of a packet whose network header is at `N`.
#[inline(always)]
pub(crate) fn judge<const N: usize>(skb: &TcContext, slot: u32) -> u32 {
    let reason = match endpoint::by_slot(slot) {
        None => Reason::NoEndpoint as u32,
        Some(subject) if subject.policy(Direction::Egress) == 0 => Reason::NotIsolated as u32,
        Some(subject) => match event::ethertype(skb) {
            ETHERTYPE_IPV4 => return judge_ip::<V4, N>(skb, &subject),
            ETHERTYPE_IPV6 => return judge_ip::<V6, N>(skb, &subject),
            _ => Reason::NotIp as u32,
        },
    };
    if matches!(Reason::verdict_of(reason), Verdict::Drop) {
        event::dropped_unparsed(skb.skb.skb, 0, Direction::Egress as u32, reason);
    }
    reason
}

#[inline(always)]
fn judge_ip<F: Family, const N: usize>(skb: &TcContext, subject: &Subject) -> u32 {
    if let Some((network, transport)) = hot::read::<F, N>(skb) {
        let key = translated_key(subject.id, Direction::Egress, &network, &transport);
        if is_known::<F>(subject, &key) {
            return Reason::Established as u32;
        }
    }
    let reason = read::<F, N>(skb.skb.skb, subject.row, subject.epoch);
    if reason != UNDECIDED {
        return reason;
    }
    let reason = decide::<F>(subject.row, subject.epoch);
    let Some(scratch) = scratch::memory::<Scratch<F>>() else {
        return Reason::NoPolicy as u32;
    };
    if matches!(Reason::verdict_of(reason), Verdict::Drop) {
        event::dropped(skb.skb.skb, &scratch.packet, &scratch.decision, reason);
    } else if scratch.packet.fragment.is_first() {
        fragment::remember(&scratch.packet);
    }
    reason
}

/// Whether a packet of this flow was allowed in the current epoch. It needs no timeout: as long as the
/// epoch lasts, the answer would be the same.
#[inline(always)]
fn is_known<F: Family>(subject: &Subject, key: &FlowKey<F::Address>) -> bool {
    F::new_flows()
        .get_ptr_mut(key)
        // SAFETY: a row of an LRU table; see `flow::established`.
        .is_some_and(|flow| unsafe { (*flow).epoch } == subject.epoch)
}

/// Reads the packet into [`Scratch`], for [`decide`]; returns the reason of a drop, reported already, where it cannot
/// be read. Two functions for the sake of the stack, of which the kernel allows 512 bytes to all that are active.
#[inline(never)]
fn read<F: Family, const N: usize>(skb: *mut __sk_buff, row: *const Endpoint, epoch: u32) -> u32 {
    let subject = &Subject::again(row, epoch);
    let context = &TcContext::new(skb);
    let parsed = F::parse_network(context, N)
        .and_then(|network| parse::transport(context, &network).map(|l4| (network, l4)));
    let (network, transport) = match parsed {
        Ok(parsed) => parsed,
        Err(reason) => return crate::unparsed(context, subject.id, Direction::Egress, reason),
    };
    let key = translated_key(subject.id, Direction::Egress, &network, &transport);
    let is_error = F::is_icmp_error(transport.icmp_type);
    let Some(scratch) = Scratch::fill(Direction::Egress, &key, &network, &transport) else {
        return Reason::NoPolicy as u32;
    };
    if !is_error {
        return UNDECIDED;
    }
    if quoted::find_flow_key(context, subject, scratch, FlowKey::<F::Address>::TRANSLATED) {
        scratch.packet.key = scratch.quoted;
        scratch.packet.signal = Signal(Signal::NO_FLOW);
    } else {
        scratch.decision.outcome = Decision::DENY;
    }
    UNDECIDED
}

/// Judges the packet in [`Scratch`].
#[inline(never)]
fn decide<F: Family>(row: *const Endpoint, epoch: u32) -> u32 {
    match scratch::memory::<Scratch<F>>() {
        Some(scratch) => verdict(&Subject::again(row, epoch), scratch) as u32,
        None => Reason::NoPolicy as u32,
    }
}

/// Judges the packet in `scratch`, and tells the flow that the pod sees.
#[inline(always)]
fn verdict<F: Family>(subject: &Subject, scratch: &mut Scratch<F>) -> Reason {
    let Scratch {
        packet, decision, ..
    } = scratch;
    if decision.outcome == Decision::DENY {
        return Reason::PolicyDenied;
    }
    if F::own_address(subject.row()) == Some(packet.key.remote) {
        return Reason::OwnAddress;
    }
    if packet.fragment.is_later() && fragment::recall(packet) == 0 {
        return Reason::FragmentUnknown;
    }
    if is_known::<F>(subject, &packet.key) {
        return Reason::Established;
    }
    let policy = subject.policy(Direction::Egress);
    classify::<F>(
        policy,
        &packet.key.remote,
        packet.key.protocol,
        packet.key.remote_port,
        decision,
    );
    let allowed = decision.outcome == Decision::ALLOW;
    report::<F>(&packet.key, allowed);
    if !allowed {
        return denied(decision);
    }
    if packet.signal.begins_flow() {
        let flow = Flow {
            epoch: subject.epoch,
            last_seen: event::now(),
            rule: decision.rule,
            state: FlowState::ONE_WAY,
            initiator: EGRESS,
            flags: Flow::DEFERRED,
            _pad: 0,
            peer: 0,
        };
        // Where there is no room, the next packet is classified again.
        let _ = F::new_flows().insert(&packet.key, flow, BPF_ANY as u64);
    }
    Reason::PolicyAllowed
}

/// Notes the flow of a packet that `from_pod` defers, where the judge can find it: the kernel forwards a packet on
/// the CPU that received it, and nearly always at once.
#[inline(always)]
pub(crate) fn note<F: Family>(key: &FlowKey<F::Address>) {
    if let Some(note) = scratch::deferred::<FlowKey<F::Address>>() {
        *note = *key;
    }
}

/// Closes the way back of a connection that is not allowed any more: its replies bear the Service's address, so
/// that `to_pod` cannot judge them by themselves. Opens it again when its packets are allowed again.
#[inline(always)]
fn report<F: Family>(translated: &FlowKey<F::Address>, allowed: bool) {
    let Some(note) = scratch::deferred::<FlowKey<F::Address>>() else {
        return;
    };
    if note.endpoint != translated.endpoint
        || note.local_port != translated.local_port
        || note.protocol != translated.protocol
    {
        return;
    }
    let Some(flow) = F::flows().get_ptr_mut(note) else {
        return;
    };
    // SAFETY: a row of an LRU table; see `flow::established`.
    let flow = unsafe { &mut *flow };
    if flow.flags & Flow::DEFERRED == 0 {
        return;
    }
    if !allowed {
        flow.state = FlowState::REVOKED;
    } else if flow.state == FlowState::REVOKED {
        flow.state = FlowState::TWO_WAY;
    }
}

/// Whether an address is translated later.
#[inline(always)]
pub(crate) fn is_service<F: Family>(address: &F::Address) -> bool {
    let hint = F::hint(*address);
    SERVICE_HINTS
        .get(hint.word)
        .is_some_and(|word| *word & hint.bit != 0)
        // SAFETY: only asked whether the row is there.
        && unsafe { F::services().get(address) }.is_some()
}

/// The endpoint that sent a marked packet whose source address is not its own any more; 0 where it is.
#[inline(always)]
pub(crate) fn hidden_source<F: Family>(skb: &TcContext, saddr: F::Address) -> u32 {
    let slot = slot(skb);
    if slot == 0 {
        return 0;
    }
    match endpoint::by_slot(slot) {
        Some(source) if F::own_address(source.row()) != Some(saddr) => source.id,
        _ => 0,
    }
}

/// The address of the endpoint with this id; `None` when it is gone or has none of this family.
#[inline(always)]
pub(crate) fn address_of<F: Family>(endpoint: u32) -> Option<F::Address> {
    let subject = endpoint::by_slot(endpoint & 0xffff)?;
    if subject.id != endpoint {
        return None;
    }
    F::own_address(subject.row())
}
