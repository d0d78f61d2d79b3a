//! Pods started by the thousand under the observer's eyes, with addresses that are used again and again.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use portcullis_tests::netns::{
    Agent, Host, Netns, Node, Outcome, PATIENCE, Probe, SILENCE, Servers, What, probe,
};

use super::observer::{OBSERVED, Observer, PORT};
use super::runner::Sandbox;
use super::{Network, machine, network, with_both_plugins};

with_both_plugins! {
    no_start_is_against_policy_and_none_is_refused
}

/// Says how many pods to start.
const STARTS: &str = "PORTCULLIS_TEST_POD_STARTS";

/// Pods that start at the same time.
const AT_ONCE: usize = 4;

/// Where pods send what policy denies.
const FORBIDDEN: u16 = 9001;

/// What is sent where policy allows it.
const ALLOWED: &[u8] = b"allowed";

const VAULT: &str = "\
podSelector: {matchLabels: {app: db}}
policyTypes: [Ingress, Egress]
ingress:
- from: [{podSelector: {matchLabels: {app: web}}}]
egress:
- to: [{podSelector: {matchLabels: {app: web}}}]";

/// What was seen of all pods together.
#[derive(Debug, Default)]
struct Seen {
    /// Datagrams that reached a pod against policy.
    let_in: AtomicU64,
    /// Allowed datagrams that did not reach a pod.
    refused_in: AtomicU64,
    /// Allowed exchanges of a pod's that got no answer.
    refused_out: AtomicU64,
}

/// Counts what reaches the host outside.
struct Outside {
    socket: UdpSocket,
    address: SocketAddr,
}

impl Outside {
    fn new(host: &Host) -> Self {
        let socket = host
            .netns()
            .enter(|| UdpSocket::bind(("0.0.0.0", FORBIDDEN)))
            .unwrap();
        socket.set_nonblocking(true).unwrap();
        let address = host.addresses()[0];
        Self {
            socket,
            address: SocketAddr::new(address, FORBIDDEN),
        }
    }

    fn count(&self) -> u64 {
        let mut buffer = [0; 16];
        let mut count = 0;
        while self.socket.recv(&mut buffer).is_ok() {
            count += 1;
        }
        count
    }
}

fn starts() -> usize {
    const FEW: usize = 40;
    match std::env::var(STARTS) {
        Ok(number) => number.parse().unwrap(),
        Err(_) => FEW,
    }
}

fn no_start_is_against_policy_and_none_is_refused(plugin: &str) {
    let node = machine();
    let (network, host) = network(&node, plugin);
    let network = network.watched();
    let store = node.datastore();
    store.put_namespace("vault", &[]).unwrap();
    store.put_policy("vault", "web-only", VAULT).unwrap();
    let observer = Observer::start(host.netns());
    let outside = Outside::new(&host);
    let agent = Agent::start(&node).unwrap();
    store
        .put_pod("vault", "web", &[("app", "web")], &[], &[])
        .unwrap();
    let mut web = network.sandbox("vault", "web");
    network.add(&mut web).unwrap();
    let _servers = Servers::start(&web.netns, &[], &[53]).unwrap();

    let (total, next, seen) = (starts(), AtomicUsize::new(0), Seen::default());
    let began = Instant::now();
    let failed = AtomicBool::new(false);
    let stands = Stands {
        node: &node,
        network: &network,
        observer: &observer,
        web: &web,
        outside: outside.address,
    };
    thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= total || failed.load(Ordering::Relaxed) {
                        return;
                    }
                    let guard = Guard(&failed);
                    stands.start(&format!("db-{number}"), &seen);
                    std::mem::forget(guard);
                }
            });
        }
    });
    println!(
        "{plugin}: {total} pods started in {:?}: {seen:?}",
        began.elapsed()
    );
    assert_eq!(outside.count(), 0, "left a pod against policy");
    for count in [&seen.let_in, &seen.refused_in, &seen.refused_out] {
        assert_eq!(count.load(Ordering::Relaxed), 0, "{seen:?}");
    }

    // Both are seen where they may be.
    store.put_pod("dev", "open", &[], &[], &[]).unwrap();
    let mut open = network.sandbox("dev", "open");
    network.add(&mut open).unwrap();
    let socket = open.netns.enter(|| socket(PORT));
    observer.wait_for_a_round();
    let mut buffer = [0; 16];
    let length = socket.recv(&mut buffer).unwrap();
    assert_eq!(&buffer[..length], OBSERVED);
    socket.send_to(ALLOWED, outside.address).unwrap();
    let deadline = Instant::now() + PATIENCE;
    while outside.count() == 0 {
        assert!(Instant::now() < deadline, "an open pod is heard outside");
        thread::sleep(Duration::from_millis(1));
    }
    for pod in [&web, &open] {
        network.del(pod).unwrap();
    }
    agent.sync().unwrap();
    let left = agent.ask(&["get", "workloadendpoints"]).unwrap();
    assert_eq!(left.lines().count(), 1, "only the heading: {left}");
}

