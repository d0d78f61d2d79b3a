//! Interfaces that appear while a pod sends through a Service to behind them: what leaves by them before their exit is
//! attached is not judged.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use policy_agent::report::Status;
use portcullis_tests::netns::kube_proxy::{Mode, Protocol, ServicePort};
use portcullis_tests::netns::{Agent, Family, Form, Host, Netns, PATIENCE};

use super::{Cast, cluster_ips, kube_proxy, publish};

const PORT: u16 = 8000;
const BACKEND: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 77));

const NOTHING: &str = "{podSelector: {matchLabels: {app: web}}, policyTypes: [Egress]}";
const ALL: &str = "{podSelector: {matchLabels: {app: web}}, policyTypes: [Egress], egress: [{}]}";

/// A node, and a Service whose backend is behind an interface that is not there yet.
fn start(cast: &Cast) -> Agent<'_> {
    let to = [SocketAddr::new(BACKEND, 80)];
    let services = [ServicePort::new(&cluster_ips(10), Protocol::Udp, PORT, &to)];
    publish(&cast.node, &services);
    let node = cast.node.netns();
    kube_proxy(Mode::Nftables, &services).apply(node).unwrap();
    // Nobody but the pod is to send by the new interfaces.
    node.sysctl("net/ipv6/conf/default/disable_ipv6", "1")
        .unwrap();
    cast.policy("web-out", NOTHING);
    Agent::start(&cast.node).unwrap()
}

fn has_exit(status: &Status, interface: &str) -> bool {
    let mut exits = status.exits.iter();
    exits.any(|exit| exit.interface == interface && exit.state == "attached")
}

/// Packets that left by an interface; none when it is not there.
fn sent_by(node: &Netns, interface: &str) -> u64 {
    node.enter(|| read_sent(interface))
}

/// As [`sent_by`], in this thread's network namespace.
fn read_sent(interface: &str) -> u64 {
    let table = std::fs::read_to_string("/proc/thread-self/net/dev").unwrap();
    let mut lines = table.lines();
    let counters = lines.find_map(|line| line.trim().strip_prefix(interface)?.strip_prefix(':'));
    let mut counters = counters.unwrap_or_default().split_whitespace();
    // Bytes, packets and six more of what was received, then of what was sent.
    let sent = counters.nth(9);
    sent.map_or(0, |sent| sent.parse::<u64>().unwrap())
}

/// A pod's socket that sends to the Service.
fn client(host: &Host) -> UdpSocket {
    let netns = host.netns();
    let client = netns.enter(|| UdpSocket::bind("0.0.0.0:0")).unwrap();
    client.connect((cluster_ips(10)[0], PORT)).unwrap();
    client
}

/// Brings a pair up, and has the backend behind it, where nobody would answer to ARP.
fn up(interface: &str, peer: &str) -> String {
    format!(
        "link set {interface} up\n\
         link set {peer} up\n\
         neighbour add {BACKEND} lladdr 02:00:00:00:00:01 dev {interface}\n\
         route add {BACKEND}/32 dev {interface}"
    )
}

/// Packets of pods here that policy denied to leave.
fn denied(agent: &Agent<'_>) -> u64 {
    let counters = agent.status().unwrap().counters;
    let rows = counters
        .iter()
        .filter(|row| row.direction == "egress" && row.reason == "policy_denied");
    rows.map(|row| row.packets).sum()
}

/// The kernel makes interfaces that are down, and says so.
#[test]
fn an_interface_has_its_exit_before_it_is_up() {
    const PACKETS: u64 = 20;
    let cast = Cast::new(Form::Routed);
    let node = cast.node.netns();
    let agent = start(&cast);
    node.ip("link add pcl-new type veth peer name pcl-peer")
        .unwrap();
    agent
        .wait_for_status(|status| has_exit(status, "pcl-new"))
        .unwrap();
    node.ip(&up("pcl-new", "pcl-peer")).unwrap();
    let client = client(&cast.web);
    let send = || (0..PACKETS).for_each(|_| assert_eq!(client.send(b"x").unwrap(), 1));
    let before = denied(&agent);
    send();
    await_that(|| denied(&agent) == before + PACKETS);
    assert_eq!(sent_by(node, "pcl-new"), 0);
    cast.policy("web-out", ALL);
    agent.sync().unwrap();
    send();
    await_that(|| sent_by(node, "pcl-new") == PACKETS);
}

