//! The objects of all files together, and what changes when a file does. Pure.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::parse::Parsed;
use crate::datastore::convert::PodObject;
use crate::datastore::{Object, ObjectChange, ObjectKey, Problem, Severity};

/// Which file says what. An object that stands in several files is taken from the first by name.
#[derive(Debug)]
pub(super) struct Catalog {
    files: BTreeMap<Arc<str>, FileEntry>,
    candidates: HashMap<ObjectKey, BTreeMap<Arc<str>, (usize, Object)>>,
    published: HashMap<ObjectKey, Object>,
    /// Objects that stand in more than one file.
    repeated: BTreeSet<ObjectKey>,
    /// Order of arrival of pods without a creationTimestamp.
    arrivals: HashMap<ObjectKey, i64>,
    last_arrival: i64,
}

#[derive(Debug, Default)]
struct FileEntry {
    keys: BTreeSet<ObjectKey>,
    problems: Vec<Problem>,
}

impl Catalog {
    /// An empty catalog; arrivals are numbered from `start`, seconds since 1970, so that they
    /// compare with creation times.
    pub(super) fn new(start: i64) -> Self {
        Self {
            files: BTreeMap::new(),
            candidates: HashMap::new(),
            published: HashMap::new(),
            repeated: BTreeSet::new(),
            arrivals: HashMap::new(),
            last_arrival: start,
        }
    }

    /// Takes a file's content over. With an error in it, the objects that it had before stay.
    pub(super) fn put(&mut self, file: &Arc<str>, parsed: Parsed, now: i64) -> Vec<ObjectChange> {
        let valid = parsed.is_valid();
        let entry = self.files.entry(file.clone()).or_default();
        entry.problems = parsed.problems;
        if !valid {
            return Vec::new();
        }
        let objects: Vec<_> = parsed
            .objects
            .into_iter()
            .map(|(line, object)| (object.key(), line, object))
            .collect();
        let keys: BTreeSet<_> = objects.iter().map(|(key, ..)| key.clone()).collect();
        let mut touched = std::mem::replace(&mut entry.keys, keys);
        for key in &touched {
            self.withdraw(key, file);
        }
        for (key, line, object) in objects {
            touched.insert(key.clone());
            let object = self.dated(&key, object, now);
            self.candidates
                .entry(key)
                .or_default()
                .insert(file.clone(), (line, object));
        }
        self.publish(touched)
    }

    /// Keeps a file's objects and reports that it could not be read.
    pub(super) fn unreadable(&mut self, file: &Arc<str>, message: String) {
        self.files.entry(file.clone()).or_default().problems = vec![Problem {
            file: file.to_string(),
            line: None,
            object: None,
            message,
            severity: Severity::Error,
        }];
    }

    /// A file is gone, and its objects with it.
    pub(super) fn remove(&mut self, file: &Arc<str>) -> Vec<ObjectChange> {
        let Some(entry) = self.files.remove(file) else {
            return Vec::new();
        };
        for key in &entry.keys {
            self.withdraw(key, file);
        }
        self.publish(entry.keys)
    }

    /// What is wrong, in the order of files and lines.
    pub(super) fn problems(&self) -> Vec<Problem> {
        let mut problems: Vec<_> = self
            .files
            .values()
            .flat_map(|entry| entry.problems.iter().cloned())
            .collect();
        for key in &self.repeated {
            let Some(candidates) = self.candidates.get(key) else {
                continue;
            };
            let Some(((first, (first_line, _)), others)) = candidates
                .iter()
                .next()
                .map(|first| (first, candidates.iter().skip(1)))
            else {
                continue;
            };
            problems.extend(others.map(|(file, (line, _))| Problem {
                file: file.to_string(),
                line: Some(*line),
                object: Some(key.to_string()),
                message: format!("also in {first}:{first_line}, which counts"),
                severity: Severity::Error,
            }));
        }
        problems.sort();
        problems
    }

    /// Names of all files.
    pub(super) fn files(&self) -> impl Iterator<Item = &Arc<str>> {
        self.files.keys()
    }

    /// Number of objects in force.
    pub(super) fn objects(&self) -> usize {
        self.published.len()
    }

    fn withdraw(&mut self, key: &ObjectKey, file: &Arc<str>) {
        if let Some(candidates) = self.candidates.get_mut(key) {
            candidates.remove(file);
        }
    }

    /// Gives a pod without a creation time one that grows with the order of arrival.
    fn dated(&mut self, key: &ObjectKey, mut object: Object, now: i64) -> Object {
        if let Object::Pod(PodObject::Pod {
            pod, dated: false, ..
        }) = &mut object
        {
            let last = &mut self.last_arrival;
            pod.created = *self.arrivals.entry(key.clone()).or_insert_with(|| {
                *last = now.max(*last + 1);
                *last
            });
        }
        object
    }

    fn publish(&mut self, touched: BTreeSet<ObjectKey>) -> Vec<ObjectChange> {
        let mut changes = Vec::new();
        for key in touched {
            let candidates = self.candidates.get(&key);
            if candidates.is_some_and(|candidates| candidates.len() > 1) {
                self.repeated.insert(key.clone());
            } else {
                self.repeated.remove(&key);
            }
            match candidates.and_then(|candidates| candidates.values().next()) {
                Some((_, object)) => {
                    if self.published.get(&key) != Some(object) {
                        self.published.insert(key, object.clone());
                        changes.push(ObjectChange::Upsert(object.clone()));
                    }
                }
                None => {
                    self.candidates.remove(&key);
                    self.arrivals.remove(&key);
                    if self.published.remove(&key).is_some() {
                        changes.push(ObjectChange::Gone(key));
                    }
                }
            }
        }
        changes
    }
}
