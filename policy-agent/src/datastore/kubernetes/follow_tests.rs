use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::timeout;

use super::fake_api::{FakeApi, Watching, status};
use super::*;
use crate::datastore::convert;
use crate::datastore::{
    ApiReport, NodePresence, Object, ObjectChange, Report, SyncToken, Update, WatchState,
};

pub(super) const PODS: Resource = Resource::Pods;
pub(super) const POLICIES: Resource = Resource::NetworkPolicies;
const NAMESPACES: Resource = Resource::Namespaces;
const SERVICES: Resource = Resource::Services;
pub(super) const NODES: Resource = Resource::Nodes;

pub(super) fn pod(name: &str, version: u32, address: &str) -> Value {
    json!({
        "metadata": {"namespace": "ns", "name": name, "uid": name, "resourceVersion": version.to_string(),
                     "managedFields": [{"manager": "kubelet"}]},
        "spec": {"nodeName": "n1", "containers": [{"name": "c", "image": "i"}]},
        "status": {"phase": "Running", "podIPs": [{"ip": address}]},
    })
}

fn policy(name: &str, version: u32, spec: &Value) -> Value {
    json!({
        "metadata": {"namespace": "ns", "name": name, "resourceVersion": version.to_string()},
        "spec": spec,
    })
}

fn namespace(name: &str, version: u32) -> Value {
    json!({"metadata": {"name": name, "resourceVersion": version.to_string()}})
}

fn service(name: &str, version: u32, spec: &Value) -> Value {
    json!({
        "metadata": {"namespace": "ns", "name": name, "resourceVersion": version.to_string()},
        "spec": spec,
        "status": {"loadBalancer": {}},
    })
}

pub(super) fn node() -> Value {
    json!({"metadata": {"name": "n1", "resourceVersion": "3"}, "status": {"conditions": []}})
}

/// A running datastore and its API, with the resources that a test does not name left alone.
pub(super) fn start(followed: &[Resource]) -> (FakeApi, Datastore) {
    let (mut api, client) = FakeApi::new();
    for resource in Resource::ALL {
        if !followed.contains(&resource) {
            let items = if resource == NODES {
                vec![node()]
            } else {
                Vec::new()
            };
            api.leave_alone(resource, items);
        }
    }
    let datastore = super::start(
        client,
        "Kubernetes API https://api (test)".to_owned(),
        "n1".into(),
    );
    (api, datastore)
}

/// A datastore that has loaded these pods, and the watch of pods.
pub(super) async fn loaded(pods: &[Value]) -> (FakeApi, Datastore, Watching) {
    let (mut api, mut datastore) = start(&[PODS]);
    let watch = api.load(PODS, pods).await;
    loop {
        if matches!(next(&mut datastore).await, Update::Loaded) {
            return (api, datastore, watch);
        }
    }
}

pub(super) async fn next(datastore: &mut Datastore) -> Update {
    datastore.updates.recv().await.expect("the datastore runs")
}

/// What the next update changes, in words.
pub(super) async fn changes(datastore: &mut Datastore) -> Vec<String> {
    match next(datastore).await {
        Update::Changes { changes, .. } => words(changes),
        other => panic!("{other:?}"),
    }
}

/// `count` changes, however many updates they came in.
pub(super) async fn gathered(datastore: &mut Datastore, count: usize) -> Vec<String> {
    let mut all = Vec::new();
    while all.len() < count {
        all.extend(changes(datastore).await);
    }
    all
}

fn words(changes: Vec<ObjectChange>) -> Vec<String> {
    let mut words: Vec<_> = changes
        .into_iter()
        .map(|change| match change {
            ObjectChange::Upsert(object) => match &object {
                Object::Pod(convert::PodObject::Pod { pod, .. }) => {
                    format!("+{} {:?}", object.key(), pod.addresses)
                }
                Object::Policy(policy) => {
                    let rules = policy.ingress.as_deref().unwrap_or_default();
                    format!("+{} {rules:?}", object.key())
                }
                Object::Service(service) => {
                    format!("+{} {:?}", object.key(), service.addresses)
                }
                _ => format!("+{}", object.key()),
            },
            ObjectChange::Gone(key) => format!("-{key}"),
        })
        .collect();
    words.sort();
    words
}

/// The report once it is as `condition` wants it.
pub(super) async fn report(
    datastore: &mut Datastore,
    condition: impl Fn(&Report, &ApiReport) -> bool,
) -> Arc<Report> {
    let report = datastore.report.wait_for(|report| {
        report
            .api
            .as_ref()
            .is_some_and(|api| condition(report, api))
    });
    report.await.expect("the datastore runs").clone()
}

