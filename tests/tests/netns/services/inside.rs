//! Pods of a node, and what they reach through Services: an egress-isolated client's every way.

use std::net::{IpAddr, SocketAddr};
use std::thread;

use policy_agent::report::Status;
use portcullis_tests::netns::kube_proxy::{KubeProxy, Protocol, ServicePort};
use portcullis_tests::netns::{Agent, Form, Greeter, Host, Outcome, PodSpec, SILENCE, What};

use super::{
    Cast, MODES, Row, backends, cluster_ips, expect, external_ips, in_both_forms, ip_blocks,
    kube_proxy, publish, route_all_to, to_web_servers,
};
use Outcome::{Answered, Refused, Silent};
use What::{Fragments, Tcp, Udp};

in_both_forms! {
    egress_is_judged_by_backends
    only_allowed_backends_of_several_are_reached
    a_masqueraded_pod_is_judged_as_itself
}

/// The port of every Service here over TCP; no backend has it.
const PORT: u16 = 8000;
/// A port where nobody listens.
const CLOSED: u16 = 9999;

/// What a Service of this list is for, by the last part of its addresses.
mod service {
    pub(super) const ALLOWED: u8 = 10;
    pub(super) const DENIED: u8 = 11;
    pub(super) const DEAD: u8 = 12;
    pub(super) const ITSELF: u8 = 13;
    pub(super) const API: u8 = 1;
    pub(super) const OTHER_API: u8 = 2;
    pub(super) const API_ON_NODE: u8 = 3;
    pub(super) const LATE: u8 = 4;
}

const NODE_PORT: u16 = 30080;
const DENIED_NODE_PORT: u16 = 30081;
const OWN_NODE_PORT: u16 = 30082;
/// With `externalTrafficPolicy: Local`, which concerns nobody inside.
const LOCAL_NODE_PORT: u16 = 30083;

/// Lets a pod's frame go back to where it came from, as a bridge's users ask for (`hairpinMode` of CNI's bridge): what a
/// bridge translates it may forward without the node's routes, hence to the same port.
fn let_web_reach_itself(cast: &Cast) {
    if cast.node.form() == Form::Bridge {
        let line = "link set pcl-veth1 type bridge_slave hairpin on";
        cast.node.netns().ip(line).unwrap();
    }
}

fn services(cast: &Cast, outside: [&Host; 3]) -> Vec<ServicePort> {
    let tcp = |last, hosts: &[&Host]| to_web_servers(last, PORT, hosts);
    let udp = |last, host: &Host, port| {
        ServicePort::new(
            &cluster_ips(last),
            Protocol::Udp,
            port,
            &backends(&[host], port),
        )
    };
    let closed = |last, host: &Host| {
        ServicePort::new(
            &cluster_ips(last),
            Protocol::Tcp,
            CLOSED,
            &backends(&[host], CLOSED),
        )
    };
    let from_outside = |last, host: &Host, node_port| ServicePort {
        external_ips: external_ips(last).to_vec(),
        node_port: Some(node_port),
        ..tcp(last, &[host])
    };
    vec![
        from_outside(service::ALLOWED, &cast.db, NODE_PORT),
        from_outside(service::DENIED, &cast.tool, DENIED_NODE_PORT),
        udp(service::ALLOWED, &cast.db, 53),
        udp(service::DENIED, &cast.tool, 53),
        udp(service::ALLOWED, &cast.db, CLOSED),
        udp(service::DENIED, &cast.tool, CLOSED),
        tcp(service::DEAD, &[]),
        ServicePort {
            node_port: Some(OWN_NODE_PORT),
            ..tcp(service::ITSELF, &[&cast.web])
        },
        ServicePort {
            node_port: Some(LOCAL_NODE_PORT),
            local_backends: Some(Vec::new()),
            ..ServicePort::new(&[], Protocol::Tcp, PORT, &backends(&[&cast.db], 80))
        },
        closed(service::ALLOWED, &cast.db),
        closed(service::DENIED, &cast.tool),
        tcp(service::LATE, &[outside[2]]),
        tcp(service::API, &[outside[0]]),
        tcp(service::OTHER_API, &[outside[1]]),
        tcp(service::API_ON_NODE, &[&cast.node]),
    ]
}

