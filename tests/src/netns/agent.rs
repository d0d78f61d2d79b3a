//! The real agent on a node, and `policyctl` beside it.

use std::fs::{self, File};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Output};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::prctl;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use policy_agent::report::Status;

use super::{Node, PATIENCE};

/// Where `cargo xtask` says that the built programs are.
const BIN_DIR: &str = "PORTCULLIS_BIN_DIR";

/// How long an agent may take to start: the kernel's verifier takes a second a program, and much
/// longer on an emulated machine.
const START: Duration = Duration::from_secs(180);

/// Path of one of the programs under test.
///
/// # Errors
///
/// When it is not built, or nobody said where.
pub fn binary(name: &str) -> Result<PathBuf> {
    let directory = std::env::var_os(BIN_DIR)
        .with_context(|| format!("{BIN_DIR} is not set; run this through `cargo xtask`"))?;
    let path = PathBuf::from(directory).join(name);
    ensure!(
        path.exists(),
        "{} does not exist; `cargo xtask build` makes it",
        path.display()
    );
    Ok(path)
}

/// A running agent. Killed when dropped; its log is printed when that happens in a panic.
#[derive(Debug)]
pub struct Agent<'a> {
    node: &'a Node,
    child: Child,
}

impl<'a> Agent<'a> {
    /// Starts an agent on `node` and waits until it enforces what the datastore holds.
    ///
    /// # Errors
    ///
    /// When it ends before that, or takes too long; with its log.
    pub fn start(node: &'a Node) -> Result<Self> {
        let mut agent = Self::spawn(node)?;
        agent.wait()?;
        Ok(agent)
    }

    /// Starts an agent without waiting for it.
    ///
    /// # Errors
    ///
    /// When there is none to start.
    pub fn spawn(node: &'a Node) -> Result<Self> {
        Self::spawn_command(node, Self::command(node)?)
    }

    /// Starts an agent as root with these capabilities alone, by their names without `CAP_`, and waits as
    /// [`Self::start`] does. Those that we have not ourselves it does not get.
    ///
    /// # Errors
    ///
    /// When it ends before that, or takes too long; with its log.
    pub fn start_with_capabilities(node: &'a Node, capabilities: &[String]) -> Result<Self> {
        let mut bounding = "-all".to_owned();
        for capability in capabilities {
            bounding.push_str(",+");
            bounding.push_str(&capability.to_lowercase());
        }
        let mut command = node.netns().command("setpriv");
        command
            .arg(format!("--bounding-set={bounding}"))
            .arg("--inh-caps=-all")
            .arg(binary("policy-agent")?);
        Self::configure(node, &mut command);
        let mut agent = Self::spawn_command(node, command)?;
        agent.wait()?;
        Ok(agent)
    }

    fn spawn_command(node: &'a Node, mut command: Command) -> Result<Self> {
        let log = File::options()
            .create(true)
            .append(true)
            .open(node.log_file())?;
        command.stdout(log.try_clone()?).stderr(log);
        // Ctrl-C is for us, who stop it then.
        command.process_group(0);
        // SAFETY: one system call between fork and exec.
        unsafe {
            // Whoever kills us does not leave it behind.
            command.pre_exec(|| Ok(prctl::set_pdeathsig(Signal::SIGKILL)?));
        }
        let child = command.spawn().context("start policy-agent")?;
        Ok(Self { node, child })
    }

    /// The command that runs an agent on `node`.
    ///
    /// # Errors
    ///
    /// When it is not built.
    pub fn command(node: &Node) -> Result<Command> {
        let mut command = node.netns().command(binary("policy-agent")?);
        Self::configure(node, &mut command);
        Ok(command)
    }

