//! Label and field selectors of lists and watches.

use super::object::Object;
use super::{Failure, Resource};

/// Which objects a request is about.
#[derive(Clone, Debug, Default)]
pub(super) struct Filter {
    namespace: String,
    labels: Vec<Label>,
    fields: Vec<Field>,
}

#[derive(Clone, Debug)]
struct Label {
    key: String,
    needs: Needs,
}

#[derive(Clone, Debug)]
enum Needs {
    Presence(bool),
    /// A value of these; or, when false, none of these.
    Value(Vec<String>, bool),
}

#[derive(Clone, Debug)]
struct Field {
    pointer: &'static str,
    value: String,
    equal: bool,
}

impl Filter {
    /// Objects of `namespace` (all when empty) that both selectors match.
    pub(super) fn parse(
        resource: Resource,
        namespace: &str,
        labels: &str,
        fields: &str,
    ) -> Result<Self, Failure> {
        Ok(Self {
            namespace: namespace.to_owned(),
            labels: requirements(labels)
                .map(parse_label)
                .collect::<Result<_, _>>()?,
            fields: requirements(fields)
                .map(|text| parse_field(resource, text))
                .collect::<Result<_, _>>()?,
        })
    }

    /// Whether the request is about this object.
    pub(super) fn matches(&self, object: &Object) -> bool {
        let in_namespace =
            self.namespace.is_empty() || object.text("/metadata/namespace") == self.namespace;
        in_namespace
            && self.labels.iter().all(|label| {
                let value = object.label(&label.key);
                match &label.needs {
                    Needs::Presence(present) => value.is_some() == *present,
                    Needs::Value(values, is_one) => {
                        value.is_some_and(|value| values.iter().any(|v| v == value)) == *is_one
                    }
                }
            })
            && self
                .fields
                .iter()
                .all(|field| (object.text(field.pointer) == field.value) == field.equal)
    }
}

/// Splits at the commas that are not within parentheses.
fn requirements(selector: &str) -> impl Iterator<Item = &str> {
    let mut depth = 0;
    selector
        .split(move |c| {
            match c {
                '(' => depth += 1,
                ')' => depth -= 1,
                _ => {}
            }
            c == ',' && depth == 0
        })
        .map(str::trim)
        .filter(|text| !text.is_empty())
}

fn parse_label(text: &str) -> Result<Label, Failure> {
    let label = |key: &str, needs| Label {
        key: key.trim().to_owned(),
        needs,
    };
    if let Some(head) = text.strip_suffix(')')
        && let Some((head, values)) = head.split_once('(')
    {
        let values = values
            .split(',')
            .map(|value| value.trim().to_owned())
            .collect();
        return match head.split_whitespace().collect::<Vec<_>>()[..] {
            [key, "in"] => Ok(label(key, Needs::Value(values, true))),
            [key, "notin"] => Ok(label(key, Needs::Value(values, false))),
            _ => Err(unparsable(text)),
        };
    }
    if let Some((key, value, equal)) = equation(text) {
        return Ok(label(key, Needs::Value(vec![value.to_owned()], equal)));
    }
    let (key, present) = match text.strip_prefix('!') {
        Some(key) => (key.trim(), false),
        None => (text, true),
    };
    if key.contains(|c: char| c.is_whitespace() || "()!".contains(c)) {
        return Err(unparsable(text));
    }
    Ok(label(key, Needs::Presence(present)))
}

fn parse_field(resource: Resource, text: &str) -> Result<Field, Failure> {
    let (name, value, equal) = equation(text).ok_or_else(|| unparsable(text))?;
    let pointer = match (name, resource) {
        ("metadata.name", _) => "/metadata/name",
        ("metadata.namespace", _) => "/metadata/namespace",
        ("spec.nodeName", Resource::Pods) => "/spec/nodeName",
        ("status.phase", Resource::Pods | Resource::Namespaces) => "/status/phase",
        _ => {
            return Err(Failure::bad_request(format!(
                "field label not supported: {name}"
            )));
        }
    };
    Ok(Field {
        pointer,
        value: value.to_owned(),
        equal,
    })
}

fn equation(text: &str) -> Option<(&str, &str, bool)> {
    let split = |operator| text.split_once(operator);
    let (name, value, equal) = match (split("!="), split("=="), split("=")) {
        (Some((name, value)), ..) => (name, value, false),
        (None, Some((name, value)), _) | (None, None, Some((name, value))) => (name, value, true),
        (None, None, None) => return None,
    };
    Some((name.trim(), value.trim(), equal))
}

fn unparsable(text: &str) -> Failure {
    Failure::bad_request(format!("unable to parse requirement: {text:?}"))
}
