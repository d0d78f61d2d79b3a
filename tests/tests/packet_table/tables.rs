//! Tables: interfaces past the array, capacity, events, counters.

use std::collections::BTreeMap;

use policy_agent::dataplane::{ApplyError, DataplaneConfig, LoadError};
use policy_common::address::Identity;
use policy_common::event::{Event, NO_RULE};
use policy_common::policy::{PeerKey, RuleBits};
use policy_common::verdict::{Direction, Reason};
use policy_core::op::Op;
use portcullis_tests::packet::Kind::Tcp;
use portcullis_tests::packet::flags::SYN;
use portcullis_tests::packet::v4;
use portcullis_tests::testrun::{LOOPBACK, Machine};

use crate::world::{
    EGRESS_POLICY, Egress, FRIEND, FRIENDS, INGRESS_POLICY, Ingress, STRANGER, World, incoming,
    outgoing,
};

fn sized(sizes: &[(&str, u32)]) -> DataplaneConfig {
    let capacities: BTreeMap<_, _> = sizes
        .iter()
        .map(|(name, size)| ((*name).to_owned(), *size))
        .collect();
    DataplaneConfig {
        capacities,
        ..DataplaneConfig::default()
    }
}

#[test]
fn interfaces_past_the_end_of_the_array() {
    let mut world = World::with(Machine::with(sized(&[("endpoints", 1)])).unwrap());
    world.judge_by(INGRESS_POLICY, EGRESS_POLICY);
    let packet = incoming(FRIEND, 0, 1, 80, Tcp(SYN));
    world.expect(
        "found in endpoints_ext",
        Ingress,
        &packet,
        Reason::PolicyAllowed,
    );
    world
        .machine
        .apply(&[Op::DeleteEndpoint { ifindex: LOOPBACK }])
        .unwrap();
    world.expect("and gone from there", Ingress, &packet, Reason::NoEndpoint);
}

#[test]
fn a_full_table_says_so_and_keeps_what_it_has() {
    let mut world =
        World::with(Machine::with(sized(&[("identity_v4", 2), ("peers", 64)])).unwrap());
    world.judge_by(INGRESS_POLICY, EGRESS_POLICY);
    let put = |last| Op::PutAddress {
        address: v4(10, 0, 0, last),
        identity: Identity { id: 9 },
    };
    world.machine.dataplane.apply(&put(1)).unwrap();
    // Neighbours share a row.
    world.machine.dataplane.apply(&put(2)).unwrap();
    let error = world.machine.dataplane.apply(&put(8)).unwrap_err();
    assert!(
        matches!(
            error,
            ApplyError::Full {
                table: "identity_v4"
            }
        ),
        "{error}"
    );
    assert_eq!(
        error.to_string(),
        "table identity_v4 is full; raise its size with PORTCULLIS_TABLE_SIZES=identity_v4=N"
    );
    world.machine.dataplane.apply(&put(1)).unwrap();
    let packet = incoming(FRIEND, 0, 1, 80, Tcp(SYN));
    world.expect("what was enforced", Ingress, &packet, Reason::PolicyAllowed);
    let use_of = |world: &World, name| {
        let tables = world.machine.dataplane.tables().unwrap();
        let table = tables.into_iter().find(|table| table.name == name).unwrap();
        (table.used, table.capacity)
    };
    assert_eq!(use_of(&world, "identity_v4"), (2, 2));
    for (last, used) in [(1, 2), (2, 1)] {
        let address = v4(10, 0, 0, last);
        let delete = Op::DeleteAddress { address };
        world.machine.dataplane.apply(&delete).unwrap();
        assert_eq!(use_of(&world, "identity_v4"), (used, 2));
    }
    let out_of_range = Op::DeletePolicy { id: 1 << 20 };
    let error = world.machine.dataplane.apply(&out_of_range).unwrap_err();
    assert!(matches!(error, ApplyError::OutOfRange { .. }), "{error}");
}

#[test]
fn operations_are_idempotent() {
    let mut world = World::new();
    let key = PeerKey {
        policy: 50,
        identity: 1,
    };
    let mut bits = RuleBits::EMPTY;
    bits.set(1000);
    let put = Op::PutPeer {
        key,
        bits: Box::new(bits),
    };
    for op in [
        put.clone(),
        put,
        Op::DeletePeer { key },
        Op::DeletePeer { key },
        Op::ClearRuleCounts { first: 7, rows: 3 },
        Op::ClearRuleCounts { first: 7, rows: 3 },
        Op::DeleteAddress {
            address: v4(1, 2, 3, 4),
        },
        Op::DeletePrefix {
            prefix: "10.0.0.0/8".parse().unwrap(),
        },
        Op::DeletePort {
            key: policy_common::port::PortKey::any_protocol(50),
        },
        Op::DeletePolicy { id: 50 },
        Op::Barrier,
    ] {
        world.machine.dataplane.apply(&op).unwrap();
    }
}

