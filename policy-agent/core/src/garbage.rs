//! The second half of a plan: endpoints switch. And, after it, what nobody needs any more goes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use policy_common::address::{AddressV4, AddressV6};
use policy_common::endpoint::Endpoint;
use policy_common::policy::PeerKey;
use policy_common::verdict::Direction;

use crate::compiler::{Compiler, Draft, EndpointRecord, Judge, Move, Transition};
use crate::limits::Problem;
use crate::model::LocalEndpoint;
use crate::op::Op;
use crate::page::Page;
use crate::rules::RuleList;
use crate::store::PortName;

/// Endpoints that are to be: what judges them, and the port names that this depends on.
pub(crate) type Targets = BTreeMap<u32, ([Judge; 2], BTreeSet<PortName>)>;

/// What nobody uses any more, and has not gone yet.
#[derive(Debug, Default)]
pub(crate) struct Garbage {
    /// Pages that a list had before it was renewed, with the plan that renewed it.
    orphans: Vec<(u64, u32)>,
    /// Identities that addresses went through.
    pub(crate) transitional: Vec<u32>,
    /// What is retired, and still has rows.
    retired: Retired,
}

/// Rows and numbers that no operation of a plan touches any more. They count as used until they are gone.
#[derive(Debug, Default)]
struct Retired {
    pages: Vec<(u32, Page)>,
    identities: Vec<u32>,
    /// Rows of `peers` on pages that stay.
    peers: Vec<PeerKey>,
}

impl Retired {
    fn is_empty(&self) -> bool {
        self.pages.is_empty() && self.identities.is_empty() && self.peers.is_empty()
    }
}

impl Compiler {
    /// Notes the pages that endpoints are about to leave.
    pub(crate) fn note_left_pages(
        &self,
        targets: &Targets,
        gone: &BTreeSet<u32>,
        draft: &mut Draft,
    ) {
        for (ifindex, record) in &self.records {
            if gone.contains(ifindex) {
                continue;
            }
            let Some((judges, _)) = targets.get(ifindex) else {
                continue;
            };
            for (old, new) in record.judges.iter().zip(judges) {
                if old != new
                    && let Judge::List(list) = old
                    && let Some(list) = self.lists.get(list)
                {
                    draft.left.extend(&list.pages);
                }
            }
        }
    }

    /// Gives fresh pages to lists that one endpoint leaves and another joins: the old pages may have to
    /// show the old view for a while, which is no view that the newcomer ever had. All who stay move
    /// over as well.
    pub(crate) fn renew_joined_lists(
        &mut self,
        targets: &mut Targets,
        gone: &BTreeSet<u32>,
        draft: &mut Draft,
    ) {
        let mut joined: Vec<Arc<RuleList>> = Vec::new();
        for (ifindex, (judges, _)) in targets.iter() {
            let former = self
                .records
                .get(ifindex)
                .filter(|_| !gone.contains(ifindex));
            for (slot, judge) in judges.iter().enumerate() {
                let stays = former.is_some_and(|record| record.judges[slot] == *judge);
                if let Judge::List(list) = judge
                    && !stays
                    && let Some(record) = self.lists.get(list)
                    && record.pages.iter().any(|page| draft.left.contains(page))
                    && !joined.contains(list)
                {
                    joined.push(list.clone());
                }
            }
        }
        for list in joined {
            if let Some(table) = self.table_that_is_full(&list) {
                self.keep_out(&list, table, targets);
                continue;
            }
            let Some(record) = self.lists.remove(&list) else {
                continue;
            };
            self.create(&list, draft);
            // Who is gone must not come back as a target: its row would stay.
            for user in record.users.difference(gone) {
                if let Some(former) = self.records.get(user) {
                    let target = || (former.judges.clone(), former.names.clone());
                    targets.entry(*user).or_insert_with(target);
                }
            }
            let orphans = record.pages.into_iter().map(|page| (self.revision, page));
            self.garbage.orphans.extend(orphans);
            if let Some(renewed) = self.lists.get_mut(&list) {
                renewed.users = record.users;
            }
        }
    }

