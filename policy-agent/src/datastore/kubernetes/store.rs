//! Puts together what the followers tell: updates for the agent, the report, and the log.

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use policy_core::model::ObjectName;
use tokio::sync::{mpsc, watch};

use super::decode::Item;
use super::failure::{Failure, Kind, Verb};
use super::follow::{Message, Notice};
use super::held::Held;
use super::objects::Objects;
use super::resource::Resource;
use crate::datastore::{
    ApiReport, NodePresence, ObjectChange, Outage, Problem, ProblemLog, Report, ResourceReport,
    Severity, SyncToken, Update, WatchState,
};

/// See the module.
pub(super) struct Store {
    source: String,
    node: Arc<str>,
    resources: [ResourceState; Resource::ALL.len()],
    held: Held,
    loaded: bool,
    /// Syncs that were not answered yet.
    syncs: Vec<SyncToken>,
    last_contact: Option<SystemTime>,
    outage: Option<ApiOutage>,
    /// Tries that failed, by kind.
    failed: [u64; Kind::ALL.len()],
    log: ProblemLog,
    updates: mpsc::Sender<Update>,
    asked: watch::Sender<u64>,
}

/// The whole API cannot be used.
struct ApiOutage {
    outage: Outage,
    /// Kinds of failures that were logged; they may alternate with each try.
    said: Vec<Kind>,
}

/// What is known of one resource.
struct ResourceState {
    resource: Resource,
    objects: Objects,
    state: WatchState,
    failing: Option<Failing>,
    loaded: bool,
    /// Number of the last sync that it answered.
    synced: u64,
    restarts: u64,
    relists: u64,
}

/// What of a resource fails.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Failing {
    kind: Kind,
    verb: Verb,
}

/// The agent has gone.
struct Closed;

impl Store {
    pub(super) fn new(
        source: String,
        node: Arc<str>,
        updates: mpsc::Sender<Update>,
        asked: watch::Sender<u64>,
    ) -> Self {
        Self {
            source,
            held: Held::new(node.clone()),
            node,
            resources: Resource::ALL.map(|resource| ResourceState {
                resource,
                objects: Objects::new(resource),
                state: WatchState::Listing,
                failing: None,
                loaded: false,
                synced: 0,
                restarts: 0,
                relists: 0,
            }),
            loaded: false,
            syncs: Vec::new(),
            last_contact: None,
            outage: None,
            failed: [0; Kind::ALL.len()],
            log: ProblemLog::default(),
            updates,
            asked,
        }
    }

    /// Runs until the agent has gone; the followers end with it.
    pub(super) async fn run(
        mut self,
        mut messages: mpsc::Receiver<Notice>,
        mut sync: mpsc::Receiver<SyncToken>,
        report: watch::Sender<Arc<Report>>,
    ) {
        report.send_replace(Arc::new(self.report()));
        loop {
            tokio::select! {
                token = sync.recv() => match token {
                    Some(token) => {
                        self.syncs.push(token);
                        self.asked.send_replace(token.0);
                    }
                    None => return,
                },
                message = messages.recv() => {
                    let mut changes = Vec::new();
                    let mut received = Instant::now();
                    let mut message = message;
                    // All that waits becomes one update.
                    while let Some(notice) = message {
                        if changes.is_empty() {
                            received = notice.received;
                        }
                        self.take_in(notice.resource, notice.message, &mut changes);
                        message = messages.try_recv().ok();
                    }
                    let changes = self.pass(changes);
                    let now = self.report();
                    self.log.update(&now.problems);
                    report.send_replace(Arc::new(now));
                    if self.send(changes, received).await.is_err() {
                        return;
                    }
                }
            }
        }
    }

    /// Changes without those that have to wait. Before all Namespaces are listed nothing is enforced.
    fn pass(&mut self, changes: Vec<ObjectChange>) -> Vec<ObjectChange> {
        let namespaces = &self.resources[Resource::Namespaces as usize];
        self.held.pass(changes, |name| {
            !namespaces.loaded || namespaces.objects.is_in_force(&ObjectName::new("", name))
        })
    }

    /// Sends changes, and behind them what they complete.
    async fn send(&mut self, changes: Vec<ObjectChange>, received: Instant) -> Result<(), Closed> {
        let mut updates = Vec::new();
        if !changes.is_empty() {
            updates.push(Update::Changes { received, changes });
        }
        if !self.loaded && self.enforced().all(|state| state.loaded) {
            self.loaded = true;
            updates.push(Update::Loaded);
        }
        let synced = self.enforced().map(|state| state.synced).min().unwrap_or(0);
        self.syncs.retain(|token| {
            let done = self.loaded && token.0 <= synced;
            if done {
                updates.push(Update::Synced(*token));
            }
            !done
        });
        for update in updates {
            self.updates.send(update).await.map_err(|_| Closed)?;
        }
        Ok(())
    }

    fn enforced(&self) -> impl Iterator<Item = &ResourceState> {
        self.resources
            .iter()
            .filter(|state| state.resource.is_enforced())
    }

