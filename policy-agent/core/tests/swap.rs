//! Lists that one endpoint joins while another leaves them, as a peer of both is relabelled in the same
//! batch; and peers without rows of their own that only their prefixes tell apart.

use std::net::IpAddr;
use std::sync::Arc;

use policy_common::verdict::Direction;
use policy_core::model::{
    Change, LabelSelector, Labels, LocalEndpoint, Namespace, NetworkPolicy, ObjectName, Origin,
    Peer, Pod, Requirement, Rule, Subject,
};
use policy_core::tables::Tables;
use policy_core::{Compiler, Limits};

fn address(last: u8) -> IpAddr {
    IpAddr::from([10, 0, 0, last])
}

fn pod_at(name: &str, key: &str, value: &str, created: u8, addresses: &[IpAddr]) -> Change {
    Change::Pod(Pod {
        name: ObjectName::new("a", name),
        labels: Arc::new([(key.into(), value.into())].into()),
        addresses: addresses.to_vec(),
        ports: Arc::default(),
        terminated: false,
        created: i64::from(created),
        uid: "".into(),
    })
}

fn pod(name: &str, key: &str, value: &str, last: u8) -> Change {
    pod_at(name, key, value, last, &[address(last)])
}

fn with(key: &str, value: &str) -> LabelSelector {
    LabelSelector {
        requirements: vec![Requirement::In(key.into(), [value.into()].into())],
    }
}

fn policy(name: &str, role: &str, peer: Peer) -> Change {
    Change::Policy(NetworkPolicy {
        name: ObjectName::new("a", name),
        subjects: with("role", role),
        ingress: Some(vec![Rule {
            peers: vec![peer],
            ports: vec![],
        }]),
        egress: None,
    })
}

fn from(value: &str) -> Peer {
    Peer::Pods {
        namespaces: None,
        pods: Some(with("k", value)),
    }
}

fn endpoint(ifindex: u32, name: &str) -> Change {
    Change::Endpoint(LocalEndpoint {
        ifindex,
        host_interface: format!("veth{ifindex}"),
        interface: "eth0".to_owned(),
        pod: ObjectName::new("a", name),
        subject: Subject::Current,
        origin: Origin::Announced,
        addresses: vec![],
        is_router: false,
        records: false,
    })
}

/// s1 admits pods k=x, s2 admits pods k=y; the client c is k=x at 10.0.0.3 and 192.0.2.3.
fn first() -> Vec<Change> {
    vec![
        Change::Namespace(Namespace {
            name: "a".into(),
            labels: Labels::new(),
        }),
        pod("s1", "role", "r1", 1),
        pod("s2", "role", "r2", 2),
        pod_at(
            "c",
            "k",
            "x",
            3,
            &[address(3), IpAddr::from([192, 0, 2, 3])],
        ),
        policy("n1", "r1", from("x")),
        policy("n2", "r2", from("y")),
        endpoint(1, "s1"),
        endpoint(2, "s2"),
    ]
}

#[test]
fn every_operation_leaves_old_or_new_verdicts() {
    let batches: [(&str, Vec<Change>); 5] = [
        (
            "two pods exchange their lists",
            vec![
                pod("s1", "role", "r2", 1),
                pod("s2", "role", "r1", 2),
                pod("c", "k", "y", 3),
            ],
        ),
        (
            "a new endpoint takes the list that another leaves",
            vec![
                pod("s1", "role", "r2", 1),
                pod("c", "k", "y", 3),
                pod("s3", "role", "r1", 4),
                endpoint(3, "s3"),
            ],
        ),
        (
            "one takes over what another leaves",
            vec![
                pod("s2", "role", "r1", 2),
                pod("s1", "role", "r9", 1),
                pod("c", "k", "y", 3),
            ],
        ),
        (
            "another pod takes the interface of one that leaves",
            vec![
                pod("s3", "role", "r1", 4),
                endpoint(2, "s3"),
                pod("s1", "role", "r2", 1),
                pod("c", "k", "y", 3),
            ],
        ),
        (
            "both addresses lose their rows, and a new block covers one of them",
            vec![
                pod_at("c", "k", "x", 3, &[]),
                policy(
                    "n1",
                    "r1",
                    Peer::IpBlock {
                        cidr: "10.0.0.0/8".parse().expect("a network"),
                        except: vec![],
                    },
                ),
            ],
        ),
    ];
    let mut failures = Vec::new();
    for (what, second) in batches {
        let mut compiler = Compiler::new(Limits::default());
        let mut tables = Tables::default();
        for op in compiler.apply(first()).into_ops() {
            tables.apply(&op);
        }
        let keys = || {
            [1, 2, 3].into_iter().flat_map(|ifindex| {
                [address(3), IpAddr::from([192, 0, 2, 3])].map(|remote| (ifindex, remote))
            })
        };
        // With the id: another endpoint at the same ifindex has another past.
        let verdicts = |tables: &Tables| -> Vec<Option<(u32, bool)>> {
            keys()
                .map(|(ifindex, remote)| {
                    let allowed = tables.allows(ifindex, Direction::Ingress, remote, 6, 80)?;
                    Some((tables.endpoints.get(&ifindex)?.id, allowed))
                })
                .collect()
        };
        let old = verdicts(&tables);
        let mut states = Vec::new();
        for op in compiler.apply(second).into_ops() {
            tables.apply(&op);
            states.push((verdicts(&tables), op));
        }
        let new = verdicts(&tables);
        assert!(!states.is_empty(), "{what}: nothing is done");
        for (state, op) in states {
            for (position, key) in keys().enumerate() {
                let now = state[position];
                // An endpoint that ends is detached already: nothing passes there any more.
                let ends = now.is_some_and(|(id, _)| new.iter().flatten().all(|end| end.0 != id));
                if ends {
                    continue;
                }
                if now != old[position] && now != new[position] {
                    failures.push(format!(
                        "{what}: {key:?} is {now:?}, was {:?}, will be {:?} after {op:?}",
                        old[position], new[position]
                    ));
                }
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// Joining a list that another leaves must not bring back the row of a third that is gone.
#[test]
fn an_endpoint_that_goes_while_its_list_changes_hands_loses_its_row() {
    let mut compiler = Compiler::new(Limits::default());
    let mut tables = Tables::default();
    let mut start = first();
    start.extend([pod("s3", "role", "r1", 4), endpoint(3, "s3")]);
    // s3 goes as s1 leaves the list that both have, and s2 joins it.
    let second = vec![
        Change::EndpointGone(3),
        pod("s1", "role", "r9", 1),
        pod("s2", "role", "r1", 2),
    ];
    for op in [compiler.apply(start), compiler.apply(second)]
        .into_iter()
        .flat_map(policy_core::Plan::into_ops)
    {
        tables.apply(&op);
    }
    let rows: Vec<u32> = tables.endpoints.keys().copied().collect();
    assert_eq!(rows, [1, 2]);
}
