//! Which addresses are somebody's, and what to do to `guarded_v4/6` for it. Pure.
//!
//! A pod that no policy isolates may send from addresses that nobody in the cluster goes by. Those that somebody
//! goes by have a row: addresses of the cluster's pods and nodes, and the `ipBlock`s of every ingress rule of the
//! cluster, whether or not it selects a pod of this node, because other nodes believe the source, too. Beside them
//! are the other ends of this node's tunnels.
//!
//! Several objects may claim one prefix: claims are counted, and a row has the kinds of all of them. Rows are matched
//! by longest prefix, so a pod's address within an `ipBlock` has a row of its own, which any kind makes a guarded one.
//! Nodes and remotes are single addresses, whose rows no longer prefix hides.
//!
//! A prefix that finds no room holds up nobody: it is reported, and tried again when a row goes.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use policy_common::guard::Guard;
use policy_common::map;
use policy_core::model::{NetworkPolicy, ObjectName, Peer, Pod};
use policy_core::op::Op;

use crate::datastore::convert::PodObject;
use crate::datastore::{Object, ObjectChange, ObjectKey};

/// Loopback addresses are every node's. kube-proxy sets `route_localnet`, with which the kernel takes them from pods.
const LOOPBACK: [IpNet; 2] = [
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8)),
    IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::LOCALHOST, 128)),
];

/// See the module.
#[derive(Debug)]
pub(super) struct Guards {
    pods: HashMap<ObjectName, PodClaim>,
    /// Addresses of nodes as pods tell them, each list once: many pods share one.
    hosts: HashSet<Arc<[IpAddr]>>,
    /// `ipBlock`s of ingress rules, by policy; none twice.
    blocks: HashMap<ObjectName, Box<[IpNet]>>,
    /// This node's own addresses.
    own: BTreeSet<IpAddr>,
    /// The other ends of this node's tunnels.
    remotes: BTreeSet<IpAddr>,
    prefixes: HashMap<IpNet, Prefix>,
    /// Where a row may have to change.
    touched: Vec<IpNet>,
    refused: Refused,
}

/// What is to be done to bring the tables in line.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct GuardPlan {
    /// To be done before a plan that makes somebody's identity of these addresses.
    pub(super) puts: Vec<Op>,
    /// To be done after it.
    pub(super) deletes: Vec<Op>,
}

/// What a pod claims. There are many, so it is small.
#[derive(Debug, PartialEq, Eq)]
struct PodClaim {
    v4: Option<Ipv4Addr>,
    v6: Option<Ipv6Addr>,
    /// Its node's addresses.
    hosts: Arc<[IpAddr]>,
}

impl PodClaim {
    fn own(&self) -> impl Iterator<Item = IpAddr> {
        let v4 = self.v4.map(IpAddr::V4).into_iter();
        v4.chain(self.v6.map(IpAddr::V6))
    }
}

/// Who claims a prefix, and what is in its row.
#[derive(Clone, Copy, Debug, Default)]
struct Prefix {
    pods: u32,
    nodes: u32,
    blocks: u32,
    is_remote: bool,
    /// The kinds in its row once all planned operations are done; 0: it has none.
    row: u8,
}

impl Prefix {
    /// For `row`: the table was full. There is no row, or where the kernel refuses to replace one in a full table, the
    /// one from before.
    const UNKNOWN: u8 = u8::MAX;

    fn kind(&self) -> u32 {
        let of = |is_claimed: bool, kind| if is_claimed { kind } else { 0 };
        of(self.pods > 0, Guard::POD)
            | of(self.nodes > 0, Guard::NODE)
            | of(self.blocks > 0, Guard::BLOCK)
            | of(self.is_remote, Guard::REMOTE)
    }
}

/// Prefixes that found no room, by table.
#[derive(Debug, Default)]
struct Refused {
    v4: BTreeSet<IpNet>,
    v6: BTreeSet<IpNet>,
}

impl Refused {
    fn of(&mut self, prefix: &IpNet) -> &mut BTreeSet<IpNet> {
        match prefix {
            IpNet::V4(_) => &mut self.v4,
            IpNet::V6(_) => &mut self.v6,
        }
    }
}

