//! What rules allow and deny.

use policy_common::flow::protocol::{TCP, UDP};
use policy_common::policy::RuleAction;
use policy_common::verdict::Reason;
use policy_core::op::Op;
use portcullis_tests::packet::Kind::{EchoRequest, Other, Sctp, Tcp, Udp};
use portcullis_tests::packet::flags::SYN;
use portcullis_tests::packet::{Kind, v4};
use portcullis_tests::tables_by_hand::{Page, Peers, Ports, identity};

use crate::world::{
    ALLOW_ALL, DENY_ALL, EGRESS_POLICY, Egress, FAMILIES, FRIEND, INGRESS_POLICY, Ingress,
    STRANGER, World, incoming, outgoing,
};

const INIT: Kind = Sctp(1);

#[test]
fn rules_by_peer_protocol_and_port() {
    use Reason::{PolicyAllowed as Allowed, PolicyDenied as Denied};
    let rows = [
        (
            Ingress,
            FRIEND,
            80,
            Tcp(SYN),
            Allowed,
            "a friend to the allowed port",
        ),
        (
            Ingress,
            FRIEND,
            81,
            Tcp(SYN),
            Denied,
            "a friend to the next port",
        ),
        (
            Ingress,
            STRANGER,
            80,
            Tcp(SYN),
            Denied,
            "a stranger to the allowed port",
        ),
        (
            Ingress,
            FRIEND,
            80,
            Udp,
            Denied,
            "the allowed port of another protocol",
        ),
        (Ingress, FRIEND, 53, Udp, Allowed, "UDP"),
        (Ingress, FRIEND, 36412, INIT, Allowed, "SCTP"),
        (Ingress, FRIEND, 80, INIT, Denied, "SCTP to another port"),
        (
            Ingress,
            FRIEND,
            0,
            EchoRequest,
            Denied,
            "ICMP is in no rule with ports",
        ),
        (
            Ingress,
            FRIEND,
            0,
            Other(47),
            Denied,
            "GRE is in no rule with ports",
        ),
        (Egress, FRIEND, 443, Tcp(SYN), Allowed, "out to a friend"),
        (Egress, STRANGER, 443, Tcp(SYN), Denied, "out to a stranger"),
        (
            Egress,
            FRIEND,
            80,
            Tcp(SYN),
            Denied,
            "out to an ingress rule's port",
        ),
        (Egress, STRANGER, 53, Udp, Allowed, "anyone's DNS"),
        (
            Egress,
            FRIEND,
            53,
            Udp,
            Allowed,
            "a known peer's, too: rules for everyone count for it",
        ),
        (Egress, FRIEND, 53, Tcp(SYN), Denied, "but not by TCP"),
    ];
    for family in FAMILIES {
        for (direction, peer, port, kind, reason, what) in rows {
            let mut world = World::new();
            let packet = match direction {
                Ingress => incoming(peer, family, 40_000, port, kind),
                Egress => outgoing(peer, family, 40_000, port, kind),
            };
            world.expect(
                &format!("{what}, family {family}"),
                direction,
                &packet,
                reason,
            );
        }
    }
}

#[test]
fn isolation_is_by_direction() {
    for family in FAMILIES {
        let mut world = World::new();
        world.judge_by(DENY_ALL, 0);
        let inward = incoming(FRIEND, family, 1, 80, Tcp(SYN));
        let outward = outgoing(STRANGER, family, 2, 80, Tcp(SYN));
        world.expect(
            "ingress is isolated",
            Ingress,
            &inward,
            Reason::PolicyDenied,
        );
        world.expect("egress is not", Egress, &outward, Reason::PolicyAllowed);
        world.judge_by(0, DENY_ALL);
        let outward = outgoing(STRANGER, family, 3, 80, Tcp(SYN));
        world.expect("ingress is not", Ingress, &inward, Reason::PolicyAllowed);
        world.expect("egress is isolated", Egress, &outward, Reason::PolicyDenied);
    }
}

