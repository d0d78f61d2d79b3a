//! The two requests that are made: one page of a list, and a watch.

use std::borrow::Cow;
use std::io;
use std::pin::Pin;
use std::time::Duration;

use futures_util::io::{AsyncBufRead, AsyncBufReadExt as _, AsyncReadExt as _};
use kube::Client;
use kube::core::params::{ListParams, WatchParams};
use kube::core::{Request, Status};
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::time::timeout;

use super::decode::{self, Item};
use super::list::Selection;
use super::resource::Resource;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// How many seconds a watch may be silent before nothing counts as coming any more. Of a resource in which
/// anything happens the API tells every minute how far it has come. Different each time, so that nodes do
/// not come all at once.
const QUIET: std::ops::Range<u64> = 100..140;

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum RequestError {
    /// By the network, or refused by the API.
    #[error(transparent)]
    Kube(#[from] kube::Error),
    /// The API reported this within a watch.
    #[error(transparent)]
    Event(Box<Status>),
    /// No answer in time.
    #[error("no answer within {} s", .0.as_secs())]
    Timeout(Duration),
    /// Nothing came in a watch for so long.
    #[error("nothing came for {} s", .0.as_secs())]
    Quiet(Duration),
    /// The connection broke within an answer.
    #[error("the connection broke: {0}")]
    Broken(#[from] io::Error),
    /// Watches end before anything is in them.
    #[error("watches end at once")]
    Ended,
    /// What came is not what the API should send.
    #[error("not an answer of a Kubernetes API: {0}")]
    Undecodable(#[from] serde_json::Error),
}

impl RequestError {
    /// What the API said, where it said anything.
    pub(super) fn status(&self) -> Option<&Status> {
        match self {
            Self::Kube(kube::Error::Api(status)) | Self::Event(status) => Some(status),
            _ => None,
        }
    }

    /// Whether a watch that fails so cannot be resumed: its resourceVersion is too old, or not of
    /// this API's history (after a restored backup), or leads to something that the API cannot tell.
    pub(super) fn ends_resuming(&self) -> bool {
        match self {
            Self::Undecodable(_) | Self::Event(_) => true,
            _ => self.status().is_some_and(|status| match status.code {
                401 | 403 | 429 => false,
                // Of others it says that somebody did not answer in time.
                504 => status.message.contains("resource version"),
                500..=599 => false,
                _ => true,
            }),
        }
    }

    /// How long the API wants to be left alone.
    pub(super) fn retry_after(&self) -> Option<Duration> {
        let status = self.status()?;
        let asked = status.details.as_ref().map(|d| d.retry_after_seconds);
        match asked.filter(|seconds| *seconds > 0) {
            Some(seconds) => Some(Duration::from_secs(seconds.into())),
            // Said in a header only, which is a second wherever API servers send one.
            None => (status.code == 429).then_some(Duration::from_secs(1)),
        }
    }
}

/// Objects of one resource, on the API of one client.
#[derive(Clone)]
pub(super) struct Collection {
    pub client: Client,
    pub resource: Resource,
    /// Which of them.
    pub selection: Selection,
}

/// A page of a list.
#[derive(Debug)]
pub(super) struct Page {
    pub items: Vec<Item>,
    /// Version of the whole list.
    pub version: String,
    /// Asks for the next page.
    pub next: Option<String>,
}

impl Collection {
    /// Lists at most `limit` objects from the beginning or from where `next` says. `body` is room for
    /// the answer: one for all pages of a list, since they are big.
    pub(super) async fn list(
        &self,
        limit: u32,
        next: Option<String>,
        body: &mut Vec<u8>,
    ) -> Result<Page, RequestError> {
        let params = ListParams {
            limit: Some(limit),
            continue_token: next,
            field_selector: self.selection.field_selector(),
            ..ListParams::default()
        };
        let request = Request::new(self.path())
            .list(&params)
            .map_err(kube::Error::BuildRequest)?;
        let read = async {
            body.clear();
            let answer = self.client.request_stream(request).await?;
            Box::pin(answer).read_to_end(body).await?;
            Ok::<_, RequestError>(())
        };
        timeout(PATIENCE, read)
            .await
            .map_err(|_| RequestError::Timeout(PATIENCE))??;
        self.page(body)
    }

    /// Whatever is missing in a list would count as deleted, so nothing else is taken for one: not a
    /// `Status` that somebody in between sends with 200, and not a list of something else.
    fn page(&self, body: &[u8]) -> Result<Page, RequestError> {
        let list: RawList<'_> = serde_json::from_slice(body)?;
        let expected = self.resource.list_kind();
        if list.kind != expected {
            return Err(not_an_answer(format_args!(
                "a {:?} in the place of a {expected}",
                list.kind
            )));
        }
        if list.metadata.resource_version.is_empty() {
            return Err(not_an_answer("a list without resourceVersion"));
        }
        Ok(Page {
            items: list
                .items
                .unwrap_or_default()
                .into_iter()
                .map(|json| decode::decode(self.resource, json))
                .collect::<Result<_, _>>()?,
            version: list.metadata.resource_version,
            next: list.metadata.next.filter(|next| !next.is_empty()),
        })
    }

    /// Watches what happened after `version`, for about `lasting`.
    pub(super) async fn watch(
        &self,
        version: &str,
        lasting: Duration,
    ) -> Result<Watch, RequestError> {
        let params = WatchParams {
            timeout: u32::try_from(lasting.as_secs()).ok(),
            field_selector: self.selection.field_selector(),
            bookmarks: true,
            ..WatchParams::default()
        };
        let request = Request::new(self.path())
            .watch(&params, version)
            .map_err(kube::Error::BuildRequest)?;
        let answer = timeout(PATIENCE, self.client.request_stream(request))
            .await
            .map_err(|_| RequestError::Timeout(PATIENCE))??;
        Ok(Watch {
            resource: self.resource,
            answer: Box::pin(answer),
            line: Vec::new(),
            quiet: Duration::from_secs(fastrand::u64(QUIET)),
        })
    }

    fn path(&self) -> String {
        match &self.selection.namespace {
            Some(namespace) => self.resource.path_in(namespace),
            None => self.resource.path().to_owned(),
        }
    }
}

/// A watch under way.
pub(super) struct Watch {
    resource: Resource,
    answer: Pin<Box<dyn AsyncBufRead + Send>>,
    /// What has arrived of the next line.
    line: Vec<u8>,
    quiet: Duration,
}

/// What a watch tells.
#[derive(Debug)]
pub(super) enum Event {
    /// The object was added or changed.
    Changed(Item),
    /// The object is gone.
    Deleted(Item),
    /// Everything up to this version has been told.
    Bookmark(String),
}

impl Watch {
    /// The next event; `None` at the end. Cancel-safe: a line that has arrived in part is kept.
    pub(super) async fn next(&mut self) -> Result<Option<Event>, RequestError> {
        loop {
            timeout(self.quiet, self.answer.read_until(b'\n', &mut self.line))
                .await
                .map_err(|_| RequestError::Quiet(self.quiet))??;
            if self.line.is_empty() {
                return Ok(None);
            }
            // A line without its end was cut off with the connection.
            if self.line.last() != Some(&b'\n') {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
            let line = std::mem::take(&mut self.line);
            if !line.trim_ascii().is_empty() {
                return self.event(&line).map(Some);
            }
        }
    }

    /// From no version one cannot go on: who asks for that is told of what there is, and not of what is gone.
    fn event(&self, line: &[u8]) -> Result<Event, RequestError> {
        let event: RawEvent<'_> = serde_json::from_slice(line)?;
        let item = || decode::decode(self.resource, event.object);
        let event = match &*event.kind {
            "ADDED" | "MODIFIED" => Event::Changed(item()?),
            "DELETED" => Event::Deleted(item()?),
            // Of a bookmark's object only the version counts, and it has no name.
            "BOOKMARK" => Event::Bookmark(decode::version(event.object)?),
            "ERROR" => {
                let status = serde_json::from_str(event.object.get())?;
                return Err(RequestError::Event(Box::new(status)));
            }
            other => {
                return Err(not_an_answer(format_args!(
                    "a watch event of the unknown type {other:?}"
                )));
            }
        };
        let (Event::Changed(Item { version, .. })
        | Event::Deleted(Item { version, .. })
        | Event::Bookmark(version)) = &event;
        if version.is_empty() {
            return Err(not_an_answer("a watch event without resourceVersion"));
        }
        Ok(event)
    }
}

fn not_an_answer(what: impl std::fmt::Display) -> RequestError {
    RequestError::Undecodable(serde::de::Error::custom(what))
}

#[derive(Deserialize)]
struct RawList<'a> {
    #[serde(borrow)]
    kind: Cow<'a, str>,
    metadata: RawListMetadata,
    /// Always there, though Go writes an empty list as null now and then.
    #[serde(borrow, deserialize_with = "Option::deserialize")]
    items: Option<Vec<&'a RawValue>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawListMetadata {
    #[serde(default)]
    resource_version: String,
    #[serde(rename = "continue")]
    next: Option<String>,
}

#[derive(Deserialize)]
struct RawEvent<'a> {
    #[serde(rename = "type", borrow)]
    kind: Cow<'a, str>,
    #[serde(borrow)]
    object: &'a RawValue,
}
