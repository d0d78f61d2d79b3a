//! The compiler: from a batch of changes to an ordered plan.
//!
//! Order of a plan: rows of new pages and for new identities -> prefixes and addresses -> endpoints
//! switch their policy ids -> epochs -> addresses that had to wait, after a grace period.
//!
//! What nobody uses any more goes later, in its own time (`garbage`): grace period -> [`Compiler::retire`]:
//! identities shrink -> grace period -> [`Compiler::bury`]: stale rows go. Plans may come in between. Old
//! atoms stay registered until the lists that they are in are retired, so that an identity always answers
//! for old and new lists alike; numbers stay taken until their rows are gone.
//!
//! A batch may both relabel a pod and change the lists of those it talks to. Its address then goes
//! through a transitional identity, whose rows give the pages being left the old view and all others
//! the new one, and reaches its own identity once the endpoints have switched.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use policy_common::address::Identity;
use policy_common::endpoint::Endpoint;
use policy_common::policy::{PeerKey, RuleBits};
use policy_common::verdict::Direction;

use crate::addresses::Addresses;
use crate::adopt;
use crate::atom::{Atom, AtomId, Atoms, Matcher};
use crate::garbage::{Garbage, Targets};
use crate::identity::{Identities, Numbers};
use crate::limits::{Limits, Problem};
use crate::model::{Change, LocalEndpoint, ObjectName};
use crate::op::Op;
use crate::page::{self, DENY_ALL, Page};
use crate::prefix::{AtomSet, PrefixChange, Prefixes};
use crate::range::Ranges;
use crate::rules::{self, RuleList};
use crate::slot::Slots;
use crate::store::{Dirty, PortName, Store};
use crate::tables::Tables;

/// What is to be done, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The operations that bring the new state into force.
    pub ops: Vec<Op>,
    /// With [`Compiler::apply`], and where tables are taken over, the operations that then remove what nobody
    /// uses any more. They change no verdict, and wait for grace periods, each of which takes the kernel some
    /// milliseconds.
    pub stale: Vec<Op>,
    /// Counts the plans of this compiler.
    pub revision: u64,
}

/// What judges an endpoint in one direction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Judge {
    /// Nothing: the pod is not isolated.
    Nobody,
    /// The page that denies all.
    DenyAll,
    /// A rule list.
    List(Arc<RuleList>),
}

/// One endpoint as the tables have it.
#[derive(Debug)]
pub(crate) struct EndpointRecord {
    pub(crate) row: Endpoint,
    pub(crate) pod: ObjectName,
    pub(crate) judges: [Judge; 2],
    /// Port names whose numbers its lists depend on.
    pub(crate) names: BTreeSet<PortName>,
}

/// A list in force.
#[derive(Debug, Default)]
pub(crate) struct ListRecord {
    pub(crate) pages: Vec<u32>,
    /// Endpoints that it judges, by ifindex.
    pub(crate) users: BTreeSet<u32>,
    /// The plan that took its last user, or made it; means nothing while there are users.
    pub(crate) idle_since: u64,
}

/// An address that changes its identity.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Move {
    pub(crate) address: IpAddr,
    pub(crate) old: u32,
    pub(crate) new: u32,
}

/// What a move looks like from a page: the old and the new identity, and, where one of them is 0, the
/// identity of the longest prefix, which then shows through.
pub(crate) type Transition = (u32, u32, u32);

impl Plan {
    /// All operations, in order.
    pub fn into_ops(self) -> impl Iterator<Item = Op> {
        self.ops.into_iter().chain(self.stale)
    }
}

