//! Discovery on real veths, in network namespaces made for it. Needs root, and fails without.
//!
//! The test's nodes are namespaces too, so that the machine's own interfaces are never touched.

use std::fs::File;
use std::process::Command;

use nix::sched::{CloneFlags, setns};
use tokio::time::timeout;

use super::*;
use crate::dataplane::{LinkLayer, NetdevProgram};
use crate::endpoint::{Device, Tunnels};

/// Namespaces that go when this does, whatever happened.
struct Netns(Vec<String>);

impl Netns {
    fn new() -> Self {
        assert!(
            nix::unistd::geteuid().is_root(),
            "this test makes network namespaces: run it as root"
        );
        Self(Vec::new())
    }

    /// A new namespace, with its full name.
    fn add(&mut self, name: &str) -> String {
        let name = format!("pcl-disc-{}-{name}", std::process::id());
        self.0.push(name.clone());
        ip(&["netns", "add", &name]);
        name
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        for name in &self.0 {
            // Reported by a failing next run, if at all; a panic here would hide the test's own.
            let _deleted = Command::new("ip").args(["netns", "del", name]).status();
        }
    }
}

fn ip(arguments: &[&str]) {
    let output = Command::new("ip")
        .args(arguments)
        .output()
        .expect("iproute2");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "ip {}: {error}",
        arguments.join(" ")
    );
}

/// Runs `test` on a thread of its own within the namespace.
fn within<T: Send + 'static>(netns: &str, test: impl AsyncFnOnce() -> T + Send + 'static) -> T {
    let file = File::open(format!("/run/netns/{netns}")).expect("namespace");
    std::thread::spawn(move || {
        setns(file, CloneFlags::CLONE_NEWNET).expect("root");
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("runtime");
        runtime.block_on(test())
    })
    .join()
    .expect("the test within the namespace")
}

async fn next_scan(discovery: &mut Discovery) -> ScanReport {
    loop {
        let report = discovery.next().await.expect("discovery lives");
        if let Report::Scan(report) = report {
            return report;
        }
    }
}

/// Scans that follow by themselves until one fits; the events that led to it were real.
async fn until(discovery: &mut Discovery, what: &str, fits: impl Fn(&Scan) -> bool) -> Scan {
    let wait = async {
        loop {
            let scan = next_scan(discovery).await.result.expect("scan");
            if fits(&scan) {
                return scan;
            }
        }
    };
    // Shorter than the rescan, so that only events can have brought it about.
    timeout(RESCAN - Duration::from_secs(1), wait)
        .await
        .unwrap_or_else(|_| panic!("no scan within time: {what}"))
}

fn address(text: &str) -> IpAddr {
    text.parse().expect("address")
}

