//! Backends on another node: judged by `exit`, by whichever interface the packets leave.
//!
//! ```text
//! pods 10.244.0.0/24 - near (203.0.113.1) ===== (203.0.113.2) far - pods 10.244.1.0/24
//! ```

use std::net::SocketAddr;
use std::process::Command;

use portcullis_tests::netns::kube_proxy::{Mode, Protocol, ServicePort};
use portcullis_tests::netns::{
    Agent, Family, Flow, Form, Greeter, Host, Node, Outcome, PATIENCE, PodSpec, SILENCE, What,
};

use super::inside::connect_at_once;
use super::underlay::{Underlay, join, wire};
use super::{backends, cluster_ips, expect, in_both_forms, kube_proxy, publish};
use Outcome::{Answered, Silent};
use What::{Fragments, Tcp, Udp};

in_both_forms! {
    egress_is_judged_across_routes
    egress_is_judged_across_vxlan
    egress_is_judged_across_a_tunnel
}

fn egress_is_judged_across_routes(form: Form) {
    egress_is_judged_between_nodes(form, Underlay::Routes);
}

fn egress_is_judged_across_vxlan(form: Form) {
    egress_is_judged_between_nodes(form, Underlay::Vxlan);
}

fn egress_is_judged_across_a_tunnel(form: Form) {
    egress_is_judged_between_nodes(form, Underlay::Tunnel);
}

const PORT: u16 = 8000;
const NODE_PORT: u16 = 30080;
/// Where connections are held.
const TARGET: u16 = 9100;

/// The cluster's objects, which both agents read.
fn describe(nodes: [&Node; 2], pods: &[(&str, &str, &Host)], services: &[ServicePort]) {
    for node in nodes {
        let store = node.datastore();
        for namespace in ["shop", "dev"] {
            let labels = [("team", namespace)];
            store.put_namespace(namespace, &labels).unwrap();
        }
        for (namespace, name, host) in pods {
            let labels = [("app", *name)];
            store
                .put_pod(namespace, name, &labels, &[], &host.addresses())
                .unwrap();
        }
        publish(node, services);
        // Who is behind a NodePort sees the first node's address, whichever way the packet came.
        let policy = "podSelector: {matchLabels: {app: db}}\n\
            ingress:\n\
            - from:\n\
            \x20 - podSelector: {matchLabels: {app: web}}\n\
            \x20 - ipBlock: {cidr: 203.0.113.1/32}\n\
            \x20 - ipBlock: {cidr: '2001:db8:3::1/128'}\n\
            \x20 - ipBlock: {cidr: 172.16.0.1/32}\n\
            \x20 - ipBlock: {cidr: 'fd00:172::1/128'}";
        store.put_policy("shop", "to-db", policy).unwrap();
        put_egress(node, &format!("{TO_DB}{TO_API}"));
    }
}

const TO_DB: &str = "\
- to: [{podSelector: {matchLabels: {app: db}}}]
  ports: [{port: 80}, {port: 9000}, {port: 9100}, {port: 53, protocol: UDP}]
";

const TO_API: &str = "\
- to: [{ipBlock: {cidr: 203.0.113.2/32}}, {ipBlock: {cidr: '2001:db8:3::2/128'}}]
  ports: [{port: 80}]
";

fn put_egress(node: &Node, rules: &str) {
    let spec = format!(
        "podSelector: {{matchLabels: {{app: web}}}}\npolicyTypes: [Egress]\negress:\n{rules}"
    );
    node.datastore()
        .put_policy("shop", "web-out", &spec)
        .unwrap();
}

