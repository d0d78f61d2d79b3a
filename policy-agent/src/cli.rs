//! The command line of `policy-agent`.

use std::process::ExitCode;

use clap::{CommandFactory as _, Parser, Subcommand};
use tracing::Level;

use crate::cni::InstallCni;
use crate::completion::Completion;
use crate::config::{Config, Settings};
use crate::uninstall::{self, Places};
use crate::{agent, logging, usage};

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
    Run(Box<Settings>),
    /// Put policy-cni into this node's CNI configuration, so that no pod runs before it is protected
    #[command(after_help = INSTALL_CNI_HELP)]
    InstallCni(Box<InstallCni>),
    /// Print a completion script, such as for `source <(policy-agent completion bash)`
    Completion(Completion),
    /// Take everything off this node that agents put there, and prove that nothing is left
    #[command(after_help = UNINSTALL_HELP)]
    Uninstall(Places),
}

const RUN_HELP: &str = "\
Every option is also an environment variable; the option wins.

With --datastore-type kubernetes the agent reads NetworkPolicies, Pods, Namespaces, Services and its own Node
from the API: explicit --k8s-... options go before --kubeconfig, and that before what a cluster gives to its pods. It
needs get, list and watch on them. While the API is away, what was read before stays in force.

With --datastore-type files the agent reads every *.yaml, *.yml and *.json in --datastore-path: Namespaces,
Pods, NetworkPolicies and Services, several documents a file, and Lists of them. Pods of this node are those whose
spec.nodeName is --nodename or absent; their interfaces are found by the addresses in status.podIPs. A file
with a mistake is reported by file, line and field, and its last good state stays in force.

Needs root (with CAP_BPF, CAP_NET_ADMIN, CAP_NET_BROADCAST and CAP_PERFMON, and before Linux 5.11
CAP_SYS_RESOURCE) and Linux 5.10 or later. Ask it with policyctl.

Exit codes: 0 stopped by a signal, 1 error, 2 usage or an invalid setting.";

const INSTALL_CNI_HELP: &str = "\
Every option is also an environment variable; the option wins.

The configuration in force is the first in lexical order in --cni-conf-dir, as container runtimes choose it. The
plugin becomes its last; nothing else in it changes, and a .conf becomes a .conflist. What was there before is
kept beside it, and --uninstall restores it, unless somebody changed it since: then only the plugin goes.

Exit codes: 0 done, 1 error (nothing is half-written), 2 usage.";

const UNINSTALL_HELP: &str = "\
Stop the agent first: while one runs, this refuses. Afterwards pods of this node are protected by no policy.

Removes the programs from every interface of this network namespace, the pins and their directory, the local
socket and the lock. Prints each thing removed, then looks again at interfaces, pins, and the programs and
maps that were in the kernel. May be run again; where there is nothing to remove, it says so.

Needs root (in a container: a privileged one with the node's network and its /sys/fs/bpf).

Exit codes: 0 nothing is left, 1 an agent runs, or something is left, which is named, 2 usage.";

/// Runs `policy-agent` with the process's arguments.
#[must_use]
pub fn main() -> ExitCode {
    let cli = Cli::try_parse().unwrap_or_else(|error| usage::exit(&error, &Cli::command()));
    let result = match cli.command {
        Command::Run(settings) => {
            let checked = settings
                .level()
                .and_then(|level| Ok((level, settings.validate()?)));
            match checked {
                Ok((level, config)) => {
                    logging::init(level, config.log_decisions);
                    run(config)
                }
                Err(error) => {
                    eprintln!("policy-agent: {error}");
                    return ExitCode::from(USAGE);
                }
            }
        }
        Command::InstallCni(options) => {
            logging::init(Level::INFO, false);
            options.run()
        }
        Command::Completion(completion) => {
            completion.print(Cli::command());
            return ExitCode::SUCCESS;
        }
        Command::Uninstall(places) => uninstall(&places),
    };
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

fn uninstall(places: &Places) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(uninstall::run(places, &mut std::io::stdout()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::completion::assert_complete;

    #[test]
    fn causes_are_said_once() {
        let cause = std::io::Error::other("no such thing");
        let named = anyhow::Error::new(cause).context("open x: no such thing");
        assert_eq!(sentence(&named), "open x: no such thing");
        let unnamed = anyhow::anyhow!("no such thing").context("open x");
        assert_eq!(sentence(&unnamed), "open x: no such thing");
    }

    #[test]
    fn shells_complete_subcommands_and_options() {
        assert_complete(&Cli::command(), &["run", "datastore-type", "k8s-ca-file"]);
    }

    #[test]
    fn the_command_line_is_sound_and_every_option_is_a_variable() {
        let mut cli = Cli::command();
        cli.build();
        cli.clone().debug_assert();
        for command in ["run", "install-cni", "uninstall"] {
            let command = cli.find_subcommand(command).expect(command);
            for option in command
                .get_arguments()
                .filter(|option| option.get_id() != "help")
            {
                assert!(option.get_env().is_some(), "{}", option.get_id());
            }
        }
    }

    #[test]
    fn every_option_and_variable_is_documented_with_its_default() {
        let document = include_str!("../../docs/reference/configuration.md");
        let mut cli = Cli::command();
        cli.build();
        for command in ["run", "install-cni", "uninstall"] {
            let subcommand = cli.find_subcommand(command).expect(command);
            for option in subcommand
                .get_opts()
                .filter(|option| option.get_id() != "help")
            {
                let variable = option.get_env().expect("a variable").to_string_lossy();
                let long = option.get_long().expect("a long option");
                let named = format!("| `{variable}` | `--{long}` |");
                let mut rows = document.lines().filter(|line| line.starts_with(&named));
                let defaults = option.get_default_values().iter();
                let defaults: Vec<_> = defaults
                    .map(|default| default.to_string_lossy())
                    .filter(|default| !default.is_empty())
                    .map(|default| format!("| `{default}` |"))
                    .collect();
                let is_told = |row: &str| defaults.iter().all(|default| row.ends_with(default));
                assert!(rows.any(is_told), "{command}: {named} {defaults:?}");
            }
        }
    }
}