impl Guards {
    /// Nobody claims anything yet; `rows` are what an earlier agent left, with their kinds.
    pub(super) fn new(rows: BTreeMap<IpNet, u32>) -> Self {
        let mut guards = Self {
            pods: HashMap::new(),
            hosts: HashSet::new(),
            blocks: HashMap::new(),
            own: BTreeSet::new(),
            remotes: BTreeSet::new(),
            touched: rows.keys().copied().collect(),
            prefixes: HashMap::with_capacity(rows.len()),
            refused: Refused::default(),
        };
        for (prefix, kind) in rows {
            let row = u8::try_from(kind).unwrap_or(Prefix::UNKNOWN);
            let known = Prefix {
                row,
                ..Prefix::default()
            };
            guards.prefixes.insert(prefix, known);
        }
        for prefix in LOOPBACK {
            guards.claim(prefix, |claims| claims.nodes += 1);
        }
        guards
    }

    /// An object of the datastore changed.
    pub(super) fn changed(&mut self, change: &ObjectChange) {
        match change {
            ObjectChange::Upsert(Object::Pod(object)) => self.put_pod(object),
            ObjectChange::Gone(ObjectKey::Pod(name)) => {
                let former = self.pods.remove(name);
                self.unclaim_pod(former);
            }
            ObjectChange::Upsert(Object::Policy(policy)) => {
                self.put_policy(&policy.name, blocks(policy));
            }
            ObjectChange::Gone(ObjectKey::Policy(name)) => self.put_policy(name, Box::default()),
            ObjectChange::Upsert(Object::Namespace(_) | Object::Service(_))
            | ObjectChange::Gone(ObjectKey::Namespace(_) | ObjectKey::Service(_)) => {}
        }
    }

    fn put_pod(&mut self, object: &PodObject) {
        let own: &[IpAddr] = match object {
            PodObject::Pod {
                pod:
                    Pod {
                        terminated: false,
                        addresses,
                        ..
                    },
                ..
            } => addresses,
            PodObject::Pod { .. } | PodObject::HostNetwork { .. } => &[],
        };
        let v4 = own.iter().find_map(|address| match address {
            IpAddr::V4(v4) => Some(*v4),
            IpAddr::V6(_) => None,
        });
        let v6 = own.iter().find_map(|address| match address {
            IpAddr::V6(v6) => Some(*v6),
            IpAddr::V4(_) => None,
        });
        let hosts = self.shared(object.host_addresses());
        let claim = PodClaim { v4, v6, hosts };
        let name = object.name();
        // Mostly labels or conditions changed.
        if self.pods.get(name) == Some(&claim) {
            return;
        }
        for address in claim.own() {
            self.claim(address.into(), |claims| claims.pods += 1);
        }
        for address in &*claim.hosts {
            self.claim((*address).into(), |claims| claims.nodes += 1);
        }
        let former = match claim.own().next().is_some() || !claim.hosts.is_empty() {
            true => self.pods.insert(name.clone(), claim),
            false => self.pods.remove(name),
        };
        self.unclaim_pod(former);
    }

    fn unclaim_pod(&mut self, claim: Option<PodClaim>) {
        let Some(claim) = claim else { return };
        for address in claim.own() {
            self.claim(address.into(), |claims| claims.pods -= 1);
        }
        for address in &*claim.hosts {
            self.claim((*address).into(), |claims| claims.nodes -= 1);
        }
        // One is the set's, one this claim's.
        if Arc::strong_count(&claim.hosts) == 2 {
            self.hosts.remove(&claim.hosts);
        }
    }

    /// A list of addresses, shared with other pods of the node.
    fn shared(&mut self, hosts: &[IpAddr]) -> Arc<[IpAddr]> {
        if let Some(known) = self.hosts.get(hosts) {
            return known.clone();
        }
        let hosts: Arc<[IpAddr]> = hosts.into();
        self.hosts.insert(hosts.clone());
        hosts
    }

    /// A policy's blocks are these.
    fn put_policy(&mut self, name: &ObjectName, blocks: Box<[IpNet]>) {
        for block in &blocks {
            self.claim(*block, |claims| claims.blocks += 1);
        }
        let former = match blocks.is_empty() {
            true => self.blocks.remove(name),
            false => self.blocks.insert(name.clone(), blocks),
        };
        for block in former.iter().flatten() {
            self.claim(*block, |claims| claims.blocks -= 1);
        }
    }

