//! The memory of an agent that enforces all there is.

use anyhow::Result;

use super::super::process::memory;
use super::super::report::Row;
use super::below;
use crate::netns::Agent;

/// `mark` is in megabytes.
pub(super) fn measure(agent: &Agent<'_>, pods: &str, mark: f64) -> Result<Vec<Row>> {
    let process = agent.process_id().to_string();
    let row = |name: String, field| -> Result<Row> {
        Ok(Row {
            name,
            median: memory(&process, field)? / 1e6,
            unit: "MB",
            mark: None,
        })
    };
    let resident = memory(&process, "VmRSS")? / 1e6;
    Ok(vec![
        below(mark, format!("agent beside {pods} pods"), resident, "MB"),
        row(format!("agent beside {pods} pods, at most"), "VmHWM")?,
        row(
            format!("agent beside {pods} pods, without files"),
            "RssAnon",
        )?,
    ])
}
