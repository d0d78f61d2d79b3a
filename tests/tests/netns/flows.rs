//! What becomes of connections that are open when policies, or the agent, come and go.

use super::{Cast, DENY_INGRESS, Form, Host, What, check, in_both_forms};
use What::{Ping, Tcp, Udp};
use portcullis_tests::netns::{Agent, Family, Flow, PATIENCE, SILENCE, Stream};

in_both_forms! {
    a_policy_change_cuts_what_it_no_longer_allows
    egress_policy_cuts_too
    connections_survive_unrelated_changes_and_the_agents_death
    isolation_keeps_the_pods_own_connections
    no_window_while_the_agent_restarts
    no_window_while_policies_change
}

fn open(client: &Host, server: &Host, port: u16) -> Vec<Flow> {
    Family::ALL
        .iter()
        .map(|family| {
            let address = server.address(*family);
            Flow::open(client.netns(), server.netns(), address, port).unwrap()
        })
        .collect()
}

#[track_caller]
fn assert_alive(when: &str, flows: &mut [Flow]) {
    for flow in flows {
        assert!(
            flow.client_speaks(PATIENCE).unwrap(),
            "{when}: client's data stopped: {flow:?}"
        );
        assert!(
            flow.server_speaks(PATIENCE).unwrap(),
            "{when}: server's data stopped: {flow:?}"
        );
    }
}

#[track_caller]
fn assert_cut(when: &str, client_first: &mut [Flow], server_first: &mut [Flow]) {
    for flow in client_first {
        assert!(
            !flow.client_speaks(SILENCE).unwrap(),
            "{when}: client's data passed: {flow:?}"
        );
        assert!(
            !flow.server_speaks(SILENCE).unwrap(),
            "{when}: server's data passed: {flow:?}"
        );
    }
    // Nothing from the client may be what brings the change to the flow.
    for flow in server_first {
        assert!(
            !flow.server_speaks(SILENCE).unwrap(),
            "{when}: streamed data passed: {flow:?}"
        );
        assert!(
            !flow.client_speaks(SILENCE).unwrap(),
            "{when}: client's answer passed: {flow:?}"
        );
    }
}

fn a_policy_change_cuts_what_it_no_longer_allows(form: Form) {
    let cast = Cast::new(form);
    cast.policy("default-deny", DENY_INGRESS);
    cast.policy("web-to-db", super::WEB_TO_DB);
    let agent = Agent::start(&cast.node).unwrap();
    let (mut asking, mut streaming) = (
        open(&cast.web, &cast.db, 9000),
        open(&cast.web, &cast.db, 9001),
    );
    assert_alive("allowed", &mut asking);
    assert_alive("allowed", &mut streaming);
    cast.no_policy("web-to-db");
    agent.sync().unwrap();
    assert_cut("ingress no longer allowed", &mut asking, &mut streaming);
    check("new ones neither", &[(&cast.web, &cast.db, Tcp(80), false)]);
}

fn egress_policy_cuts_too(form: Form) {
    let cast = Cast::new(form);
    let agent = Agent::start(&cast.node).unwrap();
    let (mut asking, mut streaming) = (
        open(&cast.web, &cast.db, 9000),
        open(&cast.web, &cast.db, 9001),
    );
    assert_alive("no policy", &mut asking);
    assert_alive("no policy", &mut streaming);
    cast.policy(
        "no-egress",
        "{podSelector: {matchLabels: {app: web}}, policyTypes: [Egress]}",
    );
    agent.sync().unwrap();
    assert_cut("egress no longer allowed", &mut asking, &mut streaming);
}

fn connections_survive_unrelated_changes_and_the_agents_death(form: Form) {
    let cast = Cast::new(form);
    cast.only_web_to_db();
    let agent = Agent::start(&cast.node).unwrap();
    let mut flows = open(&cast.web, &cast.db, 9000);
    assert_alive("allowed", &mut flows);
    cast.policy(
        "db-more",
        "podSelector: {matchLabels: {app: db}}\ningress:\n- ports: [{port: 8080}]",
    );
    agent.sync().unwrap();
    assert_alive("after another policy for the same pod", &mut flows);
    cast.no_policy("db-more");
    agent.sync().unwrap();
    assert_alive("after it went again", &mut flows);

    let rows = [
        (&cast.web, &cast.db, Tcp(80), true),
        (&cast.web, &cast.db, Udp(53), true),
        (&cast.web, &cast.db, Ping, true),
        (&cast.tool, &cast.db, Tcp(80), false),
        (&cast.tool, &cast.db, Udp(53), false),
        (&cast.web, &cast.tool, Tcp(80), false),
    ];
    agent.kill().unwrap();
    assert_alive("while the agent is dead", &mut flows);
    check("while the agent is dead", &rows);
    let agent = Agent::start(&cast.node).unwrap();
    assert_alive("with a new agent", &mut flows);
    check("with a new agent", &rows);
    assert_eq!(agent.status().unwrap().programs.len(), 3);
}