    fn configure(node: &Node, command: &mut Command) {
        command
            .arg("run")
            .env("DATASTORE_TYPE", "files")
            .env("DATASTORE_PATH", node.datastore().directory())
            .env("NODENAME", node.node_name())
            .env("PORTCULLIS_RUN_DIR", node.run_directory())
            .env("PORTCULLIS_BPFFS", node.bpffs())
            .env("HEALTH_ADDR", "127.0.0.1:9099")
            .env("NO_COLOR", "1");
    }

    /// Waits until it enforces what the datastore holds.
    ///
    /// # Errors
    ///
    /// When it ends before that, or takes too long; with its log.
    pub fn wait(&mut self) -> Result<()> {
        let deadline = Instant::now() + START;
        let socket = self.node.run_directory().join("agent.sock");
        while std::os::unix::net::UnixStream::connect(&socket).is_err() {
            if let Some(status) = self.child.try_wait()? {
                bail!("policy-agent ended: {status}\n{}", self.log());
            }
            ensure!(
                Instant::now() < deadline,
                "policy-agent does not answer\n{}",
                self.log()
            );
            thread::sleep(Duration::from_millis(5));
        }
        self.sync()
    }

    /// Waits until everything that the datastore holds now is enforced.
    ///
    /// # Errors
    ///
    /// When something of it cannot be, in `policyctl`'s words.
    pub fn sync(&self) -> Result<()> {
        let output = self.policyctl(&["sync"])?;
        ensure!(
            output.status.success(),
            "policyctl sync: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
        Ok(())
    }

    /// Runs `policyctl` on this node.
    ///
    /// # Errors
    ///
    /// When it cannot be run.
    pub fn policyctl(&self, arguments: &[&str]) -> Result<Output> {
        Command::new(binary("policyctl")?)
            .args(arguments)
            .env("PORTCULLIS_RUN_DIR", self.node.run_directory())
            .output()
            .context("policyctl cannot be run")
    }

    /// What `policyctl` prints.
    ///
    /// # Errors
    ///
    /// When it cannot be run, or prints nothing but errors.
    pub fn ask(&self, arguments: &[&str]) -> Result<String> {
        let output = self.policyctl(arguments)?;
        ensure!(
            !output.stdout.is_empty(),
            "policyctl {}: {}",
            arguments.join(" "),
            String::from_utf8_lossy(&output.stderr).trim()
        );
        Ok(String::from_utf8(output.stdout)?)
    }

    /// `policyctl status`.
    ///
    /// # Errors
    ///
    /// When the agent does not answer.
    pub fn status(&self) -> Result<Status> {
        Ok(serde_json::from_str(&self.ask(&["status", "-o", "json"])?)?)
    }

    /// Kills it as the kernel would for want of memory; what it enforces stays.
    ///
    /// # Errors
    ///
    /// When it is not there any more.
    pub fn kill(mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Asks it to stop and waits until it has.
    ///
    /// # Errors
    ///
    /// When it does not end well.
    pub fn stop(mut self) -> Result<()> {
        kill(
            Pid::from_raw(self.child.id().cast_signed()),
            Signal::SIGTERM,
        )?;
        let status = self.child.wait()?;
        ensure!(status.success(), "policy-agent ended: {status}");
        Ok(())
    }

    /// What the node's agents logged so far.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.node.log_file()).unwrap_or_default()
    }

    /// Waits until the log has a line that `wanted` is looking for.
    ///
    /// # Errors
    ///
    /// When none comes.
    pub fn wait_for_log(&self, wanted: impl Fn(&str) -> bool) -> Result<String> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(line) = self.log().lines().find(|line| wanted(line)) {
                return Ok(line.to_owned());
            }
            ensure!(
                Instant::now() < deadline,
                "no such line in the log:\n{}",
                self.log()
            );
            thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Agent<'_> {
    fn drop(&mut self) {
        // Already gone is as good.
        let _gone = self.child.kill();
        let _gone = self.child.wait();
        if thread::panicking() {
            eprintln!("--- log of policy-agent\n{}---", self.log());
        }
    }
}