    /// Keeps those who would join a list for which there is no second set of pages on what judged them
    /// before; with the next plan they may join.
    fn keep_out(&mut self, list: &Arc<RuleList>, table: &'static str, targets: &mut Targets) {
        for (ifindex, (judges, _)) in targets {
            for direction in Direction::ALL {
                let judge = &mut judges[direction as usize];
                let former = self.records.get(ifindex);
                let former = former.map(|record| record.judges[direction as usize].clone());
                if !matches!(judge, Judge::List(wanted) if wanted == list)
                    || former.as_ref() == Some(judge)
                {
                    continue;
                }
                let Some(endpoint) = self.store.endpoint(*ifindex) else {
                    continue;
                };
                self.starved
                    .entry(*ifindex)
                    .or_default()
                    .push(Problem::TableFull {
                        pod: endpoint.pod.clone(),
                        direction,
                        table,
                        kept: former.is_some(),
                    });
                *judge = former.unwrap_or(Judge::DenyAll);
            }
        }
    }

    /// Switches endpoints to what now judges them, all policy ids first and epochs later; writes the
    /// rows of new endpoints and removes those of endpoints that are gone.
    pub(crate) fn switch_endpoints(
        &mut self,
        targets: Targets,
        gone: &BTreeSet<u32>,
        draft: &mut Draft,
    ) {
        for ifindex in gone {
            if let Some(record) = self.records.remove(ifindex) {
                self.release(*ifindex, &record.judges, &[Judge::Nobody, Judge::Nobody]);
                self.slots.release(record.row.id);
                if !targets.contains_key(ifindex) {
                    draft.ops.push(Op::DeleteEndpoint { ifindex: *ifindex });
                }
            }
            self.starved
                .retain(|starved, _| starved != ifindex || targets.contains_key(ifindex));
            draft.revoked.remove(ifindex);
        }
        for (ifindex, (judges, names)) in targets {
            let Some(mut endpoint) = self.store.endpoint(ifindex).cloned() else {
                continue;
            };
            endpoint.addresses = self.store.own_addresses(&endpoint);
            let policies = [self.policy_id(&judges[0]), self.policy_id(&judges[1])];
            for judge in &judges {
                if let Judge::List(list) = judge
                    && let Some(list) = self.lists.get_mut(list)
                {
                    list.users.insert(ifindex);
                }
            }
            match self.records.remove(&ifindex) {
                Some(mut record) => {
                    let former = record.row;
                    record.row.ingress_policy = policies[0];
                    record.row.egress_policy = policies[1];
                    set_addresses(&mut record.row, &endpoint);
                    if record.row != former {
                        draft.ops.push(Op::PutEndpoint {
                            ifindex,
                            endpoint: record.row,
                        });
                        draft.revoked.insert(ifindex);
                    }
                    let old = std::mem::replace(&mut record.judges, judges);
                    self.release(ifindex, &old, &record.judges);
                    record.names = names;
                    self.records.insert(ifindex, record);
                }
                None => self.add_endpoint(ifindex, &endpoint, policies, (judges, names), draft),
            }
        }
    }

    fn add_endpoint(
        &mut self,
        ifindex: u32,
        endpoint: &LocalEndpoint,
        policies: [u32; 2],
        (judges, names): ([Judge; 2], BTreeSet<PortName>),
        draft: &mut Draft,
    ) {
        let mut row = Endpoint {
            epoch: 1,
            ingress_policy: policies[0],
            egress_policy: policies[1],
            ..Endpoint::default()
        };
        set_addresses(&mut row, endpoint);
        let former = self.former_row(ifindex, &row);
        if let Some(former) = former {
            row.epoch = former.epoch.wrapping_add(1);
        }
        let id = former.map(|former| former.id);
        let Some(id) = id.or_else(|| self.slots.allocate()) else {
            let problem = Problem::NoEndpointId {
                ifindex,
                pod: endpoint.pod.clone(),
                ids: self.limits.highest_slot,
            };
            self.starved.entry(ifindex).or_default().push(problem);
            return;
        };
        row.id = id;
        draft.ops.push(Op::PutEndpoint {
            ifindex,
            endpoint: row,
        });
        draft.revoked.remove(&ifindex);
        let pod = endpoint.pod.clone();
        self.records.insert(
            ifindex,
            EndpointRecord {
                row,
                pod,
                judges,
                names,
            },
        );
    }

    /// Takes an endpoint off the lists that no longer judge it.
    fn release(&mut self, ifindex: u32, old: &[Judge; 2], new: &[Judge; 2]) {
        for judge in old {
            if let Judge::List(list) = judge
                && !new.contains(judge)
                && let Some(record) = self.lists.get_mut(list)
            {
                record.users.remove(&ifindex);
                record.idle_since = self.revision;
            }
        }
    }

