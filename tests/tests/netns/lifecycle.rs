//! Pods and agents that come and go, mistakes in the datastore, and what operators see.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use super::{Cast, DENY_INGRESS, Form, Node, PodSpec, What, check, in_both_forms};
use What::{Tcp, Udp};
use portcullis_tests::netns::{Agent, PATIENCE};

in_both_forms! {
    a_deleted_pod_leaves_nothing_and_its_address_can_be_reused
    pods_are_found_in_any_order
    what_changed_while_no_agent_ran
    pods_that_come_and_go_at_once
    an_address_belongs_to_the_newest_live_pod
}

/// Of `of_pods` pins, and that of the bridge's program.
fn with_the_bridges(form: Form, of_pods: usize) -> usize {
    of_pods + usize::from(form == Form::Bridge)
}

/// Pins of what is attached.
fn pinned_links(node: &Node) -> usize {
    fs::read_dir(node.bpffs().join("links")).unwrap().count()
}

fn used(agent: &Agent<'_>, table: &str) -> u64 {
    let tables = agent.status().unwrap().tables;
    tables.iter().find(|row| row.name == table).unwrap().used
}

fn a_deleted_pod_leaves_nothing_and_its_address_can_be_reused(form: Form) {
    let Cast {
        node,
        web,
        db,
        tool,
    } = Cast::new(form);
    node.datastore()
        .put_policy("shop", "default-deny", DENY_INGRESS)
        .unwrap();
    node.datastore()
        .put_policy("shop", "web-to-db", super::WEB_TO_DB)
        .unwrap();
    let agent = Agent::start(&node).unwrap();
    check(
        "web reaches db",
        &[(&web, &db, Tcp(80), true), (&tool, &db, Tcp(80), false)],
    );
    assert_eq!(
        (pinned_links(&node), used(&agent, "endpoints")),
        (with_the_bridges(form, 6), 3)
    );

    let last = 2;
    assert!(
        web.addresses()[0]
            .to_string()
            .ends_with(&format!(".{last}"))
    );
    drop(web);
    node.datastore().delete_pod("shop", "web").unwrap();
    agent.sync().unwrap();
    assert_eq!(
        (pinned_links(&node), used(&agent, "endpoints")),
        (with_the_bridges(form, 4), 2)
    );
    // What nobody uses goes after grace periods, behind what is enforced.
    let deadline = Instant::now() + PATIENCE;
    while used(&agent, "peers") != 0 {
        assert!(Instant::now() < deadline, "the only peer is gone");
        thread::sleep(Duration::from_millis(20));
    }
    let list = agent.ask(&["get", "workloadendpoints"]).unwrap();
    assert!(!list.contains("shop.web"), "{list}");

    let spec = PodSpec {
        address: Some(last),
        ..PodSpec::new("dev", "other", &[("app", "other")])
    };
    let other = node.add(spec).unwrap();
    agent.sync().unwrap();
    check(
        "the address has other labels now",
        &[
            (&other, &db, Tcp(80), false),
            (&db, &other, Tcp(80), true),
            (&tool, &other, Tcp(80), true),
        ],
    );
    drop(other);
    node.datastore().delete_pod("dev", "other").unwrap();
    let again = node
        .add(PodSpec {
            address: Some(last),
            ..PodSpec::new("shop", "web-2", &[("app", "web")])
        })
        .unwrap();
    agent.sync().unwrap();
    check(
        "and the right ones again",
        &[
            (&again, &db, Tcp(80), true),
            (&tool, &again, Tcp(80), false),
        ],
    );
}

fn pods_are_found_in_any_order(form: Form) {
    let node = Node::new(form).unwrap();
    let agent = Agent::start(&node).unwrap();
    node.datastore()
        .put_policy("shop", "default-deny", DENY_INGRESS)
        .unwrap();
    // The object comes after the interface...
    let late = node.add_unknown(PodSpec::new("shop", "late", &[])).unwrap();
    let client = node
        .add_unknown(PodSpec::new("dev", "client", &[]))
        .unwrap();
    agent.sync().unwrap();
    check(
        "nobody knows whose it is",
        &[(&client, &late, Tcp(80), true)],
    );
    node.datastore()
        .put_pod("shop", "late", &[], &[], &late.addresses())
        .unwrap();
    agent.sync().unwrap();
    check(
        "now it is known",
        &[
            (&client, &late, Tcp(80), false),
            (&late, &client, Tcp(80), true),
        ],
    );
    // ... or before it, and goes before it.
    let addresses = ["10.244.0.50", "fd00:10:244::32"].map(|address| address.parse().unwrap());
    node.datastore()
        .put_pod("shop", "early", &[], &[], &addresses)
        .unwrap();
    agent.sync().unwrap();
    let early = node
        .add_unknown(PodSpec {
            address: Some(50),
            ..PodSpec::new("shop", "early", &[])
        })
        .unwrap();
    agent.sync().unwrap();
    check(
        "found as it appears",
        &[
            (&client, &early, Tcp(80), false),
            (&early, &late, Tcp(80), false),
        ],
    );
    node.datastore().delete_pod("shop", "early").unwrap();
    agent.sync().unwrap();
    // Its processes may live longer than its object.
    check(
        "as it was, for as long as its interface is there",
        &[
            (&client, &early, Tcp(80), false),
            (&early, &late, Tcp(80), false),
        ],
    );
}