    fn take_in(&mut self, resource: Resource, message: Message, changes: &mut Vec<ObjectChange>) {
        if let Message::Failing(failure) = message {
            self.failing(resource, failure);
            return;
        }
        if !matches!(message, Message::ListBegins) {
            self.last_contact = Some(SystemTime::now());
            // That it can be listed makes nothing better where it cannot be watched.
            let of_list = matches!(message, Message::Page(_) | Message::ListComplete(_));
            let failing = self.resources[resource as usize].failing;
            if !(of_list && failing.is_some_and(|failing| failing.verb == Verb::Watch)) {
                self.answered(resource);
            }
        }
        let state = &mut self.resources[resource as usize];
        match message {
            Message::ListBegins => {
                state.objects.begin_list();
                if state.failing.is_none() {
                    state.state = WatchState::Listing;
                }
            }
            Message::Page(items) => {
                changes.extend(items.into_iter().filter_map(|item| state.objects.put(item)))
            }
            Message::ListComplete(sync) => {
                changes.extend(state.objects.complete_list());
                if state.loaded {
                    state.relists += 1;
                }
                state.loaded = true;
                state.synced = state.synced.max(sync);
            }
            Message::Changed(item) => changes.extend(state.objects.put(item)),
            Message::Deleted(Item { name, .. }) => changes.extend(state.objects.delete(&name)),
            Message::CaughtUp(sync) => state.synced = state.synced.max(sync),
            Message::Watching { again } => {
                state.state = WatchState::Watching;
                state.restarts += u64::from(again);
            }
            Message::Contact | Message::Failing(_) => {}
        }
    }

    fn failing(&mut self, resource: Resource, failure: Failure) {
        self.failed[failure.kind as usize] += 1;
        let now = SystemTime::now();
        let of_the_api = failure.is_of_the_api();
        let state = &mut self.resources[resource as usize];
        let since = match &state.state {
            WatchState::Failing(outage) => outage.since,
            WatchState::Listing | WatchState::Watching => now,
        };
        let failing = Failing {
            kind: failure.kind,
            verb: failure.verb,
        };
        let is_new = state.failing.replace(failing).map(|before| before.kind) != Some(failure.kind);
        let outage = Outage {
            since,
            reason: failure.reason,
        };
        state.state = WatchState::Failing(outage.clone());
        if !of_the_api {
            if is_new {
                tracing::error!(
                    resource = resource.name(),
                    reason = outage.reason,
                    "cannot read from the Kubernetes API; what is enforced stays in force, trying again"
                );
            }
            return;
        }
        // All resources fail together, and are one thing to say.
        let known = self.outage.get_or_insert_with(|| ApiOutage {
            outage: outage.clone(),
            said: Vec::new(),
        });
        known.outage.reason = outage.reason;
        if !known.said.contains(&failure.kind) {
            known.said.push(failure.kind);
            tracing::error!(
                api = self.source,
                reason = known.outage.reason,
                "the Kubernetes API is away; what is enforced stays in force, trying again"
            );
        }
    }

    /// The API answered a request for this resource.
    fn answered(&mut self, resource: Resource) {
        let state = &mut self.resources[resource as usize];
        let Some(Failing { kind, .. }) = state.failing.take() else {
            return;
        };
        let since = match &state.state {
            WatchState::Failing(outage) => outage.since,
            WatchState::Listing | WatchState::Watching => SystemTime::now(),
        };
        state.state = WatchState::Listing;
        let seconds = |since: SystemTime| since.elapsed().unwrap_or_default().as_secs();
        if matches!(kind, Kind::Forbidden | Kind::Answer) {
            tracing::info!(
                resource = resource.name(),
                seconds = seconds(since),
                "can be read from the Kubernetes API again"
            );
        }
        // One answer shows that it is back; the others are about to try.
        if let Some(ApiOutage { outage, .. }) = self.outage.take() {
            tracing::info!(
                api = self.source,
                seconds = seconds(outage.since),
                "the Kubernetes API is back"
            );
        }
    }

    fn node_presence(&self) -> NodePresence {
        let nodes = &self.resources[Resource::Nodes as usize];
        match (nodes.loaded, nodes.objects.is_empty()) {
            (false, _) => NodePresence::Unknown,
            (true, true) => NodePresence::Absent,
            (true, false) => NodePresence::Present,
        }
    }

    fn problems(&self) -> Vec<Problem> {
        let problem = |object: String, message: String| Problem {
            file: "Kubernetes API".to_owned(),
            line: None,
            object: Some(object),
            message,
            severity: Severity::Error,
        };
        let mut problems: Vec<_> = self
            .resources
            .iter()
            .flat_map(|state| state.objects.mistakes())
            .map(|(object, mistake)| problem(object, mistake.clone()))
            .collect();
        if self.node_presence() == NodePresence::Absent {
            problems.push(problem(
                format!("Node {}", self.node),
                "there is none of this name, so no pod counts as this node's; set NODENAME to this node's name as \
                 `kubectl get nodes` lists it (in a DaemonSet: from the field spec.nodeName)"
                    .to_owned(),
            ));
        }
        problems.sort();
        problems
    }

    fn report(&self) -> Report {
        Report {
            source: self.source.clone(),
            loaded: self.enforced().all(|state| state.loaded),
            files: 0,
            objects: self.enforced().map(|state| state.objects.in_force()).sum(),
            problems: self.problems(),
            api: Some(ApiReport {
                source: self.source.clone(),
                outage: self.outage.as_ref().map(|known| known.outage.clone()),
                last_contact: self.last_contact,
                node: self.node_presence(),
                failed: Kind::ALL
                    .map(|kind| (kind.name(), self.failed[kind as usize]))
                    .into(),
                resources: self
                    .resources
                    .iter()
                    .map(|state| ResourceReport {
                        resource: state.resource.name(),
                        loaded: state.loaded,
                        state: state.state.clone(),
                        objects: state.objects.in_force(),
                        restarts: state.restarts,
                        relists: state.relists,
                    })
                    .collect(),
            }),
        }
    }
}
