//! Readiness: what has to be so before pods on this node count as protected.

use std::time::Instant;

use super::{Agent, ExitState};
use crate::datastore::{ApiReport, NodePresence, Report};
use crate::report::Condition;

/// Everything that there was at the start has been read.
const DATASTORE_LOADED: &str = "DatastoreLoaded";
/// The API has a Node of this name; there is none without an API.
const NODE_KNOWN: &str = "NodeKnown";
/// The pods' interfaces are looked for.
const INTERFACES_FOUND: &str = "InterfacesFound";
/// No table operation fails.
const TABLES_WRITTEN: &str = "TablesWritten";
/// Every interface by which packets leave the node has its exit.
const EXITS_ATTACHED: &str = "ExitsAttached";
/// All that is known is in the tables, and all endpoints have their programs.
pub(super) const ENDPOINTS_ENFORCED: &str = "EndpointsEnforced";

/// The CNI plugin is installed, where this agent is to keep it so; how pods' starts are covered.
pub(super) const POD_STARTS_COVERED: &str = "PodStartsCovered";

/// The conditions that there are with every datastore.
const CONDITIONS: [&str; 6] = [
    DATASTORE_LOADED,
    INTERFACES_FOUND,
    TABLES_WRITTEN,
    EXITS_ATTACHED,
    ENDPOINTS_ENFORCED,
    POD_STARTS_COVERED,
];

/// What the health server knows.
#[derive(Clone, Debug)]
pub struct Health {
    /// What readiness depends on.
    pub conditions: Vec<Condition>,
    /// When the agent's loop last came round.
    pub beat: Instant,
}

impl Health {
    /// Before anything happened.
    #[must_use]
    pub fn starting() -> Self {
        Self {
            conditions: CONDITIONS
                .map(|name| condition(name, false, "starting"))
                .into(),
            beat: Instant::now(),
        }
    }

    /// Whether every condition holds.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.conditions.iter().all(|condition| condition.ok)
    }
}

fn condition(name: &str, ok: bool, message: impl Into<String>) -> Condition {
    Condition {
        name: name.to_owned(),
        ok,
        message: message.into(),
    }
}

/// How far the datastore has come, and what is in its way. That it cannot be read at the moment does
/// not make what it said before any less enforced.
fn datastore_words(report: &Report, loaded: bool) -> String {
    let mut words = if loaded {
        format!("{} objects, {}", report.objects, report.source)
    } else {
        format!("reading {}", report.source)
    };
    for failure in report.api.iter().flat_map(ApiReport::failures) {
        words = format!("{words}; {failure}");
    }
    words
}

/// Whether the API knows this node: under a wrong name none of its pods would be found.
fn node_known(api: &ApiReport, node: &str) -> Condition {
    let nodes = api
        .resources
        .iter()
        .find(|resource| resource.resource == "nodes");
    let message = match (api.node, nodes.map(|nodes| &nodes.state)) {
        (NodePresence::Present, _) => node.to_owned(),
        (NodePresence::Absent, _) => {
            format!(
                "the API has no Node {node}; set NODENAME to this node's name in `kubectl get nodes`"
            )
        }
        (NodePresence::Unknown, Some(state)) => format!("looking for Node {node}: {state}"),
        (NodePresence::Unknown, None) => format!("looking for Node {node}"),
    };
    condition(NODE_KNOWN, api.node == NodePresence::Present, message)
}

impl Agent {
    pub(super) fn publish_health(&self) {
        let conditions = self.conditions();
        self.health.send_modify(|health| {
            let was_ready = health.is_ready();
            health.conditions = conditions;
            health.beat = Instant::now();
            if health.is_ready() != was_ready {
                if was_ready {
                    tracing::debug!("not ready");
                } else {
                    tracing::info!("ready");
                }
            }
        });
    }

