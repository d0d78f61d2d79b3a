//! The text as Prometheus reads it, and as the reference describes it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use openmetrics_parser::openmetrics::parse_openmetrics;
use openmetrics_parser::{MetricFamily, MetricNumber, OpenMetricsType, OpenMetricsValue};
use policy_common::map;
use policy_common::verdict::{Direction, Reason};
use policy_core::PolicyCounts;

use super::*;
use crate::agent::{Arrival, EndpointState, ExitState, Health};
use crate::dataplane::{CounterRow, DriftedPart, TableUse};
use crate::datastore::{NodePresence, Outage, Problem, Report, ResourceReport};
use crate::metrics::Lost;
use crate::report::Condition;

/// What an agent shows that has just started.
fn fresh() -> Scrape {
    let counted = |name: &str| {
        // The last three are there for packets on their way: nobody counts their rows.
        ![
            map::COUNTERS,
            map::EVENT_BUDGET,
            map::EVENTS,
            map::PENDING_V4,
            map::PENDING_V6,
            map::ONE_WAY_HINTS,
        ]
        .iter()
        .any(|spec| spec.name == name)
    };
    let tables = map::ALL
        .iter()
        .filter(|spec| counted(spec.name))
        .map(|spec| TableUse {
            name: spec.name,
            used: 0,
            capacity: u64::from(spec.capacity),
        });
    let counters = Direction::ALL.into_iter().flat_map(|direction| {
        Reason::ALL.iter().map(move |reason| CounterRow {
            direction,
            reason: *reason,
            packets: 0,
            bytes: 0,
        })
    });
    let resource = |resource| ResourceReport {
        resource,
        loaded: false,
        state: WatchState::Listing,
        objects: 0,
        restarts: 0,
        relists: 0,
    };
    let api = ApiReport {
        source: "https://a".to_owned(),
        outage: None,
        last_contact: None,
        node: NodePresence::Unknown,
        failed: vec![("connection", 0), ("forbidden", 0)],
        resources: ["networkpolicies", "pods", "namespaces", "services", "nodes"]
            .map(resource)
            .into(),
    };
    let mut conditions = Health::starting().conditions;
    conditions.push(Condition {
        name: "NodeKnown".to_owned(),
        ok: false,
        message: String::new(),
    });
    Scrape {
        snapshot: Snapshot {
            datastore: Arc::new(Report {
                api: Some(api),
                ..Report::default()
            }),
            endpoints: EndpointState::WORDS.map(|word| (word, 0)).into(),
            secondary_interfaces: [("enforced", 0), ("reported", 0)],
            exits: ExitState::WORDS.map(|word| (word, 0)).into(),
            tables: tables.collect(),
            counters: counters.collect(),
            conditions,
            repairs: DriftedPart::ALL.map(|part| (part.as_str(), 0)).into(),
            ..Snapshot::default()
        },
        process: ProcessUse::default(),
        last_beat: 0.0,
    }
}

/// Names and values of labels.
type LabelPairs<'a> = &'a [(&'a str, &'a str)];

type Family = MetricFamily<OpenMetricsType, OpenMetricsValue>;

/// The families of a scrape, under the names that queries use.
fn parse(scrape: Scrape) -> BTreeMap<String, Family> {
    let text = text(scrape).expect("text");
    let parsed = parse_openmetrics(&text).unwrap_or_else(|error| panic!("{error}\n{text}"));
    let named = parsed.families.into_values().map(|family| {
        let suffix = match family.family_type {
            OpenMetricsType::Counter => "_total",
            OpenMetricsType::Info => "_info",
            _ => "",
        };
        (format!("{}{suffix}", family.family_name), family)
    });
    named.collect()
}

fn type_word(family: &Family) -> &'static str {
    match family.family_type {
        OpenMetricsType::Counter => "counter",
        OpenMetricsType::Gauge => "gauge",
        OpenMetricsType::Histogram => "histogram",
        OpenMetricsType::Info => "info",
        ref other => panic!("{}: {other:?}", family.family_name),
    }
}

/// Names and values of the labels that occur.
fn labels(family: &Family) -> BTreeMap<String, BTreeSet<String>> {
    let mut labels: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for sample in family.iter_samples() {
        let set = sample.get_labelset().expect("bound to its family");
        for (name, value) in set.iter() {
            labels
                .entry(name.clone())
                .or_default()
                .insert(value.clone());
        }
    }
    labels
}

