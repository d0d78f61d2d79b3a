//! Taking over tables that an earlier compiler filled, while packets go through them.
//!
//! The cluster is compiled from nothing, under numbers that the former tables do not use. The plan then
//! leads over: every address and prefix first gets a transitional identity, whose rows show the former
//! view to the former pages and the new one to the new pages; endpoints switch; and once no packet is
//! on a former page any more, addresses get the identities that they were compiled to, and what is left
//! of the former tables goes. The former tables may be those of a plan that was never finished.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use ipnet::IpNet;
use policy_common::address::Identity;
use policy_common::endpoint::Endpoint;
use policy_common::map;
use policy_common::policy::{PeerKey, RuleBits};

use crate::compiler::{Compiler, Plan};
use crate::limits::Limits;
use crate::op::Op;
use crate::page::DENY_ALL;
use crate::tables::Tables;

/// Generations of endpoint ids between two compilers: as often may a slot be used again by one of them.
const GENERATIONS: u32 = 64;

impl Compiler {
    /// Whether the first plan will lead over from former tables.
    #[must_use]
    pub fn is_adopting(&self) -> bool {
        self.former.is_some()
    }

    /// A compiler for tables that hold `former`. Its first batch of changes must be the whole cluster, with
    /// every endpoint of this node: an interface that is not in it counts as one that is no pod's, and what
    /// was isolated there is closed until it is detached (see [`Compiler::take_leftovers`]). Where `former` has
    /// endpoints only, the tables themselves are new, and used by nobody until the first plan has filled them.
    #[must_use]
    pub fn adopting(limits: Limits, former: Tables) -> Self {
        let mut compiler = Self::new(limits);
        compiler.page_numbers.reserve(&pages(&former));
        compiler.identities.numbers.reserve(&identities(&former));
        compiler
            .slots
            .begin_generation(former.generation.wrapping_add(GENERATIONS), &former.ids());
        for header in former.policies.values() {
            if header.first_count != 0 {
                let rows = u32::from(header.rules);
                compiler.count_rows.take(header.first_count, rows);
            }
        }
        compiler.peer_rows = former.peers.len();
        compiler.port_rows = former.ports.len();
        compiler.former = Some(former);
        compiler
    }

    /// Interfaces of the former tables that are no endpoint's; their rows may be deleted once nothing of
    /// ours is attached there.
    pub fn take_leftovers(&mut self) -> Vec<u32> {
        let mut leftovers = std::mem::take(&mut self.leftovers);
        leftovers.retain(|ifindex| !self.records.contains_key(ifindex));
        leftovers.into_iter().collect()
    }

    /// The row that an endpoint had, when it is the same one.
    pub(crate) fn former_row(&self, ifindex: u32, row: &Endpoint) -> Option<Endpoint> {
        let former = self.former.as_ref()?.endpoints.get(&ifindex)?;
        let addresses = Endpoint::HAS_IPV4 | Endpoint::HAS_IPV6;
        let known = |row: &Endpoint| (row.flags & addresses, row.ipv4, row.ipv6);
        let same = known(former) == known(row);
        same.then_some(*former)
    }

    /// Makes a plan from nothing one from `former`.
    pub(crate) fn lead_over(&mut self, former: Tables, from_nothing: Plan) -> Plan {
        if has_endpoints_only(&former) {
            // For tables that no packet goes through yet.
            return from_nothing;
        }
        let revision = from_nothing.revision;
        let mut target = Tables::default();
        let mut ops = Vec::new();
        for op in from_nothing.into_ops() {
            target.apply(&op);
            if matches!(
                op,
                Op::PutEndpoint {
                    ifindex: Tables::GENERATION,
                    ..
                } | Op::PutPolicy { .. }
                    | Op::PutPort { .. }
                    | Op::PutPeer { .. }
                    | Op::ClearRuleCounts { .. }
            ) {
                ops.push(op);
            }
        }
        let ways = self.ways(&former, &target);
        let mut transitional = Vec::new();
        show_both_views(&ways, &former, &target, &mut ops, &mut transitional);
        ops.extend(ways.iter().map(|way| put_identity(way.place, way.through)));
        self.switch_adopted(&former, &target, &mut ops);

        let mut stale = vec![Op::Barrier];
        for way in &ways {
            stale.push(match way.target {
                Some(id) => put_identity(way.place, id),
                None => delete_identity(way.place),
            });
        }
        stale.push(Op::Barrier);
        let transitional = transitional.into_iter().map(|key| Op::DeletePeer { key });
        stale.extend(transitional);
        self.drop_former(&former, &mut stale);
        for id in ways.iter().map(|way| way.through).collect::<BTreeSet<_>>() {
            self.identities.numbers.release(id);
        }
        Plan {
            ops,
            stale,
            revision,
        }
    }

