//! What the agent tells its operator: the JSON of the local socket, which `policyctl` prints.

use std::net::IpAddr;

use policy_core::model::ObjectName;
use serde::{Deserialize, Serialize};

/// Answer to `GET /v1/status`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// The agent's version.
    pub version: String,
    /// The agent's process id.
    pub pid: u32,
    /// This node's name.
    pub node: String,
    /// Whether every condition holds.
    pub ready: bool,
    /// What readiness depends on.
    pub conditions: Vec<Condition>,
    /// Where objects come from.
    pub datastore: DatastoreStatus,
    /// Number of the last compiled state.
    pub revision: u64,
    /// Number of the last state that is wholly in the kernel's tables.
    pub enforced_revision: u64,
    /// Operations not executed yet.
    pub pending_operations: usize,
    /// How starting pods come under enforcement.
    pub pod_starts: PodStartsStatus,
    /// Where programs are attached.
    pub programs: Vec<AttachedPrograms>,
    /// Interfaces by which packets leave the node, where what goes to Services is judged.
    #[serde(default)]
    pub exits: Vec<ExitStatus>,
    /// Use of the kernel's tables.
    pub tables: Vec<TableStatus>,
    /// Packets by direction and reason; reasons that never occurred are left out.
    pub counters: Vec<CounterStatus>,
    /// What is not as it should be; empty is good.
    pub problems: Vec<String>,
    /// Worth knowing, but no problem: pods without an address, drop events not sent, ...
    pub notes: Vec<String>,
}

/// How starting pods come under enforcement.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodStartsStatus {
    /// `plugin`: policy-cni lets none start before it is enforced. `discovery`: each is found moments after its
    /// interface appears.
    pub mode: String,
    /// The CNI configuration that names the plugin, where this agent keeps it there.
    pub configuration: Option<String>,
    /// Why there is none, although this agent is to keep it there.
    pub error: Option<String>,
}

impl PodStartsStatus {
    /// A value of `mode`.
    pub const PLUGIN: &str = "plugin";
    /// A value of `mode`.
    pub const DISCOVERY: &str = "discovery";

    /// The same in words.
    #[must_use]
    pub fn words(&self) -> String {
        let mode = &self.mode;
        match (&self.configuration, &self.error) {
            (Some(configuration), _) => format!("{mode}; policy-cni is kept in {configuration}"),
            (None, Some(error)) => format!("{mode}; policy-cni is not installed: {error}"),
            (None, None) if mode == Self::PLUGIN => {
                format!("{mode}; policy-cni was installed by others")
            }
            (None, None) => format!(
                "{mode}; a pod is enforced moments after its interface appears (PORTCULLIS_INSTALL_CNI=false)"
            ),
        }
    }
}

/// One condition of readiness.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// What should be so, such as `DatastoreLoaded`.
    pub name: String,
    /// Whether it is.
    pub ok: bool,
    /// More, for people.
    pub message: String,
}

/// The datastore's part of the status.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DatastoreStatus {
    /// Where objects come from, in words.
    pub source: String,
    /// Whether the first load is complete.
    pub loaded: bool,
    /// Files read.
    pub files: usize,
    /// Objects in force.
    pub objects: usize,
    /// What was not taken over.
    pub errors: Vec<String>,
    /// What was taken over but is probably not what was meant.
    pub warnings: Vec<String>,
    /// How it stands with the Kubernetes API, where that is the datastore.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api: Option<ApiStatus>,
}

/// How it stands with the Kubernetes API.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ApiStatus {
    /// Why the API cannot be used, if so, and what to do.
    pub outage: Option<String>,
    /// Since when, in seconds since 1970.
    pub outage_since: Option<u64>,
    /// When the API last answered, in seconds since 1970.
    pub last_contact: Option<u64>,
    /// Whether the API has a Node of this node's name; absent while that is not known.
    pub node_known: Option<bool>,
    /// Each resource that is read.
    pub resources: Vec<ResourceStatus>,
}

/// How it stands with one resource of the API.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ResourceStatus {
    /// Its name, such as `networkpolicies`.
    pub resource: String,
    /// Whether it was listed completely at least once.
    pub loaded: bool,
    /// `listing`, `watching` or `failing`.
    pub state: String,
    /// Why, where it fails.
    pub error: Option<String>,
    /// Objects in force.
    pub objects: usize,
    /// How often it was watched again after a watch had ended.
    pub watch_restarts: u64,
    /// How often it was listed again.
    pub relists: u64,
}

