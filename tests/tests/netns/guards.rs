//! Addresses that are somebody's, and this node's tunnels: the tables hold what objects and the kernel say.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::IpAddr;
use std::thread;
use std::time::{Duration, Instant};

use aya::maps::{Array, Map, MapData};
use policy_agent::report::Status;
use policy_common::endpoint::Endpoint;
use policy_common::guard::Guard;
use policy_common::map;
use portcullis_tests::netns::{Agent, Node, PATIENCE, get};
use serde_json::Value;

use super::documents::bpftool;
use super::{Cast, DENY_INGRESS, Form, What, check};

/// Rows by prefix, with their kinds.
type Rows = BTreeMap<String, u32>;

/// What is in `guarded_v4` or `guarded_v6`.
fn rows(node: &Node, table: &str) -> Rows {
    let pin = node.bpffs().join(table);
    let dump = bpftool(&["-j", "map", "dump", "pinned", &pin.display().to_string()]);
    let dump: Vec<Value> = serde_json::from_slice(&dump).unwrap();
    let number = |value: &Value| value.as_u64().unwrap();
    let rows = dump.iter().map(|row| {
        let (key, value) = (&row["formatted"]["key"], &row["formatted"]["value"]);
        let octets = key["data"]["octets"].as_array().unwrap().iter();
        let octets: Vec<u8> = octets
            .map(|octet| u8::try_from(number(octet)).unwrap())
            .collect();
        let address = match <[u8; 4]>::try_from(octets.as_slice()) {
            Ok(v4) => IpAddr::from(v4),
            Err(_) => <[u8; 16]>::try_from(octets).unwrap().into(),
        };
        let prefix = format!("{address}/{}", number(&key["prefix_len"]));
        (prefix, u32::try_from(number(&value["kind"])).unwrap())
    });
    rows.collect()
}

fn v4(cast: &Cast) -> Rows {
    rows(&cast.node, map::GUARDED_V4.name)
}

/// The rows that there are of this node's own addresses.
fn own(cast: &Cast, family: &str) -> Rows {
    let mut command = cast.node.netns().command("ip");
    let output = command.args(["-j", family, "addr", "show"]).output();
    let links: Vec<Value> = serde_json::from_slice(&output.unwrap().stdout).unwrap();
    let infos = links
        .iter()
        .flat_map(|link| link["addr_info"].as_array().unwrap());
    let (length, loopback) = match family {
        "-4" => (32, "127.0.0.0/8"),
        _ => (128, "::1/128"),
    };
    let local = infos.map(|info| format!("{}/{length}", info["local"].as_str().unwrap()));
    let mut rows: Rows = local.map(|prefix| (prefix, Guard::NODE)).collect();
    rows.remove("127.0.0.1/32");
    rows.insert(loopback.to_owned(), Guard::NODE);
    rows
}

fn with(mut rows: Rows, more: &[(&str, u32)]) -> Rows {
    rows.extend(
        more.iter()
            .map(|(prefix, kind)| ((*prefix).to_owned(), *kind)),
    );
    rows
}

fn pods(cast: &Cast) -> Rows {
    let pods = [&cast.web, &cast.db, &cast.tool];
    let rows = pods
        .iter()
        .flat_map(|pod| pod.addresses())
        .map(|address| match address {
            IpAddr::V4(_) => format!("{address}/32"),
            IpAddr::V6(_) => format!("{address}/128"),
        });
    rows.map(|prefix| (prefix, Guard::POD)).collect()
}

fn of_family(rows: &Rows, v4: bool) -> Rows {
    let rows = rows.iter().filter(|(prefix, _)| prefix.contains(':') != v4);
    rows.map(|(prefix, kind)| (prefix.clone(), *kind)).collect()
}

type EndpointWords = [u64; size_of::<Endpoint>() / 8];

fn endpoints(cast: &Cast) -> Array<MapData, EndpointWords> {
    let data = MapData::from_pin(cast.node.bpffs().join(map::ENDPOINTS.name)).unwrap();
    Map::Array(data).try_into().unwrap()
}

/// Clears the ports in an endpoint's row, as somebody else might.
fn forget_ports(cast: &Cast, ifindex: u32) {
    let mut table = endpoints(cast);
    let mut row: Endpoint = bytemuck::cast(table.get(&ifindex, 0).unwrap());
    assert_ne!(row.tunnel_ports, [0; 4]);
    row.tunnel_ports = [0; 4];
    let row: EndpointWords = bytemuck::cast(row);
    table.set(ifindex, row, 0).unwrap();
}

