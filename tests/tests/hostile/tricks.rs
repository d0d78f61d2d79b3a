//! Attacks that need more than a frame: devices, addresses, marks and programs in the pod; and resets of others'
//! connections.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd as _;
use std::thread;
use std::time::{Duration, Instant};

use portcullis_tests::netns::{
    Agent, Family, Flow, Form, Hook, Host, Injector, Netns, Node, PATIENCE, PodSpec, Program,
    SILENCE, Sniffer, What, check,
};
use portcullis_tests::raw::{icmp, ip, ip_frame, tcp, udp};
use socket2::{Domain, Protocol, Socket, Type};

use super::scene::{Scene, Who};
use super::verdicts::{look, marker, name};
use Who::{Db, Evil, Friend, Open, Tool, Web};

/// The first number of this table's markers.
const FIRST: usize = 6_000_000;

/// Numbers given out, with what they are.
struct Sent {
    names: Vec<(Who, String, Vec<Who>)>,
}

impl Sent {
    fn next(&mut self, from: Who, name: impl Into<String>, may_see: &[Who]) -> Vec<u8> {
        self.names.push((from, name.into(), may_see.to_vec()));
        marker(FIRST + self.names.len() - 1)
    }
}

/// A datagram by a socket, as a program in the pod sends it.
fn send(
    host: &Host,
    from: Option<IpAddr>,
    to: IpAddr,
    mark: Option<u32>,
    payload: &[u8],
) -> std::io::Result<()> {
    host.netns().enter(|| {
        let to = SocketAddr::new(to, 9000);
        let socket = Socket::new(Domain::for_address(to), Type::DGRAM, Some(Protocol::UDP))?;
        if let Some(mark) = mark {
            set(&socket, libc::SO_MARK, mark)?;
            set(&socket, libc::SO_PRIORITY, mark >> 28)?;
        }
        if let Some(from) = from {
            socket.bind(&SocketAddr::new(from, 0).into())?;
        }
        socket.send_to(payload, &to.into())?;
        Ok(())
    })
}

fn set(socket: &Socket, option: libc::c_int, value: u32) -> std::io::Result<()> {
    // SAFETY: the option's value is an int, given with its size.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            option,
            (&raw const value).cast(),
            size_of_val(&value) as libc::socklen_t,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(std::io::Error::last_os_error())
    }
}

/// The slot's token and tag, and others, as whoever has read the sources would forge them.
fn forged() -> Vec<(u32, u32)> {
    use policy_common::carrier::{Tag, encode};
    let kinds = [
        0,
        Tag::SENT,
        Tag::DEFERRED,
        Tag::ASKING,
        Tag::JUDGED,
        Tag::NODE,
    ];
    (1..=5)
        .flat_map(|slot| kinds.map(|kind| (encode(slot, 0x1234_5678), kind | slot)))
        .chain([
            (encode(1, 0), Tag::NODE),
            (0, Tag::NODE),
            (0, Tag::JUDGED | 3),
        ])
        .collect()
}

/// What they gained.
pub(super) fn try_all(scene: &Scene) -> Vec<String> {
    look(scene);
    let mut sent = Sent { names: Vec::new() };
    for from in [Evil, Tool] {
        marks(scene, from, &mut sent);
        programs(scene, from, &mut sent);
        devices(scene, from, &mut sent);
    }
    let mut wrong = resets(scene, &mut sent);
    quotes(scene, &mut sent);
    let mut seen = BTreeSet::new();
    let mut quiet = Instant::now();
    while quiet.elapsed() < SILENCE {
        let more = look(scene);
        if !more.is_empty() {
            quiet = Instant::now();
        }
        seen.extend(more);
        thread::sleep(Duration::from_millis(5));
    }
    println!("{:?}: {} tricks", scene.base, sent.names.len());
    for (number, by) in seen {
        let Some((from, trick, may_see)) = number
            .checked_sub(FIRST)
            .and_then(|index| sent.names.get(index))
        else {
            continue;
        };
        if by != name(*from) && !may_see.iter().any(|who| name(*who) == by) {
            wrong.push(format!(
                "  {} {trick}: expected nothing, got a packet at {by}",
                name(*from)
            ));
        }
    }
    wrong
}

/// Whom an attacker may send to from its own address.
fn may_see(from: Who, to: Who) -> &'static [Who] {
    match (from, to) {
        (Tool, Friend) => &[Friend],
        (Tool, Open) => &[Open],
        _ => &[],
    }
}

