//! A guest: what its init does, the run in qemu, and the verdict.
//!
//! qemu ends with status 0 even when the guest panicked, so only lines that the guest's init prints
//! count: every test must have begun and ended with status 0, having run at least one test.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use super::archive::Kernel;
use super::{Series, TESTS};
use crate::setup;

/// What every line of init begins with.
const MARK: &str = "portcullis-guest:";

/// A boot that dies before the tests begin is the emulator's fault, and tried again.
const BOOTS: u32 = 3;

/// Seconds that a guest may take: many times what it needs.
const PATIENCE: &str = "1800";

/// The guest's init.
pub(crate) fn init(modules: &[String], tests: &[&str], filter: Option<&str>) -> String {
    let mut script = format!(
        "#!/bin/sh\n\
         export PATH=/sbin:/bin HOME=/root\n\
         mount -t devtmpfs dev /dev\n\
         exec </dev/console >/dev/console 2>&1\n\
         mount -t proc proc /proc\n\
         mount -t sysfs sys /sys\n\
         mount -t bpf bpf /sys/fs/bpf\n\
         mount -t tmpfs run /run\n\
         mount -t tmpfs tmp /tmp\n\
         echo \"{MARK} kernel $(uname -r)\"\n"
    );
    for module in modules {
        script += &format!("insmod {module}\n");
    }
    script += "ip link set lo up\n\
               export PORTCULLIS_BIN_DIR=/portcullis PORTCULLIS_BPF_OBJECT=/portcullis/portcullis.o \
               PORTCULLIS_FLOOR_OBJECT=/portcullis/portcullis-floor.o\n\
               export RUST_BACKTRACE=0\n";
    // In single quotes for the shell.
    let filter = filter.map_or_else(String::new, |filter| {
        format!(" '{}'", filter.replace('\'', "'\\''"))
    });
    for test in tests {
        script += &format!(
            "echo \"{MARK} begin {test}\"\n\
             /portcullis/{test} --test-threads=1{filter}\n\
             status=$?\n\
             echo\n\
             echo \"{MARK} end {test} $status\"\n"
        );
    }
    script += &format!("echo \"{MARK} done\"\npoweroff -f\n");
    script
}

/// Boots a kernel and runs the tests in it.
///
/// # Errors
///
/// When a test fails, or the guest ends before it says that all is done.
pub(crate) fn run(
    series: &Series,
    kernel: &Kernel,
    initramfs: &Path,
    filter: Option<&str>,
) -> Result<()> {
    for boot in 1..=BOOTS {
        let lines = boot_once(series, kernel, initramfs)?;
        let begun = lines
            .iter()
            .any(|line| line.starts_with(&format!("{MARK} begin")));
        if begun || boot == BOOTS {
            return verdict(&lines, &TESTS, filter.is_some()).map(|counts| {
                println!("{} ({}): {counts}", series.name, kernel.release);
            });
        }
        eprintln!("the guest died before the tests began; booting it again");
    }
    Ok(())
}

fn boot_once(series: &Series, kernel: &Kernel, initramfs: &Path) -> Result<Vec<String>> {
    println!("booting {}", kernel.release);
    let mut child = Command::new("timeout")
        .args(["-k", "5", PATIENCE, setup::QEMU])
        .args(["-accel", "tcg", "-cpu", "max", "-smp", "2", "-m", "1024"])
        .args([
            "-nodefaults",
            "-nic",
            "none",
            "-no-reboot",
            "-display",
            "none",
        ])
        .args([
            "-serial",
            "stdio",
            "-append",
            "console=ttyS0 panic=-1 quiet loglevel=3",
        ])
        .arg("-kernel")
        .arg(&kernel.image)
        .arg("-initrd")
        .arg(initramfs)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("start qemu")?;
    let output = child.stdout.take().context("qemu has no output")?;
    let mut lines = Vec::new();
    for line in BufReader::new(output).split(b'\n') {
        let line = String::from_utf8_lossy(&line?).trim_end().to_owned();
        println!("{:>6} | {line}", series.name);
        lines.push(line);
    }
    let status = child.wait()?;
    if status.code() == Some(124) {
        lines.push(format!("the guest took longer than {PATIENCE} s"));
    }
    Ok(lines)
}

