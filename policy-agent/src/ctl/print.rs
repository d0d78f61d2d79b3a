//! The agent's reports as text for people.

use std::fmt::Write as _;
use std::net::IpAddr;

use super::table::render;
use crate::report::{
    ApiStatus, DirectionStatus, EndpointName, ExitStatus, IdentityStatus, PolicyStatus, Status,
    TableStatus, WorkloadEndpoint,
};

/// The columns that Calico's users know.
pub(super) const ENDPOINT: [&str; 4] = ["HOSTNAME", "ORCHESTRATOR", "WORKLOAD", "NAME"];

/// What stands in the columns of [`ENDPOINT`].
pub(super) fn name(endpoint: &EndpointName) -> [String; 4] {
    [
        endpoint.hostname.clone(),
        endpoint.orchestrator.clone(),
        endpoint.workload.clone(),
        endpoint.name.clone(),
    ]
}

pub(super) fn workload_endpoints(list: &[WorkloadEndpoint], wide: bool) -> String {
    if !wide {
        let rows = list.iter().map(|found| name(&found.endpoint));
        return render(ENDPOINT, rows.collect());
    }
    let rows = list.iter().map(|endpoint| {
        let [hostname, orchestrator, workload, name] = name(&endpoint.endpoint);
        let error = endpoint.error.as_ref().map(|error| format!(": {error}"));
        [
            hostname,
            orchestrator,
            workload,
            name,
            endpoint.interface.clone(),
            addresses(&endpoint.addresses),
            direction(endpoint.ingress.as_ref()),
            direction(endpoint.egress.as_ref()),
            format!("{}{}", endpoint.state, error.unwrap_or_default()),
        ]
    });
    let [hostname, orchestrator, workload, name] = ENDPOINT;
    render(
        [
            hostname,
            orchestrator,
            workload,
            name,
            "INTERFACE",
            "ADDRESSES",
            "INGRESS",
            "EGRESS",
            "STATE",
        ],
        rows.collect(),
    )
}

/// The policies that isolate; `-` where none does.
fn direction(status: Option<&DirectionStatus>) -> String {
    status.map_or("-".to_owned(), |status| or_dash(&status.policies))
}

pub(super) fn or_dash(list: &[String]) -> String {
    if list.is_empty() {
        "-".to_owned()
    } else {
        list.join(",")
    }
}

/// A policy has no rules for a direction that it does not isolate, which is not the same as none.
pub(super) fn rules(policy_types: &[String], direction: &str, count: usize) -> String {
    if policy_types.iter().any(|name| name == direction) {
        count.to_string()
    } else {
        "-".to_owned()
    }
}

pub(super) fn addresses(list: &[IpAddr]) -> String {
    or_dash(&list.iter().map(ToString::to_string).collect::<Vec<_>>())
}

pub(super) fn identities(list: &[IdentityStatus], wide: bool) -> String {
    let rows = list.iter().map(|identity| {
        let mut members: Vec<_> = identity.addresses.iter().map(ToString::to_string).collect();
        members.extend(identity.prefixes.iter().cloned());
        const SHOWN: usize = 4;
        let more = members.len().saturating_sub(SHOWN);
        if !wide && more > 0 {
            members.truncate(SHOWN);
            members.push(format!("and {more} more"));
        }
        [
            identity.id.to_string(),
            or_dash(&members),
            if identity.matches.is_empty() {
                "-".to_owned()
            } else {
                identity.matches.join("; ")
            },
        ]
    });
    render(["ID", "ADDRESSES", "MATCHES"], rows.collect())
}

pub(super) fn network_policies(list: &[PolicyStatus], wide: bool) -> String {
    if !wide {
        let rows = list.iter().map(|policy| {
            [
                policy.namespace.clone(),
                policy.name.clone(),
                or_dash(&policy.policy_types),
                policy.subjects.len().to_string(),
                policy.status.clone(),
            ]
        });
        return render(
            ["NAMESPACE", "NAME", "TYPES", "PODS", "STATUS"],
            rows.collect(),
        );
    }
    let rows = list.iter().map(|policy| {
        [
            policy.namespace.clone(),
            policy.name.clone(),
            or_dash(&policy.policy_types),
            rules(&policy.policy_types, "Ingress", policy.ingress_rules),
            rules(&policy.policy_types, "Egress", policy.egress_rules),
            or_dash(&policy.subjects),
            policy.status.clone(),
        ]
    });
    render(
        [
            "NAMESPACE",
            "NAME",
            "TYPES",
            "INGRESS-RULES",
            "EGRESS-RULES",
            "PODS",
            "STATUS",
        ],
        rows.collect(),
    )
}

