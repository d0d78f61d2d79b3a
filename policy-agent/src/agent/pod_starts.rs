//! How starting pods come under enforcement: by the CNI plugin, which this agent may have to keep installed,
//! or by looking for their interfaces.

use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use anyhow::Context as _;
use tokio::runtime::Handle;
use tokio::sync::watch;

use crate::cni::{CniSettings, InstallError, Installation, Outcome};
use crate::config::{Config, DatastoreConfig};
use crate::datastore::kubernetes::pod_cidrs;
use crate::report::PodStartsStatus;

/// How long after the directories could not be watched that is tried again.
const RETRY: Duration = Duration::from_secs(30);

/// The configuration that names the plugin, or why none does.
type Installed = Result<PathBuf, String>;

/// What is known of it.
#[derive(Debug)]
pub(super) struct PodStarts {
    /// What the thread says that keeps the plugin installed, if it is to.
    installed: Option<watch::Receiver<Installed>>,
    /// Whether the plugin announced a pod, to this agent or to an earlier one.
    announced: bool,
}

impl PodStarts {
    /// Begins to keep the plugin installed, if that is asked for. Must be called within a tokio runtime.
    pub(super) fn start(config: &Config) -> anyhow::Result<Self> {
        let installed = match &config.cni {
            Some(settings) => Some(keep(settings.clone(), config)?),
            None => None,
        };
        Ok(Self {
            installed,
            announced: false,
        })
    }

    /// The plugin announced a pod.
    pub(super) fn announced(&mut self) {
        self.announced = true;
    }

    pub(super) fn status(&self) -> PodStartsStatus {
        let installed = self.installed.as_ref().map(|state| state.borrow().clone());
        let is_installed = matches!(installed, Some(Ok(_)));
        let (configuration, error) = match installed {
            Some(Ok(configuration)) => (Some(configuration.display().to_string()), None),
            Some(Err(error)) => (None, Some(error)),
            None => (None, None),
        };
        let mode = if is_installed || self.announced {
            PodStartsStatus::PLUGIN
        } else {
            PodStartsStatus::DISCOVERY
        };
        PodStartsStatus {
            mode: mode.to_owned(),
            configuration,
            error,
        }
    }
}

/// Keeps the plugin installed in a thread of its own: it waits for files.
fn keep(settings: CniSettings, config: &Config) -> anyhow::Result<watch::Receiver<Installed>> {
    let datastore = config.datastore.clone();
    let node = config.node.clone();
    let runtime = Handle::current();
    let ask = move || match &datastore {
        DatastoreConfig::Kubernetes(api) => runtime.block_on(pod_cidrs(api, &node)),
        DatastoreConfig::Files(_) => Err("files say nothing of it".to_owned()),
    };
    let installation = settings.installation(config.run_dir.clone(), ask)?;
    let (state, seen) = watch::channel(Err("not looked at yet".to_owned()));
    thread::Builder::new()
        .name("install-cni".to_owned())
        .spawn(move || keep_on(&installation, &state))
        .context("a thread that keeps policy-cni installed")?;
    Ok(seen)
}

fn keep_on(installation: &Installation, state: &watch::Sender<Installed>) {
    loop {
        if let Err(error) = installation.keep(|outcome| note(outcome, state)) {
            note(Err(error), state);
        }
        thread::sleep(RETRY);
    }
}

/// Says once what is wrong, and what was done.
fn note(outcome: Result<Outcome, InstallError>, state: &watch::Sender<Installed>) {
    let now = match outcome {
        Ok(outcome) => {
            outcome.log();
            Ok(outcome.configuration)
        }
        Err(error) => Err(error.to_string()),
    };
    if *state.borrow() == now {
        return;
    }
    match &now {
        Ok(configuration) => tracing::info!(
            configuration = %configuration.display(),
            "policy-cni is part of this node's CNI configuration, and kept there"
        ),
        Err(error) => tracing::error!("policy-cni is not installed: {error}"),
    }
    let _before = state.send_replace(now);
}