/// Programs on one interface.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AttachedPrograms {
    /// Index of the interface.
    pub ifindex: u32,
    /// Its name.
    pub interface: String,
    /// `tcx` or `clsact`.
    pub mode: String,
    /// Kernel's id of the program that judges what leaves the pod.
    pub from_pod_program_id: u32,
    /// Kernel's id of the program that judges what enters the pod.
    pub to_pod_program_id: u32,
}

/// The program on an interface by which packets leave the node.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ExitStatus {
    /// Index of the interface.
    pub ifindex: u32,
    /// Its name.
    pub interface: String,
    /// The program that it is to have: `exit`, `exit_l3`, `exit_ib` or `from_node`.
    #[serde(default)]
    pub program: String,
    /// `waiting`, `attaching`, `attached` or `detaching`.
    pub state: String,
    /// Why it gets no further, where something fails.
    pub error: Option<String>,
}

/// Use of one table.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TableStatus {
    /// Its name, which is also that of its pin.
    pub name: String,
    /// Rows in use.
    pub used: u64,
    /// Rows that there can be.
    pub capacity: u64,
}

/// Packets of one direction and reason.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CounterStatus {
    /// `ingress` or `egress`, as the pod sees it.
    pub direction: String,
    /// `pass` or `drop`.
    pub verdict: String,
    /// Why.
    pub reason: String,
    /// Packets.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// A workload endpoint as Calico's users know it, whoever tells of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointName {
    /// The node.
    pub hostname: String,
    /// Always `k8s`.
    pub orchestrator: String,
    /// Namespace and name of the pod, with a dot between.
    pub workload: String,
    /// Interface inside the pod.
    pub name: String,
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub pod: String,
}

impl EndpointName {
    /// Of the pod's interface `name` on node `hostname`.
    #[must_use]
    pub fn new(hostname: &str, pod: &ObjectName, name: &str) -> Self {
        Self {
            hostname: hostname.to_owned(),
            orchestrator: "k8s".to_owned(),
            workload: format!("{}.{}", pod.namespace, pod.name),
            name: name.to_owned(),
            namespace: pod.namespace.to_string(),
            pod: pod.name.to_string(),
        }
    }
}

/// One item of `GET /v1/workloadendpoints`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WorkloadEndpoint {
    /// Its name.
    #[serde(flatten)]
    pub endpoint: EndpointName,
    /// Host-side interface.
    pub interface: String,
    /// Its index.
    pub ifindex: u32,
    /// The endpoint's own addresses.
    pub addresses: Vec<IpAddr>,
    /// Ingress, absent when not isolated.
    pub ingress: Option<DirectionStatus>,
    /// Egress, absent when not isolated.
    pub egress: Option<DirectionStatus>,
    /// `enforced`, `programming`, `attaching` or `detaching`.
    pub state: String,
    /// Why it gets no further, where something fails.
    pub error: Option<String>,
}

/// How an endpoint is isolated in one direction.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DirectionStatus {
    /// Id of the rule list in the kernel's tables.
    pub policy_id: u32,
    /// Rules in it.
    pub rules: usize,
    /// NetworkPolicies that isolate, as `namespace/name`.
    pub policies: Vec<String>,
}

/// One item of `GET /v1/identities`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct IdentityStatus {
    /// Its number in the kernel's tables.
    pub id: u32,
    /// What makes its addresses what they are, in words.
    pub matches: Vec<String>,
    /// Single addresses that bear it.
    pub addresses: Vec<IpAddr>,
    /// Networks that bear it.
    pub prefixes: Vec<String>,
}

/// One item of `GET /v1/networkpolicies`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicyStatus {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Directions that it isolates: `Ingress`, `Egress`.
    pub policy_types: Vec<String>,
    /// Its ingress rules.
    pub ingress_rules: usize,
    /// Its egress rules.
    pub egress_rules: usize,
    /// Pods of this node that it selects, as `namespace/name`.
    pub subjects: Vec<String>,
    /// `enforced`, `no local subjects`, or `refused: ...`.
    pub status: String,
}

/// Answer to `POST /v1/sync`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SyncReport {
    /// The state that is now enforced.
    pub revision: u64,
    /// What the datastore holds but could not be taken over or enforced.
    pub errors: Vec<String>,
}

/// Answer to a request that failed.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Failure {
    /// What went wrong.
    pub error: String,
}
