//! The directory that the agent reads, for DATASTORE_TYPE=files.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use crate::objects::{self, Labels};

/// A directory of Kubernetes YAML, written as an editor would: whole files, put in place by rename.
#[derive(Debug)]
pub struct Datastore {
    directory: PathBuf,
}

impl Datastore {
    pub(super) fn create(directory: PathBuf) -> Result<Self> {
        fs::create_dir_all(&directory)?;
        Ok(Self { directory })
    }

    /// Its directory.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Writes or replaces the file `NAME.yaml`.
    ///
    /// # Errors
    ///
    /// When it cannot be written.
    pub fn put(&self, name: &str, yaml: &str) -> Result<()> {
        let path = self.path(name);
        let draft = self.directory.join(format!(".{name}.draft"));
        fs::write(&draft, yaml)
            .and_then(|()| fs::rename(&draft, &path))
            .with_context(|| path.display().to_string())
    }

    /// Deletes the file `NAME.yaml`.
    ///
    /// # Errors
    ///
    /// When it is not there.
    pub fn delete(&self, name: &str) -> Result<()> {
        let path = self.path(name);
        fs::remove_file(&path).with_context(|| path.display().to_string())
    }

    /// Writes a Namespace.
    ///
    /// # Errors
    ///
    /// When it cannot be written.
    pub fn put_namespace(&self, name: &str, labels: Labels<'_>) -> Result<()> {
        let object = objects::namespace(name, labels);
        self.put(&format!("namespace-{name}"), &object.to_string())
    }

    /// Writes a Pod; ports are name, protocol and number.
    ///
    /// # Errors
    ///
    /// When it cannot be written.
    pub fn put_pod(
        &self,
        namespace: &str,
        name: &str,
        labels: Labels<'_>,
        ports: &[(&str, &str, u16)],
        addresses: &[IpAddr],
    ) -> Result<()> {
        let object = objects::pod(namespace, name, labels, ports, addresses);
        self.put(&pod_file(namespace, name), &object.to_string())
    }

    /// Deletes a Pod.
    ///
    /// # Errors
    ///
    /// When it is not there.
    pub fn delete_pod(&self, namespace: &str, name: &str) -> Result<()> {
        self.delete(&pod_file(namespace, name))
    }

    /// Writes a Service; without cluster IPs it is headless.
    ///
    /// # Errors
    ///
    /// When it cannot be written.
    pub fn put_service(
        &self,
        namespace: &str,
        name: &str,
        cluster_ips: &[IpAddr],
        external_ips: &[IpAddr],
    ) -> Result<()> {
        let object = objects::service(namespace, name, cluster_ips, external_ips);
        self.put(&format!("service-{namespace}-{name}"), &object.to_string())
    }

    /// Writes a NetworkPolicy whose spec is given as YAML in flow style or as a block without
    /// indentation.
    ///
    /// # Errors
    ///
    /// When it cannot be written.
    pub fn put_policy(&self, namespace: &str, name: &str, spec: &str) -> Result<()> {
        let mut yaml = format!(
            "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n\
             metadata:\n  name: {name}\n  namespace: {namespace}\nspec:\n"
        );
        for line in spec.trim().lines() {
            yaml.push_str("  ");
            yaml.push_str(line);
            yaml.push('\n');
        }
        self.put(&policy_file(namespace, name), &yaml)
    }

    /// Deletes a NetworkPolicy.
    ///
    /// # Errors
    ///
    /// When it is not there.
    pub fn delete_policy(&self, namespace: &str, name: &str) -> Result<()> {
        self.delete(&policy_file(namespace, name))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.join(format!("{name}.yaml"))
    }
}

fn pod_file(namespace: &str, name: &str) -> String {
    format!("pod-{namespace}-{name}")
}

fn policy_file(namespace: &str, name: &str) -> String {
    format!("networkpolicy-{namespace}-{name}")
}
