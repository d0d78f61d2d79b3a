//! What the agent's loop tells a scrape.

use std::collections::BTreeMap;
use std::sync::Arc;

use policy_core::PolicyCounts;

use super::Latency;
use crate::agent::Operations;
use crate::dataplane::{CounterRow, TableUse};
use crate::datastore::Report;
use crate::report::{Condition, PodStartsStatus};

/// The agent's state at one moment; whatever only its loop knows.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Endpoints by state; every state is there.
    pub endpoints: BTreeMap<&'static str, usize>,
    /// Pods' further interfaces, enforced or only named.
    pub secondary_interfaces: [(&'static str, usize); 2],
    /// Exits by state; every state is there.
    pub exits: BTreeMap<&'static str, usize>,
    /// Policies by status.
    pub policies: PolicyCounts,
    /// Identities in force.
    pub identities: usize,
    /// The tables that operations write.
    pub tables: Vec<TableUse>,
    /// What was asked of the kernel.
    pub operations: Operations,
    /// What had drifted in the kernel and was put right, by part; every part is there.
    pub repairs: BTreeMap<&'static str, u64>,
    /// Operations not executed yet.
    pub pending_operations: usize,
    /// Number of the last compiled state.
    pub revision: u64,
    /// Number of the last state that is wholly in the kernel's tables.
    pub enforced_revision: u64,
    /// Packets and bytes by direction and reason; every pair is there.
    pub counters: Vec<CounterRow>,
    /// Drops that were counted but not logged.
    pub lost: Lost,
    /// Drops that were logged.
    pub drops_logged: u64,
    /// From a datastore's event to its enforcement.
    pub latency: Latency,
    /// What the datastore says about itself.
    pub datastore: Arc<Report>,
    /// How starting pods come under enforcement.
    pub pod_starts: PodStartsStatus,
    /// What readiness depends on.
    pub conditions: Vec<Condition>,
}

/// Drops that were counted but not logged, by cause.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lost {
    /// The programs send only so many a second.
    pub rate_limited: u64,
    /// The ring buffer was full.
    pub buffer_full: u64,
    /// The agent could not log as fast.
    pub log_busy: u64,
}
