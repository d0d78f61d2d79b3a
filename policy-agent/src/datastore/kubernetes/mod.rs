//! The `kubernetes` datastore: NetworkPolicies, Pods, Namespaces, Services and this Node, from the API.
//!
//! ```text
//! client <--request-- follow (one task a resource) --messages--> store --updates--> agent
//!                       decode, trimmed                            failure, report
//! ```
//!
//! - [`client`](fn@client): connections and credentials; `identity`: a client certificate in files.
//! - `request`, `decode`, `trimmed`: pages of lists and events of watches as objects of the model, one at
//!   a time; no API object is kept.
//! - `follow`: lists, watches, resumes, waits; `failure` puts into words why something fails.
//! - `pod_cidrs`: the node's own range of addresses, once, for a CNI configuration.
//! - `list`: everything of a resource once, for who does not follow it (`policyctl`).
//! - `objects`: what was there before, so that changes and deletions are known, with strings `shared`;
//!   `held`: pods that wait for their Namespace; `store`: updates, report, log.
//!
//! Invariants: nothing is sent as loaded before all enforced resources were listed completely. An object
//! that vanishes from a complete list is gone, one that is missing from an incomplete list is not. While
//! the API cannot be read nothing changes, so what is enforced stays. An object that is invalid is reported,
//! and what can be taken over of it never allows more than it means: a policy isolates whom it selects and
//! allows nothing, whatever it allowed before; a pod lacks the addresses and ports that are wrong. Of another
//! the last valid state of the same name stays in force.

mod client;
mod decode;
mod failure;
mod follow;
mod held;
mod identity;
mod list;
mod objects;
mod pod_cidrs;
mod request;
mod resource;
mod shared;
mod store;
mod trimmed;

pub use client::client;
pub use list::{InvalidObject, ListError, Listed, Selection, list_network_policies, list_pods};
pub use pod_cidrs::pod_cidrs;

use std::sync::Arc;

use kube::Client;
use tokio::sync::{Notify, mpsc, watch};

use super::{Datastore, Report};
use follow::Follower;
use request::Collection;
use resource::Resource;
use store::Store;

/// Updates that may wait for the agent.
const UPDATES: usize = 64;

/// Messages that may wait for the store; a page of a list is one.
const MESSAGES: usize = 64;

/// Begins to read the API of `client`, `source` in words, for the node of this name; must be called
/// within a tokio runtime. That the API cannot be reached is said in the report and in the log, and
/// tried again.
#[must_use]
pub fn start(client: Client, source: String, node: Arc<str>) -> Datastore {
    let (updates, updates_out) = mpsc::channel(UPDATES);
    let (sync, sync_in) = mpsc::channel(16);
    let (messages, messages_out) = mpsc::channel(MESSAGES);
    let (asked, asked_out) = watch::channel(0);
    let recovered = Arc::new(Notify::new());
    let this_node = Collection {
        client: client.clone(),
        resource: Resource::Nodes,
        selection: Selection {
            name: Some(node.to_string()),
            ..Selection::default()
        },
    };
    for resource in Resource::ALL {
        let collection = match resource {
            Resource::Nodes => this_node.clone(),
            _ => Collection {
                client: client.clone(),
                resource,
                selection: Selection::default(),
            },
        };
        let follower = Follower::new(
            collection,
            this_node.clone(),
            messages.clone(),
            asked_out.clone(),
            recovered.clone(),
        );
        tokio::spawn(follower.run());
    }
    let store = Store::new(source, node, updates, asked);
    let report_in = watch::Sender::new(Arc::new(Report::default()));
    let report = report_in.subscribe();
    tokio::spawn(store.run(messages_out, sync_in, report_in));
    Datastore {
        updates: updates_out,
        sync,
        report,
    }
}

#[cfg(test)]
mod fake_api;

#[cfg(test)]
#[path = "follow_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "failure_tests.rs"]
mod failure_tests;
