//! Step 4: one classification by bit vectors.
//!
//! Address -> identity; {page, identity} -> rules whose peers match; {page, protocol, port} -> rules
//! whose ports match; the first rule in both decides by its tier. `policy_core::tables` has the same
//! classification for tests, without a kernel.

use aya_ebpf::btf_maps::lpm_trie::Key;
use policy_common::event::NO_RULE;
use policy_common::flow::FlowKey;
use policy_common::policy::{
    MAX_PAGES, PeerKey, PolicyHeader, RULES_PER_PAGE, RuleAction, RuleBits, RuleKey, Tier, WORDS,
};
use policy_common::port::{PortData, PortKey};

use crate::family::Family;
use crate::maps::{PEERS, POLICIES, PORTS, RULE_COUNTS, RULES};

/// The outcome of a classification, and what an event tells of it.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Decision {
    /// One of the numbers beside this struct.
    pub(crate) outcome: u32,
    /// Deciding rule counted over all pages, or `NO_RULE`.
    pub(crate) rule: u32,
    /// First page of the rule list that judged.
    pub(crate) policy: u32,
    /// The remote address's identity, as far as it was looked up.
    pub(crate) identity: u32,
}

impl Decision {
    /// The packet may pass.
    pub(crate) const ALLOW: u32 = 0;
    /// The packet must drop.
    pub(crate) const DENY: u32 = 1;
    /// Rows are missing: the packet must drop, and something is wrong.
    pub(crate) const INCOMPLETE: u32 = 2;

    /// What holds in a direction in which nothing isolates the pod.
    pub(crate) const NOT_ISOLATED: Self = Self {
        outcome: Self::ALLOW,
        rule: NO_RULE,
        policy: 0,
        identity: 0,
    };
}

/// Judges a flow of `key` that is opened towards `port`, by the rule list that begins at page
/// `policy`, and writes the outcome to `decision`.
#[inline(never)]
pub(crate) fn classify<F: Family>(
    policy: u32,
    key: &FlowKey<F::Address>,
    port: u16,
    decision: &mut Decision,
) -> u32 {
    decision.policy = policy;
    decision.rule = NO_RULE;
    decision.outcome = Decision::INCOMPLETE;
    let exact = Key::<F::Address>::new(F::ADDRESS_BITS, key.remote);
    // SAFETY: the value is copied at once.
    let mut identity = match unsafe { F::identities().get(key.remote) } {
        Some(found) => Some(found.id),
        None => None,
    };
    let mut page = policy;
    let mut isolated = false;
    let mut past_admin = false;
    for number in 0..MAX_PAGES {
        let Some(header) = POLICIES.get(page) else {
            return 0;
        };
        if header.flags & PolicyHeader::VALID == 0 {
            return 0;
        }
        isolated |= header.flags & PolicyHeader::ISOLATED != 0;
        // An address without a row of its own takes that of its longest prefix, but only a page
        // that names prefixes could tell the difference.
        if identity.is_none() && header.flags & PolicyHeader::HAS_PREFIXES != 0 {
            identity = Some(match F::prefixes().get(&exact) {
                Some(found) => found.id,
                None => 0,
            });
        }
        let known = identity.unwrap_or(0);
        decision.identity = known;
        let from = if past_admin {
            header.network_policy_start as u32
        } else {
            0
        };
        let hit = match_page(page, header, known, key.protocol, port, from);
        if hit != NO_RULE {
            match act(page, header, hit, isolated) {
                Act::PASS => {
                    past_admin = true;
                    count(page, hit);
                    let from = header.network_policy_start as u32;
                    let hit = match_page(page, header, known, key.protocol, port, from);
                    if hit != NO_RULE {
                        let outcome = act(page, header, hit, isolated);
                        return finish(decision, page, number, hit, outcome);
                    }
                }
                outcome => return finish(decision, page, number, hit, outcome),
            }
        }
        page = header.next_page;
        if page == 0 {
            decision.outcome = if isolated {
                Decision::DENY
            } else {
                Decision::ALLOW
            };
            return 0;
        }
    }
    // More pages than the format has: tables are wrong, and INCOMPLETE stands.
    0
}