#[test]
fn a_table_that_does_not_exist_is_refused_by_name() {
    match Machine::with(sized(&[("flow", 1)])) {
        Err(error) => {
            let error = error.downcast::<LoadError>().unwrap();
            assert!(matches!(error, LoadError::UnknownTable { .. }), "{error}");
        }
        Ok(_) => panic!("loaded"),
    }
}

/// Reads events until `wanted` have come; the programs wrote them before this is called.
fn events(world: &mut World, wanted: usize) -> Vec<Event> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let mut stream = world.machine.dataplane.events().unwrap();
        let mut events = Vec::new();
        while events.len() < wanted {
            events.push(stream.next().await.unwrap());
        }
        events
    })
}

#[test]
fn a_drop_is_reported_with_what_decided_it() {
    let mut world = World::with(Machine::new().unwrap());
    world.judge_by(INGRESS_POLICY, EGRESS_POLICY);
    let denied = incoming(FRIEND, 0, 4000, 81, Tcp(SYN));
    world.expect("denied", Ingress, &denied, Reason::PolicyDenied);
    let denied6 = outgoing(STRANGER, 1, 4000, 443, Tcp(SYN));
    world.expect("denied", Egress, &denied6, Reason::PolicyDenied);
    let mut broken = denied.clone();
    broken[14] = 0x15;
    world.expect("broken", Ingress, &broken, Reason::Malformed);
    let events = events(&mut world, 3);
    let first = events[0];
    assert_eq!(first.endpoint, world.endpoint.id);
    assert_eq!(
        (first.ifindex, first.policy, first.rule),
        (LOOPBACK, INGRESS_POLICY, NO_RULE)
    );
    assert_eq!(
        (first.identity, first.protocol, first.tcp_flags),
        (FRIENDS, 6, SYN)
    );
    assert_eq!(
        (first.sport, first.dport, first.ethertype),
        (4000, 81, 0x0800)
    );
    assert_eq!(first.saddr[..4], [10, 244, 2, 7]);
    assert_eq!(first.daddr[..4], [10, 244, 1, 5]);
    assert_eq!(first.length as usize, denied.len());
    assert_eq!(Direction::try_from(first.direction), Ok(Ingress));
    assert_eq!(Reason::try_from(first.reason), Ok(Reason::PolicyDenied));
    assert_eq!(
        (events[1].policy, events[1].ethertype),
        (EGRESS_POLICY, 0x86dd)
    );
    assert_eq!(events[1].daddr[15], 9);
    assert_eq!(Reason::try_from(events[2].reason), Ok(Reason::Malformed));
}

#[test]
fn events_are_limited_and_what_is_not_sent_is_counted() {
    let config = DataplaneConfig {
        events_per_second: 5,
        ..DataplaneConfig::default()
    };
    let mut world = World::with(Machine::with(config).unwrap());
    world.judge_by(INGRESS_POLICY, EGRESS_POLICY);
    let denied = incoming(STRANGER, 0, 1, 80, Tcp(SYN));
    world
        .machine
        .repeat(Ingress, LOOPBACK, &denied, 1000)
        .unwrap();
    let (limited, lost) = world.machine.dataplane.events_lost().unwrap();
    // A second may have turned in between, and a CPU been changed.
    assert!((900..=995).contains(&limited), "{limited} limited");
    assert_eq!(lost, 0);
    let config = DataplaneConfig {
        log_drops: false,
        ..DataplaneConfig::default()
    };
    let mut world = World::with(Machine::with(config).unwrap());
    world.judge_by(INGRESS_POLICY, EGRESS_POLICY);
    world
        .machine
        .repeat(Ingress, LOOPBACK, &denied, 10)
        .unwrap();
    assert_eq!(
        world.machine.dataplane.events_lost().unwrap(),
        (0, 0),
        "off means off"
    );
}

#[test]
fn counters_count_packets_and_bytes() {
    let mut world = World::new();
    let denied = incoming(STRANGER, 0, 1, 80, Tcp(SYN));
    let count = |world: &World| {
        let rows = world.machine.dataplane.counters().unwrap();
        let wanted = (Ingress, Reason::PolicyDenied);
        let row = rows
            .iter()
            .find(|row| (row.direction, row.reason) == wanted)
            .unwrap();
        (row.packets, row.bytes)
    };
    let before = count(&world);
    world
        .machine
        .repeat(Ingress, LOOPBACK, &denied, 100)
        .unwrap();
    let after = count(&world);
    assert_eq!(after.0 - before.0, 100);
    assert_eq!(after.1 - before.1, 100 * denied.len() as u64);
}
