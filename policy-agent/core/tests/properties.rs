//! Random clusters in random batches of changes, against the oracle: after every plan the tables say
//! what the oracle says; after every single operation of it they say what the oracle said before or
//! says after; and nothing stays in the tables that a compiler starting anew would not put there.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use policy_common::endpoint::Endpoint;
use policy_common::verdict::Direction;
use policy_core::model::{
    Change, LabelSelector, Labels, LocalEndpoint, NamedPort, Namespace, NetworkPolicy, ObjectName,
    Origin, Peer, Pod, PolicyPort, PortMatch, Protocol, Requirement, Rule, Subject,
};
use policy_core::op::Op;
use policy_core::oracle::Cluster;
use policy_core::tables::Tables;
use policy_core::{Compiler, Limits};
use proptest::prelude::*;

const NAMESPACES: [&str; 2] = ["a", "b"];
const PODS: [&str; 4] = ["p0", "p1", "p2", "p3"];
const VALUES: [&str; 3] = ["x", "y", "z"];
const PORTS: [u16; 4] = [79, 80, 81, 8080];

fn address(index: usize) -> IpAddr {
    let text = [
        "10.0.0.1",
        "10.0.0.2",
        "10.0.1.1",
        "10.0.1.2",
        "10.1.0.1",
        "fd00::1",
        "fd00::2",
        "fd00:1::1",
    ];
    text[index % text.len()].parse().expect("an address")
}

/// Addresses of pods, and some that no pod ever has.
fn remotes() -> Vec<IpAddr> {
    let strangers = [
        "10.0.0.9",
        "10.0.1.9",
        "10.2.0.1",
        "192.0.2.1",
        "fd00::9",
        "fd00:1::9",
        "2001:db8::1",
    ];
    let strangers = strangers
        .iter()
        .map(|text| text.parse().expect("an address"));
    (0..8).map(address).chain(strangers).collect()
}

fn name() -> impl Strategy<Value = ObjectName> {
    (0..NAMESPACES.len(), 0..PODS.len())
        .prop_map(|(namespace, pod)| ObjectName::new(NAMESPACES[namespace], PODS[pod]))
}

fn labels() -> impl Strategy<Value = Labels> {
    prop::collection::btree_map(
        prop::sample::select(&["k", "l"][..]).prop_map(Arc::from),
        prop::sample::select(&VALUES[..]).prop_map(Arc::from),
        0..=2,
    )
}

fn values() -> impl Strategy<Value = BTreeSet<Arc<str>>> {
    prop::collection::btree_set(prop::sample::select(&VALUES[..]).prop_map(Arc::from), 1..=2)
}

fn selector() -> impl Strategy<Value = LabelSelector> {
    let key = || prop::sample::select(&["k", "l"][..]).prop_map(Arc::<str>::from);
    let requirement = prop_oneof![
        3 => (key(), values()).prop_map(|(key, values)| Requirement::In(key, values)),
        1 => (key(), values()).prop_map(|(key, values)| Requirement::NotIn(key, values)),
        1 => key().prop_map(Requirement::Exists),
        1 => key().prop_map(Requirement::DoesNotExist),
    ];
    prop::collection::vec(requirement, 0..=1)
        .prop_map(|requirements| LabelSelector { requirements })
}

fn block() -> impl Strategy<Value = Peer> {
    prop::sample::select(vec![
        ("10.0.0.0/8", vec![]),
        ("10.0.0.0/16", vec!["10.0.1.0/24"]),
        ("10.0.0.0/8", vec!["10.0.0.0/16", "10.1.0.0/16"]),
        ("10.0.1.0/24", vec!["10.0.1.1/32"]),
        ("0.0.0.0/0", vec!["10.0.0.0/24"]),
        ("fd00::/16", vec!["fd00:1::/32"]),
        ("fd00:1::/32", vec![]),
        ("::/0", vec![]),
    ])
    .prop_map(|(cidr, except)| Peer::IpBlock {
        cidr: cidr.parse().expect("a network"),
        except: except
            .iter()
            .map(|net| net.parse().expect("a network"))
            .collect(),
    })
}

fn peer() -> impl Strategy<Value = Peer> {
    let pods = (prop::option::of(selector()), prop::option::of(selector()))
        .prop_filter("one is there", |(namespaces, pods)| {
            namespaces.is_some() || pods.is_some()
        })
        .prop_map(|(namespaces, pods)| Peer::Pods { namespaces, pods });
    prop_oneof![2 => pods, 1 => block()]
}

