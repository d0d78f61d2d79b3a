//! qemu for the kernel matrix. Debian 12's own 7.2 makes guests crash at random, so there it comes
//! from bookworm-backports, by package lists of its own.

use std::fs;
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use super::apt;
use crate::layout::Layout;
use crate::run;

/// The program that is run.
pub(crate) const PROGRAM: &str = "qemu-system-x86_64";

/// The oldest major version that is trusted.
const OLDEST: u32 = 8;

/// Finds qemu, or installs it.
pub(super) fn ensure(layout: &Layout) -> Result<()> {
    if version().is_some_and(|major| major >= OLDEST) {
        return Ok(());
    }
    let backports = fs::read_to_string("/etc/os-release").is_ok_and(|release| {
        release
            .lines()
            .any(|line| line == "VERSION_CODENAME=bookworm")
    });
    if !backports {
        apt::ensure_packages(&["qemu-system-x86"], "to boot other kernels")?;
    } else if run::is_root() {
        install_from_backports(layout)?;
    } else {
        bail!(
            "qemu {OLDEST} or later is missing, to boot other kernels. Run: sudo cargo xtask setup \
             --kernels, or install qemu-system-x86 from bookworm-backports"
        );
    }
    match version() {
        Some(major) if major >= OLDEST => Ok(()),
        Some(major) => bail!("qemu {major} makes guests crash at random; {OLDEST} is needed"),
        None => bail!("{PROGRAM} does not start"),
    }
}

fn install_from_backports(layout: &Layout) -> Result<()> {
    let (debian, security) = apt::mirrors()?;
    let sources = [
        format!("{debian} bookworm"),
        format!("{debian} bookworm-updates"),
        format!("{security} bookworm-security"),
        format!("{debian} bookworm-backports"),
    ];
    let directory = layout.target.join("kernels/qemu-apt");
    let configuration = apt::private_configuration(&directory, &sources)?;
    run::behind(
        "fetching the package lists of bookworm-backports",
        Command::new("apt-get")
            .args(["update", "-q"])
            .env("APT_CONFIG", &configuration),
    )?;
    run::behind(
        "installing qemu from bookworm-backports (to boot other kernels; Debian 12's own crashes)",
        apt::install_command(&["-t", "bookworm-backports", "qemu-system-x86"])
            .env("APT_CONFIG", &configuration),
    )
    .context("install qemu")
    .map(drop)
}

fn version() -> Option<u32> {
    run::output(Command::new(PROGRAM).arg("--version"))
        .ok()
        .and_then(|text| major(&text))
}

fn major(text: &str) -> Option<u32> {
    text.strip_prefix("QEMU emulator version ")?
        .split('.')
        .next()?
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use super::major;

    #[test]
    fn the_major_version_is_read() {
        assert_eq!(
            major("QEMU emulator version 10.0.2 (Debian 1:10.0.2)\n"),
            Some(10)
        );
        assert_eq!(major("QEMU emulator version 7.2.17\n"), Some(7));
        assert_eq!(major("qemu?"), None);
    }
}
