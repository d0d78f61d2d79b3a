//! Atoms: the peers of rules in force, each as one yes-or-no question about an address.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;

use ipnet::IpNet;

use crate::model::{LabelSelector, Labels, LocalEndpoint, NamedPort, Pod, Protocol};
use crate::store::Store;

/// Number of a registered atom.
pub(crate) type AtomId = u32;

/// Which namespaces a pod peer is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Scope {
    /// The policy's own.
    Namespace(Arc<str>),
    /// Those with these labels.
    Selector(LabelSelector),
}

/// One peer.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Atom {
    /// Is it the address of such a pod?
    Pods { scope: Scope, pods: LabelSelector },
    /// Is it in this block, and not in an exception?
    Block { cidr: IpNet, except: Vec<IpNet> },
    /// Is it the address of a pod with this port, and of this peer?
    Named {
        peer: Option<Box<Atom>>,
        port: NamedPort,
    },
}

impl Atom {
    /// An egress peer, seen through a named port that a pod gives a number.
    pub(crate) fn named(
        peer: Option<Self>,
        name: &Arc<str>,
        protocol: Protocol,
        number: u16,
    ) -> Self {
        Self::Named {
            peer: peer.map(Box::new),
            port: NamedPort {
                name: name.clone(),
                protocol,
                port: number,
            },
        }
    }

    fn scope(&self) -> Option<&Scope> {
        match self {
            Self::Pods { scope, .. } => Some(scope),
            Self::Named { peer, .. } => peer.as_deref().and_then(Self::scope),
            Self::Block { .. } => None,
        }
    }

    /// Whether labels and ports match; the scope and, for a block, the address are asked elsewhere.
    fn matches_pod(&self, pod: &Pod) -> bool {
        match self {
            Self::Pods { pods, .. } => pods.matches(&pod.labels),
            Self::Named { peer, port } => {
                pod.ports.contains(port)
                    && match peer.as_deref() {
                        Some(Self::Pods { pods, .. }) => pods.matches(&pod.labels),
                        _ => true,
                    }
            }
            Self::Block { .. } => false,
        }
    }

    /// Whether a block, or a block seen through a named port, contains an address.
    fn block_contains(&self, address: &IpAddr) -> bool {
        match self {
            Self::Block { cidr, except } => {
                cidr.contains(address) && !except.iter().any(|hole| hole.contains(address))
            }
            Self::Named {
                peer: Some(peer), ..
            } => peer.block_contains(address),
            _ => true,
        }
    }

    fn needs_address(&self) -> bool {
        matches!(self, Self::Named { peer: Some(peer), .. } if matches!(**peer, Self::Block { .. }))
    }
}

/// A registered atom and who uses it.
#[derive(Debug)]
pub(crate) struct AtomRecord {
    pub(crate) atom: Atom,
    /// Pages with a rule about it.
    pub(crate) pages: BTreeSet<u32>,
    /// Identities that contain it.
    pub(crate) identities: BTreeSet<u32>,
}

/// Every registered atom.
#[derive(Debug, Default)]
pub(crate) struct Atoms {
    ids: HashMap<Atom, AtomId>,
    records: BTreeMap<AtomId, AtomRecord>,
    next: AtomId,
    by_namespace: HashMap<Arc<str>, BTreeSet<AtomId>>,
    by_selector: HashMap<LabelSelector, BTreeSet<AtomId>>,
    anywhere: BTreeSet<AtomId>,
}

impl Atoms {
    /// The number of a registered atom.
    pub(crate) fn id(&self, atom: &Atom) -> Option<AtomId> {
        self.ids.get(atom).copied()
    }

    /// The number of an atom, and whether it was registered just now.
    pub(crate) fn register(&mut self, atom: &Atom) -> (AtomId, bool) {
        if let Some(id) = self.ids.get(atom) {
            return (*id, false);
        }
        let id = self.next;
        self.next += 1;
        self.ids.insert(atom.clone(), id);
        self.index(atom, |ids| {
            ids.insert(id);
        });
        self.records.insert(
            id,
            AtomRecord {
                atom: atom.clone(),
                pages: BTreeSet::new(),
                identities: BTreeSet::new(),
            },
        );
        (id, true)
    }

    pub(crate) fn unregister(&mut self, id: AtomId) -> Option<Atom> {
        let record = self.records.remove(&id)?;
        self.ids.remove(&record.atom);
        self.index(&record.atom, |ids| {
            ids.remove(&id);
        });
        Some(record.atom)
    }

    fn index(&mut self, atom: &Atom, change: impl FnOnce(&mut BTreeSet<AtomId>)) {
        match atom.scope() {
            Some(Scope::Namespace(name)) => {
                let ids = self.by_namespace.entry(name.clone()).or_default();
                change(ids);
                if ids.is_empty() {
                    self.by_namespace.remove(name);
                }
            }
            Some(Scope::Selector(selector)) => {
                let ids = self.by_selector.entry(selector.clone()).or_default();
                change(ids);
                if ids.is_empty() {
                    self.by_selector.remove(selector);
                }
            }
            None if matches!(atom, Atom::Named { .. }) => change(&mut self.anywhere),
            None => {}
        }
    }