fn protocol() -> impl Strategy<Value = Protocol> {
    prop::sample::select(vec![Protocol::Tcp, Protocol::Udp])
}

fn port() -> impl Strategy<Value = PolicyPort> {
    let port = prop_oneof![
        1 => Just(PortMatch::Any),
        2 => prop::sample::select(&PORTS[..]).prop_map(|port| PortMatch::Range(port, port)),
        1 => Just(PortMatch::Range(80, 81)),
        1 => Just(PortMatch::Range(1, 65535)),
        2 => prop::sample::select(&["web", "dns"][..]).prop_map(|name| PortMatch::Named(name.into())),
    ];
    (protocol(), port).prop_map(|(protocol, port)| PolicyPort { protocol, port })
}

fn rules() -> impl Strategy<Value = Option<Vec<Rule>>> {
    let rule = (
        prop::collection::vec(peer(), 0..=2),
        prop::collection::vec(port(), 0..=2),
    )
        .prop_map(|(peers, ports)| Rule { peers, ports });
    prop::option::weighted(0.7, prop::collection::vec(rule, 0..=2))
}

fn pod() -> impl Strategy<Value = Pod> {
    let ports = prop::collection::btree_set(
        (
            prop::sample::select(&["web", "dns"][..]),
            protocol(),
            prop::sample::select(&PORTS[..]),
        )
            .prop_map(|(name, protocol, port)| NamedPort {
                name: name.into(),
                protocol,
                port,
            }),
        0..=2,
    );
    let addresses = prop::collection::vec(0..8_usize, 0..=2)
        .prop_map(|indices| indices.into_iter().map(address).collect());
    (
        name(),
        labels(),
        addresses,
        ports,
        prop::bool::weighted(0.1),
        0..4_i64,
    )
        .prop_map(
            |(name, labels, addresses, ports, terminated, created)| Pod {
                name,
                labels: Arc::new(labels),
                addresses,
                ports: Arc::new(ports),
                terminated,
                created,
                uid: "".into(),
            },
        )
}

fn change() -> impl Strategy<Value = Change> {
    let namespace = prop::sample::select(&NAMESPACES[..]);
    let policy_name = (namespace.clone(), 0..3_usize)
        .prop_map(|(namespace, index)| ObjectName::new(namespace, ["n0", "n1", "n2"][index]));
    let policy = (policy_name.clone(), selector(), rules(), rules()).prop_map(
        |(name, subjects, ingress, egress)| {
            Change::Policy(NetworkPolicy {
                name,
                subjects,
                ingress,
                egress,
            })
        },
    );
    // A held pod is mostly one that was there before; here it is any pod.
    let subject = prop_oneof![
        4 => Just(None),
        2 => pod().prop_map(|pod| Some(Subject::Held(Arc::new(pod)))),
        1 => Just(Some(Subject::Unknown)),
    ];
    let origin = prop::sample::select(vec![Origin::Announced, Origin::Found, Origin::Secondary]);
    let endpoint = (1..4_u32, name(), 0..8_usize, subject, origin).prop_map(
        |(ifindex, pod, index, subject, origin)| {
            let pod = match &subject {
                Some(Subject::Held(held)) => held.name.clone(),
                _ => pod,
            };
            Change::Endpoint(LocalEndpoint {
                ifindex,
                host_interface: format!("veth{ifindex}"),
                interface: "eth0".to_owned(),
                pod,
                subject: subject.unwrap_or_default(),
                origin,
                addresses: vec![address(index)],
                is_router: false,
                records: false,
            })
        },
    );
    prop_oneof![
        2 => (namespace.clone(), labels())
            .prop_map(|(name, labels)| Change::Namespace(Namespace { name: name.into(), labels })),
        1 => namespace.prop_map(|name| Change::NamespaceGone(name.into())),
        6 => pod().prop_map(Change::Pod),
        1 => name().prop_map(Change::PodGone),
        6 => policy,
        2 => policy_name.prop_map(Change::PolicyGone),
        3 => endpoint,
        1 => (1..4_u32).prop_map(Change::EndpointGone),
    ]
}

/// (endpoint id, direction, remote, protocol, port) -> allowed.
type Verdicts = BTreeMap<(u32, Direction, IpAddr, Option<Protocol>, u16), bool>;

fn targets() -> Vec<(Option<Protocol>, u16)> {
    let mut targets = vec![(None, 0)];
    for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Sctp] {
        targets.extend(PORTS.map(|port| (Some(protocol), port)));
    }
    targets
}

