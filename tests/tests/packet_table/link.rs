//! Talk on the link, and what only routers, DHCP servers and tunnels send.

use std::net::{IpAddr, SocketAddr};

use policy_common::endpoint::Endpoint;
use policy_common::guard::Guard;
use policy_common::verdict::Reason::{
    self, ClaimedAddress, Deferred, DhcpServer, LinkControl, Malformed, NodeTunnel, NotIp,
    NotIsolated, PolicyAllowed, PolicyDenied, RouterMessage, SpoofedSource,
};
use portcullis_tests::packet::Kind::{Other, Udp};
use portcullis_tests::packet::{ETH, frame, icmp_error, v4, v6};
use portcullis_tests::testrun::LOOPBACK;

use crate::world::{
    ALLOW_ALL, DENY_ALL, Egress, FAMILIES, FRIEND, Ingress, POD, STRANGER, World, outgoing,
};

/// This node's addresses.
const NODE: [IpAddr; 2] = [v4(192, 168, 7, 1), v6(0x2000)];

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// An ARP message: operation, sender's address, and whose address it asks for.
fn arp(operation: u8, sender: IpAddr, target: IpAddr) -> Vec<u8> {
    let mut frame = vec![0xff; 12];
    frame.extend([0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, operation]);
    for address in [sender, target] {
        frame.extend([2, 0, 0, 0, 0, 1]);
        let IpAddr::V4(v4) = address else {
            panic!("{address} is of IPv6");
        };
        frame.extend(v4.octets());
    }
    frame
}

/// An ICMPv6 message with this hop limit; its body begins with `target`.
fn icmp6(
    (source, destination): (IpAddr, IpAddr),
    icmp_type: u8,
    hop_limit: u8,
    target: IpAddr,
) -> Vec<u8> {
    let mut packet = icmp_error(source, destination, icmp_type, 0, &[0; 80], 24);
    packet[ETH + 7] = hop_limit;
    let IpAddr::V6(target) = target else {
        panic!("{target} is of IPv4");
    };
    packet[ETH + 48..ETH + 64].copy_from_slice(&target.octets());
    packet
}

#[test]
fn arp_speaks_for_its_sender_only() {
    let mut world = World::new();
    world.put_node_address(NODE[0]);
    let zero = v4(0, 0, 0, 0);
    let reply = |sender| arp(2, sender, STRANGER[0]);
    let ask = |sender| arp(1, sender, STRANGER[0]);
    for isolated in [true, false] {
        match isolated {
            true => world.judge_by(DENY_ALL, DENY_ALL),
            false => world.judge_by(0, 0),
        }
        world.guard(FRIEND[0], Guard::POD);
        for (what, message, reason) in [
            ("asks", ask(POD[0]), LinkControl),
            ("answers", reply(POD[0]), LinkControl),
            ("announces itself", arp(1, POD[0], POD[0]), LinkControl),
            ("probes", ask(zero), LinkControl),
            (
                "answers for nobody",
                reply(zero),
                if isolated {
                    ClaimedAddress
                } else {
                    LinkControl
                },
            ),
            ("answers for another pod", reply(FRIEND[0]), ClaimedAddress),
            (
                "announces another pod",
                arp(1, FRIEND[0], FRIEND[0]),
                ClaimedAddress,
            ),
            ("answers for the node", reply(NODE[0]), ClaimedAddress),
            ("reverse", arp(3, POD[0], POD[0]), Malformed),
            ("cut", ask(POD[0])[..ETH + 27].to_vec(), Malformed),
        ] {
            world.expect(what, Egress, &message, reason);
        }
        // An address that two virtual machines share is nobody's.
        let expected = if isolated {
            ClaimedAddress
        } else {
            LinkControl
        };
        world.expect(
            "a virtual address",
            Egress,
            &reply(v4(10, 244, 1, 99)),
            expected,
        );
        world.expect("what others say", Ingress, &reply(FRIEND[0]), LinkControl);
        world.unguard(FRIEND[0]);
    }
    world.delete_service(NODE[0]);
}

