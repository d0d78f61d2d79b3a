//! `policy-agent install-cni`.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use ipnet::IpNet;

use super::{Installation, MainPlugin, Outcome, Plugin};
use crate::config::RUN_DIR;

/// Options of `install-cni`.
#[derive(Args, Clone, Debug)]
pub struct InstallCni {
    /// Directory of the runtime's CNI plugins
    #[arg(
        long,
        env = "CNI_BIN_DIR",
        default_value = "/opt/cni/bin",
        value_name = "DIR"
    )]
    bin_dir: PathBuf,

    /// Directory of the runtime's CNI configuration
    #[arg(
        long,
        env = "CNI_CONF_DIR",
        default_value = "/etc/cni/net.d",
        value_name = "DIR"
    )]
    conf_dir: PathBuf,

    /// The program to install [default: policy-cni beside this program]
    #[arg(long, env = "PORTCULLIS_CNI_PROGRAM", value_name = "FILE")]
    program: Option<PathBuf>,

    /// The agent's run directory, as the host sees it
    #[arg(long, env = "PORTCULLIS_RUN_DIR", default_value = RUN_DIR, value_name = "DIR")]
    run_dir: PathBuf,

    /// How long the start of a pod may wait for the agent, in seconds; then it is tried again
    #[arg(long, env = "PORTCULLIS_CNI_TIMEOUT", default_value = "10", value_name = "SECONDS",
          value_parser = clap::value_parser!(u64).range(1..=120))]
    timeout: u64,

    /// Let pods start UNPROTECTED where the agent is away; each is logged
    #[arg(long, env = "PORTCULLIS_CNI_FAIL_OPEN")]
    fail_open: bool,

    /// Where there is no configuration, make one with this reference plugin, host-local and portmap
    #[arg(
        long,
        env = "PORTCULLIS_CNI_CREATE",
        value_name = "PLUGIN",
        requires = "pod_cidrs"
    )]
    create: Option<MainPlugin>,

    /// This node's pod CIDR, for --create; once for each address family
    #[arg(
        long = "pod-cidr",
        env = "PORTCULLIS_POD_CIDR",
        value_delimiter = ',',
        value_name = "CIDR"
    )]
    pod_cidrs: Vec<IpNet>,

    /// Stay, and install again whenever another component rewrites the configuration
    #[arg(long, env = "PORTCULLIS_CNI_WATCH", conflicts_with = "uninstall")]
    watch: bool,

    /// Take the plugin out again, and restore the configuration
    #[arg(long, env = "PORTCULLIS_CNI_UNINSTALL")]
    uninstall: bool,
}

impl InstallCni {
    /// Does what is asked.
    ///
    /// # Errors
    ///
    /// When it cannot be done; nothing is half-written then.
    pub fn run(self) -> anyhow::Result<()> {
        let (watch, uninstall) = (self.watch, self.uninstall);
        let installation = self.installation()?;
        if uninstall {
            let changed = installation.uninstall()?;
            tracing::info!(configurations = ?changed, "policy-cni is not installed any more");
            return Ok(());
        }
        if watch {
            return Ok(installation.keep(|outcome| match outcome {
                Ok(outcome) => report(&outcome),
                Err(error) => tracing::error!("policy-cni is not installed: {error}"),
            })?);
        }
        let outcome = installation.install()?;
        report(&outcome);
        Ok(())
    }

    fn installation(self) -> anyhow::Result<Installation> {
        let program = match self.program {
            Some(program) => program,
            None => std::env::current_exe()
                .context("where this program is; say where policy-cni is with --program")?
                .with_file_name("policy-cni"),
        };
        Ok(Installation {
            program,
            bin_dir: self.bin_dir,
            conf_dir: self.conf_dir,
            plugin: Plugin {
                run_dir: self.run_dir,
                timeout: Duration::from_secs(self.timeout),
                fail_open: self.fail_open,
            },
            create: self.create,
            pod_cidrs: self.pod_cidrs,
        })
    }
}

fn report(outcome: &Outcome) {
    if outcome.program_changed || outcome.configuration_changed {
        let configuration = outcome.configuration.display();
        tracing::info!(%configuration, "policy-cni is installed");
        if !outcome.ignored.is_empty() {
            tracing::info!(
                active = %configuration, ignored = ?outcome.ignored,
                "there is more than one CNI configuration: runtimes use the first in lexical order"
            );
        }
    }
}
