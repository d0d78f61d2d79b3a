//! Everything of a resource once, page by page, for who asks and does not follow.

use std::fmt;

use kube::Client;
use policy_core::model::{NetworkPolicy, ObjectName};

use super::decode::Content;
use super::failure::{Failure, Kind, Verb};
use super::request::Collection;
use super::resource::Resource;
use crate::datastore::Object;
use crate::datastore::convert::PodObject;

/// Objects in one page: few requests, and no answer that is long to wait for.
const PAGE: u32 = 1000;

/// Which objects; an absent part leaves everything in. The parts must be well-formed names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    /// Those in this namespace.
    pub namespace: Option<String>,
    /// Those of this name.
    pub name: Option<String>,
    /// Pods that are bound to this node; of other resources there are none then.
    pub node: Option<String>,
}

impl Selection {
    /// What the API calls a field selector.
    pub(super) fn field_selector(&self) -> Option<String> {
        let fields = [("metadata.name", &self.name), ("spec.nodeName", &self.node)];
        let fields: Vec<_> = fields
            .into_iter()
            .filter_map(|(field, value)| value.as_ref().map(|value| format!("{field}={value}")))
            .collect();
        (!fields.is_empty()).then(|| fields.join(","))
    }
}

/// All objects that were asked for, as they were at one moment.
#[derive(Clone, Debug)]
pub struct Listed<T> {
    /// Those that are as they should be, and of others what is taken over all the same.
    pub taken: Vec<T>,
    /// Those that are not.
    pub invalid: Vec<InvalidObject>,
}

/// An object that cannot be taken as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidObject {
    /// Its name.
    pub name: ObjectName,
    /// Its kind.
    pub kind: &'static str,
    /// Whether nothing of it is taken over.
    pub left_out: bool,
    /// What is wrong with it, field by field.
    pub mistakes: Vec<String>,
}

impl fmt::Display for InvalidObject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} {}: {}",
            self.kind,
            self.name,
            self.mistakes.join("; ")
        )
    }
}

/// Why there is no list, and what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.reason)]
pub struct ListError(Failure);

impl ListError {
    /// Whether others may be allowed to list it, or we to list something else.
    #[must_use]
    pub fn is_forbidden(&self) -> bool {
        self.0.kind == Kind::Forbidden
    }
}

/// Lists pods, those of the host's network included.
///
/// # Errors
///
/// When one of its pages cannot be read.
pub async fn list_pods(
    client: &Client,
    selection: Selection,
) -> Result<Listed<PodObject>, ListError> {
    list(client, Resource::Pods, selection, |object| match object {
        Object::Pod(pod) => Some(pod),
        _ => None,
    })
    .await
}

/// Lists NetworkPolicies.
///
/// # Errors
///
/// When one of its pages cannot be read.
pub async fn list_network_policies(
    client: &Client,
    selection: Selection,
) -> Result<Listed<NetworkPolicy>, ListError> {
    let resource = Resource::NetworkPolicies;
    list(client, resource, selection, |object| match object {
        Object::Policy(policy) => Some(policy),
        _ => None,
    })
    .await
}

async fn list<T>(
    client: &Client,
    resource: Resource,
    selection: Selection,
    expected: impl Fn(Object) -> Option<T>,
) -> Result<Listed<T>, ListError> {
    let collection = Collection {
        client: client.clone(),
        resource,
        selection,
    };
    let mut listed = Listed {
        taken: Vec::new(),
        invalid: Vec::new(),
    };
    let mut body = Vec::new();
    let mut next = None;
    loop {
        let page = collection
            .list(PAGE, next, &mut body)
            .await
            .map_err(|error| ListError(Failure::new(&error, resource, Verb::List)))?;
        for item in page.items {
            match item.content {
                Content::Object { object, .. } => listed.taken.extend(expected(object)),
                Content::Invalid { mistakes, instead } => {
                    listed.invalid.push(InvalidObject {
                        name: item.name,
                        kind: resource.kind(),
                        left_out: instead.is_none(),
                        mistakes,
                    });
                    listed.taken.extend(instead.and_then(&expected));
                }
                Content::Node => {}
            }
        }
        if page.next.is_none() {
            return Ok(listed);
        }
        next = page.next;
    }
}
