//! The chains of kube-proxy's mode `iptables`, as input of iptables-restore.

use std::fmt::Write as _;
use std::net::SocketAddr;

use anyhow::Result;

use super::{Rules, ServicePort};
use crate::netns::{Family, Netns};

/// Puts both tables in place, whole.
pub(super) fn apply(rules: &Rules, node: &Netns, variant: &str) -> Result<()> {
    node.script(&command(rules.family, variant), &[], &text(rules))
}

/// Empties both tables.
pub(super) fn withdraw(family: Family, node: &Netns, variant: &str) -> Result<()> {
    let empty = "*nat\nCOMMIT\n*filter\nCOMMIT\n";
    node.script(&command(family, variant), &[], empty)
}

fn command(family: Family, variant: &str) -> String {
    match family {
        Family::V4 => format!("iptables-{variant}-restore"),
        Family::V6 => format!("ip6tables-{variant}-restore"),
    }
}

fn text(rules: &Rules) -> String {
    let mut chains = Chains::default();
    chains.add("KUBE-SERVICES");
    chains.add("KUBE-NODEPORTS");
    chains.add("KUBE-MARK-MASQ");
    chains.add("KUBE-POSTROUTING");
    for hook in ["PREROUTING", "OUTPUT"] {
        chains.rule(hook, "-j KUBE-SERVICES");
    }
    chains.rule("POSTROUTING", "-j KUBE-POSTROUTING");
    chains.rule("KUBE-MARK-MASQ", "-j MARK --or-mark 0x4000");
    chains.rule(
        "KUBE-POSTROUTING",
        "-m mark ! --mark 0x4000/0x4000 -j RETURN",
    );
    chains.rule("KUBE-POSTROUTING", "-j MARK --xor-mark 0x4000");
    chains.rule("KUBE-POSTROUTING", "-j MASQUERADE --random-fully");
    if let Some(network) = rules.pod_network.filter(|_| rules.masquerades_leaving) {
        let rule = format!("-s {network} ! -d {network} -j MASQUERADE");
        chains.rule("POSTROUTING", &rule);
    }
    let (mut rejected, mut dropped) = (String::new(), String::new());
    for (number, service) in rules.services.iter().enumerate() {
        dropped += &drop_without_local_backends(service);
        if service.backends.is_empty() {
            rejected += &reject(service);
        } else {
            translate(rules, number, service, &mut chains);
        }
    }
    chains.rule(
        "KUBE-SERVICES",
        "-m addrtype --dst-type LOCAL -j KUBE-NODEPORTS",
    );
    format!(
        "*nat\n:PREROUTING ACCEPT\n:INPUT ACCEPT\n:OUTPUT ACCEPT\n:POSTROUTING ACCEPT\n{}{}COMMIT\n\
         *filter\n:INPUT ACCEPT\n:FORWARD ACCEPT\n:OUTPUT ACCEPT\n:KUBE-SERVICES -\n\
         -A FORWARD -m conntrack --ctstate NEW -j KUBE-SERVICES\n\
         -A OUTPUT -m conntrack --ctstate NEW -j KUBE-SERVICES\n\
         :KUBE-EXTERNAL-SERVICES -\n\
         -A INPUT -m conntrack --ctstate NEW -j KUBE-EXTERNAL-SERVICES\n\
         -A FORWARD -m conntrack --ctstate NEW -j KUBE-EXTERNAL-SERVICES\n\
         {rejected}{dropped}COMMIT\n",
        chains.names, chains.rules
    )
}

/// Names and rules of the table `nat`.
#[derive(Default)]
struct Chains {
    names: String,
    rules: String,
}

impl Chains {
    fn add(&mut self, chain: &str) {
        let _infallible = writeln!(self.names, ":{chain} -");
    }

    fn rule(&mut self, chain: &str, rule: &str) {
        let _infallible = writeln!(self.rules, "-A {chain} {rule}");
    }

