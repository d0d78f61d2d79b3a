//! The numbers of rows that operators see, against what the kernel holds.

use policy_agent::dataplane::DataplaneConfig;
use policy_common::address::Identity;
use policy_common::endpoint::Endpoint;
use policy_common::policy::{PeerKey, PolicyHeader, RuleAction, RuleBits, RuleKey};
use policy_common::port::PortKey;
use policy_common::verdict::Reason;
use policy_core::op::Op;
use portcullis_tests::packet::Kind::Tcp;
use portcullis_tests::packet::flags::{ACK, SYN};
use portcullis_tests::packet::v4;
use portcullis_tests::testrun::Machine;

use crate::world::{
    EGRESS_POLICY, Egress, FRIEND, INGRESS_POLICY, Ingress, World, incoming, outgoing,
};

/// Policy id that nothing else here uses.
const POLICY: u32 = 60;
/// An interface that there is not, within the array.
const INDEX: u32 = 900;

fn used(world: &World, name: &str) -> u64 {
    let tables = world.machine.dataplane.tables().unwrap();
    let table = tables.into_iter().find(|table| table.name == name);
    table.unwrap_or_else(|| panic!("no table {name}")).used
}

/// For each table that operations write, one that makes a row and one that removes it.
fn operations() -> Vec<(&'static str, Op, Op)> {
    let mut bits = RuleBits::EMPTY;
    bits.set(0);
    let bits = Box::new(bits);
    let identity = Identity { id: 9 };
    let rule = RuleKey {
        policy: POLICY,
        rule: 0,
    };
    let peer = PeerKey {
        policy: POLICY,
        identity: 9,
    };
    let header = PolicyHeader {
        flags: PolicyHeader::VALID,
        ..PolicyHeader::default()
    };
    let port = PortKey::any_protocol(POLICY);
    let address = |address| {
        let put = Op::PutAddress { address, identity };
        (put, Op::DeleteAddress { address })
    };
    let prefix = |prefix: &str| {
        let prefix = prefix.parse().unwrap();
        let put = Op::PutPrefix { prefix, identity };
        (put, Op::DeletePrefix { prefix })
    };
    let endpoint = |ifindex| {
        let endpoint = Endpoint {
            id: 77,
            ..Endpoint::default()
        };
        let put = Op::PutEndpoint { ifindex, endpoint };
        (put, Op::DeleteEndpoint { ifindex })
    };
    let counted = PolicyHeader {
        rules: 1,
        first_count: 9,
        ..header
    };
    let pairs = [
        (
            "policies",
            (
                Op::PutPolicy { id: POLICY, header },
                Op::DeletePolicy { id: POLICY },
            ),
        ),
        (
            "peers",
            (
                Op::PutPeer {
                    key: peer,
                    bits: bits.clone(),
                },
                Op::DeletePeer { key: peer },
            ),
        ),
        (
            "ports",
            (
                Op::PutPort { key: port, bits },
                Op::DeletePort { key: port },
            ),
        ),
        (
            "rules",
            (
                Op::PutRule {
                    key: rule,
                    action: RuleAction::default(),
                },
                Op::DeleteRule { key: rule },
            ),
        ),
        (
            "rule_counts",
            (
                Op::PutPolicy {
                    id: POLICY + 1,
                    header: counted,
                },
                Op::DeletePolicy { id: POLICY + 1 },
            ),
        ),
        ("identity_v4", address(v4(10, 99, 0, 1))),
        ("identity_v6", address("fd99::1".parse().unwrap())),
        ("prefix_v4", prefix("10.99.0.0/16")),
        ("prefix_v4", prefix("10.99.0.0/24")),
        ("prefix_v6", prefix("fd99::/64")),
        ("endpoints", endpoint(INDEX)),
        ("endpoints_ext", endpoint(1 << 24)),
    ];
    pairs
        .into_iter()
        .map(|(table, (put, delete))| (table, put, delete))
        .collect()
}

#[test]
fn a_row_counts_once_however_often_it_is_written() {
    let mut world = World::new();
    // All rows are there at once, so that one of the same table could be mistaken for another.
    let mut expected = Vec::new();
    for (table, put, _) in operations() {
        let before = used(&world, table);
        world.machine.apply(&[put.clone(), put]).unwrap();
        assert_eq!(used(&world, table), before + 1, "{table}: written twice");
        expected.push(before);
    }
    for (expected, (table, _, delete)) in expected.into_iter().zip(operations()).rev() {
        world.machine.apply(&[delete.clone(), delete]).unwrap();
        assert_eq!(used(&world, table), expected, "{table}: removed twice");
    }
}

#[test]
fn flows_are_counted_over_many_batches() {
    let machine = Machine::with(DataplaneConfig::default()).unwrap();
    let mut world = World::with(machine);
    world.judge_by(INGRESS_POLICY, EGRESS_POLICY);
    assert_eq!(used(&world, "flows_new_v4"), 0);
    // More than fit into one batch, and far fewer than push each other out.
    const FLOWS: u16 = 3000;
    const ANSWERED: u16 = 7;
    for number in 0..FLOWS {
        let port = 10_000 + number;
        let begin = incoming(FRIEND, 0, port, 80, Tcp(SYN));
        assert_eq!(world.run(Ingress, &begin), Reason::PolicyAllowed);
        if number < ANSWERED {
            let answer = outgoing(FRIEND, 0, 80, port, Tcp(SYN | ACK));
            assert_eq!(world.run(Egress, &answer), Reason::Established);
        }
    }
    let answered = u64::from(ANSWERED);
    assert_eq!(used(&world, "flows_v4"), answered);
    assert_eq!(used(&world, "flows_new_v4"), u64::from(FLOWS) - answered);
    assert_eq!(used(&world, "flows_v6"), 0);
}