#[test]
fn finds_and_follows_pod_interfaces() {
    let mut netns = Netns::new();
    let (node, pod) = (netns.add("node"), netns.add("pod"));
    let (inner_node, inner_pod) = (node.clone(), pod.clone());
    within(&node, async move || {
        let (node, pod) = (inner_node, inner_pod);
        let mut discovery = start(BTreeSet::new()).expect("netlink");
        let empty = until(&mut discovery, "nothing there", |_| true).await;
        // Some kernels make tunnels in every namespace.
        let empty = Scan {
            links: BTreeMap::new(),
            ..empty
        };
        assert_eq!(empty, Scan::default());

        ip(&[
            "-n", &node, "link", "add", "pcl-h0", "type", "veth", "peer", "name", "eth0", "netns",
            &pod,
        ]);
        let found = until(&mut discovery, "a veth", |scan| scan.interfaces.len() == 1).await;
        let first = found.interfaces.values().next().expect("one").clone();
        assert_eq!(
            (first.name.as_str(), first.peer.name.as_str()),
            ("pcl-h0", "eth0")
        );
        assert!(first.addresses.is_empty());

        // An address inside the pod's namespace, of which the host's side sees no link event.
        ip(&["-n", &pod, "addr", "add", "10.9.0.5/32", "dev", "eth0"]);
        let scan = until(&mut discovery, "an IPv4 address", |scan| {
            scan.interfaces
                .values()
                .any(|interface| !interface.addresses.is_empty())
        })
        .await;
        assert_eq!(
            scan.interfaces[&first.ifindex].addresses,
            [address("10.9.0.5")]
        );

        ip(&["-n", &pod, "link", "set", "eth0", "up"]);
        ip(&["-n", &node, "link", "set", "pcl-h0", "up"]);
        ip(&[
            "-n",
            &pod,
            "addr",
            "add",
            "fd00:9::5/128",
            "dev",
            "eth0",
            "nodad",
        ]);
        let scan = until(&mut discovery, "an IPv6 address", |scan| {
            scan.interfaces
                .values()
                .any(|interface| interface.addresses.len() == 2)
        })
        .await;
        let now = &scan.interfaces[&first.ifindex];
        assert_eq!(
            now.addresses,
            [address("10.9.0.5"), address("fd00:9::5")],
            "no link-local address"
        );
        assert!(Device::of(&first).is(now));

        // Not pods: both ends on the node, and other kinds of interface.
        ip(&[
            "-n", &node, "link", "add", "pcl-a", "type", "veth", "peer", "name", "pcl-b",
        ]);
        ip(&["-n", &node, "link", "add", "pcl-br", "type", "bridge"]);
        let scan = until(&mut discovery, "veths within the node", |scan| {
            scan.veths.len() == 3
        })
        .await;
        assert_eq!(scan.interfaces.keys().collect::<Vec<_>>(), [&first.ifindex]);

        ip(&["-n", &node, "link", "del", "pcl-h0"]);
        let scan = until(&mut discovery, "the veth gone", |scan| {
            scan.interfaces.is_empty()
        })
        .await;
        assert!(!scan.veths.contains(&first.ifindex));
    });
}

#[test]
fn finds_and_follows_what_is_the_nodes_own() {
    let mut netns = Netns::new();
    let node = netns.add("own");
    let inner_node = node.clone();
    within(&node, async move || {
        let ip = |arguments: &[&str]| ip(&[&["-n", &inner_node], arguments].concat());
        let mut discovery = start(BTreeSet::new()).expect("netlink");
        ip(&["link", "set", "lo", "up"]);
        ip(&["addr", "add", "192.0.2.9/32", "dev", "lo"]);
        ip(&[
            "link",
            "add",
            "pcl-eth",
            "type",
            "veth",
            "peer",
            "pcl-other",
        ]);
        ip(&["link", "add", "pcl-br", "type", "bridge"]);
        ip(&["addr", "add", "192.0.2.1/24", "dev", "pcl-eth"]);
        ip(&["addr", "add", "fe80::7/64", "dev", "pcl-eth", "nodad"]);
        ip(&["addr", "add", "198.51.100.1/24", "dev", "pcl-br"]);
        let own = ["192.0.2.1", "192.0.2.9", "198.51.100.1", "fe80::7"].map(address);
        let scan = until(&mut discovery, "addresses", |scan| {
            scan.addresses == own.into()
        })
        .await;
        let named = |scan: &Scan, name: &str| {
            let mut links = scan.links.values();
            links.find(|link| link.name == name).cloned()
        };
        assert_eq!(named(&scan, "lo"), None);
        let bridge = named(&scan, "pcl-br").expect("found");
        assert_eq!(bridge.program, NetdevProgram::FromNode);
        let ethernet = named(&scan, "pcl-eth").expect("found");
        let wanted = NetdevProgram::ToNetdev(LinkLayer::Ethernet);
        assert_eq!(ethernet.program, wanted);

        ip(&["addr", "del", "192.0.2.9/32", "dev", "lo"]);
        let gone = address("192.0.2.9");
        until(&mut discovery, "an address less", |scan| {
            !scan.addresses.contains(&gone)
        })
        .await;
        ip(&["link", "del", "pcl-eth"]);
        until(&mut discovery, "an interface less", |scan| {
            named(scan, "pcl-eth").is_none() && scan.addresses.len() == 1
        })
        .await;
    });
}

