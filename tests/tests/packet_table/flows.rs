//! Flows: replies, states, epochs.

use policy_agent::dataplane::DataplaneConfig;
use policy_common::config::Timeouts;
use policy_common::verdict::Reason::{
    Established, FlowRevoked, NotIsolated, PolicyAllowed, PolicyDenied,
};
use portcullis_tests::packet::Kind::{EchoReply, EchoRequest, Sctp, Tcp, Udp};
use portcullis_tests::packet::flags::{ACK, FIN_ACK, RST, SYN, SYN_ACK};
use portcullis_tests::testrun::{LOOPBACK, Machine};

use crate::world::{
    ALLOW_ALL, DENY_ALL, EGRESS_POLICY, Egress, FAMILIES, FRIEND, INGRESS_POLICY, Ingress,
    STRANGER, World, incoming, outgoing,
};

#[test]
fn replies_pass_and_only_replies() {
    for family in FAMILIES {
        let mut world = World::new();
        world.judge_by(DENY_ALL, EGRESS_POLICY);
        let reply = incoming(FRIEND, family, 443, 5000, Tcp(SYN_ACK));
        world.expect("no flow yet", Ingress, &reply, PolicyDenied);
        let open = outgoing(FRIEND, family, 5000, 443, Tcp(SYN));
        world.expect("SYN", Egress, &open, PolicyAllowed);
        world.expect("SYN again", Egress, &open, PolicyAllowed);
        world.expect("SYN ACK", Ingress, &reply, Established);
        let data = outgoing(FRIEND, family, 5000, 443, Tcp(ACK));
        world.expect("ACK", Egress, &data, Established);
        let other = incoming(FRIEND, family, 443, 5001, Tcp(ACK));
        world.expect("another port", Ingress, &other, PolicyDenied);
        let other = incoming(STRANGER, family, 443, 5000, Tcp(ACK));
        world.expect("another peer", Ingress, &other, PolicyDenied);
        let backwards = incoming(FRIEND, family, 443, 5000, Tcp(SYN));
        world.expect("a bare SYN is no reply", Ingress, &backwards, PolicyDenied);
        world.expect("and has done no harm", Egress, &data, Established);
    }
}

#[test]
fn connections_close_and_begin_anew() {
    for family in FAMILIES {
        let mut world = World::new();
        let open = incoming(FRIEND, family, 6000, 80, Tcp(SYN));
        let reply = outgoing(FRIEND, family, 80, 6000, Tcp(SYN_ACK));
        let data = incoming(FRIEND, family, 6000, 80, Tcp(ACK));
        for ending in [FIN_ACK, RST] {
            world.expect("SYN", Ingress, &open, PolicyAllowed);
            world.expect("SYN ACK", Egress, &reply, Established);
            world.expect("data", Ingress, &data, Established);
            let end = outgoing(FRIEND, family, 80, 6000, Tcp(ending));
            world.expect("end", Egress, &end, Established);
            world.expect("what follows the end", Ingress, &data, Established);
        }
        world.judge_by(DENY_ALL, DENY_ALL);
        world.expect(
            "a SYN is judged whatever was there",
            Ingress,
            &open,
            PolicyDenied,
        );
    }
}

#[test]
fn datagrams_and_sctp() {
    for family in FAMILIES {
        let mut world = World::new();
        let query = outgoing(STRANGER, family, 7000, 53, Udp);
        let answer = incoming(STRANGER, family, 53, 7000, Udp);
        world.expect("an answer without a query", Ingress, &answer, PolicyDenied);
        world.expect("query", Egress, &query, PolicyAllowed);
        world.expect("query again", Egress, &query, Established);
        world.expect("answer", Ingress, &answer, Established);
        world.expect("query in a two-way flow", Egress, &query, Established);

        let init = incoming(FRIEND, family, 9, 36412, Sctp(1));
        let init_ack = outgoing(FRIEND, family, 36412, 9, Sctp(2));
        world.expect("INIT", Ingress, &init, PolicyAllowed);
        world.expect("INIT ACK", Egress, &init_ack, Established);
        let backwards = outgoing(FRIEND, family, 36412, 9, Sctp(1));
        world.expect("an INIT is no reply", Egress, &backwards, PolicyDenied);
    }
}

