//! Lists and objects on standard output, in the format asked for.

use std::io::{ErrorKind, Write as _};

use serde::Serialize;

use super::args::{Format, ListFormat};
use super::cluster::{ClusterEndpoint, ClusterPolicy};
use super::error::CtlError;
use super::{print, print_cluster};
use crate::report::{IdentityStatus, PolicyStatus, WorkloadEndpoint};

/// What `get` found.
#[derive(Debug)]
pub(super) enum Listing {
    /// The agent's.
    WorkloadEndpoints(Vec<WorkloadEndpoint>),
    /// The agent's.
    NetworkPolicies(Vec<PolicyStatus>),
    /// The agent's.
    Identities(Vec<IdentityStatus>),
    /// The API's.
    ClusterEndpoints(Vec<ClusterEndpoint>),
    /// The API's.
    ClusterPolicies(Vec<ClusterPolicy>),
}

impl Listing {
    /// Whether nothing was found.
    pub(super) fn is_empty(&self) -> bool {
        match self {
            Self::WorkloadEndpoints(list) => list.is_empty(),
            Self::NetworkPolicies(list) => list.is_empty(),
            Self::Identities(list) => list.is_empty(),
            Self::ClusterEndpoints(list) => list.is_empty(),
            Self::ClusterPolicies(list) => list.is_empty(),
        }
    }

    /// Text in this format. `alone`: one object was asked for, not a list.
    pub(super) fn render(&self, format: Option<ListFormat>, alone: bool) -> String {
        let format = match format {
            None => None,
            Some(ListFormat::Wide) => Some(Format::Wide),
            Some(ListFormat::Json) => Some(Format::Json),
            Some(ListFormat::Yaml) => Some(Format::Yaml),
            Some(ListFormat::Name) => return self.names(),
        };
        match self {
            Self::WorkloadEndpoints(list) => items(format, list, alone, print::workload_endpoints),
            Self::NetworkPolicies(list) => items(format, list, alone, print::network_policies),
            Self::Identities(list) => items(format, list, alone, print::identities),
            Self::ClusterEndpoints(list) => items(format, list, alone, print_cluster::endpoints),
            Self::ClusterPolicies(list) => items(format, list, alone, print_cluster::policies),
        }
    }

    /// One a line, as `get` takes them.
    fn names(&self) -> String {
        let policy = |namespace: &str, name: &str| format!("{namespace}/{name}\n");
        match self {
            Self::WorkloadEndpoints(list) => list
                .iter()
                .map(|found| found.endpoint.workload.clone() + "\n")
                .collect(),
            Self::ClusterEndpoints(list) => list
                .iter()
                .map(|found| found.endpoint.workload.clone() + "\n")
                .collect(),
            Self::NetworkPolicies(list) => list
                .iter()
                .map(|found| policy(&found.namespace, &found.name))
                .collect(),
            Self::ClusterPolicies(list) => list
                .iter()
                .map(|found| policy(&found.namespace, &found.name))
                .collect(),
            Self::Identities(list) => list
                .iter()
                .map(|identity| format!("{}\n", identity.id))
                .collect(),
        }
    }
}

fn items<T: Serialize>(
    format: Option<Format>,
    list: &[T],
    alone: bool,
    table: impl FnOnce(&[T], bool) -> String,
) -> String {
    match (format, list) {
        (Some(Format::Json | Format::Yaml), [one]) if alone => {
            text(format, one, |_, _| String::new())
        }
        _ => text(format, list, table),
    }
}

/// `value` in this format; `table` is told whether it is to be wide.
fn text<T: Serialize + ?Sized>(
    format: Option<Format>,
    value: &T,
    table: impl FnOnce(&T, bool) -> String,
) -> String {
    match format {
        None => table(value, false),
        Some(Format::Wide) => table(value, true),
        Some(Format::Json) => serde_json::to_string_pretty(value)
            .map(|text| text + "\n")
            .unwrap_or_else(|error| error.to_string()),
        Some(Format::Yaml) => {
            serde_saphyr::to_string(&value).unwrap_or_else(|error| error.to_string())
        }
    }
}

/// Prints `value` in this format; `table` is told whether it is to be wide.
pub(super) fn show<T: Serialize>(
    format: Option<Format>,
    value: &T,
    table: impl FnOnce(&T, bool) -> String,
) -> Result<(), CtlError> {
    write(&text(format, value, table))
}

/// Writes to standard output.
pub(super) fn write(text: &str) -> Result<(), CtlError> {
    let mut output = std::io::stdout();
    match output
        .write_all(text.as_bytes())
        .and_then(|()| output.flush())
    {
        // Whoever stops reading, as `head` does, has seen enough.
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(CtlError::Output(error)),
        _ => Ok(()),
    }
}
