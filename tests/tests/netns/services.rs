//! Services, translated as kube-proxy does it.

use std::net::{IpAddr, SocketAddr};

use portcullis_tests::netns::kube_proxy::{KubeProxy, Mode, Protocol, ServicePort};
use portcullis_tests::netns::{Family, Form, Host, Outcome, PATIENCE, Probe, What, measure};

use super::{Cast, in_both_forms};

in_both_forms! { connections_reach_backends_without_an_agent }

const CLUSTER_IPS: [&str; 2] = ["10.96.0.10", "fd00:10:96::a"];
const EXTERNAL_IPS: [&str; 2] = ["192.0.2.10", "2001:db8:2::a"];
const DEAD_IPS: [&str; 2] = ["10.96.0.11", "fd00:10:96::b"];
const PORT: u16 = 8000;
const NODE_PORT: u16 = 30080;

fn ips(texts: [&str; 2]) -> [IpAddr; 2] {
    texts.map(|text| text.parse().unwrap())
}

fn backends(hosts: &[&Host], port: u16) -> Vec<SocketAddr> {
    let addresses = hosts.iter().flat_map(|host| host.addresses());
    addresses
        .map(|address| SocketAddr::new(address, port))
        .collect()
}

/// What the other tests rely on: without policies, every way through a Service works.
fn connections_reach_backends_without_an_agent(form: Form) {
    let cast = Cast::new(form);
    let outside = cast.node.add_outside("out", 9).unwrap();
    let node = cast.node.netns();
    // What is not translated has to lead somewhere, for kube-proxy to refuse it on the way.
    let [v4, v6] = outside.addresses();
    node.ip(&format!(
        "route add 0.0.0.0/0 via {v4}\nroute add ::/0 via {v6}"
    ))
    .unwrap();
    let networks = ["10.244.0.0/24", "fd00:10:244::/64"].map(|network| network.parse().unwrap());
    for mode in Mode::ALL {
        let mut proxy = KubeProxy::new(mode, &networks);
        proxy.masquerades_leaving = true;
        let two = backends(&[&cast.db, &cast.tool], 80);
        let web = ServicePort {
            external_ips: ips(EXTERNAL_IPS).to_vec(),
            node_port: Some(NODE_PORT),
            ..ServicePort::new(&ips(CLUSTER_IPS), Protocol::Tcp, PORT, &two)
        };
        let local = ServicePort {
            node_port: Some(NODE_PORT + 1),
            local_backends: Some(backends(&[&cast.db], 80)),
            ..ServicePort::new(&[], Protocol::Tcp, PORT, &two)
        };
        let dns = backends(&[&cast.db], 53);
        let dns = ServicePort::new(&ips(CLUSTER_IPS), Protocol::Udp, 53, &dns);
        let dead = ServicePort::new(&ips(DEAD_IPS), Protocol::Tcp, PORT, &[]);
        proxy.services = vec![web, local, dns, dead];
        proxy.apply(node).unwrap();

        let own = cast.node.addresses();
        let rows: [(&Host, [IpAddr; 2], What, Outcome); 8] = [
            (
                &cast.web,
                ips(CLUSTER_IPS),
                What::Tcp(PORT),
                Outcome::Answered,
            ),
            (
                &cast.web,
                ips(EXTERNAL_IPS),
                What::Tcp(PORT),
                Outcome::Answered,
            ),
            (&cast.web, own, What::Tcp(NODE_PORT), Outcome::Answered),
            (
                &cast.web,
                ips(CLUSTER_IPS),
                What::Udp(53),
                Outcome::Answered,
            ),
            (&cast.web, ips(DEAD_IPS), What::Tcp(PORT), Outcome::Refused),
            (
                &cast.node,
                ips(CLUSTER_IPS),
                What::Tcp(PORT),
                Outcome::Answered,
            ),
            (&outside, own, What::Tcp(NODE_PORT), Outcome::Answered),
            (&outside, own, What::Tcp(NODE_PORT + 1), Outcome::Answered),
        ];
        let probes: Vec<_> = rows
            .iter()
            .flat_map(|(from, to, what, _)| {
                Family::ALL.map(|family| Probe {
                    from: from.netns(),
                    to: to[family as usize],
                    what: *what,
                    patience: PATIENCE,
                })
            })
            .collect();
        let outcomes = measure(&probes);
        for (((from, to, what, expected), families), outcomes) in
            rows.iter().zip(probes.chunks(2)).zip(outcomes.chunks(2))
        {
            let both = [expected.clone(), expected.clone()];
            assert_eq!(
                outcomes,
                both,
                "{mode:?}: {} -> {to:?} {what} ({} families)",
                from.name(),
                families.len()
            );
        }
    }
}
