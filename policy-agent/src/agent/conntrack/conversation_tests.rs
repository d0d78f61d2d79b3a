use super::*;

const POD: &str = "10.244.0.2";
const REMOTE: &str = "198.51.100.7";
const SERVICE: &str = "10.96.0.9";
const NODE: &str = "10.244.0.1";
const OTHER: &str = "10.244.0.3";

fn address(text: &str) -> IpAddr {
    text.parse().expect("address")
}

fn tuple(protocol: u8, (from, sport): (&str, u16), (to, dport): (&str, u16)) -> Tuple {
    Tuple {
        saddr: address(from),
        daddr: address(to),
        protocol,
        sport,
        dport,
        icmp_id: 0,
        icmp_type: 0,
    }
}

fn entry(original: Tuple, reply: Tuple) -> Entry {
    Entry {
        original,
        reply,
        status: Entry::SEEN_REPLY,
        state: 0,
    }
}

fn subject(last: &str, endpoint: u32) -> Subject {
    Subject {
        ifindex: endpoint,
        pod: "shop/web".into(),
        interface: "veth1".into(),
        addresses: vec![address(last)],
        endpoint,
        epoch: 4,
        isolated_for_ingress: true,
    }
}

/// Endpoint, remote address, local and remote port, who began, the hidden peer, and whether that is the node.
type Seen = (u32, String, u16, u16, Direction, u32, bool);

fn find(entry: &Entry) -> Vec<Seen> {
    let subjects = [subject(POD, 1), subject(OTHER, 2)];
    let surroundings = Surroundings {
        own: [address(NODE)].into(),
        endpoints: [(address(POD), 1), (address(OTHER), 2)].into(),
    };
    let finder = Finder::new(&subjects, &surroundings);
    let found = finder.find(entry).map(|(subject, found)| {
        assert_eq!((found.endpoint, found.epoch), (subject.endpoint, 4));
        let PortPair { local, remote } = found.ports;
        let Conversation {
            endpoint,
            initiator,
            peer,
            is_of_node,
            ..
        } = found;
        let address = found.remote.to_string();
        (
            endpoint, address, local, remote, initiator, peer, is_of_node,
        )
    });
    found.collect()
}

#[test]
fn the_key_is_what_the_pod_sees() {
    use Direction::{Egress, Ingress};
    let udp = |from, to| tuple(protocol::UDP, from, to);
    let began = |address: &str, port| (1, address.to_owned(), 4000, port, Egress, 0, false);
    let met =
        |address: &str, port, peer, node| (1, address.to_owned(), 53, port, Ingress, peer, node);
    let (from_pod, at_pod) = ((POD, 4000), (POD, 53));
    let rows = [
        (
            "the pod began",
            udp(from_pod, (REMOTE, 7)),
            udp((REMOTE, 7), from_pod),
            vec![began(REMOTE, 7)],
        ),
        (
            "through a Service, to a backend elsewhere",
            udp(from_pod, (SERVICE, 53)),
            udp((REMOTE, 5353), from_pod),
            vec![began(SERVICE, 53)],
        ),
        (
            "masqueraded",
            udp(from_pod, (REMOTE, 7)),
            udp((REMOTE, 7), (NODE, 61000)),
            vec![began(REMOTE, 7)],
        ),
        (
            "the other side began",
            udp((REMOTE, 7), at_pod),
            udp(at_pod, (REMOTE, 7)),
            vec![met(REMOTE, 7, 0, false)],
        ),
        (
            "through a Service or NodePort",
            udp((REMOTE, 7), (SERVICE, 80)),
            udp(at_pod, (REMOTE, 7)),
            vec![met(REMOTE, 7, 0, false)],
        ),
        (
            "masqueraded, from outside",
            udp((REMOTE, 7), (NODE, 30053)),
            udp(at_pod, (NODE, 61000)),
            vec![met(NODE, 61000, 0, false)],
        ),
        (
            "from the node itself",
            udp((NODE, 7), (SERVICE, 80)),
            udp(at_pod, (NODE, 7)),
            vec![met(NODE, 7, 0, true)],
        ),
        (
            "from the node's loopback",
            udp(("127.0.0.1", 7), ("127.0.0.1", 30053)),
            udp(at_pod, (NODE, 61000)),
            vec![met(NODE, 61000, 0, true)],
        ),
        (
            "from a pod of this node, masqueraded",
            udp((OTHER, 7), (SERVICE, 80)),
            udp(at_pod, (NODE, 61000)),
            vec![
                (2, SERVICE.to_owned(), 7, 80, Egress, 0, false),
                met(NODE, 61000, 2, false),
            ],
        ),
        (
            "the pod reaches itself through its Service",
            udp(from_pod, (SERVICE, 80)),
            udp(at_pod, (NODE, 61000)),
            vec![began(SERVICE, 80), met(NODE, 61000, 1, false)],
        ),
        (
            "to the pod's address, and on to somebody else's",
            udp((REMOTE, 7), at_pod),
            udp((SERVICE, 53), (REMOTE, 7)),
            vec![],
        ),
    ];
    for (what, original, reply, expected) in rows {
        assert_eq!(find(&entry(original, reply)), expected, "{what}");
    }
}