    pub(super) fn conditions(&self) -> Vec<Condition> {
        let report = self.datastore.report.borrow().clone();
        let loaded = self.engine.is_loaded();
        let scanned = match &self.scan_error {
            Some(error) => error.clone(),
            None if self.engine.is_scanned() => "looked for and followed".to_owned(),
            None => "not looked for yet".to_owned(),
        };
        let stuck = self.engine.stuck(Instant::now());
        let written = match &stuck {
            Some(stuck) => format!(
                "{}: {} ({} tries in {} s; {} operations wait)",
                stuck.operation,
                stuck.error,
                stuck.tries,
                stuck.seconds,
                self.engine.pending_operations()
            ),
            None => format!("revision {}", self.engine.enforced_revision()),
        };
        let without_room = self.engine.table_problems();
        let written = match without_room.as_slice() {
            [] => written,
            problems => format!("{written}; {}", problems.join("; ")),
        };
        let mut total = 0;
        let mut unready = Vec::new();
        for (local, state) in self.engine.endpoints() {
            total += 1;
            if state.word != "enforced" {
                let error = state.error.map(|error| format!(" ({error})"));
                unready.push(format!(
                    "{} {}{}",
                    local.pod,
                    state.word,
                    error.unwrap_or_default()
                ));
            }
        }
        let enforced = match unready.as_slice() {
            [] => format!("{total} of {total}"),
            _ => format!(
                "{} of {total}; {}",
                total - unready.len(),
                unready.join(", ")
            ),
        };
        let pod_starts = self.pod_starts.status();
        let mut conditions = vec![condition(
            DATASTORE_LOADED,
            loaded,
            datastore_words(&report, loaded),
        )];
        conditions.extend(
            report
                .api
                .as_ref()
                .map(|api| node_known(api, &self.config.node)),
        );
        conditions.extend([
            condition(
                INTERFACES_FOUND,
                self.engine.is_scanned() && self.scan_error.is_none(),
                scanned,
            ),
            condition(
                TABLES_WRITTEN,
                loaded && stuck.is_none() && without_room.is_empty(),
                written,
            ),
            self.exits_attached(),
            condition(ENDPOINTS_ENFORCED, self.engine.is_settled(), enforced),
            condition(
                POD_STARTS_COVERED,
                pod_starts.error.is_none(),
                pod_starts.words(),
            ),
        ]);
        conditions
    }

    /// An interface without an exit lets out unjudged what pods send to Services.
    fn exits_attached(&self) -> Condition {
        let mut total = 0;
        let mut without = Vec::new();
        // Those that are being detached are superfluous rather than missing, and others may become pods'.
        let wanted = self
            .engine
            .exits()
            .filter(|exit| !["detaching", ExitState::WAITING].contains(&exit.word));
        for exit in wanted {
            total += 1;
            if exit.word != "attached" {
                let error = exit.error.map(|error| format!(" ({error})"));
                without.push(format!("{}{}", exit.interface, error.unwrap_or_default()));
            }
        }
        let attached = total - without.len();
        let message = match without.as_slice() {
            [] => format!("{attached} of {total}"),
            _ => format!("{attached} of {total}; without: {}", without.join(", ")),
        };
        condition(
            EXITS_ATTACHED,
            self.engine.is_scanned() && without.is_empty(),
            message,
        )
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::datastore::{Outage, ResourceReport, WatchState};

    fn report(node: NodePresence, pods: WatchState) -> Report {
        let resource = |resource, state| ResourceReport {
            resource,
            loaded: false,
            state,
            objects: 0,
            restarts: 0,
            relists: 0,
        };
        Report {
            source: "Kubernetes API https://api".to_owned(),
            api: Some(ApiReport {
                source: "Kubernetes API https://api".to_owned(),
                outage: None,
                last_contact: None,
                node,
                failed: Vec::new(),
                resources: vec![
                    resource("pods", pods),
                    resource("nodes", WatchState::Listing),
                ],
            }),
            ..Report::default()
        }
    }

    #[test]
    fn a_resource_that_cannot_be_read_is_named_once() {
        let outage = Outage {
            since: SystemTime::now(),
            reason: "not allowed to list pods".to_owned(),
        };
        let mut report = report(NodePresence::Present, WatchState::Failing(outage.clone()));
        assert_eq!(
            datastore_words(&report, false),
            "reading Kubernetes API https://api; pods failing for 0 s: not allowed to list pods"
        );
        // The whole API fails for the same reason: one thing to say.
        if let Some(api) = &mut report.api {
            api.outage = Some(outage);
        }
        assert_eq!(
            datastore_words(&report, true),
            "0 objects, Kubernetes API https://api; failing for 0 s: not allowed to list pods"
        );
    }

    #[test]
    fn a_node_that_the_api_does_not_know_is_not_ready() {
        let rows = [
            (NodePresence::Unknown, false, "looking for Node n1: listing"),
            (
                NodePresence::Absent,
                false,
                "the API has no Node n1; set NODENAME to this node's name in `kubectl get nodes`",
            ),
            (NodePresence::Present, true, "n1"),
        ];
        for (presence, ok, message) in rows {
            let report = report(presence, WatchState::Watching);
            let api = report.api.as_ref().expect("api");
            assert_eq!(node_known(api, "n1"), condition("NodeKnown", ok, message));
        }
    }
}
