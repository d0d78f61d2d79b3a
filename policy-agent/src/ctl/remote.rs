//! What the Kubernetes API is asked.

use kube::Client;

use super::args::{ListFormat, Resource};
use super::cluster::{Workloads, node_of};
use super::error::CtlError;
use super::output::Listing;
use crate::config::ApiConfig;
use crate::datastore::convert::PodObject;
use crate::datastore::kubernetes::{
    self, ListError, Listed, Selection, list_network_policies, list_pods,
};

/// The Kubernetes API.
pub(super) struct Api {
    client: Client,
    /// Which one it is, in words.
    source: String,
}

/// What was found, and what there is to say about it.
#[derive(Debug)]
pub(super) struct Found {
    pub listing: Listing,
    /// What was left out or is not known, one sentence each.
    pub warnings: Vec<String>,
    /// Where the one object that was asked for is there but does not count: why.
    pub why_none: Option<String>,
}

impl Api {
    /// The API of this configuration; must be called within a tokio runtime.
    pub(super) fn new(config: &ApiConfig) -> Result<Self, CtlError> {
        Ok(Self::of(kubernetes::client(config)?, config.source()))
    }

    /// The API of this client, `source` in words.
    pub(super) fn of(client: Client, source: String) -> Self {
        Self { client, source }
    }

    /// Lists what was asked for.
    pub(super) async fn get(
        &self,
        resource: Resource,
        selection: Selection,
        format: Option<ListFormat>,
    ) -> Result<Found, CtlError> {
        match resource {
            Resource::NetworkPolicies => self.policies(selection).await,
            Resource::WorkloadEndpoints => {
                // Only these say which policies isolate an endpoint.
                let with_policies = !matches!(format, None | Some(ListFormat::Name));
                self.endpoints(selection, with_policies).await
            }
            Resource::Identities => Err(CtlError::Usage(
                "identities exist in an agent only; ask this node's with --agent".to_owned(),
            )),
        }
    }

    async fn endpoints(
        &self,
        selection: Selection,
        with_policies: bool,
    ) -> Result<Found, CtlError> {
        let of_namespace = Selection {
            namespace: selection.namespace.clone(),
            ..Selection::default()
        };
        let policies = async {
            match with_policies {
                true => list_network_policies(&self.client, of_namespace)
                    .await
                    .map(Some),
                false => Ok(None),
            }
        };
        let (pods, policies) = tokio::join!(list_pods(&self.client, selection), policies);
        let pods = pods.map_err(|error| self.failed(error))?;
        let mut warnings = invalid(&pods);
        let policies = match policies {
            Ok(policies) => policies,
            Err(error) if error.is_forbidden() => {
                warnings.push(format!(
                    "which policies isolate these endpoints is not known: {error}"
                ));
                None
            }
            Err(error) => return Err(self.failed(error)),
        };
        warnings.extend(policies.iter().flat_map(invalid));
        let policies = policies.map(|policies| policies.taken);
        let why_none = why_none(&pods);
        let workloads = Workloads::of(pods.taken);
        Ok(Found {
            listing: Listing::ClusterEndpoints(workloads.endpoints(policies.as_deref())),
            warnings,
            why_none,
        })
    }

    async fn policies(&self, selection: Selection) -> Result<Found, CtlError> {
        let of_namespace = Selection {
            namespace: selection.namespace.clone(),
            ..Selection::default()
        };
        let (policies, pods) = tokio::try_join!(
            list_network_policies(&self.client, selection),
            list_pods(&self.client, of_namespace)
        )
        .map_err(|error| self.failed(error))?;
        let mut warnings = invalid(&policies);
        warnings.extend(invalid(&pods));
        let workloads = Workloads::of(pods.taken);
        Ok(Found {
            listing: Listing::ClusterPolicies(workloads.policies(&policies.taken)),
            warnings,
            why_none: policies
                .invalid
                .first()
                .map(|_| "it is not valid".to_owned()),
        })
    }

    fn failed(&self, error: ListError) -> CtlError {
        CtlError::Api {
            api: self.source.clone(),
            error,
        }
    }
}

fn invalid<T>(listed: &Listed<T>) -> Vec<String> {
    let invalid = listed.invalid.iter();
    invalid
        .map(|object| match object.left_out {
            true => format!("left out as not valid: {object}"),
            false => format!("not valid: {object}"),
        })
        .collect()
}

/// Why the pods that were found are no endpoints; one pod was asked for when it matters.
fn why_none(pods: &Listed<PodObject>) -> Option<String> {
    let invalid = pods.invalid.first().map(|_| "the pod is not valid");
    pods.taken
        .iter()
        .find_map(|pod| node_of(pod).err())
        .or(invalid)
        .map(str::to_owned)
}

#[cfg(test)]
#[path = "remote_tests.rs"]
mod tests;