pub(super) fn state(api: &ApiReport, resource: Resource) -> &WatchState {
    &api.resources[resource as usize].state
}

/// Nothing more comes, however long one waits.
async fn assert_silent(datastore: &mut Datastore) {
    let more = timeout(Duration::from_secs(20), datastore.updates.recv()).await;
    assert!(more.is_err(), "{more:?}");
}

#[tokio::test(start_paused = true)]
async fn nothing_is_loaded_before_everything_is_listed() {
    let (mut api, mut datastore) = start(&[PODS, POLICIES, NAMESPACES, SERVICES]);
    let first = api.next(PODS).await;
    assert_eq!(first.parameter("limit"), Some("500"));
    assert_eq!(
        first.parameter("resourceVersion"),
        None,
        "a consistent list"
    );
    first.page(
        "7",
        &[pod("a", 1, "10.0.0.1"), pod("b", 2, "10.0.0.2")],
        "more",
    );
    assert_eq!(
        changes(&mut datastore).await,
        ["+Pod ns/a [10.0.0.1]", "+Pod ns/b [10.0.0.2]"]
    );
    let second = api.next(PODS).await;
    assert_eq!(second.parameter("continue"), Some("more"));
    second.list("7", &[pod("c", 3, "10.0.0.3")]);
    let watch = api.next(PODS).await;
    assert_eq!(watch.parameter("resourceVersion"), Some("7"));
    assert_eq!(changes(&mut datastore).await, ["+Pod ns/c [10.0.0.3]"]);
    let _services = api.load(SERVICES, &[]).await;
    let _policies = api
        .load(POLICIES, &[policy("p", 4, &json!({"podSelector": {}}))])
        .await;
    assert_eq!(changes(&mut datastore).await, ["+NetworkPolicy ns/p []"]);
    assert_silent(&mut datastore).await;
    let _namespaces = api.load(NAMESPACES, &[namespace("ns", 5)]).await;
    assert_eq!(changes(&mut datastore).await, ["+Namespace ns"]);
    assert!(matches!(next(&mut datastore).await, Update::Loaded));
    let now = report(&mut datastore, |report, _| report.loaded).await;
    assert_eq!((now.objects, now.problems.len()), (5, 0));
}

#[tokio::test(start_paused = true)]
async fn a_pod_of_another_node_waits_for_its_namespace() {
    let (mut api, mut datastore) = start(&[PODS, NAMESPACES]);
    let elsewhere = |name: &str, version, address: &str| {
        let mut pod = pod(name, version, address);
        pod["spec"]["nodeName"] = json!("n2");
        pod
    };
    let pods = api.load(PODS, &[elsewhere("first", 1, "10.0.0.1")]).await;
    assert_eq!(
        gathered(&mut datastore, 1).await,
        ["+Pod ns/first [10.0.0.1]"]
    );
    let namespaces = api.load(NAMESPACES, &[namespace("ns", 2)]).await;
    gathered(&mut datastore, 1).await;
    assert!(matches!(next(&mut datastore).await, Update::Loaded));
    let of_new = |mut pod: Value| {
        pod["metadata"]["namespace"] = json!("new");
        pod
    };
    for pod in [
        elsewhere("a", 11, "10.0.0.2"),
        elsewhere("a", 12, "10.0.0.3"),
        elsewhere("b", 13, "10.0.0.4"),
        pod("local", 14, "10.0.0.5"),
    ] {
        pods.event("MODIFIED", &of_new(pod));
    }
    pods.event("DELETED", &of_new(elsewhere("b", 15, "10.0.0.4")));
    let mut first = Vec::new();
    while !first.contains(&"+Pod new/local [10.0.0.5]".to_owned()) {
        first.extend(changes(&mut datastore).await);
    }
    assert!(
        first.iter().all(|change| !change.starts_with("+Pod new/a")),
        "{first:?}"
    );
    namespaces.event("ADDED", &namespace("new", 16));
    let mut second = Vec::new();
    while second.len() < 2 || !second.contains(&"+Namespace new".to_owned()) {
        let more = changes(&mut datastore).await;
        second.extend(more.into_iter().filter(|change| change.starts_with('+')));
    }
    assert_eq!(second, ["+Namespace new", "+Pod new/a [10.0.0.3]"]);
}

