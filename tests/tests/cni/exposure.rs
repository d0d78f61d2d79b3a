//! What the plugin is for: how long a pod is exposed without it.

use std::net::UdpSocket;
use std::time::{Duration, Instant};

use portcullis_tests::netns::{Agent, Netns, Node, SILENCE};

use super::burst::report;
use super::observer::{Observer, PORT};
use super::{Network, machine, network};

/// How many pods are started.
const PODS: usize = 100;

/// Prints for how long pods hear what policy denies them, from the moment in which the other plugins are done, with
/// the agent told of the pod's address at that moment.
#[test]
#[ignore = "a measurement: run it by name, on a quiet machine"]
fn exposure_without_the_plugin() {
    let node = machine();
    let (network, outside) = network(&node, "ptp");
    let network = network.watched();
    let _observer = Observer::start(outside.netns());
    let _agent = Agent::start(&node).unwrap();
    let exposures = (0..PODS).map(|number| one(&node, &network, number));
    report("exposed without the plugin", exposures.collect());
}

fn one(node: &Node, network: &Network<'_>, number: usize) -> Duration {
    let name = format!("pod-{number}");
    let mut sandbox = network.sandbox("shop", &name);
    let socket = listen(&sandbox.netns);
    network.add_without_ours(&mut sandbox).unwrap();
    let began = Instant::now();
    node.datastore()
        .put_pod("shop", &name, &[], &[], &[sandbox.address(true)])
        .unwrap();
    let exposed = last_arrival(&socket).map_or(Duration::ZERO, |at| at.duration_since(began));
    network.del(&sandbox).unwrap();
    node.datastore().delete_pod("shop", &name).unwrap();
    exposed
}

fn listen(netns: &Netns) -> UdpSocket {
    let socket = netns.enter(|| UdpSocket::bind(("0.0.0.0", PORT))).unwrap();
    socket.set_read_timeout(Some(SILENCE)).unwrap();
    socket
}

/// When the last datagram came before silence.
fn last_arrival(socket: &UdpSocket) -> Option<Instant> {
    let mut last = None;
    let mut buffer = [0; 16];
    while socket.recv(&mut buffer).is_ok() {
        last = Some(Instant::now());
    }
    last
}