fn egress_is_judged_between_nodes(form: Form, underlay: Underlay) {
    let nodes = [0, 1].map(|number| Node::numbered(form, number).unwrap());
    let [near, far] = &nodes;
    let _tunnel = join([near, far], underlay);
    let pods = [
        (near, "shop", "web"),
        (near, "shop", "other"),
        (near, "dev", "tool"),
        (far, "shop", "db"),
        (far, "dev", "far-tool"),
    ];
    let hosts = pods.map(|(node, namespace, name)| {
        let labels = [("app", name)];
        let host = node.add(PodSpec::new(namespace, name, &labels)).unwrap();
        if underlay == Underlay::Vxlan {
            // Room for the outer headers, as CNI plugins leave it.
            host.netns().ip("link set eth0 mtu 1450").unwrap();
        }
        (namespace, name, host)
    });
    let [web, other, tool, db, far_tool] = hosts.each_ref().map(|(.., host)| host);
    let tcp =
        |last, to: &[SocketAddr]| ServicePort::new(&cluster_ips(last), Protocol::Tcp, PORT, to);
    let api: Vec<_> = wire(1).map(|address| SocketAddr::new(address, 80)).into();
    let services = [
        ServicePort {
            node_port: Some(NODE_PORT),
            ..tcp(10, &backends(&[db], 80))
        },
        ServicePort {
            node_port: Some(NODE_PORT + 1),
            ..tcp(11, &backends(&[far_tool], 80))
        },
        ServicePort::new(&cluster_ips(10), Protocol::Udp, 53, &backends(&[db], 53)),
        ServicePort::new(
            &cluster_ips(11),
            Protocol::Udp,
            53,
            &backends(&[far_tool], 53),
        ),
        tcp(1, &api),
        // One here and one there.
        tcp(12, &backends(&[tool, db], 9000)),
        tcp(13, &backends(&[tool, far_tool], 9000)),
        tcp(14, &backends(&[db], TARGET)),
    ];
    let known = hosts
        .each_ref()
        .map(|(namespace, name, host)| (*namespace, *name, host));
    describe([near, far], &known, &services);
    let _greeters = [(tool, b't'), (db, b'd'), (far_tool, b'f')]
        .map(|(host, name)| Greeter::start(host.netns(), 9000, name).unwrap());
    let agents = [near, far].map(|node| Agent::start(node).unwrap());
    count_marked(near);
    let mode = match form {
        Form::Routed => Mode::Nftables,
        Form::Bridge => Mode::IptablesLegacy,
    };
    kube_proxy(mode, &services).apply(near.netns()).unwrap();
    let rows = |to_db: Outcome, api: Outcome| {
        [
            (web, cluster_ips(10), Tcp(PORT), to_db.clone()),
            (web, cluster_ips(11), Tcp(PORT), Silent),
            (web, cluster_ips(10), Udp(53), to_db.clone()),
            (web, cluster_ips(11), Udp(53), Silent),
            (web, cluster_ips(10), Fragments(53), to_db.clone()),
            (web, cluster_ips(11), Fragments(53), Silent),
            (web, near.addresses(), Tcp(NODE_PORT), to_db.clone()),
            (web, near.addresses(), Tcp(NODE_PORT + 1), Silent),
            (web, cluster_ips(1), Tcp(PORT), api),
            (web, db.addresses(), Tcp(80), to_db),
            (web, far_tool.addresses(), Tcp(80), Silent),
            // Not isolated for egress; the other node judges whom it hears from.
            (other, cluster_ips(10), Tcp(PORT), Silent),
            (other, cluster_ips(11), Tcp(PORT), Answered),
        ]
    };
    expect("all is allowed", &rows(Answered, Answered));
    for to in cluster_ips(12) {
        let answers = connect_at_once(web, to, 16);
        let of = |name| answers.iter().filter(|answer| **answer == name).count();
        let (reached, silent) = (of(Some(b'd')), of(None));
        assert!(
            reached > 0 && silent > 0 && reached + silent == answers.len(),
            "{to}: {answers:?}"
        );
    }
    for to in cluster_ips(13) {
        let answers = connect_at_once(web, to, 8);
        assert!(answers.iter().all(Option::is_none), "{to}: {answers:?}");
    }
    let mut flows = Family::ALL.map(|family| {
        let to = SocketAddr::new(cluster_ips(14)[family as usize], PORT);
        let at = SocketAddr::new(db.address(family), TARGET);
        Flow::open_through(web.netns(), to, db.netns(), at).unwrap()
    });
    let allow = |rules: &str| {
        for (node, agent) in nodes.iter().zip(&agents) {
            put_egress(node, rules);
            agent.sync().unwrap();
        }
    };
    allow(TO_DB);
    expect("without the API", &rows(Answered, Silent));
    for flow in &mut flows {
        assert!(flow.server_speaks(PATIENCE).unwrap(), "{flow:?}");
        assert!(flow.client_speaks(PATIENCE).unwrap(), "{flow:?}");
    }
    allow(TO_API);
    expect("without db", &rows(Silent, Answered));
    for flow in &mut flows {
        assert!(!flow.client_speaks(SILENCE).unwrap(), "{flow:?}");
        assert!(!flow.server_speaks(SILENCE).unwrap(), "{flow:?}");
    }
    if underlay == Underlay::Vxlan {
        let (all, marked) = counted(near);
        assert!(
            all > 0 && marked == 0,
            "{marked} of {all} still bear the mark"
        );
    }
}

/// Counts what leaves encapsulated, and what of it still bears an endpoint's mark.
fn count_marked(node: &Node) {
    let table = "table inet pcl {\n\
        counter encapsulated { }\n\
        counter marked { }\n\
        chain out { type filter hook output priority filter;\n\
        udp dport 8472 counter name encapsulated\n\
        udp dport 8472 meta mark & 0xffff0000 != 0 counter name marked\n\
        }\n\
        }\n";
    node.netns().script("nft", &["-f", "-"], table).unwrap();
}

fn counted(node: &Node) -> (u64, u64) {
    let count = |name: &str| {
        let mut command: Command = node.netns().command("nft");
        let output = command.args(["-j", "list", "counter", "inet", "pcl", name]);
        let output = output.output().unwrap();
        let said: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        said["nftables"][1]["counter"]["packets"].as_u64().unwrap()
    };
    (count("encapsulated"), count("marked"))
}
