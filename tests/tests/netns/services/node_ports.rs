//! NodePorts, reached from outside, where the backend is on another node than the one that is asked.
//!
//! ```text
//! known, other 198.51.100.0/24 - near (203.0.113.1) ===== (203.0.113.2) far - db
//! ```

use portcullis_tests::netns::kube_proxy::{KubeProxy, Protocol, ServicePort};
use portcullis_tests::netns::{Agent, Form, Node, Outcome, PodSpec, What};

use super::super::DENY_INGRESS;
use super::underlay::{Underlay, join, wire};
use super::{
    MODES, address_blocks, backends, expect, in_both_forms, ip_blocks, kube_proxy, publish,
};
use Outcome::{Answered, Silent};

in_both_forms! { another_nodes_backend_judges_whom_it_sees }

/// With `externalTrafficPolicy: Cluster`: masqueraded by the node that is asked.
const CLUSTER: u16 = 30080;
/// With `externalTrafficPolicy: Local`: only the backend's node leads to it, and leaves the source as it is.
const LOCAL: u16 = 30081;

/// What comes of each way to db: by which port of which node, and for `Local` from whom.
struct Ways {
    near_cluster: Outcome,
    far_cluster: Outcome,
    far_local_known: Outcome,
    far_local_other: Outcome,
}

impl Ways {
    const NONE: Self = Self {
        near_cluster: Silent,
        far_cluster: Silent,
        far_local_known: Silent,
        far_local_other: Silent,
    };
}

fn another_nodes_backend_judges_whom_it_sees(form: Form) {
    let nodes = [0, 1].map(|number| Node::numbered(form, number).unwrap());
    let [near, far] = &nodes;
    join([near, far], Underlay::Routes);
    // Who keeps its address is answered by the way that it came.
    let [v4, v6] = wire(0);
    let back = format!(
        "route add 198.51.100.0/24 via {v4}\n\
         route add 2001:db8:51::/64 via {v6}"
    );
    far.netns().ip(&back).unwrap();
    let known = near.add_outside("known", 9).unwrap();
    let other = near.add_outside("other", 10).unwrap();
    let labels = [("app", "db")];
    let db = far.add(PodSpec::new("shop", "db", &labels)).unwrap();
    let store = near.datastore();
    store
        .put_pod("shop", "db", &labels, &[], &db.addresses())
        .unwrap();
    let port = |node_port, local_backends| ServicePort {
        node_port: Some(node_port),
        local_backends,
        ..ServicePort::new(&[], Protocol::Tcp, 8000, &backends(&[&db], 80))
    };
    let services_at = |local| [port(CLUSTER, None), port(LOCAL, Some(local))];
    let services = [services_at(Vec::new()), services_at(backends(&[&db], 80))];
    for (node, services) in nodes.iter().zip(&services) {
        node.datastore()
            .put_namespace("shop", &[("team", "shop")])
            .unwrap();
        publish(node, services);
    }
    let [_near_agent, agent] = [near, far].map(|node| Agent::start(node).unwrap());
    let isolate = |from: &str| {
        let spec = format!(
            "podSelector: {{matchLabels: {{app: db}}}}\ningress:\n- from: [{from}]\n\x20 ports: [{{port: 80}}]"
        );
        far.datastore().put_policy("shop", "to-db", &spec).unwrap();
        agent.sync().unwrap();
    };
    for mode in MODES {
        for (node, services) in nodes.iter().zip(&services) {
            kube_proxy(mode, services).apply(node.netns()).unwrap();
        }
        let expect = |when: &str, ways: Ways| {
            let rows = [
                (
                    &known,
                    wire(0),
                    What::Tcp(CLUSTER),
                    ways.near_cluster.clone(),
                ),
                (&other, wire(0), What::Tcp(CLUSTER), ways.near_cluster),
                (
                    &known,
                    wire(1),
                    What::Tcp(CLUSTER),
                    ways.far_cluster.clone(),
                ),
                (&other, wire(1), What::Tcp(CLUSTER), ways.far_cluster),
                (&known, wire(1), What::Tcp(LOCAL), ways.far_local_known),
                (&other, wire(1), What::Tcp(LOCAL), ways.far_local_other),
                // Without a local backend, whatever the policies.
                (&known, wire(0), What::Tcp(LOCAL), Silent),
            ];
            expect(&format!("{mode:?}, {when}"), &rows);
        };
        expect(
            "not isolated",
            Ways {
                near_cluster: Answered,
                far_cluster: Answered,
                far_local_known: Answered,
                far_local_other: Answered,
            },
        );
        far.datastore()
            .put_policy("shop", "default-deny", DENY_INGRESS)
            .unwrap();
        agent.sync().unwrap();
        expect("nobody is allowed", Ways::NONE);
        isolate(&ip_blocks(&known));
        expect(
            "one client's address is allowed",
            Ways {
                far_local_known: Answered,
                ..Ways::NONE
            },
        );
        isolate(&address_blocks(wire(0)));
        expect(
            "the near node's address is allowed",
            Ways {
                near_cluster: Answered,
                ..Ways::NONE
            },
        );
        isolate(&ip_blocks(far));
        expect(
            "its own node's address is allowed",
            Ways {
                far_cluster: Answered,
                ..Ways::NONE
            },
        );
        for name in ["to-db", "default-deny"] {
            far.datastore().delete_policy("shop", name).unwrap();
        }
        agent.sync().unwrap();
        for node in &nodes {
            KubeProxy::withdraw(mode, node.netns()).unwrap();
        }
    }
}