    /// This node's own addresses are these.
    pub(super) fn set_own(&mut self, own: &BTreeSet<IpAddr>) {
        let former = std::mem::replace(&mut self.own, own.clone());
        for address in own.difference(&former) {
            self.claim((*address).into(), |claims| claims.nodes += 1);
        }
        for address in former.difference(own) {
            self.claim((*address).into(), |claims| claims.nodes -= 1);
        }
    }

    /// The other ends of this node's tunnels are these, and where it `keeps` them those from before.
    pub(super) fn set_remotes(&mut self, remotes: &BTreeSet<IpAddr>, keeps: bool) {
        let mut remotes = remotes.clone();
        if keeps {
            remotes.extend(&self.remotes);
        }
        let former = std::mem::replace(&mut self.remotes, remotes.clone());
        for address in former.symmetric_difference(&remotes) {
            let is_remote = remotes.contains(address);
            self.claim((*address).into(), |claims| claims.is_remote = is_remote);
        }
    }

    /// Somebody begins or ceases to claim a prefix.
    fn claim(&mut self, prefix: IpNet, change: impl FnOnce(&mut Prefix)) {
        let claims = self.prefixes.entry(prefix).or_default();
        let before = claims.kind();
        change(claims);
        if claims.kind() != before {
            self.touched.push(prefix);
        }
    }

    /// Whether [`Self::plan`] has anything to look at.
    pub(super) fn is_changed(&self) -> bool {
        !self.touched.is_empty()
    }

    /// What is to be done since the last plan; it counts as done. Should a table be too small, single pods' addresses
    /// are what finds no room.
    pub(super) fn plan(&mut self) -> GuardPlan {
        let mut touched = std::mem::take(&mut self.touched);
        touched.sort_unstable();
        touched.dedup();
        let mut plan = GuardPlan::default();
        let mut of_pods = Vec::new();
        for prefix in touched {
            let Some(claims) = self.prefixes.get_mut(&prefix) else {
                continue;
            };
            let kind = claims.kind();
            let former = std::mem::replace(&mut claims.row, kind as u8);
            if kind == 0 {
                self.prefixes.remove(&prefix);
                self.refused.of(&prefix).remove(&prefix);
            }
            if kind == u32::from(former) {
                continue;
            }
            let row = Guard { kind };
            match kind {
                0 => plan.deletes.push(Op::DeleteGuard { prefix }),
                Guard::POD => of_pods.push(Op::PutGuard { prefix, row }),
                _ => plan.puts.push(Op::PutGuard { prefix, row }),
            }
        }
        plan.puts.append(&mut of_pods);
        plan
    }

    /// The table had no room for this prefix. Says whether it is the first of its table.
    pub(super) fn refuse(&mut self, prefix: IpNet) -> bool {
        if let Some(claims) = self.prefixes.get_mut(&prefix) {
            claims.row = Prefix::UNKNOWN;
        }
        let refused = self.refused.of(&prefix);
        let is_first = refused.is_empty();
        refused.insert(prefix);
        is_first
    }

    /// An operation was done.
    pub(super) fn done(&mut self, op: &Op) {
        match op {
            Op::PutGuard { prefix, .. } => {
                self.refused.of(prefix).remove(prefix);
            }
            Op::DeleteGuard { prefix } => {
                let next = self.refused.of(prefix).first().copied();
                self.touched.extend(next);
            }
            _ => {}
        }
    }

    /// What is not in the tables though it should be, a sentence for each table.
    pub(super) fn problems(&self) -> impl Iterator<Item = String> {
        let tables = [
            (map::GUARDED_V4.name, &self.refused.v4),
            (map::GUARDED_V6.name, &self.refused.v6),
        ];
        tables.into_iter().filter_map(|(table, refused)| {
            let first = refused.first()?;
            let count = refused.len();
            Some(format!(
                "table {table} is full: {count} prefixes of pods, nodes or ipBlocks have no row ({first} is the first), \
                 and pods that no policy isolates can send from these addresses (raise its size with \
                 PORTCULLIS_TABLE_SIZES={table}=N)"
            ))
        })
    }
}

