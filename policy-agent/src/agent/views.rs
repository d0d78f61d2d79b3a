//! The engine's state as reports.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use policy_core::model::ObjectName;
use policy_core::{DirectionView, PolicyStatus as CompiledStatus};

use super::engine::{EndpointState, Engine};
use super::kernel::Kernel;
use crate::dataplane::{CounterRow, Dataplane, TableUse};
use crate::datastore::{ApiReport, NodePresence, ResourceReport, WatchState};
use crate::report::{
    ApiStatus, AttachedPrograms, CounterStatus, DirectionStatus, EndpointName, ExitStatus,
    IdentityStatus, PolicyStatus, ResourceStatus, TableStatus, WorkloadEndpoint,
};

/// Every endpoint that was found, sorted by workload.
pub(super) fn workload_endpoints<K: Kernel>(
    engine: &Engine<K>,
    node: &str,
) -> Vec<WorkloadEndpoint> {
    let compiled: BTreeMap<_, _> = engine
        .compiler
        .endpoints()
        .into_iter()
        .map(|view| (view.ifindex, view))
        .collect();
    let mut endpoints: Vec<_> = engine
        .endpoints()
        .map(|(local, EndpointState { word, error })| {
            let view = compiled.get(&local.ifindex);
            WorkloadEndpoint {
                endpoint: EndpointName::new(node, &local.pod, &local.interface),
                interface: local.host_interface.clone(),
                ifindex: local.ifindex,
                addresses: local.addresses.clone(),
                ingress: view.and_then(|view| view.ingress.as_ref()).map(direction),
                egress: view.and_then(|view| view.egress.as_ref()).map(direction),
                state: word.to_owned(),
                error,
            }
        })
        .collect();
    endpoints
        .sort_by(|a, b| (&a.endpoint.workload, a.ifindex).cmp(&(&b.endpoint.workload, b.ifindex)));
    endpoints
}

fn direction(view: &DirectionView) -> DirectionStatus {
    DirectionStatus {
        policy_id: view.policy,
        rules: view.rules,
        policies: names(&view.policies),
    }
}

pub(super) fn names(names: &[ObjectName]) -> Vec<String> {
    names.iter().map(ToString::to_string).collect()
}

pub(super) fn identities<K: Kernel>(engine: &Engine<K>) -> Vec<IdentityStatus> {
    let views = engine.compiler.identities().into_iter();
    views
        .map(|view| IdentityStatus {
            id: view.id,
            matches: view.matches,
            addresses: view.addresses,
            prefixes: view.prefixes.iter().map(ToString::to_string).collect(),
        })
        .collect()
}

pub(super) fn policies<K: Kernel>(engine: &Engine<K>) -> Vec<PolicyStatus> {
    let views = engine.compiler.policies().into_iter();
    views
        .map(|view| {
            let types = [
                (view.isolates_ingress, "Ingress"),
                (view.isolates_egress, "Egress"),
            ];
            PolicyStatus {
                namespace: view.name.namespace.to_string(),
                name: view.name.name.to_string(),
                policy_types: types
                    .iter()
                    .filter(|(isolates, _)| *isolates)
                    .map(|(_, name)| (*name).to_owned())
                    .collect(),
                ingress_rules: view.ingress_rules,
                egress_rules: view.egress_rules,
                subjects: names(&view.subjects),
                status: match view.status {
                    CompiledStatus::Enforced => "enforced".to_owned(),
                    CompiledStatus::NoLocalSubjects => "no local subjects".to_owned(),
                    CompiledStatus::Refused(why) => format!("refused: {why}"),
                },
            }
        })
        .collect()
}

pub(super) fn programs(dataplane: &Dataplane) -> Vec<AttachedPrograms> {
    let attached = dataplane.attached().into_iter();
    attached
        .map(|attached| AttachedPrograms {
            ifindex: attached.ifindex,
            interface: attached.interface,
            mode: attached.mode.as_str().to_owned(),
            from_pod_program_id: attached.from_pod_program_id,
            to_pod_program_id: attached.to_pod_program_id,
        })
        .collect()
}

pub(super) fn exits<K: Kernel>(engine: &Engine<K>) -> Vec<ExitStatus> {
    let exits = engine.exits();
    exits
        .map(|exit| ExitStatus {
            ifindex: exit.ifindex,
            interface: exit.interface,
            program: exit.program.to_owned(),
            state: exit.word.to_owned(),
            error: exit.error,
        })
        .collect()
}

pub(super) fn tables(tables: &[TableUse]) -> Vec<TableStatus> {
    tables
        .iter()
        .map(|table| TableStatus {
            name: table.name.to_owned(),
            used: table.used,
            capacity: table.capacity,
        })
        .collect()
}

pub(super) fn counters(rows: &[CounterRow]) -> Vec<CounterStatus> {
    rows.iter()
        .filter(|row| row.packets > 0)
        .map(|row| CounterStatus {
            direction: row.direction.as_str().to_owned(),
            verdict: row.reason.verdict().as_str().to_owned(),
            reason: row.reason.as_str().to_owned(),
            packets: row.packets,
            bytes: row.bytes,
        })
        .collect()
}

/// How it stands with the Kubernetes API.
pub(super) fn api(report: &ApiReport) -> ApiStatus {
    ApiStatus {
        outage: report.outage.as_ref().map(|outage| outage.reason.clone()),
        outage_since: report.outage.as_ref().map(|outage| seconds(outage.since)),
        last_contact: report.last_contact.map(seconds),
        node_known: match report.node {
            NodePresence::Unknown => None,
            NodePresence::Present => Some(true),
            NodePresence::Absent => Some(false),
        },
        resources: report.resources.iter().map(resource).collect(),
    }
}

fn resource(report: &ResourceReport) -> ResourceStatus {
    let (state, error) = match &report.state {
        WatchState::Listing => ("listing", None),
        WatchState::Watching => ("watching", None),
        WatchState::Failing(outage) => ("failing", Some(outage.reason.clone())),
    };
    ResourceStatus {
        resource: report.resource.to_owned(),
        loaded: report.loaded,
        state: state.to_owned(),
        error,
        objects: report.objects,
        watch_restarts: report.restarts,
        relists: report.relists,
    }
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs()
}