#[test]
fn protocols_have_the_ports_that_the_programs_give_them() {
    let query = |number, icmp_type| {
        let mut original = tuple(number, (POD, 0), (REMOTE, 0));
        let mut reply = tuple(number, (REMOTE, 0), (POD, 0));
        (original.icmp_id, original.icmp_type) = (77, icmp_type);
        reply.icmp_id = 77;
        let asked = find(&entry(original, reply));
        let was_asked = find(&entry(
            Tuple {
                saddr: original.daddr,
                daddr: original.saddr,
                ..original
            },
            Tuple {
                saddr: reply.daddr,
                daddr: reply.saddr,
                icmp_id: 78,
                ..reply
            },
        ));
        let ports = |found: Vec<Seen>| found.first().map(|seen| (seen.2, seen.3));
        (ports(asked), ports(was_asked))
    };
    let answer = (Some((77, 0x0801)), Some((78, 0x0800)));
    assert_eq!(query(protocol::ICMP, 8), answer);
    let answer = (Some((77, 0x8001)), Some((78, 0x8000)));
    assert_eq!(query(protocol::ICMPV6, 128), answer);
    assert_eq!(query(protocol::ICMP, 17), (None, None), "no query of ours");

    const GRE: u8 = 47;
    let gre = tuple(GRE, (POD, 5), (REMOTE, 6));
    let found = find(&entry(gre, tuple(GRE, (REMOTE, 6), (POD, 5))));
    assert_eq!((found[0].2, found[0].3), (0, 0), "keys are no ports");
}

#[test]
fn what_is_over_is_left_out() {
    const ESTABLISHED: u8 = 3;
    let rows = [
        (protocol::TCP, 1, 0, Some(FlowState::ONE_WAY)),
        (protocol::TCP, ESTABLISHED, 2, Some(FlowState::TWO_WAY)),
        (protocol::TCP, 4, 2, Some(FlowState::CLOSING)),
        (protocol::TCP, 7, 2, None),
        (protocol::TCP, 8, 2, None),
        (protocol::SCTP, 1, 2, None),
        (protocol::SCTP, 4, 2, Some(FlowState::TWO_WAY)),
        (protocol::SCTP, 7, 2, Some(FlowState::CLOSING)),
        (protocol::UDP, 0, 0, Some(FlowState::ONE_WAY)),
        (protocol::UDP, 0, 2, Some(FlowState::TWO_WAY)),
    ];
    for (number, state, status, expected) in rows {
        let there = tuple(number, (POD, 1), (REMOTE, 2));
        let entry = Entry {
            status,
            state,
            ..entry(there, tuple(number, (REMOTE, 2), (POD, 1)))
        };
        assert_eq!(super::state(&entry), expected, "{number} in state {state}");
    }
}
