//! Errors as the CNI specification has them: a code for the runtime, and words for people.

use std::fmt;

use serde::Serialize;

/// Codes below 100 are the specification's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Code {
    /// The configuration wants a version of CNI that we do not speak.
    IncompatibleVersion = 1,
    /// An environment variable that must be there is missing or wrong.
    InvalidEnvironment = 4,
    /// Reading or writing failed.
    Io = 5,
    /// Not JSON.
    Undecodable = 6,
    /// JSON, but not a configuration that we can work with.
    InvalidConfiguration = 7,
    /// The agent is away or not done: the same may work later.
    TryAgainLater = 11,
    /// STATUS only: an ADD would not be served.
    NotAvailable = 50,
    /// The agent, or what is in its place, cannot be trusted.
    Untrusted = 100,
    /// CHECK only: the interface is not enforced.
    NotEnforced = 101,
    /// The agent does not take what we say.
    Refused = 102,
    /// The pod's network namespace cannot be held, is held still, or cannot be released.
    Hold = 103,
}

/// An error for the runtime.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    /// The code.
    pub code: Code,
    /// What is wrong.
    pub message: String,
    /// More about it, perhaps empty.
    pub details: String,
}

impl Error {
    /// An error without details.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            details: String::new(),
        }
    }

    /// The same error, with details.
    #[must_use]
    pub fn with_details(mut self, details: impl fmt::Display) -> Self {
        self.details = details.to_string();
        self
    }

    /// What goes to stdout.
    ///
    /// # Panics
    ///
    /// Never: numbers and strings are always JSON.
    #[must_use]
    pub fn to_json(&self, cni_version: &str) -> String {
        #[derive(Serialize)]
        #[serde(rename_all = "camelCase")]
        struct Json<'a> {
            cni_version: &'a str,
            code: u32,
            msg: &'a str,
            #[serde(skip_serializing_if = "str::is_empty")]
            details: &'a str,
        }
        let json = Json {
            cni_version,
            code: self.code as u32,
            msg: &self.message,
            details: &self.details,
        };
        serde_json::to_string(&json).expect("numbers and strings are JSON")
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        if !self.details.is_empty() {
            write!(f, ": {}", self.details)?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {}
