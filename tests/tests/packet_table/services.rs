//! Packets to Services: let through by `from_pod` with what names their endpoint, judged by `exit` or `to_pod` with the
//! addresses that they were translated to; and their answers, which wait for that.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use policy_common::carrier::{Tag, encode};
use policy_common::endpoint::Endpoint;
use policy_common::verdict::Reason::{
    self, CarrierDamaged, CarrierForeign, Deferred, Established, FlowRevoked, FragmentUnknown,
    NoEndpoint, NotIsolated, OwnAddress, PolicyAllowed, PolicyDenied, ServiceUnverified,
};
use policy_core::op::Op;
use portcullis_tests::packet::Kind::{EchoRequest, Tcp, Udp};
use portcullis_tests::packet::flags::{ACK, RST, SYN, SYN_ACK};
use portcullis_tests::packet::{ETH, icmp_error, v4, v6};
use portcullis_tests::tables_by_hand::{Page, Peers, Ports, endpoint, identity};
use portcullis_tests::testrun::{Carried, LOOPBACK, Passage};

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
/// What somebody else wrote: no token, and no tag of ours.
const FOREIGN: Carried = Carried {
    hash: 0x1234_5678,
    tag: 0x1111,
    ingress: LOOPBACK,
};

/// The programs that judge what leaves the node, and what their packets begin with.
const EXITS: [(&str, usize); 3] = [("exit", ETH), ("exit_l3", 0), ("exit_ib", 24)];

impl World {
    /// The pod with an address that is translated later.
    fn with_service() -> Self {
        let mut world = Self::new();
        for address in SERVICE {
            world.machine.put_service(address).unwrap();
        }
        for address in NODE {
            world.put_node_address(address);
        }
        world
    }

    fn slot(&self) -> u32 {
        self.endpoint.id & 0xfff
    }

    /// What `from_pod` does: passes, and says whose it is. Returns that.
    #[track_caller]
    fn expect_sent(&mut self, what: &str, packet: &[u8], kind: u32, reason: Reason) -> Carried {
        let forged = Carried {
            hash: encode(7, 0),
            tag: Tag::JUDGED | 7,
            ingress: LOOPBACK,
        };
        for before in [FOREIGN, forged] {
            let passage = self.machine.pass("from_pod", LOOPBACK, packet, before);
            let passage = passage.unwrap();
            assert_eq!(passage.counted, [(Egress, reason)], "{what}");
            let slot = self.slot();
            let token = if kind == Tag::SENT { 0 } else { slot };
            assert_eq!(passage.carried.named(), (token, kind | slot), "{what}");
            if before == forged {
                return passage.carried;
            }
        }
        unreachable!("the last was forged")
    }

    /// A packet that is to be judged, of a flow that no judge has granted yet.
    #[track_caller]
    fn expect_asking(&mut self, what: &str, packet: &[u8]) -> Carried {
        self.expect_sent(what, packet, Tag::ASKING, Deferred)
    }

    /// A packet that is to be judged, of a flow that was granted.
    #[track_caller]
    fn expect_deferred(&mut self, what: &str, packet: &[u8]) -> Carried {
        self.expect_sent(what, packet, Tag::DEFERRED, Deferred)
    }

    /// What a program does with a packet that carries this.
    #[track_caller]
    fn expect_judged(
        &mut self,
        what: &str,
        program: &str,
        packet: &[u8],
        carried: Carried,
        reasons: &[Reason],
    ) {
        let directions = [Egress, Ingress];
        let mut counted: Vec<_> = directions
            .into_iter()
            .zip(reasons.iter().copied())
            .collect();
        counted.sort_unstable();
        let passage = self.machine.pass(program, LOOPBACK, packet, carried);
        let passage = passage.unwrap();
        assert_eq!(passage.counted, counted, "{what}, {program}");
        let slot = carried.tag & Tag::SLOT;
        if program == "to_pod" && passage.passed {
            assert_eq!(
                passage.carried.named(),
                (0, 0),
                "{what}: a pod learns nothing"
            );
        } else if passage.passed {
            let judged = (slot, Tag::JUDGED | slot);
            assert_eq!(passage.carried.named(), judged, "{what}, {program}");
            // On its way through another device.
            let again = self
                .machine
                .pass(program, LOOPBACK, packet, passage.carried);
            assert_eq!(again.unwrap().counted, [], "{what}, {program}");
        }
    }

