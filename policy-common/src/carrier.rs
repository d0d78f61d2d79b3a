//! The carrier: how a packet says which endpoint sent it until it is judged where it leaves.
//!
//! Every bit of `skb->mark` has an owner somewhere, and netfilter restores it from connections. So `from_pod` writes
//! two other fields: a [token](encode) into `skb->hash`, which netfilter cannot write, and a [`Tag`] into
//! `skb->tc_index`. Neither proves anything by itself: whoever reads them confirms them by the interface that the
//! packet came in by.

use bytemuck::{Pod, Zeroable};

/// The highest slot that a token and a tag can carry.
pub const HIGHEST_SLOT: u32 = (1 << SLOT_BITS) - 1;

const SLOT_BITS: u32 = 12;
const CHECK_BITS: u32 = 10;
/// Bits of the token that vary with the flow, so that what spreads packets by their hash still spreads them.
const ENTROPY_BITS: u32 = 10;
const CHECK: u32 = 0x2a5;
/// Knuth's multiplicative hash constant (The Art of Computer Programming, 6.4).
const MIX: u32 = 0x9e37_79b1;

/// The token of `slot`, 1 to [`HIGHEST_SLOT`]. Packets of one flow have one `entropy`, of which the upper bits count.
#[inline(always)]
#[must_use]
pub const fn encode(slot: u32, entropy: u32) -> u32 {
    let entropy = entropy >> (32 - ENTROPY_BITS);
    entropy << (SLOT_BITS + CHECK_BITS) | ((slot << CHECK_BITS | CHECK) ^ mask(entropy))
}

/// The slot in a token; 0 where `hash` is none. One random number in 1,024 passes for a token.
#[inline(always)]
#[must_use]
pub const fn decode(hash: u32) -> u32 {
    let entropy = hash >> (SLOT_BITS + CHECK_BITS);
    let value = (hash ^ mask(entropy)) & ((1 << (SLOT_BITS + CHECK_BITS)) - 1);
    if value & ((1 << CHECK_BITS) - 1) == CHECK {
        value >> CHECK_BITS
    } else {
        0
    }
}

const fn mask(entropy: u32) -> u32 {
    entropy.wrapping_mul(MIX) >> ENTROPY_BITS
}

/// What `skb->tc_index` says: a kind in the upper 4 bits, and an endpoint's slot in the lower 12.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tag;

impl Tag {
    /// Sent by the endpoint in the slot with its own source address; nothing is left to judge.
    pub const SENT: u32 = 0xa000;
    /// Sent by the endpoint in the slot, and to be judged where it leaves.
    pub const DEFERRED: u32 = 0xb000;
    /// As [`Tag::DEFERRED`], and the judge is to grant or revoke the flow in `pending`.
    pub const ASKING: u32 = 0xc000;
    /// Judged already; later devices let it pass.
    pub const JUDGED: u32 = 0xd000;
    /// Made by this node, as its socket showed; clones that a bridge floods lose the socket. No slot.
    pub const NODE: u32 = 0xe000;

    /// The kind's bits.
    pub const KIND: u32 = 0xf000;
    /// The slot's bits.
    pub const SLOT: u32 = 0x0fff;
}

/// Value of `pending_v4/6`, at [`pending_index`] of the token: the flow whose packet asks to be granted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Pending<K> {
    /// The packet's token, 0 where nothing is pending.
    pub token: u32,
    /// The key of the flow as its endpoint sees it.
    pub key: K,
}

crate::pod_without_padding!(
    Pending<crate::flow::FlowKeyV4>,
    4 + size_of::<crate::flow::FlowKeyV4>()
);
crate::pod_without_padding!(
    Pending<crate::flow::FlowKeyV6>,
    4 + size_of::<crate::flow::FlowKeyV6>()
);

/// Number of rows of `pending_v4/6` that tokens lead to, a power of two. Behind them is a row for each slot.
pub const PENDING_ROWS: u32 = 1 << 13;

/// The row of `pending_v4/6` for a token.
#[inline(always)]
#[must_use]
pub const fn pending_index(token: u32) -> u32 {
    token.wrapping_mul(MIX) >> 19 & (PENDING_ROWS - 1)
}

/// Value of `slots`: where the endpoint is whose id has this slot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Slot {
    /// Its host-side interface, 0 where the slot is free.
    pub ifindex: u32,
    /// The bridge or VRF that the interface belongs to; 0 where it belongs to none.
    pub master: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_gives_its_slot_back() {
        for slot in [1, 2, 250, HIGHEST_SLOT] {
            for entropy in (0..1 << ENTROPY_BITS).map(|e| e << (32 - ENTROPY_BITS)) {
                assert_eq!(decode(encode(slot, entropy)), slot);
            }
        }
    }

    #[test]
    fn random_hashes_are_rarely_tokens() {
        let mut state = 1_u32;
        let tokens = (0..1_000_000).filter(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            decode(state.rotate_left(16) ^ state) != 0
        });
        let tokens = tokens.count();
        assert!((500..1_500).contains(&tokens), "{tokens}");
    }

    #[test]
    fn tokens_spread_over_pending_rows() {
        let rows: std::collections::HashSet<_> = (0..1_024_u32)
            .map(|entropy| pending_index(encode(7, entropy << 22)))
            .collect();
        assert!(rows.len() > 900, "{}", rows.len());
    }
}
