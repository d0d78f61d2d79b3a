//! Two nodes, joined: what lies between them.

use std::net::IpAddr;

use portcullis_tests::netns::{Netns, Node, Tunnel};

/// How packets go from node to node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Underlay {
    Routes,
    Vxlan,
    /// Without a link layer.
    Tunnel,
}

/// The nodes' addresses on the wire between them.
pub(super) fn wire(number: u8) -> [IpAddr; 2] {
    let last = number + 1;
    [
        [203, 0, 113, last].into(),
        [0x2001, 0xdb8, 3, 0, 0, 0, 0, last.into()].into(),
    ]
}

/// The nodes' addresses on the device that encapsulates.
fn overlay(number: u8) -> [IpAddr; 2] {
    let last = number + 1;
    [
        [172, 16, 0, last].into(),
        [0xfd00, 0x172, 0, 0, 0, 0, 0, last.into()].into(),
    ]
}

fn bring_up(netns: &Netns, device: &str, [v4, v6]: [IpAddr; 2]) {
    netns
        .ip(&format!(
            "link set {device} up\n\
             address add {v4}/24 dev {device}\n\
             address add {v6}/64 dev {device} nodad"
        ))
        .unwrap();
}

/// Joins the nodes; what is returned holds them together.
pub(super) fn join(nodes: [&Node; 2], underlay: Underlay) -> Option<Tunnel> {
    let [near, far] = nodes.map(|node| node.netns());
    let peer = far.path();
    near.ip(&format!(
        "link add pcl-node type veth peer name pcl-node netns {peer}"
    ))
    .unwrap();
    let tunnel =
        (underlay == Underlay::Tunnel).then(|| Tunnel::create("pcl-over", [near, far]).unwrap());
    for (netns, own, other) in [(near, 0, 1), (far, 1, 0)] {
        bring_up(netns, "pcl-node", wire(own));
        if underlay == Underlay::Vxlan {
            let [local, remote] = [own, other].map(|number| wire(number)[0]);
            netns
                .ip(&format!(
                    "link add pcl-over type vxlan id 7 local {local} remote {remote} dstport 8472 dev pcl-node"
                ))
                .unwrap();
        }
        let via = if underlay == Underlay::Routes {
            wire(other)
        } else {
            bring_up(netns, "pcl-over", overlay(own));
            overlay(other)
        };
        let [via_v4, via_v6] = via;
        netns
            .ip(&format!(
                "route add 10.244.{other}.0/24 via {via_v4}\n\
                 route add fd00:10:244:{other}::/64 via {via_v6}"
            ))
            .unwrap();
    }
    tunnel
}