/// The blocks by which a policy's ingress rules know senders, sorted. What is outside an `except` of the whole
/// address space is somebody's; the whole space without one tells nobody apart.
fn blocks(policy: &NetworkPolicy) -> Box<[IpNet]> {
    let rules = policy.ingress.iter().flatten();
    let blocks = rules.flat_map(|rule| &rule.peers).filter_map(|peer| {
        let Peer::IpBlock { cidr, except } = peer else {
            return None;
        };
        let tells_apart = cidr.prefix_len() > 0 || !except.is_empty();
        tells_apart.then_some(*cidr)
    });
    let blocks: BTreeSet<_> = blocks.collect();
    blocks.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use policy_core::model::{LabelSelector, Rule};

    use super::*;

    const POD: u32 = Guard::POD;
    const NODE: u32 = Guard::NODE;
    const BLOCK: u32 = Guard::BLOCK;
    const REMOTE: u32 = Guard::REMOTE;

    /// With the rows that are always there.
    fn guards() -> Guards {
        let mut guards = Guards::new(BTreeMap::new());
        assert_plan(
            &mut guards,
            &[("127.0.0.0/8", NODE), ("::1/128", NODE)],
            &[],
        );
        guards
    }

    fn prefix(text: &str) -> IpNet {
        text.parse().expect("prefix")
    }

    fn addresses<T: FromIterator<IpAddr>>(texts: &[&str]) -> T {
        texts
            .iter()
            .map(|text| text.parse::<IpAddr>().expect("address"))
            .collect()
    }

    fn pod(name: &str, own: &[&str], hosts: &[&str]) -> ObjectChange {
        ObjectChange::Upsert(Object::Pod(PodObject::Pod {
            pod: Pod {
                name: ObjectName::new("shop", name),
                labels: Default::default(),
                addresses: addresses(own),
                ports: Default::default(),
                terminated: false,
                created: 1,
                uid: "".into(),
            },
            node: None,
            dated: true,
            host_addresses: addresses(hosts),
        }))
    }

    fn ended(change: ObjectChange) -> ObjectChange {
        match change {
            ObjectChange::Upsert(Object::Pod(PodObject::Pod {
                mut pod,
                node,
                dated,
                host_addresses,
            })) => {
                pod.terminated = true;
                ObjectChange::Upsert(Object::Pod(PodObject::Pod {
                    pod,
                    node,
                    dated,
                    host_addresses,
                }))
            }
            other => other,
        }
    }

    fn host_network(name: &str, hosts: &[&str]) -> ObjectChange {
        ObjectChange::Upsert(Object::Pod(PodObject::HostNetwork {
            name: ObjectName::new("shop", name),
            host_addresses: addresses(hosts),
        }))
    }

    fn pod_gone(name: &str) -> ObjectChange {
        ObjectChange::Gone(ObjectKey::Pod(ObjectName::new("shop", name)))
    }

    /// Rules of both directions, each with blocks and their exceptions.
    fn policy(name: &str, ingress: &[(&str, &[&str])], egress: &[(&str, &[&str])]) -> ObjectChange {
        let rules = |blocks: &[(&str, &[&str])]| {
            let rule = |(cidr, except): &(&str, &[&str])| Rule {
                peers: vec![Peer::IpBlock {
                    cidr: prefix(cidr),
                    except: except.iter().map(|text| prefix(text)).collect(),
                }],
                ports: Vec::new(),
            };
            Some(blocks.iter().map(rule).collect())
        };
        ObjectChange::Upsert(Object::Policy(NetworkPolicy {
            name: ObjectName::new("shop", name),
            subjects: LabelSelector::default(),
            ingress: rules(ingress),
            egress: rules(egress),
        }))
    }

    fn policy_gone(name: &str) -> ObjectChange {
        ObjectChange::Gone(ObjectKey::Policy(ObjectName::new("shop", name)))
    }

    fn put(text: &str, kind: u32) -> Op {
        Op::PutGuard {
            prefix: prefix(text),
            row: Guard { kind },
        }
    }

    fn delete(text: &str) -> Op {
        Op::DeleteGuard {
            prefix: prefix(text),
        }
    }

    /// Puts in this order, and deletes.
    fn assert_plan(guards: &mut Guards, puts: &[(&str, u32)], deletes: &[&str]) {
        let plan = guards.plan();
        let puts: Vec<_> = puts.iter().map(|(text, kind)| put(text, *kind)).collect();
        let deletes: Vec<_> = deletes.iter().map(|text| delete(text)).collect();
        assert_eq!((plan.puts, plan.deletes), (puts, deletes));
        assert!(!guards.is_changed());
    }

    fn assert_nothing_to_do(guards: &mut Guards) {
        assert!(!guards.is_changed(), "{:?}", guards.touched);
        assert_plan(guards, &[], &[]);
    }

    #[test]
    fn pods_and_their_nodes_have_rows_while_any_object_claims_them() {
        let mut guards = guards();
        let nodes = ["192.0.2.1", "2001:db8::1"];
        guards.changed(&pod("a", &["10.0.0.1", "fd00::1"], &nodes));
        guards.changed(&pod("b", &["10.0.0.2"], &nodes));
        guards.changed(&host_network("proxy", &nodes));
        guards.changed(&host_network("starting", &[]));
        // Single pods' addresses come last, should there be no room.
        let rows = [
            ("192.0.2.1/32", NODE),
            ("2001:db8::1/128", NODE),
            ("10.0.0.1/32", POD),
            ("10.0.0.2/32", POD),
            ("fd00::1/128", POD),
        ];
        assert_plan(&mut guards, &rows, &[]);
        guards.changed(&pod("b", &["10.0.0.2"], &nodes));
        guards.changed(&pod_gone("proxy"));
        guards.changed(&pod_gone("unknown"));
        assert_nothing_to_do(&mut guards);
        // An address that two pods claim for a while.
        guards.changed(&pod("c", &["10.0.0.1"], &nodes));
        guards.changed(&pod_gone("a"));
        assert_plan(&mut guards, &[], &["fd00::1/128"]);
        // One that ended has no address, but its node has.
        guards.changed(&ended(pod("b", &["10.0.0.2"], &nodes)));
        assert_plan(&mut guards, &[], &["10.0.0.2/32"]);
        guards.changed(&pod_gone("c"));
        assert_plan(&mut guards, &[], &["10.0.0.1/32"]);
        guards.changed(&pod_gone("b"));
        assert_plan(&mut guards, &[], &["192.0.2.1/32", "2001:db8::1/128"]);
        assert!(guards.pods.is_empty());
        assert!(guards.hosts.iter().all(|list| list.is_empty()));
        assert_eq!(guards.prefixes.len(), LOOPBACK.len());
    }

    #[test]
    fn a_pod_that_becomes_a_host_network_pod_claims_its_node() {
        let mut guards = guards();
        guards.changed(&pod("a", &["10.0.0.1"], &["192.0.2.1"]));
        guards.plan();
        guards.changed(&host_network("a", &["192.0.2.1"]));
        assert_plan(&mut guards, &[], &["10.0.0.1/32"]);
        // Gone and back between two plans.
        guards.changed(&pod_gone("a"));
        guards.changed(&host_network("b", &["192.0.2.1"]));
        assert_plan(&mut guards, &[], &[]);
    }

    #[test]
    fn kinds_of_one_prefix_are_added_up() {
        let mut guards = guards();
        guards.set_own(&addresses(&["192.0.2.1", "fe80::1"]));
        guards.set_remotes(&addresses(&["192.0.2.2"]), false);
        guards.changed(&host_network("proxy", &["192.0.2.1", "192.0.2.2"]));
        guards.changed(&policy("office", &[("192.0.2.2/32", &[])], &[]));
        let rows = [
            ("192.0.2.1/32", NODE),
            ("192.0.2.2/32", NODE | BLOCK | REMOTE),
            ("fe80::1/128", NODE),
        ];
        assert_plan(&mut guards, &rows, &[]);
        guards.set_remotes(&addresses(&["192.0.2.3"]), true);
        assert_plan(&mut guards, &[("192.0.2.3/32", REMOTE)], &[]);
        guards.set_remotes(&addresses(&["192.0.2.3"]), false);
        guards.set_own(&addresses(&["fe80::2"]));
        let rows = [("192.0.2.2/32", NODE | BLOCK), ("fe80::2/128", NODE)];
        assert_plan(&mut guards, &rows, &["fe80::1/128"]);
        guards.changed(&pod_gone("proxy"));
        assert_plan(&mut guards, &[("192.0.2.2/32", BLOCK)], &["192.0.2.1/32"]);
    }

    #[test]
    fn blocks_of_ingress_rules_have_rows() {
        let mut guards = guards();
        let ingress: &[(&str, &[&str])] = &[
            ("198.51.100.0/24", &["198.51.100.16/28"]),
            ("198.51.100.0/24", &[]),
            ("0.0.0.0/0", &[]),
            ("::/0", &["fd00::/8"]),
        ];
        guards.changed(&policy("office", ingress, &[("203.0.113.0/24", &[])]));
        guards.changed(&policy("also", &[("198.51.100.0/24", &[])], &[]));
        let rows = [("198.51.100.0/24", BLOCK), ("::/0", BLOCK)];
        assert_plan(&mut guards, &rows, &[]);
        guards.changed(&policy("office", &[("0.0.0.0/0", &["10.0.0.0/8"])], &[]));
        assert_plan(&mut guards, &[("0.0.0.0/0", BLOCK)], &["::/0"]);
        guards.changed(&policy("office", &[], &[]));
        guards.changed(&policy_gone("also"));
        assert_plan(&mut guards, &[], &["0.0.0.0/0", "198.51.100.0/24"]);
        assert!(guards.blocks.is_empty());
    }

    #[test]
    fn what_an_earlier_agent_left_stays_changes_or_goes() {
        let left = [
            ("127.0.0.0/8", NODE),
            ("10.0.0.1/32", POD),
            ("10.0.0.2/32", POD),
            ("192.0.2.1/32", POD),
            ("198.51.100.0/24", 0x100),
        ];
        let left = left.map(|(text, kind)| (prefix(text), kind));
        let mut guards = Guards::new(left.into());
        guards.changed(&pod("a", &["10.0.0.1"], &["192.0.2.1"]));
        let rows = [("192.0.2.1/32", NODE), ("::1/128", NODE)];
        assert_plan(&mut guards, &rows, &["10.0.0.2/32", "198.51.100.0/24"]);
    }

    #[test]
    fn what_finds_no_room_is_tried_again_when_a_row_goes() {
        let mut guards = guards();
        for (name, own) in [("a", "10.0.0.1"), ("b", "10.0.0.2"), ("c", "10.0.0.3")] {
            guards.changed(&pod(name, &[own], &[]));
        }
        guards.changed(&pod("six", &["fd00::1"], &[]));
        guards.plan();
        assert!(guards.refuse(prefix("10.0.0.2/32")));
        assert!(!guards.refuse(prefix("10.0.0.3/32")));
        let problems: Vec<_> = guards.problems().collect();
        let beginning = "table guarded_v4 is full: 2 prefixes of pods, nodes or ipBlocks have no row (10.0.0.2/32 is";
        assert!(
            problems[0].starts_with(beginning) && problems.len() == 1,
            "{problems:?}"
        );
        assert_nothing_to_do(&mut guards);
        guards.changed(&pod_gone("six"));
        assert_plan(&mut guards, &[], &["fd00::1/128"]);
        guards.done(&delete("fd00::1/128"));
        assert!(!guards.is_changed(), "that is another table");
        guards.changed(&pod_gone("a"));
        assert_plan(&mut guards, &[], &["10.0.0.1/32"]);
        guards.done(&delete("10.0.0.1/32"));
        assert_plan(&mut guards, &[("10.0.0.2/32", POD)], &[]);
        guards.done(&put("10.0.0.2/32", POD));
        // A kernel may refuse to replace a row in a full table, and keeps it: it is deleted in any case.
        guards.changed(&pod_gone("c"));
        assert_plan(&mut guards, &[], &["10.0.0.3/32"]);
        assert_eq!(guards.problems().count(), 0, "nobody claims it any more");
    }

    /// What 100,000 pods cost, so that it is seen when that changes.
    #[test]
    fn a_pod_is_small() {
        assert!(size_of::<(ObjectName, PodClaim)>() <= 72);
        assert!(size_of::<(IpNet, Prefix)>() <= 36);
    }
}
