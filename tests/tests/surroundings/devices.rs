//! Devices that others make: the bandwidth plugin's queues, a second veth, overlays between pods.

use std::net::IpAddr;
use std::thread;
use std::time::Instant;

use portcullis_tests::netns::kube_proxy::Mode;
use portcullis_tests::netns::{Host, Netns, Node, Outcome, PATIENCE, Row, SILENCE, What, wrong};

use super::cases::{Needs, try_all};
use super::cast::{Cast, store_policy};
use super::flows;
use super::foreign::Surrounding;
use super::report::Report;
use super::world::{Base, World};
use Outcome::{Answered, Silent};
use What::{Ping, Tcp, Udp};

fn tc(netns: &Netns, line: &str) {
    netns
        .script("tc", &line.split_whitespace().collect::<Vec<_>>(), "")
        .unwrap();
}

/// What the CNI plugin `bandwidth` makes for a pod, in its order.
fn limit_bandwidth(node: &Node, number: u32) {
    let netns = node.netns();
    let (veth, ifb) = (format!("pcl-veth{number}"), format!("bwp{number}"));
    tc(
        netns,
        &format!("qdisc add dev {veth} root handle 1: tbf rate 500mbit burst 1mb latency 25ms"),
    );
    netns
        .ip(&format!("link add {ifb} type ifb\nlink set {ifb} up"))
        .unwrap();
    tc(netns, &format!("qdisc add dev {veth} handle ffff: ingress"));
    tc(
        netns,
        &format!(
            "filter add dev {veth} parent ffff: protocol all u32 match u32 0 0 flowid 1:1 action mirred egress redirect dev {ifb}"
        ),
    );
    tc(
        netns,
        &format!("qdisc add dev {ifb} root handle 1: tbf rate 500mbit burst 1mb latency 25ms"),
    );
}

fn all(world: &World<'_>, name: &str, report: &mut Report) {
    let plain = Surrounding::new("", Mode::Nftables, Vec::new());
    let (cells, mut wrong) = try_all(world.cast, Needs::Masquerade);
    let (more, bad) = flows::revoke(world, &plain);
    wrong.extend(bad);
    report.add(
        &format!("{}: {name}", world.base.name()),
        cells + more,
        &wrong,
    );
}

#[test]
fn beside_the_bandwidth_plugin() {
    let mut report = Report::default();
    for base in [Base::Routed, Base::Bridge] {
        let cast = base.cast();
        limit_bandwidth(&cast.node, 1);
        limit_bandwidth(&cast.node, 4);
        let world = World::new(base, &cast);
        world
            .proxy(Mode::Nftables)
            .apply(cast.node.netns())
            .unwrap();
        all(&world, "the bandwidth plugin before the agent", &mut report);
        // The plugin may not fail for what is there already.
        for number in [2, 3, 5] {
            limit_bandwidth(&cast.node, number);
        }
        all(&world, "the bandwidth plugin after the agent", &mut report);
    }
    report.finish("bandwidth plugin");
}

/// A second veth from the node to a pod, in a network of its own, by which the pod reaches friend.
fn second_veth(cast: &Cast, pod: &Host, number: u8) -> [IpAddr; 2] {
    let node = cast.node.netns();
    let [own, own_v6] = [
        format!("10.245.0.{number}2"),
        format!("fd00:10:245::{number}2"),
    ];
    let [gateway, gateway_v6] = [
        format!("10.245.0.{number}1"),
        format!("fd00:10:245::{number}1"),
    ];
    let [friend, friend_v6] = cast.friend.addresses();
    node.ip(&format!(
        "link add pcl-net{number} type veth peer name net1 netns {}\n\
         link set pcl-net{number} up\n\
         address add {gateway}/32 dev pcl-net{number}\n\
         address add {gateway_v6}/128 dev pcl-net{number} nodad\n\
         route add {own}/32 dev pcl-net{number}\n\
         route add {own_v6}/128 dev pcl-net{number}",
        pod.netns().path()
    ))
    .unwrap();
    pod.netns()
        .ip(&format!(
            "link set net1 up\n\
             address add {own}/32 dev net1\n\
             address add {own_v6}/128 dev net1 nodad\n\
             route add {gateway}/32 dev net1 src {own}\n\
             route add {gateway_v6}/128 dev net1\n\
             route add {friend}/32 via {gateway} dev net1 src {own}\n\
             route add {friend_v6}/128 via {gateway_v6} dev net1 src {own_v6}"
        ))
        .unwrap();
    [own.parse().unwrap(), own_v6.parse().unwrap()]
}

