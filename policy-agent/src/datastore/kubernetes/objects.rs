//! The objects of one resource as far as they have to be remembered: to know what changed and what
//! vanished. Pure.

use std::collections::{BTreeMap, HashMap};

use policy_core::model::ObjectName;

use super::decode::{self, Content, Item};
use super::resource::Resource;
use super::shared::Shared;
use crate::datastore::convert::PodObject;
use crate::datastore::{Object, ObjectChange};

/// See the module.
#[derive(Debug)]
pub(super) struct Objects {
    resource: Resource,
    known: HashMap<ObjectName, Known>,
    /// Number of the list that is under way, or of the last one.
    list: u32,
    mistakes: BTreeMap<ObjectName, Vec<String>>,
    in_force: usize,
    shared: Shared,
}

#[derive(Clone, Copy, Debug)]
struct Known {
    /// Of what is in force: the last valid state, or what is taken over instead of one.
    fingerprint: Option<u64>,
    /// The last list that it was in, or during or after which it changed.
    list: u32,
}

impl Objects {
    /// No objects yet.
    pub(super) fn new(resource: Resource) -> Self {
        Self {
            resource,
            known: HashMap::new(),
            list: 0,
            mistakes: BTreeMap::new(),
            in_force: 0,
            shared: Shared::default(),
        }
    }

    /// Objects with a valid state.
    pub(super) fn in_force(&self) -> usize {
        self.in_force
    }

    /// Whether there is any object, valid or not.
    pub(super) fn is_empty(&self) -> bool {
        self.known.is_empty()
    }

    /// Whether the object of this name has a valid state.
    pub(super) fn is_in_force(&self, name: &ObjectName) -> bool {
        let known = self.known.get(name);
        known.is_some_and(|known| known.fingerprint.is_some())
    }

    /// Invalid objects and what is wrong with them.
    pub(super) fn mistakes(&self) -> impl Iterator<Item = (String, &String)> {
        self.mistakes.iter().flat_map(|(name, mistakes)| {
            mistakes
                .iter()
                .map(|mistake| (self.resource.describe(name), mistake))
        })
    }

    /// A list begins. One that was under way and never completed has no consequences.
    pub(super) fn begin_list(&mut self) {
        self.list = self.list.wrapping_add(1);
    }

    /// The list is complete: what was not in it is gone.
    pub(super) fn complete_list(&mut self) -> Vec<ObjectChange> {
        let list = self.list;
        let vanished: Vec<_> = self
            .known
            .iter()
            .filter(|(_, known)| known.list != list)
            .map(|(name, _)| name.clone())
            .collect();
        vanished
            .iter()
            .filter_map(|name| self.delete(name))
            .collect()
    }

    /// An object is there in this state; what that changes.
    pub(super) fn put(&mut self, item: Item) -> Option<ObjectChange> {
        let list = self.list;
        let known = self.known.get_mut(&item.name);
        let before = known.as_ref().and_then(|known| known.fingerprint);
        let (fingerprint, object) = match item.content {
            Content::Node => (Some(0), None),
            Content::Object {
                object,
                fingerprint,
            } => {
                self.mistakes.remove(&item.name);
                (Some(fingerprint), Some(object))
            }
            Content::Invalid { mistakes, instead } => {
                self.mistakes.insert(item.name.clone(), mistakes);
                let fingerprint = instead.as_ref().map(decode::fingerprint);
                (fingerprint.or(before), instead)
            }
        };
        let mut object = object.filter(|_| before != fingerprint);
        if let Some(Object::Pod(PodObject::Pod { pod, .. })) = &mut object {
            self.shared.share(pod);
        }
        if before.is_none() && fingerprint.is_some() {
            self.in_force += 1;
        }
        let now = Known { fingerprint, list };
        match known {
            Some(known) => *known = now,
            None => {
                // The name that the compiler has too, rather than a second copy of it.
                let name = object.as_ref().and_then(name_of);
                self.known.insert(name.unwrap_or(item.name), now);
            }
        }
        object.map(ObjectChange::Upsert)
    }

    /// An object is gone; what that changes.
    pub(super) fn delete(&mut self, name: &ObjectName) -> Option<ObjectChange> {
        self.mistakes.remove(name);
        let known = self.known.remove(name)?;
        known.fingerprint?;
        self.in_force -= 1;
        self.resource.key(name).map(ObjectChange::Gone)
    }
}

/// The name in a namespaced object.
fn name_of(object: &Object) -> Option<ObjectName> {
    match object {
        Object::Pod(pod) => Some(pod.name().clone()),
        Object::Policy(policy) => Some(policy.name.clone()),
        Object::Service(service) => Some(service.name.clone()),
        Object::Namespace(_) => None,
    }
}
