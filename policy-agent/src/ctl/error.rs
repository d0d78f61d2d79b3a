//! Why `policyctl` cannot do what it was asked for.

use std::path::PathBuf;
use std::process::ExitCode;

use crate::config::ConfigError;
use crate::datastore::kubernetes::ListError;
use crate::http::client::ClientError;

/// Exit code for what the command line or a setting has to change for, as clap has it.
const USAGE: u8 = 2;

/// See the module.
#[derive(Debug, thiserror::Error)]
pub(super) enum CtlError {
    /// The command line contradicts itself.
    #[error("{0}")]
    Usage(String),
    /// A setting cannot be taken.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The kubeconfig that is taken unasked cannot be.
    #[error("{0} (KUBECONFIG is not set; this file is taken then)")]
    DefaultKubeconfig(ConfigError),
    /// Nobody to ask.
    #[error(
        "no Kubernetes API is configured, and no agent listens on {socket}; set KUBECONFIG (~/.kube/config does not \
         exist), or K8S_API_ENDPOINT with K8S_CA_FILE and K8S_TOKEN or K8S_CERT_FILE and K8S_KEY_FILE",
        socket = .0.display()
    )]
    Nobody(PathBuf),
    /// The agent gives no answer.
    #[error(transparent)]
    Agent(#[from] ClientError),
    /// The API gives no answer.
    #[error("{api}: {error}")]
    Api {
        /// Which API, in words.
        api: String,
        /// Why.
        error: ListError,
    },
    /// What was found cannot be printed.
    #[error("standard output: {0}")]
    Output(std::io::Error),
    /// The one object that was asked for is not there.
    #[error("{0}")]
    NotFound(String),
}

impl CtlError {
    /// What the process ends with.
    pub(super) fn exit_code(&self) -> ExitCode {
        match self {
            Self::Usage(_) | Self::Config(_) | Self::DefaultKubeconfig(_) | Self::Nobody(_) => {
                ExitCode::from(USAGE)
            }
            Self::Agent(_) | Self::Api { .. } | Self::Output(_) | Self::NotFound(_) => {
                ExitCode::FAILURE
            }
        }
    }
}
