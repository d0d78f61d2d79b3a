//! `cargo xtask test`: lints, unit and property tests, then the tests on this machine's kernel.

use std::env;
use std::panic::resume_unwind;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::build::{self, Built, Profile};
use crate::layout::Layout;
use crate::{lint, run, setup};

/// Crates whose tests need no more than a compiler. (Some of the agent's and the plugin's make network
/// namespaces.)
const UNIT: [&str; 5] = [
    "policy-common",
    "policy-core",
    "policy-cni",
    "policy-agent",
    "xtask",
];

/// The subcommand.
pub(crate) fn run(layout: &Layout, filter: Option<&str>) -> Result<()> {
    if !run::is_root() {
        bail!(
            "the tests load eBPF programs and make network namespaces, so they need root. Run: \
             sudo -E env PATH=\"$PATH\" cargo xtask test\n\
             (without root there is: cargo xtask lint, and cargo test -p policy-core)"
        );
    }
    let compiler = setup::for_build()?;
    setup::for_tests()?;
    let built = build::run(layout, Profile::Debug)?;

    if let Some(filter) = filter
        && !any_matches(layout, &built, filter)?
    {
        bail!("no test has {filter:?} in its name (`cargo test -- --list` shows the names)");
    }
    let mut summary = Summary::default();
    if filter.is_none() {
        summary.step("lints", || lint::check(layout, Some(&built)));
        summary.step("lints of the eBPF programs", || {
            lint::check_bpf(layout, &compiler)
        });
    }
    summary.step("unit and property tests", || {
        tests(layout, &built, &UNIT, filter)
    });
    summary.step("tests on this kernel", || {
        tests(layout, &built, &KERNEL, filter)
    });
    summary.finish()
}

/// Crates whose tests want this kernel.
const KERNEL: [&str; 1] = ["portcullis-tests"];

/// `cargo test` for some crates.
fn cargo_test(layout: &Layout, built: &Built, crates: &[&str], filter: Option<&str>) -> Command {
    let mut cargo = layout.cargo();
    cargo.args(["test", "--no-fail-fast"]);
    for name in crates {
        cargo.args(["-p", name]);
    }
    cargo.args(filter);
    built.tell(&mut cargo);
    cargo
}

/// Whether the filter leaves any test: a run of none would count as passed.
fn any_matches(layout: &Layout, built: &Built, filter: &str) -> Result<bool> {
    let crates = [&UNIT[..], &KERNEL[..]].concat();
    let mut cargo = cargo_test(layout, built, &crates, Some(filter));
    let names = run::output(cargo.args(["--", "--list"]))?;
    Ok(names.lines().any(|line| line.ends_with(": test")))
}

fn tests(layout: &Layout, built: &Built, crates: &[&str], filter: Option<&str>) -> Result<()> {
    let mut cargo = cargo_test(layout, built, crates, filter);
    if env::var_os("PORTCULLIS_CONFORMANCE").is_none() {
        let given = layout.root.join("../shared/conformance");
        if given.is_dir() {
            cargo.env("PORTCULLIS_CONFORMANCE", given.canonicalize()?);
        } else if crates.contains(&"portcullis-tests") {
            println!(
                "SKIPPED: the conformance cases (set PORTCULLIS_CONFORMANCE to their directory)"
            );
        }
    }
    run::open(&mut cargo)
}

/// What was done, how long it took, and what of it failed.
#[derive(Default)]
pub(crate) struct Summary {
    steps: Vec<Step>,
}

/// Name, time and error of a step that was done.
type Step = (String, Duration, Option<anyhow::Error>);

fn done(name: String, step: impl FnOnce() -> Result<()>) -> Step {
    println!("\n== {name}");
    let began = Instant::now();
    let error = step().err();
    if let Some(error) = &error {
        eprintln!("{name}: {error:#}");
    }
    (name, began.elapsed(), error)
}

impl Summary {
    /// Does a step. One that fails does not keep the others from being done.
    pub(crate) fn step(&mut self, name: &str, step: impl FnOnce() -> Result<()>) {
        self.steps.push(done(name.to_owned(), step));
    }

    /// Does steps side by side, as many at a time as there are processors.
    pub(crate) fn side_by_side<S>(&mut self, steps: Vec<(String, S)>)
    where
        S: FnOnce() -> Result<()> + Send,
    {
        let at_once = thread::available_parallelism().map_or(1, usize::from);
        let mut steps = steps.into_iter().peekable();
        while steps.peek().is_some() {
            thread::scope(|scope| {
                let some = steps.by_ref().take(at_once);
                let running: Vec<_> = some
                    .map(|(name, step)| scope.spawn(move || done(name, step)))
                    .collect();
                for step in running {
                    self.steps
                        .push(step.join().unwrap_or_else(|panic| resume_unwind(panic)));
                }
            });
        }
    }

    /// Prints all that was done.
    ///
    /// # Errors
    ///
    /// When a step failed.
    pub(crate) fn finish(self) -> Result<()> {
        println!("\n== summary");
        let mut failed = 0;
        for (name, took, error) in &self.steps {
            let outcome = if error.is_some() { "FAILED" } else { "ok" };
            println!("{outcome:6} {name} ({:.0} s)", took.as_secs_f32());
            failed += usize::from(error.is_some());
        }
        if failed > 0 {
            bail!("{failed} of {} steps failed", self.steps.len());
        }
        Ok(())
    }
}
