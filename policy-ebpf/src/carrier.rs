//! The carrier on a packet: written by `from_pod`, read where the packet leaves (see `policy_common::carrier`).
//!
//! Both fields can be written by others: a foreign filter's verdict writes `tc_index`, a foreign program may clear the
//! hash, and a random hash can look like a token. So a reader believes what two of three say: token, tag, and the
//! interface that the packet came in by, which only the kernel writes.

use aya_ebpf::helpers::generated::{bpf_set_hash, bpf_set_hash_invalid, bpf_sk_fullsock};
use aya_ebpf::programs::TcContext;
use policy_common::carrier::{self, PENDING_ROWS, Pending, Tag};
use policy_common::flow::FlowKey;
use policy_common::verdict::{Direction, Reason};

use crate::endpoint::{self, Subject};
use crate::family::Family;
use crate::maps::SLOTS;
use crate::{ETHERTYPE_IPV6, event, parse};

/// What a packet says of who sent it, confirmed.
#[derive(Clone, Copy)]
pub(crate) struct Carried {
    /// The slot of the endpoint whose egress is still to be judged; 0 = nobody's.
    pub(crate) slot: u32,
    /// Whether the flow is to be granted or revoked.
    pub(crate) asks: u32,
}

impl Carried {
    const NOTHING: Self = Self { slot: 0, asks: 0 };
}

#[inline(always)]
fn hash(skb: &TcContext) -> u32 {
    // SAFETY: a context field that the verifier lets TC programs read.
    unsafe { (*skb.skb.skb).hash }
}

#[inline(always)]
fn tag(skb: &TcContext) -> u32 {
    // SAFETY: as above.
    unsafe { (*skb.skb.skb).tc_index }
}

#[inline(always)]
fn set_tag(skb: &TcContext, tag: u32) {
    // SAFETY: a context field that the verifier lets TC programs write.
    unsafe { (*skb.skb.skb).tc_index = tag };
}

/// The interface that the packet came in by; 0 for what this node made.
#[inline(always)]
pub(crate) fn ingress_ifindex(skb: &TcContext) -> u32 {
    // SAFETY: a context field that the verifier lets TC programs read.
    unsafe { (*skb.skb.skb).ingress_ifindex }
}

/// Takes away what a pod may have written itself.
#[inline(always)]
pub(crate) fn scrub(skb: &TcContext) {
    set_tag(skb, 0);
    if carrier::decode(hash(skb)) != 0 {
        // SAFETY: a helper that only writes the packet's hash.
        unsafe { bpf_set_hash_invalid(skb.skb.skb) };
    }
}

/// The endpoint sent this packet with its own source address.
#[inline(always)]
pub(crate) fn sent(skb: &TcContext, endpoint: u32) {
    set_tag(skb, Tag::SENT | endpoint & Tag::SLOT);
}

/// The endpoint sent this packet of the flow `key`, which was granted: it is to be judged where it leaves.
#[inline(always)]
pub(crate) fn defer<F: Family>(skb: &TcContext, key: &FlowKey<F::Address>) {
    put::<F>(skb, key, Tag::DEFERRED);
}

/// As [`defer`], for a flow that was not granted yet: the judge is to find it.
#[inline(always)]
pub(crate) fn ask<F: Family>(skb: &TcContext, key: &FlowKey<F::Address>) {
    let token = put::<F>(skb, key, Tag::ASKING);
    // Once by the token, and once by the slot, for the case that the hash is lost on the way.
    for row in [
        carrier::pending_index(token),
        PENDING_ROWS | slot(key.endpoint),
    ] {
        if let Some(pending) = F::pending().get_ptr_mut(row) {
            // SAFETY: a row of the table. Two CPUs may write it at once: the reader checks whose key it is, and what it
            // does to another flow of the same endpoint, that flow's own packet does again.
            unsafe { *pending = Pending { token, key: *key } };
        }
    }
}

