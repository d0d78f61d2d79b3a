//! The real agent on a node, and `policyctl` beside it.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use policy_agent::report::Status;

use super::{Node, PATIENCE, Process};

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

/// Where an agent finds its objects.
#[derive(Clone, Copy, Debug)]
pub enum Source<'a> {
    /// In the node's directory.
    Files,
    /// In the Kubernetes API, as these variables say.
    Api(&'a [(&'a str, &'a OsStr)]),
}

/// Settings of the API, which are not to come from whoever runs the tests.
const API_SETTINGS: [&str; 8] = [
    "KUBECONFIG",
    "K8S_API_ENDPOINT",
    "K8S_CERT_FILE",
    "K8S_KEY_FILE",
    "K8S_CA_FILE",
    "K8S_TOKEN",
    "KUBERNETES_SERVICE_HOST",
    "KUBERNETES_SERVICE_PORT",
];

/// A running agent. Killed when dropped; its log is printed when that happens in a panic.
#[derive(Debug)]
pub struct Agent<'a> {
    node: &'a Node,
    process: Process,
}

impl<'a> Agent<'a> {
    /// Starts an agent on `node` and waits until it enforces what the node's directory holds.
    ///
    /// # Errors
    ///
    /// When it ends before that, or takes too long; with its log.
    pub fn start(node: &'a Node) -> Result<Self> {
        Self::start_from(node, Source::Files)
    }

    /// Starts an agent on `node` and waits until it enforces what `source` holds.
    ///
    /// # Errors
    ///
    /// When it ends before that, or takes too long; with its log.
    pub fn start_from(node: &'a Node, source: Source<'_>) -> Result<Self> {
        let mut agent = Self::spawn_from(node, source)?;
        agent.wait()?;
        Ok(agent)
    }

    /// Starts an agent on `node` with further settings, by their variables, and waits as [`Self::start`] does.
    ///
    /// # Errors
    ///
    /// When it ends before that, or takes too long; with its log.
    pub fn start_with(node: &'a Node, settings: &[(&str, &OsStr)]) -> Result<Self> {
        let mut command = Self::command(node)?;
        command.envs(settings.iter().copied());
        let process = Process::spawn("policy-agent", command, node.log_file())?;
        let mut agent = Self { node, process };
        agent.wait()?;
        Ok(agent)
    }

