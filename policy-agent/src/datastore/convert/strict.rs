//! Deserializing with the paths of mistakes and of fields that the type does not have.

use serde::de::{DeserializeOwned, Deserializer};

use super::{FieldPath, Segment};

/// A typed object, or where it is malformed.
#[derive(Debug)]
pub struct Strict<T> {
    /// The object, or the field that could not be read and why.
    pub result: Result<T, (FieldPath, String)>,
    /// Fields of the input that the type does not have.
    pub unknown: Vec<FieldPath>,
}

/// Deserializes a `T` and notes what of the input it does not have.
pub fn deserialize<'de, T, D>(input: D) -> Strict<T>
where
    T: DeserializeOwned,
    D: Deserializer<'de>,
{
    let mut unknown = Vec::new();
    let mut track = serde_path_to_error::Track::new();
    let tracked = serde_path_to_error::Deserializer::new(input, &mut track);
    let result: Result<T, _> =
        serde_ignored::deserialize(tracked, |path| unknown.push(ignored_path(&path)));
    Strict {
        result: result.map_err(|error| (error_path(&track.path()), error.to_string())),
        unknown,
    }
}

fn ignored_path(path: &serde_ignored::Path<'_>) -> FieldPath {
    fn push(path: &serde_ignored::Path<'_>, segments: &mut Vec<Segment>) {
        use serde_ignored::Path;
        match path {
            Path::Root => {}
            Path::Seq { parent, index } => {
                push(parent, segments);
                segments.push(Segment::Index(*index));
            }
            Path::Map { parent, key } => {
                push(parent, segments);
                segments.push(Segment::Key(key.clone()));
            }
            Path::Some { parent }
            | Path::NewtypeStruct { parent }
            | Path::NewtypeVariant { parent } => push(parent, segments),
        }
    }
    let mut segments = Vec::new();
    push(path, &mut segments);
    segments.into_iter().collect()
}

fn error_path(path: &serde_path_to_error::Path) -> FieldPath {
    use serde_path_to_error::Segment as At;
    path.iter()
        .filter_map(|segment| match segment {
            At::Seq { index } => Some(Segment::Index(*index)),
            At::Map { key } => Some(Segment::Key(key.clone())),
            At::Enum { .. } | At::Unknown => None,
        })
        .collect()
}
