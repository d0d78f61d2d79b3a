//! One running watch: the lines of its body, one after the other.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::Stream;
use futures_util::stream;
use hyper::body::Frame;
use serde_json::json;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::filter::Filter;
use super::object::Object;
use super::shared::{Shared, Signals};
use super::store::{Event, Kind};
use super::{Failure, Resource};

/// What a client asked for.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) resource: Resource,
    pub(super) filter: Filter,
    /// The version to go on from, or that has at least to be reached where `initial` is set.
    pub(super) from: Option<u64>,
    /// Whether what is there now is sent first.
    pub(super) initial: bool,
    /// Whether the end of that is to be marked, as `sendInitialEvents` asks for.
    pub(super) mark_initial: bool,
    pub(super) bookmarks: bool,
    pub(super) timeout: Option<Duration>,
}

/// A running watch.
#[derive(Debug)]
pub(super) struct Watcher {
    shared: Arc<Shared>,
    request: Request,
    signals: watch::Receiver<Signals>,
    /// Watches drop, or send a bookmark, when these counts move on.
    seen: Signals,
    /// All events up to this version are sent or in `lines`.
    version: u64,
    lines: VecDeque<Bytes>,
    next_bookmark: Instant,
    deadline: Option<Instant>,
    ended: bool,
}

impl Watcher {
    /// Begins.
    ///
    /// # Errors
    ///
    /// When the version is too old, or yet to come.
    pub(super) fn begin(shared: &Arc<Shared>, request: Request) -> Result<Self, Failure> {
        // Subscribed first, so that nothing is missed in between.
        let signals = shared.subscribe();
        let seen = *signals.borrow();
        let mut lines = VecDeque::new();
        let store = shared.store();
        let version = match request.from {
            Some(version) if !request.initial => {
                store.check_start(request.resource, version)?;
                version
            }
            at_least => {
                store.check_reached(at_least.unwrap_or(0))?;
                store.version()
            }
        };
        if request.initial {
            let objects = store.list(request.resource, "");
            let wanted = objects
                .iter()
                .filter(|object| request.filter.matches(object));
            lines.extend(wanted.map(|object| Kind::Added.line(object)));
            if request.mark_initial {
                lines.push_back(bookmark(request.resource, version, true));
            }
        }
        drop(store);
        shared.count(request.resource, |served| {
            served.watches += 1;
            served.watching += 1;
        });
        Ok(Self {
            next_bookmark: Instant::now() + shared.bookmark_every,
            deadline: request.timeout.map(|timeout| Instant::now() + timeout),
            shared: shared.clone(),
            request,
            signals,
            seen,
            version,
            lines,
            ended: false,
        })
    }

    /// The body of the answer.
    pub(super) fn into_frames(self) -> impl Stream<Item = io::Result<Frame<Bytes>>> {
        stream::unfold(self, |mut watcher| async {
            let line = watcher.next().await?;
            Some((line.map(Frame::data), watcher))
        })
    }

    /// The next line; none at the regular end, an error to cut the connection.
    async fn next(&mut self) -> Option<io::Result<Bytes>> {
        loop {
            let signals = *self.signals.borrow_and_update();
            if signals.drops != self.seen.drops && !self.ended {
                self.ended = true;
                return Some(Err(io::ErrorKind::ConnectionReset.into()));
            }
            if let Some(line) = self.lines.pop_front() {
                return Some(Ok(line));
            }
            if self.ended {
                return None;
            }
            let next_due = self.collect();
            if !self.lines.is_empty() {
                continue;
            }
            if signals.bookmarks != self.seen.bookmarks {
                self.seen.bookmarks = signals.bookmarks;
                self.bookmark();
                continue;
            }
            tokio::select! {
                // The sender lives as long as `shared`.
                _ = self.signals.changed() => {}
                () = until(next_due) => {}
                () = sleep_until(self.next_bookmark) => self.bookmark(),
                () = until(self.deadline) => {
                    self.bookmark();
                    self.ended = true;
                }
            }
        }
    }

    /// Takes over the events that are due, and says when the next one will be.
    fn collect(&mut self) -> Option<Instant> {
        let delay = self.shared.treatment().delay;
        let mut due = Vec::new();
        let mut next_due = None;
        let outcome = {
            let store = self.shared.store();
            match store.events_after(self.request.resource, self.version) {
                Ok(events) => {
                    let now = Instant::now();
                    for event in events {
                        let at = Instant::from_std(event.at) + delay;
                        if at > now {
                            next_due = Some(at);
                            break;
                        }
                        due.push(event.clone());
                    }
                    Ok(store.version())
                }
                Err(failure) => Err(failure),
            }
        };
        match outcome {
            Ok(now) if next_due.is_none() => self.version = now,
            Ok(_) => {
                if let Some(last) = due.last() {
                    self.version = last.object.version;
                }
            }
            Err(failure) => {
                self.lines.push_back(error_line(&failure));
                self.ended = true;
            }
        }
        for event in due {
            self.lines.extend(line(&self.request.filter, &event));
        }
        next_due
    }

    fn bookmark(&mut self) {
        self.next_bookmark = Instant::now() + self.shared.bookmark_every;
        if self.request.bookmarks {
            let line = bookmark(self.request.resource, self.version, false);
            self.lines.push_back(line);
        }
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        let resource = self.request.resource;
        self.shared.count(resource, |served| served.watching -= 1);
    }
}

/// What a watch with this filter is told of an event.
fn line(filter: &Filter, event: &Event) -> Option<Bytes> {
    let previous = event.previous.as_deref();
    let before = previous.is_some_and(|previous| filter.matches(previous));
    let now = event.kind != Kind::Deleted && filter.matches(&event.object);
    match (before, now) {
        (false, false) => None,
        (false, true) if event.kind == Kind::Modified => Some(Kind::Added.line(&event.object)),
        (true, false) if event.kind == Kind::Modified => {
            // It is gone as far as this watch is concerned: as it was last, at the version of now.
            let last = previous?.value.clone();
            let object = Object::new(event.object.resource, last, event.object.version);
            Some(Kind::Deleted.line(&object))
        }
        _ => Some(event.line.clone()),
    }
}

/// A line that says no more than how far the watch has come.
fn bookmark(resource: Resource, version: u64, ends_initial: bool) -> Bytes {
    let mut metadata = json!({"resourceVersion": version.to_string(), "creationTimestamp": null});
    if ends_initial {
        metadata["annotations"] = json!({"k8s.io/initial-events-end": "true"});
    }
    let object = json!({
        "kind": resource.kind(), "apiVersion": resource.api_version(), "metadata": metadata,
    });
    format!("{}\n", json!({"type": "BOOKMARK", "object": object})).into()
}

/// A line that ends a watch with an error.
pub(super) fn error_line(failure: &Failure) -> Bytes {
    format!("{}\n", json!({"type": "ERROR", "object": failure.status()})).into()
}

async fn until(instant: Option<Instant>) {
    match instant {
        Some(instant) => sleep_until(instant).await,
        None => std::future::pending().await,
    }
}
