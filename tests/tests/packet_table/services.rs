//! Packets to Services: let through with a mark by `from_pod`, judged by `exit` or `to_pod` with the addresses
//! that they were translated to.

use std::net::IpAddr;

use policy_common::endpoint::Endpoint;
use policy_common::service::MarkBits;
use policy_common::verdict::Reason::{
    self, Deferred, Established, FlowRevoked, FragmentUnknown, NoEndpoint, NotIsolated, OwnAddress,
    PolicyAllowed, PolicyDenied,
};
use policy_core::op::Op;
use portcullis_tests::packet::Kind::{EchoRequest, Tcp, Udp};
use portcullis_tests::packet::flags::{ACK, SYN, SYN_ACK};
use portcullis_tests::packet::{ETH, icmp_error, v4, v6};
use portcullis_tests::tables_by_hand::{Page, Peers, Ports, endpoint, identity};
use portcullis_tests::testrun::{LOOPBACK, Passage};

use crate::fragments::fragment;
use crate::world::{
    ALLOW_ALL, DENY_ALL, EGRESS_POLICY, Egress, FAMILIES, FRIEND, INGRESS_POLICY, Ingress, POD,
    STRANGER, World, between, incoming, outgoing,
};

/// A Service's address, which stands for a friend or a stranger.
const SERVICE: [IpAddr; 2] = [v4(10, 96, 0, 10), v6(0x1000)];
/// What a masqueraded packet comes from.
const NODE: [IpAddr; 2] = [v4(192, 168, 7, 1), v6(0x2000)];
/// The interface of the pod when another one is looked at on the loopback interface.
const ELSEWHERE: u32 = 900;
/// A mark of somebody else's.
const OTHERS: u32 = 0x4001;

/// The programs that judge what leaves the node, and whether they want an Ethernet header.
const EXITS: [(&str, bool); 2] = [("exit", true), ("exit_l3", false)];

impl World {
    /// The pod with an address that is translated later, and its slot known.
    fn with_service() -> Self {
        let mut world = Self::new();
        for address in SERVICE.into_iter().chain(NODE) {
            world.machine.put_service(address).unwrap();
        }
        world
    }

    fn slot(&self) -> u32 {
        self.endpoint.id & 0xffff
    }

    /// The pod's mark.
    fn mark(&self) -> u32 {
        MarkBits::DEFAULT.with_slot(OTHERS, self.slot())
    }

    /// What `from_pod` does: passes and marks.
    #[track_caller]
    fn expect_deferred(&mut self, what: &str, packet: &[u8]) {
        let passage = self.machine.pass("from_pod", LOOPBACK, packet, OTHERS);
        let expected = Passage {
            passed: true,
            mark: self.mark(),
            counted: vec![(Egress, Deferred)],
        };
        assert_eq!(passage.unwrap(), expected, "{what}");
    }

    /// What a program does with a packet that bears the pod's mark.
    #[track_caller]
    fn expect_judged(&mut self, what: &str, program: &str, packet: &[u8], reasons: &[Reason]) {
        let directions = [Egress, Ingress];
        let mut counted: Vec<_> = directions
            .into_iter()
            .zip(reasons.iter().copied())
            .collect();
        counted.sort_unstable();
        let mark = self.mark();
        let passage = self.machine.pass(program, LOOPBACK, packet, mark).unwrap();
        assert_eq!(passage.counted, counted, "{what}, {program}");
        let passes = reasons
            .iter()
            .all(|reason| reason.verdict() == policy_common::verdict::Verdict::Pass);
        assert_eq!(passage.passed, passes, "{what}, {program}");
        if passes {
            assert_eq!(passage.mark, OTHERS, "{what}, {program}: only our bits go");
        }
    }

    /// What both exits do.
    #[track_caller]
    fn expect_leaving(&mut self, what: &str, packet: &[u8], reason: Reason) {
        for (program, ethernet) in EXITS {
            let bytes = if ethernet {
                packet.to_vec()
            } else {
                without_ethernet(packet)
            };
            self.expect_judged(what, program, &bytes, &[reason]);
            // The first program's verdict is what the second one finds.
            if reason == PolicyAllowed {
                break;
            }
        }
    }

