//! Where things are: the source tree, and the target directory that the user's cargo would use.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::run;

/// The places that every subcommand refers to.
pub(crate) struct Layout {
    /// The workspace.
    pub(crate) root: PathBuf,
    /// Cargo's target directory, absolute.
    pub(crate) target: PathBuf,
}

impl Layout {
    pub(crate) fn find() -> Result<Self> {
        // As cargo sets it for this run: clones that share a target directory share this program, too.
        let package = std::env::var_os("CARGO_MANIFEST_DIR")
            .context("CARGO_MANIFEST_DIR is not set; run this through `cargo xtask`")?;
        let root = Path::new(&package)
            .parent()
            .context("xtask is not inside of a workspace")?
            .to_path_buf();
        let metadata = run::output(
            Command::new(cargo())
                .args([
                    "metadata",
                    "--no-deps",
                    "--offline",
                    "--format-version",
                    "1",
                ])
                .current_dir(&root),
        )?;
        let metadata: serde_json::Value =
            serde_json::from_str(&metadata).context("read what cargo metadata printed")?;
        let target = metadata["target_directory"]
            .as_str()
            .context("cargo metadata names no target directory")?
            .into();
        Ok(Self { root, target })
    }

    /// Where the eBPF objects and what they are built from go.
    pub(crate) fn bpf(&self) -> PathBuf {
        self.target.join("bpf")
    }

    /// A cargo invocation in the workspace, with the toolchain that runs xtask.
    pub(crate) fn cargo(&self) -> Command {
        let mut command = Command::new(cargo());
        // The workspace may have been found by `cargo metadata` through a setting that is relative.
        command
            .current_dir(&self.root)
            .env("CARGO_TARGET_DIR", &self.target);
        command
    }
}

fn cargo() -> OsString {
    std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
}
