//! Services that IPVS translates, where the kernel has it.

use std::path::Path;
use std::process::Command;

use portcullis_tests::netns::{Agent, Form, Host, Netns, Outcome, What};

use super::{Cast, cluster_ips, expect};

const PORT: u16 = 8000;

/// Why IPVS cannot be had here, where it cannot.
fn is_missing() -> Option<&'static str> {
    // A kernel that has it built in knows no module of that name.
    let _loaded = Command::new("modprobe").arg("ip_vs").output();
    if !Path::new("/proc/sys/net/ipv4/vs").exists() {
        return Some("the kernel has no IPVS (CONFIG_IP_VS)");
    }
    let Ok(_) = Command::new("ipvsadm").arg("--version").output() else {
        return Some("ipvsadm is not installed");
    };
    None
}

/// As kube-proxy's mode `ipvs`: the Service's address is the node's own, and IPVS takes what is delivered there.
fn translate(node: &Netns, last: u8, backend: &Host) {
    let mut rules = String::new();
    for (address, to) in cluster_ips(last).into_iter().zip(backend.addresses()) {
        node.ip(&format!("address add {address} dev kube-ipvs0"))
            .unwrap();
        let (service, server) = match address.is_ipv4() {
            true => (format!("{address}:{PORT}"), format!("{to}:80")),
            false => (format!("[{address}]:{PORT}"), format!("[{to}]:80")),
        };
        rules += &format!("-A -t {service} -s rr\n-a -t {service} -r {server} -m\n");
    }
    node.script("ipvsadm", &["-R"], &rules).unwrap();
}

#[test]
fn egress_is_judged_by_backends_with_ipvs() {
    if let Some(why) = is_missing() {
        eprintln!("skipped: {why}");
        return;
    }
    let cast = Cast::new(Form::Routed);
    let node = cast.node.netns();
    node.ip("link add kube-ipvs0 type dummy").unwrap();
    node.sysctl("net/ipv4/vs/conntrack", "1").unwrap();
    translate(node, 10, &cast.db);
    translate(node, 11, &cast.tool);
    for last in [10, 11] {
        let store = cast.node.datastore();
        let name = format!("service-{last}");
        store
            .put_service("shop", &name, &cluster_ips(last), &[])
            .unwrap();
    }
    cast.policy(
        "web-out",
        "podSelector: {matchLabels: {app: web}}\n\
         policyTypes: [Egress]\n\
         egress:\n- to: [{podSelector: {matchLabels: {app: db}}}]\n\x20 ports: [{port: 80}]",
    );
    let _agent = Agent::start(&cast.node).unwrap();
    let tcp = What::Tcp(PORT);
    expect(
        "IPVS",
        &[
            (&cast.web, cluster_ips(10), tcp, Outcome::Answered),
            (&cast.web, cluster_ips(11), tcp, Outcome::Silent),
            (&cast.tool, cluster_ips(10), tcp, Outcome::Answered),
        ],
    );
}
