//! `cargo xtask test --kernel`: packet tables and smoke test on Debian's kernels, each in a guest of
//! qemu under software emulation.

mod archive;
mod guest;
mod initramfs;
mod modules;

use std::path::PathBuf;
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context as _, Result, ensure};
use clap::ValueEnum;

use crate::build::{self, Built, CRATES, PROGRAMS, Profile};
use crate::layout::Layout;
use crate::test::Summary;
use crate::{run, setup};

/// The test binaries that run in a guest.
pub(crate) const TESTS: [&str; 2] = ["packet_table", "smoke"];

/// What everything in a guest is built for: named, so that build scripts and macros, which cannot be
/// linked statically, are not.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// What may be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Wanted {
    #[value(name = "5.10")]
    V5_10,
    #[value(name = "6.1")]
    V6_1,
    #[value(name = "6.12")]
    V6_12,
    /// The newest that Debian has
    Newest,
    All,
}

/// A line of kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Series {
    /// What the user calls it.
    pub(crate) name: &'static str,
    /// What releases of it begin with.
    pub(crate) prefix: &'static str,
    /// The releases of Debian that have it.
    pub(crate) suites: &'static [&'static str],
}

const SERIES: [Series; 4] = [
    Series {
        name: "5.10",
        prefix: "5.10.",
        suites: &["bullseye", "bullseye-security"],
    },
    Series {
        name: "6.1",
        prefix: "6.1.",
        suites: &["bookworm", "bookworm-security"],
    },
    Series {
        name: "6.12",
        prefix: "6.12.",
        suites: &["trixie", "trixie-security"],
    },
    Series {
        name: "newest",
        prefix: "",
        suites: &["sid", "trixie-backports"],
    },
];

/// The series that the user's words mean, each once, oldest first.
pub(crate) fn expand(wanted: &[Wanted]) -> Vec<Series> {
    let has = |one| wanted.contains(&one) || wanted.contains(&Wanted::All);
    [Wanted::V5_10, Wanted::V6_1, Wanted::V6_12, Wanted::Newest]
        .into_iter()
        .zip(SERIES)
        .filter(|&(one, _)| has(one))
        .map(|(_, series)| series)
        .collect()
}

/// The subcommand.
pub(crate) fn run(layout: &Layout, series: &[Series], filter: Option<&str>) -> Result<()> {
    let compiler = setup::for_build()?;
    setup::for_kernels(layout)?;
    let built = build::objects(layout, &compiler, Profile::Debug)?;
    let payload = payload(layout, &built)?;
    let mut summary = Summary::default();
    let preparing = Mutex::new(());
    let boot = |one: &Series| {
        let (kernel, image) = {
            // Downloads use one cache.
            let _one_at_a_time = preparing.lock().unwrap_or_else(PoisonError::into_inner);
            let kernel = archive::get(layout, one)?;
            let image = initramfs::make(layout, one, &kernel, &payload, filter)?;
            (kernel, image)
        };
        guest::run(one, &kernel, &image, filter)
    };
    // An emulated machine keeps one processor busy.
    let steps = series.iter().map(|one| {
        let boot = &boot;
        (format!("kernel {}", one.name), move || boot(one))
    });
    summary.side_by_side(steps.collect());
    summary.finish()
}

/// Builds what runs in the guests, linked statically. Returns the files, by their names there.
fn payload(layout: &Layout, built: &Built) -> Result<Vec<(String, PathBuf)>> {
    let cargo = |arguments: &[&str]| {
        let mut cargo = layout.cargo();
        cargo
            .args(arguments)
            .args(["--target", TARGET])
            .env(
                "CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUSTFLAGS",
                "-Ctarget-feature=+crt-static",
            )
            // A guest holds everything in memory.
            .env("CARGO_PROFILE_DEV_DEBUG", "0")
            .env("CARGO_PROFILE_DEV_STRIP", "symbols");
        built.tell(&mut cargo);
        cargo
    };
    run::open(&mut cargo(&[&["build"], &CRATES[..]].concat()))?;
    let directory = layout.target.join(TARGET).join("debug");
    let mut files = vec![
        ("portcullis.o".to_owned(), built.object.clone()),
        ("portcullis-floor.o".to_owned(), built.floor.clone()),
    ];
    for program in PROGRAMS {
        let path = directory.join(program);
        ensure!(
            path.exists(),
            "everything was built, yet there is no {}",
            path.display()
        );
        files.push((program.to_owned(), path));
    }
    let select: Vec<&str> = TESTS.iter().flat_map(|test| ["--test", test]).collect();
    let arguments = [
        &[
            "test",
            "--no-run",
            "-p",
            "portcullis-tests",
            "--message-format",
        ][..],
        &["json-render-diagnostics"],
        &select,
    ]
    .concat();
    let messages = run::behind("building the tests for the guests", &mut cargo(&arguments))?;
    for test in TESTS {
        let path = executable(&messages, test).with_context(|| format!("{test} was not built"))?;
        files.push((test.to_owned(), path));
    }
    Ok(files)
}

/// The path of a test binary, from cargo's messages.
fn executable(messages: &str, test: &str) -> Option<PathBuf> {
    messages
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter(|message| message["target"]["name"] == test)
        .find_map(|message| message["executable"].as_str().map(PathBuf::from))
}

/// The libraries that a program needs, and its loader, as `ldd` prints them.
fn libraries(program: &std::path::Path) -> Result<Vec<PathBuf>> {
    let printed = run::output(Command::new("ldd").arg(program))?;
    Ok(paths_of(&printed))
}

fn paths_of(printed: &str) -> Vec<PathBuf> {
    printed
        .lines()
        .filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')))
        .map(PathBuf::from)
        .collect()
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::{Wanted, executable, expand, paths_of};

    #[test]
    fn wanted_kernels_are_expanded_once() {
        let names = |wanted: &[Wanted]| -> Vec<_> {
            expand(wanted).iter().map(|series| series.name).collect()
        };
        assert_eq!(
            names(&[Wanted::V6_12, Wanted::V5_10, Wanted::V6_12]),
            ["5.10", "6.12"]
        );
        assert_eq!(
            names(&[Wanted::All, Wanted::V6_1]),
            ["5.10", "6.1", "6.12", "newest"]
        );
    }

    #[test]
    fn libraries_are_read() {
        let printed = "\tlinux-vdso.so.1 (0x7)\n\tlibm.so.6 => /lib/libm.so.6 (0x7)\n\
                       \t/lib64/ld-linux-x86-64.so.2 (0x7)\n";
        assert_eq!(
            paths_of(printed),
            ["/lib/libm.so.6", "/lib64/ld-linux-x86-64.so.2"].map(PathBuf::from)
        );
    }

    #[test]
    fn executables_are_found_in_messages() {
        let messages = "{\"target\":{\"name\":\"a\"},\"executable\":null}\n\
                        {\"target\":{\"name\":\"smoke\"},\"executable\":\"/t/smoke-1\"}\nnoise\n";
        assert_eq!(
            executable(messages, "smoke"),
            Some(PathBuf::from("/t/smoke-1"))
        );
        assert_eq!(executable(messages, "a"), None);
    }
}
