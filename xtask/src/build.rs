//! `cargo xtask build`: the eBPF objects, then the programs that embed one of them.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use anyhow::{Context as _, Result, ensure};

use crate::layout::Layout;
use crate::setup::{self, Compiler};
use crate::{btf, run};

/// The programs that operators run.
pub(crate) const PROGRAMS: [&str; 3] = ["policy-agent", "policyctl", "policy-cni"];

/// The crates that they are in.
pub(crate) const CRATES: [&str; 4] = ["-p", "policy-agent", "-p", "policy-cni"];

/// How user space is compiled.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Profile {
    Debug,
    Release,
}

impl Profile {
    /// The directory below the target directory that cargo puts programs of this profile in.
    pub(crate) fn directory(self) -> &'static str {
        match self {
            Self::Debug => "debug",
            Self::Release => "release",
        }
    }

    /// Cargo's arguments.
    pub(crate) fn arguments(self) -> &'static [&'static str] {
        match self {
            Self::Debug => &[],
            Self::Release => &["--release"],
        }
    }
}

/// What was built, for whoever runs it.
pub(crate) struct Built {
    /// The eBPF object that the agent embeds.
    pub(crate) object: PathBuf,
    /// The benchmark's floor programs.
    pub(crate) floor: PathBuf,
    /// Where the programs are.
    pub(crate) programs: PathBuf,
}

impl Built {
    /// Tells a build or a test where everything is.
    pub(crate) fn tell(&self, command: &mut Command) {
        command
            .env("PORTCULLIS_BPF_OBJECT", &self.object)
            .env("PORTCULLIS_FLOOR_OBJECT", &self.floor)
            .env("PORTCULLIS_BIN_DIR", &self.programs);
    }
}

/// The subcommand, and the first step of `demo`, `test` and `bench`.
pub(crate) fn run(layout: &Layout, profile: Profile) -> Result<Built> {
    let compiler = setup::for_build()?;
    let built = objects(layout, &compiler, profile)?;
    let mut cargo = layout.cargo();
    cargo.arg("build").args(CRATES).args(profile.arguments());
    built.tell(&mut cargo);
    run::open(&mut cargo)?;
    for program in PROGRAMS {
        let path = built.programs.join(program);
        ensure!(
            path.exists(),
            "everything was built, yet there is no {}",
            path.display()
        );
    }
    Ok(built)
}

/// Builds the eBPF objects.
pub(crate) fn objects(layout: &Layout, compiler: &Compiler, profile: Profile) -> Result<Built> {
    run::open(&mut bpf_cargo(
        layout,
        compiler,
        &["build", "--release"],
        &[],
    ))
    .context("build the eBPF objects")?;
    let from = layout.bpf().join(setup::TARGET).join("release");
    let built = Built {
        object: layout.bpf().join("portcullis.o"),
        floor: layout.bpf().join("portcullis-floor.o"),
        programs: layout.target.join(profile.directory()),
    };
    let size = put(&from.join("portcullis"), &built.object)?;
    put(&from.join("portcullis-floor"), &built.floor)?;
    eprintln!("{}: {size} bytes", built.object.display());
    Ok(built)
}

/// A cargo invocation on policy-ebpf for the BPF target.
pub(crate) fn bpf_cargo(
    layout: &Layout,
    compiler: &Compiler,
    arguments: &[&str],
    more_flags: &[&str],
) -> Command {
    let architecture = format!("bpf_target_arch=\"{}\"", env::consts::ARCH);
    let remapped = remapped(layout);
    let flags: Vec<&str> = [
        "-Clinker=bpf-linker",
        "-Cdebuginfo=2",
        "-Clink-arg=--btf",
        "--cfg",
        &architecture,
    ]
    .into_iter()
    .chain(remapped.iter().map(String::as_str))
    .chain(more_flags.iter().copied())
    .collect();
    let mut cargo = layout.cargo();
    cargo
        .args(arguments)
        .args(["-p", "policy-ebpf"])
        .env("CARGO_TARGET_DIR", layout.bpf())
        .env_remove("RUSTFLAGS")
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"));
    compiler.configure(&mut cargo);
    cargo
}

/// Compiler flags that keep this machine's paths out of what is built. The last that fits counts.
pub(crate) fn remapped(layout: &Layout) -> Vec<String> {
    let registry = env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(env::home_dir()?.join(".cargo")));
    [
        registry.map(|path| (path, "/cargo")),
        Some((layout.root.clone(), "/portcullis")),
        Some((layout.target.clone(), "/target")),
    ]
    .into_iter()
    .flatten()
    .map(|(path, name)| format!("--remap-path-prefix={}={name}", path.display()))
    .collect()
}

/// Copies an object if it differs, so that what embeds it is not rebuilt for nothing. Returns its size.
fn put(from: &Path, to: &Path) -> Result<usize> {
    let mut new = fs::read(from).with_context(|| format!("read {}", from.display()))?;
    btf::sort_forward_declarations(&mut new).with_context(|| from.display().to_string())?;
    if fs::read(to).ok().as_ref() != Some(&new) {
        fs::write(to, &new).with_context(|| format!("write {}", to.display()))?;
    }
    Ok(new.len())
}
