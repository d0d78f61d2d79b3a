//! The programs of the image: static, optimised, stripped, and the same wherever they are built.

use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};

use super::place;
use crate::build::{self, CRATES, PROGRAMS, Profile};
use crate::layout::Layout;
use crate::{run, setup};

/// What the image runs on: named, so that build scripts and macros, which cannot be linked statically,
/// are not.
pub(super) const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Cargo's profile, in the workspace's manifest.
const PROFILE: &str = "image";

/// Builds every program of the agent's packages. Returns their names and where they are.
pub(super) fn programs(layout: &Layout) -> Result<Vec<(String, PathBuf)>> {
    let compiler = setup::for_build()?;
    let built = build::objects(layout, &compiler, Profile::Release)?;
    let target = place(layout);
    let mut flags = vec!["-Ctarget-feature=+crt-static".to_owned()];
    flags.extend(build::remapped(layout));
    let mut cargo = layout.cargo();
    cargo
        .args(["build", "--locked", "--bins"])
        .args(CRATES)
        .args(["--profile", PROFILE, "--target", TARGET])
        .env("CARGO_TARGET_DIR", &target)
        .env_remove("RUSTFLAGS")
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"));
    if let Some(flags) = c_flags(layout) {
        cargo.env("CFLAGS", flags);
    }
    built.tell(&mut cargo);
    run::open(&mut cargo).context("build the image's programs")?;
    let directory = target.join(TARGET).join(PROFILE);
    let programs = names(layout)?
        .into_iter()
        .map(|name| (name.clone(), directory.join(name)))
        .collect::<Vec<_>>();
    for (name, path) in &programs {
        ensure!(
            path.exists(),
            "{name} was built, yet is not {}",
            path.display()
        );
    }
    Ok(programs)
}

/// The same for what C compilers write, in crates that compile C; not possible for paths with spaces.
fn c_flags(layout: &Layout) -> Option<String> {
    let maps: Vec<_> = build::remapped(layout)
        .iter()
        .filter_map(|flag| flag.strip_prefix("--remap-path-prefix="))
        .map(|map| format!("-ffile-prefix-map={map}"))
        .collect();
    (!maps.iter().any(|map| map.contains(' '))).then(|| maps.join(" "))
}

/// Every program of the agent's packages.
fn names(layout: &Layout) -> Result<Vec<String>> {
    let metadata = run::output(layout.cargo().args([
        "metadata",
        "--no-deps",
        "--offline",
        "--format-version",
        "1",
    ]))?;
    let names = programs_of(&metadata)?;
    for program in PROGRAMS {
        ensure!(
            names.iter().any(|name| name == program),
            "there is no program {program} any more"
        );
    }
    Ok(names)
}

fn programs_of(metadata: &str) -> Result<Vec<String>> {
    let metadata: serde_json::Value =
        serde_json::from_str(metadata).context("read what cargo metadata printed")?;
    let mut names: Vec<String> = metadata["packages"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|package| CRATES.iter().any(|name| package["name"] == *name))
        .flat_map(|package| package["targets"].as_array().into_iter().flatten())
        .filter(|target| target["kind"][0] == "bin")
        .filter_map(|target| target["name"].as_str().map(str::to_owned))
        .collect();
    names.sort();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::programs_of;

    #[test]
    fn programs_are_read_from_metadata() {
        let metadata = r#"{"packages": [
            {"name": "policy-cni", "targets": [{"kind": ["bin"], "name": "policy-cni"}]},
            {"name": "xtask", "targets": [{"kind": ["bin"], "name": "xtask"}]},
            {"name": "policy-agent", "targets": [
                {"kind": ["lib"], "name": "policy_agent"},
                {"kind": ["bin"], "name": "policyctl"},
                {"kind": ["bin"], "name": "policy-agent"}]}]}"#;
        assert_eq!(
            programs_of(metadata).expect("metadata"),
            ["policy-agent", "policy-cni", "policyctl"]
        );
    }
}
