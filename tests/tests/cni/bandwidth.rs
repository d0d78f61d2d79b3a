//! Pods with limits, for which the reference plugin `bandwidth` adds an `ingress` qdisc to the same veth, in the place
//! where clsact goes, and a filter that takes every packet elsewhere.

use std::ffi::OsStr;

use aya::util::KernelVersion;
use portcullis_tests::netns::{Agent, Host, Node, Outcome, Probe, SILENCE, Servers, What, probe};
use serde_json::json;

use super::runner::Sandbox;
use super::starts::{host_interface, reaches};
use super::{Network, machine, network};

fn has_tcx() -> bool {
    KernelVersion::current().unwrap() >= KernelVersion::new(6, 6, 0)
}

/// A veth with limits in both directions has a qdisc of the plugin's at either side.
fn assert_limited(node: &Node, sandbox: &Sandbox) {
    let interface = host_interface(sandbox);
    let mut show = node.netns().command("tc");
    let shown = show.args(["qdisc", "show", "dev", &interface]).output();
    let shown = String::from_utf8(shown.unwrap().stdout).unwrap();
    for qdisc in ["qdisc tbf", "qdisc ingress"] {
        assert!(shown.contains(qdisc), "{qdisc} in {shown}");
    }
}

/// In `shop` only web may be heard; what the pod sends is denied by `nothing-out`.
fn assert_enforced(agent: &Agent<'_>, outside: &Host, pod: &Sandbox, web: &Sandbox) {
    let _servers = Servers::start(&pod.netns, &[], &[53]).unwrap();
    assert_eq!(reaches(web, pod, true), Outcome::Answered, "web to the pod");
    let silent = |from, to| {
        let outcome = probe(&Probe {
            from,
            to,
            what: What::Ping,
            patience: SILENCE,
        });
        assert_eq!(outcome, Outcome::Silent, "to {to}");
    };
    silent(outside.netns(), pod.address(true));
    let before = denied(agent);
    silent(&pod.netns, web.address(true));
    assert!(denied(agent) > before, "what the pod sends meets from_pod");
}

/// Packets of pods here that policy denied to leave.
fn denied(agent: &Agent<'_>) -> u64 {
    let counters = agent.status().unwrap().counters;
    let rows = counters
        .iter()
        .filter(|row| row.direction == "egress" && row.reason == "policy_denied");
    rows.map(|row| row.packets).sum()
}

/// The machine, the network, a host outside, and web, which has no limits.
fn start<'a>(node: &'a Node, network: &Network<'a>) -> Sandbox {
    let nothing_out = "{podSelector: {matchLabels: {app: db}}, policyTypes: [Egress]}";
    node.datastore()
        .put_policy("shop", "nothing-out", nothing_out)
        .unwrap();
    let web = [("app", "web")];
    node.datastore()
        .put_pod("shop", "web", &web, &[], &[])
        .unwrap();
    let mut web = network.sandbox("shop", "web");
    network.add(&mut web).unwrap();
    web
}

fn add(node: &Node, network: &Network<'_>, name: &str) -> Sandbox {
    let db = [("app", "db")];
    node.datastore()
        .put_pod("shop", name, &db, &[], &[])
        .unwrap();
    let mut pod = network.sandbox("shop", name);
    network.add(&mut pod).unwrap();
    pod
}

#[test]
fn a_limited_pod_is_enforced_where_ours_comes_last() {
    if !has_tcx() {
        println!("skipped: this kernel has no TCX");
        return;
    }
    let node = machine();
    let (network, outside) = network(&node, "ptp");
    let network = network.limited_before_ours();
    let agent = Agent::start(&node).unwrap();
    let web = start(&node, &network.unlimited());
    for number in 0..5 {
        let pod = add(&node, &network, &format!("db-{number}"));
        assert_limited(&node, &pod);
        assert_enforced(&agent, &outside, &pod, &web);
        network.check(&pod).unwrap();
        network.del(&pod).unwrap();
    }
    let modes = agent.status().unwrap().programs;
    let modes: Vec<_> = modes.iter().map(|at| &*at.mode).collect();
    assert_eq!(modes, ["clsact"], "web, which nothing is in the way of");
}

#[test]
fn the_plugin_works_where_it_comes_after_ours() {
    if !has_tcx() {
        println!("skipped: this kernel has no TCX");
        return;
    }
    let node = machine();
    let (network, outside) = network(&node, "ptp");
    let network = network.limited_after_ours();
    let [_, (_, conf)] = Agent::cni_directories(&node);
    std::fs::create_dir_all(&conf).unwrap();
    std::fs::write(conf.join("10-pods.conflist"), network.conflist()).unwrap();
    let agent = Agent::start(&node).unwrap();
    let web = start(&node, &network.unlimited());
    for number in 0..5 {
        let pod = add(&node, &network, &format!("db-{number}"));
        assert_limited(&node, &pod);
        assert_enforced(&agent, &outside, &pod, &web);
        network.del(&pod).unwrap();
    }
    let modes = agent.status().unwrap().programs;
    assert!(modes.iter().all(|at| at.mode == "tcx"), "{modes:?}");
}

/// Without the plugin's announcement, and slowly: the agent sees the veth before `bandwidth` does.
#[test]
fn nothing_is_attached_to_a_new_veth_before_it_is_known_to_be_a_pods() {
    let node = machine();
    let (network, _outside) = network(&node, "ptp");
    let network = network.limited_before_ours();
    let agent = Agent::start(&node).unwrap();
    let mut pod = network.sandbox("shop", "slow");
    network.add_main(&mut pod).unwrap();
    let interface = host_interface(&pod);
    agent
        .wait_for_status(|status| {
            let mut exits = status.exits.iter();
            exits.any(|exit| exit.interface == interface && exit.state == "waiting")
        })
        .unwrap();
    network.add_limits(&mut pod).unwrap();
    assert_limited(&node, &pod);
    assert!(agent.status().unwrap().ready);
}

/// What is not enforced does not start.
#[test]
fn a_limited_pod_is_refused_without_tcx() {
    let node = machine();
    let (network, _outside) = network(&node, "ptp");
    let network = network.limited_before_ours().with("timeout", json!(4));
    let by_clsact = [("PORTCULLIS_ATTACH_MODE", OsStr::new("clsact"))];
    let agent = Agent::start_with(&node, &by_clsact).unwrap();
    let web = start(&node, &network.unlimited());
    let db = [("app", "db")];
    node.datastore()
        .put_pod("shop", "db", &db, &[], &[])
        .unwrap();
    let mut pod = network.sandbox("shop", "db");
    let error = network.add(&mut pod).unwrap_err();
    assert_eq!(error.plugin, "policy-cni");
    for part in ["ingress", "Linux 6.6", "kubernetes.io/egress-bandwidth"] {
        assert!(error.words().contains(part), "{part} in {error:?}");
    }
    assert_limited(&node, &pod);
    network.del(&pod).unwrap();
    node.datastore().delete_pod("shop", "db").unwrap();
    agent.wait_for_status(|status| status.ready).unwrap();
    network.unlimited().check(&web).unwrap();
}
