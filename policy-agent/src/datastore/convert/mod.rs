//! From API objects to the compiler's model, whatever datastore they come from.
//!
//! Knows k8s-openapi and `policy_core::model`, and nothing of files or of the network. What comes out
//! is valid; what is not is reported with the path of the field, all of an object's mistakes at once.

mod address;
mod network_policy;
mod path;
mod pod;
mod service;
pub mod strict;

pub use network_policy::{closed_network_policy, network_policy};
pub use path::{FieldPath, Segment};
pub use pod::{MIRROR, PodObject, pod, pod_in_part};
pub use service::{Service, service};

use std::collections::BTreeMap;
use std::sync::Arc;

use ipnet::IpNet;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use policy_core::model::{Labels, Namespace, ObjectName, Protocol};

/// One mistake in an object.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {mistake}")]
pub struct Invalid {
    /// The field that is wrong.
    pub path: FieldPath,
    /// What is wrong with it.
    pub mistake: Mistake,
}

/// What can be wrong with a field.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Mistake {
    /// A field that must be there is not.
    #[error("missing")]
    Missing,
    /// Not `ADDRESS/LENGTH`.
    #[error("{0:?} is not a CIDR such as 10.0.0.0/8 or 2001:db8::/32")]
    InvalidCidr(String),
    /// An `except` that is not part of its block.
    #[error("{except} is not inside {cidr}")]
    ExceptOutside {
        /// The exception.
        except: IpNet,
        /// The block.
        cidr: IpNet,
    },
    /// An `except` that is its whole block.
    #[error("{0} is the whole block, which leaves nothing")]
    ExceptIsBlock(IpNet),
    /// A port number that does not exist.
    #[error("port {0} is not between 1 and 65535")]
    PortOutOfRange(i64),
    /// A name that no container port can have.
    #[error(
        "{0:?} is not a port name: 1 to 15 of a-z, 0-9 and '-', at least one letter, '-' neither first, last nor doubled"
    )]
    InvalidPortName(String),
    /// `endPort` below `port`.
    #[error("endPort {end} is below port {port}")]
    EndPortBelowPort {
        /// `endPort`.
        end: i32,
        /// `port`.
        port: u16,
    },
    /// `endPort` beside a named port.
    #[error("endPort cannot be combined with the named port {0:?}")]
    EndPortWithName(String),
    /// `endPort` alone.
    #[error("endPort needs a port")]
    EndPortWithoutPort,
    /// A protocol that NetworkPolicy does not know.
    #[error("unknown protocol {0:?}; the choices are TCP, UDP, SCTP")]
    UnknownProtocol(String),
    /// A selector operator that does not exist.
    #[error("unknown operator {0:?}; the choices are In, NotIn, Exists, DoesNotExist")]
    UnknownOperator(String),
    /// `In` or `NotIn` with nothing to compare with.
    #[error("operator {0} needs at least one value")]
    ValuesMissing(&'static str),
    /// `Exists` or `DoesNotExist` with values.
    #[error("operator {0} takes no values")]
    ValuesForbidden(&'static str),
    /// A policy type that does not exist.
    #[error("unknown policy type {0:?}; the choices are Ingress, Egress")]
    UnknownPolicyType(String),
    /// A peer that says nothing.
    #[error("an empty peer; it needs podSelector, namespaceSelector or ipBlock")]
    EmptyPeer,
    /// `ipBlock` beside a selector.
    #[error("ipBlock cannot be combined with podSelector or namespaceSelector in one peer")]
    MixedPeer,
    /// Not an IP address.
    #[error("{0:?} is not an IP address")]
    InvalidAddress(String),
    /// More than one address of one family.
    #[error("a second {0} address; a pod has at most one of each family")]
    SecondAddress(&'static str),
}

/// Collects the mistakes of one object.
#[derive(Debug, Default)]
struct Mistakes(Vec<Invalid>);

impl Mistakes {
    fn report(&mut self, path: FieldPath, mistake: Mistake) {
        self.0.push(Invalid { path, mistake });
    }

    /// `value`, unless there was a mistake.
    fn finish<T>(self, value: Option<T>) -> Result<T, Vec<Invalid>> {
        match value {
            Some(value) if self.0.is_empty() => Ok(value),
            _ => Err(self.0),
        }
    }
}

/// A Namespace in the compiler's terms.
///
/// # Errors
///
/// When it has no name.
pub fn namespace(object: &core::Namespace) -> Result<Namespace, Vec<Invalid>> {
    let mut mistakes = Mistakes::default();
    let name = name_of(&object.metadata, &mut mistakes);
    mistakes.finish(name.map(|name| Namespace {
        name: name.into(),
        labels: labels(object.metadata.labels.as_ref()),
    }))
}

/// The namespace and name of a namespaced object; without a namespace it is in `default`.
fn object_name(metadata: &ObjectMeta, mistakes: &mut Mistakes) -> Option<ObjectName> {
    let name = name_of(metadata, mistakes)?;
    let namespace = metadata
        .namespace
        .as_deref()
        .filter(|name| !name.is_empty());
    Some(ObjectName::new(namespace.unwrap_or("default"), name))
}

fn name_of<'a>(metadata: &'a ObjectMeta, mistakes: &mut Mistakes) -> Option<&'a str> {
    let name = metadata.name.as_deref().filter(|name| !name.is_empty());
    if name.is_none() {
        mistakes.report(
            FieldPath::root().field("metadata").field("name"),
            Mistake::Missing,
        );
    }
    name
}

fn labels(labels: Option<&BTreeMap<String, String>>) -> Labels {
    labels
        .into_iter()
        .flatten()
        .map(|(key, value)| (Arc::from(key.as_str()), Arc::from(value.as_str())))
        .collect()
}

fn protocol(name: Option<&str>) -> Result<Protocol, Mistake> {
    match name {
        None | Some("TCP" | "") => Ok(Protocol::Tcp),
        Some("UDP") => Ok(Protocol::Udp),
        Some("SCTP") => Ok(Protocol::Sctp),
        Some(other) => Err(Mistake::UnknownProtocol(other.to_owned())),
    }
}

fn port_number(number: i64) -> Result<u16, Mistake> {
    u16::try_from(number)
        .ok()
        .filter(|port| *port != 0)
        .ok_or(Mistake::PortOutOfRange(number))
}

/// Whether `name` is an IANA service name (RFC 6335, section 5.1), as Kubernetes wants port names.
fn is_port_name(name: &str) -> bool {
    (1..=15).contains(&name.len())
        && name
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && name.bytes().any(|b| b.is_ascii_lowercase())
        && !name.starts_with('-')
        && !name.ends_with('-')
        && !name.contains("--")
}
