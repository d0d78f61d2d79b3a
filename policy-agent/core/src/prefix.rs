//! Prefixes: the address space cut so that the longest match carries every block that covers it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use crate::atom::{Atom, AtomId};

/// Atoms that match an address, sorted.
pub(crate) type AtomSet = Arc<[AtomId]>;

#[derive(Debug)]
struct Node {
    begins: BTreeSet<AtomId>,
    ends: BTreeSet<AtomId>,
    set: AtomSet,
}

/// A prefix whose blocks changed.
#[derive(Debug)]
pub(crate) struct PrefixChange {
    pub(crate) prefix: IpNet,
    /// `None` when the prefix is no longer needed.
    pub(crate) set: Option<AtomSet>,
}

/// Every network that a registered block names.
#[derive(Debug, Default)]
pub(crate) struct Prefixes {
    nodes: BTreeMap<IpNet, Node>,
    /// How many nodes have a length: v4, v6.
    lengths: [BTreeMap<u8, usize>; 2],
    removed: Vec<(IpNet, AtomSet)>,
    added: BTreeSet<IpNet>,
    stale: bool,
}

fn family(prefix: &IpNet) -> usize {
    usize::from(matches!(prefix, IpNet::V6(_)))
}

impl Prefixes {
    /// Adds a block; sets are right after [`Prefixes::refresh`].
    pub(crate) fn add(&mut self, id: AtomId, atom: &Atom) {
        let Atom::Block { cidr, except } = atom else {
            return;
        };
        self.stale = true;
        self.node(*cidr).begins.insert(id);
        for hole in except {
            self.node(*hole).ends.insert(id);
        }
    }

    /// Removes a block; sets are right after [`Prefixes::refresh`].
    pub(crate) fn remove(&mut self, id: AtomId, atom: &Atom) {
        let Atom::Block { cidr, except } = atom else {
            return;
        };
        self.stale = true;
        for prefix in std::iter::once(cidr).chain(except) {
            let Some(node) = self.nodes.get_mut(prefix) else {
                continue;
            };
            node.begins.remove(&id);
            node.ends.remove(&id);
            if node.begins.is_empty() && node.ends.is_empty() {
                if let Some(node) = self.nodes.remove(prefix)
                    && !self.added.remove(prefix)
                {
                    self.removed.push((*prefix, node.set));
                }
                let lengths = &mut self.lengths[family(prefix)];
                if let Some(count) = lengths.get_mut(&prefix.prefix_len()) {
                    *count -= 1;
                    if *count == 0 {
                        lengths.remove(&prefix.prefix_len());
                    }
                }
            }
        }
    }

    fn node(&mut self, prefix: IpNet) -> &mut Node {
        self.nodes.entry(prefix).or_insert_with(|| {
            *self.lengths[family(&prefix)]
                .entry(prefix.prefix_len())
                .or_default() += 1;
            self.added.insert(prefix);
            Node {
                begins: BTreeSet::new(),
                ends: BTreeSet::new(),
                set: Arc::from([]),
            }
        })
    }

    /// The blocks of the longest prefix of an address, and that prefix.
    pub(crate) fn lookup(&self, address: IpAddr) -> Option<(IpNet, &AtomSet)> {
        let lengths = &self.lengths[usize::from(address.is_ipv6())];
        lengths.keys().rev().find_map(|length| {
            let prefix = IpNet::new(address, *length).ok()?.trunc();
            self.nodes.get(&prefix).map(|node| (prefix, &node.set))
        })
    }

    /// Brings every set up to date, in one walk from the outer networks to the inner ones, and says
    /// which ones changed.
    pub(crate) fn refresh(&mut self) -> Vec<PrefixChange> {
        if !std::mem::take(&mut self.stale) {
            return Vec::new();
        }
        let mut changes = Vec::new();
        let added = std::mem::take(&mut self.added);
        let mut removed: BTreeMap<_, _> = std::mem::take(&mut self.removed).into_iter().collect();
        let mut outer: Vec<(IpNet, AtomSet)> = Vec::new();
        for (prefix, node) in &mut self.nodes {
            while outer.last().is_some_and(|(net, _)| !net.contains(prefix)) {
                outer.pop();
            }
            let inherited = outer.last().map(|(_, set)| set);
            let set = node.compute(inherited);
            // A network that was removed and added again between two refreshes.
            let former = removed.remove(prefix);
            let is_new = added.contains(prefix) && former.is_none();
            let former = former.unwrap_or_else(|| node.set.clone());
            if is_new || former != set {
                changes.push(PrefixChange {
                    prefix: *prefix,
                    set: Some(set.clone()),
                });
            }
            node.set = set.clone();
            outer.push((*prefix, set));
        }
        changes.extend(
            removed
                .into_keys()
                .map(|prefix| PrefixChange { prefix, set: None }),
        );
        changes
    }

    pub(crate) fn count(&self, v6: bool) -> usize {
        self.lengths[usize::from(v6)].values().sum()
    }
}

impl Node {
    fn compute(&self, inherited: Option<&AtomSet>) -> AtomSet {
        let inherited_atoms = inherited.map_or(&[][..], |set| set);
        let unchanged = self
            .begins
            .iter()
            .all(|atom| inherited_atoms.contains(atom))
            && !self.ends.iter().any(|atom| inherited_atoms.contains(atom));
        if unchanged && let Some(set) = inherited {
            return set.clone();
        }
        let mut set: BTreeSet<_> = inherited_atoms.iter().copied().collect();
        set.extend(&self.begins);
        for atom in &self.ends {
            set.remove(atom);
        }
        set.into_iter().collect()
    }
}