    /// What every exit does.
    #[track_caller]
    fn expect_leaving(&mut self, what: &str, packet: &[u8], carried: Carried, reason: Reason) {
        for (program, header) in EXITS {
            let bytes = with_header(packet, header);
            self.expect_judged(what, program, &bytes, carried, &[reason]);
            // The first program's verdict is what the others find.
            if reason == PolicyAllowed {
                break;
            }
        }
    }

    /// Puts another endpoint on the loopback interface, and the pod elsewhere.
    fn enter_neighbour(&mut self, ingress: u32, addresses: &[IpAddr; 2]) -> Endpoint {
        let id = (self.endpoint.id | 0x7000_0000) ^ 0x800;
        let neighbour = endpoint(id, addresses, ingress, 0);
        let rows = [(ELSEWHERE, self.endpoint), (LOOPBACK, neighbour)];
        let ops = rows.map(|(ifindex, endpoint)| Op::PutEndpoint { ifindex, endpoint });
        self.machine.apply(&ops).unwrap();
        neighbour
    }
}

/// The packet with `length` bytes of a link's header. The kernel's test run takes bytes 12 and 13 for an Ethernet type:
/// without a header they are the source address's, which nobody looks at any more where a packet leaves.
fn with_header(packet: &[u8], length: usize) -> Vec<u8> {
    if length == ETH {
        return packet.to_vec();
    }
    let mut bytes = [&vec![0; length], &packet[ETH..]].concat();
    bytes[12..14].copy_from_slice(&packet[12..14]);
    bytes
}

#[test]
fn deferred_then_judged_by_the_translated_destination() {
    if !World::new().machine.takes_ingress().unwrap() {
        return;
    }
    for family in FAMILIES {
        let mut world = World::with_service();
        let syn = outgoing(SERVICE, family, 5000, 80, Tcp(SYN));
        let carried = world.expect_asking("SYN", &syn);
        let to_friend = outgoing(FRIEND, family, 5000, 443, Tcp(SYN));
        world.expect_leaving("SYN to a friend", &to_friend, carried, PolicyAllowed);
        world.expect_leaving("again", &to_friend, carried, Established);
        let answer = incoming(SERVICE, family, 80, 5000, Tcp(SYN_ACK));
        world.expect("the answer, translated back", Ingress, &answer, Established);
        let data = outgoing(SERVICE, family, 5000, 80, Tcp(ACK));
        let carried = world.expect_deferred("data", &data);
        let data = outgoing(FRIEND, family, 5000, 443, Tcp(ACK));
        world.expect_leaving("data to a friend", &data, carried, Established);

        let syn = outgoing(SERVICE, family, 5001, 80, Tcp(SYN));
        let carried = world.expect_asking("another connection", &syn);
        for (remote, port) in [(STRANGER, 443), (FRIEND, 80), (SERVICE, 80)] {
            let packet = outgoing(remote, family, 5001, port, Tcp(SYN));
            world.expect_leaving(
                "to a backend that no rule names",
                &packet,
                carried,
                PolicyDenied,
            );
        }
        let query = outgoing(SERVICE, family, 5002, 53, Udp);
        let carried = world.expect_asking("UDP", &query);
        let to_stranger = outgoing(STRANGER, family, 5002, 53, Udp);
        world.expect_leaving(
            "UDP to anyone's port 53",
            &to_stranger,
            carried,
            PolicyAllowed,
        );
        world.expect_leaving("and again", &to_stranger, carried, Established);
        for what in [
            "not answered",
            "not answered, by the fast path",
            "and once more",
        ] {
            world.expect_deferred(what, &query);
        }
    }
}

