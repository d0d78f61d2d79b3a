//! `policyctl` against the API server within the test, with a kubeconfig and nothing else: no agent, no root.
//!
//! Each run of it is a process of its own, and knows of its surroundings only what the test gives to it.

#![expect(
    clippy::unwrap_used,
    reason = "a test's set-up that fails should fail the test, where it stands"
)]

mod failures;
mod listing;
mod many;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use portcullis_tests::apiserver::{ApiServer, ApiServerConfig};
use portcullis_tests::netns::binary;
use portcullis_tests::objects::{self, Labels};
use serde_json::{Value, json};
use tempfile::TempDir;

/// A machine with `policyctl`, a kubeconfig and an empty home directory.
struct Machine {
    server: ApiServer,
    home: TempDir,
}

impl Machine {
    fn new() -> Self {
        let server = ApiServer::new(ApiServerConfig::default()).unwrap();
        let home = tempfile::tempdir().unwrap();
        let machine = Self { server, home };
        machine.write("kubeconfig", &machine.server.kubeconfig());
        machine
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        path
    }

    fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    /// `policyctl` with KUBECONFIG.
    fn policyctl(&self, arguments: &str) -> Answer {
        self.policyctl_with(&[("KUBECONFIG", &self.path("kubeconfig"))], arguments)
    }

    /// `policyctl` with these variables.
    fn policyctl_with(&self, variables: &[(&str, &Path)], arguments: &str) -> Answer {
        let mut command = self.command(variables, arguments);
        Answer::of(command.output().unwrap())
    }

    fn command(&self, variables: &[(&str, &Path)], arguments: &str) -> Command {
        let mut command = Command::new(binary("policyctl").unwrap());
        command
            .env_clear()
            .env("HOME", self.home.path())
            .args(arguments.split_whitespace());
        for (name, value) in variables {
            command.env(name, value);
        }
        command
    }
}

/// What `policyctl` printed.
#[derive(Debug)]
struct Answer {
    code: Option<i32>,
    out: String,
    err: String,
}

impl Answer {
    fn of(output: Output) -> Self {
        Self {
            code: output.status.code(),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// What was listed, without a word on standard error.
    #[track_caller]
    fn listed(self) -> String {
        assert_eq!((self.code, self.err.as_str()), (Some(0), ""), "{self:?}");
        self.out
    }
}

/// A running pod on a node.
fn pod(namespace: &str, name: &str, node: &str, labels: Labels<'_>, address: [u8; 4]) -> Value {
    let mut pod = objects::pod(namespace, name, labels, &[], &[address.into()]);
    pod["spec"]["nodeName"] = json!(node);
    pod
}
