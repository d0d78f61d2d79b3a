//! The handle on a running server.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde::Serialize;
use serde_json::Value;
use tokio::runtime::Runtime;
use tokio_rustls::TlsAcceptor;

use super::kubeconfig::kubeconfig;
use super::listener::{Reserved, Serving};
use super::shared::{Served, Shared};
use super::store::{Part, Store};
use super::tls::{Authority, Identity};
use super::{Failure, Resource};
use crate::netns::{Inside, Netns};

/// What a server is to be.
#[derive(Debug)]
pub struct ApiServerConfig {
    /// Where it listens; port 0 is any that is free.
    pub address: SocketAddr,
    /// The network namespace in which it listens; by default the caller's.
    pub inside: Option<Inside>,
    /// The token that it accepts.
    pub token: String,
    /// Events kept for each resource; watches from older versions are answered with 410.
    pub history: usize,
    /// How often watches that asked for bookmarks get one.
    pub bookmark_every: Duration,
}

impl Default for ApiServerConfig {
    fn default() -> Self {
        Self {
            address: (Ipv4Addr::LOCALHOST, 0).into(),
            inside: None,
            token: "portcullis-test".to_owned(),
            history: 10_000,
            bookmark_every: Duration::from_mins(1),
        }
    }
}

impl ApiServerConfig {
    /// A server on the loopback interface of `netns`.
    ///
    /// # Errors
    ///
    /// When there are no more file descriptors.
    pub fn inside(netns: &Netns) -> Result<Self> {
        Ok(Self {
            inside: Some(netns.inside()?),
            ..Self::default()
        })
    }
}

/// How a watch from a version that is too old is answered; the real server does both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gone {
    /// With an `ERROR` event in a watch that begins well.
    Event,
    /// With HTTP's code 410.
    Status,
}

/// A running server. All of it ends when this is dropped.
#[derive(Debug)]
pub struct ApiServer {
    shared: Arc<Shared>,
    ca_pem: String,
    address: SocketAddr,
    inside: Option<Inside>,
    tls: Tls,
    client: Identity,
    port: Mutex<Port>,
    /// Taken when dropped.
    runtime: Option<Runtime>,
}

/// Says nothing about itself.
struct Tls(TlsAcceptor);

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tls")
    }
}

#[derive(Debug)]
enum Port {
    Serving(Serving),
    Stopped(Reserved),
    /// Between the two, or lost in a panic.
    Neither,
}

impl ApiServer {
    /// Starts a server with the namespaces that every cluster has, and nothing else.
    ///
    /// # Errors
    ///
    /// When its address is taken.
    pub fn new(config: ApiServerConfig) -> Result<Self> {
        let reserved = Reserved::bind(config.address, config.inside.as_ref())
            .with_context(|| format!("listen on {}", config.address))?;
        let address = reserved.address;
        let authority = Authority::new()?;
        let store = Store::new(config.history);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("api server")
            .enable_all()
            .build()?;
        let server = Self {
            shared: Arc::new(Shared::new(store, &config.token, config.bookmark_every)),
            ca_pem: authority.pem().to_owned(),
            address,
            inside: config.inside,
            tls: Tls(authority.acceptor(&authority.server(address.ip())?)?),
            client: authority.client()?,
            port: Mutex::new(Port::Stopped(reserved)),
            runtime: Some(runtime),
        };
        server.start()?;
        Ok(server)
    }