/// The value of the sample with these labels.
fn value(families: &BTreeMap<String, Family>, name: &str, labels: LabelPairs<'_>) -> f64 {
    let family = &families[name];
    let sample = family.iter_samples().find(|sample| {
        let set = sample.get_labelset().expect("bound to its family");
        labels
            .iter()
            .all(|(name, value)| set.get_label_value(name) == Some(*value))
    });
    match &sample
        .unwrap_or_else(|| panic!("{name} has no {labels:?}"))
        .value
    {
        OpenMetricsValue::Gauge(number) => number.as_f64(),
        OpenMetricsValue::Counter(counter) => counter.value.as_f64(),
        OpenMetricsValue::Histogram(histogram) => histogram.count.map_or(0.0, |count| count as f64),
        other => panic!("{name}: {other:?}"),
    }
}

/// A row of the reference.
#[derive(Debug, PartialEq, Eq)]
struct Documented {
    kind: String,
    labels: BTreeSet<String>,
}

const REFERENCE: &str = include_str!("../../../docs/reference/metrics.md");

/// The metrics of the reference's tables, by name.
fn documented(text: &str) -> BTreeMap<String, Documented> {
    let rows = text.lines().filter_map(|line| {
        let cells: Vec<_> = line
            .strip_prefix("| `")?
            .split('|')
            .map(str::trim)
            .collect();
        let [name, kind, labels, _meaning, _] = cells[..] else {
            return None;
        };
        let labels = labels
            .split(';')
            .filter_map(|label| label.trim().split('`').nth(1));
        let row = Documented {
            kind: kind.to_owned(),
            labels: labels.map(str::to_owned).collect(),
        };
        Some((name.trim_end_matches('`').to_owned(), row))
    });
    rows.collect()
}

#[test]
fn the_reference_has_every_metric_and_no_other() {
    let shown = parse(fresh()).into_iter().map(|(name, family)| {
        let row = Documented {
            kind: type_word(&family).to_owned(),
            labels: labels(&family).into_keys().collect(),
        };
        (name, row)
    });
    let mut documented = documented(REFERENCE);
    for (name, row) in shown {
        assert_eq!(documented.remove(&name), Some(row), "{name}");
    }
    let unknown: Vec<_> = documented.into_keys().collect();
    assert_eq!(unknown, [""; 0]);
}

#[test]
fn the_reference_has_every_label_value() {
    for (name, family) in parse(fresh()) {
        if name == "portcullis_build_info" {
            continue;
        }
        for value in labels(&family).into_values().flatten() {
            assert!(REFERENCE.contains(&format!("`{value}`")), "{name}: {value}");
        }
    }
    for reason in Reason::ALL {
        let row = format!(
            "| `{}` | `{}` |",
            reason.as_str(),
            reason.verdict().as_str()
        );
        assert!(REFERENCE.contains(&row), "{row}");
    }
}

#[test]
fn every_combination_is_there_before_anything_happens() {
    let families = parse(fresh());
    let samples = |name: &str| families[name].iter_samples().count();
    assert_eq!(samples("portcullis_packets_total"), 2 * Reason::ALL.len());
    assert_eq!(samples("portcullis_bytes_total"), 2 * Reason::ALL.len());
    assert_eq!(samples("portcullis_table_rows"), map::ALL.len() - 6);
    assert_eq!(samples("portcullis_endpoints"), EndpointState::WORDS.len());
    assert_eq!(samples("portcullis_policies"), 3);
    assert_eq!(samples("portcullis_events_lost_total"), 3);
    let count = value(&families, "portcullis_event_to_enforced_seconds", &[]);
    assert!(count.abs() < f64::EPSILON);
}