    pub(crate) fn get(&self, id: AtomId) -> Option<&AtomRecord> {
        self.records.get(&id)
    }

    pub(crate) fn get_mut(&mut self, id: AtomId) -> Option<&mut AtomRecord> {
        self.records.get_mut(&id)
    }

    /// Pages with a rule about any of these atoms.
    pub(crate) fn pages_of<'a>(
        &self,
        atoms: impl IntoIterator<Item = &'a AtomId>,
    ) -> BTreeSet<u32> {
        atoms
            .into_iter()
            .filter_map(|atom| self.records.get(atom))
            .flat_map(|record| record.pages.iter().copied())
            .collect()
    }

    /// Atoms that can match pods of a namespace at all.
    fn in_namespace(&self, store: &Store, namespace: &str) -> Vec<AtomId> {
        let mut ids: Vec<_> = self.anywhere.iter().copied().collect();
        ids.extend(self.by_namespace.get(namespace).into_iter().flatten());
        let labels = store.namespace(namespace);
        for (selector, atoms) in &self.by_selector {
            if selector.matches(&labels) {
                ids.extend(atoms);
            }
        }
        ids
    }

    /// Calls `found` with every pod that one of `atoms` may match.
    pub(crate) fn for_each_match(
        &self,
        store: &Store,
        atoms: &BTreeSet<AtomId>,
        mut found: impl FnMut(&Pod),
    ) {
        for (namespace, pods) in store.pods() {
            let candidates: Vec<_> = self
                .in_namespace(store, namespace)
                .into_iter()
                .filter(|id| atoms.contains(id))
                .filter_map(|id| self.records.get(&id))
                .collect();
            if candidates.is_empty() {
                continue;
            }
            for pod in pods {
                if candidates.iter().any(|record| record.atom.matches_pod(pod)) {
                    found(pod);
                }
            }
        }
    }

    /// Calls `found` with every endpoint whose held pod one of `atoms` may match.
    pub(crate) fn for_each_match_held(
        &self,
        store: &Store,
        atoms: &BTreeSet<AtomId>,
        mut found: impl FnMut(&LocalEndpoint),
    ) {
        if atoms.is_empty() {
            return;
        }
        for (pod, endpoint) in store.held() {
            let candidates = self.in_namespace(store, &pod.name.namespace).into_iter();
            let mut candidates = candidates
                .filter(|id| atoms.contains(id))
                .filter_map(|id| self.records.get(&id));
            if candidates.any(|record| record.atom.matches_pod(pod)) {
                found(endpoint);
            }
        }
    }
}

#[derive(Debug, Default)]
struct Matched {
    /// Whatever the address.
    always: Vec<AtomId>,
    /// If the address is in the atom's block.
    by_address: Vec<AtomId>,
}

type ByPorts = HashMap<Arc<BTreeSet<NamedPort>>, Rc<Matched>>;

/// Remembers, while atoms and namespaces stay as they are, which atoms match which labels and ports:
/// most pods of a cluster are copies of a few.
#[derive(Debug, Default)]
pub(crate) struct Matcher {
    candidates: HashMap<Arc<str>, Rc<Vec<AtomId>>>,
    known: HashMap<Arc<str>, HashMap<Arc<Labels>, ByPorts>>,
}

impl Matcher {
    /// Atoms, blocks apart, that match an address of a pod; unsorted.
    pub(crate) fn atoms_of(
        &mut self,
        atoms: &Atoms,
        store: &Store,
        pod: &Pod,
        address: &IpAddr,
    ) -> Vec<AtomId> {
        let matched = self.matched(atoms, store, pod);
        let mut ids = matched.always.clone();
        ids.extend(matched.by_address.iter().filter(|id| {
            atoms
                .get(**id)
                .is_some_and(|record| record.atom.block_contains(address))
        }));
        ids
    }

    fn matched(&mut self, atoms: &Atoms, store: &Store, pod: &Pod) -> Rc<Matched> {
        let namespace = &pod.name.namespace;
        let known = self
            .known
            .get(namespace)
            .and_then(|by_labels| by_labels.get(&pod.labels))
            .and_then(|by_ports| by_ports.get(&pod.ports));
        if let Some(matched) = known {
            return matched.clone();
        }
        let candidates = self
            .candidates
            .entry(namespace.clone())
            .or_insert_with(|| Rc::new(atoms.in_namespace(store, namespace)))
            .clone();
        let mut matched = Matched::default();
        for id in candidates.iter() {
            let Some(record) = atoms.get(*id) else {
                continue;
            };
            if record.atom.matches_pod(pod) {
                if record.atom.needs_address() {
                    matched.by_address.push(*id);
                } else {
                    matched.always.push(*id);
                }
            }
        }
        let matched = Rc::new(matched);
        self.known
            .entry(namespace.clone())
            .or_default()
            .entry(pod.labels.clone())
            .or_default()
            .insert(pod.ports.clone(), matched.clone());
        matched
    }
}