#[test]
fn neighbour_discovery_speaks_for_its_sender_only() {
    let mut world = World::new();
    world.judge_by(DENY_ALL, DENY_ALL);
    world.put_node_address(NODE[1]);
    let (link_local, group, unspecified) = (address("fe80::1"), address("ff02::1"), address("::"));
    let own = POD[1];
    for (what, ends, icmp_type, target, reason) in [
        ("asks a group", (own, group), 135, FRIEND[1], LinkControl),
        (
            "asks for its own address",
            (unspecified, group),
            135,
            own,
            LinkControl,
        ),
        ("asks the node", (own, NODE[1]), 135, NODE[1], LinkControl),
        (
            "asks from the link",
            (link_local, group),
            135,
            FRIEND[1],
            LinkControl,
        ),
        ("answers", (own, link_local), 136, own, LinkControl),
        (
            "answers for its link",
            (link_local, group),
            136,
            link_local,
            LinkControl,
        ),
        (
            "answers for another",
            (own, link_local),
            136,
            FRIEND[1],
            ClaimedAddress,
        ),
        (
            "answers for the node",
            (own, link_local),
            136,
            NODE[1],
            ClaimedAddress,
        ),
        (
            "from another's address",
            (FRIEND[1], group),
            135,
            own,
            SpoofedSource,
        ),
        (
            "asks for routers",
            (link_local, address("ff02::2")),
            133,
            own,
            LinkControl,
        ),
        (
            "says it routes",
            (link_local, group),
            134,
            own,
            RouterMessage,
        ),
        ("redirects", (link_local, own), 137, own, RouterMessage),
    ] {
        let packet = icmp6(ends, icmp_type, 255, target);
        world.expect(what, Egress, &packet, reason);
        let forwarded = icmp6(ends, icmp_type, 64, target);
        let expected = match reason {
            RouterMessage | SpoofedSource => reason,
            // What this node makes of it is its own business.
            _ if ends.1 == NODE[1] => Deferred,
            _ => PolicyDenied,
        };
        world.expect("what may have been forwarded", Egress, &forwarded, expected);
    }
    for (what, ends, hop_limit, reason) in [
        ("joins", (link_local, address("ff02::16")), 1, LinkControl),
        (
            "joins from nowhere",
            (unspecified, address("ff02::16")),
            1,
            LinkControl,
        ),
        (
            "to a single address",
            (link_local, FRIEND[1]),
            1,
            PolicyDenied,
        ),
        (
            "from a global address",
            (own, address("ff02::16")),
            1,
            PolicyDenied,
        ),
        (
            "beyond the link",
            (link_local, address("ff02::16")),
            2,
            PolicyDenied,
        ),
    ] {
        let packet = icmp6(ends, 143, hop_limit, own);
        world.expect(what, Egress, &packet, reason);
    }
    for (what, ends, icmp_type, reason) in [
        ("asked", (FRIEND[1], own), 135, LinkControl),
        ("a router speaks", (link_local, group), 134, LinkControl),
        ("to another", (FRIEND[1], STRANGER[1]), 135, PolicyDenied),
    ] {
        let packet = icmp6(ends, icmp_type, 255, own);
        world.expect(what, Ingress, &packet, reason);
    }
    world.delete_service(NODE[1]);
}

#[test]
fn only_routers_route() {
    for family in FAMILIES {
        let mut world = World::new();
        let (redirect, advertisement) = [(5, 9), (137, 134)][family];
        for (ingress, egress) in [(ALLOW_ALL, ALLOW_ALL), (0, 0)] {
            for icmp_type in [redirect, advertisement] {
                world.endpoint.flags &= !Endpoint::ROUTER;
                world.judge_by(ingress, egress);
                let packet = icmp_error(POD[family], FRIEND[family], icmp_type, 1, &[0; 80], 8);
                world.expect("of a pod", Egress, &packet, RouterMessage);
                world.endpoint.flags |= Endpoint::ROUTER;
                world.judge_by(ingress, egress);
                let expected = if egress == 0 {
                    NotIsolated
                } else {
                    PolicyAllowed
                };
                world.expect("of a router", Egress, &packet, expected);
            }
        }
    }
}