#[test]
fn answers_wait_for_a_judge() {
    if !World::new().machine.takes_ingress().unwrap() {
        return;
    }
    for family in FAMILIES {
        let mut world = World::with_service();
        let out = |kind| outgoing(SERVICE, family, 5000, 80, kind);
        let back = |kind| incoming(SERVICE, family, 80, 5000, kind);
        let carried = world.expect_asking("SYN", &out(Tcp(SYN)));
        world.expect(
            "no judge saw it",
            Ingress,
            &back(Tcp(SYN_ACK)),
            ServiceUnverified,
        );
        world.expect("not even data", Ingress, &back(Tcp(ACK)), ServiceUnverified);
        let refused = outgoing(SERVICE, family, 5009, 80, Tcp(SYN));
        world.expect_asking("SYN", &refused);
        let refusal = incoming(SERVICE, family, 80, 5009, Tcp(RST));
        world.expect("a refusal opens nothing", Ingress, &refusal, Established);
        let translated = outgoing(FRIEND, family, 5000, 443, Tcp(SYN));
        world.expect_judged("SYN", "exit", &translated, carried, &[PolicyAllowed]);
        world.expect("now it did", Ingress, &back(Tcp(SYN_ACK)), Established);
        world.expect_deferred("and goes on", &out(Tcp(ACK)));

        // A change: until the pod speaks nothing is asked; then the judge has a second.
        world.judge_by(INGRESS_POLICY, EGRESS_POLICY);
        world.expect("nothing was asked", Ingress, &back(Tcp(ACK)), Established);
        world.expect_asking("after the change", &out(Tcp(ACK)));
        let asked = Instant::now();
        world.expect("not answered yet", Ingress, &back(Tcp(ACK)), Established);
        while world.run(Ingress, &back(Tcp(ACK))) == Established {
            assert!(asked.elapsed() < Duration::from_secs(30), "never closed");
        }
        assert!(asked.elapsed() > Duration::from_millis(800));
        world.expect(
            "no judge saw it",
            Ingress,
            &back(Tcp(ACK)),
            ServiceUnverified,
        );
        let carried = world.expect_asking("still asking", &out(Tcp(ACK)));
        let translated = outgoing(FRIEND, family, 5000, 443, Tcp(ACK));
        world.expect_judged("and judged", "exit", &translated, carried, &[PolicyAllowed]);
        world.expect("goes on", Ingress, &back(Tcp(ACK)), Established);

        let query = outgoing(SERVICE, family, 5002, 53, Udp);
        world.expect_asking("UDP", &query);
        let answer = incoming(SERVICE, family, 53, 5002, Udp);
        world.expect("UDP, no judge", Ingress, &answer, ServiceUnverified);
    }
}

#[test]
fn what_is_not_confirmed_is_nobodys() {
    if !World::new().machine.takes_ingress().unwrap() {
        return;
    }
    for family in FAMILIES {
        let mut world = World::with_service();
        let packet = outgoing(STRANGER, family, 5000, 443, Tcp(SYN));
        let slot = world.slot();
        let elsewhere = |carried: Carried| Carried {
            ingress: ELSEWHERE,
            ..carried
        };
        let whole = Carried::deferred(slot, LOOPBACK);
        let (token, tag) = (whole.hash, whole.tag);
        let with = |hash, tag| Carried {
            hash,
            tag,
            ingress: LOOPBACK,
        };
        let sent = with(token, Tag::SENT | slot);
        for (what, carried, reasons) in [
            ("what others wrote", FOREIGN, &[][..]),
            (
                "a hash that looks like a token",
                elsewhere(with(token, 0)),
                &[CarrierForeign],
            ),
            (
                "a class that looks like a tag",
                elsewhere(with(0, tag)),
                &[CarrierForeign],
            ),
            ("judged before", with(token, Tag::JUDGED | slot), &[]),
            ("whole, from anywhere", elsewhere(whole), &[PolicyDenied]),
            (
                "the tag was wiped",
                with(token, 0),
                &[PolicyDenied, CarrierDamaged],
            ),
            (
                "the tag was overwritten",
                with(token, 0x1234),
                &[PolicyDenied, CarrierDamaged],
            ),
            (
                "the hash was wiped",
                with(0, tag),
                &[PolicyDenied, CarrierDamaged],
            ),
            (
                "the hash was overwritten",
                with(FOREIGN.hash, tag),
                &[PolicyDenied, CarrierDamaged],
            ),
            (
                "another's tag",
                with(token, Tag::JUDGED | 0x7ff),
                &[PolicyDenied, CarrierDamaged],
            ),
            (
                "of a packet that needed no judge",
                sent,
                &[PolicyDenied, CarrierDamaged],
            ),
        ] {
            let passage = world
                .machine
                .pass("exit", LOOPBACK, &packet, carried)
                .unwrap();
            let counted: Vec<_> = reasons.iter().map(|reason| (Egress, *reason)).collect();
            assert_eq!(passage.counted, counted, "{what}");
            if reasons.is_empty() || reasons == [CarrierForeign] {
                let untouched = (passage.carried.tag, passage.carried.hash);
                assert_eq!(
                    untouched,
                    (carried.tag, carried.hash),
                    "{what}: stays as it was"
                );
            }
        }
        // A slot without an endpoint: whose egress this is, nobody knows any more.
        let orphan = Carried::deferred(0xffe, LOOPBACK);
        let passage = world
            .machine
            .pass("exit", LOOPBACK, &packet, orphan)
            .unwrap();
        let expected = Passage {
            passed: false,
            counted: vec![(Egress, NoEndpoint)],
            carried: passage.carried,
        };
        assert_eq!(passage, expected);
    }
}