    /// Starts a new epoch for every endpoint that the draft names.
    pub(crate) fn revoke(&mut self, draft: &mut Draft) {
        for ifindex in std::mem::take(&mut draft.revoked) {
            if let Some(record) = self.records.get_mut(&ifindex) {
                record.row.epoch = record.row.epoch.wrapping_add(1);
                draft.ops.push(Op::PutEndpoint {
                    ifindex,
                    endpoint: record.row,
                });
            }
        }
    }

    /// Brings addresses from transitional identities to their own, now that the pages which must not
    /// see it are left; endpoints that stayed on those pages judge their flows again.
    pub(crate) fn finish_moves(
        &mut self,
        moves: &[Move],
        transitional: &BTreeMap<Transition, u32>,
        draft: &mut Draft,
    ) {
        if transitional.is_empty() {
            return;
        }
        // A packet that is still on a page being left must not see the address's own identity there.
        draft.ops.push(Op::Barrier);
        let mut touched = BTreeSet::new();
        for step in moves {
            if let Some(through) = transitional.get(&self.transition(step)) {
                self.put_address(step.address, *through, step.new, &mut draft.ops);
                touched.extend(self.pages_touched(step));
            }
        }
        touched.retain(|page| draft.left.contains(page));
        draft.revoked = self.users_of(&touched);
        self.revoke(draft);
    }

    /// Whether there may be something to retire.
    #[must_use]
    pub fn has_garbage(&self) -> bool {
        let has_idle_list = || self.lists.values().any(|list| list.users.is_empty());
        let has_unused = || self.identities.iter().any(|(_, record)| record.is_unused());
        !self.garbage.orphans.is_empty()
            || !self.garbage.transitional.is_empty()
            || has_idle_list()
            || has_unused()
    }

    /// Gives up what no endpoint uses since plan `revision` or longer: lists, atoms, identities. A grace
    /// period must have passed since that plan was executed: a packet on its way may have been on a page
    /// that was left. The operations change no verdict; as a plan, they must be executed before the next.
    pub fn retire(&mut self, revision: u64) -> Vec<Op> {
        let mut ops = Vec::new();
        let mut dead_atoms = BTreeSet::new();
        for page in self.pages_unused_since(revision) {
            self.retire_page(page, &mut dead_atoms);
        }
        // An atom that lost one page may have another.
        dead_atoms.retain(|atom| {
            self.atoms
                .get(*atom)
                .is_some_and(|record| record.pages.is_empty())
        });
        if !dead_atoms.is_empty() {
            self.shrink_identities(&dead_atoms, &mut ops);
        }
        for id in std::mem::take(&mut self.garbage.transitional) {
            self.retire_identity(id);
        }
        let unused: Vec<u32> = self
            .identities
            .iter()
            .filter(|(_, record)| record.is_unused())
            .map(|(id, _)| *id)
            .collect();
        for id in unused {
            self.identities.forget(id, &mut self.atoms);
            self.retire_identity(id);
        }
        ops
    }

    /// Whether [`Self::bury`] has something to do.
    #[must_use]
    pub fn has_retired(&self) -> bool {
        !self.garbage.retired.is_empty()
    }

    /// Removes the rows of what is retired, and makes its numbers free. A grace period must have passed
    /// since the operations of [`Self::retire`] were executed: a packet on its way may have read an
    /// identity that goes. Where there was no room for something, there may be now; see [`Self::is_short`].
    pub fn bury(&mut self) -> Vec<Op> {
        let Retired {
            pages,
            identities,
            peers,
        } = std::mem::take(&mut self.garbage.retired);
        let mut draft = Draft::default();
        self.peer_rows -= peers.len();
        draft
            .ops
            .extend(peers.into_iter().map(|key| Op::DeletePeer { key }));
        for (id, page) in pages {
            self.bury_page(id, page, &mut draft.ops);
        }
        for id in identities {
            self.identities.numbers.release(id);
        }
        self.place_peers(&mut draft);
        draft.ops
    }

    /// Whether something found no room, and is tried again with the next plan.
    #[must_use]
    pub fn is_short(&self) -> bool {
        !self.starved.is_empty() || !self.unplaced.is_empty() || !self.unplaced_peers.is_empty()
    }

