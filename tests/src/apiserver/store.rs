//! Objects with their versions, and the history that watches go by.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use serde_json::{Value, json};

use super::object::{self, Key, Object};
use super::{Failure, Resource};

/// What happened to an object, in the words of a watch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Added,
    Modified,
    Deleted,
}

impl Kind {
    /// One line of a watch.
    pub(super) fn line(self, object: &Object) -> Bytes {
        let kind = match self {
            Self::Added => "ADDED",
            Self::Modified => "MODIFIED",
            Self::Deleted => "DELETED",
        };
        let mut line = format!("{{\"type\":\"{kind}\",\"object\":").into_bytes();
        line.extend_from_slice(object.json());
        line.extend_from_slice(b"}\n");
        line.into()
    }
}

/// Something happened to an object.
#[derive(Debug)]
pub(super) struct Event {
    pub(super) at: Instant,
    pub(super) kind: Kind,
    /// As it is now, or was last.
    pub(super) object: Arc<Object>,
    /// As it was before.
    pub(super) previous: Option<Arc<Object>>,
    /// The line for watches that see both of the above; all of them share it.
    pub(super) line: Bytes,
}

/// What is left alone when an object is replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// Nothing.
    Whole,
    /// The status, where it is a resource of its own.
    Main,
    /// All but the status.
    Status,
}

/// Objects and history of one resource.
#[derive(Debug, Default)]
struct Table {
    objects: BTreeMap<Key, Arc<Object>>,
    events: VecDeque<Arc<Event>>,
    /// Version of the newest event that is not in `events` any more.
    forgotten: u64,
    /// The oldest version that a new watch can go on from.
    oldest: u64,
}

/// All objects.
#[derive(Debug)]
pub(super) struct Store {
    version: u64,
    /// In the order of [`Resource::ALL`].
    tables: [Table; Resource::ALL.len()],
    /// Events kept for each resource.
    history: usize,
}

impl Store {
    /// A store with the namespaces that every cluster has.
    pub(super) fn new(history: usize) -> Self {
        let mut store = Self {
            version: 1,
            tables: Default::default(),
            history,
        };
        for name in ["default", "kube-node-lease", "kube-public", "kube-system"] {
            let namespace = json!({
                "apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name},
            });
            // It is valid and the first of its name.
            let _created = store.put(Resource::Namespaces, namespace);
        }
        store
    }

    /// The version of the newest change.
    pub(super) fn version(&self) -> u64 {
        self.version
    }

    /// An object.
    pub(super) fn get(&self, resource: Resource, key: &Key) -> Result<Arc<Object>, Failure> {
        let found = self.table(resource).objects.get(key);
        found
            .cloned()
            .ok_or_else(|| Failure::not_found(resource, &key.1))
    }

    /// All objects, or those of one namespace, in the order of their keys.
    pub(super) fn list(&self, resource: Resource, namespace: &str) -> Vec<Arc<Object>> {
        let objects = &self.table(resource).objects;
        if namespace.is_empty() {
            return objects.values().cloned().collect();
        }
        objects
            .range((namespace.to_owned(), String::new())..)
            .take_while(|(key, _)| key.0 == namespace)
            .map(|(_, object)| object.clone())
            .collect()
    }

    /// Adds an object.
    pub(super) fn create(
        &mut self,
        resource: Resource,
        mut value: Value,
    ) -> Result<Arc<Object>, Failure> {
        let key = object::key_of(resource, &value)?;
        if self.table(resource).objects.contains_key(&key) {
            return Err(Failure::already_exists(resource, &key.1));
        }
        if resource.is_namespaced() {
            self.get(Resource::Namespaces, &(String::new(), key.0.clone()))?;
        }
        object::complete(resource, &key, &mut value);
        Ok(self.write(resource, key, value, None))
    }

    /// Replaces an object, all or a part of it. A `resourceVersion` in `value` has to be the current one.
    pub(super) fn replace(
        &mut self,
        resource: Resource,
        mut value: Value,
        part: Part,
    ) -> Result<Arc<Object>, Failure> {
        let key = object::key_of(resource, &value)?;
        let old = self.get(resource, &key)?;
        let stated = value.pointer("/metadata/resourceVersion");
        if let Some(stated) = stated.and_then(Value::as_str)
            && !stated.is_empty()
            && stated != old.version.to_string()
        {
            return Err(Failure::conflict(resource, &key.1));
        }
        match part {
            Part::Main if resource == Resource::Pods => {
                value["status"] = old.value["status"].clone();
            }
            Part::Main | Part::Whole => {}
            Part::Status => {
                let status = value["status"].take();
                value = old.value.clone();
                value["status"] = status;
            }
        }
        if part != Part::Whole {
            for fixed in ["uid", "creationTimestamp"] {
                value["metadata"][fixed] = old.value["metadata"][fixed].clone();
            }
        }
        object::complete(resource, &key, &mut value);
        // As in the real one, what changes nothing is no change.
        value["metadata"]["resourceVersion"] = json!(old.version.to_string());
        if value == old.value {
            return Ok(old);
        }
        Ok(self.write(resource, key, value, Some(old)))
    }