#[test]
fn an_interface_is_told_of_before_a_scan_has_it() {
    let mut netns = Netns::new();
    let (node, other) = (netns.add("told"), netns.add("told-not"));
    let inner = (node.clone(), other);
    within(&node, async move || {
        let (node, other) = inner;
        let add = |netns: &str, name: &str, id: &str| {
            ip(&[
                "-n",
                netns,
                "link",
                "add",
                name,
                "type",
                "vxlan",
                "id",
                id,
                "dstport",
                "8472",
                "remote",
                "192.0.2.1",
            ]);
        };
        let mut discovery = start(BTreeSet::new()).expect("netlink");
        until(&mut discovery, "nothing there", |_| true).await;
        ip(&["-n", &node, "link", "add", "pcl-veth", "type", "veth"]);
        ip(&["-n", &node, "link", "add", "pcl-br", "type", "bridge"]);
        ip(&["-n", &node, "link", "set", "pcl-veth", "master", "pcl-br"]);
        add(&other, "pcl-theirs", "7");
        for (name, id) in [("pcl-one", "7"), ("pcl-two", "8")] {
            add(&node, name, id);
            let told = timeout(RESCAN, async {
                loop {
                    match discovery.next().await.expect("discovery lives") {
                        // The bridge is told of, too.
                        Report::Link(_, link) if link.name == "pcl-br" => {}
                        Report::Link(ifindex, link) => return (ifindex, link),
                        Report::Scan(report) => {
                            let links = report.result.expect("scan").links;
                            assert!(links.values().all(|link| link.name != name), "{name}");
                        }
                    }
                }
            });
            let (ifindex, link) = told.await.expect("within time");
            assert_eq!(link.name, name);
            let has_it = |scan: &Scan| scan.links.get(&ifindex) == Some(&link);
            until(&mut discovery, "a scan that has it, too", has_it).await;
            ip(&["-n", &node, "link", "del", name]);
            let has_it_not = |scan: &Scan| !scan.links.contains_key(&ifindex);
            until(&mut discovery, "a scan without it", has_it_not).await;
        }
    });
}

#[test]
fn a_neighbouring_nodes_pods_are_not_ours() {
    let mut netns = Netns::new();
    let (one, two) = (netns.add("one"), netns.add("two"));
    let (pod_one, pod_two) = (netns.add("pod-one"), netns.add("pod-two"));
    // The same ifindices on both nodes and in both pods, and a veth between the nodes.
    for (node, pod, last) in [(&one, &pod_one, "1"), (&two, &pod_two, "2")] {
        ip(&[
            "-n", node, "link", "add", "pcl-h0", "index", "50", "type", "veth", "peer", "name",
            "eth0", "netns", pod,
        ]);
        ip(&[
            "-n",
            pod,
            "addr",
            "add",
            &format!("10.9.0.{last}/32"),
            "dev",
            "eth0",
        ]);
    }
    ip(&[
        "-n", &one, "link", "add", "pcl-up", "type", "veth", "peer", "name", "pcl-up", "netns",
        &two,
    ]);
    ip(&["-n", &two, "addr", "add", "172.31.0.2/24", "dev", "pcl-up"]);
    for (node, expected) in [
        (one, ["10.9.0.1", "172.31.0.2"].as_slice()),
        (two, &["10.9.0.2"]),
    ] {
        let found = within(&node, async || {
            let mut discovery = start(BTreeSet::new()).expect("netlink");
            let scan = until(&mut discovery, "the first scan", |_| true).await;
            let interfaces = scan.interfaces.into_values();
            let mut addresses: Vec<_> = interfaces
                .flat_map(|interface| interface.addresses)
                .collect();
            addresses.sort();
            addresses
        });
        let expected: Vec<_> = expected.iter().map(|text| address(text)).collect();
        assert_eq!(found, expected, "node {node}");
    }
}

