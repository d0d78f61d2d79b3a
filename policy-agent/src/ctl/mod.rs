//! `policyctl`, the operator's tool.
//!
//! ```text
//! args --> source: who is asked --> remote (the API: cluster) --.
//!     '--> wanted: for what    '--> local (the agent)  ---------'--> output (print, table)
//! ```

mod args;
mod cluster;
mod error;
mod local;
mod output;
mod print;
mod print_cluster;
mod remote;
mod source;
mod table;
mod wanted;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory as _, FromArgMatches as _};

use crate::config::{RUN_DIR, SOCKET};
use crate::datastore::kubernetes::Selection;
use crate::usage;
use args::{Cli, Command, Get, Resource};
use error::CtlError;
use local::Agent;
use output::Listing;
use remote::{Api, Found};
use source::{Origins, Source};

/// Runs `policyctl` with the process's arguments.
#[must_use]
pub fn main() -> ExitCode {
    let matches = Cli::command()
        .try_get_matches()
        .unwrap_or_else(|error| usage::exit(&error, &Cli::command()));
    let cli = match Cli::from_arg_matches(&matches) {
        Ok(cli) => cli,
        Err(error) => error.format(&mut Cli::command()).exit(),
    };
    let origins = matches
        .subcommand_matches("get")
        .map(Origins::of)
        .unwrap_or_default();
    let runtime = match tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("policyctl: {error}");
            return ExitCode::FAILURE;
        }
    };
    runtime.block_on(run(cli, origins)).unwrap_or_else(|error| {
        eprintln!("policyctl: {error}");
        error.exit_code()
    })
}

async fn run(cli: Cli, origins: Origins) -> Result<ExitCode, CtlError> {
    let run_dir = cli.run_dir.unwrap_or_else(|| PathBuf::from(RUN_DIR));
    let agent = Agent {
        socket: run_dir.join(SOCKET),
    };
    match cli.command {
        Command::Get(get) => list(*get, origins, &agent).await,
        Command::Status(output) => agent.status(output.output).await,
        Command::Sync(args) => Ok(agent.sync(args.timeout).await?),
        Command::Completion(completion) => {
            completion.print(Cli::command());
            Ok(ExitCode::SUCCESS)
        }
    }
}

async fn list(get: Get, origins: Origins, agent: &Agent) -> Result<ExitCode, CtlError> {
    let selection = wanted::wanted(&get)?;
    let Get {
        resource,
        output: format,
        source,
        ..
    } = get;
    let source = match resource {
        Resource::Identities => Source::Agent,
        _ => source::choose(
            source,
            origins,
            std::env::home_dir().as_deref(),
            &agent.socket,
        )?,
    };
    let found = match source {
        Source::Api(config) => {
            for warning in config.warnings() {
                eprintln!("policyctl: warning: {warning}");
            }
            let api = Api::new(&config)?;
            api.get(resource, selection.clone(), format).await?
        }
        source => {
            if matches!(source, Source::AgentForWantOfApi) {
                eprintln!(
                    "policyctl: no Kubernetes API is configured; this is what the agent on this node knows \
                     (--agent asks it without this line)"
                );
            }
            Found::by_agent(agent.get(resource, &selection).await?)
        }
    };
    for warning in &found.warnings {
        eprintln!("policyctl: warning: {warning}");
    }
    let is_one = selection.name.is_some();
    if found.listing.is_empty() {
        let none = nothing(resource, &selection, found.why_none);
        if is_one {
            return Err(CtlError::NotFound(none));
        }
        eprintln!("policyctl: {none}");
    }
    output::write(&found.listing.render(format, is_one))?;
    Ok(ExitCode::SUCCESS)
}

/// That nothing was found, and why as far as it is known.
fn nothing(resource: Resource, selection: &Selection, why: Option<String>) -> String {
    let node = selection
        .node
        .as_ref()
        .map(|node| format!(" on node {node}"))
        .unwrap_or_default();
    let namespace = selection.namespace.as_deref().unwrap_or_default();
    match &selection.name {
        Some(name) => {
            let dot = match resource {
                Resource::NetworkPolicies => '/',
                _ => '.',
            };
            let why = why.map(|why| format!(": {why}")).unwrap_or_default();
            format!(
                "{} {namespace}{dot}{name}{node} not found{why}",
                resource.singular()
            )
        }
        None if namespace.is_empty() => format!("no {}{node}", resource.plural()),
        None => format!("no {} in namespace {namespace}{node}", resource.plural()),
    }
}

impl Found {
    fn by_agent(listing: Listing) -> Self {
        Self {
            listing,
            warnings: Vec::new(),
            why_none: Some("the agent on this node knows none of this name".to_owned()),
        }
    }
}
