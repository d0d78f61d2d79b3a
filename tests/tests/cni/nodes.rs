//! Two nodes: pods of one reach pods of the other by routes, as in a cloud, or through VXLAN, as with flannel.
//!
//! ```text
//! pods 10.245.1.0/24 - near (192.0.2.1) ===== (192.0.2.2) far - pods 10.245.0.0/24
//! ```

use portcullis_tests::netns::{Agent, Node, Outcome, Probe, SILENCE, Servers, What, probe};

use super::observer::Observer;
use super::runner::{Network, Sandbox};
use super::starts::{heard, reaches};
use super::{machine, make_bridge, with_both_plugins};

/// How packets go from node to node.
#[derive(Clone, Copy, Debug)]
enum Underlay {
    Routes,
    Vxlan,
}

with_both_plugins! {
    policy_holds_across_routes
    policy_holds_across_vxlan
}

fn policy_holds_across_routes(plugin: &str) {
    policy_holds_between_nodes(plugin, Underlay::Routes);
}

fn policy_holds_across_vxlan(plugin: &str) {
    policy_holds_between_nodes(plugin, Underlay::Vxlan);
}

/// Joins two nodes as flannel does. The first has the address 10.245.1.0.
pub(crate) fn join_by_vxlan(nodes: [&Node; 2]) {
    join(nodes, Underlay::Vxlan);
}

/// Joins the nodes, near first.
fn join(nodes: [&Node; 2], underlay: Underlay) {
    let [near, far] = nodes;
    let far_netns = far.netns().path();
    near.netns()
        .ip(&format!(
            "link add pcl-node type veth peer name pcl-node netns {far_netns}"
        ))
        .unwrap();
    for (node, own, other, own_pods, other_pods) in [(near, 1, 2, 1, 0), (far, 2, 1, 0, 1)] {
        let mut lines =
            format!("address add 192.0.2.{own}/24 dev pcl-node\nlink set pcl-node up\n");
        lines += &match underlay {
            Underlay::Routes => format!("route add 10.245.{other_pods}.0/24 via 192.0.2.{other}\n"),
            Underlay::Vxlan => format!(
                "link add pcl-vxlan type vxlan id 7 local 192.0.2.{own} remote 192.0.2.{other} dstport 8472 dev pcl-node\n\
                 address add 10.245.{own_pods}.0/32 dev pcl-vxlan\n\
                 link set pcl-vxlan up\n\
                 route add 10.245.{other_pods}.0/24 via 10.245.{other_pods}.0 dev pcl-vxlan onlink\n"
            ),
        };
        node.netns().ip(&lines).unwrap();
    }
}

fn policy_holds_between_nodes(plugin: &str, underlay: Underlay) {
    let nodes = [machine(), machine()];
    let [near, far] = &nodes;
    join([near, far], underlay);
    for node in [near, far] {
        make_bridge(node, plugin);
    }
    let agents = [near, far].map(|node| Agent::start(node).unwrap());
    let near_network = Network::new(near, plugin).numbered(1);
    let far_network = Network::new(far, plugin);
    let [web, tool] = ["web", "tool"].map(|name| {
        let labels = [("app", name)];
        let put = |node: &Node, addresses: &[_]| {
            let store = node.datastore();
            store
                .put_pod("shop", name, &labels, &[], addresses)
                .unwrap();
        };
        put(near, &[]);
        let mut pod = near_network.sandbox("shop", name);
        near_network.add(&mut pod).unwrap();
        // Now the API has its address, and the other node hears of it.
        put(far, &[pod.address(true)]);
        pod
    });
    agents[1].sync().unwrap();
    let observer = Observer::start(&tool.netns);
    far.datastore()
        .put_pod("shop", "db", &[("app", "db")], &[], &[])
        .unwrap();
    let mut db = far_network.sandbox("shop", "db");
    far_network.add(&mut db).unwrap();
    let _servers = Servers::start(&db.netns, &[], &[53]).unwrap();
    assert_eq!(reaches(&web, &db, true), Outcome::Answered, "{underlay:?}");
    assert_eq!(heard(&db.netns, &observer), 0, "{underlay:?}");
    assert_eq!(tries(&tool, &db), Outcome::Silent, "{underlay:?}");

    // The way is there for who may use it.
    far.datastore()
        .put_pod("dev", "open", &[], &[], &[])
        .unwrap();
    let mut open = far_network.sandbox("dev", "open");
    far_network.add(&mut open).unwrap();
    assert!(heard(&open.netns, &observer) > 0, "{underlay:?}");
    drop(observer);
    for pod in [&web, &tool] {
        near_network.del(pod).unwrap();
    }
    for pod in [&db, &open] {
        far_network.del(pod).unwrap();
    }
}

fn tries(from: &Sandbox, to: &Sandbox) -> Outcome {
    probe(&Probe {
        from: &from.netns,
        to: to.address(true),
        what: What::Udp(53),
        patience: SILENCE,
    })
}