#[tokio::test(start_paused = true)]
async fn of_a_service_only_its_addresses_count() {
    let (mut api, mut datastore) = start(&[SERVICES]);
    let dns =
        json!({"clusterIP": "10.96.0.10", "clusterIPs": ["10.96.0.10"], "ports": [{"port": 53}]});
    let headless = json!({"clusterIP": "None", "clusterIPs": ["None"]});
    let items = [service("dns", 1, &dns), service("db", 2, &headless)];
    let watch = api.load(SERVICES, &items).await;
    assert_eq!(
        gathered(&mut datastore, 2).await,
        ["+Service ns/db {}", "+Service ns/dns {10.96.0.10}"]
    );
    while !matches!(next(&mut datastore).await, Update::Loaded) {}
    let other_ports = json!({"clusterIP": "10.96.0.10", "ports": [{"port": 54}]});
    watch.event("MODIFIED", &service("dns", 11, &other_ports));
    assert_silent(&mut datastore).await;
    let broken = json!({"clusterIP": "10.96.0"});
    watch.event("MODIFIED", &service("dns", 12, &broken));
    let now = report(&mut datastore, |report, _| !report.problems.is_empty()).await;
    assert_eq!(
        now.problems[0].to_string(),
        "Kubernetes API: Service ns/dns: spec.clusterIP: \"10.96.0\" is not an IP address"
    );
    let external = json!({"clusterIP": "10.96.0.10", "externalIPs": ["192.0.2.1"]});
    watch.event("MODIFIED", &service("dns", 13, &external));
    assert_eq!(
        changes(&mut datastore).await,
        ["+Service ns/dns {10.96.0.10, 192.0.2.1}"]
    );
    watch.event("DELETED", &service("dns", 14, &external));
    assert_eq!(changes(&mut datastore).await, ["-Service ns/dns"]);
}

#[tokio::test(start_paused = true)]
async fn a_list_that_breaks_off_prunes_nothing() {
    let (mut api, mut datastore, watch) =
        loaded(&[pod("a", 1, "10.0.0.1"), pod("b", 2, "10.0.0.2")]).await;
    watch.event("ERROR", &status(410, "Expired", "too old resource version"));
    api.next(PODS)
        .await
        .page("20", &[pod("c", 12, "10.0.0.3")], "more");
    assert_eq!(changes(&mut datastore).await, ["+Pod ns/c [10.0.0.3]"]);
    // The continuation has expired as well: from the beginning.
    api.next(PODS)
        .await
        .status(410, "Expired", "The provided continue parameter is too old");
    let again = api.next(PODS).await;
    assert_eq!(again.parameter("continue"), None);
    again.list("30", &[pod("b", 2, "10.0.0.2"), pod("c", 12, "10.0.0.4")]);
    assert_eq!(
        changes(&mut datastore).await,
        ["+Pod ns/c [10.0.0.4]", "-Pod ns/a"]
    );
}

#[tokio::test(start_paused = true)]
async fn what_is_gone_when_the_watch_cannot_resume_is_gone() {
    for in_the_watch in [true, false] {
        let (mut api, mut datastore, watch) = loaded(&[
            pod("a", 1, "10.0.0.1"),
            pod("b", 2, "10.0.0.2"),
            pod("c", 3, "10.0.0.3"),
        ])
        .await;
        if in_the_watch {
            watch.event(
                "ERROR",
                &status(410, "Expired", "too old resource version: 10 (20)"),
            );
        } else {
            watch.bookmark("11");
            drop(watch);
            let resumed = api.next(PODS).await;
            assert_eq!(resumed.parameter("resourceVersion"), Some("11"));
            resumed.status(410, "Expired", "too old resource version: 11 (20)");
        }
        // Unchanged, changed, new; and one is gone.
        let list = [
            pod("a", 1, "10.0.0.1"),
            pod("b", 15, "10.0.0.9"),
            pod("d", 16, "10.0.0.4"),
        ];
        api.next(PODS).await.list("20", &list);
        assert_eq!(
            changes(&mut datastore).await,
            ["+Pod ns/b [10.0.0.9]", "+Pod ns/d [10.0.0.4]", "-Pod ns/c"]
        );
        let watch = api.next(PODS).await;
        assert_eq!(watch.parameter("resourceVersion"), Some("20"));
        let _watch = watch.watching();
        let now = report(&mut datastore, |_, api| {
            *state(api, PODS) == WatchState::Watching
        })
        .await;
        assert_eq!(
            now.api.as_ref().expect("api").resources[PODS as usize].relists,
            1
        );
        assert_eq!(now.objects, 3);
    }
}