#[inline(always)]
fn put<F: Family>(skb: &TcContext, key: &FlowKey<F::Address>, kind: u32) -> u32 {
    let slot = slot(key.endpoint);
    let token = carrier::encode(slot, F::entropy(key));
    // SAFETY: a helper that only writes the packet's hash.
    unsafe { bpf_set_hash(skb.skb.skb, token) };
    set_tag(skb, kind | slot);
    token
}

#[inline(always)]
fn slot(endpoint: u32) -> u32 {
    endpoint & Tag::SLOT
}

/// Whose packet this is, where it is to be judged: confirmed, and counted where a part of it was lost. The network
/// header is at `N`.
#[inline(always)]
pub(crate) fn read<const N: usize>(skb: &TcContext) -> Carried {
    let token = carrier::decode(hash(skb));
    let tag = tag(skb);
    let kind = tag & Tag::KIND;
    let is_deferred = kind == Tag::DEFERRED || kind == Tag::ASKING;
    if token == 0 && !is_deferred {
        return Carried::NOTHING;
    }
    if token == tag & Tag::SLOT {
        return match kind {
            // Judged where it left an inner device.
            Tag::JUDGED => Carried::NOTHING,
            Tag::DEFERRED => Carried {
                slot: token,
                asks: 0,
            },
            Tag::ASKING => Carried {
                slot: token,
                asks: 1,
            },
            _ => damaged::<N>(skb, token, tag),
        };
    }
    damaged::<N>(skb, token, tag)
}

/// One of token and tag is missing or says something else.
#[inline(always)]
fn damaged<const N: usize>(skb: &TcContext, token: u32, tag: u32) -> Carried {
    let slot = confirm(skb.skb.skb, token, tag, N as u32);
    let reason = if slot == 0 {
        Reason::CarrierForeign
    } else {
        Reason::CarrierDamaged
    };
    event::count(skb, Direction::Egress, reason as u32);
    // Nobody knows any more whether it asked.
    Carried { slot, asks: 1 }
}

/// The slot that is to be believed of a damaged carrier, 0 for none.
#[inline(never)]
fn confirm(skb: *mut aya_ebpf::bindings::__sk_buff, token: u32, tag: u32, network: u32) -> u32 {
    let skb = &TcContext::new(skb);
    let from = ingress_ifindex(skb);
    let kind = tag & Tag::KIND;
    let slot = if token != 0 { token } else { tag & Tag::SLOT };
    let Some(row) = SLOTS.get(slot) else { return 0 };
    if from == 0 {
        // IPv6 fragments that were made on the way lose their interface, and keep the rest.
        let fragment = token == 0 && is_ipv6_fragment(skb, network);
        return if fragment { slot } else { 0 };
    }
    if from == row.ifindex {
        return slot;
    }
    if from != row.master {
        return 0;
    }
    if token == 0 {
        return slot;
    }
    // A bridge is many pods' interface. Where the tag is one of ours, it says that the packet is another's, or none to
    // be judged; where it is not, the flow has to be one that its endpoint just asked for.
    if kind >= Tag::SENT && kind <= Tag::NODE {
        return 0;
    }
    let hash = hash(skb);
    let row = carrier::pending_index(hash);
    let v4 = crate::maps::PENDING_V4.get(row).map_or(0, |row| row.token);
    let v6 = crate::maps::PENDING_V6.get(row).map_or(0, |row| row.token);
    if v4 == hash || v6 == hash { slot } else { 0 }
}

#[inline(always)]
fn is_ipv6_fragment(skb: &TcContext, network: u32) -> bool {
    const FRAGMENT: u8 = 44;
    if event::ethertype(skb) != ETHERTYPE_IPV6 {
        return false;
    }
    let next = if network == 0 {
        parse::bytes::<8>(skb, 0)
    } else if network == parse::NETWORK_OFFSET as u32 {
        parse::bytes::<8>(skb, parse::NETWORK_OFFSET)
    } else {
        None
    };
    next.is_some_and(|header| parse::byte(header, 6) == FRAGMENT)
}