#[test]
fn only_servers_hand_out_addresses() {
    for family in FAMILIES {
        let (server, client) = [(67, 68), (547, 546)][family];
        let mut world = World::new();
        let answer = outgoing(FRIEND, family, server, client, Udp);
        let question = outgoing(FRIEND, family, client, server, Udp);
        world.judge_by(ALLOW_ALL, ALLOW_ALL);
        world.expect("isolated", Egress, &answer, DhcpServer);
        world.expect("a client", Egress, &question, PolicyAllowed);
        world.judge_by(0, 0);
        world.expect("not isolated", Egress, &answer, DhcpServer);
        world.expect("a client", Egress, &question, NotIsolated);
        world.endpoint.flags |= Endpoint::ROUTER;
        world.judge_by(0, 0);
        world.expect("a server", Egress, &answer, NotIsolated);
    }
}

#[test]
fn no_pod_tunnels_to_a_node() {
    const VXLAN: u16 = 8472;
    const GENEVE: u16 = 6081;
    for family in FAMILIES {
        let mut world = World::new();
        let ports = [VXLAN, GENEVE, 0, 0];
        world.machine.dataplane.set_tunnel_ports(ports).unwrap();
        world.put_node_address(NODE[family]);
        let to = |remote: IpAddr, port, kind| {
            frame(
                SocketAddr::new(POD[family], 40_000),
                SocketAddr::new(remote, port),
                kind,
            )
        };
        for (ingress, egress, passes) in
            [(ALLOW_ALL, ALLOW_ALL, PolicyAllowed), (0, 0, NotIsolated)]
        {
            world.judge_by(ingress, egress);
            let remote = STRANGER[family];
            for (what, port, kind) in [
                ("VXLAN", VXLAN, Udp),
                ("Geneve", GENEVE, Udp),
                ("IPv4 in IP", 0, Other(4)),
                ("IPv6 in IP", 0, Other(41)),
                ("GRE", 0, Other(47)),
            ] {
                let mut expect = |to_whom: &str, packet: &[u8], reason: Reason| {
                    world.expect(&format!("{what} {to_whom}"), Egress, packet, reason);
                };
                expect("to this node", &to(NODE[family], port, kind), NodeTunnel);
                expect("to a pod", &to(remote, port, kind), passes);
                for guard in [Guard::NODE, Guard::REMOTE] {
                    world.guard(remote, guard);
                    world.expect(what, Egress, &to(remote, port, kind), NodeTunnel);
                }
                world.guard(remote, Guard::POD);
                world.expect(what, Egress, &to(remote, port, kind), passes_again(passes));
                world.unguard(remote);
                world.judge_by(ingress, egress);
            }
            let other = to(STRANGER[family], 4789, Udp);
            world.expect("a port where nobody unpacks", Egress, &other, passes);
        }
        world.delete_service(NODE[family]);
        world.machine.dataplane.set_tunnel_ports([0; 4]).unwrap();
    }
}

/// What a second packet of a flow comes to.
fn passes_again(first: Reason) -> Reason {
    match first {
        PolicyAllowed => Reason::Established,
        other => other,
    }
}

#[test]
fn what_hides_a_packet_does_not_leave() {
    let mut world = World::new();
    let mut tagged = outgoing(FRIEND, 0, 1, 2, Udp);
    tagged.splice(12..12, [0x81, 0x00, 0x00, 0x00]);
    let with_type = |ethertype: [u8; 2]| {
        let mut frame = vec![0; 60];
        frame[12..14].copy_from_slice(&ethertype);
        frame
    };
    world.judge_by(0, 0);
    world.expect("a priority tag", Egress, &tagged, NotIp);
    for ethertype in [[0x88, 0xa8], [0x88, 0x47], [0x88, 0x48], [0x89, 0x4f]] {
        world.expect("hidden", Egress, &with_type(ethertype), NotIp);
        world.expect("for a trunk", Ingress, &with_type(ethertype), NotIsolated);
    }
    world.expect("LLDP", Egress, &with_type([0x88, 0xcc]), NotIsolated);
    world.judge_by(DENY_ALL, DENY_ALL);
    for ethertype in [[0x88, 0xcc], [0x88, 0xa8], [0x00, 0x20], [0x86, 0xdc]] {
        let other = with_type(ethertype);
        world.expect("neither ARP nor IP", Egress, &other, NotIp);
        world.expect("neither ARP nor IP", Ingress, &other, NotIp);
    }
    // The kernel takes the tag out of the packet before programs see it.
    let outcome = world.machine.run(Egress, LOOPBACK, &tagged).unwrap();
    assert_eq!(outcome.reason, NotIp);
}
