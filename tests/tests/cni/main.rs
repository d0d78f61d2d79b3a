//! Pods made by the reference CNI plugins (Debian's containernetworking-plugins) with ours at the end of
//! the chain, through the CNI protocol, with the real agent.

#![expect(
    clippy::unwrap_used,
    reason = "a test's set-up that fails should fail the test, where it stands"
)]

mod bandwidth;
mod burst;
mod exposure;
mod installed;
mod many;
mod nodes;
mod observer;
mod overtaken;
mod runner;
mod starts;

use portcullis_tests::netns::{Form, Host, Node};
use runner::Network;

/// Runs each function below with ptp and with bridge as the main plugin.
macro_rules! with_both_plugins {
    ($($test:ident)+) => {
        mod ptp {
            $(#[test] fn $test() { super::$test("ptp"); })+
        }
        mod bridge {
            $(#[test] fn $test() { super::$test("bridge"); })+
        }
    };
}
use with_both_plugins;

/// A machine with the namespaces `shop`, isolated for ingress but for `app: web`, and `dev`, not isolated.
fn machine() -> Node {
    let node = Node::new(Form::Routed).unwrap();
    let store = node.datastore();
    store.put_namespace("shop", &[]).unwrap();
    store.put_namespace("dev", &[]).unwrap();
    let from_web = "\
podSelector: {}
ingress:
- from: [{podSelector: {matchLabels: {app: web}}}]";
    store.put_policy("shop", "from-web", from_web).unwrap();
    node
}

/// The pod network, with a host outside that knows the way to it.
fn network<'a>(node: &'a Node, plugin: &str) -> (Network<'a>, Host) {
    let outside = node.add_outside("outside", 10).unwrap();
    make_bridge(node, plugin);
    (Network::new(node, plugin), outside)
}

/// Makes the bridge, if there is to be one, before the plugin would.
fn make_bridge(node: &Node, plugin: &str) {
    if plugin == "bridge" {
        // One that asked for an address before there was a pod with it is not to wait for long before it asks
        // again.
        let bridge = runner::BRIDGE;
        node.netns()
            .ip(&format!(
                "link add {bridge} address 02:00:0a:f5:00:01 type bridge"
            ))
            .unwrap();
        let key = format!("net/ipv4/neigh/{bridge}/retrans_time_ms");
        node.netns().sysctl(&key, "10").unwrap();
    }
}
