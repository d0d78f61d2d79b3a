//! kube-proxy's `--masquerade-all` on a cluster of two nodes: a client is known on its own node, and counts as that
//! node on others.
//!
//! ```text
//! web, other, cache - near (203.0.113.1) ===== (203.0.113.2) far - db
//! ```

use portcullis_tests::netns::kube_proxy::{Mode, Protocol, ServicePort};
use portcullis_tests::netns::{Agent, Form, Host, Node, Outcome, PodSpec, What};

use super::underlay::{Underlay, join, wire};
use super::{
    address_blocks, backends, cluster_ips, expect, in_both_forms, ip_blocks, kube_proxy, publish,
    to_web_servers,
};
use Outcome::{Answered, Silent};
use What::{Tcp, Udp};

in_both_forms! { masqueraded_clients_are_known_on_their_own_node_only }

const PORT: u16 = 8000;

/// Last part of a Service's addresses, by its backend.
const DB: u8 = 10;
const CACHE: u8 = 11;

/// What comes of a client's packets.
#[derive(Clone)]
struct Ways {
    /// To the backend on its own node, through a Service.
    near_tcp: Outcome,
    near_udp: Outcome,
    /// To the one on the other node, through a Service, by TCP and UDP.
    far: Outcome,
    /// To that one without a Service.
    direct: Outcome,
}

impl Ways {
    const ALL: Self = Self {
        near_tcp: Answered,
        near_udp: Answered,
        far: Answered,
        direct: Answered,
    };
    const NONE: Self = Self {
        near_tcp: Silent,
        near_udp: Silent,
        far: Silent,
        direct: Silent,
    };
}

fn masqueraded_clients_are_known_on_their_own_node_only(form: Form) {
    let nodes = [0, 1].map(|number| Node::numbered(form, number).unwrap());
    let [near, far] = &nodes;
    join([near, far], Underlay::Routes);
    let hosts =
        [(near, "web"), (near, "other"), (near, "cache"), (far, "db")].map(|(node, name)| {
            let labels = [("app", name)];
            (name, node.add(PodSpec::new("shop", name, &labels)).unwrap())
        });
    let [web, other, cache, db] = hosts.each_ref().map(|(_, host)| host);
    let tcp = |last, host| to_web_servers(last, PORT, &[host]);
    let udp = |last, host: &Host| {
        let to = backends(&[host], 53);
        ServicePort::new(&cluster_ips(last), Protocol::Udp, 53, &to)
    };
    let services = [
        tcp(DB, db),
        tcp(CACHE, cache),
        udp(DB, db),
        udp(CACHE, cache),
    ];
    for node in &nodes {
        let store = node.datastore();
        store.put_namespace("shop", &[("team", "shop")]).unwrap();
        for (name, host) in &hosts {
            let labels = [("app", *name)];
            store
                .put_pod("shop", name, &labels, &[], &host.addresses())
                .unwrap();
        }
        publish(node, &services);
    }
    let agents = [near, far].map(|node| Agent::start(node).unwrap());
    let put = |name: &str, spec: &str| {
        for node in &nodes {
            node.datastore().put_policy("shop", name, spec).unwrap();
        }
    };
    let web_out = |rules: &str| {
        let spec = format!(
            "podSelector: {{matchLabels: {{app: web}}}}\npolicyTypes: [Egress]\negress: {rules}"
        );
        put("web-out", &spec);
    };
    let backends_in = |from: &str| {
        let spec = format!(
            "podSelector: {{matchExpressions: [{{key: app, operator: In, values: [db, cache]}}]}}\n\
             ingress:\n- from: [{from}]"
        );
        put("backends-in", &spec);
    };
    let sync = || agents.iter().for_each(|agent| agent.sync().unwrap());
    let clients =
        "{podSelector: {matchLabels: {app: web}}}, {podSelector: {matchLabels: {app: other}}}";
    let near_itself = format!("{}, {}", ip_blocks(near), address_blocks(wire(0)));
    let mode = match form {
        Form::Routed => Mode::IptablesLegacy,
        Form::Bridge => Mode::Nftables,
    };
    let mut proxy = kube_proxy(mode, &services);
    proxy.masquerades_all = true;
    proxy.apply(near.netns()).unwrap();
    // web, which policies isolate, and other, which none does.
    let expect = |when: &str, of_web: Ways, of_other: Ways| {
        let rows = [(web, of_web), (other, of_other)].into_iter();
        let rows = rows.flat_map(|(client, ways)| {
            [
                (client, cluster_ips(CACHE), Tcp(PORT), ways.near_tcp),
                (client, cluster_ips(CACHE), Udp(53), ways.near_udp),
                (client, cluster_ips(DB), Tcp(PORT), ways.far.clone()),
                (client, cluster_ips(DB), Udp(53), ways.far),
                (client, db.addresses(), Tcp(80), ways.direct),
            ]
        });
        let rows: Vec<_> = rows.collect();
        expect(when, &rows);
    };
    web_out("[{}]");
    sync();
    expect("backends not isolated", Ways::ALL, Ways::ALL);
    web_out("[]");
    sync();
    let when = "backends not isolated, web may send nothing";
    expect(when, Ways::NONE, Ways::ALL);
    backends_in(&near_itself);
    sync();
    let other_as_node = Ways {
        far: Answered,
        ..Ways::NONE
    };
    let when = "backends allow the node, web may send nothing";
    expect(when, Ways::NONE, other_as_node.clone());
    web_out("[{}]");
    sync();
    let web_as_node = Ways {
        far: Answered,
        ..Ways::NONE
    };
    expect("backends allow the node", web_as_node, other_as_node);
    backends_in(clients);
    sync();
    let known = Ways {
        far: Silent,
        ..Ways::ALL
    };
    expect("backends allow the clients", known.clone(), known);
}
