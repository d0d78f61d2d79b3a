//! One network namespace: made, entered, removed.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::fd::AsFd as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;

use anyhow::{Context as _, Result, ensure};
use nix::sched::{CloneFlags, setns};

use super::leftovers::NETNS;

/// A named network namespace, removed when this is dropped.
#[derive(Debug)]
pub struct Netns {
    name: String,
    inside: Inside,
}

/// A way into a network namespace, for those who cannot borrow it. It keeps the namespace alive.
#[derive(Debug)]
pub struct Inside {
    file: File,
}

impl Inside {
    /// Runs `work` on a thread inside. A socket made there stays there, whoever uses it later.
    ///
    /// # Panics
    ///
    /// When `work` does, or the namespace cannot be entered.
    pub fn enter<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        let inside = || {
            setns(self.file.as_fd(), CloneFlags::CLONE_NEWNET).unwrap();
            work()
        };
        match thread::scope(|scope| scope.spawn(inside).join()) {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }

    /// A command that will run inside. Only the network namespace differs: unlike `ip netns exec`, which
    /// mounts another /sys, it sees the same bpffs.
    ///
    /// # Panics
    ///
    /// When there are no more file descriptors.
    #[must_use]
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let file = self.file.try_clone().unwrap();
        let mut command = Command::new(program);
        // SAFETY: between fork and exec only system calls are made.
        unsafe {
            command.pre_exec(move || Ok(setns(file.as_fd(), CloneFlags::CLONE_NEWNET)?));
        }
        command
    }
}

impl Netns {
    /// Makes one with loopback up, and with IPv6 addresses that are usable at once.
    ///
    /// # Errors
    ///
    /// Without root, or when the name is taken.
    pub fn create(name: &str) -> Result<Self> {
        let output = Command::new("ip")
            .args(["netns", "add", name])
            .output()
            .context("ip(8), of iproute2")?;
        ensure!(
            output.status.success(),
            "ip netns add {name}: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
        let file = File::open(Path::new(NETNS).join(name)).context("the namespace just made")?;
        let netns = Self {
            name: name.to_owned(),
            inside: Inside { file },
        };
        // Duplicate address detection takes a second, in which an address cannot be used.
        netns.sysctl("net/ipv6/conf/default/accept_dad", "0")?;
        netns.sysctl("net/ipv6/conf/all/accept_dad", "0")?;
        // Lets probes use the kernel's ICMP sockets, which match requests and replies.
        netns.sysctl("net/ipv4/ping_group_range", "0 0")?;
        netns.ip("link set lo up")?;
        Ok(netns)
    }

    /// Its name under /run/netns.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs `work` on a thread inside. A socket made there stays there, whoever uses it later.
    ///
    /// # Panics
    ///
    /// When `work` does, or the namespace cannot be entered.
    pub fn enter<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        self.inside.enter(work)
    }

    /// A way inside for those who cannot borrow this.
    ///
    /// # Errors
    ///
    /// When there are no more file descriptors.
    pub fn inside(&self) -> std::io::Result<Inside> {
        let file = self.inside.file.try_clone()?;
        Ok(Inside { file })
    }

    /// A command that will run inside, with the same mounts as here ([`Inside::command`]).
    ///
    /// # Panics
    ///
    /// When there are no more file descriptors.
    #[must_use]
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        self.inside.command(program)
    }

    /// Runs lines of ip(8) commands.
    ///
    /// # Errors
    ///
    /// The first that fails.
    pub fn ip(&self, lines: &str) -> Result<()> {
        self.script("ip", &["-batch", "-"], lines)
    }

    /// Runs a program inside with `input` as its standard input.
    ///
    /// # Errors
    ///
    /// When it cannot be started, or fails.
    pub fn script(&self, program: &str, arguments: &[&str], input: &str) -> Result<()> {
        let mut child = self
            .command(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("{program} cannot be run"))?;
        let mut stdin = child.stdin.take().context("a pipe was asked for")?;
        stdin.write_all(input.as_bytes())?;
        drop(stdin);
        let output = child.wait_with_output()?;
        ensure!(
            output.status.success(),
            "{program} in {}: {}\n{input}",
            self.name,
            String::from_utf8_lossy(&output.stderr).trim()
        );
        Ok(())
    }

    /// Writes a setting below /proc/sys.
    ///
    /// # Errors
    ///
    /// When there is no such setting.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        let path = Path::new("/proc/sys").join(key);
        self.enter(|| fs::write(&path, value))
            .with_context(|| format!("{key}={value} in {}", self.name))
    }

    /// A file of the namespace's name, for `ip link ... netns PATH`.
    #[must_use]
    pub fn path(&self) -> String {
        format!("{NETNS}/{}", self.name)
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        let result = Command::new("ip")
            .args(["netns", "del", &self.name])
            .status();
        if !result.is_ok_and(|status| status.success()) {
            eprintln!("network namespace {} could not be removed", self.name);
        }
    }
}