fn of_tables(tables: &Tables, remotes: &[IpAddr]) -> Verdicts {
    let mut verdicts = Verdicts::new();
    for (ifindex, row) in &tables.endpoints {
        for direction in Direction::ALL {
            for remote in remotes {
                for (protocol, port) in targets() {
                    let number = protocol.map_or(1, Protocol::number);
                    if let Some(allowed) = tables.allows(*ifindex, direction, *remote, number, port)
                    {
                        verdicts.insert((row.id, direction, *remote, protocol, port), allowed);
                    }
                }
            }
        }
    }
    verdicts
}

fn of_oracle(cluster: &Cluster, tables: &Tables, remotes: &[IpAddr]) -> Verdicts {
    let mut verdicts = Verdicts::new();
    for (ifindex, endpoint) in cluster.endpoints() {
        let id = tables.endpoints[ifindex].id;
        for direction in Direction::ALL {
            for remote in remotes {
                for (protocol, port) in targets() {
                    let target = protocol.map(|protocol| (protocol, port));
                    let allowed = cluster.allows(endpoint, direction, *remote, target);
                    verdicts.insert((id, direction, *remote, protocol, port), allowed);
                }
            }
        }
    }
    verdicts
}

/// The oracle's verdicts, by the ids that a compiler gave the endpoints.
fn of_oracle_by(cluster: &Cluster, compiler: &Compiler, remotes: &[IpAddr]) -> Verdicts {
    let mut tables = Tables::default();
    for row in compiler.endpoints() {
        let endpoint = Endpoint {
            id: row.id,
            ..Endpoint::default()
        };
        tables.endpoints.insert(row.ifindex, endpoint);
    }
    of_oracle(cluster, &tables, remotes)
}

/// Fails where a verdict is neither the old one nor the new one.
fn old_or_new(
    when: impl Fn() -> String,
    state: &Verdicts,
    old: &Verdicts,
    new: &Verdicts,
) -> Result<(), TestCaseError> {
    for (key, allowed) in state {
        let (old, new) = (old.get(key), new.get(key));
        // An endpoint that ends is detached already: nothing passes there any more.
        prop_assert!(
            old == Some(allowed) || new == Some(allowed) || new.is_none(),
            "{}: {:?} is {}, and was {:?}, and will be {:?}",
            when(),
            key,
            allowed,
            old,
            new,
        );
    }
    Ok(())
}

/// The addresses in an endpoint's row.
fn addresses(row: &Endpoint) -> Vec<IpAddr> {
    let v4 = (row.flags & Endpoint::HAS_IPV4 != 0).then(|| row.ipv4.octets.into());
    let v6 = (row.flags & Endpoint::HAS_IPV6 != 0).then(|| row.ipv6.octets.into());
    v4.into_iter().chain(v6).collect()
}

/// Rows by table, for comparing sizes.
fn sizes(tables: &Tables) -> [usize; 6] {
    [
        tables.endpoints.len(),
        tables.policies.len(),
        tables.peers.len(),
        tables.ports.len(),
        tables.identities.len(),
        tables.prefixes.len(),
    ]
}

/// The rows of `rule_counts` in which some rule counts.
fn rows_of_counts(tables: &Tables) -> BTreeSet<u32> {
    let headers = tables.policies.values();
    headers
        .flat_map(|header| header.first_count..header.first_count + u32::from(header.rules))
        .collect()
}

/// Every state of the cluster, as changes that build it from nothing.
fn rebuilt(history: &[Vec<Change>]) -> Vec<Change> {
    history.iter().flatten().cloned().collect()
}