fn egress_is_judged_by_backends(form: Form) {
    let cast = Cast::new(form);
    let api = cast.node.add_outside("api", 9).unwrap();
    let other = cast.node.add_outside("other", 10).unwrap();
    route_all_to(&cast.node, &other);
    let_web_reach_itself(&cast);
    cast.policy(
        "default-deny",
        "{podSelector: {matchLabels: {app: web}}, policyTypes: [Ingress, Egress]}",
    );
    let agent = Agent::start(&cast.node).unwrap();
    // By an interface that was not there when the agent came.
    let late = cast.node.add_outside("late", 11).unwrap();
    let services = services(&cast, [&api, &other, &late]);
    publish(&cast.node, &services);
    let has_exits = |status: &Status| {
        let exits = status.exits.iter();
        let exits: Vec<_> = exits.filter(|exit| exit.program == "exit").collect();
        exits.len() == 3 && exits.iter().all(|exit| exit.state == "attached")
    };
    // For ten seconds the late one may be a pod's.
    agent.wait_for_status(has_exits).unwrap();
    let (web, node) = (&cast.web, &*cast.node);
    let rows = |allowed: Outcome, refused: Outcome| -> Vec<Row<'_>> {
        let to = cluster_ips;
        vec![
            (web, to(service::ALLOWED), Tcp(PORT), allowed.clone()),
            (web, to(service::DENIED), Tcp(PORT), Silent),
            (web, to(service::ALLOWED), Udp(53), allowed.clone()),
            (web, to(service::DENIED), Udp(53), Silent),
            (web, to(service::ALLOWED), Fragments(53), allowed.clone()),
            (web, to(service::DENIED), Fragments(53), Silent),
            // The backend's kernel says that nobody listens: an ICMP error from behind the Service.
            (web, to(service::ALLOWED), Udp(CLOSED), refused.clone()),
            (web, to(service::DENIED), Udp(CLOSED), Silent),
            (web, to(service::ALLOWED), Tcp(CLOSED), refused),
            (web, to(service::DENIED), Tcp(CLOSED), Silent),
            (
                web,
                external_ips(service::ALLOWED),
                Tcp(PORT),
                allowed.clone(),
            ),
            (web, external_ips(service::DENIED), Tcp(PORT), Silent),
            (web, node.addresses(), Tcp(NODE_PORT), allowed.clone()),
            (web, node.addresses(), Tcp(DENIED_NODE_PORT), Silent),
            (web, node.addresses(), Tcp(LOCAL_NODE_PORT), allowed.clone()),
            (web, node.addresses(), Tcp(OWN_NODE_PORT), Answered),
            (web, to(service::API), Tcp(PORT), allowed.clone()),
            (web, to(service::OTHER_API), Tcp(PORT), Silent),
            (web, to(service::LATE), Tcp(PORT), Silent),
            (&cast.tool, to(service::LATE), Tcp(PORT), Answered),
            // Without a Service between, or with a headless one.
            (web, cast.db.addresses(), Tcp(80), allowed.clone()),
            (web, cast.db.addresses(), Tcp(8080), Silent),
            (web, cast.tool.addresses(), Tcp(80), Silent),
            // Leaving the cluster, masqueraded.
            (web, api.addresses(), Tcp(80), allowed),
            (web, other.addresses(), Tcp(80), Silent),
            // Whatever the policies: nobody is there; itself; the node; a pod that is not isolated.
            (web, to(service::DEAD), Tcp(PORT), Refused),
            (web, to(service::ITSELF), Tcp(PORT), Answered),
            (web, to(service::API_ON_NODE), Tcp(PORT), Answered),
            (web, node.addresses(), Tcp(80), Answered),
            (&cast.tool, to(service::ALLOWED), Tcp(PORT), Answered),
            (&cast.tool, to(service::ITSELF), Tcp(PORT), Silent),
        ]
    };
    let by_backends = format!(
        "podSelector: {{matchLabels: {{app: web}}}}\n\
         policyTypes: [Egress]\n\
         egress:\n\
         - to: [{{podSelector: {{matchLabels: {{app: db}}}}}}]\n\
         \x20 ports: [{{port: 80}}, {{port: 53, protocol: UDP}}, {{port: {CLOSED}, protocol: UDP}}, {{port: {CLOSED}}}]\n\
         - to: [{}]\n\
         \x20 ports: [{{port: 80}}]",
        ip_blocks(&api)
    );
    // Names the Services' addresses and ports, not where they lead.
    let by_services = format!(
        "podSelector: {{matchLabels: {{app: web}}}}\n\
         policyTypes: [Egress]\n\
         egress:\n\
         - to: [{{podSelector: {{matchLabels: {{app: db}}}}}}, {}]\n\
         \x20 ports: [{{port: {PORT}}}, {{port: {NODE_PORT}}}]\n\
         - to: [{{ipBlock: {{cidr: 10.96.0.0/16}}}}, {{ipBlock: {{cidr: 'fd00:10:96::/112'}}}}, {{ipBlock: {{cidr: 192.0.2.0/24}}}}]",
        ip_blocks(&api)
    );
    for mode in MODES {
        let mut proxy = kube_proxy(mode, &services);
        proxy.masquerades_leaving = true;
        proxy.apply(node.netns()).unwrap();
        cast.policy("web-out", &by_backends);
        agent.sync().unwrap();
        expect(&format!("{mode:?}, backends"), &rows(Answered, Refused));
        cast.policy("web-out", &by_services);
        agent.sync().unwrap();
        expect(&format!("{mode:?}, Services"), &rows(Silent, Silent));
        KubeProxy::withdraw(mode, node.netns()).unwrap();
    }
    let told = |line: &str| {
        // With the address that the Service's was translated to.
        line.contains("drop egress shop/web -> dev/tool") && line.contains(":80/TCP")
    };
    agent.wait_for_log(told).unwrap();
}

