//! The public NetworkPolicy cases, through the real programs: every cell of every truth table is a
//! packet through `from_pod` of its source and `to_pod` of its destination, by TCP, UDP and SCTP, on
//! tables that the real compiler filled step by step.
//!
//! The cases are given by PORTCULLIS_CONFORMANCE, a directory; without it this says that it was skipped.

#![expect(
    clippy::unwrap_used,
    reason = "a set-up that fails should fail its test, where it stands"
)]

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use k8s_openapi::api::networking::v1::NetworkPolicy;
use policy_agent::datastore::convert;
use policy_common::carrier::Tag;
use policy_common::verdict::Direction;
use policy_core::model::{
    Change, Labels, LocalEndpoint, NamedPort, Namespace, ObjectName, Origin, Pod, Protocol, Subject,
};
use policy_core::op::Op;
use policy_core::oracle::Cluster;
use policy_core::tables::Tables;
use policy_core::{Compiler, Limits};
use portcullis_tests::packet::{ETH, Kind, flags, frame};
use portcullis_tests::testrun::{Carried, LOOPBACK, Machine};
use serde::Deserialize;
use serde::de::IgnoredAny;

#[derive(Deserialize)]
struct Case {
    id: String,
    steps: Vec<Step>,
}

#[derive(Deserialize)]
struct Step {
    state: State,
    truth_table: TruthTable,
}

#[derive(Deserialize)]
struct State {
    namespaces: Vec<CaseNamespace>,
    pods: Vec<CasePod>,
    policies: Vec<NetworkPolicy>,
}

#[derive(Deserialize)]
struct CaseNamespace {
    name: String,
    labels: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct CasePod {
    namespace: String,
    name: String,
    labels: BTreeMap<String, String>,
    ip: IpAddr,
    containers: Vec<CasePort>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct CasePort {
    name: String,
    container_port: u16,
    protocol: String,
}

#[derive(Deserialize)]
struct TruthTable {
    rows: Vec<Cell>,
}

/// from, to, protocol, port, port name, ingress, egress, combined.
#[derive(Deserialize)]
struct Cell(String, String, String, u16, IgnoredAny, bool, bool, bool);

fn labels(labels: &BTreeMap<String, String>) -> Labels {
    labels
        .iter()
        .map(|(key, value)| (key.as_str().into(), value.as_str().into()))
        .collect()
}

fn protocol(name: &str) -> Protocol {
    match name {
        "TCP" => Protocol::Tcp,
        "UDP" => Protocol::Udp,
        "SCTP" => Protocol::Sctp,
        other => panic!("protocol {other}"),
    }
}

/// A cluster in which every pod is local, and the machine that enforces in it.
struct World<'m> {
    machine: &'m mut Machine,
    compiler: Compiler,
    tables: Tables,
    cluster: Cluster,
    known: BTreeMap<String, Change>,
    interfaces: BTreeMap<ObjectName, u32>,
    /// Ports of cells so far: cases share flow tables and endpoint ids, so that no two cells of the
    /// whole run may look like one connection.
    cell: &'m mut u32,
}

/// Who sent an IPv4 packet, behind its Ethernet header.
fn packet_source(packet: &[u8]) -> IpAddr {
    const SOURCE: usize = ETH + 12;
    let octets: [u8; 4] = packet[SOURCE..SOURCE + 4].try_into().unwrap();
    octets.into()
}

impl World<'_> {
    /// Brings the cluster to `state` by the changes that lead there.
    fn become_state(&mut self, state: &State) {
        let mut wanted: BTreeMap<String, Change> = BTreeMap::new();
        for namespace in &state.namespaces {
            let name = namespace.name.as_str().into();
            let change = Change::Namespace(Namespace {
                name,
                labels: labels(&namespace.labels),
            });
            wanted.insert(format!("namespace {}", namespace.name), change);
        }
        for pod in &state.pods {
            let name = ObjectName::new(&pod.namespace, &pod.name);
            let next = 1000 + self.interfaces.len() as u32;
            let ifindex = *self.interfaces.entry(name.clone()).or_insert(next);
            let ports = pod.containers.iter().map(|port| NamedPort {
                name: port.name.as_str().into(),
                protocol: protocol(&port.protocol),
                port: port.container_port,
            });
            let change = Change::Pod(Pod {
                name: name.clone(),
                labels: labels(&pod.labels).into(),
                addresses: vec![pod.ip],
                ports: Arc::new(ports.collect()),
                terminated: false,
                created: 0,
                uid: "".into(),
            });
            wanted.insert(format!("pod {name}"), change);
            let endpoint = LocalEndpoint {
                ifindex,
                host_interface: format!("veth{ifindex}"),
                interface: "eth0".to_owned(),
                pod: name.clone(),
                subject: Subject::Current,
                origin: Origin::Announced,
                addresses: vec![pod.ip],
                is_router: false,
                records: false,
            };
            wanted.insert(format!("zendpoint {name}"), Change::Endpoint(endpoint));
        }
        for policy in &state.policies {
            let policy = convert::network_policy(policy).unwrap();
            wanted.insert(format!("policy {}", policy.name), Change::Policy(policy));
        }
        let mut changes: Vec<Change> = Vec::new();
        for (key, change) in &self.known {
            if !wanted.contains_key(key) {
                changes.push(match change {
                    Change::Namespace(namespace) => Change::NamespaceGone(namespace.name.clone()),
                    Change::Pod(pod) => Change::PodGone(pod.name.clone()),
                    Change::Policy(policy) => Change::PolicyGone(policy.name.clone()),
                    Change::Endpoint(endpoint) => Change::EndpointGone(endpoint.ifindex),
                    other => panic!("{other:?}"),
                });
            }
        }
        for (key, change) in &wanted {
            if self.known.get(key) != Some(change) {
                changes.push(change.clone());
            }
        }
        self.known = wanted;
        for change in &changes {
            self.cluster.apply(change.clone());
        }
        let plan = self.compiler.apply(changes);
        let ops: Vec<Op> = plan.into_ops().collect();
        self.machine.apply(&ops).unwrap();
        for op in &ops {
            self.tables.apply(op);
        }
    }

