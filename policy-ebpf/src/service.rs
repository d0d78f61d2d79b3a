//! Step 5: packets to addresses that are translated after `from_pod` saw them, judged where they leave.
//!
//! `from_pod` lets them through with what `carrier` says of their endpoint; `exit` and `to_pod` judge the endpoint's
//! egress by the destination that they have by then. What the policies allowed in the current epoch is kept as a flow
//! of its own (`FlowKey::TRANSLATED`), so that the next packet needs one lookup. Nothing else is kept there: such a flow
//! has one direction and no states, and forgetting it costs a classification.
//!
//! The pod's own flow is granted by its judge (`flow::grant`), and its answers pass only then.

use aya_ebpf::bindings::{__sk_buff, BPF_ANY};
use aya_ebpf::programs::TcContext;
use policy_common::endpoint::Endpoint;
use policy_common::flow::{Flow, FlowKey, FlowState, Signal};
use policy_common::service::ServiceAddress;
use policy_common::verdict::{Direction, Reason, Verdict};

use crate::carrier::{self, Carried};
use crate::endpoint::{self, Subject};
use crate::family::{Family, V4, V6};
use crate::flow::denied;
use crate::maps::SERVICE_HINTS;
use crate::packet::translated_key;
use crate::policy::{Decision, classify};
use crate::scratch::{self, Scratch};
use crate::{
    EGRESS, ETHERTYPE_IPV4, ETHERTYPE_IPV6, UNDECIDED, event, fragment, hot, parse, quoted,
};

/// Judges the egress of the endpoint that `carried` names, of a packet whose network header is at `N`.
#[inline(always)]
pub(crate) fn judge<const N: usize>(skb: &TcContext, carried: Carried) -> u32 {
    let reason = match endpoint::by_slot(carried.slot) {
        None => Reason::NoEndpoint as u32,
        Some(subject) => match event::ethertype(skb) {
            ETHERTYPE_IPV4 => return judge_family::<V4, N>(skb, &subject, carried.asks),
            ETHERTYPE_IPV6 => return judge_family::<V6, N>(skb, &subject, carried.asks),
            _ => Reason::NotIp as u32,
        },
    };
    if matches!(Reason::verdict_of(reason), Verdict::Drop) {
        event::dropped_unparsed(skb.skb.skb, 0, Direction::Egress as u32, reason);
    }
    reason
}

#[inline(always)]
fn judge_family<F: Family, const N: usize>(skb: &TcContext, subject: &Subject, asks: u32) -> u32 {
    let reason = if subject.policy(Direction::Egress) == 0 {
        Reason::NotIsolated as u32
    } else {
        judge_ip::<F, N>(skb, subject)
    };
    if asks != 0 {
        let allowed = matches!(Reason::verdict_of(reason), Verdict::Pass) as u32;
        carrier::settle::<F>(skb.skb.skb, subject.id, subject.epoch, allowed);
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

/// Judges the packet in `scratch`.
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
    if decision.outcome != Decision::ALLOW {
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

/// Whether an address is translated later.
#[inline(always)]
pub(crate) fn is_service<F: Family>(address: &F::Address) -> bool {
    kind_of::<F>(address) != 0
}

/// The kind of an address that is translated later (`ServiceAddress::kind`), 0 for every other.
#[inline(always)]
pub(crate) fn kind_of<F: Family>(address: &F::Address) -> u32 {
    let hint = F::hint(*address);
    let hinted = SERVICE_HINTS
        .get(hint.word)
        .is_some_and(|word| *word & hint.bit != 0);
    if !hinted {
        return 0;
    }
    // SAFETY: the value is read at once.
    unsafe { F::services().get(address) }.map_or(0, |row| row.kind)
}

/// The endpoint of this node that sent a packet whose source address is not its own any more; 0 where the packet's source
/// is what it says.
#[inline(always)]
pub(crate) fn hidden_source<F: Family>(skb: &TcContext, saddr: F::Address) -> u32 {
    if let Some(source) = carrier::sender(skb) {
        return if F::own_address(source.row()) == Some(saddr) {
            0
        } else {
            source.id
        };
    }
    // What carries the sender was wiped. The interface still says who sent it, where each pod has one to itself; but a
    // router's packet may come from anywhere, so only what was masqueraded is a pod's own.
    match endpoint::by_ifindex(carrier::ingress_ifindex(skb)) {
        Some(source)
            if F::own_address(source.row()) != Some(saddr)
                && kind_of::<F>(&saddr) == ServiceAddress::NODE =>
        {
            source.id
        }
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