#[test]
fn rules_without_ports_allow_every_protocol() {
    for family in FAMILIES {
        for kind in [Tcp(SYN), Udp, INIT, EchoRequest, Other(47), Other(0xfd)] {
            let mut world = World::new();
            world.judge_by(ALLOW_ALL, ALLOW_ALL);
            let packet = incoming(STRANGER, family, 1, 2, kind);
            world.expect(
                &format!("{kind:?}"),
                Ingress,
                &packet,
                Reason::PolicyAllowed,
            );
        }
    }
}

#[test]
fn a_port_range_and_a_whole_protocol() {
    let mut world = World::new();
    let page = Page::isolating(40)
        .allow(Peers::Any, Ports::Protocol(UDP))
        .allow(Peers::Identity(77), Ports::One(UDP, 7))
        .allow(Peers::Any, Ports::One(TCP, 65535));
    world.machine.apply(&page.ops()).unwrap();
    world.judge_by(40, 0);
    for (port, kind, reason) in [
        (0, Udp, Reason::PolicyAllowed),
        (7, Udp, Reason::PolicyAllowed),
        (65535, Udp, Reason::PolicyAllowed),
        (65535, Tcp(SYN), Reason::PolicyAllowed),
        (65534, Tcp(SYN), Reason::PolicyDenied),
    ] {
        let packet = incoming(STRANGER, 0, 1, port, kind);
        world.expect(&format!("{kind:?} {port}"), Ingress, &packet, reason);
    }
}

#[test]
fn prefixes_with_exceptions_and_pods_inside_them() {
    let mut world = World::new();
    let net = |text: &str| text.parse().unwrap();
    let prefix = |text, id| Op::PutPrefix {
        prefix: net(text),
        identity: policy_common::address::Identity { id },
    };
    let mut ops = Page::isolating(41)
        .with_prefixes()
        .allow(Peers::Identity(5), Ports::Any)
        .allow(Peers::Identity(6), Ports::Any)
        .ops();
    ops.push(prefix("192.0.0.0/8", 5));
    ops.push(prefix("192.1.0.0/16", 0));
    ops.push(prefix("192.1.2.0/24", 6));
    ops.push(prefix("fd00:1::/32", 5));
    ops.push(identity(v4(192, 0, 0, 1), 8));
    world.machine.apply(&ops).unwrap();
    world.judge_by(41, 0);
    for (address, reason) in [
        ("192.7.7.7", Reason::PolicyAllowed),
        ("192.1.1.1", Reason::PolicyDenied),
        ("192.1.2.3", Reason::PolicyAllowed),
        ("193.0.0.0", Reason::PolicyDenied),
        ("192.0.0.1", Reason::PolicyDenied),
    ] {
        let remote = address.parse().unwrap();
        let packet = incoming([remote; 2], 0, 1, 80, Tcp(SYN));
        world.expect(address, Ingress, &packet, reason);
    }
    let remote = "fd00:1::1".parse().unwrap();
    let packet = incoming([remote; 2], 1, 1, 80, Tcp(SYN));
    world.expect("IPv6 prefix", Ingress, &packet, Reason::PolicyAllowed);
}

