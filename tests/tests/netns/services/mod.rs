//! Services, translated as kube-proxy does it, and judged by the real agent.

mod churn;
mod inside;
mod ipvs;
mod masqueraded;
mod new_interfaces;
mod node_ports;
mod nodes;
mod outside;
mod survival;
mod translation;
mod underlay;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use portcullis_tests::netns::kube_proxy::{KubeProxy, Mode, Protocol, ServicePort};
use portcullis_tests::netns::{Host, Node, Row, expect};

use super::{Cast, in_both_forms};

/// Ways of translation whose rules differ.
const MODES: [Mode; 2] = [Mode::IptablesLegacy, Mode::Nftables];

/// A Service's cluster IPs, one of each family.
fn cluster_ips(last: u8) -> [IpAddr; 2] {
    [
        Ipv4Addr::new(10, 96, 0, last).into(),
        Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 0, last.into()).into(),
    ]
}

/// Addresses of both families that someone routes to the cluster.
fn external_ips(last: u8) -> [IpAddr; 2] {
    [
        Ipv4Addr::new(192, 0, 2, last).into(),
        Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, last.into()).into(),
    ]
}

/// Where a Service leads to: `port` of these, in both families.
fn backends(hosts: &[&Host], port: u16) -> Vec<SocketAddr> {
    let addresses = hosts.iter().flat_map(|host| host.addresses());
    addresses
        .map(|address| SocketAddr::new(address, port))
        .collect()
}

/// A Service's TCP port that leads to port 80 of `hosts`.
fn to_web_servers(last: u8, port: u16, hosts: &[&Host]) -> ServicePort {
    ServicePort::new(
        &cluster_ips(last),
        Protocol::Tcp,
        port,
        &backends(hosts, 80),
    )
}

/// Peers for policies: an address of each family.
fn ip_blocks(host: &Host) -> String {
    address_blocks(host.addresses())
}

/// Peers for policies: an address of each family.
fn address_blocks([v4, v6]: [IpAddr; 2]) -> String {
    format!("{{ipBlock: {{cidr: {v4}/32}}}}, {{ipBlock: {{cidr: '{v6}/128'}}}}")
}

/// kube-proxy for all pods of a cluster.
fn kube_proxy(mode: Mode, services: &[ServicePort]) -> KubeProxy {
    let networks = ["10.244.0.0/16", "fd00:10:244::/48"].map(|network| network.parse().unwrap());
    let mut proxy = KubeProxy::new(mode, &networks);
    proxy.services = services.to_vec();
    proxy
}

/// Tells the agent's datastore of these Services.
fn publish(node: &Node, services: &[ServicePort]) {
    for (number, service) in services.iter().enumerate() {
        let ServicePort {
            cluster_ips,
            external_ips,
            ..
        } = service;
        let name = format!("service-{number}");
        let store = node.datastore();
        store
            .put_service("shop", &name, cluster_ips, external_ips)
            .unwrap();
    }
}

/// Whatever is neither a pod's nor the node's goes to this host, so that kube-proxy can refuse it on the way.
fn route_all_to(node: &Node, outside: &Host) {
    let [v4, v6] = outside.addresses();
    let routes = format!("route add 0.0.0.0/0 via {v4}\nroute add ::/0 via {v6}");
    node.netns().ip(&routes).unwrap();
}
