//! Translation itself, with nobody judging.

use portcullis_tests::netns::kube_proxy::{KubeProxy, Mode, Protocol, ServicePort};
use portcullis_tests::netns::{Form, Outcome, What};

use super::{
    Cast, Row, backends, cluster_ips, expect, external_ips, in_both_forms, kube_proxy, route_all_to,
};

in_both_forms! { connections_reach_backends_without_an_agent }

const PORT: u16 = 8000;
const NODE_PORT: u16 = 30080;

/// What the other tests rely on: without policies, every way through a Service works.
fn connections_reach_backends_without_an_agent(form: Form) {
    let cast = Cast::new(form);
    let outside = cast.node.add_outside("out", 9).unwrap();
    let node = cast.node.netns();
    route_all_to(&cast.node, &outside);
    let two = backends(&[&cast.db, &cast.tool], 80);
    let web = ServicePort {
        external_ips: external_ips(10).to_vec(),
        node_port: Some(NODE_PORT),
        ..ServicePort::new(&cluster_ips(10), Protocol::Tcp, PORT, &two)
    };
    let local = ServicePort {
        node_port: Some(NODE_PORT + 1),
        local_backends: Some(backends(&[&cast.db], 80)),
        ..ServicePort::new(&[], Protocol::Tcp, PORT, &two)
    };
    let dns = backends(&[&cast.db], 53);
    let dns = ServicePort::new(&cluster_ips(10), Protocol::Udp, 53, &dns);
    let dead = ServicePort::new(&cluster_ips(11), Protocol::Tcp, PORT, &[]);
    let services = [web, local, dns, dead];
    let (own, service) = (cast.node.addresses(), cluster_ips(10));
    let tcp = What::Tcp(PORT);
    let rows: [Row<'_>; 8] = [
        (&cast.web, service, tcp, Outcome::Answered),
        (&cast.web, external_ips(10), tcp, Outcome::Answered),
        (&cast.web, own, What::Tcp(NODE_PORT), Outcome::Answered),
        (&cast.web, service, What::Udp(53), Outcome::Answered),
        (&cast.web, cluster_ips(11), tcp, Outcome::Refused),
        (&cast.node, service, tcp, Outcome::Answered),
        (&outside, own, What::Tcp(NODE_PORT), Outcome::Answered),
        (&outside, own, What::Tcp(NODE_PORT + 1), Outcome::Answered),
    ];
    for mode in Mode::ALL {
        let mut proxy = kube_proxy(mode, &services);
        proxy.masquerades_leaving = true;
        proxy.apply(node).unwrap();
        expect(&format!("{mode:?}"), &rows);
        // Otherwise the next mode's rules would never be asked.
        KubeProxy::withdraw(mode, node).unwrap();
    }
}