/// Stops the other threads when one panics.
struct Guard<'a>(&'a AtomicBool);

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Where pods start.
struct Stands<'a> {
    node: &'a Node,
    network: &'a Network<'a>,
    observer: &'a Observer,
    web: &'a Sandbox,
    outside: SocketAddr,
}

impl Stands<'_> {
    /// One pod's life.
    fn start(&self, name: &str, seen: &Seen) {
        let store = self.node.datastore();
        store
            .put_pod("vault", name, &[("app", "db")], &[], &[])
            .unwrap();
        let mut pod = self.network.sandbox("vault", name);
        self.network.add(&mut pod).unwrap();
        // From here on its processes run.
        let socket = pod.netns.enter(|| socket(PORT));
        socket.send_to(b"leak", self.outside).unwrap();
        let to = SocketAddr::new(pod.address(true), PORT);
        let from_web = self
            .web
            .netns
            .enter(|| UdpSocket::bind("0.0.0.0:0"))
            .unwrap();
        from_web.send_to(ALLOWED, to).unwrap();
        let answered = self.web_answers(&pod.netns);
        if !answered {
            seen.refused_out.fetch_add(1, Ordering::Relaxed);
        }
        self.observer.wait_for_a_round();
        socket.send_to(b"leak", self.outside).unwrap();
        if !hears(&socket, seen) {
            eprintln!("{name}: an allowed datagram to {to} did not arrive");
            seen.refused_in.fetch_add(1, Ordering::Relaxed);
        }
        self.network.del(&pod).unwrap();
        store.delete_pod("vault", name).unwrap();
        self.forget(to.ip());
    }

    /// The next pod with this address has another MAC address. On a bridge others would send to the former one for
    /// seconds, which looks like a refusal, or like a policy that holds.
    fn forget(&self, address: IpAddr) {
        let address = address.to_string();
        for (netns, device) in [
            (self.node.netns(), super::runner::BRIDGE),
            (&self.web.netns, "eth0"),
        ] {
            let mut command = netns.command("ip");
            command.args(["neigh", "del", &address, "dev", device]);
            // There may be none.
            let _status = command.stderr(Stdio::null()).status().unwrap();
        }
    }

    /// One exchange with web in each family.
    fn web_answers(&self, from: &Netns) -> bool {
        [true, false].into_iter().all(|is_ipv4| {
            let to: IpAddr = self.web.address(is_ipv4);
            let outcome = probe(&Probe {
                from,
                to,
                what: What::Udp(53),
                patience: PATIENCE,
            });
            if outcome != Outcome::Answered {
                eprintln!("{to}: {outcome}");
            }
            outcome == Outcome::Answered
        })
    }
}

fn socket(port: u16) -> UdpSocket {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

/// Takes in what came, and says whether the allowed datagram did. It was sent before the observer's last round.
fn hears(socket: &UdpSocket, seen: &Seen) -> bool {
    let mut buffer = [0; 16];
    let mut allowed = false;
    let began = Instant::now();
    loop {
        // What has come is there already; the one that has to come is waited for.
        socket.set_nonblocking(allowed).unwrap();
        match socket.recv(&mut buffer) {
            Ok(length) if &buffer[..length] == ALLOWED => allowed = true,
            Ok(_) => {
                seen.let_in.fetch_add(1, Ordering::Relaxed);
            }
            Err(_) => return allowed,
        }
        if began.elapsed() > PATIENCE + SILENCE {
            return allowed;
        }
    }
}