    /// Pages that nobody is on since that plan; forgets their lists.
    fn pages_unused_since(&mut self, revision: u64) -> Vec<u32> {
        let mut pages = Vec::new();
        self.lists.retain(|_, list| {
            let stays = !list.users.is_empty() || list.idle_since > revision;
            if !stays {
                pages.append(&mut list.pages);
            }
            stays
        });
        self.garbage.orphans.retain(|(since, page)| {
            let stays = *since > revision;
            if !stays {
                pages.push(*page);
            }
            stays
        });
        pages
    }

    /// Forgets a page; adds the atoms that no page is about any more to `dead_atoms`.
    fn retire_page(&mut self, id: u32, dead_atoms: &mut BTreeSet<u32>) {
        let Some(page) = self.pages.remove(&id) else {
            return;
        };
        self.unplaced_peers.retain(|(page, _)| *page != id);
        for atom in page.atoms.keys() {
            if let Some(record) = self.atoms.get_mut(*atom) {
                record.pages.remove(&id);
                if record.pages.is_empty() {
                    dead_atoms.insert(*atom);
                }
            }
        }
        self.garbage.retired.pages.push((id, page));
    }

    /// Forgets an identity's rows.
    fn retire_identity(&mut self, identity: u32) {
        self.unplaced_peers
            .retain(|(_, unplaced)| *unplaced != identity);
        for (policy, page) in &mut self.pages {
            if page.peer_rows.remove(&identity) {
                self.garbage.retired.peers.push(PeerKey {
                    policy: *policy,
                    identity,
                });
            }
        }
        self.garbage.retired.identities.push(identity);
    }

    fn bury_page(&mut self, id: u32, page: Page, ops: &mut Vec<Op>) {
        ops.push(Op::DeletePolicy { id });
        self.port_rows -= page.ports.len();
        if page.header.first_count != 0 {
            let rows = u32::from(page.header.rules);
            self.count_rows.release(page.header.first_count, rows);
        }
        self.peer_rows -= page.peer_rows.len();
        for (key, _) in page.ports {
            ops.push(Op::DeletePort { key });
        }
        for identity in page.peer_rows {
            ops.push(Op::DeletePeer {
                key: PeerKey {
                    policy: id,
                    identity,
                },
            });
        }
        self.page_numbers.release(id);
    }

    /// Unregisters atoms, and brings every address and prefix that matched one to the identity of what
    /// is left, which says the same on every page.
    fn shrink_identities(&mut self, dead_atoms: &BTreeSet<u32>, ops: &mut Vec<Op>) {
        let mut addresses: BTreeSet<IpAddr> = BTreeSet::new();
        for atom in dead_atoms {
            let identities = self
                .atoms
                .get(*atom)
                .map(|record| record.identities.clone());
            for identity in identities.into_iter().flatten() {
                if let Some(record) = self.identities.get(identity) {
                    addresses.extend(&record.addresses);
                }
            }
            if let Some(atom_itself) = self.atoms.unregister(*atom) {
                self.prefixes.remove(*atom, &atom_itself);
            }
        }
        let changes = self.prefixes.refresh();
        let moves = self.identify(&addresses);
        let prefixes = self.identify_prefixes(changes);
        let news: BTreeSet<u32> = moves
            .iter()
            .map(|step| step.new)
            .chain(prefixes.iter().filter_map(|(_, id)| *id))
            .collect();
        self.put_missing_rows(&news, ops);
        // Inner prefixes that stay must not be without their outer ones' blocks, and none of these
        // changes what a live page says: any order will do.
        self.put_prefixes(prefixes, ops);
        for step in moves {
            self.put_address(step.address, step.old, step.new, ops);
        }
    }
}

/// The first address of each family, as found on the interface.
fn set_addresses(row: &mut Endpoint, endpoint: &LocalEndpoint) {
    row.flags = 0;
    if endpoint.is_router {
        row.flags |= Endpoint::ROUTER;
    }
    if endpoint.records {
        row.flags |= Endpoint::RECORD;
    }
    row.ipv4 = AddressV4::default();
    row.ipv6 = AddressV6::default();
    for address in endpoint.addresses.iter().rev() {
        match address {
            IpAddr::V4(v4) => {
                row.ipv4 = AddressV4 {
                    octets: v4.octets(),
                };
                row.flags |= Endpoint::HAS_IPV4;
            }
            IpAddr::V6(v6) => {
                row.ipv6 = AddressV6 {
                    octets: v6.octets(),
                };
                row.flags |= Endpoint::HAS_IPV6;
            }
        }
    }
}
