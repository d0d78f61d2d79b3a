//! The second half of a plan: endpoints switch, and what nobody needs any more goes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use policy_common::address::{AddressV4, AddressV6};
use policy_common::endpoint::Endpoint;
use policy_common::policy::{PeerKey, RuleKey};

use crate::compiler::{Compiler, Draft, EndpointRecord, Judge, Move};
use crate::model::LocalEndpoint;
use crate::op::Op;
use crate::rules::RuleList;
use crate::store::PortName;

/// Endpoints that are to be: what judges them, and the port names that this depends on.
pub(crate) type Targets = BTreeMap<u32, ([Judge; 2], BTreeSet<PortName>)>;

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
            let Some(endpoint) = self.store.endpoint(ifindex).cloned() else {
                continue;
            };
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
        let Some(id) = self.slots.allocate() else {
            let problem = crate::Problem::NoEndpointId {
                ifindex,
                pod: endpoint.pod.clone(),
            };
            self.starved.entry(ifindex).or_default().push(problem);
            return;
        };
        let mut row = Endpoint {
            epoch: 1,
            id,
            ingress_policy: policies[0],
            egress_policy: policies[1],
            ..Endpoint::default()
        };
        set_addresses(&mut row, endpoint);
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
        transitional: &BTreeMap<(u32, u32), u32>,
        draft: &mut Draft,
    ) {
        let mut touched = BTreeSet::new();
        for step in moves {
            if let Some(through) = transitional.get(&(step.old, step.new)) {
                self.put_address(step.address, *through, step.new, &mut draft.ops);
                touched.extend(self.pages_touched(step));
            }
        }
        touched.retain(|page| draft.left.contains(page));
        draft.revoked = self.users_of(&touched);
        self.revoke(draft);
    }

    /// Removes what no endpoint uses: lists, atoms, identities, and their rows. Nothing of it changes a
    /// verdict, but a packet that is on its way may still look at the rows: hence the barrier.
    pub(crate) fn collect_garbage(
        &mut self,
        transitional: &BTreeMap<(u32, u32), u32>,
        draft: &mut Draft,
    ) {
        let mut stale = Vec::new();
        let dead_atoms = self.drop_unused_lists(&mut stale);
        if !dead_atoms.is_empty() {
            self.shrink_identities(&dead_atoms, &mut draft.ops);
        }
        for id in transitional.values() {
            self.drop_rows_of(*id, &mut stale);
            self.identities.numbers.release(*id);
        }
        let unused: Vec<u32> = self
            .identities
            .iter()
            .filter(|(_, record)| record.is_unused())
            .map(|(id, _)| *id)
            .collect();
        for id in unused {
            self.drop_rows_of(id, &mut stale);
            self.identities.forget(id, &mut self.atoms);
            self.identities.numbers.release(id);
        }
        if !stale.is_empty() {
            draft.ops.push(Op::Barrier);
            draft.ops.append(&mut stale);
        }
    }

    /// Forgets lists without users; returns the atoms that no page is about any more.
    fn drop_unused_lists(&mut self, stale: &mut Vec<Op>) -> BTreeSet<u32> {
        let unused: Vec<Arc<RuleList>> = self
            .lists
            .iter()
            .filter(|(_, record)| record.users.is_empty())
            .map(|(list, _)| list.clone())
            .collect();
        let mut dead_atoms = BTreeSet::new();
        for list in unused {
            let Some(record) = self.lists.remove(&list) else {
                continue;
            };
            for id in record.pages {
                let Some(page) = self.pages.remove(&id) else {
                    continue;
                };
                stale.push(Op::DeletePolicy { id });
                self.port_rows -= page.ports.len();
                self.rule_rows -= usize::from(page.header.rules);
                self.peer_rows -= page.peer_rows.len();
                for (key, _) in page.ports {
                    stale.push(Op::DeletePort { key });
                }
                for rule in 0..u32::from(page.header.rules) {
                    stale.push(Op::DeleteRuleCount {
                        key: RuleKey { policy: id, rule },
                    });
                }
                for identity in page.peer_rows {
                    stale.push(Op::DeletePeer {
                        key: PeerKey {
                            policy: id,
                            identity,
                        },
                    });
                }
                for atom in page.atoms.into_keys() {
                    if let Some(record) = self.atoms.get_mut(atom) {
                        record.pages.remove(&id);
                        if record.pages.is_empty() {
                            dead_atoms.insert(atom);
                        }
                    }
                }
                self.page_numbers.release(id);
            }
        }
        dead_atoms
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

    fn drop_rows_of(&mut self, identity: u32, stale: &mut Vec<Op>) {
        for (policy, page) in &mut self.pages {
            if page.peer_rows.remove(&identity) {
                self.peer_rows -= 1;
                stale.push(Op::DeletePeer {
                    key: PeerKey {
                        policy: *policy,
                        identity,
                    },
                });
            }
        }
    }
}

/// The first address of each family, as found on the interface.
fn set_addresses(row: &mut Endpoint, endpoint: &LocalEndpoint) {
    row.flags = 0;
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
