//! kube-proxy's `--masquerade-all` on a cluster of two nodes: a client is known on its own node, and counts as that
//! node on others, whether policies isolate it or not.
//!
//! ```text
//! web, other, cache - near (203.0.113.1) ===== (203.0.113.2) far - db
//! ```

use portcullis_tests::netns::kube_proxy::{KubeProxy, Protocol, ServicePort};
use portcullis_tests::netns::{Agent, Form, Host, Node, Outcome, PodSpec, What};

use super::underlay::{Underlay, join, wire};
use super::{
    MODES, address_blocks, backends, cluster_ips, expect, in_both_forms, ip_blocks, kube_proxy,
    publish,
};
use Outcome::{Answered, Silent};
use What::{Tcp, Udp};

in_both_forms! { masqueraded_clients_are_known_on_their_own_node_only }

const PORT: u16 = 8000;

/// Last part of a Service's addresses, by its backend.
const DB: u8 = 10;
const CACHE: u8 = 11;

/// What comes of a client's packets: to cache on its own node and to db on the other one through Services, and to db
/// without one.
struct Ways {
    /// Of the client that policies isolate.
    web: [Outcome; 3],
    /// Of the one that none isolates.
    other: [Outcome; 3],
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
    let tcp = |last, host: &Host| {
        ServicePort::new(
            &cluster_ips(last),
            Protocol::Tcp,
            PORT,
            &backends(&[host], 80),
        )
    };
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
    for mode in MODES {
        let mut proxy = kube_proxy(mode, &services);
        proxy.masquerades_all = true;
        proxy.apply(near.netns()).unwrap();
        let expect = |when: &str, ways: Ways| {
            let rows = [(web, ways.web), (other, ways.other)].into_iter();
            let rows = rows.flat_map(|(client, [to_cache, to_db, directly])| {
                [
                    (client, cluster_ips(CACHE), Tcp(PORT), to_cache.clone()),
                    (client, cluster_ips(CACHE), Udp(53), to_cache),
                    (client, cluster_ips(DB), Tcp(PORT), to_db.clone()),
                    (client, cluster_ips(DB), Udp(53), to_db),
                    (client, db.addresses(), Tcp(80), directly),
                ]
            });
            let rows: Vec<_> = rows.collect();
            expect(&format!("{mode:?}, {when}"), &rows);
        };
        let all = || [Answered, Answered, Answered];
        let none = || [Silent, Silent, Silent];
        web_out("[{}]");
        sync();
        expect(
            "backends not isolated",
            Ways {
                web: all(),
                other: all(),
            },
        );
        web_out("[]");
        sync();
        expect(
            "backends not isolated, web may send nothing",
            Ways {
                web: none(),
                other: all(),
            },
        );
        backends_in(&near_itself);
        sync();
        expect(
            "backends allow the node, web may send nothing",
            Ways {
                web: none(),
                other: [Silent, Answered, Silent],
            },
        );
        web_out("[{}]");
        sync();
        expect(
            "backends allow the node",
            Ways {
                web: [Silent, Answered, Silent],
                other: [Silent, Answered, Silent],
            },
        );
        backends_in(clients);
        sync();
        expect(
            "backends allow the clients",
            Ways {
                web: [Answered, Silent, Answered],
                other: [Answered, Silent, Answered],
            },
        );
        for node in &nodes {
            node.datastore()
                .delete_policy("shop", "backends-in")
                .unwrap();
        }
        KubeProxy::withdraw(mode, near.netns()).unwrap();
    }
}