#[test]
fn the_api_is_shown_where_there_is_one() {
    let api_metrics = |scrape: Scrape| {
        let names = parse(scrape).into_keys();
        names
            .filter(|name| name.contains("_api_") || name.contains("_watch_"))
            .count()
    };
    let mut scrape = fresh();
    scrape.snapshot.datastore = Arc::default();
    assert_eq!(api_metrics(scrape), 0, "files");
    assert_eq!(api_metrics(fresh()), 6);

    let mut scrape = fresh();
    let mut report = Report::clone(&scrape.snapshot.datastore);
    let api = report.api.as_mut().expect("one");
    api.last_contact = Some(SystemTime::UNIX_EPOCH + Duration::from_secs(100));
    let outage = Outage {
        since: SystemTime::UNIX_EPOCH,
        reason: "gone".to_owned(),
    };
    api.outage = Some(outage.clone());
    api.resources[0].state = WatchState::Watching;
    api.resources[1].state = WatchState::Failing(outage);
    (api.resources[1].restarts, api.resources[1].relists) = (7, 8);
    api.failed[1].1 = 9;
    scrape.snapshot.datastore = report.into();
    let families = parse(scrape);
    let pods: LabelPairs<'_> = &[("resource", "pods")];
    let rows: [(&str, LabelPairs<'_>, f64); 7] = [
        ("portcullis_api_up", &[], 0.0),
        (
            "portcullis_api_failures_total",
            &[("cause", "forbidden")],
            9.0,
        ),
        ("portcullis_api_last_contact_timestamp_seconds", &[], 100.0),
        ("portcullis_watch_up", pods, 0.0),
        (
            "portcullis_watch_up",
            &[("resource", "networkpolicies")],
            1.0,
        ),
        ("portcullis_watch_restarts_total", pods, 7.0),
        ("portcullis_watch_relists_total", pods, 8.0),
    ];
    check(&families, &rows);
}

fn check(families: &BTreeMap<String, Family>, rows: &[(&str, LabelPairs<'_>, f64)]) {
    for (name, labels, expected) in rows {
        let found = value(families, name, labels);
        assert!(
            (found - expected).abs() < f64::EPSILON,
            "{name}{labels:?} is {found}"
        );
    }
}

#[test]
fn numbers_stand_where_they_belong() {
    let mut scrape = fresh();
    let snapshot = &mut scrape.snapshot;
    snapshot.endpoints.insert("attaching", 5);
    snapshot.policies = PolicyCounts {
        enforced: 11,
        no_local_subjects: 12,
        refused: 13,
    };
    snapshot.lost = Lost {
        rate_limited: 21,
        buffer_full: 22,
        log_busy: 23,
    };
    for row in &mut snapshot.counters {
        if (row.direction, row.reason) == (Direction::Egress, Reason::PolicyDenied) {
            (row.packets, row.bytes) = (31, u64::MAX);
        }
    }
    let problem = |severity| Problem {
        file: "f".to_owned(),
        line: None,
        object: None,
        message: "m\"\n".to_owned(),
        severity,
    };
    snapshot.datastore = Report {
        objects: 41,
        problems: vec![
            problem(Severity::Error),
            problem(Severity::Warning),
            problem(Severity::Warning),
        ],
        ..Report::default()
    }
    .into();
    let long_ago = Instant::now()
        .checked_sub(Duration::from_secs(3))
        .expect("uptime");
    snapshot.latency.observe(vec![
        Arrival {
            received: Instant::now(),
            changes: 1,
        },
        Arrival {
            received: long_ago,
            changes: 2,
        },
    ]);
    let families = parse(scrape);
    let denied = [
        ("direction", "egress"),
        ("verdict", "drop"),
        ("reason", "policy_denied"),
    ];
    let rows: [(&str, LabelPairs<'_>, f64); 12] = [
        ("portcullis_endpoints", &[("state", "attaching")], 5.0),
        ("portcullis_endpoints", &[("state", "enforced")], 0.0),
        ("portcullis_policies", &[("status", "enforced")], 11.0),
        (
            "portcullis_policies",
            &[("status", "no_local_subjects")],
            12.0,
        ),
        ("portcullis_policies", &[("status", "refused")], 13.0),
        (
            "portcullis_events_lost_total",
            &[("cause", "rate_limited")],
            21.0,
        ),
        (
            "portcullis_events_lost_total",
            &[("cause", "buffer_full")],
            22.0,
        ),
        (
            "portcullis_events_lost_total",
            &[("cause", "log_busy")],
            23.0,
        ),
        ("portcullis_packets_total", &denied, 31.0),
        (
            "portcullis_datastore_problems",
            &[("severity", "warning")],
            2.0,
        ),
        ("portcullis_datastore_objects", &[], 41.0),
        ("portcullis_event_to_enforced_seconds", &[], 3.0),
    ];
    check(&families, &rows);
    let latency = &families["portcullis_event_to_enforced_seconds"];
    let OpenMetricsValue::Histogram(histogram) = &latency.iter_samples().next().expect("one").value
    else {
        panic!("{latency:?}");
    };
    let counted = |seconds: f64| {
        let mut buckets = histogram.buckets.iter();
        let bucket = buckets.find(|bucket| bucket.upper_bound >= seconds);
        bucket.map(|bucket| bucket.count.as_f64())
    };
    assert_eq!(
        (counted(2.0), counted(10.0)),
        (Some(1.0), Some(3.0)),
        "{histogram:?}"
    );
    assert!(
        matches!(histogram.sum, Some(MetricNumber::Float(sum)) if sum >= 6.0),
        "{histogram:?}"
    );
}
