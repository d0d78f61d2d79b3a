//! What `policyctl` can be told.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::completion::Completion;
use crate::config::ApiSettings;

/// Shows workload endpoints and policies of the cluster, and what this node's policy-agent enforces
#[derive(Parser, Debug)]
#[command(name = "policyctl", version, arg_required_else_help = true, after_help = HELP)]
pub(super) struct Cli {
    /// The agent's run directory, where its socket is [default: /run/portcullis]
    #[arg(long, env = "PORTCULLIS_RUN_DIR", value_name = "DIR", global = true)]
    pub(super) run_dir: Option<PathBuf>,

    #[command(subcommand)]
    pub(super) command: Command,
}

const HELP: &str = "\
`get workloadendpoints` and `get networkpolicies` ask the Kubernetes API and work from any machine; everything
else asks the agent on this node, which answers root only. See `policyctl get --help` for how to choose.

Exit codes: 0 all is well, 1 error (for status: something is not as it should be; for sync: not everything is
enforced), 2 usage or an invalid setting.";

const GET_HELP: &str = "\
Who is asked, the first that applies:
  1. --agent or --run-dir: the agent on this node, with what it knows: this node's endpoints, their interfaces
     and their state
  2. --datastore-type, --kubeconfig or --k8s-... as options: the Kubernetes API (`files`: the agent)
  3. PORTCULLIS_RUN_DIR or DATASTORE_TYPE=files in the environment: the agent
  4. the Kubernetes API: K8S_... over KUBECONFIG (where neither KUBECONFIG nor K8S_API_ENDPOINT is set:
     ~/.kube/config) over what a cluster gives to its pods
  5. where no API is configured: the agent on this node, if there is one; a line on standard error says so
Identities exist in the agent only.

From the API this needs the verb `list` on pods, and on networkpolicies of networking.k8s.io for -o wide, json
and yaml. Left out are pods on the host's network, pods not bound to a node yet, and pods that have ended.

Examples:
  KUBECONFIG=~/.kube/config policyctl get workloadendpoints
  policyctl get wep -n kube-system --node worker-1 -o wide
  policyctl get wep kube-system.kube-dns-v20-jhk10 -o yaml
  policyctl get netpol -n shop
  policyctl get wep --agent -o wide

Exit codes: 0 listed, 1 not found or no answer, 2 usage or an invalid setting.";

#[derive(Subcommand, Debug)]
pub(super) enum Command {
    /// List workload endpoints, policies or identities
    #[command(after_help = GET_HELP)]
    Get(Box<Get>),
    /// Show the agent's attached programs, tables, revision, readiness and problems
    Status(Output),
    /// Wait until everything that the datastore holds now is enforced on this node
    Sync(SyncArgs),
    /// Print a completion script, such as for `source <(policyctl completion bash)`
    Completion(Completion),
}

#[derive(Args, Debug)]
pub(super) struct Get {
    /// What to list
    pub(super) resource: Resource,

    /// Only this one: NAMESPACE.POD or NAMESPACE/POLICY, with -n also without the namespace
    pub(super) name: Option<String>,

    /// Only what is in this namespace
    #[arg(short, long, value_name = "NAMESPACE")]
    pub(super) namespace: Option<String>,

    /// What is in any namespace, which is the default
    #[arg(short = 'A', long, conflicts_with = "namespace")]
    pub(super) all_namespaces: bool,

    /// Only endpoints on this one node
    #[arg(long, value_name = "NODE")]
    pub(super) node: Option<String>,

    /// How to print it [default: a table]
    #[arg(short, long, value_name = "FORMAT")]
    pub(super) output: Option<ListFormat>,

    #[command(flatten, next_help_heading = "Whom to ask")]
    pub(super) source: SourceArgs,
}

#[derive(Args, Debug)]
pub(super) struct SourceArgs {
    /// Ask the agent on this node
    #[arg(long, visible_alias = "local")]
    pub(super) agent: bool,

    /// Where policies and pods come from: `kubernetes`, or `files`, which this node's agent reads
    #[arg(
        long,
        env = "DATASTORE_TYPE",
        default_value = "kubernetes",
        value_name = "TYPE"
    )]
    pub(super) datastore_type: String,

    #[command(flatten)]
    pub(super) api: ApiSettings,
}

#[derive(Args, Debug)]
pub(super) struct Output {
    /// How to print it [default: a table]
    #[arg(short, long, value_name = "FORMAT")]
    pub(super) output: Option<Format>,
}

