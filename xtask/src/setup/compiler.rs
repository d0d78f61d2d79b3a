//! A Rust compiler for `bpfel-unknown-none`: a rustc with a `core` for it (Debian's packages), or one
//! with the source of `core` (rustup's rust-src).

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use super::apt;
use crate::run;

/// The target that eBPF objects are built for.
pub(crate) const TARGET: &str = "bpfel-unknown-none";

const DEBIAN_RUSTC: &str = "/usr/bin/rustc";

/// How eBPF is compiled.
#[derive(Debug)]
pub(crate) enum Compiler {
    /// Debian's rustc, which has a prebuilt `core`.
    Prebuilt,
    /// The toolchain that runs xtask, which builds `core` from its source.
    FromSource,
}

impl Compiler {
    /// Points a cargo invocation at this compiler.
    pub(crate) fn configure(&self, cargo: &mut Command) {
        // aya-ebpf uses unstable features; this lets a stable compiler have them.
        cargo.env("RUSTC_BOOTSTRAP", "1");
        cargo.args(["--target", TARGET]);
        match self {
            Self::Prebuilt => {
                // The library path that rustup sets belongs to its own rustc.
                cargo
                    .env("RUSTC", DEBIAN_RUSTC)
                    .env_remove("LD_LIBRARY_PATH");
            }
            Self::FromSource => {
                cargo.args(["-Z", "build-std=core"]);
            }
        }
    }

    /// The major version of the LLVM that this compiler emits bitcode of.
    pub(crate) fn llvm_major(&self) -> Result<u32> {
        let version = run::output(Command::new(self.rustc()).arg("-vV"))?;
        llvm_major(&version).with_context(|| format!("{} -vV names no LLVM version", self.rustc()))
    }

    fn rustc(&self) -> &'static str {
        match self {
            Self::Prebuilt => DEBIAN_RUSTC,
            Self::FromSource => "rustc",
        }
    }
}

/// Finds a compiler, or installs one.
pub(super) fn ensure() -> Result<Compiler> {
    if let Some(found) = find() {
        return Ok(found);
    }
    let why = "a Rust compiler for eBPF";
    if run::find("apt-get").is_some() {
        for packages in [
            ["rustc-web", "libstd-rust-web-dev-bpf"],
            ["rustc", "libstd-rust-dev-bpf"],
        ] {
            if apt::knows(packages[1]) {
                apt::ensure_packages(&packages, why)?;
                break;
            }
        }
    }
    if find().is_none() && run::find("rustup").is_some() {
        run::behind(
            "adding rust-src (the source of `core`, which is built for eBPF)",
            Command::new("rustup").args(["component", "add", "rust-src"]),
        )
        .context(
            "no Rust compiler for eBPF: Debian's packages are not to be had here, and \
             `rustup component add rust-src` failed",
        )?;
    }
    match find() {
        Some(found) => Ok(found),
        None => bail!(
            "no Rust compiler for eBPF. Run `rustup component add rust-src`, or install Debian's \
             rustc-web and libstd-rust-web-dev-bpf (rustc and libstd-rust-dev-bpf after Debian 12)"
        ),
    }
}

fn find() -> Option<Compiler> {
    let prebuilt = run::output(Command::new(DEBIAN_RUSTC).args([
        "--print",
        "target-libdir",
        "--target",
        TARGET,
    ]))
    .is_ok_and(|directory| has_core(&PathBuf::from(directory.trim())));
    if prebuilt {
        return Some(Compiler::Prebuilt);
    }
    let sysroot = run::output(Command::new("rustc").args(["--print", "sysroot"])).ok()?;
    PathBuf::from(sysroot.trim())
        .join("lib/rustlib/src/rust/library/core/src/lib.rs")
        .exists()
        .then_some(Compiler::FromSource)
}

fn has_core(directory: &PathBuf) -> bool {
    std::fs::read_dir(directory).is_ok_and(|mut entries| {
        entries.any(|entry| {
            entry.is_ok_and(|entry| entry.file_name().to_string_lossy().starts_with("libcore-"))
        })
    })
}

fn llvm_major(version: &str) -> Option<u32> {
    version
        .lines()
        .find_map(|line| line.strip_prefix("LLVM version: "))?
        .split('.')
        .next()?
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use super::llvm_major;

    #[test]
    fn llvm_major_is_read() {
        let version =
            "rustc 1.96.0 (built from a source tarball)\nrelease: 1.96.0\nLLVM version: 22.1.8\n";
        assert_eq!(llvm_major(version), Some(22));
        assert_eq!(llvm_major("rustc 1.96.0\n"), None);
    }
}
