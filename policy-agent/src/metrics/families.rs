//! Every metric: its name, type, help and labels.

use std::fmt;
use std::time::UNIX_EPOCH;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeCounterValue, EncodeGaugeValue, EncodeMetric, text,
};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

use super::process::ProcessUse;
use super::snapshot::Snapshot;
use crate::datastore::{ApiReport, Severity, WatchState};
use crate::report::PodStartsStatus;

/// Everything that one scrape shows.
#[derive(Clone, Debug)]
pub(super) struct Scrape {
    pub(super) snapshot: Snapshot,
    pub(super) process: ProcessUse,
    /// When the loop last came round, in seconds since 1970.
    pub(super) last_beat: f64,
}

/// The text of a scrape.
pub(super) fn text(scrape: Scrape) -> Result<String, fmt::Error> {
    let mut standard = Registry::default();
    standard.register_collector(Box::new(scrape.process));
    let mut own = Registry::with_prefix("portcullis");
    own.register_collector(Box::new(scrape));
    let mut written = String::new();
    text::encode_registry(&mut written, &own)?;
    text::encode_registry(&mut written, &standard)?;
    text::encode_eof(&mut written)?;
    Ok(written)
}

/// Names and values of the labels of one number.
type Labels<'a, const N: usize> = [(&'static str, &'a str); N];

/// Writes metric after metric.
struct Page<'a>(DescriptorEncoder<'a>);