/// See the module's documentation.
#[derive(Debug)]
pub struct Compiler {
    pub(crate) limits: Limits,
    pub(crate) store: Store,
    pub(crate) atoms: Atoms,
    pub(crate) prefixes: Prefixes,
    pub(crate) identities: Identities,
    pub(crate) addresses: Addresses,
    pub(crate) prefix_ids: BTreeMap<IpNet, u32>,
    pub(crate) lists: HashMap<Arc<RuleList>, ListRecord>,
    pub(crate) pages: BTreeMap<u32, Page>,
    pub(crate) page_numbers: Numbers,
    pub(crate) port_rows: usize,
    pub(crate) count_rows: Ranges,
    pub(crate) peer_rows: usize,
    pub(crate) records: BTreeMap<u32, EndpointRecord>,
    pub(crate) slots: Slots,
    /// Endpoints to try again with every plan: something of theirs did not fit.
    pub(crate) starved: BTreeMap<u32, Vec<Problem>>,
    /// Addresses that found no room.
    pub(crate) unplaced: BTreeSet<IpAddr>,
    /// Rows of `peers` that found no room, by page and identity.
    pub(crate) unplaced_peers: BTreeSet<(u32, u32)>,
    /// What the tables hold, before the first plan.
    pub(crate) former: Option<Tables>,
    /// Interfaces that were endpoints in the former tables, and are not any more.
    pub(crate) leftovers: BTreeSet<u32>,
    pub(crate) garbage: Garbage,
    pub(crate) revision: u64,
}

/// What one plan is made of, while it is made.
#[derive(Debug, Default)]
pub(crate) struct Draft {
    pub(crate) ops: Vec<Op>,
    pub(crate) new_atoms: BTreeSet<AtomId>,
    pub(crate) new_pages: BTreeSet<u32>,
    /// Pages that some endpoint leaves.
    pub(crate) left: BTreeSet<u32>,
    /// Endpoints whose flows must be judged again.
    pub(crate) revoked: BTreeSet<u32>,
}