    /// Where a test's CNI plugins and configuration are on `node`: those of the machine are not ours.
    #[must_use]
    pub fn cni_directories(node: &Node) -> [(&'static str, PathBuf); 2] {
        [
            ("CNI_BIN_DIR", node.directory().join("cni-bin")),
            ("CNI_CONF_DIR", node.directory().join("cni-conf")),
        ]
    }

    /// Starts an agent without waiting for it.
    ///
    /// # Errors
    ///
    /// When there is none to start.
    pub fn spawn(node: &'a Node) -> Result<Self> {
        Self::spawn_from(node, Source::Files)
    }

    /// Starts an agent with these settings besides, without waiting for it.
    ///
    /// # Errors
    ///
    /// When there is none to start.
    pub fn spawn_with(node: &'a Node, settings: &[(&str, &str)]) -> Result<Self> {
        let mut command = Self::command(node)?;
        command.envs(settings.iter().copied());
        let process = Process::spawn("policy-agent", command, node.log_file())?;
        Ok(Self { node, process })
    }

    /// Starts an agent that reads from `source`, without waiting for it.
    ///
    /// # Errors
    ///
    /// When there is none to start.
    pub fn spawn_from(node: &'a Node, source: Source<'_>) -> Result<Self> {
        let command = Self::command_from(node, source)?;
        let process = Process::spawn("policy-agent", command, node.log_file())?;
        Ok(Self { node, process })
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
        Self::start_by(node, command)
    }

    /// Starts an agent as root that may lock 64 KiB of memory and cannot change that, and waits as [`Self::start`]
    /// does.
    ///
    /// # Errors
    ///
    /// When it ends before that, or takes too long; with its log.
    pub fn start_with_little_locked_memory(node: &'a Node) -> Result<Self> {
        let script = r#"ulimit -l 64 && exec setpriv --bounding-set=-sys_resource "$0" "$@""#;
        let mut command = node.netns().command("sh");
        command.args(["-c", script]).arg(binary("policy-agent")?);
        Self::start_by(node, command)
    }

    /// Starts an agent by a command that wants no more than the agent's arguments, and waits.
    fn start_by(node: &'a Node, mut command: Command) -> Result<Self> {
        Self::configure(node, Source::Files, &mut command);
        let process = Process::spawn("policy-agent", command, node.log_file())?;
        let mut agent = Self { node, process };
        agent.wait()?;
        Ok(agent)
    }

    /// The command that runs an agent on `node`.
    ///
    /// # Errors
    ///
    /// When it is not built.
    pub fn command(node: &Node) -> Result<Command> {
        Self::command_from(node, Source::Files)
    }

    /// The command that runs an agent on `node` that reads from `source`.
    ///
    /// # Errors
    ///
    /// When it is not built.
    pub fn command_from(node: &Node, source: Source<'_>) -> Result<Command> {
        let mut command = node.netns().command(binary("policy-agent")?);
        Self::configure(node, source, &mut command);
        Ok(command)
    }

    /// Runs `policy-agent uninstall` on `node`.
    ///
    /// # Errors
    ///
    /// When it cannot be run.
    pub fn uninstall(node: &Node) -> Result<Output> {
        node.netns()
            .command(binary("policy-agent")?)
            .arg("uninstall")
            .env("PORTCULLIS_RUN_DIR", node.run_directory())
            .env("PORTCULLIS_BPFFS", node.bpffs())
            .envs(Self::cni_directories(node))
            .output()
            .context("policy-agent cannot be run")
    }

    fn configure(node: &Node, source: Source<'_>, command: &mut Command) {
        for setting in API_SETTINGS {
            command.env_remove(setting);
        }
        match source {
            Source::Files => command
                .env("DATASTORE_TYPE", "files")
                .env("DATASTORE_PATH", node.datastore().directory()),
            Source::Api(settings) => command
                .env("DATASTORE_TYPE", "kubernetes")
                .envs(settings.iter().copied()),
        };
        command
            .arg("run")
            .env("NODENAME", node.node_name())
            .env("PORTCULLIS_RUN_DIR", node.run_directory())
            .env("PORTCULLIS_BPFFS", node.bpffs())
            .envs(Self::cni_directories(node))
            .env("HEALTH_ADDR", "127.0.0.1:9099")
            .env("NO_COLOR", "1");
    }

    /// Waits until it enforces what the datastore holds.
    ///
    /// # Errors
    ///
    /// When it ends before that, or takes too long; with its log.
    pub fn wait(&mut self) -> Result<()> {
        self.wait_for_answers()?;
        self.sync()
    }

    /// Waits until it answers `policyctl`, whatever it says.
    ///
    /// # Errors
    ///
    /// When it ends before that, or takes too long; with its log.
    pub fn wait_for_answers(&mut self) -> Result<()> {
        let deadline = Instant::now() + START;
        let socket = self.node.run_directory().join("agent.sock");
        while std::os::unix::net::UnixStream::connect(&socket).is_err() {
            if let Some(status) = self.process.ended()? {
                bail!("policy-agent ended: {status}\n{}", self.log());
            }
            ensure!(
                Instant::now() < deadline,
                "policy-agent does not answer\n{}",
                self.log()
            );
            thread::sleep(Duration::from_millis(5));
        }
        Ok(())
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
    pub fn kill(self) -> Result<()> {
        self.process.kill()
    }

    /// Asks it to stop and waits until it has.
    ///
    /// # Errors
    ///
    /// When it does not end well.
    pub fn stop(self) -> Result<()> {
        self.process.stop()
    }

    /// Where it runs.
    #[must_use]
    pub fn node(&self) -> &Node {
        self.node
    }

    /// Number of its process.
    #[must_use]
    pub fn process_id(&self) -> u32 {
        self.process.id()
    }

    /// What the node's agents logged so far.
    #[must_use]
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// Waits until `policyctl status` is as wanted, and gives it.
    ///
    /// # Errors
    ///
    /// When it does not become so; with what it is, and the log.
    pub fn wait_for_status(&self, wanted: impl Fn(&Status) -> bool) -> Result<Status> {
        let deadline = Instant::now() + START;
        loop {
            let status = self.status()?;
            if wanted(&status) {
                return Ok(status);
            }
            ensure!(
                Instant::now() < deadline,
                "not the status wanted: {status:#?}\n{}",
                self.log()
            );
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Waits until everything that the datastore holds now is enforced, and tries again where the
    /// datastore cannot be reached yet.
    ///
    /// # Errors
    ///
    /// When that takes too long, in `policyctl`'s words; with the log.
    pub fn sync_at_last(&self) -> Result<()> {
        let deadline = Instant::now() + START;
        while let Err(error) = self.sync() {
            ensure!(Instant::now() < deadline, "{error}\n{}", self.log());
            thread::sleep(Duration::from_millis(10));
        }
        Ok(())
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