    /// Adds an object, or replaces the whole of it. Its `uid` and creation time stay unless it says others.
    pub(super) fn put(
        &mut self,
        resource: Resource,
        mut value: Value,
    ) -> Result<Arc<Object>, Failure> {
        let key = object::key_of(resource, &value)?;
        if let Value::Object(metadata) = &mut value["metadata"] {
            metadata.remove("resourceVersion");
        }
        let Ok(old) = self.get(resource, &key) else {
            return self.create(resource, value);
        };
        for kept in ["uid", "creationTimestamp"] {
            if value["metadata"][kept].is_null() {
                value["metadata"][kept] = old.value["metadata"][kept].clone();
            }
        }
        self.replace(resource, value, Part::Whole)
    }

    /// Changes an object by a merge patch.
    pub(super) fn patch(
        &mut self,
        resource: Resource,
        key: &Key,
        patch: &Value,
        part: Part,
    ) -> Result<Arc<Object>, Failure> {
        let mut value = self.get(resource, key)?.value.clone();
        object::merge(&mut value, patch);
        if object::key_of(resource, &value)? != *key {
            return Err(Failure::bad_request("a patch cannot rename an object"));
        }
        self.replace(resource, value, part)
    }

    /// Deletes an object; a namespace with all that is in it, as a cluster's controller would.
    pub(super) fn delete(&mut self, resource: Resource, key: &Key) -> Result<Arc<Object>, Failure> {
        self.get(resource, key)?;
        if resource == Resource::Namespaces {
            for inner in Resource::ALL.into_iter().filter(|r| r.is_namespaced()) {
                for object in self.list(inner, &key.1) {
                    let name = object.text("/metadata/name").to_owned();
                    self.delete(inner, &(key.1.clone(), name))?;
                }
            }
        }
        let version = self.next_version();
        let table = self.table_mut(resource);
        let previous = table.objects.remove(key);
        let previous = previous.ok_or_else(|| Failure::not_found(resource, &key.1))?;
        let last = Arc::new(Object::new(resource, previous.value.clone(), version));
        self.record(Kind::Deleted, last.clone(), Some(previous));
        Ok(last)
    }

    /// Forgets the history of all resources: new watches can go on from the current version only.
    pub(super) fn compact(&mut self) {
        let version = self.version;
        for table in &mut self.tables {
            while let Some(event) = table.events.pop_front() {
                table.forgotten = event.object.version;
            }
            table.oldest = version;
        }
    }

    /// Whether a new watch can go on from `version`.
    pub(super) fn check_start(&self, resource: Resource, version: u64) -> Result<(), Failure> {
        let oldest = self.table(resource).oldest;
        if version < oldest {
            return Err(Failure::version_too_old(version, oldest));
        }
        self.check_reached(version)
    }

    /// Whether `version` has been.
    pub(super) fn check_reached(&self, version: u64) -> Result<(), Failure> {
        if version > self.version {
            return Err(Failure::version_too_large(version, self.version));
        }
        Ok(())
    }

    /// What happened after `version`.
    pub(super) fn events_after(
        &self,
        resource: Resource,
        version: u64,
    ) -> Result<impl Iterator<Item = &Arc<Event>>, Failure> {
        let table = self.table(resource);
        if version < table.forgotten {
            return Err(Failure::version_too_old(version, table.forgotten));
        }
        let first = table
            .events
            .partition_point(|event| event.object.version <= version);
        Ok(table.events.range(first..))
    }

    fn write(
        &mut self,
        resource: Resource,
        key: Key,
        value: Value,
        previous: Option<Arc<Object>>,
    ) -> Arc<Object> {
        let version = self.next_version();
        let object = Arc::new(Object::new(resource, value, version));
        self.table_mut(resource).objects.insert(key, object.clone());
        let kind = if previous.is_some() {
            Kind::Modified
        } else {
            Kind::Added
        };
        self.record(kind, object.clone(), previous);
        object
    }

    fn record(&mut self, kind: Kind, object: Arc<Object>, previous: Option<Arc<Object>>) {
        let history = self.history;
        let table = self.table_mut(object.resource);
        let (at, line) = (Instant::now(), kind.line(&object));
        table.events.push_back(Arc::new(Event {
            at,
            kind,
            object,
            previous,
            line,
        }));
        while table.events.len() > history
            && let Some(event) = table.events.pop_front()
        {
            table.forgotten = event.object.version;
            table.oldest = event.object.version;
        }
    }

    fn next_version(&mut self) -> u64 {
        self.version += 1;
        self.version
    }

    fn table(&self, resource: Resource) -> &Table {
        &self.tables[resource as usize]
    }

    fn table_mut(&mut self, resource: Resource) -> &mut Table {
        &mut self.tables[resource as usize]
    }
}