    /// The way of every address and prefix of either tables.
    fn ways(&mut self, former: &Tables, target: &Tables) -> Vec<Way> {
        let mut through: BTreeMap<(u32, u32), u32> = BTreeMap::new();
        let mut ways = Vec::new();
        let addresses = [&former.identities, &target.identities];
        let addresses: BTreeSet<IpAddr> =
            addresses.iter().flat_map(|t| t.keys().copied()).collect();
        let prefixes = [&former.prefixes, &target.prefixes];
        let prefixes: BTreeSet<IpNet> = prefixes.iter().flat_map(|t| t.keys().copied()).collect();
        let addresses = addresses.into_iter().map(Place::Address);
        for place in addresses.chain(prefixes.into_iter().map(Place::Prefix)) {
            let (old, new) = (seen(former, place), seen(target, place));
            let numbers = &mut self.identities.numbers;
            ways.push(Way {
                place,
                old,
                new,
                through: *through
                    .entry((old, new))
                    .or_insert_with(|| numbers.allocate()),
                target: own(target, place),
            });
        }
        ways
    }

    /// Switches endpoints, all policy ids first and epochs later. Those that are not in `target` are closed
    /// where they were isolated.
    fn switch_adopted(&mut self, former: &Tables, target: &Tables, ops: &mut Vec<Op>) {
        let mut epochs = Vec::new();
        for (ifindex, row) in &target.endpoints {
            let mut first = *row;
            if let Some(known) = former.endpoints.get(ifindex)
                && known.id == row.id
            {
                first.epoch = known.epoch;
                epochs.push(put_endpoint(*ifindex, *row));
            }
            ops.push(put_endpoint(*ifindex, first));
        }
        for (ifindex, row) in &former.endpoints {
            if target.endpoints.contains_key(ifindex) {
                continue;
            }
            self.leftovers.insert(*ifindex);
            let mut closed = *row;
            for policy in [&mut closed.ingress_policy, &mut closed.egress_policy] {
                if *policy != 0 {
                    *policy = DENY_ALL;
                }
            }
            ops.push(put_endpoint(*ifindex, closed));
            closed.epoch = closed.epoch.wrapping_add(1);
            epochs.push(put_endpoint(*ifindex, closed));
        }
        ops.append(&mut epochs);
    }

    /// Removes the former rows and frees their numbers.
    fn drop_former(&mut self, former: &Tables, stale: &mut Vec<Op>) {
        for id in pages(former) {
            stale.push(Op::DeletePolicy { id });
            self.page_numbers.release(id);
        }
        for header in former.policies.values() {
            if header.first_count != 0 {
                let rows = u32::from(header.rules);
                self.count_rows.release(header.first_count, rows);
            }
        }
        let peers = former.peers.keys().map(|key| Op::DeletePeer { key: *key });
        stale.extend(peers);
        let ports = former.ports.keys().map(|key| Op::DeletePort { key: *key });
        stale.extend(ports);
        let rules = former.rules.keys().map(|key| Op::DeleteRule { key: *key });
        stale.extend(rules);
        for id in identities(former) {
            self.identities.numbers.release(id);
        }
        self.peer_rows -= former.peers.len();
        self.port_rows -= former.ports.len();
    }
}

/// Whether the tables are new, and nothing but the ids of endpoints is to be kept.
fn has_endpoints_only(former: &Tables) -> bool {
    let rows = Tables {
        endpoints: BTreeMap::new(),
        generation: 0,
        ..former.clone()
    };
    rows == Tables::default()
}

/// Something that has an identity.
#[derive(Clone, Copy)]
enum Place {
    Address(IpAddr),
    Prefix(IpNet),
}

