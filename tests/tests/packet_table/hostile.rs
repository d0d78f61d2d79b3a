//! Truncated, inconsistent and forged packets.

use policy_common::carrier::Tag;
use policy_common::endpoint::Endpoint;
use policy_common::guard::Guard;
use policy_common::verdict::Reason::{
    self, Malformed, NoEndpoint, NotIsolated, OwnAddress, PolicyAllowed, PolicyDenied, SourceRoute,
    SpoofedSource,
};
use policy_common::verdict::Verdict;
use policy_core::op::Op;
use portcullis_tests::packet::Kind::{Other, Sctp, Tcp, Udp};
use portcullis_tests::packet::flags::{ACK, SYN};
use portcullis_tests::packet::{
    ETH, frame, set_ipv4_length, with_ipv4_options, with_ipv6_extensions,
};
use portcullis_tests::testrun::{Carried, LOOPBACK};

use crate::world::{
    ALLOW_ALL, DENY_ALL, Egress, FAMILIES, FRIEND, Ingress, POD, STRANGER, World, incoming,
    outgoing,
};

#[test]
fn a_packet_cut_anywhere_drops() {
    for family in FAMILIES {
        let mut world = World::new();
        for kind in [Tcp(SYN), Udp, Sctp(1)] {
            let port = match kind {
                Tcp(_) => 80,
                Udp => 53,
                _ => 36412,
            };
            let whole = incoming(FRIEND, family, 1, port, kind);
            let outcome = world.run(Ingress, &whole);
            assert_eq!(outcome.verdict(), Verdict::Pass, "the whole {kind:?}");
            for length in ETH..whole.len() {
                if let Some(reason) = world.run_cut(Ingress, &whole, length) {
                    assert_eq!(
                        reason, Malformed,
                        "{kind:?} cut to {length}, family {family}"
                    );
                }
            }
        }
    }
}

#[test]
fn a_short_header_is_not_completed_by_padding() {
    let mut world = World::new();
    // Total length says 20 + 4: the ports are there, the rest of TCP is padding behind the datagram.
    let mut padded = incoming(FRIEND, 0, 1, 80, Tcp(SYN));
    padded[ETH + 2..ETH + 4].copy_from_slice(&24_u16.to_be_bytes());
    world.expect("TCP", Ingress, &padded, Malformed);
    let mut padded = incoming(FRIEND, 0, 1, 53, Udp);
    padded[ETH + 2..ETH + 4].copy_from_slice(&24_u16.to_be_bytes());
    world.expect("UDP", Ingress, &padded, Malformed);
    let mut padded = incoming(FRIEND, 1, 1, 80, Tcp(SYN));
    padded[ETH + 4..ETH + 6].copy_from_slice(&4_u16.to_be_bytes());
    world.expect("IPv6", Ingress, &padded, Malformed);
    let mut zero = incoming(FRIEND, 0, 1, 80, Tcp(SYN));
    zero[ETH + 2..ETH + 4].copy_from_slice(&[0, 0]);
    world.expect("length 0", Ingress, &zero, Malformed);
    // Legitimate padding, as every small Ethernet frame has it.
    let mut short = incoming(FRIEND, 0, 1, 53, Udp);
    short.resize(60, 0);
    world.expect(
        "padding behind a whole datagram",
        Ingress,
        &short,
        PolicyAllowed,
    );
    let mut nothing = incoming(FRIEND, 0, 1, 80, Other(0));
    nothing.resize(80, 0);
    world.expect("zeros match no port rule", Ingress, &nothing, PolicyDenied);
}

#[test]
fn inconsistent_headers() {
    let mut world = World::new();
    for (what, offset, value) in [
        ("version 5", ETH, 0x55),
        ("version 6 in an IPv4 frame", ETH, 0x65),
        ("a header of 16 bytes", ETH, 0x44),
        ("a header of 60 bytes that are not there", ETH, 0x4f),
    ] {
        let mut packet = incoming(FRIEND, 0, 1, 80, Tcp(SYN));
        packet[offset] = value;
        world.expect(what, Ingress, &packet, Malformed);
    }
    let mut packet = incoming(FRIEND, 1, 1, 80, Tcp(SYN));
    packet[ETH] = 0x45;
    world.expect("version 4 in an IPv6 frame", Ingress, &packet, Malformed);
}

