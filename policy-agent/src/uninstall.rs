//! `policy-agent uninstall`: takes everything off this node that agents put there, then looks again.
//!
//! What is removed is what is found, not what an agent remembers, so the command may be run again and
//! again, and after an agent that was killed. It proves itself by a second look, which also asks for the
//! programs and maps that were found at first: the kernel holds each as long as anything refers to it.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use clap::Args;

use crate::agent::RECORDS;
use crate::agent::lock::{self, Lock, LockError};
use crate::cni::Directories;
use crate::config::{BPFFS, RUN_DIR, SOCKET};
use crate::dataplane::{self, Installed, Part};

/// How long the kernel may take to let go: programs wait for an RCU grace period, maps for programs.
const PATIENCE: Duration = Duration::from_secs(10);

/// How often it is asked meanwhile.
const PAUSE: Duration = Duration::from_millis(20);

/// Where an agent leaves things, beside interfaces.
#[derive(Args, Clone, Debug)]
pub struct Places {
    /// Directory of the local socket and the lock
    #[arg(long, env = "PORTCULLIS_RUN_DIR", default_value = RUN_DIR, value_name = "DIR")]
    pub run_dir: PathBuf,

    /// Directory of pinned maps and links
    #[arg(long, env = "PORTCULLIS_BPFFS", default_value = BPFFS, value_name = "DIR")]
    pub bpffs: PathBuf,

    /// Where the CNI plugin is
    #[command(flatten)]
    pub cni: Directories,
}

/// Removes what is there, and writes to `out` what that was and what the second look found.
///
/// # Errors
///
/// When an agent runs, when the kernel does not say what is there, and when something is left.
pub async fn run(places: &Places, out: &mut impl Write) -> anyhow::Result<()> {
    let files = run_files(&places.run_dir)?;
    let _run_lock = locked(&places.run_dir, |directory| {
        if directory.exists() {
            lock::run_directory(directory).map(Some)
        } else {
            Ok(None)
        }
    })?;
    let _pins_lock = locked(&places.bpffs, lock::pins)?;

    // First, because with the plugin there and no agent no pod can start.
    let cni = places.cni.uninstall();
    let before = Installed::look(&places.bpffs).context("looking for what is installed")?;
    for part in &before.parts {
        if let Err(error) = dataplane::remove(part) {
            writeln!(out, "failed  {part}: {error}")?;
        }
    }
    remove_run_files(&places.run_dir, out)?;

    let left = second_look(places, &before).await?;
    let found = before.parts.iter().chain(&files);
    let removed: Vec<_> = found.filter(|part| !left.contains(part)).collect();
    let cni_files = cni.as_deref().unwrap_or_default();
    for path in cni_files {
        writeln!(out, "{}", cni_words(path))?;
    }
    for part in &removed {
        writeln!(out, "removed {part}")?;
    }
    if let Err(error) = &cni {
        writeln!(out, "left    policy-cni: {error}")?;
    }
    for part in &left {
        writeln!(out, "left    {part}{}", hint(part))?;
    }
    if !left.is_empty() || cni.is_err() {
        bail!("not everything could be removed; what is left is listed above");
    }
    if removed.is_empty() && cni_files.is_empty() {
        writeln!(out, "there is nothing to remove")?;
    }
    prove(places, &before, out)?;
    Ok(())
}

/// What became of a file that the CNI plugin's installation made or changed.
fn cni_words(path: &Path) -> String {
    if path.exists() {
        format!("restored CNI configuration {}", path.display())
    } else {
        format!("removed file {}", path.display())
    }
}

/// A lock, or a sentence about the agent that has it.
fn locked(
    directory: &Path,
    take: impl FnOnce(&Path) -> Result<Option<Lock>, LockError>,
) -> anyhow::Result<Option<Lock>> {
    match take(directory) {
        Err(LockError::Taken { path, pid }) => {
            let pid = pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default();
            bail!(
                "an agent{pid} runs and uses {}, so nothing was removed; stop it first (kubectl -n kube-system delete \
                 daemonset portcullis; outside a cluster, end the process), then run this again",
                path.display()
            )
        }
        other => Ok(other?),
    }
}

/// Socket, lock and records, where they exist; to be looked for before the lock is taken, which makes it.
fn run_files(run_dir: &Path) -> io::Result<Vec<Part>> {
    let mut files = Vec::new();
    for name in [SOCKET, lock::FILE] {
        let path = run_dir.join(name);
        if path.try_exists()? {
            files.push(Part::File(path));
        }
    }
    for name in RECORDS {
        let records = run_dir.join(name);
        if records.try_exists()? {
            files.push(Part::Directory(records));
        }
    }
    Ok(files)
}

/// Removes socket, lock and records, and the directory when nothing else is in it. A container's mount stays, too.
fn remove_run_files(run_dir: &Path, out: &mut impl Write) -> io::Result<()> {
    for name in [SOCKET, lock::FILE] {
        let path = run_dir.join(name);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                writeln!(out, "failed  {}: {error}", path.display())?;
            }
            _ => {}
        }
    }
    for name in RECORDS {
        let records = run_dir.join(name);
        match fs::remove_dir_all(&records) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                writeln!(out, "failed  {}: {error}", records.display())?;
            }
            _ => {}
        }
    }
    match fs::remove_dir(run_dir) {
        // In a container, to which the node's directory was given.
        Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
            writeln!(
                out,
                "kept    directory {}, which is a mount",
                run_dir.display()
            )
        }
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            writeln!(out, "kept    directory {}: {error}", run_dir.display())
        }
        _ => Ok(()),
    }
}

/// What is left once the kernel had its time.
async fn second_look(places: &Places, before: &Installed) -> anyhow::Result<Vec<Part>> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let left = before.look_again(&places.bpffs);
        let mut left = left.context("looking for what is left")?;
        left.extend(run_files(&places.run_dir)?);
        if left.is_empty() || Instant::now() >= deadline {
            return Ok(left);
        }
        tokio::time::sleep(PAUSE).await;
    }
}

fn prove(places: &Places, before: &Installed, out: &mut impl Write) -> io::Result<()> {
    writeln!(
        out,
        "nothing is left: no from_pod, to_pod, exit, exit_l3, exit_ib or from_node at any interface of this network namespace, no {}, \
         no socket or lock in {}, no policy-cni in {} and {}",
        places.bpffs.display(),
        places.run_dir.display(),
        places.cni.conf_dir.display(),
        places.cni.bin_dir.display()
    )?;
    let (programs, maps) = before.objects();
    if programs + maps > 0 {
        writeln!(
            out,
            "the kernel has let go of the {programs} programs and {maps} maps that were found"
        )?;
    }
    Ok(())
}

/// What to do about a part that stayed.
fn hint(part: &Part) -> &'static str {
    match part {
        Part::Attached { .. } => {
            "; no pin that was found holds it: `bpftool link show` names the link and the processes that hold it, \
             `bpftool link detach id N` removes it"
        }
        Part::Program { .. } => {
            "; it is attached in another network namespace, or a process holds it: `bpftool prog show id N` and \
             `bpftool net` tell"
        }
        Part::Map { .. } => "; a process holds it: `bpftool map show id N` names it",
        Part::Qdisc { .. } | Part::Pin(_) | Part::Directory(_) | Part::File(_) => "",
    }
}
