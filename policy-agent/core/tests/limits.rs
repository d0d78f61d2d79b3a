//! What does not fit: refused loudly, closed for whom it concerns, and enforced once it fits.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use policy_common::verdict::Direction;
use policy_core::model::{
    Change, LabelSelector, Labels, LocalEndpoint, NetworkPolicy, ObjectName, Origin, Peer, Pod,
    PolicyPort, PortMatch, Protocol, Rule, Subject,
};
use policy_core::op::Op;
use policy_core::tables::Tables;
use policy_core::{Compiler, Limits, PolicyCounts, PolicyStatus, Problem};

const TCP: u8 = 6;

fn address(last: u8) -> IpAddr {
    IpAddr::from([10, 0, 0, last])
}

fn name(name: &str) -> ObjectName {
    ObjectName::new("shop", name)
}

fn pod(pod: &str, last: u8) -> Change {
    Change::Pod(Pod {
        name: name(pod),
        labels: Labels::from([("app".into(), pod.into())]).into(),
        addresses: vec![address(last)],
        ports: Arc::default(),
        terminated: false,
        created: 0,
        uid: "".into(),
    })
}

fn endpoint(pod: &str, last: u8) -> Change {
    Change::Endpoint(LocalEndpoint {
        ifindex: u32::from(last),
        host_interface: format!("veth{last}"),
        interface: "eth0".to_owned(),
        pod: name(pod),
        subject: Subject::Current,
        origin: Origin::Announced,
        addresses: vec![address(last)],
        is_router: false,
        records: false,
    })
}

fn selecting(app: &str) -> LabelSelector {
    let values = BTreeSet::from([app.into()]);
    let requirement = policy_core::model::Requirement::In("app".into(), values);
    LabelSelector {
        requirements: vec![requirement],
    }
}

fn rule(peer: &str, port: u16) -> Rule {
    let ports = vec![PolicyPort {
        protocol: Protocol::Tcp,
        port: PortMatch::Range(port, port),
    }];
    Rule {
        peers: vec![Peer::Pods {
            namespaces: None,
            pods: Some(selecting(peer)),
        }],
        ports,
    }
}

fn policy(policy: &str, subject: &str, rules: Vec<Rule>) -> Change {
    Change::Policy(NetworkPolicy {
        name: name(policy),
        subjects: selecting(subject),
        ingress: Some(rules),
        egress: None,
    })
}

struct Node {
    compiler: Compiler,
    tables: Tables,
}

impl Node {
    fn new(limits: Limits, changes: Vec<Change>) -> Self {
        let mut node = Self {
            compiler: Compiler::new(limits),
            tables: Tables::default(),
        };
        node.apply(changes);
        node
    }

    fn apply(&mut self, changes: Vec<Change>) {
        for op in self.compiler.apply(changes).into_ops() {
            assert!(Op::KINDS.contains(&op.kind()), "{op:?}");
            self.tables.apply(&op);
        }
        self.check_counts();
    }

    /// Counts are those of what is counted.
    fn check_counts(&self) {
        let mut counts = PolicyCounts::default();
        for policy in self.compiler.policies() {
            match policy.status {
                PolicyStatus::Enforced => counts.enforced += 1,
                PolicyStatus::NoLocalSubjects => counts.no_local_subjects += 1,
                PolicyStatus::Refused(_) => counts.refused += 1,
            }
        }
        assert_eq!(self.compiler.policy_counts(), counts);
        let identities = self.compiler.identities().len();
        assert_eq!(self.compiler.identity_count(), identities);
    }

    fn allows(&self, ifindex: u32, from: u8, port: u16) -> bool {
        let verdict = self
            .tables
            .allows(ifindex, Direction::Ingress, address(from), TCP, port);
        verdict.expect("an endpoint")
    }
}

fn web_and_db() -> Vec<Change> {
    vec![
        pod("web", 1),
        pod("db", 2),
        endpoint("web", 1),
        endpoint("db", 2),
    ]
}

