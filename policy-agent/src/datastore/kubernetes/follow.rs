//! Follows one resource: lists it, watches it from there, and lists it again where the watch cannot be
//! resumed or a sync wants to know what there is.
//!
//! ```text
//!        +-----------------------------------------------+
//!        v                                               | 410 Gone, sync
//! list (pages) --complete--> watch --ended--> watch from the last version --+
//!        ^  failed: wait       ^  failed: wait           |
//!        +---+                 +-------------------------+
//! ```
//!
//! Messages go out in the order of what happened to each object. A list is consistent: it holds all
//! that was there when it was asked for, which is what makes it an answer to a sync.
//!
//! A watch that is silent may be one of which nothing arrives any more, with something in between that
//! keeps the connection: it is opened anew after a while, which loses nothing. And it may be one from a
//! version that the API will not reach for days, having gone back with a restored backup
//! (<https://github.com/kubernetes/kubernetes/issues/107457>): after failures, and when nothing was heard for
//! longer, the API's own version is asked for.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, mpsc, watch};
use tokio::time::{Instant, sleep, sleep_until};

use super::decode::Item;
use super::failure::{Failure, Verb};
use super::request::{Collection, Event, RequestError};
use super::resource::Resource;
use crate::memory;

/// Objects in one page of a list.
const PAGE: u32 = 500;

/// For how long a watch is asked; different each time, so that nodes do not come all at once.
const WATCH: std::ops::Range<u64> = 240..360;

/// A watch that told nothing and ended sooner than this counts as failed.
const SHORT: Duration = Duration::from_secs(1);

/// When nothing was heard for this long, watches may ask for a version that the API has not reached.
pub(super) const UNHEARD: Duration = Duration::from_mins(4);

/// How long a watch of many objects may take to reach a sync by itself before they are listed.
const CATCH_UP: Duration = Duration::from_secs(2);

/// The waits between tries: the first, doubled each time, up to the longest.
const FIRST_WAIT: Duration = Duration::from_millis(250);
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// What a follower tells, and since when it knows.
#[derive(Debug)]
pub(super) struct Notice {
    /// Of what.
    pub resource: Resource,
    /// When the API said so.
    pub received: std::time::Instant,
    /// What.
    pub message: Message,
}

/// What a follower tells, in order.
#[derive(Debug)]
pub(super) enum Message {
    /// A list begins; objects that are not in it are gone once it is complete.
    ListBegins,
    /// Part of the list.
    Page(Vec<Item>),
    /// The list is complete, and answers all syncs up to this one.
    ListComplete(u64),
    /// An object was added or changed.
    Changed(Item),
    /// An object is gone.
    Deleted(Item),
    /// The watch has told everything that there was at this sync and all before it.
    CaughtUp(u64),
    /// The watch was opened; `again` when not for the first time since the list.
    Watching { again: bool },
    /// The API told that it lives.
    Contact,
    /// Neither list nor watch work.
    Failing(Failure),
}

/// The agent has gone.
struct Closed;

/// See the module.
pub(super) struct Follower {
    pub collection: Collection,
    /// This node's object alone, of which a list costs the API next to nothing.
    pub this_node: Collection,
    /// Where messages go.
    pub out: mpsc::Sender<Notice>,
    /// Number of the last sync that was asked for.
    pub sync: watch::Receiver<u64>,
    /// Rings when a request succeeded after a failure: the others need not wait any longer.
    pub recovered: Arc<Notify>,
    /// Last version that was seen.
    version: String,
    /// Objects in the last list.
    listed: usize,
    /// Number of the last sync that was seen to.
    attended: u64,
    /// Failures since the last success.
    failures: u32,
    /// Watches in a row that could not be resumed.
    refused: u32,
    /// Watches in a row that ended at once.
    short: u32,
    /// When the API last told a version.
    heard: Instant,
}

/// A sync that the watch may reach by itself.
struct CatchUp {
    sync: u64,
    version: u64,
    until: Instant,
}

/// What became of a sync.
enum Attended {
    /// The watch had told everything.
    Reached,
    /// The watch will probably soon have told everything.
    Waiting(CatchUp),
    /// Only a list can tell.
    List,
}

/// Why a watch is over.
enum End {
    /// The server ended it, as it does now and then.
    Ended,
    /// The objects have to be listed.
    List,
    /// It failed.
    Failed(RequestError),
}

impl Follower {
    pub(super) fn new(
        collection: Collection,
        this_node: Collection,
        out: mpsc::Sender<Notice>,
        sync: watch::Receiver<u64>,
        recovered: Arc<Notify>,
    ) -> Self {
        Self {
            collection,
            this_node,
            out,
            sync,
            recovered,
            version: String::new(),
            listed: 0,
            attended: 0,
            failures: 0,
            refused: 0,
            short: 0,
            heard: Instant::now(),
        }
    }