    /// A chain that chooses among backends, each as likely.
    fn choose(&mut self, chain: &str, protocol: &str, backends: &[SocketAddr]) {
        for (position, backend) in backends.iter().enumerate() {
            let endpoint = format!("{}-{position}", chain.replace("KUBE-SV", "KUBE-SEP"));
            self.add(&endpoint);
            let left = backends.len() - position;
            let chance = if left == 1 {
                String::new()
            } else {
                let probability = 1.0 / left as f64;
                format!("-m statistic --mode random --probability {probability:.10} ")
            };
            self.rule(chain, &format!("{chance}-j {endpoint}"));
            self.rule(&endpoint, &format!("-s {} -j KUBE-MARK-MASQ", backend.ip()));
            self.rule(
                &endpoint,
                &format!("-p {protocol} -m {protocol} -j DNAT --to-destination {backend}"),
            );
        }
    }
}

fn translate(rules: &Rules, number: usize, service: &ServicePort, chains: &mut Chains) {
    let protocol = service.protocol.name();
    let port = service.port;
    let cluster = format!("KUBE-SVC-{number}");
    chains.add(&cluster);
    for ip in &service.cluster_ips {
        let matched = format!("-d {ip} -p {protocol} -m {protocol} --dport {port}");
        chains.rule("KUBE-SERVICES", &format!("{matched} -j {cluster}"));
        if rules.masquerades_all {
            chains.rule(&cluster, &format!("{matched} -j KUBE-MARK-MASQ"));
        } else if let Some(network) = rules.pod_network {
            chains.rule(
                &cluster,
                &format!("! -s {network} {matched} -j KUBE-MARK-MASQ"),
            );
        }
    }
    chains.choose(&cluster, protocol, &service.backends);
    if service.external_ips.is_empty() && service.node_port.is_none() {
        return;
    }
    let external = format!("KUBE-EXT-{number}");
    chains.add(&external);
    for ip in &service.external_ips {
        let rule = format!("-d {ip} -p {protocol} -m {protocol} --dport {port} -j {external}");
        chains.rule("KUBE-SERVICES", &rule);
    }
    if let Some(port) = service.node_port {
        let rule = format!("-p {protocol} -m {protocol} --dport {port} -j {external}");
        chains.rule("KUBE-NODEPORTS", &rule);
    }
    let Some(local) = &service.local_backends else {
        chains.rule(&external, "-j KUBE-MARK-MASQ");
        chains.rule(&external, &format!("-j {cluster}"));
        return;
    };
    // Pods and the node itself are inside, and go as to the cluster IP.
    if let Some(network) = rules.pod_network {
        chains.rule(&external, &format!("-s {network} -j {cluster}"));
    }
    let from_here = "-m addrtype --src-type LOCAL";
    chains.rule(&external, &format!("{from_here} -j KUBE-MARK-MASQ"));
    chains.rule(&external, &format!("{from_here} -j {cluster}"));
    if local.is_empty() {
        return;
    }
    let chain = format!("KUBE-SVL-{number}");
    chains.add(&chain);
    chains.rule(&external, &format!("-j {chain}"));
    chains.choose(&chain, protocol, local);
}

/// Without backends a Service refuses rather than be silent.
fn reject(service: &ServicePort) -> String {
    let protocol = service.protocol.name();
    let ips = service.cluster_ips.iter().chain(&service.external_ips);
    ips.map(|ip| {
        let port = service.port;
        format!("-A KUBE-SERVICES -d {ip} -p {protocol} -m {protocol} --dport {port} -j REJECT\n")
    })
    .collect()
}

/// Where no backend is local, `externalTrafficPolicy: Local` is silent to those outside.
fn drop_without_local_backends(service: &ServicePort) -> String {
    if !service.lacks_local_backends() {
        return String::new();
    }
    let protocol = service.protocol.name();
    let ports = service.node_port.iter();
    let ports = ports.map(|port| format!("-m addrtype --dst-type LOCAL --dport {port}"));
    let ips = service.external_ips.iter();
    let ips = ips.map(|ip| format!("-d {ip} --dport {}", service.port));
    ports
        .chain(ips)
        .map(|to| format!("-A KUBE-EXTERNAL-SERVICES -p {protocol} -m {protocol} {to} -j DROP\n"))
        .collect()
}