#[test]
fn lists_longer_than_a_bit_vector() {
    let mut node = Node::new(Limits::default(), web_and_db());
    let rules = (0..3000).map(|index| rule("web", 1000 + index)).collect();
    node.apply(vec![policy("long", "db", rules)]);
    for port in [1000, 2023, 2024, 3500, 3999] {
        assert!(node.allows(2, 1, port), "port {port}");
        assert!(!node.allows(2, 3, port), "a stranger to port {port}");
    }
    assert!(!node.allows(2, 1, 999) && !node.allows(2, 1, 4000));
    let first = node.tables.endpoints[&2].ingress_policy;
    let explained = node.compiler.explain(first, Some(2500)).expect("in force");
    assert_eq!(
        explained.rule,
        Some((name("long"), 2500)),
        "rules are counted over all pages"
    );
    assert_eq!(node.compiler.problems(), []);
}

#[test]
fn rules_with_equal_ports_are_merged_before_a_list_is_too_long() {
    let mut node = Node::new(Limits::default(), web_and_db());
    let rules = (0..9000).map(|index| rule(["web", "db"][index % 2], (index % 10) as u16 + 1));
    node.apply(vec![policy("long", "db", rules.collect())]);
    assert!(node.allows(2, 1, 1) && node.allows(2, 1, 9) && !node.allows(2, 1, 2));
    assert_eq!(node.compiler.problems(), []);
}

#[test]
fn a_list_that_is_too_long_closes_its_subject_and_no_other() {
    let mut node = Node::new(Limits::default(), web_and_db());
    let rules = (0..5000).map(|index| rule("web", 1000 + index)).collect();
    node.apply(vec![
        policy("long", "db", rules),
        policy("short", "web", vec![rule("db", 80)]),
    ]);
    assert!(!node.allows(2, 1, 1000), "closed");
    assert!(node.allows(1, 2, 80), "and the other is as it should be");
    let problem = Problem::RuleListTooLong {
        pod: name("db"),
        direction: Direction::Ingress,
        rules: 5000,
    };
    assert_eq!(node.compiler.problems(), [problem]);
    let long = node
        .compiler
        .policies()
        .into_iter()
        .find(|policy| policy.name == name("long"));
    assert!(matches!(
        long.expect("known").status,
        PolicyStatus::Refused(_)
    ));
    node.apply(vec![policy("long", "db", vec![rule("web", 1000)])]);
    assert!(node.allows(2, 1, 1000), "open again");
    assert_eq!(node.compiler.problems(), []);
}

#[test]
fn a_full_table_keeps_what_is_enforced_and_closes_what_is_new() {
    // Policy ids 0, 1 (deny all) and 2.
    let limits = Limits {
        policies: 3,
        ..Limits::default()
    };
    let mut node = Node::new(limits, web_and_db());
    node.apply(vec![policy("one", "db", vec![rule("web", 80)])]);
    assert!(node.allows(2, 1, 80));
    node.apply(vec![policy("one", "db", vec![rule("web", 81)])]);
    assert!(
        node.allows(2, 1, 80) && !node.allows(2, 1, 81),
        "the former rules stay in force"
    );
    let kept = |problem: &Problem| matches!(problem, Problem::TableFull { kept: true, .. });
    assert!(
        node.compiler.problems().iter().any(kept),
        "{:?}",
        node.compiler.problems()
    );
    node.apply(vec![
        pod("new", 3),
        policy("two", "new", vec![rule("web", 80)]),
    ]);
    node.apply(vec![endpoint("new", 3)]);
    assert!(!node.allows(3, 1, 80), "a new endpoint is closed");
    let closed = |problem: &Problem| matches!(problem, Problem::TableFull { kept: false, .. });
    assert!(
        node.compiler.problems().iter().any(closed),
        "{:?}",
        node.compiler.problems()
    );
    node.apply(vec![Change::PolicyGone(name("one"))]);
    node.apply(vec![]);
    assert!(node.allows(3, 1, 80), "enforced once it fits");
    assert_eq!(node.compiler.problems(), []);
}

