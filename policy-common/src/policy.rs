//! Rule lists as the programs see them: bit vectors, their keys, and the order of tiers.
//!
//! A rule list is cut into pages of [`RULES_PER_PAGE`] rules. A page has a policy id of its own, a
//! header row in `policies`, and rows in `peers` and `ports`; the header names the next page.

use bytemuck::{Pod, Zeroable};

/// Number of 64-bit words in one bit vector.
pub const WORDS: usize = 16;
/// Rules that one bit vector holds.
pub const RULES_PER_PAGE: u32 = WORDS as u32 * 64;
/// Pages that one rule list may have; a longer list is refused and its subjects fail closed.
pub const MAX_PAGES: u32 = 4;

/// Which rules of a page match: bit `n` of the vector is rule `n`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Pod, Zeroable)]
#[repr(C)]
pub struct RuleBits {
    /// Bit `w` is set when `words[w]` is not zero.
    pub summary: u64,
    /// The bits, rule 0 in the lowest bit of the first word.
    pub words: [u64; WORDS],
}

impl Default for RuleBits {
    fn default() -> Self {
        Self::EMPTY
    }
}

impl RuleBits {
    /// No rule matches.
    pub const EMPTY: Self = Self {
        summary: 0,
        words: [0; WORDS],
    };

    /// Marks rule `index` of the page; `index` must be below [`RULES_PER_PAGE`].
    pub fn set(&mut self, index: u32) {
        let word = (index / 64) as usize;
        self.words[word] |= 1 << (index % 64);
        self.summary |= 1 << word;
    }

    /// Whether rule `index` is marked; false past the end.
    #[must_use]
    pub fn contains(&self, index: u32) -> bool {
        self.words
            .get((index / 64) as usize)
            .is_some_and(|word| word >> (index % 64) & 1 == 1)
    }

    /// Whether no rule is marked.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.summary == 0
    }

    /// Marks every rule that `other` marks.
    pub fn union(&mut self, other: &Self) {
        self.summary |= other.summary;
        for (word, more) in self.words.iter_mut().zip(other.words) {
            *word |= more;
        }
    }
}

/// Value of `policies`: the header of one page, by policy id.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct PolicyHeader {
    /// [`PolicyHeader::VALID`] and the flags beside it.
    pub flags: u32,
    /// Policy id of the next page, 0 on the last.
    pub next_page: u32,
    /// Rules before this index, counted within the page, are of the admin tier. A multiple of 64,
    /// so that a search can begin there; unused indices before it match nothing.
    pub network_policy_start: u16,
    /// Rules from this index on are of the baseline tier.
    pub baseline_start: u16,
    /// Number of rules on this page.
    pub rules: u16,
    /// Zero.
    pub _pad: u16,
    /// Row of `rule_counts` that counts rule 0; those of the other rules follow. 0: not counted.
    pub first_count: u32,
}

impl PolicyHeader {
    /// The row is filled; an endpoint that points to a row without this flag drops.
    pub const VALID: u32 = 1;
    /// A NetworkPolicy isolates the subject: what no rule of its tier allows is denied.
    pub const ISOLATED: u32 = 2;
    /// Every rule of the page admits every protocol and port: no lookup in `ports`.
    pub const ANY_PORT: u32 = 4;
    /// Identity 0 matches no rule of the page: no lookup in `peers` for it.
    pub const UNKNOWN_MATCHES_NONE: u32 = 8;
    /// Some rule names an ipBlock: an address without an exact row is looked up in `prefix_*`.
    pub const HAS_PREFIXES: u32 = 16;
}

/// Key of `peers`: which rules of a page have a peer that matches this identity.
///
/// Where an identity has no row, that of identity 0 counts: rules that match everyone then need one
/// row a page, not one an identity. A row holds all rules that match, those for everyone included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Pod, Zeroable)]
#[repr(C)]
pub struct PeerKey {
    /// Policy id of the page.
    pub policy: u32,
    /// Identity of the remote address.
    pub identity: u32,
}

/// Key of `rules`: one rule.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Pod, Zeroable)]
#[repr(C)]
pub struct RuleKey {
    /// Policy id of the page.
    pub policy: u32,
    /// Index of the rule within the page.
    pub rule: u32,
}

/// Value of `rules`: what a rule of the admin or baseline tier does. NetworkPolicy rules have no
/// row, since they can only allow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct RuleAction {
    /// One of the numbers beside this field.
    pub action: u32,
}

impl RuleAction {
    /// Drop the packet.
    pub const DENY: u32 = 0;
    /// Let the packet through.
    pub const ALLOW: u32 = 1;
    /// Admin tier only: go on with the NetworkPolicy tier.
    pub const PASS: u32 = 2;
}

/// Value of `rule_counts`, one per CPU: how many verdicts a rule decided. A page's header tells its
/// rows; packets of established flows are not counted here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct RuleCount {
    /// Number of verdicts.
    pub verdicts: u64,
}

/// The tier of a rule, by its index within a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Tier {
    /// Cluster administrator's rules: allow, deny, pass.
    Admin = 0,
    /// NetworkPolicy: allow, else deny when isolated.
    NetworkPolicy = 1,
    /// Defaults of the cluster: allow or deny.
    Baseline = 2,
}

