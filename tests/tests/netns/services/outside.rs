//! NodePorts, reached from outside.

use portcullis_tests::netns::kube_proxy::{KubeProxy, Protocol, ServicePort};
use portcullis_tests::netns::{Agent, Form, Host, Outcome, What};

use super::super::DENY_INGRESS;
use super::{Cast, MODES, backends, expect, in_both_forms, ip_blocks, kube_proxy, publish};
use Outcome::{Answered, Silent};

in_both_forms! { node_ports_are_judged_by_the_address_that_the_pod_sees }

/// With `externalTrafficPolicy: Cluster`, hence masqueraded.
const CLUSTER: u16 = 30080;
/// With `externalTrafficPolicy: Local`.
const LOCAL: u16 = 30081;

fn node_ports_are_judged_by_the_address_that_the_pod_sees(form: Form) {
    let cast = Cast::new(form);
    let known = cast.node.add_outside("known", 9).unwrap();
    let other = cast.node.add_outside("other", 10).unwrap();
    let port = |number, local| ServicePort {
        node_port: Some(number),
        local_backends: local,
        ..ServicePort::new(&[], Protocol::Tcp, 8000, &backends(&[&cast.db], 80))
    };
    let services = [
        port(CLUSTER, None),
        port(LOCAL, Some(backends(&[&cast.db], 80))),
    ];
    publish(&cast.node, &services);
    cast.policy("default-deny", DENY_INGRESS);
    let agent = Agent::start(&cast.node).unwrap();
    let node = &cast.node;
    let allow = |host: &Host| {
        let from = ip_blocks(host);
        cast.policy(
            "to-db",
            &format!(
                "podSelector: {{matchLabels: {{app: db}}}}\ningress:\n- from: [{from}]\n\x20 ports: [{{port: 80}}]"
            ),
        );
        agent.sync().unwrap();
    };
    for mode in MODES {
        kube_proxy(mode, &services).apply(node.netns()).unwrap();
        let expect = |when: &str, cluster: Outcome, local: Outcome| {
            expect(
                &format!("{mode:?}, {when}"),
                &[
                    (
                        &known,
                        node.addresses(),
                        What::Tcp(CLUSTER),
                        cluster.clone(),
                    ),
                    (&other, node.addresses(), What::Tcp(CLUSTER), cluster),
                    (&known, node.addresses(), What::Tcp(LOCAL), local),
                    (&other, node.addresses(), What::Tcp(LOCAL), Silent),
                    (node, node.addresses(), What::Tcp(CLUSTER), Answered),
                ],
            );
        };
        expect("nobody is allowed", Silent, Silent);
        allow(node);
        expect("the node's address is allowed", Answered, Silent);
        allow(&known);
        expect("one client's address is allowed", Silent, Answered);
        cast.no_policy("to-db");
        agent.sync().unwrap();
        KubeProxy::withdraw(mode, node.netns()).unwrap();
    }
}
