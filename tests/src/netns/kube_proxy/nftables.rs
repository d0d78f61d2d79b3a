//! The table of kube-proxy's mode `nftables`, as input of nft.

use std::fmt::Write as _;
use std::net::SocketAddr;

use anyhow::Result;

use super::{Rules, ServicePort};
use crate::netns::{Family, Netns};

/// Replaces the table, whole.
pub(super) fn apply(rules: &Rules, node: &Netns) -> Result<()> {
    node.script("nft", &["-f", "-"], &text(rules))
}

/// Takes the table away, where there is one.
pub(super) fn withdraw(family: Family, node: &Netns) -> Result<()> {
    let ip = match family {
        Family::V4 => "ip",
        Family::V6 => "ip6",
    };
    let text = format!("table {ip} kube-proxy\ndelete table {ip} kube-proxy\n");
    node.script("nft", &["-f", "-"], &text)
}

/// What differs between the families.
struct Words {
    /// The table's family, and how addresses are matched.
    ip: &'static str,
    /// Type of an address.
    address: &'static str,
}

fn text(rules: &Rules) -> String {
    let words = match rules.family {
        Family::V4 => Words {
            ip: "ip",
            address: "ipv4_addr",
        },
        Family::V6 => Words {
            ip: "ip6",
            address: "ipv6_addr",
        },
    };
    let ip = words.ip;
    let mut table = Table::default();
    for (number, service) in rules.services.iter().enumerate() {
        table.service(rules, ip, number, service);
    }
    let leaving = rules.pod_network.filter(|_| rules.masquerades_leaving);
    let leaving =
        leaving.map(|network| format!("{ip} saddr {network} {ip} daddr != {network} masquerade\n"));
    format!(
        "table {ip} kube-proxy\n\
         delete table {ip} kube-proxy\n\
         table {ip} kube-proxy {{\n\
         chain mark-for-masquerade {{ meta mark set meta mark | 0x4000\n }}\n\
         chain masquerading {{\n\
         meta mark & 0x4000 == 0 return\n\
         meta mark set meta mark ^ 0x4000\n\
         masquerade fully-random\n\
         }}\n\
         {chains}\
         map service-ips {{ type {address} . inet_proto . inet_service : verdict\n{ips}}}\n\
         map service-nodeports {{ type inet_proto . inet_service : verdict\n{nodeports}}}\n\
         chain services {{\n\
         {ip} daddr . meta l4proto . th dport vmap @service-ips\n\
         fib daddr type local meta l4proto . th dport vmap @service-nodeports\n\
         }}\n\
         chain no-endpoints {{\n{reject}}}\n\
         map no-endpoint-nodeports {{ type inet_proto . inet_service : verdict\n{no_node_ports}}}\n\
         chain nodeport-endpoints-check {{\n\
         fib daddr type local meta l4proto . th dport vmap @no-endpoint-nodeports\n\
         }}\n\
         chain nat-prerouting {{ type nat hook prerouting priority dstnat; jump services\n }}\n\
         chain nat-output {{ type nat hook output priority -100; jump services\n }}\n\
         chain nat-postrouting {{ type nat hook postrouting priority srcnat; jump masquerading\n{leaving} }}\n\
         chain filter-input {{ type filter hook input priority -110; ct state new jump nodeport-endpoints-check\n }}\n\
         chain filter-forward {{ type filter hook forward priority -110; ct state new jump no-endpoints\n }}\n\
         chain filter-output {{ type filter hook output priority -110; ct state new jump no-endpoints\n }}\n\
         }}\n",
        chains = table.chains,
        address = words.address,
        ips = elements(&table.ips),
        nodeports = elements(&table.node_ports),
        no_node_ports = elements(&table.no_node_ports),
        reject = table.reject,
        leaving = leaving.unwrap_or_default(),
    )
}

fn elements(elements: &[String]) -> String {
    if elements.is_empty() {
        return String::new();
    }
    format!("elements = {{ {} }}\n", elements.join(", "))
}

/// Parts of the table.
#[derive(Default)]
struct Table {
    chains: String,
    ips: Vec<String>,
    node_ports: Vec<String>,
    /// Those of `externalTrafficPolicy: Local` without local backends.
    no_node_ports: Vec<String>,
    reject: String,
}

impl Table {
    fn service(&mut self, rules: &Rules, ip: &str, number: usize, service: &ServicePort) {
        let protocol = service.protocol.name();
        let port = service.port;
        if service.backends.is_empty() {
            for address in service.cluster_ips.iter().chain(&service.external_ips) {
                let _infallible = writeln!(
                    self.reject,
                    "{ip} daddr {address} {protocol} dport {port} reject"
                );
            }
            return;
        }
        let cluster = format!("service-{number}");
        let mut marked = String::new();
        for address in &service.cluster_ips {
            self.ips
                .push(format!("{address} . {protocol} . {port} : goto {cluster}"));
            let from = match rules.pod_network {
                _ if rules.masquerades_all => String::new(),
                Some(network) => format!("{ip} saddr != {network} "),
                None => continue,
            };
            let _infallible = writeln!(
                marked,
                "{ip} daddr {address} {protocol} dport {port} {from}jump mark-for-masquerade"
            );
        }
        self.choose(ip, &cluster, &marked, protocol, &service.backends);
        if service.external_ips.is_empty() && service.node_port.is_none() {
            return;
        }
        let external = format!("external-{number}");
        let external_ips = service.external_ips.iter();
        self.ips.extend(
            external_ips
                .map(|address| format!("{address} . {protocol} . {port} : goto {external}")),
        );
        let node_port = service.node_port.iter();
        self.node_ports
            .extend(node_port.map(|port| format!("{protocol} . {port} : goto {external}")));
        if service.lacks_local_backends() {
            let node_port = service.node_port.iter();
            self.no_node_ports
                .extend(node_port.map(|port| format!("{protocol} . {port} : drop")));
        }
        let body = match &service.local_backends {
            None => format!("jump mark-for-masquerade\ngoto {cluster}\n"),
            Some(local) => {
                let pods = rules.pod_network;
                let pods = pods.map(|network| format!("{ip} saddr {network} goto {cluster}\n"));
                let mut body = format!(
                    "{}fib saddr type local jump mark-for-masquerade\n\
                     fib saddr type local goto {cluster}\n",
                    pods.unwrap_or_default()
                );
                if !local.is_empty() {
                    let chain = format!("local-{number}");
                    self.choose(ip, &chain, "", protocol, local);
                    let _infallible = writeln!(body, "goto {chain}");
                }
                body
            }
        };
        let _infallible = writeln!(self.chains, "chain {external} {{\n{body}}}");
    }

    /// A chain that chooses among backends, each as likely; chains come before those that name them.
    fn choose(
        &mut self,
        ip: &str,
        chain: &str,
        first: &str,
        protocol: &str,
        backends: &[SocketAddr],
    ) {
        let mut choices = Vec::new();
        for (position, backend) in backends.iter().enumerate() {
            let endpoint = format!("endpoint-{chain}-{position}");
            let _infallible = writeln!(
                self.chains,
                "chain {endpoint} {{\n{ip} saddr {} jump mark-for-masquerade\n\
                 meta l4proto {protocol} dnat to {backend}\n}}",
                backend.ip()
            );
            choices.push(format!("{position} : goto {endpoint}"));
        }
        let count = choices.len();
        let choice = format!(
            "numgen random mod {count} vmap {{ {} }}",
            choices.join(", ")
        );
        let _infallible = writeln!(self.chains, "chain {chain} {{\n{first}{choice}\n}}");
    }
}
