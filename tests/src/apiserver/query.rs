//! The query of a list or watch.

use super::Failure;
use super::filter::Filter;
use super::path::Target;

/// A list's or watch's parameters, as given.
#[derive(Debug, Default)]
pub(super) struct Query {
    pub(super) watch: bool,
    pub(super) limit: usize,
    pub(super) continue_: String,
    pub(super) version: String,
    pub(super) exact: bool,
    pub(super) bookmarks: bool,
    pub(super) send_initial: Option<bool>,
    pub(super) timeout: Option<u64>,
    labels: String,
    fields: String,
}

impl Query {
    /// What `text`, the part of a URL after the question mark, says.
    pub(super) fn parse(text: &str) -> Result<Self, Failure> {
        let mut query = Self::default();
        for (name, value) in form_urlencoded::parse(text.as_bytes()) {
            let malformed = || Failure::bad_request(format!("{name}={value:?} is malformed"));
            match &*name {
                "watch" => query.watch = truth(&value).ok_or_else(malformed)?,
                "limit" => query.limit = value.parse().map_err(|_| malformed())?,
                "continue" => query.continue_ = value.into_owned(),
                "resourceVersion" => query.version = value.into_owned(),
                "resourceVersionMatch" => query.exact = value == "Exact",
                "allowWatchBookmarks" => query.bookmarks = truth(&value).ok_or_else(malformed)?,
                "sendInitialEvents" => {
                    query.send_initial = Some(truth(&value).ok_or_else(malformed)?);
                }
                "timeoutSeconds" => query.timeout = Some(value.parse().map_err(|_| malformed())?),
                "labelSelector" => query.labels = value.into_owned(),
                "fieldSelector" => query.fields = value.into_owned(),
                _ => {}
            }
        }
        Ok(query)
    }

    /// The resource version, when there is one.
    pub(super) fn version(&self) -> Result<Option<u64>, Failure> {
        if self.version.is_empty() {
            return Ok(None);
        }
        let version = self.version.parse().map_err(|_| {
            let version = &self.version;
            Failure::bad_request(format!(
                "Invalid value: {version:?}: not a resource version"
            ))
        })?;
        Ok(Some(version))
    }

    /// Which objects of `target` are asked for.
    pub(super) fn filter(&self, target: &Target) -> Result<Filter, Failure> {
        Filter::parse(
            target.resource,
            &target.namespace,
            &self.labels,
            &self.fields,
        )
    }
}

fn truth(text: &str) -> Option<bool> {
    match text {
        "" | "1" | "true" => Some(true),
        "0" | "false" => Some(false),
        _ => None,
    }
}
