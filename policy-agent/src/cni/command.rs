//! `policy-agent install-cni`.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;
use ipnet::IpNet;

use super::{CniSettings, InstallError, Outcome};
use crate::config::{ApiSettings, RUN_DIR, boolean, node_name};
use crate::datastore::kubernetes::pod_cidrs;

/// Options of `install-cni`.
#[derive(Args, Clone, Debug)]
pub struct InstallCni {
    /// What to install, and where
    #[command(flatten)]
    settings: CniSettings,

    /// The agent's run directory, as the host sees it
    #[arg(long, env = "PORTCULLIS_RUN_DIR", default_value = RUN_DIR, value_name = "DIR")]
    run_dir: PathBuf,

    /// Stay, and install again whenever another component rewrites the configuration
    #[arg(long, env = "PORTCULLIS_CNI_WATCH", conflicts_with = "uninstall")]
    watch: bool,

    /// Whether to install at all, for who shares the agent's settings: true or false
    #[arg(
        long,
        env = "PORTCULLIS_INSTALL_CNI",
        default_value = "true",
        value_name = "BOOL"
    )]
    install_cni: String,

    /// Where there is no CNI configuration to add to yet, say so and succeed: the agent installs later
    #[arg(long, env = "PORTCULLIS_CNI_LATER", conflicts_with_all = ["uninstall", "watch"])]
    or_later: bool,

    /// Take the plugin out again, and restore the configuration
    #[arg(long, env = "PORTCULLIS_CNI_UNINSTALL")]
    uninstall: bool,

    /// This node's name in the API, for its pod CIDR [default: the host's name]
    #[arg(long, env = "NODENAME", value_name = "NAME")]
    nodename: Option<String>,

    /// How to reach the Kubernetes API, for this node's pod CIDR
    #[command(flatten)]
    api: ApiSettings,
}

impl InstallCni {
    /// Does what is asked.
    ///
    /// # Errors
    ///
    /// When it cannot be done; nothing is half-written then.
    pub fn run(self) -> anyhow::Result<()> {
        if self.uninstall {
            let removed = self.settings.directories.uninstall()?;
            tracing::info!(files = ?removed, "policy-cni is not installed any more");
            return Ok(());
        }
        if !boolean("PORTCULLIS_INSTALL_CNI", &self.install_cni)? {
            tracing::info!("PORTCULLIS_INSTALL_CNI=false: nothing to do");
            return Ok(());
        }
        let (api, nodename) = (self.api, self.nodename);
        let ask = move || ask_api(&api, nodename.as_deref()).map_err(|error| format!("{error:#}"));
        let installation = self.settings.installation(self.run_dir, ask)?;
        if self.watch {
            return Ok(installation.keep(|outcome| match outcome {
                Ok(outcome) => outcome.log(),
                Err(error) => tracing::error!("policy-cni is not installed: {error}"),
            })?);
        }
        match installation.install() {
            Err(error) if self.or_later && error.may_pass() => {
                tracing::warn!("policy-cni is not installed yet: {error}");
                Ok(())
            }
            other => {
                other?.log();
                Ok(())
            }
        }
    }
}

/// This node's pod CIDRs, from the API.
fn ask_api(api: &ApiSettings, nodename: Option<&str>) -> anyhow::Result<Vec<IpNet>> {
    let config = api.validate()?;
    let node = node_name(nodename)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("a runtime")?;
    runtime
        .block_on(pod_cidrs(&config, &node))
        .map_err(anyhow::Error::msg)
}

impl InstallError {
    /// Whether it is for others on this node or in the cluster to change that, and they may do so yet.
    fn may_pass(&self) -> bool {
        matches!(
            self,
            Self::NoConfiguration(_) | Self::NoPlugins { .. } | Self::NoPodCidr(_)
        )
    }
}

impl Outcome {
    /// Says what was done, if anything.
    pub fn log(&self) {
        if self.program_changed || self.configuration_changed {
            let configuration = self.configuration.display();
            let holding = &self.holding;
            tracing::info!(%configuration, %holding, "policy-cni is installed");
            if !self.ignored.is_empty() {
                tracing::info!(
                    active = %configuration, ignored = ?self.ignored,
                    "there is more than one CNI configuration: runtimes use the first in lexical order"
                );
            }
        }
    }
}