#[test]
fn options_do_not_move_the_port() {
    let mut world = World::new();
    let nops = [1_u8; 8];
    let timestamp = [68, 8, 5, 0, 0, 0, 0, 0];
    for options in [&nops[..4], &nops[..], &timestamp[..], &[0, 0, 0, 0]] {
        let allowed = with_ipv4_options(&incoming(FRIEND, 0, 1, 80, Tcp(SYN)), options);
        world.expect("allowed port", Ingress, &allowed, PolicyAllowed);
        let denied = with_ipv4_options(&incoming(FRIEND, 0, 1, 9022, Tcp(SYN)), options);
        world.expect("another port", Ingress, &denied, PolicyDenied);
    }
    // Read at a fixed offset, these options would look like ports 1 and 80.
    let disguised = with_ipv4_options(&incoming(FRIEND, 0, 1, 9022, Tcp(SYN)), &[0, 1, 0, 80]);
    world.expect(
        "options that look like ports",
        Ingress,
        &disguised,
        PolicyDenied,
    );
    for kind in [131, 137] {
        let route = [kind, 7, 4, 10, 1, 1, 1, 0];
        let packet = with_ipv4_options(&incoming(FRIEND, 0, 1, 80, Tcp(SYN)), &route);
        world.expect("source route", Ingress, &packet, SourceRoute);
        let behind = [1, 1, 1, kind, 7, 4, 10, 1, 1, 1, 0, 0];
        let packet = with_ipv4_options(&incoming(FRIEND, 0, 1, 80, Tcp(SYN)), &behind);
        world.expect("source route behind others", Ingress, &packet, SourceRoute);
    }
    let broken = with_ipv4_options(&incoming(FRIEND, 0, 1, 80, Tcp(SYN)), &[68, 0, 0, 0]);
    world.expect("an option of length 0", Ingress, &broken, SourceRoute);
    let beyond = with_ipv4_options(&incoming(FRIEND, 0, 1, 80, Tcp(SYN)), &[68, 40, 0, 0]);
    world.expect("an option beyond the header", Ingress, &beyond, SourceRoute);
}