impl Page<'_> {
    fn gauge(&mut self, name: &str, help: &str, value: impl EncodeGaugeValue) -> fmt::Result {
        self.gauges(name, help, [([], value)])
    }

    fn counter(&mut self, name: &str, help: &str, value: impl EncodeCounterValue) -> fmt::Result {
        self.counters(name, help, [([], value)])
    }

    fn gauges<'a, const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        values: impl IntoIterator<Item = (Labels<'a, N>, impl EncodeGaugeValue)>,
    ) -> fmt::Result {
        let values = values.into_iter();
        self.family(
            name,
            help,
            values.map(|(labels, value)| (labels, ConstGauge::new(value))),
        )
    }

    fn counters<'a, const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        values: impl IntoIterator<Item = (Labels<'a, N>, impl EncodeCounterValue)>,
    ) -> fmt::Result {
        let values = values.into_iter();
        self.family(
            name,
            help,
            values.map(|(labels, value)| (labels, ConstCounter::new(value))),
        )
    }

    fn family<'a, const N: usize, M: EncodeMetric>(
        &mut self,
        name: &str,
        help: &str,
        metrics: impl Iterator<Item = (Labels<'a, N>, M)>,
    ) -> fmt::Result {
        let mut metrics = metrics.peekable();
        let Some((_, first)) = metrics.peek() else {
            return Ok(());
        };
        let mut encoder = self
            .0
            .encode_descriptor(name, help, None, first.metric_type())?;
        for (labels, metric) in metrics {
            metric.encode(encoder.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

impl Collector for Scrape {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut page = Page(encoder);
        self.enforcement(&mut page)?;
        self.tables(&mut page)?;
        self.packets(&mut page)?;
        self.datastore(&mut page)?;
        self.agent(&mut page)
    }
}

impl Scrape {
    fn enforcement(&self, page: &mut Page<'_>) -> fmt::Result {
        let Snapshot {
            endpoints,
            secondary_interfaces,
            exits,
            policies,
            ..
        } = &self.snapshot;
        page.gauges(
            "endpoints",
            "Pod interfaces of this node, by how far their enforcement has come.",
            endpoints
                .iter()
                .map(|(state, count)| ([("state", *state)], *count)),
        )?;
        page.gauges(
            "secondary_interfaces",
            "Pods' interfaces beside the one that Kubernetes knows of, by whether they are enforced.",
            secondary_interfaces
                .iter()
                .map(|(state, count)| ([("state", *state)], *count)),
        )?;
        page.gauges(
            "exits",
            "Interfaces by which packets leave this node, by how far the program there has come.",
            exits
                .iter()
                .map(|(state, count)| ([("state", *state)], *count)),
        )?;
        let policies = [
            ("enforced", policies.enforced),
            ("no_local_subjects", policies.no_local_subjects),
            ("refused", policies.refused),
        ];
        page.gauges(
            "policies",
            "NetworkPolicies, by whether they are enforced on this node.",
            policies.map(|(status, count)| ([("status", status)], count)),
        )?;
        page.gauge(
            "identities",
            "Sets of addresses that rules in force on this node tell apart.",
            self.snapshot.identities,
        )?;
        page.gauge(
            "revision",
            "Number of the last compiled state.",
            self.snapshot.revision,
        )?;
        page.gauge(
            "enforced_revision",
            "Number of the last state that is wholly in the kernel.",
            self.snapshot.enforced_revision,
        )?;
        let latency = self.snapshot.latency.histogram();
        let encoder = page.0.encode_descriptor(
            "event_to_enforced_seconds",
            "From the moment the datastore heard of a change until it was in the kernel.",
            None,
            latency.metric_type(),
        )?;
        latency.encode(encoder)
    }

    fn tables(&self, page: &mut Page<'_>) -> fmt::Result {
        let tables = &self.snapshot.tables;
        page.gauges(
            "table_rows",
            "Rows in use, by BPF map; of flows and fragments at most a minute old.",
            tables
                .iter()
                .map(|table| ([("table", table.name)], table.used)),
        )?;
        page.gauges(
            "table_capacity",
            "Rows that there can be, by BPF map.",
            tables
                .iter()
                .map(|table| ([("table", table.name)], table.capacity)),
        )?;
        let operations = &self.snapshot.operations;
        page.counters(
            "operations",
            "What was done in the kernel, by kind.",
            operations
                .iter()
                .map(|(kind, tally)| ([("kind", kind)], tally.succeeded)),
        )?;
        page.counters(
            "operation_errors",
            "What the kernel refused, by kind; each is tried again.",
            operations
                .iter()
                .map(|(kind, tally)| ([("kind", kind)], tally.failed)),
        )?;
        page.counters(
            "repairs",
            "What was not as the agent had put it, by what it is; all is put right.",
            self.snapshot
                .repairs
                .iter()
                .map(|(what, count)| ([("what", *what)], *count)),
        )?;
        page.gauge(
            "pending_operations",
            "Operations that are planned and not done yet.",
            self.snapshot.pending_operations,
        )
    }

    fn packets(&self, page: &mut Page<'_>) -> fmt::Result {
        let rows = || {
            self.snapshot.counters.iter().map(|row| {
                let labels = [
                    ("direction", row.direction.as_str()),
                    ("verdict", row.reason.verdict().as_str()),
                    ("reason", row.reason.as_str()),
                ];
                (labels, row)
            })
        };
        page.counters(
            "packets",
            "Packets of pods on this node, by the pod's direction, verdict and reason.",
            rows().map(|(labels, row)| (labels, row.packets)),
        )?;
        page.counters(
            "bytes",
            "Their length, Ethernet header included.",
            rows().map(|(labels, row)| (labels, row.bytes)),
        )?;
        page.counter(
            "drops_logged",
            "Dropped packets that were logged.",
            self.snapshot.drops_logged,
        )?;
        let lost = &self.snapshot.lost;
        let causes = [
            ("rate_limited", lost.rate_limited),
            ("buffer_full", lost.buffer_full),
            ("log_busy", lost.log_busy),
        ];
        page.counters(
            "events_lost",
            "Dropped packets that were counted but not logged, by cause.",
            causes.map(|(cause, count)| ([("cause", cause)], count)),
        )
    }

    fn datastore(&self, page: &mut Page<'_>) -> fmt::Result {
        let report = &self.snapshot.datastore;
        page.gauge(
            "datastore_loaded",
            "Whether the first load is complete.",
            u32::from(report.loaded),
        )?;
        page.gauge("datastore_objects", "Objects in force.", report.objects)?;
        let problems = [("error", Severity::Error), ("warning", Severity::Warning)];
        page.gauges(
            "datastore_problems",
            "What is wrong with what was read, by severity.",
            problems.map(|(severity, wanted)| {
                let problems = report.problems.iter();
                let count = problems
                    .filter(|problem| problem.severity == wanted)
                    .count();
                ([("severity", severity)], count)
            }),
        )?;
        match &report.api {
            Some(api) => kubernetes_api(api, page),
            None => Ok(()),
        }
    }

    fn agent(&self, page: &mut Page<'_>) -> fmt::Result {
        let conditions = &self.snapshot.conditions;
        page.gauge(
            "ready",
            "Whether every condition holds.",
            u32::from(conditions.iter().all(|condition| condition.ok)),
        )?;
        page.gauges(
            "condition",
            "Whether what readiness depends on holds, by condition.",
            conditions
                .iter()
                .map(|condition| ([("name", condition.name.as_str())], u32::from(condition.ok))),
        )?;
        let mode = &self.snapshot.pod_starts.mode;
        let modes = [PodStartsStatus::PLUGIN, PodStartsStatus::DISCOVERY];
        page.gauges(
            "pod_starts_mode",
            "How starting pods come under enforcement: 1 for the mode in use.",
            modes.map(|known| ([("mode", known)], u32::from(mode == known))),
        )?;
        page.gauge(
            "loop_beat_timestamp_seconds",
            "When the agent's loop last came round.",
            self.last_beat,
        )?;
        let revision = option_env!("PORTCULLIS_REVISION").unwrap_or("unknown");
        let build = [
            ("version", env!("CARGO_PKG_VERSION")),
            ("revision", revision),
        ];
        let info = Info::new(build);
        let encoder = page.0.encode_descriptor(
            "build",
            "The agent's version, and the revision that it was built from.",
            None,
            info.metric_type(),
        )?;
        info.encode(encoder)
    }
}

/// Shown where the datastore is the Kubernetes API.
fn kubernetes_api(api: &ApiReport, page: &mut Page<'_>) -> fmt::Result {
    page.gauge(
        "api_up",
        "Whether the Kubernetes API can be used.",
        u32::from(api.outage.is_none()),
    )?;
    let last_contact = api
        .last_contact
        .and_then(|at| at.duration_since(UNIX_EPOCH).ok());
    page.gauge(
        "api_last_contact_timestamp_seconds",
        "When the Kubernetes API last answered; 0 before it ever did.",
        last_contact.unwrap_or_default().as_secs_f64(),
    )?;
    page.counters(
        "api_failures",
        "Lists and watches that failed, by cause; each is tried again.",
        api.failed
            .iter()
            .map(|(cause, count)| ([("cause", *cause)], *count)),
    )?;
    let resources = || {
        let resources = api.resources.iter();
        resources.map(|resource| ([("resource", resource.resource)], resource))
    };
    page.gauges(
        "watch_up",
        "Whether changes arrive as they happen, by resource.",
        resources().map(|(labels, resource)| {
            let up = matches!(resource.state, WatchState::Watching);
            (labels, u32::from(up))
        }),
    )?;
    page.counters(
        "watch_restarts",
        "Watches that were resumed after they had ended, by resource.",
        resources().map(|(labels, resource)| (labels, resource.restarts)),
    )?;
    page.counters(
        "watch_relists",
        "Lists after the first, by resource.",
        resources().map(|(labels, resource)| (labels, resource.relists)),
    )
}

impl Collector for ProcessUse {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut page = Page(encoder);
        page.counter(
            "process_cpu_seconds",
            "User and system CPU time spent.",
            self.cpu,
        )?;
        page.gauge(
            "process_resident_memory_bytes",
            "Resident memory size.",
            self.resident,
        )?;
        page.gauge("process_open_fds", "Open file descriptors.", self.open_fds)?;
        page.gauge(
            "process_max_fds",
            "Limit of open file descriptors.",
            self.max_fds,
        )?;
        page.gauge(
            "process_start_time_seconds",
            "When the process started, since 1970.",
            self.started,
        )
    }
}

#[cfg(test)]
#[path = "families_tests.rs"]
mod tests;
