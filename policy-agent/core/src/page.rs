//! Pages: a rule list as rows.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use policy_common::policy::{PolicyHeader, RULES_PER_PAGE, RuleBits};
use policy_common::port::{PortBlock, PortKey, blocks};

use crate::atom::{Atom, AtomId, Atoms};
use crate::rules::{ListRule, RuleList};

/// The page for whatever cannot be compiled, or whose pod is not known: it denies everything.
pub(crate) const DENY_ALL: u32 = 1;
/// The first policy id that lists may have.
pub(crate) const FIRST: u32 = 2;

/// The header of [`DENY_ALL`].
pub(crate) const fn deny_all_header() -> PolicyHeader {
    PolicyHeader {
        flags: PolicyHeader::VALID
            | PolicyHeader::ISOLATED
            | PolicyHeader::ANY_PORT
            | PolicyHeader::UNKNOWN_MATCHES_NONE,
        next_page: 0,
        network_policy_start: 0,
        baseline_start: 0,
        rules: 0,
        _pad: 0,
        first_count: 0,
    }
}

/// One page.
#[derive(Debug)]
pub(crate) struct Page {
    pub(crate) list: Arc<RuleList>,
    /// Position in the list's pages.
    pub(crate) number: usize,
    pub(crate) header: PolicyHeader,
    /// Rules that match everyone.
    pub(crate) anyone: RuleBits,
    /// Rules about each atom.
    pub(crate) atoms: BTreeMap<AtomId, RuleBits>,
    pub(crate) ports: Vec<(PortKey, RuleBits)>,
    /// Identities that have a row in `peers`, 0 included.
    pub(crate) peer_rows: BTreeSet<u32>,
}

/// How many rows a list takes.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Cost {
    pub(crate) pages: usize,
    pub(crate) ports: usize,
}

/// The list's rules, page by page; an empty list has one page.
pub(crate) fn cut(list: &RuleList) -> Vec<&[ListRule]> {
    if list.rules.is_empty() {
        return vec![&[]];
    }
    list.rules.chunks(RULES_PER_PAGE as usize).collect()
}

/// What a list will cost.
pub(crate) fn cost(list: &RuleList) -> Cost {
    let mut cost = Cost::default();
    for rules in cut(list) {
        cost.pages += 1;
        cost.ports += port_rows(0, rules).len();
    }
    cost
}

impl Page {
    /// Page `number` of `list` under policy id `id`; its atoms are registered.
    pub(crate) fn new(
        list: &Arc<RuleList>,
        number: usize,
        id: u32,
        next_page: u32,
        atoms: &Atoms,
    ) -> Self {
        let rules = cut(list)[number];
        let mut page = Self {
            list: list.clone(),
            number,
            header: PolicyHeader {
                flags: PolicyHeader::VALID | PolicyHeader::ISOLATED,
                next_page,
                network_policy_start: 0,
                baseline_start: rules.len() as u16,
                rules: rules.len() as u16,
                _pad: 0,
                first_count: 0,
            },
            anyone: RuleBits::EMPTY,
            atoms: BTreeMap::new(),
            ports: port_rows(id, rules),
            peer_rows: BTreeSet::new(),
        };
        let mut names_blocks = false;
        for (index, rule) in rules.iter().enumerate() {
            match &rule.peers {
                None => page.anyone.set(index as u32),
                Some(peers) => {
                    for atom in peers {
                        names_blocks |= matches!(atom, Atom::Block { .. });
                        if let Some(id) = atoms.id(atom) {
                            page.atoms.entry(id).or_default().set(index as u32);
                        }
                    }
                }
            }
        }
        if page.anyone.is_empty() {
            page.header.flags |= PolicyHeader::UNKNOWN_MATCHES_NONE;
        }
        if rules.iter().all(|rule| rule.ports.is_none()) {
            page.header.flags |= PolicyHeader::ANY_PORT;
        }
        if names_blocks {
            page.header.flags |= PolicyHeader::HAS_PREFIXES;
        }
        page
    }

    /// The row for an identity of these atoms; `None` where identity 0's row says the same.
    pub(crate) fn row(&self, atoms: &[AtomId]) -> Option<RuleBits> {
        let mut bits = self.anyone;
        let mut is_named = false;
        for atom in atoms {
            if let Some(more) = self.atoms.get(atom) {
                bits.union(more);
                is_named = true;
            }
        }
        is_named.then_some(bits)
    }
}

/// The rows of `ports`: each block of ports that a rule names, with the rules of every block that
/// covers it.
fn port_rows(policy: u32, rules: &[ListRule]) -> Vec<(PortKey, RuleBits)> {
    let mut everything = RuleBits::EMPTY;
    let mut named: BTreeMap<(u8, PortBlock), RuleBits> = BTreeMap::new();
    for (index, rule) in rules.iter().enumerate() {
        let Some(ports) = &rule.ports else {
            everything.set(index as u32);
            continue;
        };
        for (protocol, first, last) in ports {
            for block in blocks(*first, *last) {
                named
                    .entry((*protocol, block))
                    .or_default()
                    .set(index as u32);
            }
        }
    }
    if named.is_empty() {
        return Vec::new();
    }
    let mut rows = Vec::with_capacity(named.len() + 1);
    if !everything.is_empty() {
        rows.push((PortKey::any_protocol(policy), everything));
    }
    for (protocol, block) in named.keys() {
        let mut bits = everything;
        // A block has at most 16 wider ones around it.
        for width in 0..=block.bits {
            let first = if width == 0 {
                0
            } else {
                block.first & (u16::MAX << (16 - width))
            };
            let wider = PortBlock { first, bits: width };
            if let Some(more) = named.get(&(*protocol, wider)) {
                bits.union(more);
            }
        }
        rows.push((PortKey::block(policy, *protocol, *block), bits));
    }
    rows
}
