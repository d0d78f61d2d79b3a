//! The one entry point for developers: `cargo xtask <subcommand>`, a file per subcommand.

mod btf;
mod build;
#[cfg(test)]
mod docs;
mod image;
mod kernel;
mod layout;
mod lint;
mod manifests;
mod programs;
mod run;
mod setup;
mod test;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::build::Profile;
use crate::layout::Layout;

#[derive(Parser)]
#[command(
    name = "cargo xtask",
    bin_name = "cargo xtask",
    about = "Builds, tests and shows Portcullis"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Find or install what a build and the tests need
    Setup {
        /// What the kernel matrix needs too (qemu and the tools that make a guest)
        #[arg(long)]
        kernels: bool,
    },
    /// Build the eBPF object, then the programs that embed it
    Build {
        /// Optimised programs (the eBPF object always is)
        #[arg(long, conflicts_with = "debug")]
        release: bool,
        /// Unoptimised programs: the default
        #[arg(long)]
        debug: bool,
    },
    /// Formatting, clippy, the compiler's dependencies, and the tidiness of files
    Lint,
    /// Write manifests/, what operators apply
    Manifests {
        /// Write nothing, and fail when a file is stale
        #[arg(long)]
        check: bool,
    },
    /// A container image of static programs, as an archive for ctr, docker and podman (x86-64 only)
    Image {
        /// Where the archive goes [default: image/portcullis-vVERSION.tar below the target directory]
        #[arg(long, value_name = "FILE")]
        output: Option<PathBuf>,
        /// Write the image's files below this directory too
        #[arg(long, value_name = "DIR")]
        rootfs: Option<PathBuf>,
        /// Build it again in another place, and fail when a byte differs
        #[arg(long)]
        verify: bool,
    },
    /// Lints and all tests; with --kernel, packet tables and smoke test on other kernels instead
    Test {
        /// Kernels to boot: 5.10, 6.1, 6.12, newest, all (repeat it, or separate by commas)
        #[arg(long, value_delimiter = ',')]
        kernel: Vec<kernel::Wanted>,
        /// Only tests whose name contains this
        filter: Option<String>,
    },
    /// Pods as network namespaces, policies applied to them, connections measured
    Demo {
        /// Passed on to the demo
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Nanoseconds a packet, beside floor programs; the compiler; the agent beside a large cluster
    Bench {
        /// Passed on to the benchmark
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
}

fn dispatch(command: Command) -> anyhow::Result<()> {
    let layout = Layout::find()?;
    match command {
        Command::Setup { kernels } => setup::run(&layout, kernels),
        Command::Build { release, debug: _ } => {
            let profile = if release {
                Profile::Release
            } else {
                Profile::Debug
            };
            build::run(&layout, profile).map(drop)
        }
        Command::Lint => lint::run(&layout),
        Command::Manifests { check: true } => manifests::check(&layout),
        Command::Manifests { check: false } => manifests::run(&layout),
        Command::Image {
            output,
            rootfs,
            verify,
        } => image::run(
            &layout,
            &image::Options {
                output,
                rootfs,
                verify,
            },
        ),
        Command::Test { kernel, filter } if kernel.is_empty() => {
            test::run(&layout, filter.as_deref())
        }
        Command::Test { kernel, filter } => {
            kernel::run(&layout, &kernel::expand(&kernel), filter.as_deref())
        }
        Command::Demo { arguments } => programs::run(&layout, "portcullis-demo", &arguments),
        Command::Bench { arguments } => programs::run(&layout, "portcullis-bench", &arguments),
    }
}

fn main() -> ExitCode {
    match dispatch(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}
