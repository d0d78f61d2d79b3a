//! The capabilities that `manifests/` gives to the agent's container: enough, and none too many.

use std::fs;
use std::path::Path;

use k8s_openapi::api::apps::v1::DaemonSet;

use super::drift::detach_and_await_repair;
use super::{Cast, DENY_INGRESS, Form, WEB_TO_DB, What, check};
use What::{Ping, Tcp};
use portcullis_tests::netns::Agent;

/// The container's capabilities.
fn granted() -> Vec<String> {
    let path =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../manifests/kustomization/daemonset.yaml");
    let text = fs::read_to_string(path).unwrap();
    let daemon_set: DaemonSet = serde_saphyr::from_str(&text).unwrap();
    let pod = daemon_set.spec.unwrap().template.spec.unwrap();
    let security = pod.containers[0].security_context.clone().unwrap();
    security.capabilities.unwrap().add.unwrap()
}

#[test]
fn granted_capabilities_are_enough() {
    let cast = Cast::new(Form::Routed);
    cast.policy("default-deny", DENY_INGRESS);
    cast.policy("web-to-db", WEB_TO_DB);
    let (web, db, tool) = (&cast.web, &cast.db, &cast.tool);
    let granted = granted();
    let agent = Agent::start_with_capabilities(&cast.node, &granted).unwrap();
    check(
        "enforced",
        &[(web, db, Tcp(80), true), (tool, db, Tcp(80), false)],
    );
    detach_and_await_repair(&cast, &agent);
    cast.no_policy("web-to-db");
    agent.sync().unwrap();
    check(
        "a change",
        &[(web, db, Tcp(80), false), (web, db, Ping, false)],
    );
    agent.stop().unwrap();
    cast.no_policy("default-deny");
    let _next = Agent::start_with_capabilities(&cast.node, &granted).unwrap();
    check("the next agent takes over", &[(tool, db, Tcp(80), true)]);
}

/// Everybody may write to `/sys/fs/bpf`, and what they made there would be theirs.
#[test]
fn who_may_not_load_programs_leaves_no_directory_for_pins() {
    let cast = Cast::new(Form::Routed);
    let Err(error) = Agent::start_with_capabilities(&cast.node, &[]) else {
        panic!("started without capabilities");
    };
    let error = format!("{error:#}");
    assert!(
        error.contains("loading BPF programs is not permitted: run as root"),
        "{error}"
    );
    assert!(!cast.node.bpffs().exists());
}

#[test]
fn a_directory_of_somebody_else_is_not_used_for_pins() {
    let cast = Cast::new(Form::Routed);
    let bpffs = cast.node.bpffs();
    fs::create_dir(bpffs).unwrap();
    std::os::unix::fs::chown(bpffs, Some(65_534), None).unwrap();
    let Err(error) = Agent::start(&cast.node) else {
        panic!("started with pins that are not its own");
    };
    let error = format!("{error:#}");
    let words = format!("{} belongs to user 65534, who could", bpffs.display());
    assert!(error.contains(&words), "{error}");
}

#[test]
fn without_any_one_of_them_the_agent_does_not_start() {
    let cast = Cast::new(Form::Routed);
    let granted = granted();
    for missing in &granted {
        let others: Vec<_> = granted
            .iter()
            .filter(|name| *name != missing)
            .cloned()
            .collect();
        let started = Agent::start_with_capabilities(&cast.node, &others);
        assert!(started.is_err(), "{missing} is not needed");
    }
}