    /// Puts another endpoint on the loopback interface, and the pod elsewhere.
    fn enter_neighbour(&mut self, ingress: u32, addresses: &[IpAddr; 2]) -> Endpoint {
        let id = self.endpoint.id | 0x7000_0000;
        let neighbour = endpoint(id.wrapping_add(0x8000), addresses, ingress, 0);
        let rows = [(ELSEWHERE, self.endpoint), (LOOPBACK, neighbour)];
        let ops = rows.map(|(ifindex, endpoint)| Op::PutEndpoint { ifindex, endpoint });
        self.machine.apply(&ops).unwrap();
        neighbour
    }
}

#[test]
fn deferred_then_judged_by_the_translated_destination() {
    for family in FAMILIES {
        let mut world = World::with_service();
        let syn = outgoing(SERVICE, family, 5000, 80, Tcp(SYN));
        world.expect_deferred("SYN", &syn);
        let to_friend = outgoing(FRIEND, family, 5000, 443, Tcp(SYN));
        world.expect_leaving("SYN to a friend", &to_friend, PolicyAllowed);
        world.expect_leaving("again", &to_friend, Established);
        let answer = incoming(SERVICE, family, 80, 5000, Tcp(SYN_ACK));
        world.expect("the answer, translated back", Ingress, &answer, Established);
        let data = outgoing(SERVICE, family, 5000, 80, Tcp(ACK));
        world.expect_deferred("data", &data);
        let data = outgoing(FRIEND, family, 5000, 443, Tcp(ACK));
        world.expect_leaving("data to a friend", &data, Established);

        let syn = outgoing(SERVICE, family, 5001, 80, Tcp(SYN));
        world.expect_deferred("another connection", &syn);
        for (remote, port) in [(STRANGER, 443), (FRIEND, 80), (SERVICE, 80)] {
            let packet = outgoing(remote, family, 5001, port, Tcp(SYN));
            world.expect_leaving("to a backend that no rule names", &packet, PolicyDenied);
        }
        let query = outgoing(SERVICE, family, 5002, 53, Udp);
        world.expect_deferred("UDP", &query);
        let to_stranger = outgoing(STRANGER, family, 5002, 53, Udp);
        world.expect_leaving("UDP to anyone's port 53", &to_stranger, PolicyAllowed);
        world.expect_leaving("and again", &to_stranger, Established);
    }
}

#[test]
fn an_unmarked_packet_is_nobodys() {
    for family in FAMILIES {
        let mut world = World::with_service();
        let packet = outgoing(STRANGER, family, 5000, 443, Tcp(SYN));
        for (program, _) in EXITS {
            let passage = world
                .machine
                .pass(program, LOOPBACK, &packet, OTHERS)
                .unwrap();
            let untouched = Passage {
                passed: true,
                mark: OTHERS,
                counted: vec![],
            };
            assert_eq!(passage, untouched);
        }
        // A slot without an endpoint: whose egress this is, nobody knows any more.
        let orphan = MarkBits::DEFAULT.with_slot(OTHERS, 0xfffe);
        let passage = world
            .machine
            .pass("exit", LOOPBACK, &packet, orphan)
            .unwrap();
        assert_eq!(
            (passage.passed, passage.counted),
            (false, vec![(Egress, NoEndpoint)])
        );
    }
}

