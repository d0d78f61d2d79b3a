//! Pods made by the reference CNI plugins (Debian's containernetworking-plugins) with ours at the end of
//! the chain, through the CNI protocol, with the real agent.

#![expect(
    clippy::unwrap_used,
    reason = "a test's set-up that fails should fail the test, where it stands"
)]

mod burst;
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
    // An observer that asked for an address before it was there is not to be held up by that.
    for family in ["ipv4", "ipv6"] {
        let key = format!("net/{family}/neigh/default/retrans_time_ms");
        node.netns().sysctl(&key, "10").unwrap();
    }
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
    (Network::new(node, plugin), outside)
}
