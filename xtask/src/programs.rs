//! `cargo xtask demo` and `cargo xtask bench`: programs of the tests crate, with what they need built.

use std::os::unix::process::CommandExt as _;

use anyhow::{Context as _, Result, bail};

use crate::build::{self, Profile};
use crate::layout::Layout;
use crate::{run, setup};

/// Builds `program` and all it needs, and becomes it.
pub(crate) fn run(layout: &Layout, program: &str, arguments: &[String]) -> Result<()> {
    let subcommand = program.trim_start_matches("portcullis-");
    if !run::is_root() {
        bail!(
            "{subcommand} loads eBPF programs and makes network namespaces, so it needs root. Run: \
             sudo -E env PATH=\"$PATH\" cargo xtask {subcommand}"
        );
    }
    setup::for_build()?;
    setup::for_tests()?;
    let built = build::run(layout, Profile::Release)?;
    let mut cargo = layout.cargo();
    cargo.args([
        "build",
        "--release",
        "-p",
        "portcullis-tests",
        "--bin",
        program,
    ]);
    built.tell(&mut cargo);
    run::open(&mut cargo)?;
    let mut command = std::process::Command::new(built.programs.join(program));
    command.args(arguments);
    built.tell(&mut command);
    // Its exit status and its signals are then the terminal's own affair.
    Err(command.exec()).with_context(|| format!("start {program}"))
}
