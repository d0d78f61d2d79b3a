//! What operators ask through the local socket, answered by the loop that owns the state.

use std::sync::atomic::Ordering;

use policy_core::model::Subject;
use tokio::sync::oneshot;

use super::Agent;
use super::attachments::CniQuery;
use super::views;
use crate::datastore::{Severity, SyncToken};
use crate::endpoint::Discovery;
use crate::metrics::{Lost, Snapshot};
use crate::report::{
    DatastoreStatus, IdentityStatus, PolicyStatus, Status, SyncReport, WorkloadEndpoint,
};

/// A question and where its answer goes.
#[derive(Debug)]
pub enum Query {
    /// How the agent is.
    Status(oneshot::Sender<Status>),
    /// The endpoints of this node.
    WorkloadEndpoints(oneshot::Sender<Vec<WorkloadEndpoint>>),
    /// The identities in force.
    Identities(oneshot::Sender<Vec<IdentityStatus>>),
    /// The policies.
    NetworkPolicies(oneshot::Sender<Vec<PolicyStatus>>),
    /// What a scrape shows; an error says what of it cannot be had.
    Metrics(oneshot::Sender<Result<Snapshot, String>>),
    /// Answered once everything that the datastore holds now is enforced.
    Sync(oneshot::Sender<SyncReport>),
    /// From the CNI plugin.
    Cni(Box<CniQuery>),
}

/// A sync under way.
#[derive(Debug)]
pub(super) struct Sync {
    state: SyncState,
    reply: oneshot::Sender<SyncReport>,
}

#[derive(Debug, PartialEq, Eq)]
enum SyncState {
    /// The datastore reads.
    Reading(SyncToken),
    /// Interfaces are looked for; waits for the answer to this request.
    Scanning(u64),
    /// Waits for all of it to be enforced.
    Settling,
}

impl Sync {
    /// The datastore has sent all that there was when `token` was given.
    pub(super) fn read(&mut self, token: SyncToken, discovery: &Discovery) {
        if matches!(self.state, SyncState::Reading(waits) if waits <= token) {
            self.state = SyncState::Scanning(discovery.request());
        }
    }

    /// A scan that answers every request up to `number` was taken in.
    pub(super) fn scanned(&mut self, number: u64) {
        if matches!(self.state, SyncState::Scanning(waits) if waits <= number) {
            self.state = SyncState::Settling;
        }
    }
}

impl Agent {
    pub(super) fn answer(&mut self, query: Query) {
        // A reply that nobody waits for any more is none of our business.
        match query {
            Query::Status(reply) => drop(reply.send(self.status())),
            Query::WorkloadEndpoints(reply) => {
                drop(reply.send(views::workload_endpoints(&self.engine, &self.config.node)));
            }
            Query::Identities(reply) => drop(reply.send(views::identities(&self.engine))),
            Query::NetworkPolicies(reply) => drop(reply.send(views::policies(&self.engine))),
            // A scrape that gave up while the loop was busy.
            Query::Metrics(reply) if reply.is_closed() => {}
            Query::Metrics(reply) => drop(reply.send(self.snapshot())),
            Query::Cni(query) => self.answer_cni(*query),
            Query::Sync(reply) => {
                self.last_token += 1;
                let token = SyncToken(self.last_token);
                // Full only when many syncs wait; their askers time out rather than the loop block.
                if self.datastore.sync.try_send(token).is_ok() {
                    self.syncs.push(Sync {
                        state: SyncState::Reading(token),
                        reply,
                    });
                }
            }
        }
    }

    /// Answers the syncs that are done, and forgets those that nobody waits for.
    pub(super) fn finish_syncs(&mut self) {
        self.syncs.retain(|sync| !sync.reply.is_closed());
        if !self.engine.is_settled() {
            return;
        }
        let waiting = std::mem::take(&mut self.syncs);
        let (done, waiting): (Vec<_>, Vec<_>) = waiting
            .into_iter()
            .partition(|sync| sync.state == SyncState::Settling);
        self.syncs = waiting;
        if done.is_empty() {
            return;
        }
        let report = SyncReport {
            revision: self.engine.enforced_revision(),
            errors: self.errors(),
        };
        for sync in done {
            drop(sync.reply.send(report.clone()));
        }
    }

