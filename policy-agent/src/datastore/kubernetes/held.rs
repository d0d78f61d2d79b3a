//! Pods of other nodes that wait for their Namespace. Pure.
//!
//! Each resource is watched by itself, so a pod may be told before the Namespace that it is in. By selectors
//! that only exclude (`NotIn`, `DoesNotExist`) a namespace without labels would be allowed what the real one
//! may not be, so until then the pod is no peer. This node's pods are passed on: their own policies need no
//! Namespace.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use policy_core::model::ObjectName;

use crate::datastore::convert::PodObject;
use crate::datastore::{Object, ObjectChange, ObjectKey};

/// See the module.
#[derive(Debug)]
pub(super) struct Held {
    node: Arc<str>,
    pods: HashMap<Arc<str>, BTreeMap<ObjectName, Object>>,
}

impl Held {
    /// Nothing yet, on the node of this name.
    pub(super) fn new(node: Arc<str>) -> Self {
        Self {
            node,
            pods: HashMap::new(),
        }
    }

    /// What of `changes` can be passed on, and what waited for one of them. `is_known` says of a namespace
    /// whether it was told.
    pub(super) fn pass(
        &mut self,
        changes: Vec<ObjectChange>,
        is_known: impl Fn(&str) -> bool,
    ) -> Vec<ObjectChange> {
        let mut passed = Vec::with_capacity(changes.len());
        for change in changes {
            match change {
                ObjectChange::Upsert(Object::Pod(pod)) => {
                    let name = pod.name().clone();
                    self.forget(&name);
                    if self.is_of_this_node(&pod) || is_known(&name.namespace) {
                        passed.push(ObjectChange::Upsert(Object::Pod(pod)));
                        continue;
                    }
                    // What it was before its namespace went may be passed on already.
                    passed.push(ObjectChange::Gone(ObjectKey::Pod(name.clone())));
                    let held = self.pods.entry(name.namespace.clone()).or_default();
                    held.insert(name, Object::Pod(pod));
                }
                ObjectChange::Gone(ObjectKey::Pod(name)) => {
                    self.forget(&name);
                    passed.push(ObjectChange::Gone(ObjectKey::Pod(name)));
                }
                ObjectChange::Upsert(Object::Namespace(namespace)) => {
                    let held = self.pods.remove(&namespace.name).unwrap_or_default();
                    passed.push(ObjectChange::Upsert(Object::Namespace(namespace)));
                    passed.extend(held.into_values().map(ObjectChange::Upsert));
                }
                other => passed.push(other),
            }
        }
        passed
    }

    fn is_of_this_node(&self, pod: &PodObject) -> bool {
        match pod {
            PodObject::Pod { node, .. } => node.as_ref() == Some(&self.node),
            PodObject::HostNetwork { .. } => true,
        }
    }

    fn forget(&mut self, name: &ObjectName) {
        if let Some(held) = self.pods.get_mut(&name.namespace) {
            held.remove(name);
            if held.is_empty() {
                self.pods.remove(&name.namespace);
            }
        }
    }
}