/// What a matching rule does.
struct Act;

impl Act {
    const ALLOW: u32 = 0;
    const DENY: u32 = 1;
    const PASS: u32 = 2;
}

#[inline(always)]
fn act(page: u32, header: &PolicyHeader, rule: u32, isolated: bool) -> u32 {
    let tier = header.tier(rule);
    if matches!(tier, Tier::NetworkPolicy) {
        return Act::ALLOW;
    }
    if matches!(tier, Tier::Baseline) && isolated {
        // The NetworkPolicy tier has the last word on an isolated pod, and none of its rules matched.
        return Act::DENY;
    }
    // SAFETY: the value is read at once.
    match unsafe { RULES.get(RuleKey { policy: page, rule }) } {
        Some(row) if row.action == RuleAction::ALLOW => Act::ALLOW,
        Some(row) if row.action == RuleAction::PASS && matches!(tier, Tier::Admin) => Act::PASS,
        // A missing row is a rule of unknown effect: fail closed.
        _ => Act::DENY,
    }
}

#[inline(always)]
fn finish(decision: &mut Decision, page: u32, number: u32, rule: u32, act: u32) -> u32 {
    count(page, rule);
    decision.rule = number * RULES_PER_PAGE + rule;
    decision.outcome = if act == Act::ALLOW {
        Decision::ALLOW
    } else {
        Decision::DENY
    };
    0
}

#[inline(always)]
fn count(page: u32, rule: u32) {
    if let Some(row) = RULE_COUNTS.get_ptr_mut(RuleKey { policy: page, rule }) {
        // SAFETY: a row of this CPU's own.
        unsafe { (*row).verdicts += 1 };
    }
}

/// The first rule of a page, at or after `from`, that matches; `NO_RULE` where none does.
#[inline(always)]
fn match_page(
    page: u32,
    header: &PolicyHeader,
    identity: u32,
    protocol: u8,
    port: u16,
    from: u32,
) -> u32 {
    if identity == 0 && header.flags & PolicyHeader::UNKNOWN_MATCHES_NONE != 0 {
        return NO_RULE;
    }
    // SAFETY: rows of pages in use are never changed, only removed after a grace period.
    let Some(peers) = (unsafe {
        PEERS.get(PeerKey {
            policy: page,
            identity,
        })
    }) else {
        return NO_RULE;
    };
    if header.flags & PolicyHeader::ANY_PORT != 0 {
        return first_match(peers, peers, from);
    }
    let wanted = Key::new(PortKey::EXACT - 32, PortData::new(page, protocol, port));
    match PORTS.get(&wanted) {
        Some(ports) => first_match(peers, ports, from),
        None => NO_RULE,
    }
}

/// As `policy_common::policy::first_match`, in a form that the verifier follows cheaply.
#[inline(never)]
fn first_match(peers: &RuleBits, ports: &RuleBits, from: u32) -> u32 {
    let candidates = peers.summary & ports.summary;
    for word in 0..WORDS {
        let first = word as u32 * 64;
        if candidates >> word & 1 == 0 || first + 64 <= from {
            continue;
        }
        let mut hits = peers.words[word] & ports.words[word];
        if from > first {
            hits &= u64::MAX << ((from - first) & 63);
        }
        if hits != 0 {
            return first + lowest_bit(hits);
        }
    }
    NO_RULE
}

/// Index of the lowest set bit; BPF has no instruction for it.
#[inline(always)]
fn lowest_bit(bits: u64) -> u32 {
    let mut rest = bits;
    let mut index = 0;
    if rest & 0xffff_ffff == 0 {
        rest >>= 32;
        index += 32;
    }
    if rest & 0xffff == 0 {
        rest >>= 16;
        index += 16;
    }
    if rest & 0xff == 0 {
        rest >>= 8;
        index += 8;
    }
    if rest & 0xf == 0 {
        rest >>= 4;
        index += 4;
    }
    if rest & 3 == 0 {
        rest >>= 2;
        index += 2;
    }
    if rest & 1 == 0 {
        index += 1;
    }
    index
}