/// Judges by what the guest printed. Returns the counts of its tests: every binary must have run some,
/// or, when they were filtered, one of the binaries.
fn verdict(lines: &[String], tests: &[&str], filtered: bool) -> Result<String> {
    let position = |wanted: &str| lines.iter().position(|line| line == wanted);
    let mut counts = Vec::new();
    for test in tests {
        let Some(begin) = position(&format!("{MARK} begin {test}")) else {
            bail!(
                "{test} did not begin; the guest's last line: {}",
                last(lines)
            );
        };
        let Some(end) = position(&format!("{MARK} end {test} 0")) else {
            bail!(
                "{test} failed, or the guest died in it; the guest's last line: {}",
                last(lines)
            );
        };
        let result = lines
            .get(begin..end)
            .unwrap_or_default()
            .iter()
            .find_map(|line| line.strip_prefix("test result: ok. "))
            .with_context(|| format!("{test} printed no result"))?;
        counts.push((*test, result));
    }
    if position(&format!("{MARK} done")).is_none() {
        bail!("the guest did not finish; its last line: {}", last(lines));
    }
    let mut empty = counts
        .iter()
        .map(|(_, result)| result.starts_with("0 passed"));
    let none_ran = if filtered {
        empty.all(|empty| empty)
    } else {
        empty.any(|empty| empty)
    };
    if none_ran {
        bail!("no test ran");
    }
    let counts: Vec<_> = counts
        .iter()
        .map(|(test, result)| format!("{test}: {result}"))
        .collect();
    Ok(counts.join("; "))
}

fn last(lines: &[String]) -> &str {
    lines
        .iter()
        .rev()
        .find(|line| !line.is_empty())
        .map_or("(none)", String::as_str)
}

#[cfg(test)]
mod tests {
    use super::{init, verdict};

    fn judge_filtered(text: &str, filtered: bool) -> Result<String, String> {
        let lines: Vec<_> = text.lines().map(str::to_owned).collect();
        verdict(&lines, &["a", "b"], filtered).map_err(|error| error.to_string())
    }

    fn judge(text: &str) -> Result<String, String> {
        judge_filtered(text, false)
    }

    const GOOD: &str = "portcullis-guest: begin a\ntest result: ok. 3 passed; 0 failed\n\
                        portcullis-guest: end a 0\nportcullis-guest: begin b\n\
                        test result: ok. 1 passed; 0 failed\nportcullis-guest: end b 0\n\
                        portcullis-guest: done\n";

    #[test]
    fn only_a_complete_run_passes() {
        assert_eq!(
            judge(GOOD).unwrap(),
            "a: 3 passed; 0 failed; b: 1 passed; 0 failed"
        );
        for (from, to) in [
            ("end b 0", "end b 101"),
            ("portcullis-guest: done", "Kernel panic"),
            ("begin b", "beg"),
            ("test result: ok. 1", "test result: FAILED. 1"),
        ] {
            assert!(judge(&GOOD.replace(from, to)).is_err(), "{to}");
        }
        assert!(judge("").is_err());
    }

    #[test]
    fn tests_that_did_not_run_did_not_pass() {
        let half = GOOD.replace("3 passed", "0 passed");
        assert!(judge(&half).is_err());
        assert!(judge_filtered(&half, true).is_ok());
        assert!(judge_filtered(&half.replace("1 passed", "0 passed"), true).is_err());
    }

    #[test]
    fn a_filter_is_quoted() {
        let script = init(&["/modules/veth.ko".to_owned()], &["a"], Some("it's"));
        assert!(script.contains("insmod /modules/veth.ko\n"));
        assert!(script.contains("/portcullis/a --test-threads=1 'it'\\''s'\n"));
    }
}
