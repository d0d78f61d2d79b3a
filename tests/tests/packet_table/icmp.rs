//! ICMP errors.

use std::net::IpAddr;

use policy_common::verdict::Reason::{Established, IcmpError, PolicyAllowed, PolicyDenied};
use portcullis_tests::packet::Kind::{EchoRequest, Tcp, Udp};
use portcullis_tests::packet::flags::{ACK, SYN, SYN_ACK};
use portcullis_tests::packet::{icmp_error, v4, v6};

use crate::world::{
    DENY_ALL, EGRESS_POLICY, Egress, FAMILIES, FRIEND, INGRESS_POLICY, Ingress, POD, STRANGER,
    World, incoming, outgoing,
};

const ROUTER: [IpAddr; 2] = [v4(10, 9, 9, 9), v6(99)];
/// "Fragmentation needed" and "packet too big", by family.
const TOO_BIG: [(u8, u8); 2] = [(3, 4), (2, 0)];
/// "Port unreachable".
const UNREACHABLE: [(u8, u8); 2] = [(3, 3), (1, 4)];

#[test]
fn errors_follow_the_flow_that_they_quote() {
    for family in FAMILIES {
        let mut world = World::new();
        let (too_big, code) = TOO_BIG[family];
        let sent = outgoing(FRIEND, family, 5000, 443, Tcp(SYN));
        let error = icmp_error(ROUTER[family], POD[family], too_big, code, &sent, 8);
        world.expect("before the flow", Ingress, &error, PolicyDenied);
        world.expect("SYN", Egress, &sent, PolicyAllowed);
        world.expect("one-way flow, 8 bytes quoted", Ingress, &error, IcmpError);
        let answer = incoming(FRIEND, family, 443, 5000, Tcp(SYN_ACK));
        world.expect("SYN ACK", Ingress, &answer, Established);
        let data = outgoing(FRIEND, family, 5000, 443, Tcp(ACK));
        let error = icmp_error(ROUTER[family], POD[family], too_big, code, &data, 500);
        world.expect("two-way flow", Ingress, &error, IcmpError);

        let other = outgoing(FRIEND, family, 5001, 443, Tcp(ACK));
        let error = icmp_error(ROUTER[family], POD[family], too_big, code, &other, 8);
        world.expect("another flow", Ingress, &error, PolicyDenied);
        let foreign = incoming(FRIEND, family, 443, 5000, Tcp(ACK));
        let error = icmp_error(ROUTER[family], POD[family], too_big, code, &foreign, 8);
        world.expect("a quote of what others sent", Ingress, &error, PolicyDenied);
        let short = icmp_error(ROUTER[family], POD[family], too_big, code, &data, 7);
        world.expect("a quote without ports", Ingress, &short, PolicyDenied);
    }
}

#[test]
fn errors_that_the_pod_sends() {
    for family in FAMILIES {
        let mut world = World::new();
        world.judge_by(INGRESS_POLICY, DENY_ALL);
        let (unreachable, code) = UNREACHABLE[family];
        let received = incoming(FRIEND, family, 1000, 53, Udp);
        world.expect("datagram", Ingress, &received, PolicyAllowed);
        let error = icmp_error(POD[family], FRIEND[family], unreachable, code, &received, 8);
        world.expect("port unreachable", Egress, &error, IcmpError);
        let elsewhere = icmp_error(
            POD[family],
            STRANGER[family],
            unreachable,
            code,
            &received,
            8,
        );
        let what = "to somebody else it would carry what it quotes";
        world.expect(what, Egress, &elsewhere, PolicyDenied);
        let denied = incoming(STRANGER, family, 1000, 53, Udp);
        let error = icmp_error(POD[family], STRANGER[family], unreachable, code, &denied, 8);
        world.expect("about a denied datagram", Egress, &error, PolicyDenied);
    }
}

#[test]
fn errors_of_a_cut_flow_are_cut() {
    for family in FAMILIES {
        let mut world = World::new();
        let (too_big, code) = TOO_BIG[family];
        let sent = outgoing(FRIEND, family, 5000, 443, Tcp(SYN));
        let error = icmp_error(ROUTER[family], POD[family], too_big, code, &sent, 8);
        world.expect("SYN", Egress, &sent, PolicyAllowed);
        world.judge_by(INGRESS_POLICY, EGRESS_POLICY);
        world.expect("after a change that keeps it", Ingress, &error, IcmpError);
        world.judge_by(INGRESS_POLICY, DENY_ALL);
        world.expect("after a change that cuts it", Ingress, &error, PolicyDenied);
    }
}

#[test]
fn an_error_about_a_ping() {
    for family in FAMILIES {
        let mut world = World::new();
        world.judge_by(DENY_ALL, crate::world::ALLOW_ALL);
        let ask = outgoing(FRIEND, family, 9, 0, EchoRequest);
        world.expect("ask", Egress, &ask, PolicyAllowed);
        let (unreachable, code) = UNREACHABLE[family];
        let error = icmp_error(ROUTER[family], POD[family], unreachable, code, &ask, 8);
        world.expect("unreachable", Ingress, &error, IcmpError);
    }
}

#[test]
fn a_redirect_is_not_waved_through() {
    let mut world = World::new();
    let sent = outgoing(FRIEND, 0, 5000, 443, Tcp(SYN));
    world.expect("SYN", Egress, &sent, PolicyAllowed);
    let redirect = icmp_error(ROUTER[0], POD[0], 5, 1, &sent, 8);
    world.expect("redirect", Ingress, &redirect, PolicyDenied);
}