    /// Its URL.
    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("https://{}", self.address)
    }

    /// The certificate authority that clients are to trust, as PEM.
    #[must_use]
    pub fn ca_pem(&self) -> &str {
        &self.ca_pem
    }

    /// A client's certificate, which is accepted in place of a token.
    #[must_use]
    pub fn client_identity(&self) -> &Identity {
        &self.client
    }

    /// A kubeconfig with the token that is accepted now.
    #[must_use]
    pub fn kubeconfig(&self) -> String {
        let token = self.shared.treatment().token.clone();
        self.kubeconfig_with(&token.unwrap_or_default())
    }

    /// A kubeconfig with another token.
    #[must_use]
    pub fn kubeconfig_with(&self, token: &str) -> String {
        kubeconfig(&self.endpoint(), &self.ca_pem, token)
    }

    /// Creates an object or replaces the whole of it, status included.
    ///
    /// # Errors
    ///
    /// When it has no name, is of a kind that is not served, or its namespace is not there.
    pub fn put(&self, object: impl Serialize) -> Result<()> {
        let value = serde_json::to_value(object)?;
        let text = |field: &str| value.get(field).and_then(Value::as_str).unwrap_or_default();
        let (api_version, kind) = (text("apiVersion"), text("kind"));
        let resource = Resource::of_kind(api_version, kind)
            .with_context(|| format!("objects of kind {api_version}/{kind} are not served"))?;
        self.shared.change(|store| store.put(resource, value))?;
        Ok(())
    }

    /// Changes an object, status included, by a merge patch (RFC 7386).
    ///
    /// # Errors
    ///
    /// When it is not there.
    pub fn patch(
        &self,
        resource: Resource,
        namespace: &str,
        name: &str,
        patch: &Value,
    ) -> Result<(), Failure> {
        let key = (namespace.to_owned(), name.to_owned());
        let change = |store: &mut Store| store.patch(resource, &key, patch, Part::Whole);
        self.shared.change(change)?;
        Ok(())
    }

    /// Deletes an object, at once; a namespace with all that is in it.
    ///
    /// # Errors
    ///
    /// When it is not there.
    pub fn delete(&self, resource: Resource, namespace: &str, name: &str) -> Result<(), Failure> {
        let key = (namespace.to_owned(), name.to_owned());
        self.shared.change(|store| store.delete(resource, &key))?;
        Ok(())
    }

    /// An object.
    #[must_use]
    pub fn get(&self, resource: Resource, namespace: &str, name: &str) -> Option<Value> {
        let key = (namespace.to_owned(), name.to_owned());
        let object = self.shared.store().get(resource, &key).ok()?;
        Some(object.value.clone())
    }

    /// The version of the newest change.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.shared.store().version()
    }

    /// Stops listening and cuts all connections, as when the machine goes. Objects, history and address
    /// stay.
    ///
    /// # Errors
    ///
    /// When somebody else took the address at once.
    pub fn stop(&self) -> Result<()> {
        let mut port = self.port();
        let now = std::mem::replace(&mut *port, Port::Neither);
        *port = match now {
            Port::Serving(serving) => {
                let address = serving.stop();
                Port::Stopped(Reserved::bind(address, self.inside.as_ref())?)
            }
            stopped => stopped,
        };
        Ok(())
    }

    /// Listens again.
    ///
    /// # Errors
    ///
    /// When the address is lost.
    pub fn start(&self) -> Result<()> {
        let runtime = self
            .runtime
            .as_ref()
            .context("the server is being dropped")?;
        let mut port = self.port();
        let now = std::mem::replace(&mut *port, Port::Neither);
        *port = match now {
            Port::Stopped(reserved) => {
                let (tls, shared) = (self.tls.0.clone(), self.shared.clone());
                Port::Serving(reserved.serve(runtime.handle(), tls, shared)?)
            }
            serving => serving,
        };
        Ok(())
    }

    /// Cuts the connections of all running watches.
    pub fn drop_watches(&self) {
        self.shared.signal(|signals| signals.drops += 1);
    }

    /// Sends a bookmark to all running watches that asked for such.
    pub fn send_bookmarks(&self) {
        self.shared.signal(|signals| signals.bookmarks += 1);
    }

    /// Forgets the history and all unfinished lists: who goes on from an older version gets 410. Running
    /// watches go on.
    pub fn compact(&self) {
        self.shared.store().compact();
        self.shared.pages().forget();
    }

    /// Sets how a watch from a version that is too old is answered; at first, with an event.
    pub fn answer_gone(&self, gone: Gone) {
        self.shared.treatment().gone = gone;
    }

    /// Holds each event of a watch back for this long.
    pub fn slow_watches(&self, delay: Duration) {
        self.shared.treatment().delay = delay;
        self.shared.signal(|signals| signals.delays += 1);
    }

    /// Accepts this token from now on, and no other. Running requests go on.
    pub fn set_token(&self, token: &str) {
        self.shared.treatment().token = Some(token.to_owned());
    }

    /// Accepts no token from now on. Running requests go on.
    pub fn expire_token(&self) {
        self.shared.treatment().token = None;
    }

    /// Answers requests for this resource with 403 from now on.
    pub fn forbid(&self, resource: Resource) {
        self.shared.treatment().forbidden.insert(resource);
    }

    /// Takes [`Self::forbid`] back.
    pub fn permit(&self, resource: Resource) {
        self.shared.treatment().forbidden.remove(&resource);
    }

    /// Answers all requests with this HTTP code from now on; with none, as usual.
    pub fn refuse_with(&self, code: Option<u16>) {
        self.shared.treatment().refusal = code;
    }

    /// Requests for a resource so far.
    #[must_use]
    pub fn served(&self, resource: Resource) -> Served {
        self.shared.served(resource)
    }

    /// Waits until the requests for a resource are as wanted.
    ///
    /// # Panics
    ///
    /// When they are not within a minute.
    #[track_caller]
    pub fn await_served(&self, resource: Resource, wanted: impl Fn(Served) -> bool) -> Served {
        self.shared.await_served(resource, wanted)
    }

    fn port(&self) -> MutexGuard<'_, Port> {
        self.port.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        let now = std::mem::replace(&mut *self.port(), Port::Neither);
        if let Port::Serving(serving) = now {
            serving.stop();
        }
        if let Some(runtime) = self.runtime.take() {
            // All of its tasks have ended; waiting for its threads is not allowed within another one.
            runtime.shutdown_background();
        }
    }
}
