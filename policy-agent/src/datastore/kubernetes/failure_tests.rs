//! What the follower makes of failures: what it asks for next and when, what it says, and what it leaves in
//! force.

use std::io::Write;
use std::sync::Mutex;
use std::time::Duration;

use serde_json::json;
use tokio::time::Instant;

use super::fake_api::{Asked, FakeApi, status};
use super::follow::UNHEARD;
use super::tests::{
    NODES, PODS, POLICIES, changes, gathered, loaded, next, node, pod, report, start, state,
};
use super::*;
use crate::datastore::{SyncToken, Update, WatchState};

#[tokio::test(start_paused = true)]
async fn versions_that_are_always_too_old_are_not_asked_for_without_a_pause() {
    let (mut api, mut datastore, watch) = loaded(&[]).await;
    watch.event("ERROR", &status(410, "Expired", "too old"));
    api.next(PODS).await.list("20", &[]);
    api.next(PODS).await.status(410, "Expired", "too old");
    report(&mut datastore, |_, api| {
        matches!(state(api, PODS), WatchState::Failing(_))
    })
    .await;
    api.next(PODS).await.list("21", &[]);
}

#[tokio::test(start_paused = true)]
async fn watches_that_are_always_refused_are_said_once_and_asked_for_ever_more_seldom() {
    let (lines, _log) = Lines::of_this_thread();
    let (mut api, mut datastore, watch) = loaded(&[pod("a", 1, "10.0.0.1")]).await;
    drop(watch);
    let begin = Instant::now();
    for round in 0..10 {
        let watch = api.next(PODS).await;
        if round % 2 == 0 {
            watch.status(410, "Expired", "too old");
        } else {
            let watch = watch.watching();
            watch.event("ERROR", &status(410, "Expired", "too old"));
        }
        let list = api.next(PODS).await;
        assert!(!list.is_watch());
        list.list("20", &[pod("a", 1, "10.0.0.1")]);
    }
    let waited = begin.elapsed();
    assert!(waited > Duration::from_secs(15), "{waited:?}");
    assert_eq!(
        (lines.count("cannot read"), lines.count("again\"")),
        (1, 0),
        "{}",
        lines.text()
    );
    let _watch = api.next(PODS).await.watching();
    report(&mut datastore, |_, api| {
        *state(api, PODS) == WatchState::Watching
    })
    .await;
    assert_eq!(
        lines.count("can be read from the Kubernetes API again"),
        1,
        "{}",
        lines.text()
    );
}

#[tokio::test(start_paused = true)]
async fn watches_that_begin_well_and_end_at_once_are_said_once() {
    let (lines, _log) = Lines::of_this_thread();
    let (mut api, mut datastore, watch) = loaded(&[]).await;
    drop(watch);
    for _ in 0..8 {
        drop(api.next(PODS).await.watching());
    }
    let watch = api.next(PODS).await.watching();
    assert_eq!(
        (lines.count("is away"), lines.count("is back")),
        (1, 0),
        "{}",
        lines.text()
    );
    watch.bookmark("30");
    report(&mut datastore, |_, api| {
        *state(api, PODS) == WatchState::Watching
    })
    .await;
    assert_eq!(lines.count("is back"), 1, "{}", lines.text());
}

#[tokio::test(start_paused = true)]
async fn what_is_no_list_deletes_nothing() {
    let (mut api, mut datastore, watch) = loaded(&[pod("a", 1, "10.0.0.1")]).await;
    watch.event("ERROR", &status(410, "Expired", "too old"));
    let version = json!({"resourceVersion": "20"});
    let answers = [
        json!({"kind": "Status", "metadata": {}, "status": "Failure", "code": 502}),
        json!({"metadata": version, "items": []}),
        json!({"kind": "PodList", "metadata": version}),
        json!({"kind": "PodList", "metadata": {}, "items": []}),
        json!({"kind": "NamespaceList", "metadata": version, "items": []}),
    ];
    for answer in answers {
        let list = api.next(PODS).await;
        assert!(!list.is_watch(), "after {answer}");
        list.ok(&answer);
    }
    let now = report(&mut datastore, |_, api| {
        matches!(state(api, PODS), WatchState::Failing(_))
    })
    .await;
    let failures = now.api.as_ref().expect("api").failures().join("; ");
    assert!(
        failures.contains("not an answer of a Kubernetes API"),
        "{failures}"
    );
    // Go writes a list of nothing in both ways.
    let list = api.next(PODS).await;
    assert!(!list.is_watch(), "each was refused");
    list.ok(&json!({"kind": "PodList", "metadata": version, "items": null}));
    assert_eq!(changes(&mut datastore).await, ["-Pod ns/a"]);
}