#[tokio::test(start_paused = true)]
async fn a_pod_made_anew_under_its_name_is_another() {
    let (mut api, mut datastore, watch) = loaded(&[pod("a", 1, "10.0.0.1")]).await;
    watch.event("ERROR", &status(410, "Expired", "too old"));
    let mut anew = pod("a", 15, "10.0.0.1");
    anew["metadata"]["uid"] = json!("another");
    api.next(PODS).await.list("20", &[anew]);
    assert_eq!(changes(&mut datastore).await, ["+Pod ns/a [10.0.0.1]"]);
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_ends_is_resumed_from_the_last_version() {
    let (mut api, mut datastore, watch) = loaded(&[pod("a", 1, "10.0.0.1")]).await;
    watch.event("MODIFIED", &pod("a", 12, "10.0.0.2"));
    assert_eq!(changes(&mut datastore).await, ["+Pod ns/a [10.0.0.2]"]);
    // Nothing that counts has changed.
    watch.event("MODIFIED", &pod("a", 13, "10.0.0.2"));
    watch.break_off();
    let resumed = api.next(PODS).await;
    assert_eq!(resumed.parameter("resourceVersion"), Some("13"));
    let watch = resumed.watching();
    watch.event("DELETED", &pod("a", 14, "10.0.0.2"));
    assert_eq!(changes(&mut datastore).await, ["-Pod ns/a"]);
    watch.bookmark("1234");
    drop(watch);
    let resumed = api.next(PODS).await;
    assert_eq!(resumed.parameter("resourceVersion"), Some("1234"));
    let watch = resumed.watching();
    // An event may come in pieces, and break off within.
    let line = json!({"type": "ADDED", "object": pod("b", 1240, "10.0.0.5")}).to_string();
    let (begin, end) = line.split_at(50);
    watch.bytes(begin);
    tokio::task::yield_now().await;
    watch.bytes(end);
    watch.bytes("\n");
    assert_eq!(changes(&mut datastore).await, ["+Pod ns/b [10.0.0.5]"]);
    watch.bytes(begin);
    drop(watch);
    assert_eq!(
        api.next(PODS).await.parameter("resourceVersion"),
        Some("1240")
    );
    let now = report(&mut datastore, |_, _| true).await;
    assert_eq!(
        now.api.as_ref().expect("api").resources[PODS as usize].restarts,
        2
    );
}

#[tokio::test(start_paused = true)]
async fn what_is_right_in_an_invalid_pod_counts() {
    let (mut api, mut datastore) = start(&[PODS]);
    let list = [pod("a", 1, "10.0.0.1"), pod("new", 2, "10.0.0")];
    let watch = api.load(PODS, &list).await;
    assert_eq!(
        gathered(&mut datastore, 2).await,
        ["+Pod ns/a [10.0.0.1]", "+Pod ns/new []"]
    );
    assert!(matches!(next(&mut datastore).await, Update::Loaded));
    let broken = |report: &Report, count| report.problems.len() == count;
    let now = report(&mut datastore, |report, _| broken(report, 1)).await;
    assert_eq!(
        now.problems[0].to_string(),
        "Kubernetes API: Pod ns/new: status.podIPs[0].ip: \"10.0.0\" is not an IP address"
    );
    assert_eq!(now.objects, 2);
    // Of one that cannot even be read in part the last state stays.
    let mut malformed = pod("a", 12, "10.0.0.1");
    malformed["spec"]["hostNetwork"] = json!("yes");
    watch.event("MODIFIED", &malformed);
    let now = report(&mut datastore, |report, _| broken(report, 2)).await;
    assert!(
        now.problems[0]
            .to_string()
            .contains("Pod ns/a: spec.hostNetwork: invalid type"),
        "{now:?}"
    );
    assert_eq!(now.objects, 2);
    // Gone before it was ever good; good again as it was.
    watch.event("DELETED", &pod("new", 13, "10.0.0"));
    assert_eq!(changes(&mut datastore).await, ["-Pod ns/new"]);
    watch.event("MODIFIED", &pod("a", 14, "10.0.0.1"));
    report(&mut datastore, |report, _| broken(report, 0)).await;
    assert_silent(&mut datastore).await;
    // An address that is none takes the one before it along: that may be another's by now.
    watch.event("MODIFIED", &pod("a", 15, "10.0.0.300"));
    assert_eq!(changes(&mut datastore).await, ["+Pod ns/a []"]);
    watch.event("MODIFIED", &pod("a", 16, "10.0.0.1"));
    assert_eq!(changes(&mut datastore).await, ["+Pod ns/a [10.0.0.1]"]);
    // An invalid one that vanishes takes its last good state along.
    watch.event("MODIFIED", &malformed);
    watch.event("ERROR", &status(410, "Expired", "too old"));
    api.next(PODS).await.list("20", &[]);
    assert_eq!(changes(&mut datastore).await, ["-Pod ns/a"]);
    report(&mut datastore, |report, _| broken(report, 0)).await;
}

#[tokio::test(start_paused = true)]
async fn a_policy_with_a_field_of_the_future_is_not_taken_over() {
    let (mut api, mut datastore) = start(&[POLICIES]);
    let good = json!({"podSelector": {}, "ingress": [{"from": [{"podSelector": {}}]}]});
    let watch = api.load(POLICIES, &[policy("p", 1, &good)]).await;
    gathered(&mut datastore, 1).await;
    assert!(matches!(next(&mut datastore).await, Update::Loaded));
    let future = json!({"podSelector": {}, "ingress": [{"from": [{"podSelector": {}, "onlyAtNight": true}]}]});
    watch.event("MODIFIED", &policy("p", 12, &future));
    watch.event(
        "ADDED",
        &policy(
            "q",
            13,
            &json!({"podSelector": {}, "ingress": [{"from": [{"ipBlock": {"cidr": "10/8"}}]}]}),
        ),
    );
    assert_eq!(
        gathered(&mut datastore, 2).await,
        ["+NetworkPolicy ns/p []", "+NetworkPolicy ns/q []"],
        "what the first allowed before may be what was taken away"
    );
    let now = report(&mut datastore, |report, _| report.problems.len() == 4).await;
    let words: Vec<_> = now.problems.iter().map(ToString::to_string).collect();
    assert_eq!(
        words,
        [
            "Kubernetes API: NetworkPolicy ns/p: spec.ingress[0].from[0].onlyAtNight: unknown field",
            "Kubernetes API: NetworkPolicy ns/p: until it is valid, it isolates the pods that it selects and allows \
             nothing",
            "Kubernetes API: NetworkPolicy ns/q: spec.ingress[0].from[0].ipBlock.cidr: \"10/8\" is not a CIDR such as \
             10.0.0.0/8 or 2001:db8::/32",
            "Kubernetes API: NetworkPolicy ns/q: until it is valid, it isolates the pods that it selects and allows \
             nothing",
        ]
    );
    assert_eq!(now.objects, 2);
    // Unknown fields elsewhere mean nothing to us.
    let mut elsewhere = policy("p", 14, &good);
    elsewhere["metadata"]["novelty"] = json!(1);
    elsewhere["status"] = json!({"conditions": []});
    watch.event("MODIFIED", &elsewhere);
    let rule = changes(&mut datastore).await;
    assert!(rule[0].starts_with("+NetworkPolicy ns/p [Rule"), "{rule:?}");
}

#[tokio::test(start_paused = true)]
async fn objects_that_arrive_together_are_one_update() {
    let (_api, mut datastore, watch) = loaded(&[]).await;
    for number in 0..50 {
        watch.event(
            "ADDED",
            &pod(
                &format!("p{number:02}"),
                11 + number,
                &format!("10.0.0.{number}"),
            ),
        );
    }
    let (mut updates, mut objects) = (0, 0);
    while objects < 50 {
        objects += changes(&mut datastore).await.len();
        updates += 1;
    }
    assert!(updates < 10, "{updates} updates");
}

#[tokio::test(start_paused = true)]
async fn a_sync_answers_behind_what_the_api_held() {
    let (mut api, mut datastore, _unheard) = loaded(&[pod("a", 1, "10.0.0.1")]).await;
    // The watch is behind: a list tells what the API holds.
    datastore.sync.send(SyncToken(7)).await.expect("runs");
    let list = api.next(PODS).await;
    assert!(!list.is_watch() && list.parameter("resourceVersion").is_none());
    list.list("40", &[pod("a", 1, "10.0.0.1"), pod("b", 39, "10.0.0.2")]);
    assert_eq!(changes(&mut datastore).await, ["+Pod ns/b [10.0.0.2]"]);
    assert!(matches!(
        next(&mut datastore).await,
        Update::Synced(SyncToken(7))
    ));
    let watch = api.next(PODS).await;
    assert_eq!(watch.parameter("resourceVersion"), Some("40"));
    // One that is asked for while the API is away is answered once it is back, by a new list.
    drop(watch);
    datastore.sync.send(SyncToken(8)).await.expect("runs");
    assert_silent(&mut datastore).await;
    drop(api.next(PODS).await);
    let _watch = api.next(PODS).await.watching();
    api.next(PODS).await.list("50", &[]);
    assert_eq!(changes(&mut datastore).await, ["-Pod ns/a", "-Pod ns/b"]);
    assert!(matches!(
        next(&mut datastore).await,
        Update::Synced(SyncToken(8))
    ));
}

/// More pods than one page holds, so that a sync does not list them without need.
async fn many() -> (FakeApi, Datastore, Watching) {
    let (mut api, mut datastore) = start(&[PODS]);
    let pods: Vec<_> = (0..501)
        .map(|number| {
            pod(
                &format!("p{number}"),
                1,
                &format!("10.0.{}.{}", number / 250, number % 250),
            )
        })
        .collect();
    api.next(PODS).await.page("10", &pods[..500], "more");
    api.next(PODS).await.list("10", &pods[500..]);
    let watch = api.next(PODS).await.watching();
    gathered(&mut datastore, 501).await;
    assert!(matches!(next(&mut datastore).await, Update::Loaded));
    (api, datastore, watch)
}

#[tokio::test(start_paused = true)]
async fn a_sync_of_many_objects_waits_for_the_watch() {
    let (mut api, mut datastore, watch) = many().await;
    // The watch is there already.
    datastore.sync.send(SyncToken(1)).await.expect("runs");
    let probe = api.next(PODS).await;
    assert_eq!(probe.parameter("limit"), Some("1"));
    probe.page("10", &[pod("p0", 1, "10.0.0.0")], "more");
    assert!(matches!(
        next(&mut datastore).await,
        Update::Synced(SyncToken(1))
    ));
    // The watch comes there, past it even; numbers are compared, not texts.
    datastore.sync.send(SyncToken(2)).await.expect("runs");
    api.next(PODS).await.page("99", &[], "more");
    watch.event("ADDED", &pod("x", 98, "10.1.0.1"));
    assert_eq!(changes(&mut datastore).await, ["+Pod ns/x [10.1.0.1]"]);
    watch.event("ADDED", &pod("y", 100, "10.1.0.2"));
    assert_eq!(changes(&mut datastore).await, ["+Pod ns/y [10.1.0.2]"]);
    assert!(matches!(
        next(&mut datastore).await,
        Update::Synced(SyncToken(2))
    ));
    // By a bookmark as well.
    datastore.sync.send(SyncToken(3)).await.expect("runs");
    api.next(PODS).await.page("120", &[], "more");
    watch.bookmark("120");
    assert!(matches!(
        next(&mut datastore).await,
        Update::Synced(SyncToken(3))
    ));
    // It does not come there: the objects are listed.
    datastore.sync.send(SyncToken(4)).await.expect("runs");
    api.next(PODS).await.page("130", &[], "more");
    api.next(PODS)
        .await
        .list("131", &[pod("x", 98, "10.1.0.1")]);
    assert_eq!(gathered(&mut datastore, 502).await.len(), 502);
    assert!(matches!(
        next(&mut datastore).await,
        Update::Synced(SyncToken(4))
    ));
}

#[tokio::test(start_paused = true)]
async fn a_node_of_another_name_is_a_problem() {
    let (mut api, mut datastore) = start(&[NODES]);
    let asked = api.next(NODES).await;
    assert_eq!(asked.parameter("fieldSelector"), Some("metadata.name%3Dn1"));
    asked.list("10", &[]);
    let watch = api.next(NODES).await.watching();
    let now = report(&mut datastore, |_, api| api.node == NodePresence::Absent).await;
    let problem = now.problems[0].to_string();
    assert!(
        problem.starts_with("Kubernetes API: Node n1: there is none of this name"),
        "{problem}"
    );
    assert!(
        problem.contains("NODENAME") && problem.contains("kubectl get nodes"),
        "{problem}"
    );
    // Policies are loaded all the same.
    assert!(matches!(next(&mut datastore).await, Update::Loaded));
    watch.event("ADDED", &node());
    let now = report(&mut datastore, |_, api| api.node == NodePresence::Present).await;
    assert!(now.problems.is_empty());
    watch.event("DELETED", &node());
    report(&mut datastore, |_, api| api.node == NodePresence::Absent).await;
}
