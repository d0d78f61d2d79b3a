//! One or the other server, for tests that pass with both.

use std::io::{self, Write as _};

use anyhow::Result;
use serde_json::Value;

use super::real::ASSETS;
use super::{ApiServer, ApiServerConfig, RealServer, Resource};
use crate::netns::Node;

/// An API server on a node's loopback interface.
#[derive(Debug)]
pub enum Api {
    /// The test's own.
    InProcess(ApiServer),
    /// kube-apiserver.
    Real(RealServer),
}

impl Api {
    /// Starts the test's own server in `node`'s network namespace.
    ///
    /// # Errors
    ///
    /// When it cannot listen.
    pub fn in_process(node: &Node) -> Result<Self> {
        let config = ApiServerConfig::inside(node.netns())?;
        Ok(Self::InProcess(ApiServer::new(config)?))
    }

    /// Starts kube-apiserver in `node`'s network namespace; none, with a word about it, where
    /// `KUBEBUILDER_ASSETS` is not set.
    ///
    /// # Errors
    ///
    /// When it cannot be started.
    pub fn real(node: &Node) -> Result<Option<Self>> {
        let real = RealServer::start_on(node)?.map(Self::Real);
        if real.is_none() {
            let test = std::thread::current().name().unwrap_or("test").to_owned();
            // Not by a macro, whose output is kept back when the test passes.
            writeln!(io::stderr(), "{test} skipped: {ASSETS} is not set")?;
        }
        Ok(real)
    }

    /// A kubeconfig with the server's token.
    #[must_use]
    pub fn kubeconfig(&self) -> String {
        match self {
            Self::InProcess(server) => server.kubeconfig(),
            Self::Real(server) => server.kubeconfig(),
        }
    }

    /// A kubeconfig with another token.
    #[must_use]
    pub fn kubeconfig_with(&self, token: &str) -> String {
        match self {
            Self::InProcess(server) => server.kubeconfig_with(token),
            Self::Real(server) => server.kubeconfig_with(token),
        }
    }

    /// Creates an object or replaces it, status included.
    ///
    /// # Errors
    ///
    /// When the server does not accept it.
    pub fn put(&self, object: Value) -> Result<()> {
        self.put_all(vec![object])
    }

    /// Creates or replaces many objects, as fast as it goes.
    ///
    /// # Errors
    ///
    /// The first that the server does not accept.
    pub fn put_all(&self, objects: Vec<Value>) -> Result<()> {
        match self {
            Self::InProcess(server) => objects
                .into_iter()
                .try_for_each(|object| server.put(object)),
            Self::Real(server) => server.put_all(objects),
        }
    }

    /// Deletes an object.
    ///
    /// # Errors
    ///
    /// When it is not there, or is a namespace of the real server.
    pub fn delete(&self, resource: Resource, namespace: &str, name: &str) -> Result<()> {
        match self {
            Self::InProcess(server) => Ok(server.delete(resource, namespace, name)?),
            Self::Real(server) => server.delete(resource, namespace, name),
        }
    }

    /// Stops the server and cuts its connections; its objects stay.
    ///
    /// # Errors
    ///
    /// When it had ended by itself.
    pub fn stop(&self) -> Result<()> {
        match self {
            Self::InProcess(server) => server.stop(),
            Self::Real(server) => server.stop(),
        }
    }

    /// Starts it again, at the same address.
    ///
    /// # Errors
    ///
    /// When it cannot be started.
    pub fn start(&self) -> Result<()> {
        match self {
            Self::InProcess(server) => server.start(),
            Self::Real(server) => server.start(),
        }
    }

    /// Starts it again after changes that clients have to find out about: the test's own server changes
    /// while it is away, the real one as it comes back.
    ///
    /// # Errors
    ///
    /// When it cannot be started, or a change fails.
    pub fn start_with(&self, changes: impl FnOnce(&Self) -> Result<()>) -> Result<()> {
        match self {
            Self::InProcess(_) => {
                changes(self)?;
                self.start()
            }
            Self::Real(_) => {
                self.start()?;
                changes(self)
            }
        }
    }
}
