//! The commands.

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::api::{self, AddRequest, Attachment, Done, GcRequest};
use crate::client::{self, ClientError};
use crate::conf::{Input, NEWEST, Settings, VERSIONS};
use crate::environment::{self, Command, Variables};
use crate::error::{Code, Error};
use crate::hold::{self, HoldError};
use crate::result;

/// How long before our own deadline the agent is to say what it waits for.
const MARGIN: Duration = Duration::from_millis(250);

/// How long after an attempt in vain the next one comes: an agent that is restarted is soon back.
const PAUSE: Duration = Duration::from_millis(50);

/// What to tell the runtime.
#[derive(Debug)]
pub struct Outcome {
    /// For stdout; empty where CNI wants nothing.
    pub output: String,
    /// Whether it is an error.
    pub failed: bool,
}

/// Runs the command that the environment names.
#[must_use]
pub fn run(variables: Variables<'_>, stdin: &[u8]) -> Outcome {
    let input = Input::parse(stdin);
    let version = input
        .as_ref()
        .ok()
        .and_then(Input::version)
        .unwrap_or(NEWEST);
    let version = version.to_owned();
    match environment::command(variables).and_then(|command| execute(command, variables, input)) {
        Ok(output) => Outcome {
            output,
            failed: false,
        },
        Err(error) => Outcome {
            output: error.to_json(&version),
            failed: true,
        },
    }
}

fn execute(
    command: Command,
    variables: Variables<'_>,
    input: Result<Input, Error>,
) -> Result<String, Error> {
    match command {
        Command::Version => Ok(versions(&input?)),
        _ if input.as_ref().is_ok_and(Input::holds) => first_turn(command, variables, &input?),
        Command::Add => add(variables, &input?),
        Command::Del => del(variables, &input?),
        Command::Check => check(variables, &input?),
        Command::Status => status(&input?),
        Command::Gc => gc(&input?),
    }
}

fn versions(input: &Input) -> String {
    let version = input.version().unwrap_or(NEWEST);
    json!({"cniVersion": version, "supportedVersions": VERSIONS}).to_string()
}

/// The entry at the chain's beginning. It never asks the agent, so that it cannot wait for it: the last entry does.
fn first_turn(command: Command, variables: Variables<'_>, input: &Input) -> Result<String, Error> {
    match command {
        Command::Add => hold(variables, input),
        Command::Check => check_released(variables, input),
        Command::Status => input.supported_version().map(|_| String::new()),
        // What is held goes with the namespace, and nothing else was made.
        Command::Del | Command::Gc | Command::Version => Ok(String::new()),
    }
}

/// Holds the pod's network namespace. The result is one that says nothing: main plugins make their own.
fn hold(variables: Variables<'_>, input: &Input) -> Result<String, Error> {
    let version = input.supported_version()?;
    let settings = input.settings()?;
    environment::attachment_key(variables)?;
    let netns = environment::netns(variables)?;
    match hold::hold(Path::new(&netns)) {
        Ok(hold::Outcome::Held) => {}
        Ok(hold::Outcome::InUse) => {
            eprintln!("policy-cni: {netns} has addresses already: it is left alone, and not held")
        }
        // The operator can do nothing about it now. The last entry tells the agent, whose status says so.
        Err(error @ HoldError::Unsupported(_)) => {
            eprintln!("policy-cni: the pod's start is not held: {error}");
        }
        Err(error) if settings.fail_open => {
            eprintln!("policy-cni: failOpen: the pod's start is not held: {error}");
        }
        Err(error) => {
            return Err(
                Error::new(Code::Hold, "the pod's network namespace cannot be held")
                    .with_details(error),
            );
        }
    }
    let mut output = input.previous_result().cloned().unwrap_or_default();
    output
        .entry("cniVersion")
        .or_insert_with(|| Value::from(version));
    Ok(Value::Object(output).to_string())
}

/// A pod that runs is not held.
fn check_released(variables: Variables<'_>, input: &Input) -> Result<String, Error> {
    input.supported_version()?;
    let netns = environment::netns(variables)?;
    match hold::is_held(Path::new(&netns)) {
        Ok(false) => Ok(String::new()),
        Ok(true) => Err(Error::new(
            Code::Hold,
            "the pod's network namespace is still held: policy-cni's last turn in the chain did not come",
        )),
        Err(error) => Err(Error::new(Code::Hold, "cannot be checked").with_details(error)),
    }
}

/// Waits until the agent enforces the pod's policies, releases its network namespace, and passes the result on.
fn add(variables: Variables<'_>, input: &Input) -> Result<String, Error> {
    let version = input.supported_version()?;
    let settings = input.settings()?;
    let deadline = Instant::now() + settings.timeout;
    let attachment = attachment(variables, input)?;
    let netns = Path::new(&attachment.netns);
    // Only worth a word in the agent's status; whether to release is asked again.
    let held = hold::is_held(netns).unwrap_or(false);
    let mut output = input.previous_result().cloned().unwrap_or_default();
    output
        .entry("cniVersion")
        .or_insert_with(|| Value::from(version));
    match announce(&settings, &attachment, held, deadline) {
        Ok(()) => {}
        Err(error) if settings.fail_open && error.code == Code::TryAgainLater => {
            let pod = &attachment.pod;
            eprintln!(
                "policy-cni: failOpen: pod {}/{} starts without enforcement of its policies: {error}",
                pod.namespace, pod.name
            );
        }
        // What is held stays so: the runtime takes the sandbox down.
        Err(error) => return Err(error),
    }
    hold::release(netns).map_err(|error| {
        let pod = &attachment.pod;
        let what = format!("pod {}/{} cannot be released", pod.namespace, pod.name);
        Error::new(Code::Hold, what).with_details(error)
    })?;
    Ok(Value::Object(output).to_string())
}