fn what_changed_while_no_agent_ran(form: Form) {
    let Cast {
        node,
        web,
        db,
        tool,
    } = Cast::new(form);
    let store = node.datastore();
    store
        .put_policy("shop", "default-deny", DENY_INGRESS)
        .unwrap();
    store
        .put_policy("shop", "web-to-db", super::WEB_TO_DB)
        .unwrap();
    let agent = Agent::start(&node).unwrap();
    check(
        "before",
        &[(&web, &db, Tcp(80), true), (&tool, &db, Tcp(80), false)],
    );
    agent.kill().unwrap();
    drop(web);
    store.delete_pod("shop", "web").unwrap();
    let new = node
        .add(PodSpec::new("shop", "new", &[("app", "new")]))
        .unwrap();
    store
        .put_policy(
            "shop",
            "web-to-db",
            "podSelector: {matchLabels: {app: db}}\n\
             ingress:\n- from: [{namespaceSelector: {matchLabels: {team: dev}}}]",
        )
        .unwrap();
    // Its processes live longer than its object: it goes on as it was.
    store.delete_pod("dev", "tool").unwrap();
    let agent = Agent::start(&node).unwrap();
    let client = node.add(PodSpec::new("dev", "client", &[])).unwrap();
    agent.sync().unwrap();
    check(
        "after",
        &[
            (&new, &db, Tcp(80), false),
            (&db, &new, Tcp(80), false),
            (&client, &db, Tcp(80), true),
            (&client, &new, Tcp(80), false),
            (&tool, &db, Tcp(80), true),
            (&db, &tool, Tcp(80), true),
        ],
    );
    assert_eq!(
        pinned_links(&node),
        with_the_bridges(form, 8),
        "both of db, tool, new and client"
    );
    let mut interfaces: Vec<_> = agent
        .status()
        .unwrap()
        .programs
        .into_iter()
        .map(|program| program.interface)
        .collect();
    interfaces.sort();
    assert_eq!(
        interfaces,
        ["pcl-veth2", "pcl-veth3", "pcl-veth4", "pcl-veth5"]
    );
}

fn pods_that_come_and_go_at_once(form: Form) {
    let cast = Cast::new(form);
    cast.policy("default-deny", DENY_INGRESS);
    cast.policy("web-to-db", super::WEB_TO_DB);
    let agent = Agent::start(&cast.node).unwrap();
    for round in 0..12_u8 {
        let name = format!("short-{round}");
        let spec = PodSpec {
            address: Some(100 + round % 3),
            ..PodSpec::new("shop", &name, &[("app", "web")])
        };
        let pod = cast.node.add(spec).unwrap();
        // Nobody waits for the agent: it meets interfaces in every state of being made and removed.
        if round % 2 == 0 {
            cast.node.datastore().delete_pod("shop", &name).unwrap();
            drop(pod);
        } else {
            drop(pod);
            cast.node.datastore().delete_pod("shop", &name).unwrap();
        }
    }
    agent.sync().unwrap();
    assert_eq!(
        (pinned_links(&cast.node), used(&agent, "endpoints")),
        (with_the_bridges(form, 6), 3)
    );
    let status = agent.status().unwrap();
    assert_eq!(
        (
            status.ready,
            status.programs.len(),
            status.pending_operations
        ),
        (true, 3, 0)
    );
    check(
        "what stays is as it was",
        &[
            (&cast.web, &cast.db, Tcp(80), true),
            (&cast.tool, &cast.db, Tcp(80), false),
        ],
    );
    let log = agent.log();
    assert!(!log.contains(" ERROR "), "{log}");
}

fn an_address_belongs_to_the_newest_live_pod(form: Form) {
    let cast = Cast::new(form);
    cast.policy("default-deny", DENY_INGRESS);
    cast.policy("web-to-db", super::WEB_TO_DB);
    // A finished job had tool's address, with labels that would be let in.
    let [v4, v6] = cast.tool.addresses();
    let job = |phase: &str, created: &str| {
        let yaml = format!(
            "apiVersion: v1\n\
             kind: Pod\n\
             metadata: {{namespace: shop, name: job, labels: {{app: web}}, creationTimestamp: {created}}}\n\
             status: {{phase: {phase}, podIPs: [{{ip: {v4}}}, {{ip: '{v6}'}}]}}\n"
        );
        cast.node.datastore().put("pod-shop-job", &yaml).unwrap();
    };
    job("Succeeded", "2098-01-01T00:00:00Z");
    let agent = Agent::start(&cast.node).unwrap();
    let to_db = |allowed| [(&cast.tool, &cast.db, Tcp(80), allowed)];
    check("a finished pod owns no address", &to_db(false));
    job("Running", "2001-01-01T00:00:00Z");
    agent.sync().unwrap();
    check("an older pod does not, either", &to_db(false));
    job("Running", "2098-01-01T00:00:00Z");
    agent.sync().unwrap();
    check("a newer one does", &to_db(true));
    let list = agent.ask(&["get", "workloadendpoints"]).unwrap();
    // Others know the address as the newer pod's; the interface stays bound to the pod that had it first.
    assert!(
        list.contains("dev.tool") && !list.contains("shop.job"),
        "{list}"
    );
}