#[test]
fn a_bridge_is_many_pods_interface() {
    if !World::new().machine.takes_ingress().unwrap() {
        return;
    }
    const BRIDGE: u32 = 700;
    for family in FAMILIES {
        let mut world = World::with_service();
        let slot = world.slot();
        world
            .machine
            .dataplane
            .set_master(LOOPBACK, BRIDGE)
            .unwrap();
        let packet = outgoing(STRANGER, family, 5000, 443, Tcp(SYN));
        let whole = Carried::deferred(slot, BRIDGE);
        let asking = world.expect_asking("SYN", &outgoing(SERVICE, family, 5000, 80, Tcp(SYN)));
        for (what, carried, reasons) in [
            ("whole", whole, &[PolicyDenied][..]),
            (
                "the hash was wiped",
                Carried { hash: 0, ..whole },
                &[PolicyDenied, CarrierDamaged],
            ),
            (
                "a random hash of another pod's packet",
                Carried {
                    tag: Tag::SENT | 0x7ff,
                    ..whole
                },
                &[CarrierForeign],
            ),
            (
                "a random hash without a tag",
                Carried { tag: 0, ..whole },
                &[CarrierForeign],
            ),
            (
                "the tag of one that asked was wiped",
                Carried {
                    tag: 0,
                    ingress: BRIDGE,
                    ..asking
                },
                &[PolicyDenied, CarrierDamaged],
            ),
        ] {
            let passage = world
                .machine
                .pass("exit", LOOPBACK, &packet, carried)
                .unwrap();
            let counted: Vec<_> = reasons.iter().map(|reason| (Egress, *reason)).collect();
            assert_eq!(passage.counted, counted, "{what}, family {family}");
        }
        world.machine.dataplane.set_master(LOOPBACK, 0).unwrap();
    }
}

#[test]
fn a_damaged_carrier_still_grants() {
    if !World::new().machine.takes_ingress().unwrap() {
        return;
    }
    for family in FAMILIES {
        let mut world = World::with_service();
        for (port, damage) in [(5000, "tag"), (5001, "hash")] {
            let syn = outgoing(SERVICE, family, port, 80, Tcp(SYN));
            let mut carried = world.expect_asking("SYN", &syn);
            match damage {
                "tag" => carried.tag = 0,
                _ => carried.hash = 0,
            }
            let to_friend = outgoing(FRIEND, family, port, 443, Tcp(SYN));
            let passage = world.machine.pass("exit", LOOPBACK, &to_friend, carried);
            let counted = [(Egress, PolicyAllowed), (Egress, CarrierDamaged)];
            assert_eq!(passage.unwrap().counted, counted, "{damage}");
            let answer = incoming(SERVICE, family, 80, port, Tcp(SYN_ACK));
            world.expect(damage, Ingress, &answer, Established);
        }
    }
}