#[tokio::test(start_paused = true)]
async fn what_is_no_event_ends_the_watch() {
    let mut unversioned = pod("a", 12, "10.0.0.1");
    unversioned["metadata"]["resourceVersion"] = json!("");
    let rows = [
        ("MODIFIED", unversioned),
        ("BOOKMARK", json!({"metadata": {}})),
        ("REPLACED", pod("a", 12, "10.0.0.1")),
        ("ADDED", json!({"kind": "Status"})),
    ];
    for (kind, object) in rows {
        let (mut api, _datastore, watch) = loaded(&[pod("a", 1, "10.0.0.1")]).await;
        watch.event(kind, &object);
        assert!(!api.next(PODS).await.is_watch(), "{kind} {object}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_watch_of_which_nothing_comes_is_opened_anew() {
    let (mut api, mut datastore, _silent) = loaded(&[]).await;
    let begin = Instant::now();
    let again = api.next(PODS).await;
    assert!(
        begin.elapsed() < Duration::from_mins(3),
        "not only when the watch was to end"
    );
    assert_eq!(again.parameter("resourceVersion"), Some("10"));
    let watch = again.watching();
    watch.event("ADDED", &pod("a", 12, "10.0.0.1"));
    assert_eq!(changes(&mut datastore).await, ["+Pod ns/a [10.0.0.1]"]);
    let now = report(&mut datastore, |_, _| true).await;
    assert!(now.api.as_ref().expect("api").failures().is_empty());
}

/// Answers requests for pods' watches with silent ones, and those for the node's version with `version`,
/// until pods are listed.
async fn until_listed(api: &mut FakeApi, version: &str) -> Asked {
    let mut watches = Vec::new();
    loop {
        let asked = api.next_of(&[PODS, NODES]).await;
        if asked.is_watch() {
            watches.push(asked.watching());
        } else if asked.resource == NODES {
            asked.list(version, &[node()]);
        } else {
            return asked;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_api_that_went_back_in_its_history_is_listed() {
    for after_a_failure in [true, false] {
        let (mut api, mut datastore) = start(&[PODS, NODES]);
        let watch = api.load(PODS, &[pod("a", 1, "10.0.0.1")]).await;
        let _node = api.load(NODES, &[node()]).await;
        while !matches!(next(&mut datastore).await, Update::Loaded) {}
        if after_a_failure {
            drop(watch);
            drop(api.next(PODS).await);
        }
        let begin = Instant::now();
        let probe = until_listed(&mut api, "9").await;
        assert_eq!(probe.parameter("limit"), Some("1"));
        assert_eq!(begin.elapsed() < UNHEARD, after_a_failure);
        // Kept apart, and where it was: the watch is right to be silent.
        probe.page("10", &[pod("a", 1, "10.0.0.1")], "more");
        let probe = until_listed(&mut api, "9").await;
        assert_eq!(probe.parameter("limit"), Some("1"));
        probe.page("9", &[pod("a", 1, "10.0.0.1")], "more");
        let list = until_listed(&mut api, "9").await;
        assert_ne!(list.parameter("limit"), Some("1"));
        list.list("9", &[pod("b", 2, "10.0.0.2")]);
        assert_eq!(
            gathered(&mut datastore, 2).await,
            ["+Pod ns/b [10.0.0.2]", "-Pod ns/a"]
        );
    }
}

#[tokio::test(start_paused = true)]
async fn the_api_is_left_alone_for_as_long_as_it_asks() {
    let (mut api, mut datastore, watch) = loaded(&[]).await;
    drop(watch);
    let begin = Instant::now();
    // Said in a header that is not seen here.
    api.next(PODS).await.status(429, "", "Too many requests");
    let again = api.next(PODS).await;
    assert!(begin.elapsed() >= Duration::from_secs(1));
    let mut busy = status(429, "TooManyRequests", "storage is (re)initializing");
    busy["details"] = json!({"retryAfterSeconds": 7});
    again.refuse(&busy);
    // Not even a sync goes before that.
    datastore.sync.send(SyncToken(1)).await.expect("runs");
    let again = api.next(PODS).await;
    assert!(begin.elapsed() >= Duration::from_secs(8));
    assert!(again.is_watch());
    let now = report(&mut datastore, |_, _| true).await;
    let failed = now.api.as_ref().expect("api").failed.clone();
    assert!(failed.contains(&("unavailable", 2)), "{failed:?}");
}

#[tokio::test(start_paused = true)]
async fn what_a_watch_cannot_go_on_from_is_listed_and_nothing_else() {
    let (mut api, _datastore, watch) = loaded(&[]).await;
    drop(watch);
    // Somebody in between gave up.
    api.next(PODS)
        .await
        .status(504, "Timeout", "upstream request timeout");
    let again = api.next(PODS).await;
    assert!(again.is_watch());
    again.status(504, "Timeout", "Too large resource version: 10, current: 5");
    let list = api.next(PODS).await;
    assert!(!list.is_watch());
    list.list("5", &[]);
    let watch = api.next(PODS).await.watching();
    watch.bookmark("6");
    let undecodable = "unable to decode an object in the watch stream";
    watch.event("ERROR", &status(500, "InternalError", undecodable));
    assert!(!api.next(PODS).await.is_watch());
}

#[tokio::test(start_paused = true)]
async fn a_resource_that_is_forbidden_is_named_and_nothing_is_loaded() {
    let (mut api, mut datastore) = start(&[PODS]);
    let message = "pods is forbidden: User \"u\" cannot list resource \"pods\"";
    for _ in 0..3 {
        api.next(PODS).await.status(403, "Forbidden", message);
    }
    let now = report(&mut datastore, |_, api| {
        matches!(state(api, PODS), WatchState::Failing(_))
            && state(api, POLICIES) == &WatchState::Watching
    })
    .await;
    assert!(!now.loaded);
    let api_report = now.api.as_ref().expect("api");
    assert_eq!(api_report.outage, None, "only one resource fails");
    let WatchState::Failing(outage) = state(api_report, PODS) else {
        panic!("{api_report:?}")
    };
    for part in [
        "not allowed to list pods (403",
        message,
        "verb \"list\" on \"pods\"",
    ] {
        assert!(outage.reason.contains(part), "{}", outage.reason);
    }
    api.load(PODS, &[]).await;
    assert!(matches!(next(&mut datastore).await, Update::Loaded));
}

/// Log lines of this thread.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("lock").write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Lines {
    /// What is logged from now on, until the guard goes.
    fn of_this_thread() -> (Self, tracing::subscriber::DefaultGuard) {
        // Tests beside this one have no log: what they meet first would count as not logged for all threads.
        let everyone = tracing_subscriber::fmt()
            .with_writer(std::io::sink)
            .finish();
        let _one_is_enough = tracing::subscriber::set_global_default(everyone);
        let lines = Self::default();
        let written = lines.clone();
        let log = tracing_subscriber::fmt()
            .with_writer(move || written.clone())
            .with_ansi(false)
            .finish();
        (lines, tracing::subscriber::set_default(log))
    }

    fn text(&self) -> String {
        String::from_utf8(self.0.lock().expect("lock").clone()).expect("UTF-8")
    }

    fn count(&self, words: &str) -> usize {
        let text = self.text();
        text.lines().filter(|line| line.contains(words)).count()
    }
}

#[tokio::test(start_paused = true)]
async fn an_api_that_goes_away_is_said_once_and_that_it_is_back_once() {
    let (lines, _log) = Lines::of_this_thread();
    let (mut api, mut datastore) = start(&[PODS, POLICIES]);
    let pods = api.load(PODS, &[]).await;
    let policies = api.load(POLICIES, &[]).await;
    assert!(matches!(next(&mut datastore).await, Update::Loaded));
    pods.break_off();
    drop(policies);
    for _ in 0..5 {
        // Dropped: the connection is refused.
        drop(api.next(PODS).await);
        drop(api.next(POLICIES).await);
    }
    let now = report(&mut datastore, |_, api| api.outage.is_some()).await;
    let reason = &now
        .api
        .as_ref()
        .and_then(|api| api.outage.as_ref())
        .expect("outage")
        .reason;
    assert!(
        reason.starts_with("connection refused: nothing listens there"),
        "{reason}"
    );
    // Both resume from where they were, and nothing is gone.
    let resumed = api.next(PODS).await;
    assert_eq!(resumed.parameter("resourceVersion"), Some("10"));
    let pods = resumed.watching();
    let _policies = api.next(POLICIES).await.watching();
    report(&mut datastore, |_, api| {
        api.outage.is_none()
            && [PODS, POLICIES]
                .iter()
                .all(|r| *state(api, *r) == WatchState::Watching)
    })
    .await;
    pods.event("ADDED", &pod("a", 20, "10.0.0.1"));
    assert_eq!(changes(&mut datastore).await, ["+Pod ns/a [10.0.0.1]"]);
    assert_eq!(
        (
            lines.count("is away"),
            lines.count("is back"),
            lines.count("")
        ),
        (1, 1, 2),
        "{}",
        lines.text()
    );
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_lasts_ends_the_failures_before_it() {
    let (mut api, mut datastore, watch) = loaded(&[]).await;
    drop(watch);
    for _ in 0..10 {
        drop(api.next(PODS).await);
    }
    let watch = api.next(PODS).await.watching();
    report(&mut datastore, |_, api| {
        *state(api, PODS) == WatchState::Watching
    })
    .await;
    drop(watch);
    drop(api.next(PODS).await);
    let begin = Instant::now();
    drop(api.next(PODS).await);
    let waited = begin.elapsed();
    assert!(waited < Duration::from_secs(1), "{waited:?}");
}

#[tokio::test(start_paused = true)]
async fn failures_that_alternate_are_each_said_once() {
    let (lines, _log) = Lines::of_this_thread();
    let (mut api, mut datastore, watch) = loaded(&[]).await;
    drop(watch);
    for _ in 0..5 {
        api.next(PODS).await.status(503, "ServiceUnavailable", "no");
        drop(api.next(PODS).await);
    }
    let _watch = api.next(PODS).await.watching();
    report(&mut datastore, |_, api| {
        *state(api, PODS) == WatchState::Watching
    })
    .await;
    assert_eq!(
        (lines.count("is away"), lines.count("is back")),
        (2, 1),
        "{}",
        lines.text()
    );
}
