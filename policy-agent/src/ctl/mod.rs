//! The command line of `policyctl`.

mod print;
mod table;

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use hyper::Method;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::config::{RUN_DIR, SOCKET};
use crate::http::client::{self, ClientError};
use crate::report::{IdentityStatus, PolicyStatus, Status, SyncReport, WorkloadEndpoint};

/// How long answers may take that the agent has at hand; counting big tables takes a second.
const PATIENCE: Duration = Duration::from_secs(30);

/// Asks this node's policy-agent what it enforces
#[derive(Parser, Debug)]
#[command(name = "policyctl", version, arg_required_else_help = true, after_help = HELP)]
struct Cli {
    /// The agent's run directory, where its socket is
    #[arg(long, env = "PORTCULLIS_RUN_DIR", default_value = RUN_DIR, value_name = "DIR", global = true)]
    run_dir: PathBuf,

    #[command(subcommand)]
    command: Command,
}

const HELP: &str = "\
The agent answers root only.

Exit codes: 0 all is well, 1 error (for status: something is not as it should be; for sync: not everything is
enforced), 2 usage.";

#[derive(Subcommand, Debug)]
enum Command {
    /// List what the agent knows
    Get(Get),
    /// Show attached programs, tables, revision, readiness and problems
    Status(Output),
    /// Wait until everything that the datastore holds now is enforced on this node
    Sync(SyncArgs),
}

#[derive(Args, Debug)]
struct Get {
    /// What to list
    resource: Resource,
    #[command(flatten)]
    output: Output,
}

#[derive(Args, Debug)]
struct Output {
    /// How to print it [default: a table]
    #[arg(short, long, value_name = "FORMAT")]
    output: Option<Format>,
}

#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    /// A table with more columns
    Wide,
    /// JSON
    Json,
    /// YAML
    Yaml,
}

#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
enum Resource {
    /// Pod interfaces of this node (short: wep)
    #[value(name = "workloadendpoints", aliases = ["workloadendpoint", "wep", "weps"])]
    WorkloadEndpoints,
    /// Sets of addresses that the rules in force tell apart (short: id)
    #[value(name = "identities", aliases = ["identity", "id", "ids"])]
    Identities,
    /// NetworkPolicies, and what became of them here (short: netpol)
    #[value(name = "networkpolicies", aliases = ["networkpolicy", "netpol", "netpols", "np"])]
    NetworkPolicies,
}

#[derive(Args, Debug)]
struct SyncArgs {
    /// Give up after this many seconds
    #[arg(long, default_value = "30", value_name = "SECONDS", value_parser = seconds)]
    timeout: Duration,
}

fn seconds(text: &str) -> Result<Duration, String> {
    text.strip_suffix('s')
        .unwrap_or(text)
        .parse()
        .ok()
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
        .ok_or_else(|| "not a number of seconds, such as 30 or 0.5".to_owned())
}

/// Runs `policyctl` with the process's arguments.
#[must_use]
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let ctl = Ctl {
        socket: cli.run_dir.join(SOCKET),
    };
    let runtime = match tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => return fail(&error),
    };
    let result = runtime.block_on(async {
        match cli.command {
            Command::Get(get) => ctl.get(&get).await,
            Command::Status(output) => ctl.status(output.output).await,
            Command::Sync(args) => ctl.sync(args.timeout).await,
        }
    });
    result.unwrap_or_else(|error| fail(&error))
}

fn fail(error: &dyn std::error::Error) -> ExitCode {
    eprintln!("policyctl: {error}");
    ExitCode::FAILURE
}

struct Ctl {
    socket: PathBuf,
}

impl Ctl {
    async fn ask<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        client::request(&self.socket, Method::GET, path, PATIENCE).await
    }

    async fn get(&self, get: &Get) -> Result<ExitCode, ClientError> {
        let format = get.output.output;
        let wide = format == Some(Format::Wide);
        match get.resource {
            Resource::WorkloadEndpoints => {
                let list: Vec<WorkloadEndpoint> = self.ask("/v1/workloadendpoints").await?;
                show(format, &list, |list| print::workload_endpoints(list, wide));
            }
            Resource::Identities => {
                let list: Vec<IdentityStatus> = self.ask("/v1/identities").await?;
                show(format, &list, |list| print::identities(list, wide));
            }
            Resource::NetworkPolicies => {
                let list: Vec<PolicyStatus> = self.ask("/v1/networkpolicies").await?;
                show(format, &list, |list| print::network_policies(list, wide));
            }
        }
        Ok(ExitCode::SUCCESS)
    }

    async fn status(&self, format: Option<Format>) -> Result<ExitCode, ClientError> {
        let status: Status = self.ask("/v1/status").await?;
        let well = status.ready && status.problems.is_empty() && status.datastore.errors.is_empty();
        show(format, &status, |status| {
            print::status(status, format == Some(Format::Wide))
        });
        Ok(if well {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        })
    }

    async fn sync(&self, patience: Duration) -> Result<ExitCode, ClientError> {
        let answer: Result<SyncReport, _> =
            client::request(&self.socket, Method::POST, "/v1/sync", patience).await;
        match answer {
            Ok(report) if report.errors.is_empty() => {
                println!("enforced, revision {}", report.revision);
                Ok(ExitCode::SUCCESS)
            }
            Ok(report) => {
                eprintln!(
                    "policyctl: revision {} is enforced, but not everything that the datastore holds:",
                    report.revision
                );
                for error in report.errors {
                    eprintln!("  {error}");
                }
                Ok(ExitCode::FAILURE)
            }
            Err(timeout @ ClientError::Timeout(_)) => {
                // Best effort: says what it waits for, when the agent still answers.
                if let Ok(status) = self.ask::<Status>("/v1/status").await {
                    for condition in status.conditions.iter().filter(|condition| !condition.ok) {
                        eprintln!("policyctl: {}: {}", condition.name, condition.message);
                    }
                    // Such as an API that is away, for which no condition fails.
                    for problem in status.problems {
                        eprintln!("policyctl: {problem}");
                    }
                }
                Err(timeout)
            }
            Err(error) => Err(error),
        }
    }
}

/// Prints `value` in the format asked for.
fn show<T: Serialize>(format: Option<Format>, value: &T, table: impl FnOnce(&T) -> String) {
    let text = match format {
        None | Some(Format::Wide) => table(value),
        Some(Format::Json) => serde_json::to_string_pretty(value)
            .map(|text| text + "\n")
            .unwrap_or_else(|error| error.to_string()),
        Some(Format::Yaml) => {
            serde_saphyr::to_string(value).unwrap_or_else(|error| error.to_string())
        }
    };
    // Whoever stops reading, as `head` does, has seen enough.
    let _closed = std::io::stdout().write_all(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn resources_have_short_names() {
        let rows = [
            ("workloadendpoints", Resource::WorkloadEndpoints),
            ("wep", Resource::WorkloadEndpoints),
            ("identities", Resource::Identities),
            ("id", Resource::Identities),
            ("networkpolicies", Resource::NetworkPolicies),
            ("netpol", Resource::NetworkPolicies),
        ];
        for (name, resource) in rows {
            let cli = Cli::try_parse_from(["policyctl", "get", name, "-o", "wide"]).expect(name);
            let Command::Get(get) = cli.command else {
                panic!("{name}")
            };
            assert_eq!(
                (get.resource, get.output.output),
                (resource, Some(Format::Wide))
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
