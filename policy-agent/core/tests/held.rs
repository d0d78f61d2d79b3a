//! Endpoints whose pod is gone from the cluster, or whose name is another pod's.

use std::net::IpAddr;
use std::sync::Arc;

use policy_common::endpoint::Endpoint;
use policy_common::verdict::Direction;
use policy_core::model::{
    Change, LabelSelector, LocalEndpoint, NetworkPolicy, ObjectName, Origin, Peer, Pod,
    Requirement, Rule, Subject,
};
use policy_core::tables::Tables;
use policy_core::{Compiler, Limits, Problem};

const TCP: u8 = 6;

fn address(last: u8) -> IpAddr {
    [10, 0, 0, last].into()
}

fn pod(name: &str, uid: &str, app: &str, last: u8) -> Pod {
    Pod {
        name: ObjectName::new("shop", name),
        labels: Arc::new([("app".into(), app.into())].into()),
        addresses: vec![address(last)],
        ports: Arc::default(),
        terminated: false,
        created: 1,
        uid: uid.into(),
    }
}

fn endpoint(ifindex: u32, name: &str, subject: Subject, origin: Origin, last: u8) -> Change {
    Change::Endpoint(LocalEndpoint {
        ifindex,
        host_interface: format!("veth{ifindex}"),
        interface: "eth0".to_owned(),
        pod: ObjectName::new("shop", name),
        subject,
        origin,
        addresses: vec![address(last)],
        is_router: false,
        records: false,
    })
}

fn app(name: &str) -> LabelSelector {
    LabelSelector {
        requirements: vec![Requirement::In("app".into(), [name.into()].into())],
    }
}

/// Pods `to` hear pods `from`, and nobody else.
fn policy(to: &str, from: &str) -> Change {
    Change::Policy(NetworkPolicy {
        name: ObjectName::new("shop", &format!("to-{to}")),
        subjects: app(to),
        ingress: Some(vec![Rule {
            peers: vec![Peer::Pods {
                namespaces: None,
                pods: Some(app(from)),
            }],
            ports: Vec::new(),
        }]),
        egress: None,
    })
}

struct Node {
    compiler: Compiler,
    tables: Tables,
}

impl Node {
    /// db (2) hears web (1), and web hears db.
    fn new() -> Self {
        let mut node = Self {
            compiler: Compiler::new(Limits::default()),
            tables: Tables::default(),
        };
        node.apply(vec![
            Change::Pod(pod("web-0", "u1", "web", 1)),
            Change::Pod(pod("db-0", "u2", "db", 2)),
            endpoint(7, "web-0", Subject::Current, Origin::Found, 1),
            endpoint(8, "db-0", Subject::Current, Origin::Announced, 2),
            policy("db", "web"),
            policy("web", "db"),
        ]);
        node
    }

    fn apply(&mut self, changes: Vec<Change>) {
        for op in self.compiler.apply(changes).into_ops() {
            self.tables.apply(&op);
        }
    }

    fn hears(&self, ifindex: u32, last: u8) -> bool {
        let verdict = self
            .tables
            .allows(ifindex, Direction::Ingress, address(last), TCP, 80);
        verdict.expect("an endpoint")
    }

    fn has_address(&self, ifindex: u32) -> bool {
        self.tables.endpoints[&ifindex].flags & Endpoint::HAS_IPV4 != 0
    }
}

#[test]
fn a_pod_that_is_gone_stays_subject_and_peer_and_keeps_its_flows() {
    let mut node = Node::new();
    let before = node.tables.clone();
    for (ifindex, name, held, last, origin) in [
        (7, "web-0", pod("web-0", "u1", "web", 1), 1, Origin::Found),
        (8, "db-0", pod("db-0", "u2", "db", 2), 2, Origin::Announced),
    ] {
        node.apply(vec![
            Change::PodGone(ObjectName::new("shop", name)),
            endpoint(ifindex, name, Subject::Held(Arc::new(held)), origin, last),
        ]);
    }
    assert_eq!(node.tables, before, "nothing is asked of the kernel");
    node.apply(vec![policy("db", "nobody")]);
    assert!(!node.hears(8, 1), "a policy that selects it changes");
    node.apply(vec![policy("db", "web"), policy("web", "nobody")]);
    assert!(node.hears(8, 1) && !node.hears(7, 2));
    node.apply(vec![Change::EndpointGone(7)]);
    assert!(!node.hears(8, 1), "its device is gone, and so is the peer");
}

#[test]
fn a_pod_of_the_same_name_is_another_one() {
    let mut node = Node::new();
    let held = Subject::Held(Arc::new(pod("web-0", "u1", "web", 1)));
    node.apply(vec![
        Change::Pod(pod("web-0", "u9", "other", 3)),
        endpoint(7, "web-0", held.clone(), Origin::Found, 1),
    ]);
    assert!(node.hears(8, 1) && !node.hears(8, 3));
    assert!(node.hears(7, 2) && !node.hears(7, 3), "the former policy");
    // The live pod has the address of the one that is gone.
    node.apply(vec![Change::Pod(pod("web-0", "u9", "other", 1))]);
    assert!(!node.hears(8, 1), "a live pod is the peer");
    assert!(!node.has_address(7), "and nobody else sends from there");
    assert!(
        !node
            .compiler
            .problems()
            .iter()
            .any(|problem| matches!(problem, Problem::AddressConflict { .. }))
    );
    node.apply(vec![Change::PodGone(ObjectName::new("shop", "web-0"))]);
    assert!(node.hears(8, 1) && node.has_address(7));
}

#[test]
fn a_pod_that_was_never_known_is_denied_everything_and_no_peer() {
    let mut node = Node::new();
    node.apply(vec![
        Change::Pod(pod("web-0", "u9", "web", 9)),
        endpoint(7, "web-0", Subject::Unknown, Origin::Announced, 1),
    ]);
    assert!(!node.hears(7, 2) && !node.hears(8, 1));
    assert!(node.hears(8, 9));
}

#[test]
fn a_further_interfaces_address_yields_to_whoever_claims_it() {
    let mut node = Node::new();
    node.apply(vec![endpoint(
        9,
        "web-0",
        Subject::Current,
        Origin::Secondary,
        4,
    )]);
    assert!(node.hears(8, 4) && node.has_address(9) && node.hears(9, 2));
    let mut older = pod("c", "u3", "other", 4);
    older.created = 0;
    node.apply(vec![Change::Pod(older)]);
    assert!(!node.hears(8, 4) && !node.has_address(9));
    node.apply(vec![Change::PodGone(ObjectName::new("shop", "c"))]);
    assert!(node.hears(8, 4) && node.has_address(9));
}
