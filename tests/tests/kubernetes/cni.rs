//! A CNI configuration where there is none, on the pod CIDR that the API's Node has.

use std::fs;
use std::process::Output;

use portcullis_tests::netns::{Agent, Source, binary};
use serde_json::{Value, json};

use super::against_both;
use crate::world::World;

against_both! {
    a_configuration_is_made_on_the_nodes_pod_cidr
}

const FILE: &str = "10-portcullis.conflist";

/// `policy-agent install-cni`, as an init container runs it.
fn install(world: &World, arguments: &[&str]) -> Output {
    let mut command = world.node.netns().command(binary("policy-agent").unwrap());
    command
        .args(["install-cni", "--cni-create", "ptp"])
        .args(arguments)
        .envs(Agent::cni_directories(&world.node))
        .env(
            "KUBECONFIG",
            world.file("kubeconfig", &world.api.kubeconfig()),
        )
        .env("NODENAME", world.node.node_name());
    command.output().unwrap()
}

fn a_configuration_is_made_on_the_nodes_pod_cidr(world: &World) {
    let directories = Agent::cni_directories(&world.node);
    for (_, directory) in &directories {
        fs::create_dir(directory).unwrap();
    }
    let [(_, bin), (_, conf)] = &directories;
    for plugin in ["ptp", "host-local", "portmap"] {
        fs::write(bin.join(plugin), "").unwrap();
    }
    let output = install(world, &[]);
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(error.contains("it has no spec.podCIDR"), "{error}");
    assert!(install(world, &["--or-later"]).status.success());
    assert_eq!(fs::read_dir(conf).unwrap().count(), 0);

    let kubeconfig = world.file("kubeconfig", &world.api.kubeconfig());
    let mut settings = vec![
        ("KUBECONFIG", kubeconfig.as_os_str()),
        ("PORTCULLIS_INSTALL_CNI", "true".as_ref()),
        ("PORTCULLIS_CNI_CREATE", "ptp".as_ref()),
    ];
    for (name, directory) in &directories {
        settings.push((name, directory.as_os_str()));
    }
    let agent = Agent::start_from(&world.node, Source::Api(&settings)).unwrap();
    let waits = |wanted: &str| {
        let status = agent.wait_for_status(|status| {
            let error = status.pod_starts.error.as_ref();
            error.is_some_and(|error| error.contains(wanted))
        });
        status.unwrap()
    };
    let status = waits("it has no spec.podCIDR");
    assert_eq!(status.pod_starts.mode, "discovery");
    assert!(!status.ready);
    world.put(json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": world.node.node_name()},
        "spec": {"podCIDR": "10.244.7.0/24", "podCIDRs": ["10.244.7.0/24", "fd00:244:7::/64"]},
    }));
    // The agent looks again by itself, later, or when something happens.
    fs::write(conf.join("readme"), "").unwrap();
    agent
        .wait_for_status(|status| status.ready && status.pod_starts.mode == "plugin")
        .unwrap();
    let made: Value = serde_json::from_slice(&fs::read(conf.join(FILE)).unwrap()).unwrap();
    assert_eq!(
        made["plugins"][1]["ipam"]["ranges"],
        json!([[{"subnet": "10.244.7.0/24"}], [{"subnet": "fd00:244:7::/64"}]])
    );
    let types: Vec<_> = made["plugins"]
        .as_array()
        .unwrap()
        .iter()
        .map(|plugin| plugin["type"].as_str().unwrap())
        .collect();
    assert_eq!(types, ["policy-cni", "ptp", "portmap", "policy-cni"]);
    agent.kill().unwrap();
}