#[test]
fn what_isolation_says() {
    for family in FAMILIES {
        let mut world = World::with_service();
        let other = outgoing(STRANGER, family, 4000, 80, Tcp(SYN));
        let to_service = outgoing(SERVICE, family, 4000, 80, Tcp(ACK));
        world.judge_by(INGRESS_POLICY, 0);
        world.expect_deferred("isolated for ingress only", &to_service);
        world.expect_leaving("and judged as such", &other, NotIsolated);
        world.judge_by(0, DENY_ALL);
        world.expect_deferred("isolated for egress only", &to_service);
        world.expect_leaving("and denied", &other, PolicyDenied);
        world.judge_by(0, 0);
        world.expect("not isolated", Egress, &to_service, NotIsolated);
        // Where it arrives, the first packet of a connection tells who sent it.
        let first = outgoing(SERVICE, family, 4000, 80, Tcp(SYN));
        world.expect_deferred("not isolated, SYN", &first);
        world.expect_judged("not isolated, SYN", "exit", &first, &[NotIsolated]);
        let datagram = outgoing(SERVICE, family, 4000, 53, Udp);
        world.expect("not isolated, UDP", Egress, &datagram, NotIsolated);
    }
}

#[test]
fn what_goes_straight_is_judged_at_once() {
    for family in FAMILIES {
        let mut world = World::with_service();
        world.judge_by(INGRESS_POLICY, ALLOW_ALL);
        let straight = outgoing(FRIEND, family, 5000, 443, Tcp(SYN));
        world.expect("no Service", Egress, &straight, PolicyAllowed);
        // A connection that the other side opened is no business of Services, whatever its address.
        let opened = incoming(SERVICE, family, 6000, 80, Tcp(SYN));
        world.expect(
            "from an address that no rule names",
            Ingress,
            &opened,
            PolicyDenied,
        );
        world.judge_by(ALLOW_ALL, DENY_ALL);
        world.expect("allowed", Ingress, &opened, PolicyAllowed);
        let answer = outgoing(SERVICE, family, 80, 6000, Tcp(SYN_ACK));
        world.expect(
            "its answer is no new connection",
            Egress,
            &answer,
            Established,
        );
    }
}

#[test]
fn a_change_cuts_both_ways_and_heals() {
    for family in FAMILIES {
        let mut world = World::with_service();
        let out = |kind| outgoing(SERVICE, family, 5000, 80, kind);
        let back = |kind| incoming(SERVICE, family, 80, 5000, kind);
        let translated = outgoing(FRIEND, family, 5000, 443, Tcp(ACK));
        world.expect_deferred("SYN", &out(Tcp(SYN)));
        let first = outgoing(FRIEND, family, 5000, 443, Tcp(SYN));
        world.expect_judged("SYN", "exit", &first, &[PolicyAllowed]);
        world.expect("SYN ACK", Ingress, &back(Tcp(SYN_ACK)), Established);
        world.expect_deferred("ACK", &out(Tcp(ACK)));
        world.expect_judged("ACK", "exit", &translated, &[Established]);

        world.judge_by(INGRESS_POLICY, DENY_ALL);
        world.expect(
            "until the pod speaks",
            Ingress,
            &back(Tcp(ACK)),
            Established,
        );
        world.expect_deferred("after the change", &out(Tcp(ACK)));
        world.expect_judged("after the change", "exit", &translated, &[PolicyDenied]);
        world.expect(
            "the way back is cut too",
            Ingress,
            &back(Tcp(ACK)),
            FlowRevoked,
        );
        world.expect_deferred("still judged where it leaves", &out(Tcp(ACK)));
        world.expect_judged("still", "exit", &translated, &[PolicyDenied]);

        world.judge_by(INGRESS_POLICY, EGRESS_POLICY);
        world.expect_deferred("allowed again", &out(Tcp(ACK)));
        world.expect_judged("allowed again", "exit", &translated, &[PolicyAllowed]);
        world.expect(
            "and so are the answers",
            Ingress,
            &back(Tcp(ACK)),
            Established,
        );
    }
}