fn isolation_keeps_the_pods_own_connections(form: Form) {
    let cast = Cast::new(form);
    let agent = Agent::start(&cast.node).unwrap();
    let mut outbound = open(&cast.db, &cast.web, 9000);
    let (mut asking, mut streaming) = (
        open(&cast.web, &cast.db, 9000),
        open(&cast.web, &cast.db, 9001),
    );
    for flows in [&mut outbound, &mut asking, &mut streaming] {
        assert_alive("no policy", flows);
    }
    cast.policy(
        "db-in",
        "{podSelector: {matchLabels: {app: db}}, policyTypes: [Ingress]}",
    );
    agent.sync().unwrap();
    assert_alive(
        "ingress isolation concerns no connection that the pod opened",
        &mut outbound,
    );
    assert_cut(
        "opened from outside before the isolation",
        &mut asking,
        &mut streaming,
    );
    assert_alive("still", &mut outbound);
}

/// Streams to db, from web and tool, over both families.
fn streams(cast: &Cast) -> Vec<(Family, &Host, Stream)> {
    Family::ALL
        .into_iter()
        .flat_map(|family| [(family, &cast.web, 9000), (family, &cast.tool, 9001)])
        .map(|(family, from, port)| {
            let to = &cast.db;
            let stream = Stream::start(from.netns(), to.netns(), to.address(family), port).unwrap();
            (family, from, stream)
        })
        .collect()
}

/// Everything from web arrived, and nothing from tool.
fn assert_web_only(cast: &Cast, streams: Vec<(Family, &Host, Stream)>) {
    for (family, from, stream) in streams {
        let (sent, arrived) = stream.finish();
        let expected = if from.name() == cast.web.name() {
            sent
        } else {
            0
        };
        assert!(sent > 100);
        assert_eq!(
            arrived,
            expected,
            "of {sent} from {} {family:?}",
            from.name()
        );
    }
}

fn no_window_while_the_agent_restarts(form: Form) {
    let cast = Cast::new(form);
    cast.policy("default-deny", DENY_INGRESS);
    cast.policy("web-to-db", super::WEB_TO_DB);
    let mut agent = Agent::start(&cast.node).unwrap();
    let streams = streams(&cast);
    for kind in ["killed", "asked to stop"] {
        streams[0].2.wait_for_more(50);
        if kind == "killed" {
            agent.kill().unwrap();
        } else {
            agent.stop().unwrap();
        }
        streams[0].2.wait_for_more(50);
        agent = Agent::start(&cast.node).unwrap();
    }
    streams[0].2.wait_for_more(50);
    assert_web_only(&cast, streams);
}

fn no_window_while_policies_change(form: Form) {
    let cast = Cast::new(form);
    cast.policy("default-deny", DENY_INGRESS);
    cast.policy("web-to-db", super::WEB_TO_DB);
    let agent = Agent::start(&cast.node).unwrap();
    let streams = streams(&cast);
    let pod = |labels| {
        let store = cast.node.datastore();
        store
            .put_pod("shop", "web", labels, &[], &cast.web.addresses())
            .unwrap();
        agent.sync().unwrap();
    };
    for _ in 0..5 {
        // Each of these states allows web, and none allows tool.
        cast.policy("more", "podSelector: {}\ningress:\n- ports: [{port: 8080}]");
        agent.sync().unwrap();
        cast.policy(
            "web-by-address",
            &format!(
                "podSelector: {}\ningress:\n- from: [{}]",
                "{matchLabels: {app: db}}",
                cast.web
                    .addresses()
                    .map(|address| {
                        let length = if address.is_ipv4() { 32 } else { 128 };
                        format!("{{ipBlock: {{cidr: '{address}/{length}'}}}}")
                    })
                    .join(", ")
            ),
        );
        agent.sync().unwrap();
        cast.no_policy("web-to-db");
        agent.sync().unwrap();
        pod(&[("app", "changed")]);
        pod(&[("app", "web")]);
        cast.policy("web-to-db", super::WEB_TO_DB);
        agent.sync().unwrap();
        cast.no_policy("web-by-address");
        cast.no_policy("more");
        agent.sync().unwrap();
    }
    assert_web_only(&cast, streams);
}