    /// What the datastore holds but is not enforced.
    fn errors(&self) -> Vec<String> {
        let mut errors = self.datastore_problems(Severity::Error);
        errors.extend(self.engine.refusals());
        errors
    }

    fn datastore_problems(&self, severity: Severity) -> Vec<String> {
        let report = self.datastore.report.borrow();
        report
            .problems
            .iter()
            .filter(|problem| problem.severity == severity)
            .map(ToString::to_string)
            .collect()
    }

    fn status(&self) -> Status {
        let conditions = self.conditions();
        let dataplane = &self.engine.kernel;
        let report = self.datastore.report.borrow().clone();
        let mut problems = self.engine.problems();
        if let Some(api) = &report.api {
            let failures = api.failures().into_iter();
            problems.extend(failures.map(|failure| format!("{}: {failure}", api.source)));
        }
        let counters = dataplane.counters().unwrap_or_else(|error| {
            problems.push(error.to_string());
            Vec::new()
        });
        let tables = dataplane.tables().unwrap_or_else(|error| {
            problems.push(error.to_string());
            dataplane.written_tables()
        });
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            node: self.config.node.to_string(),
            ready: conditions.iter().all(|condition| condition.ok),
            conditions,
            datastore: DatastoreStatus {
                source: report.source.clone(),
                loaded: report.loaded,
                files: report.files,
                objects: report.objects,
                errors: self.datastore_problems(Severity::Error),
                warnings: self.datastore_problems(Severity::Warning),
                api: report.api.as_ref().map(views::api),
            },
            revision: self.engine.revision(),
            enforced_revision: self.engine.enforced_revision(),
            pending_operations: self.engine.pending_operations(),
            pod_starts: self.pod_starts.status(),
            programs: views::programs(dataplane),
            exits: views::exits(&self.engine),
            tables: views::tables(&tables),
            counters: views::counters(&counters),
            problems,
            notes: self.notes(),
        }
    }

    fn snapshot(&self) -> Result<Snapshot, String> {
        let dataplane = &self.engine.kernel;
        let (rate_limited, buffer_full) =
            dataplane.events_lost().map_err(|error| error.to_string())?;
        Ok(Snapshot {
            endpoints: self.engine.endpoint_counts(),
            secondary_interfaces: self.engine.secondary_counts(),
            exits: self.engine.exit_counts(),
            policies: self.engine.compiler.policy_counts(),
            identities: self.engine.compiler.identity_count(),
            tables: dataplane.written_tables(),
            operations: self.engine.operations().clone(),
            repairs: self.engine.repairs().clone(),
            pending_operations: self.engine.pending_operations(),
            revision: self.engine.revision(),
            enforced_revision: self.engine.enforced_revision(),
            counters: dataplane.counters().map_err(|error| error.to_string())?,
            lost: Lost {
                rate_limited,
                buffer_full,
                log_busy: self.unlogged.load(Ordering::Relaxed),
            },
            drops_logged: self.drops_logged,
            latency: self.latency.clone(),
            datastore: self.datastore.report.borrow().clone(),
            pod_starts: self.pod_starts.status(),
            conditions: self.conditions(),
        })
    }

    fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        for pod in self.engine.pods.without_address() {
            notes.push(format!("pod {pod} waits for an address"));
        }
        for pod in self.engine.pods_without_interface() {
            notes.push(format!(
                "pod {pod}: no interface on this node bears its address"
            ));
        }
        for found in self.engine.unenforced() {
            notes.push(format!(
                "pod {}: its interface {} ({} here) is not enforced (PORTCULLIS_SECONDARY_INTERFACES=report)",
                found.pod, found.interface, found.host_interface
            ));
        }
        for (local, _) in self.engine.endpoints() {
            let known = match local.subject {
                Subject::Current => continue,
                Subject::Held(_) => "stays enforced with the labels that the pod had last",
                Subject::Unknown => "is denied everything, because nothing is known of the pod",
            };
            notes.push(format!(
                "pod {} is not in the datastore, or another pod has its name: its interface {} ({} here) {known}",
                local.pod, local.interface, local.host_interface
            ));
        }
        if let Ok((limited, full)) = self.engine.kernel.events_lost() {
            let busy = self.unlogged.load(Ordering::Relaxed);
            if limited + full + busy > 0 {
                notes.push(format!(
                    "drops not logged: {limited} rate-limited, {full} for a full buffer, {busy} for a busy log"
                ));
            }
        }
        notes
    }
}
