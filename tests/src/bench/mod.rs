//! `cargo xtask bench`: nanoseconds per packet, by BPF test run, beside floor programs of the same run; the
//! compiler by itself; the agent on a node, beside a large cluster.
//!
//! Every row of packets is measured once a round, in an order that changes from round to round; a row's
//! figure is the median over the rounds, and the marks are ratios of medians, since the machine is noisy
//! and absolute times mean little elsewhere.

mod agent;
mod compiler;
mod floor;
mod packets;
mod process;
mod report;
mod services;

use std::env;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};

/// What the command line and the environment say.
struct Settings {
    /// Rounds over all rows.
    rounds: usize,
    /// Where the JSON goes, beside the table on standard output.
    json: Option<PathBuf>,
    /// Which rows are measured.
    packets: bool,
    compiler: bool,
    agent: bool,
}

/// Runs the benchmark: `portcullis-bench [--rounds N] [--json FILE] [--packets-only | --agent-only]`.
///
/// # Errors
///
/// Without root, without the objects, or when a program does not do what its row says.
pub fn main() -> Result<()> {
    let settings = settings()?;
    if !nix::unistd::geteuid().is_root() {
        bail!("the benchmark loads BPF programs and needs root: run `sudo -E cargo xtask bench`");
    }
    let mut rows = Vec::new();
    if settings.packets {
        rows.extend(packets::measure(&floor_object()?, settings.rounds)?);
    }
    if settings.compiler {
        rows.extend(compiler::measure()?);
    }
    if settings.agent {
        rows.extend(agent::measure()?);
    }
    let report = report::Report::new(rows);
    print!("{report}");
    if let Some(path) = &settings.json {
        let text = serde_json::to_string_pretty(&report.to_json())?;
        fs::write(path, text).with_context(|| format!("write {}", path.display()))?;
        println!("written: {}", path.display());
    }
    Ok(())
}

fn settings() -> Result<Settings> {
    let mut settings = Settings {
        rounds: 9,
        json: None,
        packets: true,
        compiler: true,
        agent: true,
    };
    let mut arguments = env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || {
            arguments
                .next()
                .with_context(|| format!("{argument} wants a value"))
        };
        match argument.as_str() {
            "--rounds" => settings.rounds = value()?.parse().context("--rounds wants a number")?,
            "--json" => settings.json = Some(value()?.into()),
            "--packets-only" => (settings.compiler, settings.agent) = (false, false),
            "--agent-only" => (settings.packets, settings.compiler) = (false, false),
            other => bail!(
                "unknown argument {other}; known are --rounds, --json, --packets-only, --agent-only"
            ),
        }
    }
    if !settings.packets && !settings.agent {
        bail!("--packets-only and --agent-only leave nothing to measure: give one of them");
    }
    Ok(settings)
}

/// The floor programs lie beside the object that the build was told of, or where the environment says.
fn floor_object() -> Result<PathBuf> {
    if let Some(path) = env::var_os("PORTCULLIS_FLOOR_OBJECT") {
        return Ok(path.into());
    }
    let object = env::var_os("PORTCULLIS_BPF_OBJECT").map(PathBuf::from);
    let beside = object
        .as_deref()
        .and_then(|object| object.parent())
        .map(|directory| {
            ["portcullis-floor.o", "portcullis-floor"].map(|name| directory.join(name))
        });
    beside
        .into_iter()
        .flatten()
        .find(|candidate| candidate.exists())
        .context("PORTCULLIS_FLOOR_OBJECT is not set: use `cargo xtask bench`")
}