/// Empty tables, and exits in whose way nothing is, are left out unless `wide`.
pub(super) fn status(status: &Status, wide: bool) -> String {
    let mut text = String::new();
    let ready = if status.ready { "ready" } else { "not ready" };
    line(
        &mut text,
        &format!(
            "policy-agent {} (pid {}) on node {}: {ready}",
            status.version, status.pid, status.node
        ),
    );
    let pending = match status.pending_operations {
        0 => String::new(),
        waiting => format!(
            " compiled, {} enforced, {waiting} operations wait",
            status.enforced_revision
        ),
    };
    line(&mut text, &format!("revision {}{pending}", status.revision));
    let datastore = &status.datastore;
    let files = match datastore.api {
        Some(_) => String::new(),
        None => format!(" in {} files", datastore.files),
    };
    line(
        &mut text,
        &format!(
            "datastore: {}; {} objects{files}",
            datastore.source, datastore.objects
        ),
    );
    line(
        &mut text,
        &format!("pod starts: {}", status.pod_starts.words()),
    );
    section(&mut text, "CONDITIONS");
    let rows = status.conditions.iter().map(|condition| {
        let ok = if condition.ok { "yes" } else { "no" };
        [
            condition.name.clone(),
            ok.to_owned(),
            condition.message.clone(),
        ]
    });
    text += &render(["CONDITION", "OK", "DETAIL"], rows.collect());

    if let Some(api) = &status.datastore.api {
        section(&mut text, "KUBERNETES API");
        text += &resources(api);
    }
    section(&mut text, "PROGRAMS");
    text += &programs(status);
    text += &exits(&status.exits, wide);
    section(&mut text, "TABLES");
    text += &tables(status, wide);
    section(&mut text, "PACKETS");
    text += &packets(status);
    list(
        &mut text,
        "ERRORS IN THE DATASTORE",
        &status.datastore.errors,
    );
    list(&mut text, "WARNINGS", &status.datastore.warnings);
    list(&mut text, "PROBLEMS", &status.problems);
    list(&mut text, "NOTES", &status.notes);
    text
}

fn resources(api: &ApiStatus) -> String {
    let rows = api.resources.iter().map(|resource| {
        [
            resource.resource.clone(),
            resource.state.clone(),
            resource.objects.to_string(),
            resource.watch_restarts.to_string(),
            resource.relists.to_string(),
        ]
    });
    render(
        ["RESOURCE", "STATE", "OBJECTS", "WATCH-RESTARTS", "RELISTS"],
        rows.collect(),
    )
}

fn programs(status: &Status) -> String {
    let rows = status.programs.iter().map(|program| {
        [
            program.interface.clone(),
            program.ifindex.to_string(),
            program.mode.clone(),
            program.from_pod_program_id.to_string(),
            program.to_pod_program_id.to_string(),
        ]
    });
    render(
        ["INTERFACE", "IFINDEX", "MODE", "FROM_POD", "TO_POD"],
        rows.collect(),
    )
}

fn exits(exits: &[ExitStatus], all: bool) -> String {
    let shown = |exit: &&ExitStatus| all || exit.state != "attached";
    let rows = exits.iter().filter(shown).map(|exit| {
        let error = exit.error.as_ref().map(|error| format!(": {error}"));
        [
            exit.interface.clone(),
            exit.ifindex.to_string(),
            exit.program.clone(),
            format!("{}{}", exit.state, error.unwrap_or_default()),
        ]
    });
    let rows: Vec<_> = rows.collect();
    if rows.is_empty() {
        return String::new();
    }
    format!(
        "\nEXITS\n{}",
        render(["INTERFACE", "IFINDEX", "PROGRAM", "STATE"], rows)
    )
}

fn tables(status: &Status, empty_too: bool) -> String {
    let shown = |table: &&TableStatus| empty_too || table.used > 0;
    let rows = status.tables.iter().filter(shown).map(|table| {
        let percent = (table.used * 100).checked_div(table.capacity).unwrap_or(0);
        [
            table.name.clone(),
            table.used.to_string(),
            table.capacity.to_string(),
            format!("{percent}%"),
        ]
    });
    render(["TABLE", "USED", "CAPACITY", "USE"], rows.collect())
}

fn packets(status: &Status) -> String {
    let rows = status.counters.iter().map(|counter| {
        [
            counter.direction.clone(),
            counter.verdict.clone(),
            counter.reason.clone(),
            counter.packets.to_string(),
            counter.bytes.to_string(),
        ]
    });
    render(
        ["DIRECTION", "VERDICT", "REASON", "PACKETS", "BYTES"],
        rows.collect(),
    )
}