impl PolicyHeader {
    /// The tier of rule `index` of this page.
    #[inline(always)]
    #[must_use]
    pub const fn tier(&self, index: u32) -> Tier {
        if index < self.network_policy_start as u32 {
            Tier::Admin
        } else if index < self.baseline_start as u32 {
            Tier::NetworkPolicy
        } else {
            Tier::Baseline
        }
    }
}

/// The first rule at or after `from` that both vectors mark; `from` is a multiple of 64.
///
/// Nearly always the first word in which both have something decides; where it does not, `common_words`
/// does. It is a parameter so that the programs can call it as a function of their own.
#[inline(always)]
#[must_use]
pub fn first_match(
    peers: &RuleBits,
    ports: &RuleBits,
    from: u32,
    common_words: impl FnOnce(&RuleBits, &RuleBits) -> u64,
) -> Option<u32> {
    let later = u64::MAX << ((from / 64) & 63);
    let candidates = peers.summary & ports.summary & later;
    if candidates == 0 {
        return None;
    }
    let first = in_word(peers, ports, candidates);
    if first.is_some() {
        return first;
    }
    let words = common_words(peers, ports) & later;
    if words == 0 {
        return None;
    }
    in_word(peers, ports, words)
}

/// The words in which both vectors mark a rule, word `n` as bit `n`.
///
/// Without loops over bits or branches between words: the cost is the same for every rule, and the
/// verifier has one path to follow.
#[inline(always)]
#[must_use]
pub fn common_words(peers: &RuleBits, ports: &RuleBits) -> u64 {
    let mut words = 0;
    for (word, (peers, ports)) in peers.words.iter().zip(&ports.words).enumerate() {
        words |= one_if_any(peers & ports) << word;
    }
    words
}

/// The first rule that both vectors mark in the lowest word that `words` names.
#[inline(always)]
fn in_word(peers: &RuleBits, ports: &RuleBits, words: u64) -> Option<u32> {
    // The compiler knows that this is below WORDS and would drop the mask, which the verifier needs.
    let word = core::hint::black_box(lowest_bit(words)) as usize & (WORDS - 1);
    let both = peers.words[word] & ports.words[word];
    (both != 0).then(|| word as u32 * 64 + lowest_bit(both) as u32)
}

/// 1 when any bit is set, else 0. In arithmetic that the compiler does not see through: BPF has no
/// instruction for a comparison's result, and sixteen branches would be 65,536 paths to the verifier.
#[inline(always)]
const fn one_if_any(bits: u64) -> u64 {
    let without_top = (bits >> 1) | (bits & 1);
    without_top.wrapping_add(i64::MAX as u64) >> 63
}

/// Index of the lowest set bit of a number that is not 0. BPF has no instruction for it, and a search
/// by branches would make the verifier walk every path: this counts the zeros below by arithmetic.
#[inline(always)]
const fn lowest_bit(bits: u64) -> u64 {
    let below = (bits & bits.wrapping_neg()).wrapping_sub(1);
    let pairs = below - ((below >> 1) & 0x5555_5555_5555_5555);
    let nibbles = (pairs & 0x3333_3333_3333_3333) + ((pairs >> 2) & 0x3333_3333_3333_3333);
    let octets = (nibbles + (nibbles >> 4)) & 0x0f0f_0f0f_0f0f_0f0f;
    octets.wrapping_mul(0x0101_0101_0101_0101) >> 56
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bits(rules: &[u32]) -> RuleBits {
        let mut bits = RuleBits::EMPTY;
        for rule in rules {
            bits.set(*rule);
        }
        bits
    }

    proptest! {
        #[test]
        fn first_match_is_the_least_common_rule(
            a in prop::collection::vec(0..RULES_PER_PAGE, 0..40),
            b in prop::collection::vec(0..RULES_PER_PAGE, 0..40),
            from in (0..WORDS as u32).prop_map(|word| word * 64),
        ) {
            let naive = (from..RULES_PER_PAGE).find(|rule| a.contains(rule) && b.contains(rule));
            prop_assert_eq!(first_match(&bits(&a), &bits(&b), from, common_words), naive);
        }

        #[test]
        fn dense_vectors_too(seed in any::<[u64; WORDS]>(), other in any::<[u64; WORDS]>()) {
            let build = |words: [u64; WORDS]| {
                let mut bits = RuleBits::EMPTY;
                for rule in 0..RULES_PER_PAGE {
                    if words[(rule / 64) as usize] >> (rule % 64) & 1 == 1 {
                        bits.set(rule);
                    }
                }
                bits
            };
            let (a, b) = (build(seed), build(other));
            let naive = (0..RULES_PER_PAGE).find(|rule| a.contains(*rule) && b.contains(*rule));
            prop_assert_eq!(first_match(&a, &b, 0, common_words), naive);
        }
    }

    #[test]
    fn tiers_by_index() {
        let header = PolicyHeader {
            network_policy_start: 2,
            baseline_start: 5,
            rules: 6,
            ..PolicyHeader::default()
        };
        let tiers: Vec<_> = (0..6).map(|rule| header.tier(rule)).collect();
        use Tier::{Admin, Baseline, NetworkPolicy};
        assert_eq!(
            tiers,
            [
                Admin,
                Admin,
                NetworkPolicy,
                NetworkPolicy,
                NetworkPolicy,
                Baseline
            ]
        );
    }
}