#[test]
fn a_requested_scan_sees_what_was_there_before_the_request() {
    let mut netns = Netns::new();
    let (node, pod) = (netns.add("req-node"), netns.add("req-pod"));
    let inner = (node.clone(), pod);
    within(&node, async move || {
        let (node, pod) = inner;
        let mut discovery = start(BTreeSet::new()).expect("netlink");
        for round in 0..5 {
            let name = format!("pcl-h{round}");
            let peer = format!("eth{round}");
            ip(&[
                "-n", &node, "link", "add", &name, "type", "veth", "peer", "name", &peer, "netns",
                &pod,
            ]);
            let number = discovery.request();
            let report = timeout(RESCAN, async {
                loop {
                    let report = next_scan(&mut discovery).await;
                    if report.answers >= number {
                        return report;
                    }
                }
            })
            .await
            .expect("an answer");
            let scan = report.result.expect("scan");
            assert_eq!(scan.interfaces.len(), round + 1);
        }
    });
}

/// With the kind of device that every kernel of ours has; of the others `tunnels` tests what netlink says.
#[test]
fn finds_and_follows_tunnels() {
    let mut netns = Netns::new();
    let node = netns.add("tunnels");
    let inner_node = node.clone();
    within(&node, async move || {
        let ip = |arguments: &str| {
            let arguments: Vec<_> = arguments.split(' ').collect();
            ip(&[&["-n", &inner_node], arguments.as_slice()].concat());
        };
        let mut discovery = start(BTreeSet::new()).expect("netlink");
        ip("link add vx0 type vxlan id 1 dstport 8472 nolearning remote 192.0.2.2");
        let scan = until(&mut discovery, "a device", |scan| {
            scan.links.values().any(|link| link.name == "vx0")
        })
        .await;
        assert_eq!(
            scan.tunnels,
            Tunnels::default(),
            "one that is down does not listen"
        );
        ip("link set vx0 up");
        until(&mut discovery, "a VXLAN device", |scan| {
            scan.tunnels.ports == [8472, 0, 0, 0]
                && scan.tunnels.remotes == [address("192.0.2.2")].into()
        })
        .await;
        ip("link add vx6 type vxlan id 2 dstport 4789 local fd00:9::1 group ff05::100 dev lo");
        ip("link set vx6 up");
        ip("link add vx1 type vxlan id 3 dstport 6081 remote fd00:9::2");
        ip("link set vx1 up");
        let remotes = ["192.0.2.2", "fd00:9::2", "ff05::100"].map(address);
        until(&mut discovery, "more devices", |scan| {
            scan.tunnels.ports == [4789, 6081, 8472, 0] && scan.tunnels.remotes == remotes.into()
        })
        .await;

        // Of entries no event tells: the next scan sees them.
        let fdb = |arguments: &str| {
            let status = Command::new("bridge")
                .args(["-n", &inner_node, "fdb"])
                .args(arguments.split(' '))
                .status();
            assert!(
                status.expect("iproute2").success(),
                "bridge fdb {arguments}"
            );
        };
        fdb("add 02:00:00:00:00:05 dev vx0 dst 192.0.2.5 self permanent");
        fdb("append 00:00:00:00:00:00 dev vx0 dst 192.0.2.6 self permanent");
        fdb("add 02:00:00:00:00:07 dev vx6 dst fd00:9::7 self permanent");
        let asked = discovery.request();
        let scan = loop {
            let report = next_scan(&mut discovery).await;
            if report.answers >= asked {
                break report.result.expect("scan");
            }
        };
        let remotes = [
            "192.0.2.2",
            "192.0.2.5",
            "192.0.2.6",
            "fd00:9::2",
            "fd00:9::7",
            "ff05::100",
        ];
        assert_eq!(scan.tunnels.remotes, remotes.map(address).into());

        for (name, port) in [("vx7", 7001), ("vx8", 7002)] {
            ip(&format!(
                "link add {name} type vxlan id {port} dstport {port}"
            ));
            ip(&format!("link set {name} up"));
        }
        let scan = until(&mut discovery, "too many devices", |scan| {
            scan.tunnels.uncovered.len() == 1
        })
        .await;
        assert_eq!(scan.tunnels.uncovered, [("vx8".to_owned(), 7002)]);
        assert_eq!(scan.tunnels.ports, [4789, 6081, 7001, 8472]);
        for name in ["vx7", "vx8", "vx6", "vx1", "vx0"] {
            ip(&format!("link del {name}"));
        }
        until(&mut discovery, "no tunnel", |scan| {
            scan.tunnels == Tunnels::default()
        })
        .await;
    });
}