#[test]
fn a_mistake_keeps_the_last_good_state_and_is_reported() {
    let cast = Cast::new(Form::Routed);
    cast.policy("default-deny", DENY_INGRESS);
    cast.policy("web-to-db", super::WEB_TO_DB);
    let agent = Agent::start(&cast.node).unwrap();
    let (web, db, tool) = (&cast.web, &cast.db, &cast.tool);
    let mut rows = vec![(web, db, Tcp(80), true), (tool, db, Tcp(80), false)];
    check("good", &rows);
    cast.policy(
        "web-to-db",
        "podSelector: {}\ningress:\n- ports: [{port: 70000}]",
    );
    cast.policy(
        "dns",
        "podSelector: {matchLabels: {app: db}}\ningress:\n- ports: [{port: 53, protocol: UDP}]",
    );
    let error = agent.sync().unwrap_err().to_string();
    for part in [
        "networkpolicy-shop-web-to-db.yaml",
        "70000",
        "spec.ingress[0].ports[0].port",
    ] {
        assert!(error.contains(part), "{part} in {error}");
    }
    rows.push((tool, db, Udp(53), true));
    check("the mistake changes nothing, and the rest goes on", &rows);
    let status = agent.status().unwrap();
    assert_eq!(
        status.datastore.errors.len(),
        1,
        "{:?}",
        status.datastore.errors
    );
    cast.node
        .datastore()
        .put("networkpolicy-shop-web-to-db", "kind: [")
        .unwrap();
    agent.sync().unwrap_err();
    check("no YAML at all", &rows);
    cast.policy("web-to-db", super::WEB_TO_DB);
    agent.sync().unwrap();
    check("mended", &rows);
}

#[test]
fn a_second_agent_is_refused() {
    let cast = Cast::new(Form::Routed);
    cast.policy("default-deny", DENY_INGRESS);
    let agent = Agent::start(&cast.node).unwrap();
    let other_run_directory = cast.node.run_directory().with_file_name("run-2");
    for run_directory in [cast.node.run_directory(), other_run_directory] {
        let output = Agent::command(&cast.node)
            .unwrap()
            .env("PORTCULLIS_RUN_DIR", &run_directory)
            .env("HEALTH_ADDR", "127.0.0.1:9199")
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains("another agent"), "{said}");
    }
    agent.sync().unwrap();
    check(
        "the first goes on",
        &[(&cast.tool, &cast.db, Tcp(80), false)],
    );
}

#[test]
fn what_operators_see() {
    let cast = Cast::new(Form::Routed);
    cast.policy("default-deny", DENY_INGRESS);
    cast.policy("web-to-db", super::WEB_TO_DB);
    let agent = Agent::start(&cast.node).unwrap();

    let list = agent.ask(&["get", "workloadendpoints"]).unwrap();
    let expected = "\
HOSTNAME   ORCHESTRATOR   WORKLOAD   NAME
pcl-node   k8s            dev.tool   eth0
pcl-node   k8s            shop.db    eth0
pcl-node   k8s            shop.web   eth0
";
    assert_eq!(list, expected);
    let wide = agent
        .ask(&["get", "workloadendpoints", "-o", "wide"])
        .unwrap();
    let db = wide.lines().find(|line| line.contains("shop.db")).unwrap();
    for part in [
        &cast.db.addresses()[0].to_string(),
        &cast.db.addresses()[1].to_string(),
        "shop/default-deny",
        "shop/web-to-db",
        "enforced",
    ] {
        assert!(db.contains(part), "{part} in {db}");
    }

    let identities = agent.ask(&["get", "identities"]).unwrap();
    let web = identities
        .lines()
        .find(|line| line.contains(&cast.web.addresses()[0].to_string()))
        .unwrap_or_else(|| panic!("{identities}"));
    assert!(web.contains("app=web"), "{web}");
    let policies = agent.ask(&["get", "networkpolicies"]).unwrap();
    let row: Vec<_> = policies
        .lines()
        .find(|line| line.contains("web-to-db"))
        .unwrap()
        .split_whitespace()
        .collect();
    assert_eq!(row, ["shop", "web-to-db", "Ingress", "1", "enforced"]);

    let status = agent.status().unwrap();
    assert!(status.ready, "{:?}", status.conditions);
    assert_eq!(status.programs.len(), 3);
    assert_eq!(status.problems, [""; 0]);
    check("for the log", &[(&cast.tool, &cast.db, Tcp(80), false)]);
    let line = agent
        .wait_for_log(|line| line.contains("drop ingress shop/db <- dev/tool"))
        .unwrap();
    for part in [
        "/TCP",
        "reason=policy_denied",
        "isolated by",
        "shop/default-deny",
        "no rule matches",
    ] {
        assert!(line.contains(part), "{part} in {line}");
    }
}