#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    /// A table with more columns
    Wide,
    /// JSON
    Json,
    /// YAML
    Yaml,
}

#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ListFormat {
    /// A table with more columns
    Wide,
    /// JSON
    Json,
    /// YAML
    Yaml,
    /// Names only, as this command takes them
    Name,
}

#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Resource {
    /// Pods' interfaces (short: wep)
    #[value(name = "workloadendpoints", aliases = ["workloadendpoint", "wep", "weps"])]
    WorkloadEndpoints,
    /// NetworkPolicies, with the pods that they select (short: netpol)
    #[value(name = "networkpolicies", aliases = ["networkpolicy", "netpol", "netpols", "np"])]
    NetworkPolicies,
    /// Sets of addresses that the rules in force on this node tell apart (short: id)
    #[value(name = "identities", aliases = ["identity", "id", "ids"])]
    Identities,
}

#[derive(Args, Debug)]
pub(super) struct SyncArgs {
    /// Give up after this many seconds
    #[arg(long, default_value = "30", value_name = "SECONDS", value_parser = seconds)]
    pub(super) timeout: Duration,
}

fn seconds(text: &str) -> Result<Duration, String> {
    text.strip_suffix('s')
        .unwrap_or(text)
        .parse()
        .ok()
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
        .ok_or_else(|| "not a number of seconds, such as 30 or 0.5".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::completion::assert_complete;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn shells_complete_resources_and_options() {
        assert_complete(
            &Cli::command(),
            &[
                "workloadendpoints",
                "networkpolicies",
                "all-namespaces",
                "kubeconfig",
                "yaml",
            ],
        );
    }

    #[test]
    fn every_option_variable_and_resource_is_documented() {
        let configuration = include_str!("../../../docs/reference/configuration.md");
        let reference = include_str!("../../../docs/reference/policyctl.md");
        let mut cli = Cli::command();
        cli.build();
        for subcommand in cli.get_subcommands() {
            let name = subcommand.get_name();
            if name == "help" {
                continue;
            }
            assert!(reference.contains(&format!("\n## {name}")), "{name}");
            let ids = ["help", "version"];
            for option in subcommand
                .get_arguments()
                .filter(|o| !ids.contains(&o.get_id().as_str()))
            {
                let Some(long) = option.get_long() else {
                    continue;
                };
                match option.get_env() {
                    Some(variable) => {
                        let row = format!("| `{}` | `--{long}` |", variable.to_string_lossy());
                        assert!(configuration.contains(&row), "{row}");
                    }
                    None => assert!(reference.contains(&format!("--{long}")), "{name} --{long}"),
                }
            }
        }
        for resource in Resource::value_variants() {
            let value = resource.to_possible_value().expect("not hidden");
            for name in value.get_name_and_aliases() {
                assert!(
                    reference.contains(&format!("`{name}`"))
                        || reference.contains(&format!("## get {name}")),
                    "{name}"
                );
            }
        }
    }

    #[test]
    fn resources_have_short_names() {
        let rows = [
            ("workloadendpoints", Resource::WorkloadEndpoints),
            ("workloadendpoint", Resource::WorkloadEndpoints),
            ("wep", Resource::WorkloadEndpoints),
            ("weps", Resource::WorkloadEndpoints),
            ("identities", Resource::Identities),
            ("id", Resource::Identities),
            ("networkpolicies", Resource::NetworkPolicies),
            ("networkpolicy", Resource::NetworkPolicies),
            ("netpol", Resource::NetworkPolicies),
        ];
        for (name, resource) in rows {
            let cli = Cli::try_parse_from(["policyctl", "get", name, "-o", "wide"]).expect(name);
            let Command::Get(get) = cli.command else {
                panic!("{name}")
            };
            assert_eq!(
                (get.resource, get.output),
                (resource, Some(ListFormat::Wide))
            );
        }
    }

    #[test]
    fn seconds_are_numbers() {
        assert_eq!(seconds("30"), Ok(Duration::from_secs(30)));
        assert_eq!(seconds("30s"), Ok(Duration::from_secs(30)));
        assert_eq!(seconds("0.5"), Ok(Duration::from_millis(500)));
        for wrong in ["", "s", "-1", "1m", "inf", "NaN"] {
            assert!(seconds(wrong).is_err(), "{wrong}");
        }
    }
}