/// A dump that a change interrupts leaves out interfaces that stay: here it leaves out all.
#[test]
fn an_interface_counts_as_gone_only_where_the_kernel_says_so_of_it() {
    let mut netns = Netns::new();
    let (node, pod) = (netns.add("gone-node"), netns.add("gone-pod"));
    let inner = (node.clone(), pod);
    within(&node, async move || {
        let (node, pod) = inner;
        ip(&[
            "-n", &node, "link", "add", "pcl-h0", "index", "50", "type", "veth", "peer", "name",
            "eth0", "netns", &pod,
        ]);
        ip(&[
            "-n", &node, "link", "add", "pcl-br", "index", "60", "type", "bridge",
        ]);
        ip(&["-n", &node, "link", "set", "pcl-h0", "master", "pcl-br"]);
        let (connection, handle, _) =
            rtnetlink::new_connection_with_strict_check().expect("netlink");
        tokio::spawn(connection);
        let mut links = Vec::new();
        add_missed(&handle, &mut links, &[50, 51].into())
            .await
            .expect("answers");
        let missed: Vec<_> = links.iter().map(|link| link.header.index).collect();
        assert_eq!(missed, [50]);
        let scan = scan(&handle, &[50, 51].into()).await.expect("a scan");
        assert_eq!(scan.veths, [50].into());
        let found = &scan.interfaces[&50];
        assert_eq!((found.master, found.hardware_address.len()), (60, 6));
    });
}

#[test]
fn a_pods_side_that_moves_is_the_same_device() {
    let mut netns = Netns::new();
    let names = ["mv-node", "mv-pod", "mv-inner"].map(|name| netns.add(name));
    let inner = names.clone();
    within(&names[0], async move || {
        let [node, pod, inner] = inner;
        ip(&[
            "-n", &node, "link", "add", "pcl-h0", "type", "veth", "peer", "name", "eth0", "netns",
            &pod,
        ]);
        ip(&["-n", &pod, "addr", "add", "169.254.1.5/32", "dev", "eth0"]);
        let mut discovery = start(BTreeSet::new()).expect("netlink");
        let found = until(&mut discovery, "a veth", |scan| {
            scan.interfaces
                .values()
                .any(|found| !found.link_local.is_empty())
        })
        .await;
        let first = found.interfaces.values().next().expect("one").clone();
        assert!(first.addresses.is_empty(), "link-local ones are apart");
        ip(&["-n", &pod, "link", "set", "eth0", "netns", &inner]);
        let moved = until(&mut discovery, "elsewhere", |scan| {
            let netns = |found: &Interface| found.peer.netns;
            scan.interfaces
                .values()
                .map(netns)
                .any(|now| now != first.peer.netns)
        })
        .await;
        let moved = moved.interfaces.values().next().expect("one");
        assert!(Device::of(&first).is(moved));
    });
}