impl Compiler {
    /// A compiler for empty tables of these sizes.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            store: Store::default(),
            atoms: Atoms::default(),
            prefixes: Prefixes::default(),
            identities: Identities::default(),
            addresses: Addresses::new([limits.identity_v4, limits.identity_v6]),
            prefix_ids: BTreeMap::new(),
            lists: HashMap::new(),
            pages: BTreeMap::new(),
            page_numbers: Numbers::starting_at(page::FIRST),
            port_rows: 0,
            count_rows: Ranges::new(1, limits.rule_counts),
            peer_rows: 0,
            records: BTreeMap::new(),
            slots: Slots::new(limits.highest_slot),
            starved: BTreeMap::new(),
            unplaced: BTreeSet::new(),
            unplaced_peers: BTreeSet::new(),
            former: None,
            leftovers: BTreeSet::new(),
            garbage: Garbage::default(),
            revision: 0,
        }
    }

    /// All of [`Self::advance`], [`Self::retire`] and [`Self::bury`] in one plan, for those who have
    /// nothing else to do in the grace periods.
    pub fn apply(&mut self, changes: Vec<Change>) -> Plan {
        let plan = self.advance(changes);
        self.and_garbage(plan)
    }

    fn and_garbage(&mut self, mut plan: Plan) -> Plan {
        for mut ops in [self.retire(plan.revision), self.bury()] {
            if !ops.is_empty() {
                plan.stale.push(Op::Barrier);
                plan.stale.append(&mut ops);
            }
        }
        plan
    }

    /// Takes in a batch of changes and plans the way to what they ask for; what nobody uses any more
    /// stays. The plan must be executed before the next one, from its beginning; it may be resumed.
    pub fn advance(&mut self, changes: Vec<Change>) -> Plan {
        let mut draft = Draft::default();
        if self.revision == 0 {
            let generation = self.slots.generation();
            draft.ops.push(adopt::put_generation(generation));
            let header = page::deny_all_header();
            draft.ops.push(Op::PutPolicy {
                id: DENY_ALL,
                header,
            });
        }
        self.revision += 1;
        let mut dirty = Dirty::default();
        for change in changes {
            self.store.apply(change, &mut dirty);
        }
        self.add_indirect(&mut dirty);

        let (mut targets, gone) = self.judge_endpoints(&dirty, &mut draft);
        self.note_left_pages(&targets, &gone, &mut draft);
        self.renew_joined_lists(&mut targets, &gone, &mut draft);
        let moves = self.move_addresses(&mut dirty, &mut draft);
        let transitional = self.transitional(&moves, &mut draft);
        for step in &moves {
            let through = transitional
                .get(&self.transition(step))
                .copied()
                .unwrap_or(step.new);
            self.put_address(step.address, step.old, through, &mut draft.ops);
        }
        self.switch_endpoints(targets, &gone, &mut draft);
        self.revoke(&mut draft);
        self.finish_moves(&moves, &transitional, &mut draft);
        self.garbage.transitional.extend(transitional.into_values());
        let plan = Plan {
            ops: draft.ops,
            stale: Vec::new(),
            revision: self.revision,
        };
        match self.former.take() {
            // Taking tables over is one plan from its beginning to its end.
            Some(former) => {
                let plan = self.and_garbage(plan);
                self.lead_over(former, plan)
            }
            None => plan,
        }
    }

    /// Endpoints that depend on something that changed, and what is to be tried again.
    fn add_indirect(&mut self, dirty: &mut Dirty) {
        for (ifindex, record) in &self.records {
            if !record.names.is_disjoint(&dirty.names) {
                dirty.endpoints.insert(*ifindex);
            }
        }
        dirty.endpoints.extend(self.starved.keys());
        for address in &dirty.addresses {
            dirty.endpoints.extend(self.store.dependents(address));
        }
        dirty.addresses.append(&mut self.unplaced);
    }

    /// Decides what judges each dirty endpoint, and compiles lists that are new. Returns the endpoints
    /// that are to be, and those that are no more.
    fn judge_endpoints(&mut self, dirty: &Dirty, draft: &mut Draft) -> (Targets, BTreeSet<u32>) {
        let mut targets = Targets::new();
        let mut gone = dirty.ended.clone();
        for ifindex in &dirty.endpoints {
            self.starved.remove(ifindex);
            let Some(endpoint) = self.store.endpoint(*ifindex).cloned() else {
                gone.insert(*ifindex);
                continue;
            };
            let mut names = BTreeSet::new();
            let judges = [Direction::Ingress, Direction::Egress]
                .map(|direction| self.judge_of(*ifindex, &endpoint, direction, &mut names, draft));
            targets.insert(*ifindex, (judges, names));
        }
        (targets, gone)
    }

    fn judge_of(
        &mut self,
        ifindex: u32,
        endpoint: &LocalEndpoint,
        direction: Direction,
        names: &mut BTreeSet<PortName>,
        draft: &mut Draft,
    ) -> Judge {
        // A pod that is not known could be any policy's subject.
        let Some(pod) = self.store.subject(endpoint) else {
            return Judge::DenyAll;
        };
        let Some(list) = rules::rule_list(&self.store, pod, direction, names) else {
            return Judge::Nobody;
        };
        let pod = endpoint.pod.clone();
        if list.rules.len() > rules::CAPACITY {
            let rules = list.rules.len();
            let problem = Problem::RuleListTooLong {
                pod,
                direction,
                rules,
            };
            self.starved.entry(ifindex).or_default().push(problem);
            return Judge::DenyAll;
        }
        let list = Arc::new(list);
        if self.lists.contains_key(&list) {
            return Judge::List(list);
        }
        match self.table_that_is_full(&list) {
            None => {
                self.create(&list, draft);
                Judge::List(list)
            }
            Some(table) => {
                let former = self
                    .records
                    .get(&ifindex)
                    .filter(|record| record.pod == pod);
                let kept = former.map(|record| record.judges[direction as usize].clone());
                let problem = Problem::TableFull {
                    pod,
                    direction,
                    table,
                    kept: kept.is_some(),
                };
                self.starved.entry(ifindex).or_default().push(problem);
                kept.unwrap_or(Judge::DenyAll)
            }
        }
    }

    /// The table that has no room for a new list.
    pub(crate) fn table_that_is_full(&self, list: &RuleList) -> Option<&'static str> {
        let cost = page::cost(list);
        let nets = |v6: bool| {
            let blocks = list
                .rules
                .iter()
                .filter_map(|rule| rule.peers.as_ref())
                .flatten();
            let nets = blocks.flat_map(|atom| match atom {
                Atom::Block { cidr, except } => [&[*cidr][..], &except[..]].concat(),
                _ => Vec::new(),
            });
            let new: BTreeSet<IpNet> = nets
                .filter(|net| {
                    matches!(net, IpNet::V6(_)) == v6 && !self.prefix_ids.contains_key(net)
                })
                .collect();
            self.prefixes.count(v6) + new.len()
        };
        let fits = |used: usize, limit: u32| used <= limit as usize;
        if !fits(
            self.page_numbers.highest_of(cost.pages) as usize + 1,
            self.limits.policies,
        ) {
            Some("policies")
        } else if !fits(self.port_rows + cost.ports, self.limits.ports) {
            Some("ports")
        } else if !fits(self.peer_rows + cost.pages, self.limits.peers) {
            Some("peers")
        } else if !fits(nets(false), self.limits.prefix_v4) {
            Some("prefix_v4")
        } else if !fits(nets(true), self.limits.prefix_v6) {
            Some("prefix_v6")
        } else {
            None
        }
    }

    /// Compiles a list: registers its atoms and emits its pages' rows, those of `peers` apart.
    pub(crate) fn create(&mut self, list: &Arc<RuleList>, draft: &mut Draft) {
        for atom in list
            .rules
            .iter()
            .filter_map(|rule| rule.peers.as_ref())
            .flatten()
        {
            let (id, is_new) = self.atoms.register(atom);
            if is_new {
                draft.new_atoms.insert(id);
                self.prefixes.add(id, atom);
            }
        }
        let ids: Vec<u32> = page::cut(list)
            .iter()
            .map(|_| self.page_numbers.allocate())
            .collect();
        for (number, id) in ids.iter().enumerate() {
            let next = ids.get(number + 1).copied().unwrap_or(0);
            let mut page = Page::new(list, number, *id, next, &self.atoms);
            for atom in page.atoms.keys() {
                if let Some(record) = self.atoms.get_mut(*atom) {
                    record.pages.insert(*id);
                }
            }
            for (key, bits) in &page.ports {
                draft.ops.push(Op::PutPort {
                    key: *key,
                    bits: Box::new(*bits),
                });
            }
            let rows = u32::from(page.header.rules);
            if rows > 0
                && let Some(first) = self.count_rows.allocate(rows)
            {
                page.header.first_count = first;
                draft.ops.push(Op::ClearRuleCounts { first, rows });
            }
            self.port_rows += page.ports.len();
            let (header, anyone) = (page.header, page.anyone);
            self.pages.insert(*id, page);
            if !anyone.is_empty() {
                self.put_peer(*id, 0, anyone, &mut draft.ops);
            }
            draft.ops.push(Op::PutPolicy { id: *id, header });
            draft.new_pages.insert(*id);
        }
        self.lists.insert(
            list.clone(),
            ListRecord {
                pages: ids,
                users: BTreeSet::new(),
                idle_since: self.revision,
            },
        );
    }

    /// Puts a row of `peers`. Where there is no room for it, the identity counts as one that no rule of
    /// the page names, until there is.
    pub(crate) fn put_peer(
        &mut self,
        policy: u32,
        identity: u32,
        bits: RuleBits,
        ops: &mut Vec<Op>,
    ) {
        let is_full = self.peer_rows >= self.limits.peers as usize;
        let Some(page) = self.pages.get_mut(&policy) else {
            return;
        };
        if !page.peer_rows.contains(&identity) {
            if is_full {
                self.unplaced_peers.insert((policy, identity));
                return;
            }
            page.peer_rows.insert(identity);
            self.peer_rows += 1;
        }
        self.unplaced_peers.remove(&(policy, identity));
        ops.push(Op::PutPeer {
            key: PeerKey { policy, identity },
            bits: Box::new(bits),
        });
    }

    /// Puts the rows of `peers` for which there is room by now, and has their flows judged again.
    pub(crate) fn place_peers(&mut self, draft: &mut Draft) {
        let mut placed = BTreeSet::new();
        for (page, identity) in self.unplaced_peers.clone() {
            if self.peer_rows >= self.limits.peers as usize {
                break;
            }
            self.unplaced_peers.remove(&(page, identity));
            self.put_row(page, identity, &mut draft.ops);
            placed.insert(page);
        }
        draft.revoked = self.users_of(&placed);
        self.revoke(draft);
    }

    /// Finds the new identity of every dirty address, and emits what must be there before any of them
    /// moves.
    fn move_addresses(&mut self, dirty: &mut Dirty, draft: &mut Draft) -> Vec<Move> {
        let changes = self.prefixes.refresh();
        for PrefixChange { prefix, .. } in &changes {
            let (first, last) = (prefix.network(), prefix.broadcast());
            dirty
                .addresses
                .extend(self.store.claimed_within(first, last));
        }
        let store = &self.store;
        self.atoms.for_each_match(store, &draft.new_atoms, |pod| {
            dirty.addresses.extend(store.addresses_of(&pod.name));
        });
        self.atoms
            .for_each_match_held(store, &draft.new_atoms, |endpoint| {
                dirty.addresses.extend(&endpoint.addresses);
            });
        let moves = self.identify(&dirty.addresses);
        let prefixes = self.identify_prefixes(changes);
        self.put_rows_of_new_pages(draft);
        let news: BTreeSet<u32> = moves
            .iter()
            .map(|step| step.new)
            .chain(prefixes.iter().filter_map(|(_, id)| *id))
            .collect();
        self.put_missing_rows(&news, &mut draft.ops);
        self.put_prefixes(prefixes, &mut draft.ops);
        moves
    }

    /// The moves that bring addresses to the identities that registered atoms give them.
    pub(crate) fn identify(&mut self, addresses: &BTreeSet<IpAddr>) -> Vec<Move> {
        let mut matcher = Matcher::default();
        let mut moves = Vec::new();
        for address in addresses {
            let mut atoms: Vec<AtomId> = Vec::new();
            if let Some(pod) = self.store.owner(address) {
                atoms = matcher.atoms_of(&self.atoms, &self.store, pod, address);
                if let Some((_, blocks)) = self.prefixes.lookup(*address) {
                    atoms.extend(blocks.iter());
                }
                atoms.sort_unstable();
            }
            let set: AtomSet = atoms.into();
            let new = self.identities.intern(&set, &mut self.atoms);
            let old = self.addresses.identity(address);
            if old != new {
                moves.push(Move {
                    address: *address,
                    old,
                    new,
                });
            }
        }
        moves
    }

    pub(crate) fn identify_prefixes(
        &mut self,
        changes: Vec<PrefixChange>,
    ) -> Vec<(IpNet, Option<u32>)> {
        let mut identify = |set: &AtomSet| self.identities.intern(set, &mut self.atoms);
        changes
            .into_iter()
            .map(|change| (change.prefix, change.set.as_ref().map(&mut identify)))
            .collect()
    }

    fn put_rows_of_new_pages(&mut self, draft: &mut Draft) {
        for id in &draft.new_pages {
            let Some(page) = self.pages.get(id) else {
                continue;
            };
            let identities: BTreeSet<u32> = page
                .atoms
                .keys()
                .filter_map(|atom| self.atoms.get(*atom))
                .flat_map(|record| record.identities.iter().copied())
                .collect();
            for identity in identities {
                self.put_row(*id, identity, &mut draft.ops);
            }
        }
    }

    /// Puts the rows that identities need and do not have yet.
    pub(crate) fn put_missing_rows(&mut self, identities: &BTreeSet<u32>, ops: &mut Vec<Op>) {
        for identity in identities {
            for page in self.atoms.pages_of(self.identities.atoms(*identity)) {
                if self
                    .pages
                    .get(&page)
                    .is_some_and(|page| !page.peer_rows.contains(identity))
                {
                    self.put_row(page, *identity, ops);
                }
            }
        }
    }

    fn put_row(&mut self, page: u32, identity: u32, ops: &mut Vec<Op>) {
        let row = self
            .pages
            .get(&page)
            .and_then(|page| page.row(self.identities.atoms(identity)));
        if let Some(bits) = row {
            self.put_peer(page, identity, bits, ops);
        }
    }

    pub(crate) fn put_prefixes(&mut self, changes: Vec<(IpNet, Option<u32>)>, ops: &mut Vec<Op>) {
        for (prefix, identity) in changes {
            let old = match identity {
                Some(id) => {
                    ops.push(Op::PutPrefix {
                        prefix,
                        identity: Identity { id },
                    });
                    if let Some(record) = self.identities.get_mut(id) {
                        record.prefixes.insert(prefix);
                    }
                    self.prefix_ids.insert(prefix, id)
                }
                None => {
                    ops.push(Op::DeletePrefix { prefix });
                    self.prefix_ids.remove(&prefix)
                }
            };
            if let Some(old) = old
                && Some(old) != identity
                && let Some(record) = self.identities.get_mut(old)
            {
                record.prefixes.remove(&prefix);
            }
        }
    }

    /// Gives an address an identity; 0 removes its row.
    pub(crate) fn put_address(&mut self, address: IpAddr, old: u32, new: u32, ops: &mut Vec<Op>) {
        if new != 0 && !self.addresses.set(address, new) {
            self.unplaced.insert(address);
            return;
        }
        if new == 0 {
            ops.push(Op::DeleteAddress { address });
            self.addresses.remove(address);
        } else {
            ops.push(Op::PutAddress {
                address,
                identity: Identity { id: new },
            });
        }
        if let Some(record) = self.identities.get_mut(old) {
            record.addresses.remove(&address);
        }
        if let Some(record) = self.identities.get_mut(new) {
            record.addresses.insert(address);
        }
    }

    /// Atoms that an address shows to pages: of its own row, else of its longest prefix.
    fn seen(&self, address: &IpAddr, identity: u32) -> BTreeSet<AtomId> {
        if identity != 0 {
            return self.identities.atoms(identity).iter().copied().collect();
        }
        let blocks = self
            .prefixes
            .lookup(*address)
            .map(|(_, blocks)| blocks.iter().copied());
        blocks.into_iter().flatten().collect()
    }

    /// The transition that a move is.
    pub(crate) fn transition(&self, step: &Move) -> Transition {
        let shows_through = step.old == 0 || step.new == 0;
        let prefix = self.prefixes.lookup(step.address).filter(|_| shows_through);
        let prefix = prefix.and_then(|(prefix, _)| self.prefix_ids.get(&prefix));
        (step.old, step.new, prefix.copied().unwrap_or(0))
    }

    /// Pages on which a move changes the address's row.
    pub(crate) fn pages_touched(&self, step: &Move) -> BTreeSet<u32> {
        let (old, new) = (
            self.seen(&step.address, step.old),
            self.seen(&step.address, step.new),
        );
        self.atoms.pages_of(old.symmetric_difference(&new))
    }

    /// Makes transitional identities for moves that pages being left must not see, and notes whose
    /// flows the moves concern.
    fn transitional(&mut self, moves: &[Move], draft: &mut Draft) -> BTreeMap<Transition, u32> {
        let mut transitional = BTreeMap::new();
        let mut touched = BTreeSet::new();
        let mut seen_before: BTreeMap<Transition, BTreeSet<u32>> = BTreeMap::new();
        for step in moves {
            let transition = self.transition(step);
            let pages = match seen_before.get(&transition) {
                Some(pages) => pages.clone(),
                None => {
                    let pages = self.pages_touched(step);
                    seen_before.insert(transition, pages.clone());
                    pages
                }
            };
            let kept_from = pages.intersection(&draft.left).next().is_some();
            touched.extend(pages);
            if !kept_from || transitional.contains_key(&transition) {
                continue;
            }
            let id = self.identities.numbers.allocate();
            let (old, new) = (
                self.seen(&step.address, step.old),
                self.seen(&step.address, step.new),
            );
            let old: Vec<AtomId> = old.into_iter().collect();
            let new: Vec<AtomId> = new.into_iter().collect();
            for page in self.atoms.pages_of(old.iter().chain(&new)) {
                let view = if draft.left.contains(&page) {
                    &old
                } else {
                    &new
                };
                if let Some(bits) = self.pages.get(&page).and_then(|page| page.row(view)) {
                    self.put_peer(page, id, bits, &mut draft.ops);
                }
            }
            transitional.insert(transition, id);
        }
        draft.revoked.extend(self.users_of(&touched));
        transitional
    }

    pub(crate) fn users_of(&self, pages: &BTreeSet<u32>) -> BTreeSet<u32> {
        pages
            .iter()
            .filter_map(|page| self.lists.get(&self.pages.get(page)?.list))
            .flat_map(|record| record.users.iter().copied())
            .collect()
    }

    /// The policy id of a judge.
    pub(crate) fn policy_id(&self, judge: &Judge) -> u32 {
        match judge {
            Judge::Nobody => 0,
            Judge::DenyAll => DENY_ALL,
            Judge::List(list) => self
                .lists
                .get(list)
                .and_then(|list| list.pages.first())
                .map_or(DENY_ALL, |id| *id),
        }
    }
}
