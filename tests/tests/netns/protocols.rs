//! ICMP, its errors, and fragments.

use std::io::ErrorKind;
use std::net::{IpAddr, UdpSocket};

use super::{Cast, DENY_ALL, Form, What, check, in_both_forms};
use What::{Fragments, Ping, Tcp, Udp};
use etherparse::PacketBuilder;
use portcullis_tests::netns::{
    Agent, Family, Host, Outcome, PAGE, PATIENCE, Probe, SILENCE, measure, send_paged,
};

in_both_forms! {
    pings_follow_policy
    port_unreachable_reaches_the_client
    packet_too_big_reaches_the_sender
    fragments_follow_their_datagram
}

fn pings_follow_policy(form: Form) {
    let cast = Cast::new(form);
    cast.only_web_to_db();
    let _agent = Agent::start(&cast.node).unwrap();
    let (web, db, tool) = (&cast.web, &cast.db, &cast.tool);
    check(
        "both are isolated both ways, and web may reach db",
        &[
            (web, db, Ping, true),
            (db, web, Ping, false),
            (tool, db, Ping, false),
            (web, tool, Ping, false),
            (web, db, Tcp(80), true),
            (db, web, Tcp(80), false),
        ],
    );
}

fn port_unreachable_reaches_the_client(form: Form) {
    const NOBODY: u16 = 999;
    let cast = Cast::new(form);
    cast.only_web_to_db();
    let _agent = Agent::start(&cast.node).unwrap();
    let rows = [
        (&cast.web, &cast.db, Udp(NOBODY), Outcome::Refused),
        (&cast.web, &cast.db, Tcp(NOBODY), Outcome::Refused),
        (&cast.db, &cast.web, Udp(NOBODY), Outcome::Silent),
        (&cast.tool, &cast.db, Udp(NOBODY), Outcome::Silent),
    ];
    for family in Family::ALL {
        let probes: Vec<_> = rows
            .iter()
            .map(|(from, to, what, expected)| Probe {
                from: from.netns(),
                to: to.address(family),
                what: *what,
                patience: if *expected == Outcome::Silent {
                    SILENCE
                } else {
                    PATIENCE
                },
            })
            .collect();
        for ((from, to, what, expected), outcome) in rows.iter().zip(measure(&probes)) {
            assert_eq!(
                outcome,
                *expected,
                "{} -> {} {what} {family:?}",
                from.name(),
                to.name()
            );
        }
    }
}

fn packet_too_big_reaches_the_sender(form: Form) {
    let cast = Cast::new(form);
    let router = cast.node.add_outside("router", 10).unwrap();
    // Behind the router are networks to which only small packets go; they need not exist.
    let far = |last: u8| -> [IpAddr; 2] {
        [format!("203.0.113.{last}"), format!("2001:db8:113::{last}")]
            .map(|text| text.parse().unwrap())
    };
    // EMSGSIZE: the error came back and was taken for the socket's.
    let check = |when: &str, from: &Host, last| {
        for address in far(last) {
            let error = error_after_sending(from, address, 1400);
            let number = error.as_ref().and_then(std::io::Error::raw_os_error);
            assert_eq!(number, Some(90), "{when}, {address}: {error:?}");
        }
    };
    for (key, value) in [
        ("net/ipv4/ip_forward", "1"),
        ("net/ipv6/conf/all/forwarding", "1"),
        // Each sender's first error is to come at once.
        ("net/ipv4/icmp_ratelimit", "0"),
        ("net/ipv6/icmp/ratelimit", "0"),
    ] {
        router.netns().sysctl(key, value).unwrap();
    }
    let [v4, v6] = router.addresses();
    cast.node
        .netns()
        .ip(&format!(
            "route add 203.0.113.0/24 via {v4} dev pcl-out4 onlink\n\
             route add 2001:db8:113::/64 via {v6} dev pcl-out4 onlink"
        ))
        .unwrap();
    router
        .netns()
        .ip(
            "route add 203.0.113.0/24 via 198.51.100.1 dev eth0 mtu lock 1300\n\
             route add 2001:db8:113::/64 via 2001:db8:51::1 dev eth0 mtu 1300",
        )
        .unwrap();
    cast.policy(
        "web-out",
        "podSelector: {matchLabels: {app: web}}\n\
         policyTypes: [Ingress, Egress]\n\
         egress:\n- to: [{ipBlock: {cidr: 203.0.113.0/24}}, {ipBlock: {cidr: '2001:db8:113::/64'}}]",
    );
    check("before there is an agent", &cast.web, 1);
    let _agent = Agent::start(&cast.node).unwrap();
    // Each destination once: the kernel remembers the answer.
    check("isolated both ways", &cast.web, 2);
    super::check(
        "it is isolated",
        &[
            (&cast.tool, &cast.web, Tcp(80), false),
            (&cast.web, &cast.tool, Tcp(80), false),
        ],
    );
}

