//! What the agent on this node is asked.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use hyper::Method;
use serde::de::DeserializeOwned;

use super::args::{Format, Resource};
use super::error::CtlError;
use super::output::{Listing, show};
use super::print;
use crate::datastore::kubernetes::Selection;
use crate::http::client::{self, ClientError};
use crate::report::{IdentityStatus, PolicyStatus, Status, SyncReport, WorkloadEndpoint};

/// How long answers may take that the agent has at hand; counting big tables takes a second.
const PATIENCE: Duration = Duration::from_secs(30);

/// The agent on this node.
pub(super) struct Agent {
    /// Its socket.
    pub socket: PathBuf,
}

impl Agent {
    async fn ask<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        client::request(&self.socket, Method::GET, path, PATIENCE).await
    }

    /// What it knows of what was asked for.
    pub(super) async fn get(
        &self,
        resource: Resource,
        selection: &Selection,
    ) -> Result<Listing, ClientError> {
        let is = |wanted: &Option<String>, value: &str| {
            wanted.as_deref().is_none_or(|wanted| wanted == value)
        };
        Ok(match resource {
            Resource::WorkloadEndpoints => {
                let mut list: Vec<WorkloadEndpoint> = self.ask("/v1/workloadendpoints").await?;
                list.retain(|WorkloadEndpoint { endpoint, .. }| {
                    is(&selection.namespace, &endpoint.namespace)
                        && is(&selection.name, &endpoint.pod)
                        && is(&selection.node, &endpoint.hostname)
                });
                Listing::WorkloadEndpoints(list)
            }
            Resource::NetworkPolicies => {
                let mut list: Vec<PolicyStatus> = self.ask("/v1/networkpolicies").await?;
                list.retain(|policy| {
                    is(&selection.namespace, &policy.namespace) && is(&selection.name, &policy.name)
                });
                Listing::NetworkPolicies(list)
            }
            Resource::Identities => {
                let list: Vec<IdentityStatus> = self.ask("/v1/identities").await?;
                Listing::Identities(list)
            }
        })
    }

    /// `policyctl status`.
    pub(super) async fn status(&self, format: Option<Format>) -> Result<ExitCode, CtlError> {
        let status: Status = self.ask("/v1/status").await?;
        let well = status.ready && status.problems.is_empty() && status.datastore.errors.is_empty();
        show(format, &status, print::status)?;
        Ok(if well {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        })
    }

    /// `policyctl sync`.
    pub(super) async fn sync(&self, patience: Duration) -> Result<ExitCode, ClientError> {
        let answer: Result<SyncReport, _> =
            client::request(&self.socket, Method::POST, "/v1/sync", patience).await;
        match answer {
            Ok(report) if report.errors.is_empty() => {
                println!("enforced, revision {}", report.revision);
                Ok(ExitCode::SUCCESS)
            }
            Ok(report) => {
                eprintln!(
                    "policyctl: revision {} is enforced, but not everything that the datastore holds:",
                    report.revision
                );
                for error in report.errors {
                    eprintln!("  {error}");
                }
                Ok(ExitCode::FAILURE)
            }
            Err(timeout @ ClientError::Timeout(_)) => {
                // Best effort: says what it waits for, when the agent still answers.
                if let Ok(status) = self.ask::<Status>("/v1/status").await {
                    for condition in status.conditions.iter().filter(|condition| !condition.ok) {
                        eprintln!("policyctl: {}: {}", condition.name, condition.message);
                    }
                    // Such as an API that is away, for which no condition fails.
                    for problem in status.problems {
                        eprintln!("policyctl: {problem}");
                    }
                }
                Err(timeout)
            }
            Err(error) => Err(error),
        }
    }
}
