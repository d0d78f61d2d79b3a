//! Real traffic through the real agent: a node and its pods as network namespaces.
//!
//! What is denied is waited for in vain for 400 ms; all else is waited for until it happens.

#![expect(
    clippy::unwrap_used,
    reason = "a test's set-up that fails should fail the test, where it stands"
)]

mod bindings;
mod cluster;
mod demo;
mod documents;
mod drift;
mod flows;
mod guards;
mod interfaces;
mod lifecycle;
mod metrics;
mod node;
mod persistence;
mod policies;
mod privileges;
mod protocols;
mod services;
mod uninstall;

use portcullis_tests::netns::{Expected, Form, Host, Node, PodSpec, What, check};

/// Runs each function below with pods behind routed veths, and with pods on a bridge.
macro_rules! in_both_forms {
    ($($test:ident)+) => {
        mod routed {
            $(#[test] fn $test() { super::$test(portcullis_tests::netns::Form::Routed); })+
        }
        mod bridge {
            $(#[test] fn $test() { super::$test(portcullis_tests::netns::Form::Bridge); })+
        }
    };
}
use in_both_forms;

/// The pods that most tests are about.
struct Cast {
    node: Node,
    /// In `shop`, with `app: web`.
    web: Host,
    /// In `shop`, with `app: db`, and with a port named `query` (TCP 8080).
    db: Host,
    /// In `dev`, with `app: tool`.
    tool: Host,
}

impl Cast {
    fn new(form: Form) -> Self {
        let node = Node::new(form).unwrap();
        let store = node.datastore();
        store.put_namespace("shop", &[("team", "shop")]).unwrap();
        store.put_namespace("dev", &[("team", "dev")]).unwrap();
        let web = node
            .add(PodSpec::new("shop", "web", &[("app", "web")]))
            .unwrap();
        let db = node
            .add(PodSpec {
                ports: &[("query", "TCP", 8080)],
                ..PodSpec::new("shop", "db", &[("app", "db")])
            })
            .unwrap();
        let tool = node
            .add(PodSpec::new("dev", "tool", &[("app", "tool")]))
            .unwrap();
        Self {
            node,
            web,
            db,
            tool,
        }
    }

    fn policy(&self, name: &str, spec: &str) {
        self.node
            .datastore()
            .put_policy("shop", name, spec)
            .unwrap();
    }

    /// Web may open connections to db, and nobody anything else; db least of all.
    fn only_web_to_db(&self) {
        self.policy("default-deny", DENY_ALL);
        self.policy(
            "web-out",
            "podSelector: {matchLabels: {app: web}}\n\
             policyTypes: [Egress]\n\
             egress:\n- to: [{podSelector: {matchLabels: {app: db}}}]",
        );
        self.policy("web-to-db", WEB_TO_DB);
    }

    fn no_policy(&self, name: &str) {
        self.node.datastore().delete_policy("shop", name).unwrap();
    }
}

/// Isolates everything in the namespace for ingress.
const DENY_INGRESS: &str = "{podSelector: {}, policyTypes: [Ingress]}";

/// Isolates everything in the namespace both ways.
const DENY_ALL: &str = "{podSelector: {}, policyTypes: [Ingress, Egress]}";

/// Lets `web` reach `db`, whatever the port and protocol.
const WEB_TO_DB: &str = "\
podSelector: {matchLabels: {app: db}}
ingress:
- from: [{podSelector: {matchLabels: {app: web}}}]";

/// Whether this kernel has TCX.
fn has_tcx() -> bool {
    let tcx = aya::util::KernelVersion::new(6, 6, 0);
    aya::util::KernelVersion::current().unwrap() >= tcx
}