#[test]
fn what_isolation_says() {
    if !World::new().machine.takes_ingress().unwrap() {
        return;
    }
    for family in FAMILIES {
        let mut world = World::with_service();
        let other = outgoing(STRANGER, family, 4000, 80, Tcp(SYN));
        let to_service = outgoing(SERVICE, family, 4000, 80, Tcp(ACK));
        world.judge_by(INGRESS_POLICY, 0);
        let what = "isolated for ingress only: there is nothing to judge";
        world.expect_sent(
            what,
            &outgoing(SERVICE, family, 4009, 80, Tcp(SYN)),
            Tag::SENT,
            PolicyAllowed,
        );
        world.expect(
            "its answer",
            Ingress,
            &incoming(SERVICE, family, 80, 4009, Tcp(SYN_ACK)),
            Established,
        );
        world.judge_by(0, DENY_ALL);
        let carried = world.expect_asking("isolated for egress only", &to_service);
        world.expect_leaving("and denied", &other, carried, PolicyDenied);
        world.judge_by(0, 0);
        let carried = Carried::deferred(world.slot(), LOOPBACK);
        world.expect_leaving("not isolated any more", &other, carried, NotIsolated);
        world.expect("not isolated", Egress, &to_service, NotIsolated);
        let first = outgoing(SERVICE, family, 4001, 80, Tcp(SYN));
        world.expect_sent("not isolated, SYN", &first, Tag::SENT, PolicyAllowed);
        let datagram = outgoing(SERVICE, family, 4000, 53, Udp);
        world.expect_sent("not isolated, UDP", &datagram, Tag::SENT, NotIsolated);
    }
}

#[test]
fn what_goes_straight_is_judged_at_once() {
    if !World::new().machine.takes_ingress().unwrap() {
        return;
    }
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
    if !World::new().machine.takes_ingress().unwrap() {
        return;
    }
    for family in FAMILIES {
        let mut world = World::with_service();
        let out = |kind| outgoing(SERVICE, family, 5000, 80, kind);
        let back = |kind| incoming(SERVICE, family, 80, 5000, kind);
        let translated = outgoing(FRIEND, family, 5000, 443, Tcp(ACK));
        let carried = world.expect_asking("SYN", &out(Tcp(SYN)));
        let first = outgoing(FRIEND, family, 5000, 443, Tcp(SYN));
        world.expect_judged("SYN", "exit", &first, carried, &[PolicyAllowed]);
        world.expect("SYN ACK", Ingress, &back(Tcp(SYN_ACK)), Established);
        let carried = world.expect_deferred("ACK", &out(Tcp(ACK)));
        world.expect_judged("ACK", "exit", &translated, carried, &[Established]);

        world.judge_by(INGRESS_POLICY, DENY_ALL);
        world.expect(
            "until the pod speaks",
            Ingress,
            &back(Tcp(ACK)),
            Established,
        );
        let carried = world.expect_asking("after the change", &out(Tcp(ACK)));
        world.expect_judged(
            "after the change",
            "exit",
            &translated,
            carried,
            &[PolicyDenied],
        );
        world.expect(
            "the way back is cut too",
            Ingress,
            &back(Tcp(ACK)),
            FlowRevoked,
        );
        let carried = world.expect_asking("still judged where it leaves", &out(Tcp(ACK)));
        world.expect_judged("still", "exit", &translated, carried, &[PolicyDenied]);

        world.judge_by(INGRESS_POLICY, EGRESS_POLICY);
        let carried = world.expect_asking("allowed again", &out(Tcp(ACK)));
        world.expect_judged(
            "allowed again",
            "exit",
            &translated,
            carried,
            &[PolicyAllowed],
        );
        world.expect(
            "and so are the answers",
            Ingress,
            &back(Tcp(ACK)),
            Established,
        );
        world.expect_deferred("granted", &out(Tcp(ACK)));
    }
}

#[test]
fn another_backend_opens_the_way_back_again() {
    if !World::new().machine.takes_ingress().unwrap() {
        return;
    }
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
        let carried = world.expect_asking("query", &out);
        world.expect_judged("query", "exit", &denied, carried, &[PolicyAllowed]);
        world.expect("answer", Ingress, &back, Established);
        world.judge_by(INGRESS_POLICY, 40);
        let carried = world.expect_asking("after the change", &out);
        let what = "backend not allowed any more";
        world.expect_judged(what, "exit", &denied, carried, &[PolicyDenied]);
        world.expect("its answer", Ingress, &back, FlowRevoked);
        let carried = world.expect_asking("and when the Service has another backend", &out);
        world.expect_judged(
            "it is judged by that",
            "exit",
            &allowed,
            carried,
            &[PolicyAllowed],
        );
        world.expect("answer", Ingress, &back, Established);
    }
}

