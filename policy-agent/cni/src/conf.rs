//! The network configuration on stdin: CNI's own fields, and our settings.

use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Map, Value};

use crate::api::{AttachmentKey, RUN_DIR, SOCKET};
use crate::error::{Code, Error};

/// Versions of CNI that we speak, the newest last.
pub const VERSIONS: [&str; 4] = ["0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// The newest of them.
pub const NEWEST: &str = VERSIONS[VERSIONS.len() - 1];

/// How long an ADD may take by default.
const TIMEOUT: Duration = Duration::from_secs(10);

/// No longer than this: the kubelet gives up on a sandbox after two to four minutes.
const LONGEST_TIMEOUT: Duration = Duration::from_secs(120);

/// What is on stdin, before anything in it is believed.
#[derive(Clone, Debug)]
pub struct Input {
    fields: Map<String, Value>,
}

/// Our settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// `runDir`: the agent's run directory.
    pub run_dir: PathBuf,
    /// `timeout`, in seconds.
    pub timeout: Duration,
    /// `failOpen`: whether a pod starts unprotected where the agent is away.
    pub fail_open: bool,
    /// `hold`: this is the entry at the chain's beginning, which holds the pod's network namespace.
    pub hold: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            run_dir: RUN_DIR.into(),
            timeout: TIMEOUT,
            fail_open: false,
            hold: false,
        }
    }
}

impl Settings {
    /// The agent's socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.run_dir.join(SOCKET)
    }
}

impl Input {
    /// Takes the text apart.
    ///
    /// # Errors
    ///
    /// When it is not a JSON object.
    pub fn parse(text: &[u8]) -> Result<Self, Error> {
        match serde_json::from_slice(text) {
            Ok(Value::Object(fields)) => Ok(Self { fields }),
            Ok(_) => Err(Error::new(
                Code::Undecodable,
                "the network configuration on stdin is not a JSON object",
            )),
            Err(error) => Err(Error::new(
                Code::Undecodable,
                "the network configuration on stdin is not JSON",
            )
            .with_details(error)),
        }
    }

    /// The version that the configuration is written for, whether or not we speak it.
    #[must_use]
    pub fn version(&self) -> Option<&str> {
        self.fields.get("cniVersion")?.as_str()
    }

    /// The version, which we speak.
    ///
    /// # Errors
    ///
    /// When we do not, or there is none: the specification then means 0.1.0.
    pub fn supported_version(&self) -> Result<&str, Error> {
        let version = self.version().unwrap_or("0.1.0");
        if VERSIONS.contains(&version) {
            return Ok(version);
        }
        let message = format!("cniVersion {version} is not supported");
        let details = format!("this plugin speaks {}", VERSIONS.join(", "));
        Err(Error::new(Code::IncompatibleVersion, message).with_details(details))
    }

    /// The network's name.
    ///
    /// # Errors
    ///
    /// When there is none.
    pub fn network(&self) -> Result<&str, Error> {
        let name = self.fields.get("name").and_then(Value::as_str);
        name.filter(|name| !name.is_empty())
            .ok_or_else(|| invalid("name: missing or not a string".to_owned()))
    }

    /// The result of the plugins before us.
    #[must_use]
    pub fn previous_result(&self) -> Option<&Map<String, Value>> {
        self.fields.get("prevResult")?.as_object()
    }

    /// Our settings.
    ///
    /// # Errors
    ///
    /// When one is not of its kind: a typing error must not become a default.
    pub fn settings(&self) -> Result<Settings, Error> {
        let mut settings = Settings::default();
        if let Some(given) = self.fields.get("runDir") {
            let path = given
                .as_str()
                .map(PathBuf::from)
                .filter(|path| path.is_absolute());
            settings.run_dir =
                path.ok_or_else(|| invalid(format!("runDir: {given} is not an absolute path")))?;
        }
        if let Some(given) = self.fields.get("timeout") {
            let seconds = given
                .as_f64()
                .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
            settings.timeout = seconds
                .filter(|timeout| !timeout.is_zero() && *timeout <= LONGEST_TIMEOUT)
                .ok_or_else(|| {
                    let longest = LONGEST_TIMEOUT.as_secs();
                    invalid(format!(
                        "timeout: {given} is not a number of seconds above 0 and up to {longest}"
                    ))
                })?;
        }
        for (name, setting) in [
            ("failOpen", &mut settings.fail_open),
            ("hold", &mut settings.hold),
        ] {
            if let Some(given) = self.fields.get(name) {
                *setting = given
                    .as_bool()
                    .ok_or_else(|| invalid(format!("{name}: {given} is neither true nor false")))?;
            }
        }
        Ok(settings)
    }

    /// Whether this is the entry that holds, whatever else is wrong with it.
    #[must_use]
    pub fn holds(&self) -> bool {
        self.fields.get("hold").and_then(Value::as_bool) == Some(true)
    }

    /// GC's list of all attachments that there still are.
    ///
    /// # Errors
    ///
    /// When it is missing or misshapen: taken for empty, it would make us forget everything.
    pub fn valid_attachments(&self) -> Result<Vec<AttachmentKey>, Error> {
        const FIELD: &str = "cni.dev/valid-attachments";
        let Some(Value::Array(entries)) = self.fields.get(FIELD) else {
            return Err(invalid(format!("{FIELD}: missing or not a list")));
        };
        entries
            .iter()
            .map(|entry| {
                let part = |name| Some(entry.get(name)?.as_str()?.to_owned());
                let key = part("containerID").zip(part("ifname"));
                key.map(|(container_id, ifname)| AttachmentKey {
                    container_id,
                    ifname,
                })
                .ok_or_else(|| invalid(format!("{FIELD}: {entry} has no containerID or no ifname")))
            })
            .collect()
    }
}

fn invalid(message: String) -> Error {
    Error::new(Code::InvalidConfiguration, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(text: &str) -> Result<Settings, Error> {
        Input::parse(text.as_bytes())?.settings()
    }

    #[test]
    fn settings_have_defaults() {
        assert_eq!(settings("{}"), Ok(Settings::default()));
        let given =
            settings(r#"{"runDir": "/run/other", "timeout": 2.5, "failOpen": true, "hold": true}"#);
        let wanted = Settings {
            run_dir: "/run/other".into(),
            timeout: Duration::from_millis(2500),
            fail_open: true,
            hold: true,
        };
        assert_eq!(given, Ok(wanted));
    }

    #[test]
    fn a_wrong_setting_is_named() {
        for (text, named) in [
            (r#"{"runDir": "run"}"#, "runDir"),
            (r#"{"runDir": 1}"#, "runDir"),
            (r#"{"timeout": 0}"#, "timeout"),
            (r#"{"timeout": -1}"#, "timeout"),
            (r#"{"timeout": 121}"#, "timeout"),
            (r#"{"timeout": "10s"}"#, "timeout"),
            (r#"{"failOpen": "true"}"#, "failOpen"),
            (r#"{"hold": 1}"#, "hold"),
        ] {
            let error = settings(text).expect_err(text);
            assert_eq!(error.code, Code::InvalidConfiguration, "{text}");
            assert!(error.message.starts_with(named), "{text}: {error}");
        }
    }
}