fn marks(scene: &Scene, from: Who, sent: &mut Sent) {
    for mark in (1..=6)
        .map(|slot| slot << 16)
        .chain([0x20000, 0x40000, 0xffff_0000, u32::MAX])
    {
        for to in [Db, Friend] {
            for family in Family::ALL {
                let payload =
                    sent.next(from, format!("mark {mark:#x} to {to:?}"), may_see(from, to));
                send(
                    scene.host(from),
                    None,
                    scene.address(to, family),
                    Some(mark),
                    &payload,
                )
                .unwrap();
            }
        }
    }
}

fn programs(scene: &Scene, from: Who, sent: &mut Sent) {
    let host = scene.host(from);
    for (hash, tc_index) in forged() {
        let program = Program {
            hash: (hash != 0).then_some(hash),
            tc_index: Some(tc_index),
            mark: Some(tc_index << 16),
            ..Program::default()
        };
        let pins = scene.node.bpffs();
        let attached = program.attach(host.netns(), "eth0", false, Hook::Clsact(1), pins);
        let _attached = attached.unwrap();
        for to in [Db, Web, Friend] {
            for family in Family::ALL {
                let trick = format!("forged hash {hash:#x} and tc_index {tc_index:#x} to {to:?}");
                let payload = sent.next(from, trick, may_see(from, to));
                send(host, None, scene.address(to, family), None, &payload).unwrap();
            }
        }
    }
}

fn devices(scene: &Scene, from: Who, sent: &mut Sent) {
    let host = scene.host(from);
    let netns = host.netns();
    let frame = |source: Who, to: Who, family: Family, payload: &[u8]| {
        let (source, target) = (scene.address(source, family), scene.address(to, family));
        let packet = ip(
            source,
            target,
            17,
            &udp(source, target, [4000, 9000], payload),
        );
        ip_frame(scene.next_hop(to, from), scene.mac(from, from), &packet)
    };
    // A device on top of the pod's own.
    netns
        .ip("link add link eth0 name mv0 type macvlan mode private\nlink set mv0 up")
        .unwrap();
    let over = Injector::new(netns, "mv0").unwrap();
    for family in Family::ALL {
        let payload = sent.next(from, "by macvlan, web's address", &[]);
        over.send(&frame(Web, Db, family, &payload)).unwrap();
        let payload = sent.next(from, "by macvlan, to web", &[]);
        over.send(&frame(from, Web, family, &payload)).unwrap();
    }
    netns.ip("link delete mv0").unwrap();
    // Packets that went through an ifb skip the classifiers of the next device.
    netns
        .ip("link add ifb0 type ifb\nlink set ifb0 up")
        .unwrap();
    let tc = |line: &str| {
        netns
            .script("tc", &line.split_whitespace().collect::<Vec<_>>(), "")
            .unwrap()
    };
    for (what, set_up, undo) in [
        (
            "by ifb at clsact",
            &[
                "qdisc replace dev eth0 clsact",
                "filter add dev eth0 egress protocol all prio 9 u32 match u32 0 0 action mirred egress redirect dev ifb0",
            ][..],
            "qdisc del dev eth0 clsact",
        ),
        (
            "by ifb at a queue",
            &[
                "qdisc replace dev eth0 root handle 1: htb",
                "filter add dev eth0 parent 1: protocol all prio 9 u32 match u32 0 0 action mirred egress redirect dev ifb0",
            ],
            "qdisc del dev eth0 root",
        ),
    ] {
        set_up.iter().for_each(|line| tc(line));
        let direct = Injector::new(netns, "eth0").unwrap();
        for family in Family::ALL {
            for (source, to) in [(Web, Db), (from, Web), (from, Friend)] {
                let allowed = if source == from {
                    may_see(from, to)
                } else {
                    &[]
                };
                let payload = sent.next(
                    from,
                    format!("{what}, {source:?}'s address to {to:?}"),
                    allowed,
                );
                direct.send(&frame(source, to, family, &payload)).unwrap();
            }
        }
        tc(undo);
    }
    netns.ip("link delete ifb0").unwrap();
}