    /// Whether a packet passes at one end.
    fn passes(&mut self, pod: &ObjectName, direction: Direction, packet: &[u8]) -> bool {
        // Test runs know the loopback interface only: the endpoint's row is copied there.
        let endpoint = self.tables.endpoints[&self.interfaces[pod]];
        self.machine
            .apply(&[Op::PutEndpoint {
                ifindex: LOOPBACK,
                endpoint,
            }])
            .unwrap();
        if direction == Direction::Ingress {
            // As it comes from this pod: what comes to itself has to come from itself.
            let carried = Carried {
                tag: Tag::SENT | endpoint.id & Tag::SLOT,
                ingress: LOOPBACK,
                ..Carried::default()
            };
            let from_itself = packet_source(packet) == self.address(pod);
            if from_itself {
                let passage = self.machine.pass("to_pod", LOOPBACK, packet, carried);
                return passage.unwrap().passed;
            }
        }
        match self
            .machine
            .repeat(direction, LOOPBACK, packet, 1)
            .unwrap()
            .0
        {
            -1 => true,
            2 => false,
            other => panic!("action {other}"),
        }
    }

    fn address(&self, pod: &ObjectName) -> IpAddr {
        match &self.known[&format!("pod {pod}")] {
            Change::Pod(pod) => pod.addresses[0],
            other => panic!("{other:?}"),
        }
    }

