//! Who is asked: the Kubernetes API, or the agent on this node.

use std::path::{Path, PathBuf};

use clap::ArgMatches;
use clap::parser::ValueSource;

use super::args::SourceArgs;
use super::error::CtlError;
use crate::config::{ApiConfig, ConfigError, DatastoreType};

/// Options that say how to reach the API.
const API_OPTIONS: [&str; 6] = [
    "kubeconfig",
    "k8s_api_endpoint",
    "k8s_cert_file",
    "k8s_key_file",
    "k8s_ca_file",
    "k8s_token",
];

/// Who is asked.
#[derive(Debug)]
pub(super) enum Source {
    /// The agent on this node.
    Agent,
    /// The same, for want of anything else.
    AgentForWantOfApi,
    /// The Kubernetes API.
    Api(Box<ApiConfig>),
}

/// Where a setting comes from; a greater one counts for more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Origin {
    /// Not set.
    #[default]
    Nowhere,
    /// A variable.
    Environment,
    /// An option.
    CommandLine,
}

/// Where the settings that matter here come from.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Origins {
    run_dir: Origin,
    datastore_type: Origin,
    api: Origin,
}

impl Origins {
    /// Of what was parsed; `matches` are those of `get`.
    pub(super) fn of(matches: &ArgMatches) -> Self {
        let origin = |id: &str| match matches.value_source(id) {
            Some(ValueSource::CommandLine) => Origin::CommandLine,
            Some(ValueSource::EnvVariable) => Origin::Environment,
            _ => Origin::Nowhere,
        };
        Self {
            run_dir: origin("run_dir"),
            datastore_type: origin("datastore_type"),
            api: API_OPTIONS
                .map(origin)
                .into_iter()
                .max()
                .unwrap_or_default(),
        }
    }
}

/// Who the settings mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Preference {
    Agent,
    Api,
    /// The API if there is one.
    ApiIfAny,
}

fn preference(agent: bool, datastore: DatastoreType, origins: Origins) -> Preference {
    let said = |origin| origin == Origin::CommandLine;
    match datastore {
        _ if agent || said(origins.run_dir) => Preference::Agent,
        DatastoreType::Files if said(origins.datastore_type) => Preference::Agent,
        _ if said(origins.datastore_type) || said(origins.api) => Preference::Api,
        DatastoreType::Files => Preference::Agent,
        DatastoreType::Kubernetes if origins.run_dir == Origin::Environment => Preference::Agent,
        DatastoreType::Kubernetes => Preference::ApiIfAny,
    }
}

/// Who is asked, with what else there is to know for that: the user's home directory and the agent's socket.
pub(super) fn choose(
    args: SourceArgs,
    origins: Origins,
    home: Option<&Path>,
    socket: &Path,
) -> Result<Source, CtlError> {
    let datastore = args.datastore_type.parse()?;
    let preference = preference(args.agent, datastore, origins);
    if preference == Preference::Agent {
        return Ok(Source::Agent);
    }
    let given = args.api.kubeconfig.clone();
    let settings = args.api.or_kubeconfig_of(home);
    let is_default_kubeconfig = settings.kubeconfig != given;
    match settings.validate() {
        Ok(api) => Ok(Source::Api(Box::new(api))),
        Err(ConfigError::NoApi) if preference == Preference::ApiIfAny => {
            // What cannot be looked at may be there; asking it says why it cannot be.
            if socket.try_exists().unwrap_or(true) {
                Ok(Source::AgentForWantOfApi)
            } else {
                Err(CtlError::Nobody(PathBuf::from(socket)))
            }
        }
        Err(error) if is_default_kubeconfig => Err(CtlError::DefaultKubeconfig(error)),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
#[path = "source_tests.rs"]
mod tests;