    /// Follows until nobody listens any more.
    pub(super) async fn run(mut self) {
        // `Closed` is no error: the agent ends.
        let _closed = self.follow().await;
    }

    async fn follow(&mut self) -> Result<(), Closed> {
        loop {
            while let Err(error) = self.list().await? {
                self.failed(&error, Verb::List).await?;
            }
            let mut again = false;
            loop {
                match self.watch(again).await? {
                    End::Ended => {}
                    End::List => break,
                    End::Failed(error) if error.ends_resuming() => {
                        tracing::debug!(resource = self.resource().name(), %error, "listing again");
                        // Not without a longer and longer pause, should new versions be refused as well.
                        self.refused += 1;
                        if self.refused > 1 {
                            self.failed(&error, Verb::Watch).await?;
                        }
                        break;
                    }
                    End::Failed(error) => self.failed(&error, Verb::Watch).await?,
                }
                again = true;
            }
        }
    }

    fn resource(&self) -> Resource {
        self.collection.resource
    }

    async fn send(&self, message: Message) -> Result<(), Closed> {
        let notice = Notice {
            resource: self.resource(),
            received: std::time::Instant::now(),
            message,
        };
        self.out.send(notice).await.map_err(|_| Closed)
    }

    /// Lists everything. The outer error is the end, the inner one worth another try.
    async fn list(&mut self) -> Result<Result<(), RequestError>, Closed> {
        let sync = *self.sync.borrow();
        self.attended = sync;
        let mut next = None;
        let mut listed = 0;
        let mut body = Vec::new();
        self.send(Message::ListBegins).await?;
        loop {
            let page = match self.collection.list(PAGE, next, &mut body).await {
                Ok(page) => page,
                Err(error) => return Ok(Err(error)),
            };
            listed += page.items.len();
            self.send(Message::Page(page.items)).await?;
            next = page.next;
            if next.is_none() {
                self.version = page.version;
                self.heard = Instant::now();
                self.listed = listed;
                break;
            }
        }
        drop(body);
        if listed > PAGE as usize {
            memory::give_back();
        }
        self.succeeded();
        self.send(Message::ListComplete(sync)).await?;
        Ok(Ok(()))
    }

    /// Watches from the last version.
    async fn watch(&mut self, again: bool) -> Result<End, Closed> {
        let lasting = Duration::from_secs(fastrand::u64(WATCH));
        let mut watch = match self.collection.watch(&self.version, lasting).await {
            Ok(watch) => watch,
            Err(error) => return Ok(End::Failed(error)),
        };
        // After failures it first has to prove itself: watches may begin well and end at once.
        let told = self.failures == 0 && self.refused < 2 && self.short == 0;
        if told {
            self.send(Message::Watching { again }).await?;
        }
        let proof = sleep(SHORT);
        tokio::pin!(proof);
        let doubtful = self.failures > 0 || self.heard.elapsed() >= UNHEARD;
        let mut proven = false;
        let mut catch_up = None;
        loop {
            let event = tokio::select! {
                event = watch.next() => Some(event),
                () = &mut proof, if !proven => None,
                sync = asked(&mut self.sync, self.attended) => {
                    match self.attend(sync?).await? {
                        Attended::Reached => {}
                        Attended::Waiting(waiting) => catch_up = Some(waiting),
                        Attended::List => return Ok(End::List),
                    }
                    continue;
                }
                () = until(catch_up.as_ref()) => return Ok(End::List),
            };
            if !proven && matches!(event, None | Some(Ok(Some(_)))) {
                proven = true;
                (self.refused, self.short) = (0, 0);
                self.succeeded();
                if doubtful && !self.is_of_this_history().await {
                    return Ok(End::List);
                }
                if !told {
                    self.send(Message::Watching { again }).await?;
                }
            }
            let Some(event) = event else { continue };
            let Some(event) = self.event_of(event, proven) else {
                return Ok(End::Ended);
            };
            match event {
                Ok(event) => self.tell(event).await?,
                Err(error) => return Ok(End::Failed(error)),
            }
            if let Some(CatchUp { sync, .. }) =
                catch_up.take_if(|waiting| self.has_reached(waiting.version))
            {
                self.send(Message::CaughtUp(sync)).await?;
            }
        }
    }

    /// What came in a watch, `None` where that is its end. That is how most servers end a watch; if more is
    /// wrong, the next one fails.
    fn event_of(
        &mut self,
        came: Result<Option<Event>, RequestError>,
        proven: bool,
    ) -> Option<Result<Event, RequestError>> {
        match came {
            Ok(Some(event)) => {
                self.heard = Instant::now();
                Some(Ok(event))
            }
            Ok(None) | Err(RequestError::Broken(_)) => {
                self.short += u32::from(!proven);
                (self.short > 1).then_some(Err(RequestError::Ended))
            }
            Err(RequestError::Quiet(quiet)) => {
                tracing::debug!(resource = self.resource().name(), ?quiet, "watching anew");
                None
            }
            Err(error) => Some(Err(error)),
        }
    }

