//! A YAML (or JSON) file as documents whose every node knows its line.

use saphyr::{LoadableYamlNode, MarkedYaml, Scalar, YamlData};
use serde_json::{Map, Number, Value};

use crate::datastore::convert::{FieldPath, Segment};

/// One document of a file, or one item of a list in it.
#[derive(Clone, Debug)]
pub(super) struct Document<'a> {
    node: &'a MarkedYaml<'a>,
}

/// Why a file is not YAML.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct SyntaxError {
    /// Line, counted from 1.
    pub line: usize,
    /// What is wrong.
    pub message: String,
}

/// The documents of `text`.
pub(super) fn load(text: &str) -> Result<Vec<MarkedYaml<'_>>, SyntaxError> {
    MarkedYaml::load_from_str(text).map_err(|error| SyntaxError {
        line: error.marker().line(),
        message: error.info().to_owned(),
    })
}

impl<'a> Document<'a> {
    pub(super) fn new(node: &'a MarkedYaml<'a>) -> Self {
        Self { node }
    }

    /// Whether there is nothing in it, as between two `---`.
    pub(super) fn is_empty(&self) -> bool {
        matches!(
            self.node.data,
            YamlData::Value(Scalar::Null) | YamlData::BadValue
        )
    }

    /// The line on which it begins.
    pub(super) fn line(&self) -> usize {
        self.node.span.start.line()
    }

    /// The line of the field at `path`: of its key where it has one, and of the nearest parent
    /// where it is not there.
    pub(super) fn line_of(&self, path: &FieldPath) -> usize {
        let mut node = self.node;
        let mut line = self.line();
        for segment in path.segments() {
            let next = match (segment, &node.data) {
                (Segment::Key(key), YamlData::Mapping(entries)) => {
                    entries.iter().find(|(name, _)| text(name) == Some(key))
                }
                (Segment::Index(index), YamlData::Sequence(items)) => {
                    items.get(*index).map(|item| (item, item))
                }
                _ => None,
            };
            let Some((place, value)) = next else { break };
            line = place.span.start.line();
            node = value;
        }
        line
    }

    /// The string at a field of the top level.
    pub(super) fn string(&self, key: &str) -> Option<&'a str> {
        let YamlData::Mapping(entries) = &self.node.data else {
            return None;
        };
        entries
            .iter()
            .find(|(name, _)| text(name) == Some(key))
            .and_then(|(_, value)| text(value))
    }

    /// The elements of its `items`.
    pub(super) fn items(&self) -> Option<Vec<Self>> {
        let YamlData::Mapping(entries) = &self.node.data else {
            return None;
        };
        let (_, items) = entries
            .iter()
            .find(|(name, _)| text(name) == Some("items"))?;
        match &items.data {
            YamlData::Sequence(items) => Some(items.iter().map(Document::new).collect()),
            YamlData::Value(Scalar::Null) => Some(Vec::new()),
            _ => None,
        }
    }

    /// The whole of it without its lines.
    pub(super) fn to_json(&self) -> Result<Value, SyntaxError> {
        to_json(self.node)
    }
}

fn text<'a>(node: &'a MarkedYaml<'a>) -> Option<&'a str> {
    match &node.data {
        YamlData::Value(Scalar::String(text)) => Some(text),
        _ => None,
    }
}

fn to_json(node: &MarkedYaml<'_>) -> Result<Value, SyntaxError> {
    let refuse = |node: &MarkedYaml<'_>, message: String| SyntaxError {
        line: node.span.start.line(),
        message,
    };
    Ok(match &node.data {
        YamlData::Value(Scalar::Null) => Value::Null,
        YamlData::Value(Scalar::Boolean(value)) => Value::Bool(*value),
        YamlData::Value(Scalar::Integer(value)) => Value::Number((*value).into()),
        YamlData::Value(Scalar::FloatingPoint(value)) => Number::from_f64(**value)
            .map(Value::Number)
            .ok_or_else(|| refuse(node, format!("{value} is not a number that JSON has")))?,
        YamlData::Value(Scalar::String(value)) => Value::String(value.to_string()),
        YamlData::Sequence(items) => {
            Value::Array(items.iter().map(to_json).collect::<Result<_, _>>()?)
        }
        YamlData::Mapping(entries) => {
            let mut map = Map::new();
            for (key, value) in entries {
                let name = match &key.data {
                    YamlData::Value(Scalar::String(name)) => name.to_string(),
                    YamlData::Value(Scalar::Integer(name)) => name.to_string(),
                    YamlData::Value(Scalar::Boolean(name)) => name.to_string(),
                    _ => return Err(refuse(key, "a key that is not a string".to_owned())),
                };
                map.insert(name, to_json(value)?);
            }
            Value::Object(map)
        }
        YamlData::Tagged(tag, value) => {
            let _ = value;
            return Err(refuse(
                node,
                format!("tag {tag} means nothing in a Kubernetes object"),
            ));
        }
        YamlData::Representation(..) | YamlData::Alias(_) | YamlData::BadValue => {
            return Err(refuse(node, "a value that cannot be read".to_owned()));
        }
    })
}
