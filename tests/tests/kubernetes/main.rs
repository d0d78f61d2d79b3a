//! The real agent, enforcing what a Kubernetes API server says on a real node.
//!
//! Most tests run against the API server within the test and, where `KUBEBUILDER_ASSETS` names a
//! directory that has one, against kube-apiserver with etcd. Faults can only be made in the former.

#![expect(
    clippy::unwrap_used,
    reason = "a test's set-up that fails should fail the test, where it stands"
)]

mod changes;
mod cni;
mod faults;
mod outage;
mod world;

use serde_json::{Value, json};

/// Runs each function below against the API server within the test, and against the real one.
macro_rules! against_both {
    ($($test:ident)+) => {
        mod in_process {
            $(#[test] fn $test() { super::$test(&crate::world::World::in_process()); })+
        }
        mod real {
            $(#[test] fn $test() {
                if let Some(world) = crate::world::World::real() { super::$test(&world); }
            })+
        }
    };
}
use against_both;

/// Isolates everything in the namespace for ingress.
fn deny_ingress() -> Value {
    json!({"podSelector": {}, "policyTypes": ["Ingress"]})
}

/// Lets pods with `app: web` of the same namespace reach `db`.
fn web_to_db() -> Value {
    json!({
        "podSelector": {"matchLabels": {"app": "db"}},
        "policyTypes": ["Ingress"],
        "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "web"}}}]}],
    })
}

/// Lets pods of namespaces with this label `team` reach `db`.
fn team_to_db(team: &str) -> Value {
    json!({
        "podSelector": {"matchLabels": {"app": "db"}},
        "policyTypes": ["Ingress"],
        "ingress": [{"from": [{"namespaceSelector": {"matchLabels": {"team": team}}}]}],
    })
}