/// The flow that a judged packet asked about: grants it, or cuts the way back.
#[inline(never)]
pub(crate) fn settle<F: Family>(
    skb: *mut aya_ebpf::bindings::__sk_buff,
    endpoint: u32,
    epoch: u32,
    allowed: u32,
) -> u32 {
    let skb = &TcContext::new(skb);
    let hash = hash(skb);
    let row = if carrier::decode(hash) == slot(endpoint) {
        carrier::pending_index(hash)
    } else {
        PENDING_ROWS | slot(endpoint)
    };
    let Some(pending) = F::pending().get_ptr_mut(row) else {
        return 0;
    };
    // SAFETY: a row of the table; see `ask`.
    let pending = unsafe { &*pending };
    if pending.key.endpoint != endpoint {
        return 0;
    }
    crate::flow::grant::<F>(&pending.key, epoch, allowed != 0);
    0
}

/// The packet was judged and goes on: later devices let it pass.
#[inline(always)]
pub(crate) fn judged(skb: &TcContext, slot: u32) {
    set_tag(skb, Tag::JUDGED | slot);
}

/// The packet was judged and enters a pod, to which it is to say nothing.
#[inline(always)]
pub(crate) fn delivered(skb: &TcContext) {
    scrub(skb);
}

/// The endpoint of this node that sent the packet, by what confirms it; `None` where nothing does.
#[inline(always)]
pub(crate) fn sender(skb: &TcContext) -> Option<Subject> {
    let from = ingress_ifindex(skb);
    if from == 0 {
        return None;
    }
    let tag = tag(skb);
    let kind = tag & Tag::KIND;
    let slot = if kind >= Tag::SENT && kind <= Tag::JUDGED {
        tag & Tag::SLOT
    } else {
        carrier::decode(hash(skb))
    };
    if slot != 0
        && let Some(row) = SLOTS.get(slot)
        && (row.ifindex == from || row.master == from)
    {
        return endpoint::by_slot(slot);
    }
    None
}

/// Whether this node made the packet.
///
/// It came in by no interface, and carries a socket: on a bridge and past a redirect a pod's packet carries that pod's
/// socket, but then it came in by an interface. Without a socket it proves nothing (SYNPROXY sends strangers' packets so,
/// and fragments of IPv6 that were made on the way are so) unless `from_node` saw the socket before a bridge flooded
/// the packet.
#[inline(always)]
pub(crate) fn is_from_node(skb: &TcContext, may_be_clone: bool) -> bool {
    if ingress_ifindex(skb) != 0 {
        return false;
    }
    match socket(skb) {
        Socket::NONE => may_be_clone && tag(skb) == Tag::NODE,
        Socket::OPENED => true,
        _ => false,
    }
}

/// On TC egress of a bridge: remembers on the packet that this node made it.
#[inline(always)]
pub(crate) fn stamp_node(skb: &TcContext) {
    if ingress_ifindex(skb) != 0 {
        return;
    }
    if socket(skb) == Socket::OPENED {
        set_tag(skb, Tag::NODE);
    } else if tag(skb) == Tag::NODE {
        set_tag(skb, 0);
    }
}

struct Socket;

impl Socket {
    const NONE: u32 = 0;
    const OPENED: u32 = 1;
    /// The stand-in of the kernel's test runs.
    const STAND_IN: u32 = 2;
}

#[inline(always)]
fn socket(skb: &TcContext) -> u32 {
    // SAFETY: the verifier lets TC programs read `sk`, and its fields once it is not null.
    unsafe {
        let socket = (*skb.skb.skb).__bindgen_anon_2.sk;
        if socket.is_null() {
            return Socket::NONE;
        }
        let full = bpf_sk_fullsock(socket);
        // Not a full socket: a connection that this node is just accepting. A full one without a type is the stand-in of
        // the kernel's test runs; every socket that someone opened has one.
        if full.is_null() || (*full).type_ != 0 {
            Socket::OPENED
        } else {
            Socket::STAND_IN
        }
    }
}