/// How an address or prefix gets from its former identity to its new one.
struct Way {
    place: Place,
    /// What the former pages see there.
    old: u32,
    /// What the new pages are to see there.
    new: u32,
    /// The transitional identity.
    through: u32,
    /// The row that it ends with.
    target: Option<u32>,
}

/// Writes the generation of endpoint ids, and the tables' layout.
pub(crate) fn put_generation(generation: u32) -> Op {
    let row = Endpoint {
        epoch: generation,
        flags: map::LAYOUT,
        ingress_policy: map::FLOW_LAYOUT,
        ..Endpoint::default()
    };
    put_endpoint(Tables::GENERATION, row)
}

fn put_endpoint(ifindex: u32, endpoint: Endpoint) -> Op {
    Op::PutEndpoint { ifindex, endpoint }
}

fn put_identity(place: Place, id: u32) -> Op {
    let identity = Identity { id };
    match place {
        Place::Address(address) => Op::PutAddress { address, identity },
        Place::Prefix(prefix) => Op::PutPrefix { prefix, identity },
    }
}

fn delete_identity(place: Place) -> Op {
    match place {
        Place::Address(address) => Op::DeleteAddress { address },
        Place::Prefix(prefix) => Op::DeletePrefix { prefix },
    }
}

/// The identity in the place's own row.
fn own(tables: &Tables, place: Place) -> Option<u32> {
    match place {
        Place::Address(address) => tables.identities.get(&address).copied(),
        Place::Prefix(prefix) => tables.prefixes.get(&prefix).copied(),
    }
}

/// The identity that pages see: of the place's own row, or of the longest prefix around it, or 0.
fn seen(tables: &Tables, place: Place) -> u32 {
    let around = match place {
        Place::Address(address) => Some(IpNet::from(address)),
        Place::Prefix(prefix) => prefix.supernet(),
    };
    own(tables, place).unwrap_or_else(|| {
        std::iter::successors(around, IpNet::supernet)
            .find_map(|prefix| tables.prefixes.get(&prefix.trunc()).copied())
            .unwrap_or(0)
    })
}

/// Rows of `peers`: transitional identities show former pages what they saw, and new ones what they are
/// to see.
fn show_both_views(
    ways: &[Way],
    former: &Tables,
    target: &Tables,
    ops: &mut Vec<Op>,
    keys: &mut Vec<PeerKey>,
) {
    let (old_rows, new_rows) = (by_identity(former), by_identity(target));
    let pairs: BTreeMap<u32, (u32, u32)> = ways
        .iter()
        .map(|way| (way.through, (way.old, way.new)))
        .collect();
    for (through, (old, new)) in pairs {
        let rows = |rows: &HashMap<u32, Vec<(u32, RuleBits)>>, id| -> Vec<(u32, RuleBits)> {
            if id == 0 {
                // An identity without a row sees that of identity 0 anyway.
                return Vec::new();
            }
            rows.get(&id).cloned().unwrap_or_default()
        };
        for (policy, bits) in rows(&old_rows, old).into_iter().chain(rows(&new_rows, new)) {
            let key = PeerKey {
                policy,
                identity: through,
            };
            keys.push(key);
            let bits = Box::new(bits);
            ops.push(Op::PutPeer { key, bits });
        }
    }
}

fn by_identity(tables: &Tables) -> HashMap<u32, Vec<(u32, RuleBits)>> {
    let mut rows: HashMap<u32, Vec<(u32, RuleBits)>> = HashMap::new();
    for (key, bits) in &tables.peers {
        rows.entry(key.identity)
            .or_default()
            .push((key.policy, *bits));
    }
    rows
}

/// Every page that any row is of, complete or not, but the one that denies all.
fn pages(tables: &Tables) -> BTreeSet<u32> {
    let policies = tables.policies.keys().copied();
    let peers = tables.peers.keys().map(|key| key.policy);
    let ports = tables.ports.keys().map(|key| key.data.policy);
    let all = policies.chain(peers).chain(ports);
    all.filter(|id| *id > DENY_ALL).collect()
}

/// Every identity but 0 that occurs.
fn identities(tables: &Tables) -> BTreeSet<u32> {
    let peers = tables.peers.keys().map(|key| key.identity);
    let ids = tables.identities.values().chain(tables.prefixes.values());
    peers.chain(ids.copied()).filter(|id| *id != 0).collect()
}