/// The ports in the rows of all endpoints, each once.
fn tunnel_ports(cast: &Cast) -> Vec<[u16; 4]> {
    let table = endpoints(cast);
    let rows = table.iter().skip(1).map(Result::unwrap);
    let rows = rows.map(bytemuck::cast::<_, Endpoint>);
    let ports: BTreeSet<_> = rows
        .filter(|row| row.id != 0)
        .map(|row| row.tunnel_ports)
        .collect();
    ports.into_iter().collect()
}

/// Pods of other nodes, one of them on its host's network.
const OTHERS: &str = "\
apiVersion: v1
kind: Pod
metadata: {name: far, namespace: shop}
spec: {nodeName: n2, containers: []}
status: {podIPs: [{ip: 10.244.2.7}], hostIPs: [{ip: 192.0.2.2}, {ip: \"2001:db8::2\"}]}
---
apiVersion: v1
kind: Pod
metadata: {name: done, namespace: shop}
spec: {nodeName: n2, containers: []}
status: {phase: Succeeded, podIPs: [{ip: 10.244.2.8}], hostIP: 192.0.2.2}
---
apiVersion: v1
kind: Pod
metadata: {name: proxy, namespace: dev}
spec: {nodeName: n3, hostNetwork: true, containers: []}
status: {podIPs: [{ip: 192.0.2.3}]}
";

/// Selects nobody of this node.
const OFFICE: &str = "\
podSelector: {matchLabels: {app: elsewhere}}
ingress:
- from: [{ipBlock: {cidr: 198.51.100.0/24, except: [198.51.100.16/28]}}, {ipBlock: {cidr: 0.0.0.0/0}}]
- from: [{ipBlock: {cidr: \"2001:db8:51::/64\"}}]
policyTypes: [Ingress, Egress]
egress:
- to: [{ipBlock: {cidr: 203.0.113.0/24}}]";

/// A VXLAN device as flannel makes it, with a neighbour.
const FLANNEL: &str = "\
link add flannel.1 type vxlan id 1 dstport 8472 nolearning
link set flannel.1 up";

fn flannel(cast: &Cast) {
    let netns = cast.node.netns();
    netns.ip(FLANNEL).unwrap();
    let mut bridge = netns.command("bridge");
    let words = "fdb add 02:00:00:00:00:02 dev flannel.1 dst 192.0.2.2 self permanent";
    assert!(bridge.args(words.split(' ')).status().unwrap().success());
}

#[test]
fn guarded_addresses_are_those_of_the_cluster() {
    let cast = Cast::new(Form::Routed);
    let store = cast.node.datastore();
    store.put("others", OTHERS).unwrap();
    cast.policy("office", OFFICE);
    let agent = Agent::start(&cast.node).unwrap();
    let pods = pods(&cast);
    let always = |family| {
        let mut rows = of_family(&pods, family == "-4");
        rows.extend(own(&cast, family));
        rows
    };
    let elsewhere = [
        ("10.244.2.7/32", Guard::POD),
        ("192.0.2.2/32", Guard::NODE),
        ("192.0.2.3/32", Guard::NODE),
        ("198.51.100.0/24", Guard::BLOCK),
    ];
    assert_eq!(v4(&cast), with(always("-4"), &elsewhere));
    let elsewhere_v6 = [
        ("2001:db8::2/128", Guard::NODE),
        ("2001:db8:51::/64", Guard::BLOCK),
    ];
    let v6 = rows(&cast.node, map::GUARDED_V6.name);
    assert_eq!(v6, with(always("-6"), &elsewhere_v6));
    assert_eq!(tunnel_ports(&cast), [[0; 4]]);

    // A device that appears later, as flannel's does.
    flannel(&cast);
    agent.sync().unwrap();
    let rows = with(
        with(always("-4"), &elsewhere),
        &[("192.0.2.2/32", Guard::NODE | Guard::REMOTE)],
    );
    assert_eq!(v4(&cast), rows);
    assert_eq!(tunnel_ports(&cast), [[8472, 0, 0, 0]]);
    let status = agent.status().unwrap();
    let used = status
        .tables
        .iter()
        .find(|table| table.name == map::GUARDED_V4.name);
    assert_eq!(used.unwrap().used, rows.len() as u64);

    // Whatever is written to a row from now on has the ports, too.
    cast.policy("default-deny", DENY_INGRESS);
    agent.sync().unwrap();
    assert_eq!(tunnel_ports(&cast), [[8472, 0, 0, 0]]);
    check("", &[(&cast.tool, &cast.db, What::Tcp(80), false)]);
    // A row without them is repaired, and with them found as it should be.
    let ifindex = agent.status().unwrap().programs[0].ifindex;
    forget_ports(&cast, ifindex);
    let deadline = Instant::now() + PATIENCE.saturating_mul(2);
    while tunnel_ports(&cast) != [[8472, 0, 0, 0]] {
        assert!(Instant::now() < deadline, "{:?}", tunnel_ports(&cast));
        thread::sleep(Duration::from_millis(20));
    }

    store.delete("others").unwrap();
    cast.no_policy("office");
    cast.node.netns().ip("link del flannel.1").unwrap();
    agent.sync().unwrap();
    assert_eq!(v4(&cast), always("-4"));
    assert_eq!(tunnel_ports(&cast), [[0; 4]]);
    let page = get(cast.node.netns(), "/metrics").unwrap();
    let repairs = page.value("portcullis_repairs_total{what=\"endpoint_row\"}");
    assert_eq!(repairs as u64, 1);
}

#[test]
fn the_next_agent_takes_guards_over() {
    let cast = Cast::new(Form::Routed);
    let store = cast.node.datastore();
    store.put("others", OTHERS).unwrap();
    cast.policy("office", OFFICE);
    flannel(&cast);
    let agent = Agent::start(&cast.node).unwrap();
    let before = v4(&cast);
    assert!(before.contains_key("192.0.2.3/32") && before.contains_key("198.51.100.0/24"));
    agent.kill().unwrap();
    assert_eq!(v4(&cast), before, "they outlive it");

    let (others, _host_network) = OTHERS.rsplit_once("---").unwrap();
    store.put("others", others).unwrap();
    cast.no_policy("office");
    let more = "link add more type vxlan id 2 dstport 4789\nlink set more up";
    cast.node.netns().ip(more).unwrap();
    let agent = Agent::start(&cast.node).unwrap();
    let mut after = before;
    after.remove("192.0.2.3/32");
    after.remove("198.51.100.0/24");
    // The new device has a link-local address, and no other.
    assert_eq!(v4(&cast), after);
    assert_eq!(tunnel_ports(&cast), [[4789, 8472, 0, 0]]);
    let status = agent.status().unwrap();
    let used = status
        .tables
        .iter()
        .find(|table| table.name == map::GUARDED_V4.name);
    assert_eq!(used.unwrap().used, after.len() as u64);
}

#[test]
fn a_table_of_guards_that_is_full_is_named_and_holds_up_nobody() {
    let cast = Cast::new(Form::Routed);
    let store = cast.node.datastore();
    store.put("others", OTHERS).unwrap();
    cast.policy("default-deny", DENY_INGRESS);
    let agent = Agent::start(&cast.node).unwrap();
    let wanted = v4(&cast);
    agent.stop().unwrap();

    // Two too few: pods' addresses are what has no row.
    let size = format!("guarded_v4={}", wanted.len() - 2);
    let settings = [("PORTCULLIS_TABLE_SIZES", size.as_str())];
    let mut agent = Agent::spawn_with(&cast.node, &settings).unwrap();
    agent.wait_for_answers().unwrap();
    let says = "table guarded_v4 is full: 2 prefixes of pods, nodes or ipBlocks have no row";
    let is_said =
        |text: &str| text.contains(says) && text.contains("PORTCULLIS_TABLE_SIZES=guarded_v4=N");
    let is_named_alone = |status: &Status| {
        let mut unmet = status.conditions.iter().filter(|condition| !condition.ok);
        status.problems.iter().any(|problem| is_said(problem))
            && unmet
                .all(|condition| condition.name == "TablesWritten" && is_said(&condition.message))
    };
    let status = agent.wait_for_status(is_named_alone).unwrap();
    assert!(!status.ready);
    check("", &[(&cast.tool, &cast.db, What::Tcp(80), false)]);
    let rows = v4(&cast);
    assert_eq!(rows.len(), wanted.len() - 2);
    assert!(
        wanted
            .iter()
            .all(|(prefix, kind)| *kind == Guard::POD || rows.get(prefix) == Some(kind))
    );
    assert!(
        fs::read_to_string(cast.node.log_file())
            .unwrap()
            .contains("no row for addresses of pods")
    );

    // A pod and two nodes go.
    store.delete("others").unwrap();
    agent.wait_for_status(|status| status.ready).unwrap();
    let gone = ["10.244.2.7/32", "192.0.2.2/32", "192.0.2.3/32"];
    let mut wanted = wanted;
    wanted.retain(|prefix, _| !gone.contains(&prefix.as_str()));
    assert_eq!(v4(&cast), wanted);
}