    /// Whether the API has reached the last version that was seen. It counts versions for all resources
    /// together, unless some are kept apart, so the resource itself has the last word.
    async fn is_of_this_history(&mut self) -> bool {
        self.heard = Instant::now();
        if self.is_reached_by(&self.this_node).await == Some(true)
            || self.is_reached_by(&self.collection).await != Some(false)
        {
            return true;
        }
        tracing::warn!(
            resource = self.resource().name(),
            version = self.version,
            "the Kubernetes API went back in its history, as after a restored backup; listing everything"
        );
        false
    }

    /// Whether the version of `collection` is that of the last watch or later; `None` where it cannot be told.
    async fn is_reached_by(&self, collection: &Collection) -> Option<bool> {
        let page = collection.list(1, None, &mut Vec::new()).await.ok()?;
        let (now, seen) = (page.version.parse::<u64>(), self.version.parse::<u64>());
        Some(seen.ok()? <= now.ok()?)
    }

    async fn tell(&mut self, event: Event) -> Result<(), Closed> {
        match event {
            Event::Changed(item) => {
                self.version.clone_from(&item.version);
                self.send(Message::Changed(item)).await
            }
            Event::Deleted(item) => {
                self.version.clone_from(&item.version);
                self.send(Message::Deleted(item)).await
            }
            Event::Bookmark(version) => {
                self.version = version;
                self.send(Message::Contact).await
            }
        }
    }

    /// Sees to a sync.
    ///
    /// A list is an exact answer. Where it is long, the API's version is asked for first: a watch of
    /// many objects soon comes past it, if it is not there already.
    async fn attend(&mut self, sync: u64) -> Result<Attended, Closed> {
        if self.listed <= PAGE as usize {
            return Ok(Attended::List);
        }
        let version = match self.collection.list(1, None, &mut Vec::new()).await {
            Ok(page) => page.version.parse().ok(),
            Err(_) => None,
        };
        let Some(version) = version else {
            return Ok(Attended::List);
        };
        self.attended = sync;
        if self.has_reached(version) {
            self.send(Message::CaughtUp(sync)).await?;
            return Ok(Attended::Reached);
        }
        Ok(Attended::Waiting(CatchUp {
            sync,
            version,
            until: Instant::now() + CATCH_UP,
        }))
    }

    /// Whether everything up to `version` was told. Versions are numbers that grow
    /// (<https://kubernetes.io/docs/reference/using-api/api-concepts/#resource-versions>).
    fn has_reached(&self, version: u64) -> bool {
        self.version
            .parse::<u64>()
            .is_ok_and(|reached| reached >= version)
    }

    /// The API answered as it should.
    fn succeeded(&mut self) {
        if std::mem::take(&mut self.failures) > 0 {
            self.recovered.notify_waiters();
        }
    }

    /// Tells of a failure and waits before the next try: longer each time, and cut short by a sync or
    /// by another follower's success.
    async fn failed(&mut self, error: &RequestError, verb: Verb) -> Result<(), Closed> {
        let recovered = self.recovered.clone();
        let recovered = recovered.notified();
        self.failures += 1;
        let failure = Failure::new(error, self.resource(), verb);
        tracing::debug!(resource = self.resource().name(), failures = self.failures, %error, "failing");
        self.send(Message::Failing(failure)).await?;
        let asked_for = *self.sync.borrow();
        let wait = wait(self.failures.max(self.refused.saturating_sub(1)));
        // What the API itself asks for is not cut short.
        let at_least = error.retry_after().unwrap_or_default().min(LONGEST_WAIT);
        tokio::select! {
            () = sleep(at_least) => {}
            () = self.out.closed() => return Err(Closed),
        }
        tokio::select! {
            () = sleep(wait) => {}
            () = recovered => {}
            sync = asked(&mut self.sync, asked_for) => {
                sync?;
            }
            () = self.out.closed() => return Err(Closed),
        }
        Ok(())
    }
}

/// Waits for a sync after number `last`.
async fn asked(sync: &mut watch::Receiver<u64>, last: u64) -> Result<u64, Closed> {
    match sync.wait_for(|sync| *sync > last).await {
        Ok(sync) => Ok(*sync),
        Err(_) => Err(Closed),
    }
}

async fn until(waiting: Option<&CatchUp>) {
    match waiting {
        Some(waiting) => sleep_until(waiting.until).await,
        None => std::future::pending().await,
    }
}

/// The wait after so many failures, between half of it and all of it.
fn wait(failures: u32) -> Duration {
    let doublings = failures.saturating_sub(1).min(16);
    let whole = FIRST_WAIT.saturating_mul(1 << doublings).min(LONGEST_WAIT);
    whole.mul_f64(0.5 + fastrand::f64() / 2.0)
}
