//! What Prometheus and kubelet see.

use std::net::UdpSocket;
use std::time::{Duration, Instant};

use policy_agent::dataplane::DriftedPart;
use policy_common::map;
use policy_common::verdict::Reason;
use policy_core::op::Op;

use super::{Cast, DENY_INGRESS, Form, What, check};
use What::Tcp;
use portcullis_tests::netns::{Agent, Family, PATIENCE, Page, get};

/// Scrapes the node's agent.
fn scrape(cast: &Cast) -> Page {
    let page = get(cast.node.netns(), "/metrics").unwrap();
    assert_eq!(page.status, 200, "{}", page.text);
    page
}

#[test]
fn every_series_is_there_from_the_start() {
    let cast = Cast::new(Form::Routed);
    let _agent = Agent::start(&cast.node).unwrap();
    let page = scrape(&cast);
    assert_eq!(
        page.content_type,
        "application/openmetrics-text; version=1.0.0; charset=utf-8"
    );
    assert!(page.text.ends_with("\n# EOF\n"), "{}", page.text);
    let pairs = 2 * Reason::ALL.len();
    // Those of the tables, and attaching and detaching.
    let operations = Op::KINDS.len() + 4;
    let rows = [
        ("portcullis_endpoints", 4),
        ("portcullis_exits", 4),
        ("portcullis_policies", 3),
        // Counters, budget, ring buffer, and what is there for packets on their way have no rows that are counted.
        ("portcullis_table_rows", map::ALL.len() - 6),
        ("portcullis_table_capacity", map::ALL.len() - 6),
        ("portcullis_operations_total", operations),
        ("portcullis_operation_errors_total", operations),
        ("portcullis_repairs_total", DriftedPart::ALL.len()),
        ("portcullis_packets_total", pairs),
        ("portcullis_bytes_total", pairs),
        ("portcullis_events_lost_total", 3),
        ("portcullis_event_to_enforced_seconds_count", 1),
        ("portcullis_datastore_problems", 2),
        ("portcullis_condition", 6),
        ("portcullis_pod_starts_mode", 2),
        ("portcullis_build_info", 1),
        ("process_resident_memory_bytes", 1),
    ];
    for (metric, count) in rows {
        assert_eq!(
            page.series(metric).count(),
            count,
            "{metric}\n{}",
            page.text
        );
    }
}

/// When the agent's loop last came round.
fn beat(cast: &Cast) -> f64 {
    scrape(cast).value("portcullis_loop_beat_timestamp_seconds")
}

#[test]
fn losses_of_an_earlier_agent_are_counted_on_and_not_told_again() {
    const TOLD: &str = "drops were not logged";
    let cast = Cast::new(Form::Routed);
    cast.policy("default-deny", DENY_INGRESS);
    let agent = Agent::start(&cast.node).unwrap();
    let [from, to] = [&cast.tool, &cast.db].map(|pod| pod.address(Family::V4));
    let socket = cast.tool.netns().enter(|| UdpSocket::bind((from, 0)));
    let socket = socket.unwrap();
    // Several times of what is reported in a second.
    for _ in 0..1000 {
        socket.send_to(b"denied", (to, 9000)).unwrap();
    }
    agent.wait_for_log(|log| log.contains(TOLD)).unwrap();
    agent.stop().unwrap();

    let agent = Agent::start(&cast.node).unwrap();
    let lost = "portcullis_events_lost_total{cause=\"rate_limited\"}";
    assert!(scrape(&cast).value(lost) > 0.0);
    // It looks for losses each time that it comes round.
    let mut seen = beat(&cast);
    for _ in 0..2 {
        let before = seen;
        let deadline = Instant::now() + PATIENCE;
        while seen <= before {
            assert!(Instant::now() < deadline, "the loop stands still");
            std::thread::sleep(Duration::from_millis(20));
            seen = beat(&cast);
        }
    }
    let log = agent.log();
    let (_, since_start) = log.rsplit_once("policy-agent started").unwrap();
    assert!(!since_start.contains(TOLD), "{since_start}");
}

#[test]
fn readiness_lists_its_conditions() {
    let cast = Cast::new(Form::Routed);
    let _agent = Agent::start(&cast.node).unwrap();
    let ready = get(cast.node.netns(), "/readyz").unwrap();
    let names: Vec<_> = ready
        .text
        .lines()
        .map(|line| line.split(':').next().unwrap())
        .collect();
    assert_eq!(
        names,
        [
            "[+] DatastoreLoaded",
            "[+] InterfacesFound",
            "[+] TablesWritten",
            "[+] ExitsAttached",
            "[+] EndpointsEnforced",
            "[+] PodStartsCovered"
        ]
    );
    assert_eq!(ready.status, 200);
    assert_eq!(get(cast.node.netns(), "/livez").unwrap().status, 200);
}

#[test]
fn numbers_follow_traffic_and_policies() {
    let cast = Cast::new(Form::Routed);
    cast.policy("default-deny", DENY_INGRESS);
    cast.policy("web-to-db", super::WEB_TO_DB);
    let agent = Agent::start(&cast.node).unwrap();
    let traffic = || {
        check(
            "web reaches db and tool does not",
            &[
                (&cast.web, &cast.db, Tcp(80), true),
                (&cast.tool, &cast.db, Tcp(80), false),
            ],
        );
    };
    traffic();
    let before = scrape(&cast);
    let values = [
        ("portcullis_ready", 1.0),
        ("portcullis_datastore_loaded", 1.0),
        ("portcullis_endpoints{state=\"enforced\"}", 3.0),
        ("portcullis_table_rows{table=\"endpoints\"}", 3.0),
        ("portcullis_policies{status=\"enforced\"}", 2.0),
        ("portcullis_identities", 1.0),
        ("portcullis_event_to_enforced_seconds_count", 0.0),
    ];
    for (series, expected) in values {
        let found = before.value(series);
        assert!((found - expected).abs() < 0.5, "{series} is {found}");
    }
    let flows = before.value("portcullis_table_rows{table=\"flows_v4\"}");
    assert!(flows >= 1.0, "the connection of web and db: {flows}");

    traffic();
    cast.policy("nobody", "{podSelector: {matchLabels: {app: none}}}");
    cast.policy("default-deny", super::DENY_ALL);
    agent.sync().unwrap();
    let after = scrape(&cast);
    let grown = |series: &str| after.value(series) - before.value(series);
    let denied = "{direction=\"ingress\",verdict=\"drop\",reason=\"policy_denied\"}";
    let allowed = "{direction=\"ingress\",verdict=\"pass\",reason=\"policy_allowed\"}";
    for series in [
        &format!("portcullis_packets_total{denied}"),
        &format!("portcullis_bytes_total{denied}"),
        &format!("portcullis_packets_total{allowed}"),
        "portcullis_revision",
        "portcullis_operations_total{kind=\"put_endpoint\"}",
        "portcullis_event_to_enforced_seconds_sum",
    ] {
        assert!(grown(series) > 0.0, "{series}");
    }
    let changes = grown("portcullis_event_to_enforced_seconds_count");
    assert!(changes >= 2.0, "two policies: {changes}");
    let revision = after.value("portcullis_revision");
    assert!((revision - after.value("portcullis_enforced_revision")).abs() < 0.5);
    let idle = after.value("portcullis_policies{status=\"no_local_subjects\"}");
    assert!((idle - 1.0).abs() < 0.5, "{idle}");
}
