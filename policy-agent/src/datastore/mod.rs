//! Where Namespaces, Pods, NetworkPolicies and Services come from.
//!
//! A datastore runs as a task of its own and speaks through one ordered channel: changes, the word
//! that the first load is complete, and answers to sync requests, each behind all changes that it
//! covers. Nothing about the kernel or the compiler's algorithm is known here.

mod api_report;
pub mod convert;
pub mod files;
pub mod kubernetes;

pub use api_report::{ApiReport, NodePresence, Outage, ResourceReport, WatchState};

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use policy_core::model::{Change, Namespace, NetworkPolicy, ObjectName};
use tokio::sync::{mpsc, watch};

use convert::{PodObject, Service};

/// A valid object of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Object {
    /// A namespace.
    Namespace(Namespace),
    /// A pod.
    Pod(PodObject),
    /// A policy.
    Policy(NetworkPolicy),
    /// A service.
    Service(Service),
}

/// Kind and name of an object.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ObjectKey {
    /// A namespace.
    Namespace(Arc<str>),
    /// A pod.
    Pod(ObjectName),
    /// A policy.
    Policy(ObjectName),
    /// A service.
    Service(ObjectName),
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Namespace(name) => write!(f, "Namespace {name}"),
            Self::Pod(name) => write!(f, "Pod {name}"),
            Self::Policy(name) => write!(f, "NetworkPolicy {name}"),
            Self::Service(name) => write!(f, "Service {name}"),
        }
    }
}

impl Object {
    /// Its kind and name.
    #[must_use]
    pub fn key(&self) -> ObjectKey {
        match self {
            Self::Namespace(namespace) => ObjectKey::Namespace(namespace.name.clone()),
            Self::Pod(pod) => ObjectKey::Pod(pod.name().clone()),
            Self::Policy(policy) => ObjectKey::Policy(policy.name.clone()),
            Self::Service(service) => ObjectKey::Service(service.name.clone()),
        }
    }
}

/// An object was added or changed, or is gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ObjectChange {
    /// Added or changed; the whole object.
    Upsert(Object),
    /// Gone.
    Gone(ObjectKey),
}

impl ObjectChange {
    /// The change in the compiler's terms; `None` for what is none of its business.
    #[must_use]
    pub fn for_compiler(self) -> Option<Change> {
        Some(match self {
            Self::Upsert(Object::Namespace(namespace)) => Change::Namespace(namespace),
            Self::Upsert(Object::Pod(PodObject::Pod { pod, .. })) => Change::Pod(pod),
            Self::Upsert(Object::Pod(PodObject::HostNetwork { name, .. })) => Change::PodGone(name),
            Self::Upsert(Object::Policy(policy)) => Change::Policy(policy),
            Self::Gone(ObjectKey::Namespace(name)) => Change::NamespaceGone(name),
            Self::Gone(ObjectKey::Pod(name)) => Change::PodGone(name),
            Self::Gone(ObjectKey::Policy(name)) => Change::PolicyGone(name),
            Self::Upsert(Object::Service(_)) | Self::Gone(ObjectKey::Service(_)) => return None,
        })
    }
}

/// What a datastore sends, in order.
#[derive(Debug)]
pub enum Update {
    /// Objects changed.
    Changes {
        /// When the datastore heard of the first of them.
        received: Instant,
        /// What changed, in order.
        changes: Vec<ObjectChange>,
    },
    /// Everything that was there at the start has been sent.
    Loaded,
    /// Everything that was there when this sync was asked for has been sent.
    Synced(SyncToken),
}

/// Identifies a sync request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SyncToken(pub u64);

/// Handle on a running datastore.
#[derive(Debug)]
pub struct Datastore {
    /// What it sends.
    pub updates: mpsc::Receiver<Update>,
    /// Asks it to read everything anew and to answer with [`Update::Synced`]; it ends when this is
    /// dropped.
    pub sync: mpsc::Sender<SyncToken>,
    /// What it says about itself.
    pub report: watch::Receiver<Arc<Report>>,
}

/// What a datastore says about itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Where the objects come from, in words.
    pub source: String,
    /// Whether the first load is complete.
    pub loaded: bool,
    /// Number of files that hold objects.
    pub files: usize,
    /// Number of objects in force.
    pub objects: usize,
    /// What is wrong with what was read.
    pub problems: Vec<Problem>,
    /// How it stands with the Kubernetes API, where that is the datastore.
    pub api: Option<ApiReport>,
}

/// How bad a [`Problem`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Something was not taken over; what was there before is in force.
    Error,
    /// Taken over, but probably not what was meant.
    Warning,
}

/// Something wrong in a datastore, with its place.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// File name within the directory, or the directory itself; the API's URL.
    pub file: String,
    /// Line in it, counted from 1.
    pub line: Option<usize>,
    /// Kind and name of the object, as far as known.
    pub object: Option<String>,
    /// Path of the field and what is wrong.
    pub message: String,
    /// How bad it is.
    pub severity: Severity,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
        }
        if let Some(object) = &self.object {
            write!(f, ": {object}")?;
        }
        write!(f, ": {}", self.message)
    }
}

/// Says once what is wrong, and once that it is no longer.
#[derive(Debug, Default)]
struct ProblemLog {
    logged: BTreeSet<Problem>,
}

impl ProblemLog {
    /// `current` are all problems that there are now.
    fn update(&mut self, current: &[Problem]) {
        let current: BTreeSet<_> = current.iter().cloned().collect();
        for problem in current.difference(&self.logged) {
            match problem.severity {
                Severity::Error => tracing::error!("{problem}"),
                Severity::Warning => tracing::warn!("{problem}"),
            }
        }
        for problem in self.logged.difference(&current) {
            tracing::info!("no longer: {problem}");
        }
        self.logged = current;
    }
}