#[test]
fn tiers_in_their_order() {
    use RuleAction as A;
    let friends = Peers::Identity(77);
    let one = |port| Ports::One(TCP, port);
    let mut world = World::new();
    let isolating = Page::isolating(9)
        .admin(&[
            (friends, one(1), A::ALLOW),
            (friends, one(2), A::DENY),
            (friends, one(3), A::PASS),
            (friends, one(4), A::PASS),
            (Peers::Any, one(6), 99),
        ])
        .allow(Peers::Any, one(2))
        .allow(Peers::Any, one(3))
        .allow(Peers::Any, one(5));
    let open = Page::open(10)
        .admin(&[(friends, one(1), A::DENY), (friends, one(2), A::PASS)])
        .baseline(Peers::Any, one(2), A::DENY)
        .baseline(Peers::Any, one(3), A::ALLOW);
    world.machine.apply(&isolating.ops()).unwrap();
    world.machine.apply(&open.ops()).unwrap();
    use Reason::{PolicyAllowed as Allowed, PolicyDenied as Denied};
    let rows = [
        (
            9,
            FRIEND,
            1,
            Allowed,
            "admin allows what NetworkPolicy does not",
        ),
        (
            9,
            FRIEND,
            2,
            Denied,
            "admin denies what NetworkPolicy allows",
        ),
        (9, STRANGER, 2, Allowed, "for others NetworkPolicy counts"),
        (
            9,
            FRIEND,
            3,
            Allowed,
            "admin passes on, NetworkPolicy allows",
        ),
        (
            9,
            FRIEND,
            4,
            Denied,
            "admin passes on, NetworkPolicy does not",
        ),
        (9, FRIEND, 5, Allowed, "only NetworkPolicy"),
        (9, STRANGER, 6, Denied, "an unknown action denies"),
        (9, STRANGER, 7, Denied, "nobody allows"),
        (
            10,
            FRIEND,
            1,
            Denied,
            "admin denies an un-isolated pod's traffic",
        ),
        (10, FRIEND, 2, Denied, "admin passes on, baseline denies"),
        (10, STRANGER, 3, Allowed, "baseline allows"),
        (10, STRANGER, 4, Allowed, "nothing isolates"),
    ];
    for family in FAMILIES {
        for (policy, peer, port, reason, what) in rows {
            world.judge_by(policy, 0);
            let packet = incoming(peer, family, 1, port, Tcp(SYN));
            world.expect(what, Ingress, &packet, reason);
        }
    }
}

#[test]
fn longer_lists_go_on_on_the_next_page() {
    let mut world = World::new();
    let pages = [
        Page::isolating(20)
            .allow(Peers::Any, Ports::One(TCP, 1))
            .then(21),
        Page::isolating(21)
            .allow(Peers::Identity(77), Ports::One(TCP, 2))
            .then(22),
        Page::isolating(22)
            .with_prefixes()
            .allow(Peers::Identity(5), Ports::One(TCP, 3))
            .then(23),
        Page::isolating(23).allow(Peers::Any, Ports::One(TCP, 4)),
    ];
    for page in pages {
        world.machine.apply(&page.ops()).unwrap();
    }
    let prefix = "10.244.3.0/24".parse().unwrap();
    let identity = policy_common::address::Identity { id: 5 };
    world
        .machine
        .apply(&[Op::PutPrefix { prefix, identity }])
        .unwrap();
    world.judge_by(20, 0);
    use Reason::{PolicyAllowed as Allowed, PolicyDenied as Denied};
    for (peer, port, reason) in [
        (STRANGER, 1, Allowed),
        (FRIEND, 2, Allowed),
        (STRANGER, 2, Denied),
        (STRANGER, 3, Allowed),
        (FRIEND, 3, Denied),
        (FRIEND, 4, Allowed),
        (FRIEND, 5, Denied),
    ] {
        let packet = incoming(peer, 0, 1, port, Tcp(SYN));
        world.expect(&format!("port {port}"), Ingress, &packet, reason);
    }
}

#[test]
fn incomplete_tables_fail_closed() {
    let mut world = World::new();
    let packet = incoming(FRIEND, 0, 1, 80, Tcp(SYN));
    world.judge_by(4000, 0);
    world.expect(
        "a policy id without a header",
        Ingress,
        &packet,
        Reason::NoPolicy,
    );
    world.judge_by(u32::MAX, 0);
    world.expect(
        "a policy id past the end",
        Ingress,
        &packet,
        Reason::NoPolicy,
    );
    let page = Page::isolating(30)
        .allow(Peers::Any, Ports::One(TCP, 1))
        .then(31);
    world.machine.apply(&page.ops()).unwrap();
    world.judge_by(30, 0);
    world.expect(
        "a next page without a header",
        Ingress,
        &packet,
        Reason::NoPolicy,
    );
    let page = Page::isolating(31)
        .allow(Peers::Any, Ports::One(TCP, 1))
        .then(30);
    world.machine.apply(&page.ops()).unwrap();
    world.expect("pages in a circle", Ingress, &packet, Reason::NoPolicy);
    world.judge_by(INGRESS_POLICY, EGRESS_POLICY);
    world.expect("and back", Ingress, &packet, Reason::PolicyAllowed);
}