#[test]
fn a_ping_does_not_make_way_for_the_other_sides() {
    for family in FAMILIES {
        let mut world = World::new();
        world.judge_by(DENY_ALL, ALLOW_ALL);
        let ask = outgoing(FRIEND, family, 5, 0, EchoRequest);
        let answer = incoming(FRIEND, family, 5, 0, EchoReply);
        let asked = incoming(FRIEND, family, 5, 0, EchoRequest);
        world.expect("an answer nobody asked for", Ingress, &answer, PolicyDenied);
        world.expect("ask", Egress, &ask, PolicyAllowed);
        world.expect("answer", Ingress, &answer, Established);
        world.expect("ask again", Egress, &ask, Established);
        world.expect(
            "being asked, with the same id",
            Ingress,
            &asked,
            PolicyDenied,
        );

        drop(world);
        let mut world = World::new();
        world.judge_by(ALLOW_ALL, DENY_ALL);
        world.expect("an allowed stray answer", Ingress, &answer, PolicyAllowed);
        world.expect("does not let the pod ask", Egress, &ask, PolicyDenied);
    }
}

#[test]
fn a_policy_change_cuts_at_the_next_packet_of_either_side() {
    for family in FAMILIES {
        let mut world = World::new();
        world.judge_by(INGRESS_POLICY, 0);
        let open = incoming(FRIEND, family, 6000, 80, Tcp(SYN));
        let data = incoming(FRIEND, family, 6000, 80, Tcp(ACK));
        let stream = outgoing(FRIEND, family, 80, 6000, Tcp(ACK));
        world.expect("SYN", Ingress, &open, PolicyAllowed);
        world.expect("stream", Egress, &stream, Established);
        world.judge_by(INGRESS_POLICY, 0);
        world.expect(
            "a change that does not concern it",
            Egress,
            &stream,
            Established,
        );
        world.judge_by(DENY_ALL, 0);
        // The pod's egress is open: its stream must nevertheless not pass for a new flow.
        world.expect("the server's side is cut", Egress, &stream, PolicyDenied);
        world.expect("and stays cut", Egress, &stream, FlowRevoked);
        world.expect("the client's side too", Ingress, &data, FlowRevoked);
        world.expect("a new connection is judged", Ingress, &open, PolicyDenied);
        world.judge_by(INGRESS_POLICY, 0);
        world.expect("what is allowed again goes on", Ingress, &data, Established);
        world.expect("in both directions", Egress, &stream, Established);
    }
}

#[test]
fn a_change_while_a_connection_opens() {
    let mut world = World::new();
    world.judge_by(INGRESS_POLICY, 0);
    let open = incoming(FRIEND, 0, 6000, 80, Tcp(SYN));
    world.expect("SYN", Ingress, &open, PolicyAllowed);
    world.judge_by(DENY_ALL, 0);
    let answer = outgoing(FRIEND, 0, 80, 6000, Tcp(SYN_ACK));
    world.expect("the answer comes too late", Egress, &answer, PolicyDenied);
    let ack = incoming(FRIEND, 0, 6000, 80, Tcp(ACK));
    world.expect("and the client gets nowhere", Ingress, &ack, FlowRevoked);
}

#[test]
fn connections_of_an_unisolated_pod_are_judged_by_who_opened_them() {
    for family in FAMILIES {
        let mut world = World::new();
        world.judge_by(0, 0);
        let inward = incoming(STRANGER, family, 6000, 80, Tcp(SYN));
        let inward_answer = outgoing(STRANGER, family, 80, 6000, Tcp(SYN_ACK));
        let outward = outgoing(STRANGER, family, 5000, 443, Tcp(SYN));
        let outward_answer = incoming(STRANGER, family, 443, 5000, Tcp(SYN_ACK));
        world.expect("in", Ingress, &inward, PolicyAllowed);
        world.expect("in, answered", Egress, &inward_answer, Established);
        world.expect("out", Egress, &outward, PolicyAllowed);
        world.expect("out, answered", Ingress, &outward_answer, Established);
        let data = incoming(STRANGER, family, 443, 5000, Tcp(ACK));
        world.expect("data costs no lookup", Ingress, &data, NotIsolated);
        world.judge_by(DENY_ALL, 0);
        world.expect("what the pod opened goes on", Ingress, &data, Established);
        let stream = outgoing(STRANGER, family, 80, 6000, Tcp(ACK));
        world.expect("what others opened is cut", Egress, &stream, PolicyDenied);
        let more = incoming(STRANGER, family, 6000, 80, Tcp(ACK));
        world.expect("from both sides", Ingress, &more, FlowRevoked);
    }
}

#[test]
fn a_restart_heals_mid_stream() {
    for family in FAMILIES {
        let mut world = World::new();
        let data = incoming(FRIEND, family, 6000, 80, Tcp(ACK));
        world.expect("as if it began one", Ingress, &data, PolicyAllowed);
        let reply = outgoing(FRIEND, family, 80, 6000, Tcp(ACK));
        world.expect("reply", Egress, &reply, Established);
        let late = outgoing(FRIEND, family, 80, 6001, Tcp(RST));
        world.expect("a stray RST is judged", Egress, &late, PolicyDenied);
    }
}