#[test]
fn another_backend_opens_the_way_back_again() {
    for family in FAMILIES {
        let mut world = World::with_service();
        let out = outgoing(SERVICE, family, 5000, 53, Udp);
        let back = incoming(SERVICE, family, 53, 5000, Udp);
        let ports = Ports::One(policy_common::flow::protocol::UDP, 5353);
        let page = Page::isolating(40).allow(Peers::Identity(41), ports);
        world.machine.apply(&page.ops()).unwrap();
        let backends = [v4(10, 244, 9, 1), v6(0x91)];
        world
            .machine
            .apply(&[identity(backends[family], 41)])
            .unwrap();
        let allowed = outgoing(backends, family, 5000, 5353, Udp);
        let denied = outgoing(STRANGER, family, 5000, 53, Udp);
        world.expect_deferred("query", &out);
        world.expect_judged("query", "exit", &denied, &[PolicyAllowed]);
        world.expect("answer", Ingress, &back, Established);
        world.judge_by(INGRESS_POLICY, 40);
        world.expect_deferred("after the change", &out);
        world.expect_judged(
            "backend not allowed any more",
            "exit",
            &denied,
            &[PolicyDenied],
        );
        world.expect("its answer", Ingress, &back, FlowRevoked);
        world.expect_deferred("and when the Service has another backend", &out);
        world.expect_judged("it is judged by that", "exit", &allowed, &[PolicyAllowed]);
        world.expect("answer", Ingress, &back, Established);
    }
}

#[test]
fn a_neighbour_judges_both_ends() {
    for family in FAMILIES {
        let mut world = World::with_service();
        let syn = outgoing(FRIEND, family, 5000, 443, Tcp(SYN));
        world.enter_neighbour(0, &FRIEND);
        world.expect_judged("open", "to_pod", &syn, &[PolicyAllowed, PolicyAllowed]);
        let data = outgoing(FRIEND, family, 5001, 443, Tcp(ACK));
        world.expect_judged("open", "to_pod", &data, &[PolicyAllowed, NotIsolated]);
        world.expect_judged("open", "to_pod", &data, &[Established, NotIsolated]);
        world.enter_neighbour(DENY_ALL, &FRIEND);
        world.expect_judged("closed", "to_pod", &syn, &[Established, PolicyDenied]);
        let wrong_port = outgoing(FRIEND, family, 5002, 80, Tcp(SYN));
        world.expect_judged(
            "the sender's policy",
            "to_pod",
            &wrong_port,
            &[PolicyDenied],
        );
    }
}

#[test]
fn a_masqueraded_packet_comes_from_the_pod_that_sent_it() {
    for family in FAMILIES {
        let mut world = World::with_service();
        // Only the pod may come.
        let page = Page::isolating(50).allow(Peers::Identity(51), Ports::Any);
        world.machine.apply(&page.ops()).unwrap();
        world.machine.apply(&[identity(POD[family], 51)]).unwrap();
        let mut neighbour = world.enter_neighbour(50, &FRIEND);
        let masqueraded = |kind| between(NODE, FRIEND, family, 61000, 443, kind);
        let answer = between(FRIEND, NODE, family, 443, 61000, Tcp(SYN_ACK));
        let syn = masqueraded(Tcp(SYN));
        world.expect("without a mark", Ingress, &syn, PolicyDenied);
        world.expect_judged("marked", "to_pod", &syn, &[PolicyAllowed, PolicyAllowed]);
        world.expect("the answer", Egress, &answer, Established);
        // A change: the first packet that is judged anew may be one that goes back.
        neighbour.epoch += 1;
        let put = |endpoint| Op::PutEndpoint {
            ifindex: LOOPBACK,
            endpoint,
        };
        world.machine.apply(&[put(neighbour)]).unwrap();
        let data = between(FRIEND, NODE, family, 443, 61000, Tcp(ACK));
        world.expect("judged by the true source", Egress, &data, Established);
        neighbour.epoch += 1;
        neighbour.ingress_policy = DENY_ALL;
        world.machine.apply(&[put(neighbour)]).unwrap();
        world.expect("cut", Egress, &data, PolicyDenied);
        world
            .machine
            .apply(&[Op::DeleteAddress {
                address: POD[family],
            }])
            .unwrap();
    }
}