/// Tells the agent until it is done or the time is up: it may be being replaced right now.
fn announce(
    settings: &Settings,
    attachment: &Attachment,
    held: bool,
    deadline: Instant,
) -> Result<(), Error> {
    let socket = settings.socket();
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let patience = left.saturating_sub(MARGIN.min(left / 4));
        let request = AddRequest {
            attachment: attachment.clone(),
            patience_ms: u64::try_from(patience.as_millis()).unwrap_or(u64::MAX),
            held,
        };
        let Err(error) = client::post(&socket, api::ADD, &request, deadline) else {
            return Ok(());
        };
        let is_away = matches!(error, ClientError::Away { .. } | ClientError::NotNow(_));
        if !is_away || Instant::now() + PAUSE >= deadline {
            let pod = &attachment.pod;
            let what = format!("pod {}/{} cannot be protected", pod.namespace, pod.name);
            return Err(explain(error, &what, settings.timeout));
        }
        thread::sleep(PAUSE);
    }
}

fn attachment(variables: Variables<'_>, input: &Input) -> Result<Attachment, Error> {
    let key = environment::attachment_key(variables)?;
    let netns = environment::netns(variables)?;
    let pod = environment::pod(variables)?;
    let previous = input.previous_result().ok_or_else(|| {
        Error::new(
            Code::InvalidConfiguration,
            "prevResult: missing; policy-cni makes no interface, put it behind a plugin that does",
        )
    })?;
    let attached = result::attached(previous, &key.ifname)?;
    Ok(Attachment {
        key,
        network: input.network()?.to_owned(),
        netns,
        pod,
        host_interfaces: attached.host_interfaces,
        addresses: attached.addresses,
    })
}

/// Tells the agent, if it is there. It learns of the interface's end by itself otherwise, so nothing
/// that goes wrong with it keeps a pod from being removed.
fn del(variables: Variables<'_>, input: &Input) -> Result<String, Error> {
    let key = environment::attachment_key(variables)?;
    let settings = input.settings().unwrap_or_else(|error| {
        eprintln!("policy-cni: DEL goes on with defaults: {error}");
        Settings::default()
    });
    let deadline = Instant::now() + settings.timeout;
    if let Err(error) = client::post(&settings.socket(), api::DEL, &key, deadline) {
        eprintln!(
            "policy-cni: DEL of {}: {error}; the agent finds out by itself",
            key.container_id
        );
    }
    Ok(String::new())
}

fn check(variables: Variables<'_>, input: &Input) -> Result<String, Error> {
    input.supported_version()?;
    let settings = input.settings()?;
    let attachment = attachment(variables, input)?;
    let deadline = Instant::now() + settings.timeout;
    match client::post(&settings.socket(), api::CHECK, &attachment, deadline) {
        Ok(()) => Ok(String::new()),
        Err(ClientError::Refused(why)) => Err(Error::new(Code::NotEnforced, why)),
        Err(error) => Err(explain(error, "cannot be checked", settings.timeout)),
    }
}

fn status(input: &Input) -> Result<String, Error> {
    input.supported_version()?;
    let settings = input.settings()?;
    let deadline = Instant::now() + settings.timeout;
    match client::post(&settings.socket(), api::STATUS, &Done {}, deadline) {
        Ok(()) => Ok(String::new()),
        Err(error) => Err(
            Error::new(Code::NotAvailable, "policy-agent is not ready for pods")
                .with_details(error),
        ),
    }
}

fn gc(input: &Input) -> Result<String, Error> {
    input.supported_version()?;
    let settings = input.settings()?;
    let request = GcRequest {
        network: input.network()?.to_owned(),
        valid: input.valid_attachments()?,
    };
    let deadline = Instant::now() + settings.timeout;
    client::post(&settings.socket(), api::GC, &request, deadline)
        .map(|()| String::new())
        .map_err(|error| explain(error, "nothing was collected", settings.timeout))
}

fn explain(error: ClientError, what: &str, timeout: Duration) -> Error {
    let code = match &error {
        ClientError::Away { .. } | ClientError::TimedOut | ClientError::NotNow(_) => {
            Code::TryAgainLater
        }
        ClientError::Untrusted { .. } => Code::Untrusted,
        ClientError::Refused(_) | ClientError::NotUnderstood(_) => Code::Refused,
    };
    let message = if code == Code::TryAgainLater {
        format!("{what} within {} s", timeout.as_secs_f32())
    } else {
        what.to_owned()
    };
    Error::new(code, message).with_details(error)
}