/// Ends of others' connections by those who know addresses and ports; sequence numbers are guessed wrong.
fn resets(scene: &Scene, sent: &mut Sent) -> Vec<String> {
    let mut wrong = Vec::new();
    for family in Family::ALL {
        let (web, db) = (scene.host(Web), scene.host(Db));
        let port = 9150 + family as u16;
        let mut flow = Flow::open(web.netns(), db.netns(), db.address(family), port).unwrap();
        let [client, server] = flow.ports().unwrap();
        for from in [Evil, Tool] {
            let injector = Injector::new(scene.host(from).netns(), "eth0").unwrap();
            for flags in [4, 0x14, 0x11, 2] {
                for (source, to, ports) in
                    [(Web, Db, [client, server]), (Db, Web, [server, client])]
                {
                    let payload = sent.next(
                        from,
                        format!("end of a connection by flags {flags:#x} from {source:?}"),
                        &[],
                    );
                    let (source, target) =
                        (scene.address(source, family), scene.address(to, family));
                    let segment = tcp(source, target, ports, flags, 12345, &payload);
                    let frame = ip_frame(
                        scene.next_hop(to, from),
                        scene.mac(from, from),
                        &ip(source, target, 6, &segment),
                    );
                    injector.send(&frame).unwrap();
                }
            }
        }
        // And one end itself: what is out of sequence ends nothing.
        let injector = Injector::new(web.netns(), "eth0").unwrap();
        for flags in [4, 0x11] {
            let (source, target) = (scene.address(Web, family), scene.address(Db, family));
            let segment = tcp(source, target, [client, server], flags, 12345, b"");
            let frame = ip_frame(
                scene.next_hop(Db, Web),
                scene.mac(Web, Web),
                &ip(source, target, 6, &segment),
            );
            injector.send(&frame).unwrap();
        }
        for _ in 0..3 {
            let client = flow.client_speaks(PATIENCE);
            let server = flow.server_speaks(PATIENCE);
            if !matches!((&client, &server), (Ok(true), Ok(true))) {
                wrong.push(format!("  a connection ended by a wrong sequence number, {family:?}: {client:?}, {server:?}"));
            }
        }
    }
    wrong
}

/// ICMP errors about a connection that lives, to others than whom they concern.
fn quotes(scene: &Scene, sent: &mut Sent) {
    let host = scene.host(Evil);
    let injector = Injector::new(host.netns(), "eth0").unwrap();
    for family in Family::ALL {
        let (node, own) = (
            scene.address(Who::Node, family),
            scene.address(Evil, family),
        );
        let port = 9160 + family as u16;
        let flow = Flow::open(scene.node.netns(), host.netns(), own, port).unwrap();
        let quote = ip(
            node,
            own,
            6,
            &tcp(node, own, flow.ports().unwrap(), 0x10, 1, b""),
        );
        let (protocol, kinds) = match family {
            Family::V4 => (1, [(3, 1), (3, 4), (11, 0), (12, 0)]),
            Family::V6 => (58, [(1, 1), (2, 0), (3, 0), (4, 0)]),
        };
        for (kind, code) in kinds {
            for to in [Db, Web, Friend] {
                let name =
                    format!("ICMP {kind}/{code} about a live connection to {to:?}, {family:?}");
                let payload = sent.next(Evil, name, &[]);
                let rest = [&[0, 0, 5, 0], &quote[..], &payload].concat();
                let target = scene.address(to, family);
                let packet = ip(own, target, protocol, &icmp(own, target, kind, code, &rest));
                let frame = ip_frame(scene.next_hop(to, Evil), scene.mac(Evil, Evil), &packet);
                injector.send(&frame).unwrap();
            }
        }
    }
}

/// How long an attacker tries: the agent looks at everything meanwhile, more than once.
const WHILE: Duration = Duration::from_secs(7);

