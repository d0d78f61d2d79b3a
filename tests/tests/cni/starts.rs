//! Pods that start, end, and outlive agents.

use std::net::UdpSocket;
use std::time::Instant;

use portcullis_tests::netns::{
    Agent, Netns, Outcome, PATIENCE, Probe, SILENCE, Servers, What, probe,
};
use serde_json::json;

use super::observer::{Observer, PORT};
use super::runner::Sandbox;
use super::{machine, network, with_both_plugins};

with_both_plugins! {
    a_pod_runs_only_once_it_is_enforced
    what_was_announced_outlives_the_agent
    without_an_agent_no_pod_starts
}

/// How many pods are started under the observer's eyes.
const STARTS: usize = 20;

/// What the pod's first process hears from its first moment on, for as long as something comes, at most
/// as long as the observer takes for a few rounds.
pub(crate) fn heard(netns: &Netns, observer: &Observer) -> u64 {
    let socket = netns.enter(|| UdpSocket::bind(("0.0.0.0", PORT))).unwrap();
    socket.set_nonblocking(true).unwrap();
    let mut heard = 0;
    let began = Instant::now();
    while began.elapsed() < SILENCE {
        observer.wait_for_a_round();
        let mut buffer = [0; 16];
        while socket.recv(&mut buffer).is_ok() {
            heard += 1;
        }
    }
    heard
}

/// One datagram there and back: nothing sends it again if it is lost.
pub(crate) fn reaches(from: &Sandbox, to: &Sandbox, is_ipv4: bool) -> Outcome {
    probe(&Probe {
        from: &from.netns,
        to: to.address(is_ipv4),
        what: What::Udp(53),
        patience: PATIENCE,
    })
}

fn a_pod_runs_only_once_it_is_enforced(plugin: &str) {
    let node = machine();
    let (network, outside) = network(&node, plugin);
    let store = node.datastore();
    let observer = Observer::start(outside.netns());
    let agent = Agent::start(&node).unwrap();
    network.status().unwrap();

    store
        .put_pod("shop", "web", &[("app", "web")], &[], &[])
        .unwrap();
    let mut web = network.sandbox("shop", "web");
    network.add(&mut web).unwrap();
    let mut pods = Vec::new();
    for number in 0..STARTS {
        let name = format!("db-{number}");
        // As from the API: bound to the node, without an address.
        store.put_pod("shop", &name, &[], &[], &[]).unwrap();
        let mut pod = network.sandbox("shop", &name);
        network.add(&mut pod).unwrap();
        let arrived = heard(&pod.netns, &observer);
        assert_eq!(arrived, 0, "start {number}: against policy");
        let _servers = Servers::start(&pod.netns, &[], &[53]).unwrap();
        for is_ipv4 in [true, false] {
            assert_eq!(
                reaches(&web, &pod, is_ipv4),
                Outcome::Answered,
                "start {number}"
            );
        }
        network.check(&pod).unwrap();
        pods.push(pod);
    }

    // The observer is heard where it may be.
    store.put_pod("dev", "open", &[], &[], &[]).unwrap();
    let mut open = network.sandbox("dev", "open");
    network.add(&mut open).unwrap();
    assert!(heard(&open.netns, &observer) > 0);

    let mut unknown = network.sandbox("shop", "unknown");
    let impatient = super::Network::new(&node, plugin).with("timeout", json!(4));
    let error = impatient.add(&mut unknown).unwrap_err();
    assert_eq!(error.code(), 11, "{error:?}");
    assert!(error.words().contains("no pod shop/unknown"), "{error:?}");
    network.del(&unknown).unwrap();

    let error = network.check(&unknown).unwrap_err();
    assert_eq!(error.code(), 101, "{error:?}");
    let (kept, gone) = pods.split_at(1);
    network.gc(&[&web, &open, &kept[0]]).unwrap();
    network.check(&kept[0]).unwrap();
    assert_eq!(network.check(&gone[0]).unwrap_err().code(), 101);
    for pod in pods.iter().chain([&web, &open]) {
        network.del(pod).unwrap();
    }
    agent.sync().unwrap();
    let left = agent.ask(&["get", "workloadendpoints"]).unwrap();
    assert_eq!(left.lines().count(), 1, "only the heading: {left}");
}

