//! A file's text to its objects, or to what is wrong with it.

use std::collections::HashMap;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::networking::v1 as networking;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::document::{self, Document, SyntaxError};
use crate::datastore::convert::{self, FieldPath, Invalid, strict};
use crate::datastore::{Object, ObjectKey, Problem, Severity};

/// What a file holds.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Parsed {
    /// Its objects with the lines on which they begin, in order.
    pub objects: Vec<(usize, Object)>,
    /// What is wrong with it; with an error among these, `objects` is incomplete.
    pub problems: Vec<Problem>,
}

impl Parsed {
    /// Whether the objects may be taken over.
    pub(super) fn is_valid(&self) -> bool {
        self.problems
            .iter()
            .all(|problem| problem.severity == Severity::Warning)
    }
}

/// Parses a file of one or more documents.
pub(super) fn parse(file: &str, text: &str) -> Parsed {
    let mut parser = Parser {
        file,
        parsed: Parsed::default(),
        seen: HashMap::new(),
    };
    match document::load(text) {
        Ok(nodes) => {
            for node in &nodes {
                parser.document(&Document::new(node), None);
            }
        }
        Err(error) => parser.syntax_error(None, error),
    }
    parser.parsed
}

/// The kinds that can stand in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Namespace,
    Pod,
    NetworkPolicy,
    Service,
}

impl Kind {
    const ALL: [Self; 4] = [
        Self::Namespace,
        Self::Pod,
        Self::NetworkPolicy,
        Self::Service,
    ];

    const fn name(self) -> &'static str {
        match self {
            Self::Namespace => "Namespace",
            Self::Pod => "Pod",
            Self::NetworkPolicy => "NetworkPolicy",
            Self::Service => "Service",
        }
    }

    const fn api_version(self) -> &'static str {
        match self {
            Self::Namespace | Self::Pod | Self::Service => "v1",
            Self::NetworkPolicy => "networking.k8s.io/v1",
        }
    }

    fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }
}

struct Parser<'f> {
    file: &'f str,
    parsed: Parsed,
    /// Objects so far, with the lines on which they begin.
    seen: HashMap<ObjectKey, usize>,
}

