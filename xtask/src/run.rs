//! Running other programs: in the open, or behind a line of progress.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use indicatif::{ProgressBar, ProgressStyle};

/// Runs a program that speaks for itself.
///
/// # Errors
///
/// When it cannot be started or does not succeed.
pub(crate) fn open(command: &mut Command) -> Result<()> {
    let status = command
        .stdin(Stdio::null())
        .status()
        .with_context(|| format!("start {}", shown(command)))?;
    if !status.success() {
        bail!("{} failed ({status})", shown(command));
    }
    Ok(())
}

/// Runs a short program for what it prints.
///
/// # Errors
///
/// When it cannot be started or does not succeed, with what it said.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("start {}", shown(command)))?;
    if !output.status.success() {
        bail!(
            "{} failed ({}):\n{}{}",
            shown(command),
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs a long program whose output only matters when it fails, saying what it is for.
///
/// # Errors
///
/// When it cannot be started or does not succeed, with what it said.
pub(crate) fn behind(what: &str, command: &mut Command) -> Result<String> {
    let progress = Progress::begin(what);
    let result = output(command);
    progress.end(result.is_ok());
    result
}

/// A line that says what goes on: moving on a terminal, two plain lines without one.
pub(crate) struct Progress {
    what: String,
    began: Instant,
    bar: ProgressBar,
}

impl Progress {
    pub(crate) fn begin(what: &str) -> Self {
        let bar = ProgressBar::new_spinner();
        if bar.is_hidden() {
            eprintln!("{what} ...");
        } else if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} ({elapsed})") {
            bar.set_style(style);
            bar.set_message(what.to_owned());
            bar.enable_steady_tick(Duration::from_millis(120));
        }
        Self {
            what: what.to_owned(),
            began: Instant::now(),
            bar,
        }
    }

    pub(crate) fn end(self, success: bool) {
        self.bar.finish_and_clear();
        let outcome = if success { "done" } else { "failed" };
        eprintln!(
            "{}: {outcome} in {:.1} s",
            self.what,
            self.began.elapsed().as_secs_f32()
        );
    }
}

/// Where a program is, in PATH or where Debian keeps the administrator's programs.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin", "/usr/bin"].map(PathBuf::from))
        .map(|directory| directory.join(program))
        .find(|candidate| candidate.is_file())
}

/// Whether we may do what only root may.
pub(crate) fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// The command as one would type it.
pub(crate) fn shown(command: &Command) -> String {
    std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|part| part.to_string_lossy())
        .collect::<Vec<_>>()
        .join(" ")
}
