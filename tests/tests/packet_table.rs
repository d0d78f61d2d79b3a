//! Packet tables: a packet, the tables it meets, the verdict, through the real object.

use policy_common::endpoint::Endpoint;
use policy_common::verdict::{Direction, Reason};
use policy_core::op::Op;
use portcullis_tests::packet::{Kind, at, flags, frame};
use portcullis_tests::testrun::{LOOPBACK, Machine};

#[test]
fn unisolated() {
    let mut machine = Machine::new().unwrap();
    let packet = frame(
        at("10.0.0.1:1000"),
        at("10.0.0.2:80"),
        Kind::Tcp(flags::SYN),
    );
    let outcome = machine.run(Direction::Egress, LOOPBACK, &packet).unwrap();
    assert_eq!(outcome.reason, Reason::NoEndpoint);
    let endpoint = Endpoint {
        id: 1,
        epoch: 1,
        flags: 1,
        ipv4: policy_common::address::AddressV4 {
            octets: [10, 0, 0, 1],
        },
        ..Default::default()
    };
    machine
        .apply(&[Op::PutEndpoint {
            ifindex: LOOPBACK,
            endpoint,
        }])
        .unwrap();
    let outcome = machine.run(Direction::Egress, LOOPBACK, &packet).unwrap();
    assert_eq!(outcome.reason, Reason::PolicyAllowed);
}
