//! Readiness: what has to be so before pods on this node count as protected.

use std::time::Instant;

use super::Agent;
use crate::report::Condition;

/// Everything that there was at the start has been read.
const DATASTORE_LOADED: &str = "DatastoreLoaded";
/// The pods' interfaces are looked for.
const INTERFACES_FOUND: &str = "InterfacesFound";
/// No table operation fails.
const TABLES_WRITTEN: &str = "TablesWritten";
/// All that is known is in the tables, and all endpoints have their programs.
const ENDPOINTS_ENFORCED: &str = "EndpointsEnforced";

/// Every condition.
const CONDITIONS: [&str; 4] = [
    DATASTORE_LOADED,
    INTERFACES_FOUND,
    TABLES_WRITTEN,
    ENDPOINTS_ENFORCED,
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
        let loaded = if self.engine.is_loaded() {
            format!("{} objects, {}", report.objects, report.source)
        } else {
            format!("reading {}", report.source)
        };
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
        vec![
            condition(DATASTORE_LOADED, self.engine.is_loaded(), loaded),
            condition(
                INTERFACES_FOUND,
                self.engine.is_scanned() && self.scan_error.is_none(),
                scanned,
            ),
            condition(
                TABLES_WRITTEN,
                self.engine.is_loaded() && stuck.is_none(),
                written,
            ),
            condition(ENDPOINTS_ENFORCED, self.engine.is_settled(), enforced),
        ]
    }
}