/// Isolated pods are isolated at each of their interfaces; others have them for their own use.
#[test]
fn with_a_second_veth() {
    let mut report = Report::default();
    for base in [Base::Routed, Base::Bridge] {
        let cast = base.cast();
        let other = second_veth(&cast, &cast.other, 1);
        let tool = second_veth(&cast, &cast.tool, 2);
        let rows = |other: [IpAddr; 2], tool: [IpAddr; 2]| -> Vec<Row<'_>> {
            let mut rows = Vec::new();
            for what in [Tcp(80), Udp(53), Ping] {
                rows.push((&cast.other, cast.friend.addresses(), what, Silent));
                rows.push((&cast.stranger, other, what, Silent));
                rows.push((&cast.tool, cast.friend.addresses(), what, Answered));
                rows.push((&cast.friend, tool, what, Answered));
            }
            rows
        };
        let world = World::new(base, &cast);
        let cells = rows(other, tool);
        let name = format!("{}: a second veth before the agent", base.name());
        report.add(&name, 2 * cells.len(), &wrong(&cells));
        let web = second_veth(&cast, &cast.web, 3);
        let open = second_veth(&cast, &cast.open, 4);
        // Found when the kernel tells of it.
        let mut cells = rows(other, tool);
        for what in [Tcp(80), Udp(53), Ping] {
            cells.push((&cast.stranger, web, what, Silent));
            cells.push((&cast.friend, open, what, Answered));
        }
        let deadline = Instant::now() + PATIENCE;
        while !wrong(&cells).is_empty() && Instant::now() < deadline {
            thread::sleep(SILENCE);
        }
        let name = format!("{}: a second veth after the agent", base.name());
        report.add(&name, 2 * cells.len(), &wrong(&cells));
        drop(world);
    }
    report.finish("second veths");
}

/// A VXLAN device in a pod, towards another pod.
fn nest(pod: &Host, peer: &Host, last: u8) {
    let [local, remote] = [pod, peer].map(|host| host.addresses()[0]);
    pod.netns()
        .ip(&format!(
            "link add nest{last} type vxlan id 9 local {local} remote {remote} dstport 8472\n\
             link set nest{last} mtu 1400 up\n\
             address add 172.20.0.{last}/24 dev nest{last}\n\
             address add fd00:172:20::{last}/64 dev nest{last} nodad"
        ))
        .unwrap();
}

/// Clusters within clusters: kind, k3d, vcluster.
#[test]
fn with_an_overlay_between_pods() {
    let mut report = Report::default();
    for base in [Base::Routed, Base::Bridge] {
        let cast = base.cast();
        // The node has one of its own, at the same port.
        cast.node
            .netns()
            .ip("link add pcl-over type vxlan id 7 remote 198.51.100.20 dstport 8472\nlink set pcl-over up")
            .unwrap();
        nest(&cast.tool, &cast.open, 1);
        nest(&cast.open, &cast.tool, 2);
        nest(&cast.web, &cast.db, 3);
        nest(&cast.db, &cast.web, 4);
        let policy = "podSelector: {matchExpressions: [{key: app, operator: In, values: [web, db]}]}\n\
             policyTypes: [Ingress, Egress]\n\
             ingress:\n- from: [{podSelector: {}}]\n\x20 ports: [{port: 8472, protocol: UDP}]\n\
             egress:\n- to: [{podSelector: {}}]\n\x20 ports: [{port: 8472, protocol: UDP}]";
        store_policy(&cast, "overlay", policy);
        let _world = World::new(base, &cast);
        let at = |last: u8| -> [IpAddr; 2] {
            [format!("172.20.0.{last}"), format!("fd00:172:20::{last}")]
                .map(|text| text.parse().unwrap())
        };
        let mut rows: Vec<Row<'_>> = Vec::new();
        for what in [Tcp(80), Udp(53), Ping] {
            rows.push((&cast.tool, at(2), what, Answered));
            rows.push((&cast.open, at(1), what, Answered));
            rows.push((&cast.web, at(4), what, Answered));
            rows.push((&cast.db, at(3), what, Answered));
        }
        let name = format!("{}: overlays between pods", base.name());
        report.add(&name, 2 * rows.len(), &wrong(&rows));
    }
    report.finish("overlays between pods");
}