/// Pods that change who they seem to be, under an agent that had found them before.
fn pods_stay_who_they_are(form: Form) {
    let node = Node::new(form).unwrap();
    let store = node.datastore();
    store.put_namespace("shop", &[("team", "shop")]).unwrap();
    let pod = |name| {
        let labels = [("app", name)];
        node.add(PodSpec::new("shop", name, &labels)).unwrap()
    };
    let [web, db, moved, claims, gone, renamed] =
        ["web", "db", "moved", "claims", "gone", "renamed"].map(pod);
    let friend = node.add_outside("friend", 10).unwrap();
    store
        .put_policy(
            "shop",
            "default-deny",
            "{podSelector: {}, policyTypes: [Ingress, Egress]}",
        )
        .unwrap();
    store
        .put_policy("shop", "web-to-db", "podSelector: {matchLabels: {app: db}}\ningress:\n- from: [{podSelector: {matchLabels: {app: web}}}]")
        .unwrap();
    store
        .put_policy("shop", "web-out", "podSelector: {matchLabels: {app: web}}\npolicyTypes: [Egress]\negress:\n- to: [{podSelector: {matchLabels: {app: db}}}]")
        .unwrap();
    let agent = Agent::start(&node).unwrap();
    check(
        "before",
        &[
            (&web, &db, What::Tcp(80), true),
            (&claims, &db, What::Tcp(80), false),
        ],
    );
    let sniffers = [&db, &web, &friend].map(|host| Sniffer::start(host.netns()).unwrap());
    let [own_v4, own_v6] = moved.addresses();
    moved
        .netns()
        .ip(&format!(
            "address add {own_v4}/32 dev lo\naddress add {own_v6}/128 dev lo nodad"
        ))
        .unwrap();
    // Routes first, which would go with the address.
    let keep_routes = |netns: &Netns, without: &str| {
        let [v4, v6] = node.addresses();
        netns.ip(without).unwrap();
        for line in [
            format!("route replace {v4}/32 dev eth0"),
            format!("route replace {v6}/128 dev eth0"),
            format!("route replace 0.0.0.0/0 via {v4} dev eth0"),
            format!("route replace ::/0 via {v6} dev eth0"),
        ] {
            netns.ip(&line).unwrap();
        }
    };
    let prefixes = if form == Form::Bridge {
        [24, 64]
    } else {
        [32, 128]
    };
    let drop_own = |host: &Host| {
        let [v4, v6] = host.addresses();
        format!(
            "address del {v4}/{} dev eth0\naddress del {v6}/{} dev eth0",
            prefixes[0], prefixes[1]
        )
    };
    keep_routes(moved.netns(), &drop_own(&moved));
    let [web_v4, web_v6] = web.addresses();
    claims
        .netns()
        .ip(&format!(
            "address add {web_v4}/32 dev eth0\naddress add {web_v6}/128 dev eth0 nodad"
        ))
        .unwrap();
    keep_routes(claims.netns(), &drop_own(&claims));
    store.delete_pod("shop", "gone").unwrap();
    renamed
        .netns()
        .ip("link set eth0 down\nlink set eth0 name eth7\nlink set eth7 up")
        .unwrap();
    keep_routes_of(&renamed, &node);
    let began = Instant::now();
    let mut tried = 0;
    let mut seen = BTreeSet::new();
    while began.elapsed() < WHILE {
        for (index, host) in [&moved, &claims, &gone, &renamed].into_iter().enumerate() {
            for to in [&db, &friend] {
                for address in to.addresses() {
                    let payload = marker(7_000_000 + index);
                    // The network may be unreachable to who has no address left.
                    tried += usize::from(send(host, None, address, None, &payload).is_ok());
                }
            }
            for address in claims
                .addresses()
                .iter()
                .zip([web_v4, web_v6])
                .map(|(_, address)| address)
            {
                let to = db.addresses()[usize::from(address.is_ipv6())];
                tried +=
                    usize::from(send(&claims, Some(address), to, None, &marker(7_000_001)).is_ok());
            }
        }
        for sniffer in &sniffers {
            for frame in sniffer.frames().unwrap() {
                for number in 7_000_000..7_000_004 {
                    if frame.windows(11).any(|window| window == marker(number)) {
                        seen.insert(["moved", "claims", "gone", "renamed"][number - 7_000_000]);
                    }
                }
            }
        }
        thread::sleep(Duration::from_millis(50));
    }
    assert!(tried > 100, "only {tried} packets were sent");
    assert!(
        seen.is_empty(),
        "{form:?}: something of these pods got out: {seen:?}\n{}",
        agent.log()
    );
    check(
        "after",
        &[
            (&web, &db, What::Tcp(80), true),
            (&web, &db, What::Ping, true),
        ],
    );
}

/// Routes of a pod whose interface has another name now; some went with it.
fn keep_routes_of(host: &Host, node: &Node) {
    let [v4, v6] = node.addresses();
    for line in [
        format!("route replace {v4}/32 dev eth7"),
        format!("route replace {v6}/128 dev eth7"),
        format!("route replace 0.0.0.0/0 via {v4} dev eth7"),
        format!("route replace ::/0 via {v6} dev eth7"),
    ] {
        host.netns().ip(&line).unwrap();
    }
}

#[test]
fn routed_pods_stay_who_they_are() {
    pods_stay_who_they_are(Form::Routed);
}

#[test]
fn bridged_pods_stay_who_they_are() {
    pods_stay_who_they_are(Form::Bridge);
}