    /// (ingress, egress) of a cell, by packets.
    fn measure(&mut self, cell: &Cell) -> (bool, bool) {
        let (from, to) = (parse(&cell.0), parse(&cell.1));
        *self.cell += 1;
        let sport = u16::try_from(*self.cell).expect("fewer cells than ports");
        let kind = match cell.2.as_str() {
            "TCP" => Kind::Tcp(flags::SYN),
            "UDP" => Kind::Udp,
            _ => Kind::Sctp(1),
        };
        let source = SocketAddr::new(self.address(&from), sport);
        let target = SocketAddr::new(self.address(&to), cell.3);
        let packet = frame(source, target, kind);
        let egress = self.passes(&from, Direction::Egress, &packet);
        let ingress = self.passes(&to, Direction::Ingress, &packet);
        (ingress, egress)
    }

    /// (ingress, egress) of a cell, by the API's documentation.
    fn documented(&self, cell: &Cell) -> (bool, bool) {
        let (from, to) = (parse(&cell.0), parse(&cell.1));
        let target = Some((protocol(&cell.2), cell.3));
        let endpoint = |pod: &ObjectName| &self.cluster.endpoints()[&self.interfaces[pod]];
        let ingress = Direction::Ingress;
        (
            self.cluster
                .allows(endpoint(&to), ingress, self.address(&from), target),
            self.cluster.allows(
                endpoint(&from),
                Direction::Egress,
                self.address(&to),
                target,
            ),
        )
    }
}

fn parse(name: &str) -> ObjectName {
    let (namespace, name) = name.split_once('/').unwrap();
    ObjectName::new(namespace, name)
}

#[derive(Default)]
struct Count {
    agreed: usize,
    itself: usize,
    documentation: usize,
    wrong: Vec<String>,
}

fn run_case(machine: &mut Machine, case: &Case, cell: &mut u32, count: &mut Count) {
    let mut world = World {
        machine,
        compiler: Compiler::new(Limits::default()),
        tables: Tables::default(),
        cluster: Cluster::default(),
        known: BTreeMap::new(),
        interfaces: BTreeMap::new(),
        cell,
    };
    for (number, step) in case.steps.iter().enumerate() {
        world.become_state(&step.state);
        for cell in &step.truth_table.rows {
            let measured = world.measure(cell);
            if cell.0 == cell.1 {
                // A pod always reaches itself; the cases treat that as ordinary traffic.
                assert_eq!(measured, (true, true), "{}: {} to itself", case.id, cell.0);
                count.itself += 1;
                continue;
            }
            assert_eq!(cell.7, cell.5 && cell.6, "the case itself");
            if measured == (cell.5, cell.6) {
                count.agreed += 1;
            } else if measured == world.documented(cell) {
                count.documentation += 1;
            } else {
                let Cell(from, to, protocol, port, ..) = cell;
                let place = format!("{} step {number}", case.id);
                count.wrong.push(format!(
                    "{place}: {from} -> {to} {protocol}/{port}: {measured:?}"
                ));
            }
        }
    }
    // The machine's tables go on to the next case: empty them as an operator would.
    world.become_state(&State {
        namespaces: vec![],
        pods: vec![],
        policies: vec![],
    });
}

#[test]
fn every_cell() {
    let Some(directory) = env::var_os("PORTCULLIS_CONFORMANCE").map(PathBuf::from) else {
        println!("conformance: skipped, PORTCULLIS_CONFORMANCE is not set");
        return;
    };
    let mut machine = Machine::new().unwrap();
    let mut count = Count::default();
    let (mut cases, mut cell) = (0, 0);
    for entry in fs::read_dir(&directory).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        let parsed: Vec<Case> = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        for case in &parsed {
            run_case(&mut machine, case, &mut cell, &mut count);
        }
        cases += parsed.len();
    }
    let Count {
        agreed,
        itself,
        documentation,
        wrong,
    } = count;
    let cells = agreed + documentation + wrong.len();
    println!(
        "conformance: {cases} cases, {agreed} of {cells} cells agreed, {documentation} where the API's \
         documentation says otherwise, {} wrong; {itself} cells of a pod and itself",
        wrong.len()
    );
    assert!(cases > 0, "no cases in {}", directory.display());
    assert!(
        wrong.is_empty(),
        "{}",
        wrong[..wrong.len().min(20)].join("\n")
    );
}