fn what_was_announced_outlives_the_agent(plugin: &str) {
    let node = machine();
    let (network, outside) = network(&node, plugin);
    let store = node.datastore();
    let agent = Agent::start(&node).unwrap();
    let mut pods = ["web", "db"].map(|name| {
        store
            .put_pod("shop", name, &[("app", name)], &[], &[])
            .unwrap();
        network.sandbox("shop", name)
    });
    for pod in &mut pods {
        network.add(pod).unwrap();
    }
    let [web, db] = &pods;
    let _servers = Servers::start(&db.netns, &[], &[53]).unwrap();
    // Addresses that only the plugin told, and a device that the pod renames meanwhile.
    agent.kill().unwrap();
    db.netns
        .ip("link set eth0 down\nlink set eth0 name other0\nlink set other0 up")
        .unwrap();
    let agent = Agent::start(&node).unwrap();
    for pod in &pods {
        network.check(pod).unwrap();
    }
    let listed = agent.ask(&["get", "workloadendpoints"]).unwrap();
    assert!(
        listed.contains("shop.web") && listed.contains("shop.db"),
        "{listed}"
    );
    let from_outside = probe(&Probe {
        from: outside.netns(),
        to: db.address(true),
        what: What::Udp(53),
        patience: SILENCE,
    });
    assert_eq!(from_outside, Outcome::Silent);
    network.check(web).unwrap();
    network.del(web).unwrap();
    assert_eq!(network.check(web).unwrap_err().code(), 101);
    // A sandbox that goes while nobody looks.
    agent.kill().unwrap();
    node.netns()
        .ip(&format!("link delete {}", host_interface(db)))
        .unwrap();
    let agent = Agent::start(&node).unwrap();
    agent.sync().unwrap();
    assert_eq!(network.check(db).unwrap_err().code(), 101);
    let files = std::fs::read_dir(node.run_directory().join("attachments")).unwrap();
    assert_eq!(files.count(), 0);
}

/// The veth's name, which is the last interface without a sandbox.
pub(crate) fn host_interface(pod: &Sandbox) -> String {
    let interfaces = pod.result()["interfaces"].as_array().unwrap();
    // Not the bridge, nor the ifb that `bandwidth` adds.
    let on_host = |interface: &&serde_json::Value| {
        let name = interface["name"].as_str();
        interface["sandbox"].as_str().is_none_or(str::is_empty)
            && name.is_some_and(|name| name.starts_with("veth"))
    };
    let last = interfaces.iter().rev().find(on_host).unwrap();
    last["name"].as_str().unwrap().to_owned()
}

fn without_an_agent_no_pod_starts(plugin: &str) {
    let node = machine();
    let (network, _outside) = network(&node, plugin);
    let network = network.with("timeout", json!(0.5));
    let mut pod = network.sandbox("shop", "web");
    let error = network.add(&mut pod).unwrap_err();
    assert_eq!(
        (error.plugin.as_str(), error.code()),
        ("policy-cni", 11),
        "{error:?}"
    );
    assert!(error.words().contains("does not listen"), "{error:?}");
    assert_eq!(network.status().unwrap_err().code(), 50);
    network.del(&pod).unwrap();

    // As after a boot: the kubelet makes pods again and again, and the agent comes at last.
    node.datastore()
        .put_pod("shop", "web", &[], &[], &[])
        .unwrap();
    let mut pod = network.sandbox("shop", "web");
    network.add(&mut pod).unwrap_err();
    network.del(&pod).unwrap();
    let agent = Agent::start(&node).unwrap();
    network.status().unwrap();
    let mut pod = network.sandbox("shop", "web");
    super::Network::new(&node, plugin).add(&mut pod).unwrap();
    network.check(&pod).unwrap();
    network.del(&pod).unwrap();
    agent.kill().unwrap();

    let mut pod = network.sandbox("shop", "web");
    let open = super::Network::new(&node, plugin)
        .with("timeout", json!(0.5))
        .with("failOpen", json!(true));
    open.add(&mut pod).unwrap();
    open.del(&pod).unwrap();
}
