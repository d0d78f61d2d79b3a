//! bpf-linker, which must understand the bitcode that the compiler emits: its LLVM may not be older.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use super::{Compiler, apt};
use crate::run;

const VERSION: &str = "0.13.0";

/// Finds bpf-linker, or builds it against the LLVM of `compiler`.
pub(super) fn ensure(compiler: &Compiler) -> Result<()> {
    let llvm = compiler.llvm_major()?;
    match fault(llvm) {
        None => return Ok(()),
        Some(fault) => eprintln!("bpf-linker {fault}; building {VERSION} with LLVM {llvm}"),
    }
    let development = format!("llvm-{llvm}-dev");
    let prefix = format!("/usr/lib/llvm-{llvm}");
    if !Path::new(&prefix).join("include/llvm").exists() && !apt::knows(&development) {
        return binstall(llvm);
    }
    let polly = format!("libpolly-{llvm}-dev");
    apt::ensure_packages(
        &[&development, &polly, "g++", "zlib1g-dev", "libzstd-dev"],
        "to build bpf-linker",
    )?;
    run::behind(
        &format!("building bpf-linker {VERSION} with LLVM {llvm} (1 to 3 minutes)"),
        Command::new("cargo")
            .args(["install", "bpf-linker", "--force", "--version", VERSION])
            .args(["--no-default-features", "--features"])
            .arg(format!("llvm-{llvm}"))
            .env("LLVM_PREFIX", &prefix)
            .env_remove("CARGO_TARGET_DIR"),
    )
    .context("build bpf-linker")?;
    match fault(llvm) {
        None => Ok(()),
        Some(fault) => bail!(
            "bpf-linker was built, yet the one in PATH {fault}: put cargo's bin directory first in PATH"
        ),
    }
}

fn binstall(llvm: u32) -> Result<()> {
    let has_binstall = run::output(Command::new("cargo").args(["binstall", "-V"])).is_ok();
    if !has_binstall {
        bail!(
            "bpf-linker {VERSION} with LLVM {llvm} is missing, and there is no package \
             llvm-{llvm}-dev to build it with. Run: cargo install cargo-binstall && \
             cargo binstall bpf-linker@{VERSION}"
        );
    }
    run::behind(
        "fetching bpf-linker",
        Command::new("cargo")
            .args(["binstall", "-y", "--force"])
            .arg(format!("bpf-linker@{VERSION}")),
    )
    .map(drop)
}

/// What is wrong with the bpf-linker in PATH.
fn fault(llvm: u32) -> Option<String> {
    let Some(path) = run::find("bpf-linker") else {
        return Some("is missing".to_owned());
    };
    match run::output(Command::new(&path).arg("--version")) {
        Ok(version) if version.trim() == format!("bpf-linker {VERSION}") => {}
        Ok(version) => return Some(format!("is {}", version.trim())),
        Err(_) => return Some("does not start".to_owned()),
    }
    // One that carries its LLVM inside does not say which; those that are published are new enough.
    let libraries = run::output(Command::new("ldd").arg(&path)).unwrap_or_default();
    linked_llvm(&libraries)
        .filter(|&has| has < llvm)
        .map(|has| format!("has LLVM {has}"))
}

fn linked_llvm(libraries: &str) -> Option<u32> {
    let (_, rest) = libraries.split_once("libLLVM")?;
    let digits: String = rest
        .trim_start_matches(|character: char| !character.is_ascii_digit())
        .chars()
        .take_while(char::is_ascii_digit)
        .collect();
    digits.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::linked_llvm;

    #[test]
    fn the_linked_llvm_is_read() {
        let line = |name: &str| format!("\tlibm.so.6 => /m (0x1)\n\t{name} => /x/{name} (0x2)\n");
        assert_eq!(linked_llvm(&line("libLLVM.so.22.1")), Some(22));
        assert_eq!(linked_llvm(&line("libLLVM-17.so.1")), Some(17));
        assert_eq!(linked_llvm("\tlibc.so.6 => /c (0x1)\n"), None);
    }
}
