//! How it stands with the Kubernetes API.

use std::fmt;
use std::time::SystemTime;

/// What a datastore says about the API that it reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiReport {
    /// The API's URL and which setting names it, in words.
    pub source: String,
    /// Since when and why the API cannot be used, if so. What was read before stays in force.
    pub outage: Option<Outage>,
    /// When the API last answered.
    pub last_contact: Option<SystemTime>,
    /// Whether the API knows this node.
    pub node: NodePresence,
    /// Each resource that is read.
    pub resources: Vec<ResourceReport>,
    /// Tries that failed, by cause; every cause is there. Also of failures that are over.
    pub failed: Vec<(&'static str, u64)>,
}

impl ApiReport {
    /// What fails at the moment, one sentence for each cause.
    #[must_use]
    pub fn failures(&self) -> Vec<String> {
        let mut failures = Vec::new();
        if let Some(outage) = &self.outage {
            failures.push(WatchState::Failing(outage.clone()).to_string());
        }
        for resource in &self.resources {
            if let state @ WatchState::Failing(own) = &resource.state
                && self
                    .outage
                    .as_ref()
                    .is_none_or(|all| all.reason != own.reason)
            {
                failures.push(format!("{} {state}", resource.resource));
            }
        }
        failures
    }
}

/// Something that fails.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outage {
    /// Since when.
    pub since: SystemTime,
    /// Why, and what to do.
    pub reason: String,
}

/// Whether the API has a Node object of this node's name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NodePresence {
    /// Not known yet.
    #[default]
    Unknown,
    /// It has one.
    Present,
    /// It has none.
    Absent,
}

/// How it stands with one resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResourceReport {
    /// Its name in the API, such as `networkpolicies`.
    pub resource: &'static str,
    /// Whether it was listed completely at least once.
    pub loaded: bool,
    /// What is being done.
    pub state: WatchState,
    /// Objects in force.
    pub objects: usize,
    /// How often it was watched again after a watch had ended, for whatever reason.
    pub restarts: u64,
    /// How often it was listed again, because the watch could not be resumed or for a sync.
    pub relists: u64,
}

/// What is being done with a resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WatchState {
    /// It is being listed.
    Listing,
    /// It is watched: changes arrive as they happen.
    Watching,
    /// Neither works; both are tried again.
    Failing(Outage),
}

impl fmt::Display for WatchState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Listing => f.write_str("listing"),
            Self::Watching => f.write_str("watching"),
            Self::Failing(outage) => {
                let seconds = outage.since.elapsed().unwrap_or_default().as_secs();
                write!(f, "failing for {seconds} s: {}", outage.reason)
            }
        }
    }
}