/// More than this from the environment, for a long look.
fn cases() -> u32 {
    std::env::var("PROPTEST_CASES")
        .ok()
        .and_then(|cases| cases.parse().ok())
        .unwrap_or(192)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), ..ProptestConfig::default() })]

    #[test]
    fn every_operation_leaves_old_or_new_verdicts(
        batches in prop::collection::vec(prop::collection::vec(change(), 1..6), 1..12),
    ) {
        let remotes = remotes();
        let mut compiler = Compiler::new(Limits::default());
        let mut tables = Tables::default();
        let mut cluster = Cluster::default();
        for (number, batch) in batches.iter().enumerate() {
            let before = of_tables(&tables, &remotes);
            for change in batch {
                cluster.apply(change.clone());
            }
            let plan = compiler.apply(batch.clone());
            let mut states = Vec::new();
            let in_force = plan.ops.len();
            let ops: Vec<Op> = plan.into_ops().collect();
            let oracle = |tables: &Tables| of_oracle(&cluster, tables, &remotes);
            if in_force == 0 {
                prop_assert_eq!(&before, &oracle(&tables), "batch {}", number);
            }
            // What packets on their way may have read: since the last barrier, nothing older than this.
            let mut oldest = tables.clone();
            let mut late = Vec::new();
            for (step, op) in ops.iter().enumerate() {
                let epochs: BTreeMap<u32, u32> =
                    tables.endpoints.values().map(|row| (row.id, row.epoch)).collect();
                tables.apply(op);
                for row in tables.endpoints.values() {
                    if let Some(epoch) = epochs.get(&row.id) {
                        prop_assert!(row.epoch == *epoch || row.epoch == epoch + 1);
                    }
                }
                states.push(of_tables(&tables, &remotes));
                if *op == Op::Barrier {
                    oldest = tables.clone();
                } else {
                    let mut mixed = tables.clone();
                    mixed.endpoints = oldest.endpoints.clone();
                    late.push((step, "endpoints", of_tables(&mixed, &remotes)));
                    mixed.identities = oldest.identities.clone();
                    mixed.prefixes = oldest.prefixes.clone();
                    late.push((step, "endpoints and identities", of_tables(&mixed, &remotes)));
                }
                if step + 1 == in_force {
                    prop_assert_eq!(states.last(), Some(&oracle(&tables)), "not in force");
                }
            }
            let after = of_tables(&tables, &remotes);
            prop_assert_eq!(&after, &of_oracle(&cluster, &tables, &remotes), "batch {}", number);
            for (step, state) in states.iter().enumerate() {
                let when = || format!("batch {number} operation {step} {:?}", ops[step]);
                old_or_new(when, state, &before, &after)?;
            }
            for (step, read, state) in late {
                let when = || format!(
                    "to a packet that has read {read}, batch {number} operation {step} {:?}", ops[step]
                );
                old_or_new(when, &state, &before, &after)?;
            }
            let mut anew = Tables::default();
            let mut fresh = Compiler::new(Limits::default());
            for op in fresh.apply(rebuilt(&batches[..=number])).into_ops() {
                anew.apply(&op);
            }
            prop_assert_eq!(sizes(&tables), sizes(&anew), "rows left over in batch {}", number);
            let counted = compiler.table_use();
            prop_assert_eq!(counted["peers"], tables.peers.len());
            prop_assert_eq!(counted["ports"], tables.ports.len());
            prop_assert_eq!(counted["policies"], tables.policies.len());
            let rows = rows_of_counts(&tables);
            prop_assert_eq!(counted["rule_counts"], rows.len(), "two rules count in one row");
            prop_assert_eq!(counted["prefix_v4"] + counted["prefix_v6"], tables.prefixes.len());
        }
    }

    /// What nobody uses any more goes between plans, at once or much later, and all of it in the end.
    #[test]
    fn garbage_goes_at_any_time_and_changes_no_verdict(
        batches in prop::collection::vec(
            (prop::collection::vec(change(), 1..6), 0..4_u64, any::<bool>()), 1..12),
    ) {
        let remotes = remotes();
        let mut compiler = Compiler::new(Limits::default());
        let mut tables = Tables::default();
        let mut cluster = Cluster::default();
        let last = batches.len() - 1;
        for (number, (batch, behind, bury)) in batches.iter().enumerate() {
            let before = of_tables(&tables, &remotes);
            for change in batch {
                cluster.apply(change.clone());
            }
            let plan = compiler.advance(batch.clone());
            let mut states = Vec::new();
            for op in &plan.ops {
                tables.apply(op);
                states.push(of_tables(&tables, &remotes));
            }
            let after = of_oracle(&cluster, &tables, &remotes);
            prop_assert_eq!(&of_tables(&tables, &remotes), &after, "batch {}", number);
            for (op, state) in plan.ops.iter().zip(states) {
                old_or_new(|| format!("batch {number} {op:?}"), &state, &before, &after)?;
            }
            let mut garbage = Vec::new();
            if number == last {
                garbage.extend(compiler.retire(plan.revision));
                garbage.extend(compiler.bury());
            } else {
                if let Some(revision) = plan.revision.checked_sub(*behind).filter(|_| *behind < 3) {
                    garbage.extend(compiler.retire(revision));
                }
                if *bury {
                    garbage.extend(compiler.bury());
                }
            }
            for op in garbage {
                tables.apply(&op);
                prop_assert_eq!(&of_tables(&tables, &remotes), &after, "batch {} {:?}", number, op);
            }
        }
        prop_assert!(!compiler.has_garbage() && !compiler.has_retired());
        let history: Vec<Vec<Change>> = batches.into_iter().map(|(batch, ..)| batch).collect();
        let mut anew = Tables::default();
        for op in Compiler::new(Limits::default()).apply(rebuilt(&history)).into_ops() {
            anew.apply(&op);
        }
        prop_assert_eq!(sizes(&tables), sizes(&anew), "rows left over");
        let counted = compiler.table_use();
        prop_assert_eq!(counted["peers"], tables.peers.len());
        prop_assert_eq!(counted["ports"], tables.ports.len());
        prop_assert_eq!(counted["policies"], tables.policies.len());
    }

    /// A change that takes access away, or changes it, must start a new epoch for whom it concerns.
    #[test]
    fn verdicts_change_only_with_the_epoch(
        batches in prop::collection::vec(prop::collection::vec(change(), 1..4), 1..10),
    ) {
        let remotes = remotes();
        let mut compiler = Compiler::new(Limits::default());
        let mut tables = Tables::default();
        for batch in batches {
            let before = tables.clone();
            let old = of_tables(&before, &remotes);
            for op in compiler.apply(batch).into_ops() {
                tables.apply(&op);
            }
            let epoch = |tables: &Tables, id: u32| {
                tables.endpoints.values().find(|row| row.id == id).map(|row| row.epoch)
            };
            for (key, allowed) in of_tables(&tables, &remotes) {
                if old.get(&key).is_some_and(|old| *old != allowed) {
                    prop_assert_ne!(epoch(&before, key.0), epoch(&tables, key.0), "{:?}", key);
                }
            }
        }
    }

    /// A compiler that takes over what another left, in the middle of a plan, leads to where the cluster is
    /// by then without a wrong verdict on the way.
    #[test]
    fn tables_are_taken_over_without_a_wrong_verdict(
        batches in prop::collection::vec(prop::collection::vec(change(), 1..6), 1..5),
        away in prop::collection::vec(change(), 0..6),
        later in prop::collection::vec(change(), 1..6),
        death in any::<prop::sample::Index>(),
        lives in 1..3_usize,
    ) {
        let remotes = remotes();
        let mut tables = Tables::default();
        let mut cluster = Cluster::default();
        let mut history = Vec::new();
        let mut compiler = Compiler::new(Limits::default());
        for batch in &batches {
            history.extend(batch.clone());
            let ops: Vec<Op> = compiler.apply(batch.clone()).into_ops().collect();
            let is_last = history.len() == batches.iter().map(Vec::len).sum::<usize>();
            let done = if is_last { death.index(ops.len() + 1) } else { ops.len() };
            ops[..done].iter().for_each(|op| tables.apply(op));
        }
        history.extend(away);
        for change in &history {
            cluster.apply(change.clone());
        }
        for life in 0..lives {
            let before = of_tables(&tables, &remotes);
            let former = tables.clone();
            compiler = Compiler::adopting(Limits::default(), tables.clone());
            let plan = compiler.apply(history.clone());
            let in_force = plan.ops.len();
            let ops: Vec<Op> = plan.into_ops().collect();
            // Dies once more on the way, but for the last time.
            let done = if life + 1 < lives { death.index(ops.len() + 1) } else { ops.len() };
            let mut states = Vec::new();
            let mut oldest = tables.clone();
            for op in &ops[..done] {
                tables.apply(op);
                states.push(of_tables(&tables, &remotes));
                if *op == Op::Barrier {
                    oldest = tables.clone();
                } else {
                    let mut mixed = tables.clone();
                    mixed.endpoints = oldest.endpoints.clone();
                    states.push(of_tables(&mixed, &remotes));
                }
            }
            let wanted = of_oracle_by(&cluster, &compiler, &remotes);
            for (step, state) in states.iter().enumerate() {
                old_or_new(|| format!("life {life} state {step}"), state, &before, &wanted)?;
            }
            if done >= in_force {
                let now = of_tables(&tables, &remotes);
                for (key, allowed) in &wanted {
                    prop_assert_eq!(now.get(key), Some(allowed), "{:?}", key);
                }
            }
            // Flows of endpoints that stayed go on, and no id that flows could carry is used again.
            for view in compiler.endpoints() {
                let known = former.endpoints.get(&view.ifindex);
                match known.filter(|row| addresses(row) == view.addresses) {
                    Some(row) => prop_assert_eq!(view.id, row.id, "{:?}", view),
                    None => prop_assert!(view.id >> 16 > former.generation, "{:?}", view),
                }
            }
        }
        for ifindex in compiler.take_leftovers() {
            tables.apply(&Op::DeleteEndpoint { ifindex });
        }
        let fresh_sizes = |history: &[Change]| {
            let mut anew = Tables::default();
            let mut fresh = Compiler::new(Limits::default());
            fresh.apply(history.to_vec()).into_ops().for_each(|op| anew.apply(&op));
            sizes(&anew)
        };
        prop_assert_eq!(sizes(&tables), fresh_sizes(&history), "rows left over");
        for change in &later {
            cluster.apply(change.clone());
        }
        compiler.apply(later.clone()).into_ops().for_each(|op| tables.apply(&op));
        let now = of_tables(&tables, &remotes);
        prop_assert_eq!(now, of_oracle(&cluster, &tables, &remotes));
        history.extend(later);
        prop_assert_eq!(sizes(&tables), fresh_sizes(&history), "rows left over afterwards");
        prop_assert_eq!(compiler.table_use()["peers"], tables.peers.len());
        prop_assert_eq!(compiler.table_use()["ports"], tables.ports.len());
    }

    /// Tables that are made anew, for endpoints that another compiler gave their ids to, hold what they would
    /// otherwise; flows that carry those ids are judged again.
    #[test]
    fn endpoints_keep_their_ids_in_new_tables(
        batches in prop::collection::vec(prop::collection::vec(change(), 1..6), 1..5),
        away in prop::collection::vec(change(), 0..6),
    ) {
        let remotes = remotes();
        let mut before = Tables::default();
        let mut compiler = Compiler::new(Limits::default());
        for batch in &batches {
            compiler.apply(batch.clone()).into_ops().for_each(|op| before.apply(&op));
        }
        let former = Tables {
            endpoints: before.endpoints,
            generation: before.generation,
            ..Tables::default()
        };
        let mut history = batches.concat();
        history.extend(away);
        let mut cluster = Cluster::default();
        for change in &history {
            cluster.apply(change.clone());
        }
        let mut compiler = Compiler::adopting(Limits::default(), former.clone());
        let (mut tables, mut anew) = (Tables::default(), Tables::default());
        compiler.apply(history.clone()).into_ops().for_each(|op| tables.apply(&op));
        let mut fresh = Compiler::new(Limits::default());
        fresh.apply(history).into_ops().for_each(|op| anew.apply(&op));
        prop_assert_eq!(of_tables(&tables, &remotes), of_oracle(&cluster, &tables, &remotes));
        prop_assert_eq!(sizes(&tables), sizes(&anew));
        prop_assert!(compiler.take_leftovers().is_empty() && !compiler.is_adopting());
        for (ifindex, row) in &tables.endpoints {
            let known = former.endpoints.get(ifindex);
            match known.filter(|known| addresses(known) == addresses(row)) {
                Some(known) => prop_assert!(row.id == known.id && row.epoch > known.epoch),
                None => prop_assert!(row.id >> 16 > former.generation),
            }
        }
    }

    /// A flow that was allowed at any moment of a plan, and is denied after it, meets a later epoch.
    #[test]
    fn what_was_allowed_on_the_way_is_judged_again(
        batches in prop::collection::vec(prop::collection::vec(change(), 1..6), 1..10),
    ) {
        let remotes = remotes();
        let mut compiler = Compiler::new(Limits::default());
        let mut tables = Tables::default();
        for batch in batches {
            let epochs = |tables: &Tables| -> BTreeMap<u32, u32> {
                tables.endpoints.values().map(|row| (row.id, row.epoch)).collect()
            };
            let mut last_allowed: BTreeMap<_, u32> = BTreeMap::new();
            let mut note = |tables: &Tables| {
                let now = epochs(tables);
                for (key, allowed) in of_tables(tables, &remotes) {
                    if allowed { last_allowed.insert(key, now[&key.0]); }
                }
            };
            note(&tables);
            for op in compiler.apply(batch).into_ops() {
                tables.apply(&op);
                note(&tables);
            }
            let now = epochs(&tables);
            for (key, allowed) in of_tables(&tables, &remotes) {
                if !allowed && let Some(epoch) = last_allowed.get(&key) {
                    prop_assert!(now[&key.0] > *epoch, "{:?}", key);
                }
            }
        }
    }
}
