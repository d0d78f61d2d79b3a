//! `cargo xtask lint`: formatting, clippy, the compiler's dependencies, stale manifests, and the tidiness
//! of files.

use std::fs;
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::build::{self, Built};
use crate::layout::Layout;
use crate::setup::Compiler;
use crate::{manifests, run};

/// What the compiler may never depend on: it is pure.
const IMPURE: [&str; 4] = ["kube", "aya", "tokio", "aya-obj"];

/// The subcommand: works on a bare toolchain.
pub(crate) fn run(layout: &Layout) -> Result<()> {
    check(layout, None)
}

/// Lints. With what was built, so that the crates are not compiled twice.
pub(crate) fn check(layout: &Layout, built: Option<&Built>) -> Result<()> {
    run::open(layout.cargo().args(["fmt", "--all", "--check"]))?;
    let mut clippy = layout.cargo();
    clippy.args(["clippy", "--all-targets", "--", "-D", "warnings"]);
    if let Some(built) = built {
        built.tell(&mut clippy);
    }
    run::open(&mut clippy)?;
    purity(layout)?;
    manifests::check(layout)?;
    hygiene(layout)
}

/// Warnings of the eBPF crate, for its own target, are errors.
pub(crate) fn check_bpf(layout: &Layout, compiler: &Compiler) -> Result<()> {
    let mut cargo = build::bpf_cargo(layout, compiler, &["check"], &["-Dwarnings"]);
    cargo.env("CARGO_TARGET_DIR", layout.bpf().join("lint"));
    run::open(&mut cargo)
}

fn purity(layout: &Layout) -> Result<()> {
    let tree = run::output(layout.cargo().args([
        "tree",
        "-p",
        "policy-core",
        "-e",
        "normal,build",
        "--prefix",
        "none",
    ]))?;
    let found = impure(&tree);
    if !found.is_empty() {
        bail!("policy-core is pure, yet depends on {}", found.join(", "));
    }
    Ok(())
}

fn impure(tree: &str) -> Vec<&str> {
    tree.lines()
        .filter_map(|line| line.split(' ').next())
        .filter(|name| IMPURE.contains(name) || name.starts_with("kube-"))
        .collect()
}

fn hygiene(layout: &Layout) -> Result<()> {
    let files = run::output(
        Command::new("git")
            .args(["ls-files", "-z"])
            .current_dir(&layout.root),
    )?;
    let mut faults = Vec::new();
    for name in files.split('\0').filter(|name| !name.is_empty()) {
        let path = layout.root.join(name);
        // A file that was deleted and not committed yet.
        if !path.exists() {
            continue;
        }
        let content = fs::read(&path).with_context(|| format!("read {name}"))?;
        if let Ok(text) = String::from_utf8(content) {
            faults.extend(
                untidy(&text)
                    .into_iter()
                    .map(|fault| format!("{name}{fault}")),
            );
        }
    }
    if !faults.is_empty() {
        bail!("untidy files:\n{}", faults.join("\n"));
    }
    Ok(())
}

fn untidy(text: &str) -> Vec<String> {
    let mut faults = Vec::new();
    if !text.is_empty() && !text.ends_with('\n') {
        faults.push(": no newline at the end".to_owned());
    }
    for (number, line) in text.lines().enumerate() {
        if line.ends_with([' ', '\t', '\r']) {
            faults.push(format!(":{}: space at the end of the line", number + 1));
        }
        if line.starts_with("<<<<<<< ") || line.starts_with(">>>>>>> ") {
            faults.push(format!(":{}: an unresolved merge", number + 1));
        }
    }
    faults
}

#[cfg(test)]
mod tests {
    use super::{impure, untidy};

    #[test]
    fn impure_dependencies_are_found_by_whole_names() {
        let tree = "policy-core v0.1.0 (/x)\nk8s-openapi v0.29.0\nkubelike v1\n";
        assert!(impure(tree).is_empty());
        assert_eq!(
            impure("a v1\nkube-core v5.0.0\naya v0.14.0 (*)\n"),
            ["kube-core", "aya"]
        );
    }

    #[test]
    fn untidiness_is_found() {
        assert!(untidy("a\n\nb\n").is_empty());
        assert!(untidy("").is_empty());
        assert_eq!(
            untidy("a \nb"),
            [
                ": no newline at the end",
                ":1: space at the end of the line"
            ]
        );
    }
}
