//! Debian packages: what is missing is installed when we are root, and named when we are not.

use std::path::Path;
use std::process::Command;
use std::{fs, iter};

use anyhow::{Context as _, Result, bail};

use super::Tool;
use crate::run;

/// Installs the packages of those tools that are missing.
pub(super) fn ensure_tools(tools: &[Tool], why: &str) -> Result<()> {
    let missing: Vec<_> = tools
        .iter()
        .filter(|(program, _)| run::find(program).is_none())
        .map(|&(_, package)| package)
        .collect();
    install(&missing, why)
}

/// Installs packages that are not installed yet.
pub(super) fn ensure_packages(packages: &[&str], why: &str) -> Result<()> {
    let missing: Vec<_> = packages
        .iter()
        .copied()
        .filter(|package| !is_installed(package))
        .collect();
    install(&missing, why)
}

/// Whether the package lists, fetched first when there are none, know a package.
pub(super) fn knows(package: &str) -> bool {
    let known = || {
        run::output(Command::new("apt-cache").args(["policy", package]))
            .is_ok_and(|policy| has_candidate(&policy))
    };
    known() || (run::is_root() && update().is_ok() && known())
}

fn install(packages: &[&str], why: &str) -> Result<()> {
    if packages.is_empty() {
        return Ok(());
    }
    let list = packages.join(" ");
    let command = format!("apt-get install --no-install-recommends {list}");
    if run::find("apt-get").is_none() {
        bail!("missing {why}: {list} (names of Debian packages). Install them, then try again");
    }
    if !run::is_root() {
        bail!("missing {why}: {list}. Run: sudo apt-get update && sudo {command}");
    }
    if !lists_exist(Path::new("/var/lib/apt/lists")) {
        update()?;
    }
    let what = format!("installing {list} ({why})");
    if run::behind(&what, &mut install_command(packages)).is_ok() {
        return Ok(());
    }
    // Lists that are out of date name files that are gone.
    update()?;
    run::behind(&what, &mut install_command(packages)).map(drop)
}

pub(super) fn install_command(packages: &[&str]) -> Command {
    let mut command = Command::new("apt-get");
    command
        .args(["install", "-y", "-q", "--no-install-recommends"])
        .args(packages)
        .env("DEBIAN_FRONTEND", "noninteractive");
    command
}

fn update() -> Result<()> {
    run::behind(
        "fetching the package lists",
        Command::new("apt-get").args(["update", "-q"]),
    )
    .map(drop)
}

fn is_installed(package: &str) -> bool {
    run::output(Command::new("dpkg-query").args(["-W", "-f", "${Status}", package]))
        .is_ok_and(|status| status.ends_with(" installed"))
}

fn lists_exist(directory: &Path) -> bool {
    fs::read_dir(directory).is_ok_and(|mut entries| {
        entries.any(|entry| {
            entry.is_ok_and(|entry| entry.file_name().to_string_lossy().contains("_Packages"))
        })
    })
}

fn has_candidate(policy: &str) -> bool {
    policy
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Candidate: "))
        .any(|candidate| candidate != "(none)")
}

/// The mirrors that this machine has Debian and its security updates from.
///
/// # Errors
///
/// When apt knows none of Debian's.
pub(crate) fn mirrors() -> Result<(String, String)> {
    let targets = run::output(Command::new("apt-get").args([
        "indextargets",
        "--format",
        "$(REPO_URI) $(CODENAME) $(ORIGIN) $(SUITE)",
        "Created-By: Packages",
    ]))
    .unwrap_or_default();
    mirrors_of(&targets)
}

fn mirrors_of(targets: &str) -> Result<(String, String)> {
    let of = |security: bool| {
        targets
            .lines()
            .filter_map(|line| line.split_once(' '))
            .find(|(_, rest)| {
                rest.split(' ').nth(1) == Some("Debian") && rest.contains("-security") == security
            })
            .map(|(uri, _)| uri.trim_end_matches('/').to_owned())
    };
    let missing = |what: &str| {
        format!(
            "apt has no source for {what}, from whose mirror other releases' packages would be fetched: add one \
             to /etc/apt/sources.list and run apt-get update"
        )
    };
    Ok((
        of(false).with_context(|| missing("Debian"))?,
        of(true).with_context(|| missing("Debian's security updates"))?,
    ))
}

/// Makes an apt configuration with sources and lists of its own in `directory`, so that packages of
/// another release can be had without a change to the system's sources. For `APT_CONFIG`.
pub(crate) fn private_configuration(directory: &Path, sources: &[String]) -> Result<String> {
    let shown = directory.display();
    for part in ["lists/partial", "cache/archives/partial"] {
        let path = directory.join(part);
        fs::create_dir_all(&path).with_context(|| format!("make {}", path.display()))?;
    }
    let sources: String = sources
        .iter()
        .flat_map(|source| {
            let keyring = "/usr/share/keyrings/debian-archive-keyring.gpg";
            ["deb [signed-by=", keyring, "] ", source, " main\n"]
        })
        .collect();
    fs::write(directory.join("sources.list"), sources)?;
    let settings = [
        format!("Dir::State::lists \"{shown}/lists\";"),
        format!("Dir::Cache \"{shown}/cache\";"),
        format!("Dir::Etc::sourcelist \"{shown}/sources.list\";"),
        "Dir::Etc::sourceparts \"-\";".to_owned(),
        "Acquire::Languages \"none\";".to_owned(),
        "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled \"false\";".to_owned(),
        // The user _apt cannot reach into a home directory.
        "APT::Sandbox::User \"root\";".to_owned(),
    ];
    let file = directory.join("apt.conf");
    let text: String = settings
        .iter()
        .flat_map(|line| iter::once(line.as_str()).chain(["\n"]))
        .collect();
    fs::write(&file, text)?;
    Ok(file.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_candidate_is_told_from_none() {
        assert!(has_candidate(
            "llvm-22-dev:\n  Installed: (none)\n  Candidate: 1:22.1\n"
        ));
        assert!(!has_candidate(
            "rustc-web:\n  Installed: (none)\n  Candidate: (none)\n"
        ));
        assert!(!has_candidate(""));
    }

    #[test]
    fn mirrors_are_this_machines_own() {
        let targets = "https://example.org/node/ nodistro . nodistro\n\
                       http://mirror.example/debian/ bookworm Debian oldstable\n\
                       http://mirror.example/sec/ bookworm-security Debian oldstable-security\n";
        let (debian, security) = mirrors_of(targets).expect("both are there");
        assert_eq!(debian, "http://mirror.example/debian");
        assert_eq!(security, "http://mirror.example/sec");
        let without = targets.lines().take(2).collect::<Vec<_>>().join("\n");
        let error = mirrors_of(&without).expect_err("no security updates");
        assert!(error.to_string().contains("security updates"), "{error}");
    }
}
