//! The node's own traffic, traffic that only looks like it, and forged sources.

use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};

use super::{Cast, DENY_ALL, DENY_INGRESS, Form, Host, What, check, in_both_forms};
use What::{Fragments, Ping, Tcp, Udp};
use portcullis_tests::netns::{Agent, Family, Flow, PATIENCE, SILENCE};

in_both_forms! {
    the_node_always_reaches_its_pods
    masqueraded_traffic_is_judged
    forged_sources_are_dropped
}

fn the_node_always_reaches_its_pods(form: Form) {
    let cast = Cast::new(form);
    cast.policy("default-deny", DENY_ALL);
    let agent = Agent::start(&cast.node).unwrap();
    let (node, db) = (&*cast.node, &cast.db);
    check(
        "kubelet's probes",
        &[
            (node, db, Tcp(80), true),
            (node, db, Udp(53), true),
            (node, db, Fragments(53), true),
            (node, db, Ping, true),
            // Not a Service: delivered here, past no exit.
            (db, node, Tcp(80), true),
            (db, node, Ping, true),
        ],
    );
    let mut flow = Flow::open(node.netns(), db.netns(), db.address(Family::V4), 9000).unwrap();
    cast.policy("more", DENY_INGRESS);
    agent.sync().unwrap();
    assert!(
        flow.server_speaks(PATIENCE).unwrap(),
        "a reply to the node after a change"
    );
    assert!(
        flow.client_speaks(PATIENCE).unwrap(),
        "the node's data after a change"
    );
}

fn masqueraded_traffic_is_judged(form: Form) {
    let cast = Cast::new(form);
    let outside = cast.node.add_outside("outside", 10).unwrap();
    let chain = "chain post { type nat hook postrouting priority srcnat; ";
    cast.node
        .netns()
        .script(
            "nft",
            &["-f", "-"],
            &format!(
                "table ip nat {{ {chain} ip saddr 198.51.100.0/24 masquerade; }}; }}\n\
                 table ip6 nat {{ {chain} ip6 saddr 2001:db8:51::/64 masquerade; }}; }}\n"
            ),
        )
        .unwrap();
    for family in Family::ALL {
        let seen = source_seen(&outside, &cast.db, cast.db.address(family), 9000);
        assert_eq!(
            seen,
            cast.node.address(family),
            "the pod sees the node's address"
        );
    }
    cast.policy("default-deny", DENY_INGRESS);
    let agent = Agent::start(&cast.node).unwrap();
    let (node, db) = (&*cast.node, &cast.db);
    check(
        "the node's address alone is no pass",
        &[
            (&outside, db, Tcp(80), false),
            (&outside, db, Udp(53), false),
            (&outside, db, Ping, false),
            (node, db, Tcp(80), true),
        ],
    );
    let [v4, v6] = node.addresses();
    cast.policy(
        "from-node-address",
        &format!(
            "podSelector: {{matchLabels: {{app: db}}}}\n\
             ingress:\n- from: [{{ipBlock: {{cidr: {v4}/32}}}}, {{ipBlock: {{cidr: '{v6}/128'}}}}]\n\
             \x20 ports: [{{port: 80}}]"
        ),
    );
    agent.sync().unwrap();
    check(
        "where a policy allows that address",
        &[
            (&outside, db, Tcp(80), true),
            (&outside, db, Tcp(8080), false),
        ],
    );
}

/// The source address that `server` sees of a connection from `client`.
fn source_seen(client: &Host, server: &Host, address: IpAddr, port: u16) -> IpAddr {
    let to = SocketAddr::new(address, port);
    let listener = server.netns().enter(|| TcpListener::bind(to)).unwrap();
    let _client = client
        .netns()
        .enter(|| TcpStream::connect_timeout(&to, PATIENCE))
        .unwrap();
    listener.accept().unwrap().1.ip()
}

fn forged_sources_are_dropped(form: Form) {
    let cast = Cast::new(form);
    let (tool, db) = (&cast.tool, &cast.db);
    // Another pod's addresses, and some that are nobody's: those a router may use that no policy isolates.
    let forged = cast.web.addresses();
    let nobodys: [IpAddr; 2] = [
        "10.8.0.99".parse().unwrap(),
        "fd00:10:8::99".parse().unwrap(),
    ];
    let [v4, v6] = forged;
    let [router_v4, router_v6] = nobodys;
    tool.netns()
        .ip(&format!(
            "address add {v4}/32 dev lo\naddress add {v6}/128 dev lo nodad\n\
             address add {router_v4}/32 dev lo\naddress add {router_v6}/128 dev lo nodad"
        ))
        .unwrap();
    // Bound once: a process that another test forks may keep a closed socket for a moment.
    let sinks = Family::ALL.map(|family| {
        let sink = db
            .netns()
            .enter(|| UdpSocket::bind((db.address(family), 9000)))
            .unwrap();
        sink.set_read_timeout(Some(SILENCE)).unwrap();
        sink
    });
    let arrives = |source: IpAddr, destination: IpAddr| {
        let socket = tool.netns().enter(|| UdpSocket::bind((source, 0))).unwrap();
        socket.send_to(b"from whom?", (destination, 9000)).unwrap();
        let sink = &sinks[usize::from(destination.is_ipv6())];
        sink.recv_from(&mut [0; 16]).ok().map(|(_, peer)| peer.ip())
    };
    let pairs = Family::ALL.map(|family| {
        let forged = forged[usize::from(family == Family::V6)];
        (forged, tool.address(family), db.address(family))
    });
    for (forged, _, destination) in pairs {
        assert_eq!(
            arrives(forged, destination),
            Some(forged),
            "before there is an agent"
        );
    }
    let agent = Agent::start(&cast.node).unwrap();
    for (forged, own, destination) in pairs {
        assert_eq!(arrives(forged, destination), None, "forged");
        assert_eq!(
            arrives(own, destination),
            Some(own),
            "the pod's own address"
        );
    }
    for (source, (_, _, destination)) in nobodys.into_iter().zip(pairs) {
        assert_eq!(arrives(source, destination), Some(source), "a router's");
    }
    let counters = agent.status().unwrap().counters;
    let spoofed = counters
        .iter()
        .find(|row| row.reason == "spoofed_source")
        .unwrap();
    assert!(spoofed.packets >= 2, "{counters:?}");
    agent
        .wait_for_log(|line| {
            line.contains("drop egress dev/tool") && line.contains("spoofed_source")
        })
        .unwrap();
}
