//! The least that must work on every kernel: one node, three routed pods, policies from files, TCP and
//! UDP over IPv4 and IPv6. Needs iproute2, `policy-agent` and `policyctl`, and nothing else; made for
//! emulated machines, so nothing here is measured in time but silence.

use std::fs;

use What::{Ping, Tcp, Udp};
use portcullis_tests::netns::{
    Agent, Family, Flow, Form, Node, PATIENCE, PodSpec, SILENCE, What, check,
};

#[test]
fn policies_are_enforced() {
    let node = Node::new(Form::Routed).unwrap();
    let store = node.datastore();
    store.put_namespace("shop", &[]).unwrap();
    let pod = |name: &str| {
        node.add(PodSpec::new("shop", name, &[("app", name)]))
            .unwrap()
    };
    let (web, db, tool) = (pod("web"), pod("db"), pod("tool"));
    let agent = Agent::start(&node).unwrap();
    let status = agent.status().unwrap();
    let modes: Vec<_> = status
        .programs
        .iter()
        .map(|program| program.mode.as_str())
        .collect();
    assert_eq!(modes.len(), 3);
    assert!(modes.iter().all(|mode| *mode == modes[0]), "{modes:?}");
    println!("attached by {}", modes[0]);
    let rows = |web_to_db, tool_to_db| {
        let to_db = |from, allowed| [Tcp(80), Udp(53), Ping].map(|what| (from, &db, what, allowed));
        [to_db(&web, web_to_db), to_db(&tool, tool_to_db)].concat()
    };
    check("no policies", &rows(true, true));

    store
        .put_policy(
            "shop",
            "default-deny",
            "{podSelector: {}, policyTypes: [Ingress]}",
        )
        .unwrap();
    agent.sync().unwrap();
    check("default deny", &rows(false, false));
    check(
        "the node itself",
        &[(&node, &db, Tcp(80), true), (&node, &db, Udp(53), true)],
    );

    store
        .put_policy(
            "shop",
            "web-to-db",
            "podSelector: {matchLabels: {app: db}}\n\
             ingress:\n- from: [{podSelector: {matchLabels: {app: web}}}]",
        )
        .unwrap();
    agent.sync().unwrap();
    check("allowed by labels", &rows(true, false));

    let mut flows = Family::ALL
        .map(|family| Flow::open(web.netns(), db.netns(), db.address(family), 9000).unwrap());
    for flow in &mut flows {
        assert!(flow.client_speaks(PATIENCE).unwrap() && flow.server_speaks(PATIENCE).unwrap());
    }
    store.delete_policy("shop", "web-to-db").unwrap();
    agent.sync().unwrap();
    for flow in &mut flows {
        assert!(
            !flow.server_speaks(SILENCE).unwrap(),
            "the server's data passed: {flow:?}"
        );
        assert!(
            !flow.client_speaks(SILENCE).unwrap(),
            "the client's data passed: {flow:?}"
        );
    }
    check("and denied again", &rows(false, false));
    agent.kill().unwrap();
    check("without an agent", &rows(false, false));

    let output = Agent::uninstall(&node).unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && said.contains("nothing is left"),
        "{output:?}"
    );
    check("uninstalled", &rows(true, true));
}

/// As in the container of `manifests/`.
#[test]
fn little_locked_memory_is_enough_or_the_error_says_so() {
    let node = Node::new(Form::Routed).unwrap();
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let started = Agent::start_with_little_locked_memory(&node);
    // The first kernel that does not count maps is 5.11.
    if release.starts_with("5.10.") {
        let said = format!("{:#}", started.expect_err("maps count as locked memory"));
        assert!(
            said.contains("add SYS_RESOURCE to the container's capabilities"),
            "{said}"
        );
    } else {
        started.unwrap().status().unwrap();
    }
}