#[test]
fn extension_headers_do_not_hide_the_port() {
    let mut world = World::new();
    let hop_by_hop = (0, vec![0, 0, 1, 4, 0, 0, 0, 0]);
    let options = (60, vec![0, 1, 1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    let routed = (43, vec![0, 0, 0, 0, 0, 0, 0, 0]);
    let routing = (
        43,
        vec![
            0, 2, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9,
        ],
    );
    for extensions in [
        vec![hop_by_hop.clone()],
        vec![options.clone()],
        vec![
            hop_by_hop.clone(),
            options.clone(),
            routed.clone(),
            options.clone(),
        ],
    ] {
        let allowed = with_ipv6_extensions(&incoming(FRIEND, 1, 1, 80, Tcp(SYN)), &extensions);
        world.expect("allowed port", Ingress, &allowed, PolicyAllowed);
        let denied = with_ipv6_extensions(&incoming(FRIEND, 1, 1, 9022, Tcp(SYN)), &extensions);
        world.expect("another port", Ingress, &denied, PolicyDenied);
        let cut = world.run_cut(Ingress, &allowed, ETH + 40 + 6);
        assert_eq!(cut, Some(Malformed), "cut within");
    }
    let packet = with_ipv6_extensions(&incoming(FRIEND, 1, 1, 80, Tcp(SYN)), &[routing]);
    world.expect("hops left", Ingress, &packet, SourceRoute);
    let many = vec![options; 9];
    let packet = with_ipv6_extensions(&incoming(FRIEND, 1, 1, 80, Tcp(SYN)), &many);
    world.expect("deeper than we go", Ingress, &packet, Malformed);
}

#[test]
fn forged_sources_drop() {
    for family in FAMILIES {
        let source = std::net::SocketAddr::new(FRIEND[family], 1);
        let target = std::net::SocketAddr::new(STRANGER[family], 2);
        for kind in [Tcp(SYN), Tcp(ACK), Udp, Other(99)] {
            let forged = frame(source, target, kind);
            let mut world = World::new();
            world.judge_by(ALLOW_ALL, ALLOW_ALL);
            world.expect("of an isolated pod", Egress, &forged, SpoofedSource);
            let honest = outgoing(STRANGER, family, 1, 2, Udp);
            world.expect("honest", Egress, &honest, PolicyAllowed);
            // Nothing isolates the pod: it may be a router, but not somebody.
            world.judge_by(0, 0);
            let passes = [NotIsolated, PolicyAllowed].contains(&world.run(Egress, &forged));
            assert!(passes, "nobody's address");
            world.guard(FRIEND[family], Guard::POD);
            world.expect("a pod's", Egress, &forged, SpoofedSource);
            world.unguard(FRIEND[family]);
            world.machine.put_service(FRIEND[family]).unwrap();
            world.expect("a Service's", Egress, &forged, SpoofedSource);
            world.endpoint.flags |= Endpoint::ROUTER;
            world.judge_by(0, 0);
            assert!(
                world.run(Egress, &forged).verdict() == Verdict::Pass,
                "a router's"
            );
            world.judge_by(ALLOW_ALL, DENY_ALL);
            world.expect("an isolated router's", Egress, &forged, PolicyDenied);
            world.put_node_address(FRIEND[family]);
            world.expect("this node's", Egress, &forged, SpoofedSource);
            world.delete_service(FRIEND[family]);
        }
    }
}

#[test]
fn nobody_sends_from_addresses_of_groups_or_loopback() {
    let mut world = World::new();
    world.judge_by(0, 0);
    for (source, target) in [
        ("127.0.0.1:1", "192.0.2.9:2"),
        ("224.0.0.5:1", "192.0.2.9:2"),
        ("255.255.255.255:1", "192.0.2.9:2"),
        ("[::1]:1", "[2001:db8::9]:2"),
        ("[ff02::1]:1", "[2001:db8::9]:2"),
    ] {
        let forged = frame(source.parse().unwrap(), target.parse().unwrap(), Udp);
        world.expect(source, Egress, &forged, SpoofedSource);
    }
}

#[test]
fn an_endpoint_without_an_address_of_the_family_sends_none() {
    let mut world = World::new();
    world.endpoint.flags = 0;
    world.judge_by(ALLOW_ALL, ALLOW_ALL);
    for family in FAMILIES {
        let packet = outgoing(STRANGER, family, 1, 2, Udp);
        world.expect("own address unknown", Egress, &packet, SpoofedSource);
    }
    let discover = frame(
        "0.0.0.0:68".parse().unwrap(),
        "255.255.255.255:67".parse().unwrap(),
        Udp,
    );
    let what = "a DHCP client asks from the address that is nobody's";
    world.expect(what, Egress, &discover, PolicyAllowed);
    world.judge_by(DENY_ALL, DENY_ALL);
    world.expect("where it may", Egress, &discover, PolicyDenied);
}

#[test]
fn an_unisolated_pod_is_left_alone() {
    for family in FAMILIES {
        let mut world = World::new();
        world.judge_by(0, 0);
        for kind in [Tcp(ACK), Udp, Sctp(0), Other(47)] {
            let inward = incoming(STRANGER, family, 1, 2, kind);
            world.expect("in", Ingress, &inward, NotIsolated);
            let outward = outgoing(STRANGER, family, 1, 2, kind);
            world.expect("out", Egress, &outward, NotIsolated);
        }
        let mut cut = incoming(STRANGER, family, 1, 2, Tcp(SYN));
        cut[ETH] = 0x15;
        world.expect("broken, in: not ours to judge", Ingress, &cut, NotIsolated);
        let mut cut = outgoing(STRANGER, family, 1, 2, Tcp(SYN));
        cut[ETH] = 0x15;
        world.expect(
            "broken, out: its source is unknown",
            Egress,
            &cut,
            Malformed,
        );
        let mut lldp = vec![0; 60];
        lldp[12..14].copy_from_slice(&[0x88, 0xcc]);
        world.expect("another ethertype", Egress, &lldp, NotIsolated);
    }
}

#[test]
fn a_pod_reaches_itself() {
    if !World::new().machine.takes_ingress().unwrap() {
        return;
    }
    for family in FAMILIES {
        let mut world = World::new();
        let slot = world.endpoint.id & Tag::SLOT;
        let packet = incoming(POD, family, 1, 9999, Tcp(SYN));
        world.expect("out", Egress, &packet, OwnAddress);
        world.expect("in, from anywhere", Ingress, &packet, SpoofedSource);
        let mut enters = |carried| {
            let passage = world.machine.pass("to_pod", LOOPBACK, &packet, carried);
            passage.unwrap().counted
        };
        let own = Carried {
            hash: 0,
            tag: Tag::SENT | slot,
            ingress: LOOPBACK,
        };
        assert_eq!(enters(own), [(Ingress, OwnAddress)]);
        let others = Carried {
            ingress: 900,
            ..own
        };
        assert_eq!(enters(others), [(Ingress, SpoofedSource)]);
    }
}

#[test]
fn an_interface_without_a_row_drops() {
    let mut world = World::new();
    world
        .machine
        .apply(&[Op::DeleteEndpoint { ifindex: LOOPBACK }])
        .unwrap();
    for direction in [Ingress, Egress] {
        let packet = incoming(FRIEND, 0, 1, 80, Tcp(SYN));
        world.expect("no row", direction, &packet, NoEndpoint);
        let mut arp = vec![0; 42];
        arp[12..14].copy_from_slice(&[0x08, 0x06]);
        world.expect("not even ARP", direction, &arp, NoEndpoint);
    }
}

#[test]
fn jumbo_lengths() {
    let mut world = World::new();
    let mut packet = incoming(FRIEND, 0, 1, 53, Udp);
    // A test run takes a page at the most.
    packet.resize(3000, 7);
    set_ipv4_length(&mut packet);
    world.expect("a large frame", Ingress, &packet, PolicyAllowed);
    let told_more = 20_000_u16.to_be_bytes();
    packet[ETH + 2..ETH + 4].copy_from_slice(&told_more);
    let reason: Reason = world.run(Ingress, &packet);
    assert_eq!(reason, Malformed, "a length beyond the packet");
}