impl Parser<'_> {
    /// One document; `list_kind` is the kind of its list's items where it may be left out.
    fn document(&mut self, document: &Document<'_>, list_kind: Option<Kind>) {
        if document.is_empty() {
            return;
        }
        let root = FieldPath::root();
        let kind = match (document.string("kind"), list_kind) {
            (Some(name), _) => name,
            (None, Some(kind)) => kind.name(),
            (None, None) => {
                self.error(document, None, &root.field("kind"), "missing");
                return;
            }
        };
        if kind == "List"
            || kind
                .strip_suffix("List")
                .and_then(Kind::from_name)
                .is_some()
        {
            self.list(document, kind);
            return;
        }
        let Some(kind) = Kind::from_name(kind) else {
            let message = format!(
                "unknown kind {kind:?}; the choices are Namespace, Pod, NetworkPolicy, Service, and lists of them"
            );
            self.error(document, None, &root.field("kind"), message);
            return;
        };
        match document.string("apiVersion") {
            Some(version) if version == kind.api_version() => {}
            None if list_kind.is_some() => {}
            Some(version) => {
                let message = format!(
                    "unknown apiVersion {version:?}; {} has {}",
                    kind.name(),
                    kind.api_version()
                );
                self.error(document, None, &root.field("apiVersion"), message);
                return;
            }
            None => {
                self.error(document, None, &root.field("apiVersion"), "missing");
                return;
            }
        }
        self.object(document, kind);
    }

    fn list(&mut self, document: &Document<'_>, kind: &str) {
        let Some(items) = document.items() else {
            self.error(
                document,
                Some(kind),
                &FieldPath::root().field("items"),
                "not a list",
            );
            return;
        };
        let item_kind = kind.strip_suffix("List").and_then(Kind::from_name);
        for item in items {
            self.document(&item, item_kind);
        }
    }

    fn object(&mut self, document: &Document<'_>, kind: Kind) {
        let mut json = match document.to_json() {
            Ok(json) => json,
            Err(error) => return self.syntax_error(Some(kind.name()), error),
        };
        let name = describe(kind, &json);
        if let Value::Object(fields) = &mut json {
            // May be absent in the items of a typed list.
            fields.insert("kind".to_owned(), kind.name().into());
            fields.insert("apiVersion".to_owned(), kind.api_version().into());
        }
        let converted = match kind {
            Kind::Namespace => self
                .typed::<core::Namespace>(document, &name, json, Severity::Warning)
                .map(|object| convert::namespace(&object).map(Object::Namespace)),
            Kind::Pod => {
                quantities_to_text(&mut json);
                self.typed::<core::Pod>(document, &name, json, Severity::Warning)
                    .map(|object| convert::pod(&object).map(Object::Pod))
            }
            Kind::NetworkPolicy => self
                .typed::<networking::NetworkPolicy>(document, &name, json, Severity::Error)
                .map(|object| convert::network_policy(&object).map(Object::Policy)),
            Kind::Service => self
                .typed::<core::Service>(document, &name, json, Severity::Warning)
                .map(|object| convert::service(&object).map(Object::Service)),
        };
        match converted {
            None => {}
            Some(Ok(object)) => self.add(document, object),
            Some(Err(mistakes)) => {
                for Invalid { path, mistake } in mistakes {
                    self.error(document, Some(&name), &path, format!("{path}: {mistake}"));
                }
            }
        }
    }

    fn add(&mut self, document: &Document<'_>, object: Object) {
        let key = object.key();
        if let Some(line) = self.seen.get(&key) {
            let message = format!("also on line {line} of this file; that one counts");
            let problem = self.problem(
                document,
                Some(&key.to_string()),
                &FieldPath::root(),
                message,
                Severity::Warning,
            );
            self.parsed.problems.push(problem);
            return;
        }
        self.seen.insert(key, document.line());
        self.parsed.objects.push((document.line(), object));
    }

    /// Deserializes, and reports fields that the type does not have with `unknown_fields`.
    fn typed<T: DeserializeOwned>(
        &mut self,
        document: &Document<'_>,
        name: &str,
        json: Value,
        unknown_fields: Severity,
    ) -> Option<T> {
        let strict::Strict { result, unknown } = strict::deserialize(json);
        for path in unknown {
            let message = format!("{path}: unknown field");
            let problem = self.problem(document, Some(name), &path, message, unknown_fields);
            self.parsed.problems.push(problem);
        }
        match result {
            Ok(object) => Some(object),
            Err((path, error)) => {
                self.error(document, Some(name), &path, format!("{path}: {error}"));
                None
            }
        }
    }

    fn error(
        &mut self,
        document: &Document<'_>,
        object: Option<&str>,
        path: &FieldPath,
        message: impl Into<String>,
    ) {
        let mut message = message.into();
        let prefix = path.to_string();
        if !message.starts_with(&prefix) {
            message = format!("{prefix}: {message}");
        }
        let problem = self.problem(document, object, path, message, Severity::Error);
        self.parsed.problems.push(problem);
    }

    fn problem(
        &self,
        document: &Document<'_>,
        object: Option<&str>,
        path: &FieldPath,
        message: String,
        severity: Severity,
    ) -> Problem {
        Problem {
            file: self.file.to_owned(),
            line: Some(document.line_of(path)),
            object: object.map(str::to_owned),
            message,
            severity,
        }
    }

    fn syntax_error(&mut self, object: Option<&str>, error: SyntaxError) {
        self.parsed.problems.push(Problem {
            file: self.file.to_owned(),
            line: Some(error.line),
            object: object.map(str::to_owned),
            message: error.message,
            severity: Severity::Error,
        });
    }
}

/// Kind and name for messages, before the object is known to be valid.
fn describe(kind: Kind, json: &Value) -> String {
    let field = |name: &str| {
        json.pointer(&format!("/metadata/{name}"))
            .and_then(Value::as_str)
    };
    let name = field("name").unwrap_or("(unnamed)");
    match kind {
        Kind::Namespace => ObjectKey::Namespace(name.into()).to_string(),
        _ => format!(
            "{} {}/{name}",
            kind.name(),
            field("namespace").unwrap_or("default")
        ),
    }
}

/// Kubernetes reads quantities from numbers as well as from strings; the typed objects only from
/// strings.
fn quantities_to_text(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            for (name, field) in fields {
                if ["limits", "requests", "overhead"].contains(&name.as_str())
                    && let Value::Object(quantities) = field
                {
                    for quantity in quantities.values_mut().filter(|value| value.is_number()) {
                        *quantity = Value::String(quantity.to_string());
                    }
                } else if name == "sizeLimit" && field.is_number() {
                    *field = Value::String(field.to_string());
                } else {
                    quantities_to_text(field);
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(quantities_to_text),
        _ => {}
    }
}

#[cfg(test)]
#[path = "parse_tests.rs"]
mod tests;