/// Sends a datagram and returns the error that the socket then reports.
fn error_after_sending(from: &Host, to: IpAddr, size: usize) -> Option<std::io::Error> {
    from.netns().enter(|| {
        let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let socket = UdpSocket::bind(any).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.connect((to, 9)).unwrap();
        socket.send(&vec![0; size]).unwrap();
        let error = socket.recv(&mut [0; 16]).err()?;
        (error.kind() != ErrorKind::WouldBlock).then_some(error)
    })
}

fn fragments_follow_their_datagram(form: Form) {
    let cast = Cast::new(form);
    cast.policy("default-deny", DENY_ALL);
    cast.policy(
        "web-out",
        "podSelector: {matchLabels: {app: web}}\n\
         policyTypes: [Egress]\n\
         egress:\n- ports: [{port: 53, protocol: UDP}]",
    );
    cast.policy(
        "db-in",
        "podSelector: {matchLabels: {app: db}}\n\
         ingress:\n- from: [{podSelector: {matchLabels: {app: web}}}]\n\
         \x20 ports: [{port: 53, protocol: UDP}]",
    );
    let _agent = Agent::start(&cast.node).unwrap();
    let (web, db, tool) = (&cast.web, &cast.db, &cast.tool);
    let rows = [
        (web, db, Fragments(53), true),
        (web, db, Fragments(8080), false),
        (tool, db, Fragments(53), false),
        (tool, tool, Fragments(53), true),
    ];
    check("fragments", &rows);
    check("fragments of a datagram in an older flow", &rows);
}

#[test]
fn headers_outside_the_linear_part_are_found() {
    const PORT: u16 = 9000;
    let cast = Cast::new(Form::Routed);
    let (web, db) = (&cast.web, &cast.db);
    // Jumbo frames, since a paged frame is at least a page long; and an address to send them to.
    let gateway = [2, 0, 0, 0, 0, 1];
    cast.node
        .netns()
        .ip("link set pcl-veth1 mtu 9000 address 02:00:00:00:00:01\nlink set pcl-veth2 mtu 9000")
        .unwrap();
    for pod in [web, db] {
        pod.netns().ip("link set eth0 mtu 9000").unwrap();
    }
    // Bound once: a process that another test forks may keep a closed socket for a moment.
    let sinks = Family::ALL.map(|family| {
        let sink = db
            .netns()
            .enter(|| UdpSocket::bind((db.address(family), PORT)))
            .unwrap();
        sink.set_read_timeout(Some(SILENCE)).unwrap();
        sink
    });
    let arrives = |family: Family| {
        let (source, destination) = (web.address(family), db.address(family));
        let sink = &sinks[usize::from(family == Family::V6)];
        let ethernet = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 9], gateway);
        let ip = match (source, destination) {
            (IpAddr::V4(s), IpAddr::V4(d)) => ethernet.ipv4(s.octets(), d.octets(), 64),
            (IpAddr::V6(s), IpAddr::V6(d)) => ethernet.ipv6(s.octets(), d.octets(), 64),
            _ => unreachable!("of one family"),
        };
        let mut frame = Vec::new();
        ip.udp(PORT, PORT).write(&mut frame, &[7; PAGE]).unwrap();
        send_paged(web.netns(), "eth0", &frame).unwrap();
        sink.recv(&mut [0; 2 * PAGE]).is_ok()
    };
    for family in Family::ALL {
        assert!(arrives(family), "before there is an agent, {family:?}");
    }
    cast.policy("default-deny", DENY_ALL);
    let agent = Agent::start(&cast.node).unwrap();
    for family in Family::ALL {
        assert!(!arrives(family), "denied, {family:?}");
    }
    cast.policy(
        "web-out",
        "{podSelector: {matchLabels: {app: web}}, policyTypes: [Egress], egress: [{}]}",
    );
    agent.sync().unwrap();
    for family in Family::ALL {
        assert!(
            !arrives(family),
            "denied by the destination alone, {family:?}"
        );
    }
    cast.policy("db-in", super::WEB_TO_DB);
    agent.sync().unwrap();
    for family in Family::ALL {
        assert!(arrives(family), "allowed, {family:?}");
    }
}