/// Connections to a Service with two backends, one of which policy allows.
fn only_allowed_backends_of_several_are_reached(form: Form) {
    const ATTEMPTS: usize = 24;
    let cast = Cast::new(form);
    let servers = [(&cast.db, b'd'), (&cast.tool, b't')];
    let _greeters = servers.map(|(host, name)| Greeter::start(host.netns(), 9000, name).unwrap());
    let both = backends(&[&cast.db, &cast.tool], 9000);
    let service = ServicePort::new(&cluster_ips(10), Protocol::Tcp, PORT, &both);
    let services = [service];
    publish(&cast.node, &services);
    cast.policy(
        "web-out",
        "podSelector: {matchLabels: {app: web}}\n\
         policyTypes: [Egress]\n\
         egress:\n- to: [{podSelector: {matchLabels: {app: db}}}]",
    );
    let agent = Agent::start(&cast.node).unwrap();
    let denied = || {
        let counters = agent.status().unwrap().counters;
        let rows = counters
            .iter()
            .filter(|row| row.direction == "egress" && row.reason == "policy_denied");
        rows.map(|row| row.packets).sum::<u64>()
    };
    for mode in MODES {
        kube_proxy(mode, &services)
            .apply(cast.node.netns())
            .unwrap();
        for to in cluster_ips(10) {
            let denied_before = denied();
            let answers = connect_at_once(&cast.web, to, ATTEMPTS);
            let count = |name| answers.iter().filter(|answer| **answer == name).count();
            let (reached, silent) = (count(Some(b'd')), count(None));
            assert!(
                reached > 0 && silent > 0 && reached + silent == ATTEMPTS,
                "{mode:?}, {to}: {reached} reached db, {silent} nobody"
            );
            let denied = denied() - denied_before;
            assert_eq!(denied, silent as u64, "{mode:?}, {to}: one SYN each");
        }
        KubeProxy::withdraw(mode, cast.node.netns()).unwrap();
    }
}

/// Connects several times at once, and says who answered.
pub(super) fn connect_at_once(from: &Host, to: IpAddr, attempts: usize) -> Vec<Option<u8>> {
    thread::scope(|scope| {
        let attempt =
            || Greeter::who_answers(from.netns(), 0, SocketAddr::new(to, PORT), SILENCE).ok();
        let threads: Vec<_> = (0..attempts).map(|_| scope.spawn(attempt)).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect()
    })
}

/// With kube-proxy's `--masquerade-all` every client has the node's address.
fn a_masqueraded_pod_is_judged_as_itself(form: Form) {
    let cast = Cast::new(form);
    let other = cast
        .node
        .add(PodSpec::new("shop", "other", &[("app", "other")]))
        .unwrap();
    let_web_reach_itself(&cast);
    let (web, db) = (&cast.web, &cast.db);
    let tcp = |last, host| to_web_servers(last, PORT, &[host]);
    let services = [
        tcp(10, db),
        ServicePort::new(&cluster_ips(10), Protocol::Udp, 53, &backends(&[db], 53)),
        tcp(13, web),
    ];
    publish(&cast.node, &services);
    cast.policy("default-deny", super::super::DENY_ALL);
    cast.policy(
        "all-out",
        "podSelector: {}\npolicyTypes: [Egress]\negress:\n- to: [{podSelector: {matchLabels: {app: db}}}]",
    );
    cast.policy("web-to-db", super::super::WEB_TO_DB);
    let _agent = Agent::start(&cast.node).unwrap();
    for mode in MODES {
        let mut proxy = kube_proxy(mode, &services);
        proxy.masquerades_all = true;
        proxy.apply(cast.node.netns()).unwrap();
        expect(
            &format!("{mode:?}"),
            &[
                (web, cluster_ips(10), Tcp(PORT), Answered),
                (web, cluster_ips(10), Udp(53), Answered),
                (&other, cluster_ips(10), Tcp(PORT), Silent),
                (&other, cluster_ips(10), Udp(53), Silent),
                (web, cluster_ips(13), Tcp(PORT), Answered),
                (db, cluster_ips(13), Tcp(PORT), Silent),
            ],
        );
        KubeProxy::withdraw(mode, cast.node.netns()).unwrap();
    }
}