#[test]
fn a_pod_reaches_itself_through_its_service() {
    for family in FAMILIES {
        for (ingress, egress) in [(DENY_ALL, DENY_ALL), (DENY_ALL, 0), (0, DENY_ALL)] {
            let mut world = World::with_service();
            world.judge_by(ingress, egress);
            let syn = outgoing(SERVICE, family, 5000, 80, Tcp(SYN));
            world.expect_deferred("out", &syn);
            let egress_reason = if egress == 0 { NotIsolated } else { OwnAddress };
            let back_in = between(NODE, POD, family, 61000, 8080, Tcp(SYN));
            world.expect_judged(
                "in again",
                "to_pod",
                &back_in,
                &[egress_reason, PolicyAllowed],
            );
            let answer = between(POD, NODE, family, 8080, 61000, Tcp(SYN_ACK));
            world.expect("the answer out", Egress, &answer, Established);
            let answer = incoming(SERVICE, family, 80, 5000, Tcp(SYN_ACK));
            world.expect("and in again", Ingress, &answer, Established);
            world.judge_by(ingress, egress);
            let data = between(POD, NODE, family, 8080, 61000, Tcp(ACK));
            world.expect("after a change", Egress, &data, Established);
        }
    }
}

#[test]
fn fragments_and_icmp() {
    for family in FAMILIES {
        let mut world = World::with_service();
        let ping = outgoing(SERVICE, family, 77, 0, EchoRequest);
        world.expect_deferred("ping", &ping);
        let ping = outgoing(STRANGER, family, 77, 0, EchoRequest);
        world.expect_leaving("judged like any other", &ping, PolicyDenied);

        let code = [(3, 3), (1, 4)][family];
        world.expect_deferred("query", &outgoing(SERVICE, family, 5000, 53, Udp));
        let query = outgoing(FRIEND, family, 5000, 53, Udp);
        world.expect_judged("query", "exit", &query, &[PolicyAllowed]);
        let answer = incoming(SERVICE, family, 53, 5000, Udp);
        world.expect("answer", Ingress, &answer, Established);
        let error = icmp_error(POD[family], SERVICE[family], code.0, code.1, &answer, 8);
        world.expect_deferred("an error about an answer", &error);
        let answer = incoming(FRIEND, family, 53, 5000, Udp);
        let error = icmp_error(POD[family], FRIEND[family], code.0, code.1, &answer, 8);
        world.expect_leaving("where it leaves", &error, Established);
        let answer = incoming(STRANGER, family, 80, 5000, Tcp(ACK));
        let error = icmp_error(POD[family], STRANGER[family], code.0, code.1, &answer, 8);
        world.expect_leaving("about what is not allowed", &error, PolicyDenied);
        world.judge_by(INGRESS_POLICY, EGRESS_POLICY);
        let unsent = outgoing(SERVICE, family, 5000, 53, Udp);
        let error = icmp_error(NODE[family], POD[family], code.0, code.1, &unsent, 8);
        world.expect("an error from the node", Ingress, &error, Reason::IcmpError);
    }
}

#[test]
fn fragments_of_a_deferred_datagram() {
    for family in FAMILIES {
        let mut world = World::with_service();
        let parts = |remote: [IpAddr; 2], port| {
            let whole = outgoing(remote, family, 5000, port, Udp);
            [(0, true), (100, false)]
                .map(|(offset, more)| fragment(family, &whole, offset, more, 9))
        };
        let [first, later] = parts(SERVICE, 53);
        world.expect_deferred("first", &first);
        world.expect_deferred("later", &later);
        let [first, later] = parts(FRIEND, 53);
        world.expect_judged("first", "exit", &first, &[PolicyAllowed]);
        world.expect_judged("later", "exit", &later, &[Established]);
        let [_, later] = parts(STRANGER, 53);
        world.expect_judged("first not seen", "exit", &later, &[FragmentUnknown]);
    }
}

/// The packet as it is on an interface without a link-layer header. The kernel's test run takes bytes 12 and 13
/// for an Ethernet type: they are the source address's, which nobody looks at any more where a packet leaves.
fn without_ethernet(packet: &[u8]) -> Vec<u8> {
    let mut bytes = packet[ETH..].to_vec();
    bytes[12..14].copy_from_slice(&packet[12..14]);
    bytes
}