fn line(text: &mut String, words: &str) {
    let _infallible = writeln!(text, "{words}");
}

fn section(text: &mut String, title: &str) {
    let _infallible = writeln!(text, "\n{title}");
}

fn list(text: &mut String, title: &str, items: &[String]) {
    if items.is_empty() {
        return;
    }
    section(text, title);
    for item in items {
        line(text, item);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use policy_core::model::ObjectName;

    fn endpoint() -> WorkloadEndpoint {
        WorkloadEndpoint {
            endpoint: EndpointName::new(
                "kubernetes-minion-group-tbmi",
                &ObjectName::new("kube-system", "kube-dns-v20-jhk10"),
                "eth0",
            ),
            interface: "veth7".to_owned(),
            ifindex: 7,
            addresses: vec![[10, 0, 0, 5].into(), "fd00::5".parse().expect("v6")],
            ingress: Some(DirectionStatus {
                policy_id: 3,
                rules: 1,
                policies: vec!["kube-system/a".to_owned(), "kube-system/b".to_owned()],
            }),
            egress: None,
            state: "attaching".to_owned(),
            error: Some("no such device".to_owned()),
        }
    }

    #[test]
    fn endpoints_in_four_columns_and_in_nine() {
        assert_eq!(
            workload_endpoints(&[endpoint()], false),
            "HOSTNAME                       ORCHESTRATOR   WORKLOAD                         NAME\n\
             kubernetes-minion-group-tbmi   k8s            kube-system.kube-dns-v20-jhk10   eth0\n"
        );
        let wide = workload_endpoints(&[endpoint()], true);
        let words: Vec<_> = wide.split_whitespace().collect();
        assert_eq!(
            words[4..],
            [
                "INTERFACE",
                "ADDRESSES",
                "INGRESS",
                "EGRESS",
                "STATE",
                "kubernetes-minion-group-tbmi",
                "k8s",
                "kube-system.kube-dns-v20-jhk10",
                "eth0",
                "veth7",
                "10.0.0.5,fd00::5",
                "kube-system/a,kube-system/b",
                "-",
                "attaching:",
                "no",
                "such",
                "device"
            ]
        );
    }

    #[test]
    fn a_direction_that_is_not_isolated_has_no_number_of_rules() {
        let policy = PolicyStatus {
            namespace: "shop".to_owned(),
            name: "default-deny".to_owned(),
            policy_types: vec!["Ingress".to_owned()],
            ingress_rules: 0,
            egress_rules: 0,
            subjects: vec!["shop/db".to_owned()],
            status: "enforced".to_owned(),
        };
        let text = network_policies(&[policy], true);
        let row = text.lines().nth(1).expect("a row");
        let words: Vec<_> = row.split_whitespace().collect();
        assert_eq!(words[2..5], ["Ingress", "0", "-"], "{text}");
    }

    #[test]
    fn exits_that_are_attached_are_left_out_unless_wide() {
        let exit = |interface: &str, state: &str, error: Option<&str>| ExitStatus {
            ifindex: 2,
            interface: interface.to_owned(),
            program: "exit".to_owned(),
            state: state.to_owned(),
            error: error.map(str::to_owned),
        };
        let attached = exit("eth0", "attached", None);
        let failing = exit("tun0", "attaching", Some("no such device"));
        assert_eq!(exits(std::slice::from_ref(&attached), false), "");
        let both = [attached, failing];
        let row = "tun0        2         exit      attaching: no such device\n";
        assert_eq!(
            exits(&both, false),
            format!("\nEXITS\nINTERFACE   IFINDEX   PROGRAM   STATE\n{row}")
        );
        assert!(exits(&both, true).contains("eth0 "));
    }

    #[test]
    fn long_identities_are_cut_unless_wide() {
        let identity = IdentityStatus {
            id: 4,
            matches: vec!["pods app=web".to_owned(), "10.0.0.0/8".to_owned()],
            addresses: (1..=5).map(|last| [10, 0, 0, last].into()).collect(),
            prefixes: vec!["10.0.0.0/8".to_owned()],
        };
        let line = |wide| {
            let text = identities(std::slice::from_ref(&identity), wide);
            text.lines().nth(1).expect("a row").to_owned()
        };
        assert_eq!(
            line(false),
            "4    10.0.0.1,10.0.0.2,10.0.0.3,10.0.0.4,and 2 more   pods app=web; 10.0.0.0/8"
        );
        assert!(line(true).contains("10.0.0.5,10.0.0.0/8"));
    }
}