#[test]
fn idle_flows_end() {
    let timeouts = Timeouts {
        udp_one_way: 0,
        ..Timeouts::SECONDS
    };
    let config = DataplaneConfig {
        timeouts,
        ..DataplaneConfig::default()
    };
    let mut world = World::with(Machine::with(config).unwrap());
    world.judge_by(INGRESS_POLICY, EGRESS_POLICY);
    let query = outgoing(STRANGER, 0, 7000, 53, Udp);
    world.expect("query", Egress, &query, PolicyAllowed);
    // With a timeout of nothing the flow lives until the clock ticks.
    let again = (0..1_000_000).any(|_| world.run(Egress, &query) == PolicyAllowed);
    assert!(again, "the flow never ended");
}

/// A client may use a port again while the connection that it was used for before is still known.
#[test]
fn a_newer_connection_takes_the_place_of_an_older_one_with_its_key() {
    for family in FAMILIES {
        for answer in [SYN_ACK, RST] {
            for is_cut in [false, true] {
                let mut world = World::new();
                world.judge_by(INGRESS_POLICY, DENY_ALL);
                let open = incoming(FRIEND, family, 6000, 80, Tcp(SYN));
                let accept = outgoing(FRIEND, family, 80, 6000, Tcp(SYN_ACK));
                let data = incoming(FRIEND, family, 6000, 80, Tcp(ACK));
                world.expect("SYN", Ingress, &open, PolicyAllowed);
                world.expect("SYN ACK", Egress, &accept, Established);
                if is_cut {
                    world.judge_by(DENY_ALL, DENY_ALL);
                    world.expect("cut", Ingress, &data, PolicyDenied);
                    world.judge_by(DENY_ALL, DENY_ALL);
                    world.expect("cut again", Ingress, &data, PolicyDenied);
                    world.expect("and stays so", Egress, &accept, FlowRevoked);
                    world.judge_by(INGRESS_POLICY, DENY_ALL);
                } else {
                    let end = outgoing(FRIEND, family, 80, 6000, Tcp(FIN_ACK));
                    world.expect("FIN", Egress, &end, Established);
                }
                world.expect("SYN again", Ingress, &open, PolicyAllowed);
                let reply = outgoing(FRIEND, family, 80, 6000, Tcp(answer));
                world.expect("its answer", Egress, &reply, Established);
                world.expect("and what follows", Ingress, &data, Established);
            }
        }
    }
}

#[test]
fn a_query_after_a_long_silence_is_answered() {
    for family in FAMILIES {
        let timeouts = Timeouts {
            udp_two_way: 0,
            ..Timeouts::SECONDS
        };
        let config = DataplaneConfig {
            timeouts,
            ..DataplaneConfig::default()
        };
        let mut world = World::with(Machine::with(config).unwrap());
        world.judge_by(INGRESS_POLICY, EGRESS_POLICY);
        let query = outgoing(STRANGER, family, 7000, 53, Udp);
        let answer = incoming(STRANGER, family, 53, 7000, Udp);
        world.expect("query", Egress, &query, PolicyAllowed);
        world.expect("answer", Ingress, &answer, Established);
        let again = (0..1_000_000).any(|_| world.run(Egress, &query) == PolicyAllowed);
        assert!(again, "the flow never ended");
        world.expect("the later answer", Ingress, &answer, Established);
    }
}

#[test]
fn a_flood_of_one_sided_packets_evicts_no_live_flow() {
    let mut world = World::with(Machine::new().unwrap());
    world.judge_by(ALLOW_ALL, ALLOW_ALL);
    let open = incoming(FRIEND, 0, 6000, 80, Tcp(SYN));
    let reply = outgoing(FRIEND, 0, 80, 6000, Tcp(SYN_ACK));
    let data = incoming(FRIEND, 0, 6000, 80, Tcp(ACK));
    world.expect("SYN", Ingress, &open, PolicyAllowed);
    world.expect("SYN ACK", Egress, &reply, Established);
    for port in 0..20_000_u16 {
        let flood = incoming(
            STRANGER,
            0,
            port,
            80,
            if port % 2 == 0 { Tcp(SYN) } else { Udp },
        );
        world.machine.repeat(Ingress, LOOPBACK, &flood, 1).unwrap();
    }
    world.judge_by(DENY_ALL, ALLOW_ALL);
    world.expect(
        "the flow is still known, and so it is cut",
        Ingress,
        &data,
        PolicyDenied,
    );
    world.expect("as cut flows are", Ingress, &data, FlowRevoked);
}