#[test]
fn a_neighbour_judges_both_ends() {
    if !World::new().machine.takes_ingress().unwrap() {
        return;
    }
    for family in FAMILIES {
        let mut world = World::with_service();
        let carried = Carried::deferred(world.slot(), ELSEWHERE);
        let syn = outgoing(FRIEND, family, 5000, 443, Tcp(SYN));
        world.enter_neighbour(0, &FRIEND);
        world.expect_judged(
            "open",
            "to_pod",
            &syn,
            carried,
            &[PolicyAllowed, PolicyAllowed],
        );
        let data = outgoing(FRIEND, family, 5001, 443, Tcp(ACK));
        world.expect_judged(
            "open",
            "to_pod",
            &data,
            carried,
            &[PolicyAllowed, NotIsolated],
        );
        world.expect_judged(
            "open",
            "to_pod",
            &data,
            carried,
            &[Established, NotIsolated],
        );
        world.enter_neighbour(DENY_ALL, &FRIEND);
        world.expect_judged(
            "closed",
            "to_pod",
            &syn,
            carried,
            &[Established, PolicyDenied],
        );
        let wrong_port = outgoing(FRIEND, family, 5002, 80, Tcp(SYN));
        let what = "the sender's policy";
        world.expect_judged(what, "to_pod", &wrong_port, carried, &[PolicyDenied]);
    }
}

