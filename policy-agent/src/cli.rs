//! The command line of `policy-agent`.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tracing::Level;

use crate::cni::InstallCni;
use crate::config::{Config, Settings};
use crate::{agent, logging};

/// Exit code for a setting or flag that cannot be taken, as clap has it for flags.
const USAGE: u8 = 2;

/// Enforces Kubernetes NetworkPolicy on this node's pod interfaces in eBPF
#[derive(Parser, Debug)]
#[command(name = "policy-agent", version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Enforce policies until told to stop by SIGTERM or SIGINT; what is enforced stays so afterwards
    #[command(after_help = RUN_HELP)]
    Run(Settings),
    /// Put policy-cni into this node's CNI configuration, so that no pod runs before it is protected
    #[command(after_help = INSTALL_CNI_HELP)]
    InstallCni(InstallCni),
}

const INSTALL_CNI_HELP: &str = "\
Every option is also an environment variable; the option wins.

The configuration in force is the first in lexical order in --conf-dir, as container runtimes choose it. The
plugin becomes its last; nothing else in it changes, and a .conf becomes a .conflist. What was there before is
kept beside it, and --uninstall restores it, unless somebody changed it since: then only the plugin goes.

Exit codes: 0 done, 1 error (nothing is half-written), 2 usage.";

const RUN_HELP: &str = "\
Every option is also an environment variable; the option wins.

With --datastore-type kubernetes the agent reads NetworkPolicies, Pods, Namespaces and its own Node from the
API: explicit --k8s-... options go before --kubeconfig, and that before what a cluster gives to its pods. It
needs get, list and watch on them. While the API is away, what was read before stays in force.

With --datastore-type files the agent reads every *.yaml, *.yml and *.json in --datastore-path: Namespaces,
Pods and NetworkPolicies, several documents a file, and Lists of them. Pods of this node are those whose
spec.nodeName is --nodename or absent; their interfaces are found by the addresses in status.podIPs. A file
with a mistake is reported by file, line and field, and its last good state stays in force.

Needs root (or CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON) and Linux 5.10 or later. Ask it with policyctl.

Exit codes: 0 stopped by a signal, 1 error, 2 usage or an invalid setting.";

/// Runs `policy-agent` with the process's arguments.
#[must_use]
pub fn main() -> ExitCode {
    let settings = match Cli::parse().command {
        Command::Run(settings) => settings,
        Command::InstallCni(options) => {
            logging::init(Level::INFO);
            return exit_code(options.run());
        }
    };
    let checked = settings
        .level()
        .and_then(|level| Ok((level, settings.validate()?)));
    let (level, config) = match checked {
        Ok(checked) => checked,
        Err(error) => {
            eprintln!("policy-agent: {error}");
            return ExitCode::from(USAGE);
        }
    };
    logging::init(level);
    exit_code(run(config))
}

fn exit_code(result: anyhow::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("policy-agent: {}", sentence(&error));
            ExitCode::FAILURE
        }
    }
}

/// The error and its causes, each said once: most errors name their cause themselves.
fn sentence(error: &anyhow::Error) -> String {
    let mut text = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

fn run(config: Config) -> anyhow::Result<()> {
    // The loop runs on this thread; a second one serves HTTP, netlink and files meanwhile.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("policy-agent")
        .enable_all()
        .build()?;
    let result = runtime.block_on(agent::run(config));
    // Whatever still waits for the kernel or a client is not waited for.
    runtime.shutdown_background();
    result
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn causes_are_said_once() {
        let cause = std::io::Error::other("no such thing");
        let named = anyhow::Error::new(cause).context("open x: no such thing");
        assert_eq!(sentence(&named), "open x: no such thing");
        let unnamed = anyhow::anyhow!("no such thing").context("open x");
        assert_eq!(sentence(&unnamed), "open x: no such thing");
    }

    #[test]
    fn the_command_line_is_sound_and_every_option_is_a_variable() {
        let mut cli = Cli::command();
        cli.build();
        cli.clone().debug_assert();
        for command in cli
            .get_subcommands()
            .filter(|command| command.get_name() != "help")
        {
            let options = command.get_arguments();
            for option in options.filter(|option| option.get_id() != "help") {
                assert!(option.get_env().is_some(), "{}", option.get_id());
            }
        }
    }
}
