//! Step 4: one classification by bit vectors.
//!
//! Address -> identity; {page, identity} -> rules whose peers match; {page, protocol, port} -> rules
//! whose ports match; the first rule in both decides by its tier. `policy_core::tables` has the same
//! classification for tests, without a kernel.

use aya_ebpf::btf_maps::lpm_trie::Key;
use policy_common::event::NO_RULE;
use policy_common::policy::{
    self, MAX_PAGES, PeerKey, PolicyHeader, RULES_PER_PAGE, RuleAction, RuleBits, RuleKey, Tier,
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
    /// While judging: whether some page says that a NetworkPolicy isolates the pod.
    isolated: u32,
    /// While judging: whether an admin rule passed on to the NetworkPolicy tier.
    past_admin: u32,
    /// While judging: how the identity is known, one of the numbers beside this struct.
    known_by: u32,
    /// While judging: number of the page's first rule.
    first_rule: u32,
}

impl Decision {
    /// The packet may pass.
    pub(crate) const ALLOW: u32 = 0;
    /// The packet must drop.
    pub(crate) const DENY: u32 = 1;
    /// Rows are missing: the packet must drop, and something is wrong.
    pub(crate) const INCOMPLETE: u32 = 2;

    /// The address has no row of its own, and prefixes were not asked yet.
    const UNKNOWN: u32 = 0;
    /// The identity is what it is.
    const LOOKED_UP: u32 = 1;

    /// What holds in a direction in which nothing isolates the pod.
    pub(crate) const NOT_ISOLATED: Self = Self {
        outcome: Self::ALLOW,
        rule: NO_RULE,
        policy: 0,
        identity: 0,
        isolated: 0,
        past_admin: 0,
        known_by: Self::UNKNOWN,
        first_rule: 0,
    };
}

/// Judges a flow of `protocol` with `remote` that is opened towards `port`, by the rule list that begins at
/// page `policy`, and writes the outcome to `decision`, which begins as `Decision::NOT_ISOLATED`.
#[inline(always)]
pub(crate) fn classify<F: Family>(
    policy: u32,
    remote: &F::Address,
    protocol: u8,
    port: u16,
    decision: &mut Decision,
) {
    decision.policy = policy;
    decision.outcome = Decision::INCOMPLETE;
    let (block, place) = F::block(*remote);
    // SAFETY: the value is read at once.
    if let Some(block) = unsafe { F::identities().get(&block) } {
        let id = block.ids[place];
        if id != 0 {
            decision.identity = id;
            decision.known_by = Decision::LOOKED_UP;
        }
    }
    let mut page = policy;
    // Each page once, and one of them again after an admin rule that passes on.
    for _ in 0..=MAX_PAGES {
        page = classify_page::<F>(page, remote, protocol, port, decision);
        if page == 0 {
            break;
        }
    }
    // More pages than the format has: tables are wrong, and INCOMPLETE stands.
}

/// One page's part in [`classify`]: returns the page to go on with, or 0 when `decision` is made.
#[inline(always)]
fn classify_page<F: Family>(
    page: u32,
    remote: &F::Address,
    protocol: u8,
    port: u16,
    decision: &mut Decision,
) -> u32 {
    let Some(header) = POLICIES.get(page) else {
        return 0;
    };
    if header.flags & PolicyHeader::VALID == 0 {
        return 0;
    }
    decision.isolated |= header.flags & PolicyHeader::ISOLATED;
    // An address without a row of its own takes that of its longest prefix, but only a page that
    // names prefixes could tell the difference.
    if header.flags & PolicyHeader::HAS_PREFIXES != 0 && decision.known_by == Decision::UNKNOWN {
        decision.known_by = Decision::LOOKED_UP;
        let exact = Key::<F::Address>::new(F::ADDRESS_BITS, *remote);
        if let Some(found) = F::prefixes().get(&exact) {
            decision.identity = found.id;
        }
    }
    let from = if decision.past_admin != 0 {
        header.network_policy_start as u32
    } else {
        0
    };
    let hit = match_page(page, header, decision.identity, protocol, port, from);
    if hit != NO_RULE {
        count(header, hit);
        let act = act(page, header, hit, decision.isolated != 0);
        if act == Act::PASS {
            decision.past_admin = 1;
            return page;
        }
        decision.rule = decision.first_rule + hit;
        decision.outcome = if act == Act::ALLOW {
            Decision::ALLOW
        } else {
            Decision::DENY
        };
        return 0;
    }
    decision.first_rule += RULES_PER_PAGE;
    if header.next_page == 0 {
        decision.outcome = if decision.isolated != 0 {
            Decision::DENY
        } else {
            Decision::ALLOW
        };
    }
    header.next_page
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
fn count(header: &PolicyHeader, rule: u32) {
    if header.first_count != 0
        && let Some(row) = RULE_COUNTS.get_ptr_mut(header.first_count + rule)
    {
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
    let matches_anyone = header.flags & PolicyHeader::UNKNOWN_MATCHES_NONE == 0;
    if identity == 0 && !matches_anyone {
        return NO_RULE;
    }
    // SAFETY: rows of pages in use are never changed, only removed after a grace period.
    let mut peers = unsafe {
        PEERS.get(PeerKey {
            policy: page,
            identity,
        })
    };
    if peers.is_none() && matches_anyone {
        // No rule of the page names this identity, but some match everyone: as for identity 0.
        // SAFETY: as above.
        peers = unsafe {
            PEERS.get(PeerKey {
                policy: page,
                identity: 0,
            })
        };
    }
    let Some(peers) = peers else {
        return NO_RULE;
    };
    let ports = if header.flags & PolicyHeader::ANY_PORT != 0 {
        peers
    } else {
        let data = PortData::new(page, protocol, port);
        let Some(ports) = PORTS.get(&Key::new(PortKey::EXACT, data)) else {
            return NO_RULE;
        };
        ports
    };
    policy::first_match(peers, ports, from, common_words).unwrap_or(NO_RULE)
}

/// [`policy::common_words`] as a function of its own: it needs registers that the caller has not.
#[inline(never)]
fn common_words(peers: &RuleBits, ports: &RuleBits) -> u64 {
    policy::common_words(peers, ports)
}
