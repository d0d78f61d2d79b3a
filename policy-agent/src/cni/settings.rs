//! What an operator says about the plugin: the same options for `install-cni`, for the agent that keeps it
//! installed, and for what takes it away.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use ipnet::IpNet;

use super::{Hold, InstallError, Installation, MainPlugin, Plugin, PodCidrs};

/// Where a container runtime has its plugins.
#[derive(Args, Clone, Debug, Default)]
pub struct Directories {
    /// Directory of the runtime's CNI plugins
    #[arg(
        long = "cni-bin-dir",
        env = "CNI_BIN_DIR",
        default_value = "/opt/cni/bin",
        value_name = "DIR"
    )]
    pub bin_dir: PathBuf,

    /// Directory of the runtime's CNI configuration
    #[arg(
        long = "cni-conf-dir",
        env = "CNI_CONF_DIR",
        default_value = "/etc/cni/net.d",
        value_name = "DIR"
    )]
    pub conf_dir: PathBuf,
}

/// Settings as given.
#[derive(Args, Clone, Debug, Default)]
pub struct CniSettings {
    /// Where
    #[command(flatten)]
    pub directories: Directories,

    /// The CNI plugin to install [default: policy-cni beside this program]
    #[arg(
        long = "cni-program",
        env = "PORTCULLIS_CNI_PROGRAM",
        value_name = "FILE"
    )]
    pub program: Option<PathBuf>,

    /// How long the start of a pod may wait for the agent, in seconds; then it is tried again
    #[arg(long = "cni-timeout", env = "PORTCULLIS_CNI_TIMEOUT", default_value = "10", value_name = "SECONDS",
          value_parser = clap::value_parser!(u64).range(1..=120))]
    pub timeout: u64,

    /// Let pods start UNPROTECTED where the agent is away; each is logged
    #[arg(long = "cni-fail-open", env = "PORTCULLIS_CNI_FAIL_OPEN")]
    pub fail_open: bool,

    /// Hold pods' starts, so that nothing answers from a pod before it is enforced: with main plugins that are known to
    /// take it, always, or never
    #[arg(
        long = "cni-hold",
        env = "PORTCULLIS_CNI_HOLD",
        default_value = "auto",
        value_name = "WHEN"
    )]
    pub hold: Hold,

    /// Where there is no CNI configuration, make one with this reference plugin, host-local and portmap
    #[arg(
        long = "cni-create",
        env = "PORTCULLIS_CNI_CREATE",
        value_name = "PLUGIN"
    )]
    pub create: Option<MainPlugin>,

    /// This node's pod CIDR, for a configuration to be made; once for each address family
    /// [default: spec.podCIDRs of the API's Node]
    #[arg(
        long = "pod-cidr",
        env = "PORTCULLIS_POD_CIDR",
        value_delimiter = ',',
        value_name = "CIDR",
        value_parser = cidr
    )]
    pub pod_cidrs: Vec<IpNet>,
}

impl CniSettings {
    /// What these settings mean, for an agent with this run directory. `ask` is asked for pod CIDRs where none are
    /// given, once they are needed.
    ///
    /// # Errors
    ///
    /// When nobody says where the plugin's program is.
    pub fn installation(
        self,
        run_dir: PathBuf,
        ask: impl Fn() -> Result<Vec<IpNet>, String> + Send + Sync + 'static,
    ) -> Result<Installation, InstallError> {
        let program = match self.program {
            Some(program) => program,
            None => std::env::current_exe()
                .map_err(InstallError::WhichProgram)?
                .with_file_name("policy-cni"),
        };
        Ok(Installation {
            program,
            directories: self.directories,
            plugin: Plugin {
                run_dir,
                timeout: Duration::from_secs(self.timeout),
                fail_open: self.fail_open,
                hold: self.hold,
            },
            create: self.create,
            pod_cidrs: if self.pod_cidrs.is_empty() {
                PodCidrs::Asked(std::sync::Arc::new(ask))
            } else {
                PodCidrs::Given(self.pod_cidrs)
            },
        })
    }
}

fn cidr(text: &str) -> Result<IpNet, &'static str> {
    text.parse().map_err(|_| "not a CIDR such as 10.244.1.0/24")
}