#[test]
fn addresses_without_room_are_strangers() {
    let limits = Limits {
        identity_v4: 1,
        ..Limits::default()
    };
    let mut node = Node::new(limits, web_and_db());
    let everyone = Some(LabelSelector::default());
    let peers = vec![Peer::Pods {
        namespaces: None,
        pods: everyone,
    }];
    let anyone = Rule {
        peers,
        ports: Vec::new(),
    };
    // Addresses 1 and 2 share a row, and so do 8 and 9.
    let others = [pod("other", 8), pod("another", 9)];
    let mut changes = others.to_vec();
    changes.push(policy("all", "db", vec![anyone]));
    node.apply(changes);
    let allowed: Vec<u8> = [1, 2, 8, 9]
        .into_iter()
        .filter(|last| node.allows(2, *last, 80))
        .collect();
    assert_eq!(allowed, [1, 2], "the others count as strangers");
    let expected = Problem::TableTooSmall {
        table: "identity_v4",
        rows: 2,
    };
    assert_eq!(node.compiler.problems(), [expected]);
}

#[test]
fn peers_without_a_row_are_strangers_until_there_is_room() {
    let limits = Limits {
        peers: 1,
        ..Limits::default()
    };
    let mut node = Node::new(limits, web_and_db());
    let two = vec![rule("web", 80), rule("other", 81)];
    node.apply(vec![pod("other", 4), policy("two", "db", two)]);
    let allowed = [node.allows(2, 1, 80), node.allows(2, 4, 81)];
    assert_eq!(
        allowed,
        [true, false],
        "one has the row, the other counts as a stranger"
    );
    let expected = Problem::TableTooSmall {
        table: "peers",
        rows: 2,
    };
    assert_eq!(node.compiler.problems(), [expected]);
    let epoch = node.tables.endpoints[&2].epoch;
    node.apply(vec![Change::PodGone(name("web"))]);
    assert!(node.allows(2, 4, 81), "it has the row, once there is room");
    let later = node.tables.endpoints[&2].epoch;
    assert!(later > epoch, "its flows are judged again");
    assert_eq!(node.compiler.problems(), []);
}

#[test]
fn two_pods_with_one_address() {
    let mut node = Node::new(Limits::default(), web_and_db());
    let Change::Pod(mut newer) = pod("newer", 1) else {
        unreachable!()
    };
    newer.created = 7;
    node.apply(vec![
        Change::Pod(newer),
        policy("one", "db", vec![rule("newer", 80)]),
    ]);
    assert!(node.allows(2, 1, 80), "the address is the newest pod's");
    let conflict = Problem::AddressConflict {
        address: address(1),
        owner: name("newer"),
        loser: name("web"),
    };
    assert_eq!(node.compiler.problems(), [conflict]);
    node.apply(vec![Change::PodGone(name("newer"))]);
    assert!(!node.allows(2, 1, 80), "and then the other's");
    assert_eq!(node.compiler.problems(), []);
}

#[test]
fn an_endpoint_that_no_packet_can_name_has_no_row() {
    let limits = Limits {
        highest_slot: 2,
        ..Limits::default()
    };
    let mut node = Node::new(limits, web_and_db());
    let before = node.tables.endpoints.len();
    node.apply(vec![pod("last", 6), endpoint("last", 6)]);
    let rows = node.tables.endpoints.len();
    assert!(before <= 2 && rows == 2, "{before} and then {rows}");
    let expected = Problem::NoEndpointId {
        ifindex: 6,
        pod: name("last"),
        ids: 2,
    };
    assert!(node.compiler.problems().contains(&expected));
    node.apply(vec![Change::EndpointGone(2)]);
    assert!(node.tables.endpoints.contains_key(&6), "once there is room");
}

#[test]
fn an_endpoint_whose_pod_is_not_known_is_closed() {
    let mut node = Node::new(Limits::default(), vec![endpoint("ghost", 9)]);
    assert!(!node.allows(9, 1, 80));
    node.apply(vec![pod("ghost", 9)]);
    assert!(node.allows(9, 1, 80), "known, and no policy selects it");
}