/// What is encapsulated keeps its mark where no exit took it off: the uplink's exit judges it by the outer destination, which
/// fails closed.
#[test]
fn what_no_exit_saw_before_it_was_encapsulated_is_judged_by_the_uplinks() {
    let cast = Cast::new(Form::Routed);
    let node = cast.node.netns();
    let uplink = cast.node.add_outside("uplink", 9).unwrap();
    let agent = start(&cast);
    // Nobody is there to attach one.
    agent.kill().unwrap();
    let remote = uplink.address(Family::V4);
    node.ip(&format!(
        "link add pcl-new type vxlan id 7 remote {remote} dstport 8472\n\
         link set pcl-new up\n\
         neighbour add {BACKEND} lladdr 02:00:00:00:00:01 dev pcl-new\n\
         route add {BACKEND}/32 dev pcl-new"
    ))
    .unwrap();
    let sink = uplink.netns().enter(|| UdpSocket::bind("0.0.0.0:8472"));
    let sink = sink.unwrap();
    sink.set_read_timeout(Some(PATIENCE)).unwrap();
    for (host, payload) in [(&cast.web, b"web "), (&cast.tool, b"tool")] {
        client(host).send(payload).unwrap();
    }
    let mut got = [0; 256];
    let length = sink.recv(&mut got).unwrap();
    assert!(
        got[..length].ends_with(b"tool"),
        "the first that arrives is whose policies allow it: {:?}",
        &got[..length]
    );
}

#[track_caller]
fn await_that(condition: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain");
        thread::sleep(Duration::from_millis(1));
    }
}

/// Prints how long a pod's packets leave unjudged by an interface that is up, and has a route, as soon as it is there.
#[test]
#[ignore = "a measurement: run it by name, on a quiet machine"]
fn exposure_by_new_interfaces() {
    let rounds = super::super::persistence::times("PORTCULLIS_TEST_INTERFACES", 50);
    let cast = Cast::new(Form::Routed);
    let agent = start(&cast);
    for (kind, at_once) in [("vxlan", 1), ("vxlan", 20), ("veth", 1), ("veth", 20)] {
        let mut exposures: Vec<_> = (0..rounds)
            .map(|_| expose(&cast, &agent, kind, at_once))
            .collect();
        exposures.sort_unstable_by_key(|exposure| exposure.lasted);
        let exposed = exposures.iter().filter(|exposure| exposure.packets > 0);
        let (p50, most) = (&exposures[rounds / 2], &exposures[rounds - 1]);
        let packets = exposures.iter().map(|exposure| exposure.packets);
        println!(
            "{kind}, {at_once} at once: {rounds} times, {} exposed; p50 {:?}, most {:?}; {} packets in all, {} at most",
            exposed.count(),
            p50.lasted,
            most.lasted,
            packets.clone().sum::<u64>(),
            packets.max().unwrap_or(0),
        );
    }
}

struct Exposure {
    packets: u64,
    /// From the first packet that left to the last, as seen from outside.
    lasted: Duration,
}

/// Makes interfaces, with a route by the last, while web sends without a pause.
fn expose(cast: &Cast, agent: &Agent<'_>, kind: &str, at_once: usize) -> Exposure {
    let node = cast.node.netns();
    let client = client(&cast.web);
    let name = |number: usize| format!("pcl-new{number}");
    let last = name(at_once);
    let mut lines = String::new();
    for number in 1..=at_once {
        let name = name(number);
        lines += &match kind {
            "veth" => format!(
                "link add {name} type veth peer name pcl-peer{number}\n\
                 link set {name} up\n"
            ),
            // To itself, so that what is sent is counted without a way to anywhere.
            _ => format!(
                "link add {name} type {kind} id {number} remote 127.0.0.1 dstport 8472\n\
                 link set {name} up\n"
            ),
        };
    }
    lines += &match kind {
        "veth" => up(&last, &format!("pcl-peer{at_once}")),
        _ => format!(
            "neighbour add {BACKEND} lladdr 02:00:00:00:00:01 dev {last}\n\
             route add {BACKEND}/32 dev {last}"
        ),
    };
    let done = AtomicBool::new(false);
    let (sending, watching) = (&done, &done);
    let exposure = thread::scope(|scope| {
        scope.spawn(move || {
            while !sending.load(Ordering::Relaxed) {
                // Refused for as long as there is no route.
                let _refused = client.send(b"x");
                thread::sleep(Duration::from_micros(20));
            }
        });
        let interface = last.clone();
        let watcher = scope.spawn(move || node.enter(|| watch(&interface, watching)));
        node.ip(&lines).unwrap();
        agent
            .wait_for_status(|status| (1..=at_once).all(|number| has_exit(status, &name(number))))
            .unwrap();
        let before = denied(agent);
        await_that(|| denied(agent) > before);
        done.store(true, Ordering::Relaxed);
        watcher.join().unwrap()
    });
    for number in 1..=at_once {
        node.ip(&format!("link delete {}", name(number))).unwrap();
    }
    agent
        .wait_for_status(|status| !status.exits.iter().any(|exit| exit.interface == last))
        .unwrap();
    exposure
}

/// Looks at an interface of this thread's network namespace until `done`.
fn watch(interface: &str, done: &AtomicBool) -> Exposure {
    let (mut packets, mut first, mut last) = (0, None, None);
    while !done.load(Ordering::Relaxed) {
        let now = read_sent(interface);
        if now > packets {
            packets = now;
            last = Some(Instant::now());
            first = first.or(last);
        }
    }
    let lasted = first.zip(last).map(|(first, last)| last - first);
    Exposure {
        packets,
        lasted: lasted.unwrap_or_default(),
    }
}
