//! How starting pods come under enforcement: by the CNI plugin, which this agent may have to keep installed,
//! or by looking for their interfaces.

use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use anyhow::Context as _;
use tokio::runtime::Handle;
use tokio::sync::watch;

use crate::cni::{CniSettings, Holding, InstallError, Installation, Outcome};
use crate::config::{Config, DatastoreConfig};
use crate::datastore::kubernetes::pod_cidrs;
use crate::report::PodStartsStatus;

/// How long after the directories could not be watched that is tried again.
const RETRY: Duration = Duration::from_secs(30);

/// The configuration that names the plugin and whether that holds starts, or why none does.
type Installed = Result<(PathBuf, Holding), String>;

/// What is known of it.
#[derive(Debug)]
pub(super) struct PodStarts {
    /// What the thread says that keeps the plugin installed, if it is to.
    installed: Option<watch::Receiver<Installed>>,
    /// Whether the plugin announced a pod, to this agent or to an earlier one.
    announced: bool,
    /// How many it announced to this agent that were held until then, and how many that were not.
    held: u64,
    not_held: u64,
    /// The last one, where it was not held.
    last_not_held: Option<String>,
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
            held: 0,
            not_held: 0,
            last_not_held: None,
        })
    }

    /// The plugin announced a pod.
    pub(super) fn announced(&mut self) {
        self.announced = true;
    }

    /// The plugin announced a pod that starts now. `held`: whether it is deaf until it is enforced.
    pub(super) fn starting(&mut self, pod: String, held: bool) {
        self.announced();
        if held {
            self.held += 1;
            self.last_not_held = None;
        } else {
            self.not_held += 1;
            self.last_not_held = Some(pod);
        }
    }

    pub(super) fn status(&self) -> PodStartsStatus {
        let installed = self.installed.as_ref().map(|state| state.borrow().clone());
        let is_installed = matches!(installed, Some(Ok(_)));
        let (configuration, error, why_not) = match installed {
            Some(Ok((configuration, holding))) => {
                let configuration = configuration.display().to_string();
                (Some(configuration), None, holding.why_not())
            }
            Some(Err(error)) => (None, Some(error), None),
            None => (None, None, None),
        };
        // What the configuration says is one thing, what a start met another.
        let not_held = why_not.or_else(|| {
            let pod = self.last_not_held.as_ref()?;
            Some(format!(
                "that of {pod} was not: policy-cni was not the first plugin, or this kernel has no nftables"
            ))
        });
        let mode = if is_installed || self.announced {
            PodStartsStatus::PLUGIN
        } else {
            PodStartsStatus::DISCOVERY
        };
        PodStartsStatus {
            mode: mode.to_owned(),
            configuration,
            error,
            not_held,
            starts_held: self.held,
            starts_not_held: self.not_held,
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
            Ok((outcome.configuration, outcome.holding))
        }
        Err(error) => Err(error.to_string()),
    };
    if *state.borrow() == now {
        return;
    }
    match &now {
        Ok((configuration, holding)) => tracing::info!(
            configuration = %configuration.display(), %holding,
            "policy-cni is part of this node's CNI configuration, and kept there"
        ),
        Err(error) => tracing::error!("policy-cni is not installed: {error}"),
    }
    let _before = state.send_replace(now);
}