#[test]
fn a_masqueraded_packet_comes_from_the_pod_that_sent_it() {
    if !World::new().machine.takes_ingress().unwrap() {
        return;
    }
    for family in FAMILIES {
        let mut world = World::with_service();
        // Only the pod may come.
        let page = Page::isolating(50).allow(Peers::Identity(51), Ports::Any);
        world.machine.apply(&page.ops()).unwrap();
        world.machine.apply(&[identity(POD[family], 51)]).unwrap();
        let slot = world.slot();
        let mut neighbour = world.enter_neighbour(50, &FRIEND);
        let masqueraded = |kind| between(NODE, FRIEND, family, 61000, 443, kind);
        let answer = between(FRIEND, NODE, family, 443, 61000, Tcp(SYN_ACK));
        let syn = masqueraded(Tcp(SYN));
        world.expect("from anywhere", Ingress, &syn, PolicyDenied);
        let carried = Carried::deferred(slot, ELSEWHERE);
        let both = [PolicyAllowed, PolicyAllowed];
        world.expect_judged("deferred", "to_pod", &syn, carried, &both);
        world.expect("the answer", Egress, &answer, Established);
        // Nothing isolates its sender, so that nothing is to be judged but whose it is.
        for (what, port, carried) in [
            (
                "tagged",
                61001,
                Carried {
                    hash: 0,
                    tag: Tag::SENT | slot,
                    ingress: ELSEWHERE,
                },
            ),
            (
                "the tag was wiped",
                61002,
                Carried {
                    hash: 0,
                    tag: 0,
                    ingress: ELSEWHERE,
                },
            ),
        ] {
            let query = between(NODE, FRIEND, family, port, 443, Udp);
            let passage = world
                .machine
                .pass("to_pod", LOOPBACK, &query, carried)
                .unwrap();
            assert_eq!(passage.counted, [(Ingress, PolicyAllowed)], "{what}");
        }
        for (what, source, carried) in [
            (
                "a tag that its interface denies",
                NODE,
                Carried {
                    hash: 0,
                    tag: Tag::SENT | slot,
                    ingress: 901,
                },
            ),
            (
                "what was not masqueraded is its source's",
                STRANGER,
                Carried {
                    hash: 0,
                    tag: 0,
                    ingress: ELSEWHERE,
                },
            ),
        ] {
            let query = between(source, FRIEND, family, 61003, 443, Udp);
            let passage = world
                .machine
                .pass("to_pod", LOOPBACK, &query, carried)
                .unwrap();
            assert_eq!(passage.counted, [(Ingress, PolicyDenied)], "{what}");
        }
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
    if !World::new().machine.takes_ingress().unwrap() {
        return;
    }
    for family in FAMILIES {
        for (ingress, egress) in [(DENY_ALL, DENY_ALL), (DENY_ALL, 0), (0, DENY_ALL)] {
            let mut world = World::with_service();
            world.judge_by(ingress, egress);
            let syn = outgoing(SERVICE, family, 5000, 80, Tcp(SYN));
            let mut reasons = vec![PolicyAllowed];
            let carried = if egress == 0 {
                world.expect_sent("out", &syn, Tag::SENT, PolicyAllowed)
            } else {
                reasons.push(OwnAddress);
                world.expect_asking("out", &syn)
            };
            let back_in = between(NODE, POD, family, 61000, 8080, Tcp(SYN));
            let passage = world
                .machine
                .pass("to_pod", LOOPBACK, &back_in, carried)
                .unwrap();
            let mut counted = vec![(Ingress, PolicyAllowed)];
            if egress != 0 {
                counted.push((Egress, OwnAddress));
            }
            assert_eq!(passage.counted, counted, "in again");
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
    if !World::new().machine.takes_ingress().unwrap() {
        return;
    }
    for family in FAMILIES {
        let mut world = World::with_service();
        let ping = outgoing(SERVICE, family, 77, 0, EchoRequest);
        let carried = world.expect_asking("ping", &ping);
        let ping = outgoing(STRANGER, family, 77, 0, EchoRequest);
        world.expect_leaving("judged like any other", &ping, carried, PolicyDenied);

        let code = [(3, 3), (1, 4)][family];
        let carried = world.expect_asking("query", &outgoing(SERVICE, family, 5000, 53, Udp));
        let query = outgoing(FRIEND, family, 5000, 53, Udp);
        world.expect_judged("query", "exit", &query, carried, &[PolicyAllowed]);
        let answer = incoming(SERVICE, family, 53, 5000, Udp);
        world.expect("answer", Ingress, &answer, Established);
        let error = icmp_error(POD[family], SERVICE[family], code.0, code.1, &answer, 8);
        let carried = world.expect_deferred("an error about an answer", &error);
        let elsewhere = icmp_error(POD[family], STRANGER[family], code.0, code.1, &answer, 8);
        world.expect(
            "an error to somebody else",
            Egress,
            &elsewhere,
            PolicyDenied,
        );
        let answer = incoming(FRIEND, family, 53, 5000, Udp);
        let error = icmp_error(POD[family], FRIEND[family], code.0, code.1, &answer, 8);
        world.expect_leaving("where it leaves", &error, carried, Established);
        let elsewhere = icmp_error(POD[family], STRANGER[family], code.0, code.1, &answer, 8);
        world.expect_leaving("to somebody else", &elsewhere, carried, PolicyDenied);
        let answer = incoming(STRANGER, family, 80, 5000, Tcp(ACK));
        let error = icmp_error(POD[family], STRANGER[family], code.0, code.1, &answer, 8);
        world.expect_leaving("about what is not allowed", &error, carried, PolicyDenied);
        world.judge_by(INGRESS_POLICY, EGRESS_POLICY);
        let unsent = outgoing(SERVICE, family, 5000, 53, Udp);
        let error = icmp_error(NODE[family], POD[family], code.0, code.1, &unsent, 8);
        world.expect("an error from the node", Ingress, &error, Reason::IcmpError);
    }
}

#[test]
fn fragments_of_a_deferred_datagram() {
    if !World::new().machine.takes_ingress().unwrap() {
        return;
    }
    for family in FAMILIES {
        let mut world = World::with_service();
        let parts = |remote: [IpAddr; 2], port| {
            let whole = outgoing(remote, family, 5000, port, Udp);
            [(0, true), (100, false)]
                .map(|(offset, more)| fragment(family, &whole, offset, more, 9))
        };
        let [first, later] = parts(SERVICE, 53);
        let carried = world.expect_asking("first", &first);
        world.expect_asking("later", &later);
        let [first, later] = parts(FRIEND, 53);
        world.expect_judged("first", "exit", &first, carried, &[PolicyAllowed]);
        world.expect_judged("later", "exit", &later, carried, &[Established]);
        let [_, later] = parts(STRANGER, 53);
        world.expect_judged(
            "first not seen",
            "exit",
            &later,
            carried,
            &[FragmentUnknown],
        );
        if family == 1 {
            // Made on the way from a larger packet: no interface any more, and no hash that could be trusted.
            let made = Carried {
                hash: 0,
                ingress: 0,
                ..carried
            };
            let passage = world.machine.pass("exit", LOOPBACK, &later, made).unwrap();
            let counted = [(Egress, FragmentUnknown), (Egress, CarrierDamaged)];
            assert_eq!(passage.counted, counted);
        }
    }
}
