//! A stored object: its value, and its JSON, written once for everybody who asks.

use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use k8s_openapi::jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::{Failure, Resource};

/// Namespace (empty where there is none) and name.
pub(super) type Key = (String, String);

/// An object as it was at one version.
#[derive(Debug)]
pub(super) struct Object {
    pub(super) resource: Resource,
    pub(super) version: u64,
    pub(super) value: Value,
    json: Bytes,
    /// Where the JSON's members after `apiVersion` and `kind` begin.
    members: usize,
}

impl Object {
    /// `value` at `version`; it has to be an object with metadata ([`key_of`] sees to that).
    pub(super) fn new(resource: Resource, mut value: Value, version: u64) -> Self {
        let mut fields = Map::new();
        if let Value::Object(all) = &mut value {
            all.remove("apiVersion");
            all.remove("kind");
            fields = std::mem::take(all);
        }
        if let Some(Value::Object(metadata)) = fields.get_mut("metadata") {
            metadata.insert("resourceVersion".to_owned(), json!(version.to_string()));
        }
        let mut json = format!(
            "{{\"apiVersion\":\"{}\",\"kind\":\"{}\",",
            resource.api_version(),
            resource.kind()
        );
        let members = json.len();
        json.push_str(&Value::Object(fields.clone()).to_string()[1..]);
        fields.insert("apiVersion".to_owned(), json!(resource.api_version()));
        fields.insert("kind".to_owned(), json!(resource.kind()));
        Self {
            resource,
            version,
            value: Value::Object(fields),
            json: json.into(),
            members,
        }
    }

    /// Its JSON.
    pub(super) fn json(&self) -> &Bytes {
        &self.json
    }

    /// Appends its JSON as an item of a list, which has neither `apiVersion` nor `kind`.
    pub(super) fn append_item(&self, list: &mut Vec<u8>) {
        list.push(b'{');
        list.extend_from_slice(&self.json[self.members..]);
    }

    /// A string by its path of fields; empty where there is none.
    pub(super) fn text(&self, pointer: &str) -> &str {
        text(&self.value, pointer)
    }

    /// A label's value.
    pub(super) fn label(&self, key: &str) -> Option<&str> {
        self.value
            .get("metadata")?
            .get("labels")?
            .get(key)?
            .as_str()
    }
}

fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    let found = value.pointer(pointer);
    found.and_then(Value::as_str).unwrap_or_default()
}

/// The key of an object that somebody sent, which is checked as far as its metadata goes.
pub(super) fn key_of(resource: Resource, value: &Value) -> Result<Key, Failure> {
    let name = text(value, "/metadata/name");
    let kind = (text(value, "/apiVersion"), text(value, "/kind"));
    if kind != (resource.api_version(), resource.kind()) {
        return Err(Failure::bad_request(format!(
            "the object is of {}/{}, where {}/{} was expected",
            kind.0,
            kind.1,
            resource.api_version(),
            resource.kind()
        )));
    }
    if name.is_empty() {
        return Err(Failure::invalid(
            resource,
            name,
            "metadata.name: Required value: name or generateName is required",
        ));
    }
    for (field, part) in [
        ("metadata.labels", "/metadata/labels"),
        ("spec", "/spec"),
        ("status", "/status"),
    ] {
        let part = value.pointer(part);
        if part.is_some_and(|part| !part.is_object() && !part.is_null()) {
            return Err(Failure::bad_request(format!("{field} is not an object")));
        }
    }
    let namespace = match (resource.is_namespaced(), text(value, "/metadata/namespace")) {
        (false, _) => "",
        (true, "") => "default",
        (true, namespace) => namespace,
    };
    Ok((namespace.to_owned(), name.to_owned()))
}

/// Fills in what the API gives each new object.
pub(super) fn complete(resource: Resource, key: &Key, value: &mut Value) {
    static UIDS: AtomicU64 = AtomicU64::new(1);
    let metadata = &mut value["metadata"];
    if resource.is_namespaced() {
        metadata["namespace"] = json!(key.0);
    }
    if resource == Resource::Namespaces {
        metadata["labels"]["kubernetes.io/metadata.name"] = json!(key.1);
        if value["status"]["phase"].is_null() {
            value["status"]["phase"] = json!("Active");
        }
    }
    let metadata = &mut value["metadata"];
    if metadata["uid"].is_null() {
        let number = UIDS.fetch_add(1, Ordering::Relaxed);
        metadata["uid"] = json!(format!("00000000-0000-4000-8000-{number:012x}"));
    }
    if metadata["creationTimestamp"].is_null() {
        let now = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ");
        metadata["creationTimestamp"] = json!(now.to_string());
    }
}

/// Changes `target` by a merge patch (RFC 7386).
pub(super) fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    for (name, change) in patch {
        if change.is_null() {
            if let Value::Object(fields) = target {
                fields.remove(name);
            }
        } else {
            merge(&mut target[name.as_str()], change);
        }
    }
}
