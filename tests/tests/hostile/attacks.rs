//! The table of attacks by frames: what is sent, and who may see it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use portcullis_tests::netns::Family;
use portcullis_tests::raw::{
    self, BROADCAST, Mac, V4, arp, ethernet, ethertype, group_mac, icmp, ip, ip_frame, ipv4,
    ipv4_as, ipv6, tagged, tcp, udp,
};

use super::scene::{NOBODY, OVERLAY, OVERLAY_MAC, SERVICE, SINK, Scene, Who};
use super::verdicts::marker;
use Who::{Db, Evil, Friend, Node, Open, Peer, Stranger, Tool, Web};

/// Stands for the marker in frames that are not yet sent.
const BLANK: &[u8; 11] = b"PCL-------!";

/// One attack.
pub(super) struct Attack {
    pub(super) number: usize,
    pub(super) name: String,
    pub(super) from: Who,
    pub(super) frames: Vec<Vec<u8>>,
    /// Who may see it for a reason: a policy, or because it is no more than talk on the link.
    pub(super) may_see: Vec<Who>,
    /// A kernel stops it already, or unpacks nothing of the kind.
    pub(super) may_be_inert: bool,
}

impl Attack {
    /// A frame with this attack's marker. A checksum that covers it is corrected by the marker's complement.
    pub(super) fn marked(&self, frame: &[u8]) -> Vec<u8> {
        let mut bytes = frame.to_vec();
        if let Some(at) = frame
            .windows(BLANK.len())
            .position(|window| window == BLANK)
        {
            bytes[at..at + BLANK.len()].copy_from_slice(&marker(self.number));
        }
        bytes
    }
}

#[derive(Default)]
pub(super) struct Table {
    pub(super) attacks: Vec<Attack>,
}

impl Table {
    /// Other markers than before, for packets that are still on their way.
    pub(super) fn renumber(&mut self) {
        for attack in &mut self.attacks {
            attack.number += 1_000_000;
        }
    }

    fn add(&mut self, from: Who, name: impl Into<String>, frames: Vec<Vec<u8>>) -> &mut Attack {
        let number = self.attacks.len();
        self.attacks.push(Attack {
            number,
            name: name.into(),
            from,
            frames,
            may_see: Vec::new(),
            may_be_inert: false,
        });
        self.attacks.last_mut().unwrap()
    }
}

impl Attack {
    fn may_see(&mut self, who: &[Who]) -> &mut Self {
        self.may_see.extend(who);
        self
    }

    fn inert(&mut self) -> &mut Self {
        self.may_be_inert = true;
        self
    }
}

const PORTS: [u16; 2] = [4000, SINK];

/// A datagram from an address to another, with the marker.
fn datagram(from: IpAddr, to: IpAddr) -> Vec<u8> {
    datagram_at(from, to, PORTS)
}

fn datagram_at(from: IpAddr, to: IpAddr, ports: [u16; 2]) -> Vec<u8> {
    let mut bytes = udp(from, to, ports, BLANK);
    if from.is_ipv4() {
        // The marker comes later: no checksum.
        bytes[6..8].fill(0);
    }
    ip(from, to, 17, &bytes)
}

/// Marker at the end of a header's payload, whatever the protocol.
fn bare(from: IpAddr, to: IpAddr, protocol: u8) -> Vec<u8> {
    let mut payload = vec![0; 16];
    payload.extend(BLANK);
    ip(from, to, protocol, &payload)
}

pub(super) fn table(scene: &Scene) -> Table {
    let mut table = Table::default();
    for from in [Evil, Tool] {
        forged_sources(scene, from, &mut table);
        tags(scene, from, &mut table);
        tunnels(scene, from, &mut table);
        icmp_messages(scene, from, &mut table);
        headers(scene, from, &mut table);
        fragments(scene, from, &mut table);
        segments(scene, from, &mut table);
        groups_and_loopback(scene, from, &mut table);
        other_protocols(scene, from, &mut table);
    }
    from_outside(scene, &mut table);
    // Without an agent, what neighbours believe of these would lead later packets astray.
    for from in [Evil, Tool] {
        neighbour_messages(scene, from, &mut table);
        if scene.is_bridged() {
            on_the_link(scene, from, &mut table);
        }
    }
    table
}

/// Whom an un-isolated pod may send to, from its own address or one that is nobody's.
const FREE: [Who; 4] = [Open, Friend, Stranger, Peer];

fn forged_sources(scene: &Scene, from: Who, table: &mut Table) {
    for family in Family::ALL {
        let address = |who| scene.address(who, family);
        let index = family as usize;
        let sources = [
            ("web's", address(Web), false),
            ("open's", address(Open), false),
            ("the node's", address(Node), false),
            (
                "the friend's, which an ipBlock names",
                address(Friend),
                false,
            ),
            ("a Service's", SERVICE[index], false),
            ("nobody's", NOBODY[index], true),
            ("its own", address(from), true),
        ];
        for (whose, source, free) in sources {
            for to in [Db, Web, Open, Friend, Stranger] {
                let to_address = address(to);
                if source == to_address {
                    continue;
                }
                let hop = scene.next_hop(to, from);
                let own = scene.mac(from, from);
                let allowed = from == Tool && free && FREE.contains(&to);
                let frame = |packet: &[u8]| ip_frame(hop, own, packet);
                let name = format!("{whose} address to {to:?}, {family:?}");
                let may: &[Who] = if allowed { &[to] } else { &[] };
                let attack = table.add(
                    from,
                    format!("{name}, UDP"),
                    vec![frame(&datagram(source, to_address))],
                );
                attack.may_see(may).may_be_inert = allowed;
                let syn = tcp(source, to_address, [4001, 80], 2, 1, BLANK);
                let attack = table.add(
                    from,
                    format!("{name}, TCP"),
                    vec![frame(&ip(source, to_address, 6, &syn))],
                );
                attack.may_see(may).may_be_inert = allowed;
            }
        }
        // Nothing comes from these.
        let odd: [IpAddr; 3] = match family {
            Family::V4 => [
                Ipv4Addr::LOCALHOST.into(),
                Ipv4Addr::new(224, 0, 0, 5).into(),
                Ipv4Addr::BROADCAST.into(),
            ],
            Family::V6 => [
                Ipv6Addr::LOCALHOST.into(),
                "ff02::5".parse().unwrap(),
                Ipv6Addr::UNSPECIFIED.into(),
            ],
        };
        for source in odd {
            let frame = ip_frame(
                scene.next_hop(Db, from),
                scene.mac(from, from),
                &datagram(source, address(Db)),
            );
            table
                .add(from, format!("{source} to db"), vec![frame])
                .inert();
        }
    }
}

/// What somebody outside may not pass for.
fn from_outside(scene: &Scene, table: &mut Table) {
    for family in Family::ALL {
        for to in [Db, Web, Evil] {
            for (whose, source) in [("its own", to), ("the node's", Node), ("open's", Open)] {
                let (source, target) = (scene.address(source, family), scene.address(to, family));
                let hop = scene.mac(Node, Stranger);
                let frame = ip_frame(hop, [2, 0, 0, 0, 0xdd, 1], &datagram(source, target));
                let name = format!("{whose} address to {to:?}, {family:?}");
                table.add(Stranger, name, vec![frame]);
            }
        }
    }
}

fn tags(scene: &Scene, from: Who, table: &mut Table) {
    let tags: [(&str, &[(u16, u16)]); 5] = [
        ("VLAN 0", &[(ethertype::VLAN, 0)]),
        ("priority 5", &[(ethertype::VLAN, 0xa000)]),
        (
            "VLAN 0 twice",
            &[(ethertype::VLAN, 0), (ethertype::VLAN, 0)],
        ),
        (
            "QinQ 0",
            &[(ethertype::SERVICE_VLAN, 0), (ethertype::VLAN, 0)],
        ),
        ("VLAN 5", &[(ethertype::VLAN, 5)]),
    ];
    for family in Family::ALL {
        for (name, tags) in tags {
            for source in [Web, from] {
                let source_address = scene.address(source, family);
                for to in [Db, Web, Friend] {
                    if to == source {
                        continue;
                    }
                    let frame = ip_frame(
                        scene.next_hop(to, from),
                        scene.mac(from, from),
                        &datagram(source_address, scene.address(to, family)),
                    );
                    let name = format!("{name}, {source:?}'s address to {to:?}, {family:?}");
                    // A kernel without VLANs takes off the identifier 0 alone; an outer node would take its own.
                    let attack = table.add(from, name, vec![tagged(&frame, tags)]).inert();
                    if source == Tool && to == Friend {
                        attack.may_see(&[Friend]);
                    }
                }
            }
        }
    }
}

fn on_the_link(scene: &Scene, from: Who, table: &mut Table) {
    let own = scene.mac(from, from);
    let claims: [(&str, Ipv4Addr); 5] = [
        ("web's", scene.v4(Web)),
        ("db's", scene.v4(Db)),
        ("the gateway's", scene.v4(Node)),
        ("a Service's", Ipv4Addr::new(10, 96, 0, 10)),
        ("the friend's", scene.v4(Friend)),
    ];
    for (whose, address) in claims {
        for (what, operation, target, to) in [
            ("gratuitous ARP", 1, address, BROADCAST),
            ("gratuitous ARP reply", 2, address, BROADCAST),
            ("ARP reply to db", 2, scene.v4(Db), scene.mac(Db, from)),
            ("ARP request of open", 1, scene.v4(Open), BROADCAST),
        ] {
            let message = arp(operation, (own, address), ([0; 6], target), BLANK);
            let frame = ethernet(to, own, ethertype::ARP, &message);
            table.add(from, format!("{what} with {whose} address"), vec![frame]);
        }
    }
    for to in [Db, Web] {
        for (what, target) in [
            ("a stranger's", scene.address(Stranger, Family::V4)),
            ("a loopback", Ipv4Addr::LOCALHOST.into()),
        ] {
            let packet = datagram(scene.address(from, Family::V4), target);
            let frame = ip_frame(scene.mac(to, from), own, &packet);
            table.add(
                from,
                format!("{what} address at {to:?}'s hardware address"),
                vec![frame],
            );
        }
        let packet = datagram(
            scene.address(from, Family::V4),
            scene.address(to, Family::V4),
        );
        let frame = ip_frame(BROADCAST, own, &packet);
        let attack = table.add(from, format!("to {to:?} by broadcast"), vec![frame]);
        if from == Tool {
            // Who is not isolated hears what he is not meant to.
            attack.may_see(&[Open]);
        }
    }
}

/// Frames from hardware addresses of others, by which a bridge would send theirs to the attacker.
pub(super) fn hardware_addresses(scene: &Scene) -> Table {
    let mut table = Table::default();
    for from in [Evil, Tool] {
        with_hardware_addresses(scene, from, &mut table);
    }
    table
}

fn with_hardware_addresses(scene: &Scene, from: Who, table: &mut Table) {
    for (whose, mac) in [
        ("web's", scene.mac(Web, from)),
        ("db's", scene.mac(Db, from)),
        ("the bridge's", scene.mac(Node, from)),
    ] {
        let packet = datagram(
            scene.address(from, Family::V4),
            scene.address(Stranger, Family::V4),
        );
        let frame = ip_frame(scene.mac(Node, from), mac, &packet);
        let attack = table
            .add(
                from,
                format!("{whose} hardware address as source"),
                vec![frame],
            )
            .inert();
        if from == Tool {
            attack.may_see(&[Stranger]);
        }
    }
}

/// An ICMPv6 message of the link, with the marker behind it.
fn message(from: Ipv6Addr, to: Ipv6Addr, kind: u8, rest: &[u8]) -> Vec<u8> {
    let mut rest = rest.to_vec();
    // An option that nobody knows, of two units of eight bytes (RFC 4861, section 4.6).
    rest.extend([253, 2, 0]);
    rest.extend(BLANK);
    rest.extend([0; 2]);
    ipv6(
        from,
        to,
        58,
        255,
        &icmp(from.into(), to.into(), kind, 0, &rest),
    )
}

fn neighbour_messages(scene: &Scene, from: Who, table: &mut Table) {
    let own = scene.mac(from, from);
    let all: Ipv6Addr = "ff02::1".parse().unwrap();
    let to_all = group_mac(all.into());
    let link_local = scene.link_local(from);
    let routed = !scene.is_bridged();
    if !routed {
        for (whose, target) in [
            ("web's", scene.v6(Web)),
            ("db's", scene.v6(Db)),
            ("the gateway's", scene.v6(Node)),
            ("a Service's", "fd00:10:96::a".parse().unwrap()),
            ("the friend's", scene.v6(Friend)),
        ] {
            let mut rest = vec![0x20, 0, 0, 0];
            rest.extend(target.octets());
            rest.extend([2, 1]);
            rest.extend(own);
            for source in [link_local, scene.v6(from)] {
                let frame = ip_frame(to_all, own, &message(source, all, 136, &rest));
                let name = format!("neighbour advertisement of {whose} address from {source}");
                table.add(from, name, vec![frame]);
            }
            let frame = ip_frame(
                scene.mac(Db, from),
                own,
                &message(link_local, scene.v6(Db), 136, &rest),
            );
            table.add(
                from,
                format!("neighbour advertisement of {whose} address to db"),
                vec![frame],
            );
        }
        // A router's advertisement with a prefix, and a redirect.
        let mut rest = vec![64, 0, 0x0e, 0x10, 0, 0, 0, 0, 0, 0, 0, 0];
        rest.extend([
            3, 4, 64, 0xc0, 0, 0, 0x0e, 0x10, 0, 0, 0x0e, 0x10, 0, 0, 0, 0,
        ]);
        rest.extend("2001:db8:bad::".parse::<Ipv6Addr>().unwrap().octets());
        let frame = ip_frame(to_all, own, &message(link_local, all, 134, &rest));
        table.add(from, "router advertisement", vec![frame]);
        let gateway_link_local: Ipv6Addr = "fe80::aff:fef4:1".parse().unwrap();
        for source in [link_local, gateway_link_local] {
            let mut rest = vec![0; 4];
            rest.extend(link_local.octets());
            rest.extend(scene.v6(Friend).octets());
            let packet = message(source, scene.v6(Open), 137, &rest);
            let frame = ip_frame(scene.mac(Open, from), own, &packet);
            table.add(from, format!("redirect from {source}"), vec![frame]);
        }
    }
    // With hop limit 255 to where no neighbour is, and with what others are to see.
    for to in [Friend, Stranger, Db] {
        for (what, kind) in [
            ("neighbour solicitation", 135),
            ("neighbour advertisement", 136),
            ("router solicitation", 133),
            ("listener report", 143),
            ("listener query", 130),
        ] {
            if !routed && to == Db {
                // Neighbours ask each other.
                continue;
            }
            let mut rest = vec![0; 4];
            rest.extend(scene.v6(from).octets());
            let packet = message(scene.v6(from), scene.v6(to), kind, &rest);
            let frame = ip_frame(scene.mac(Node, from), own, &packet);
            let attack = table.add(from, format!("{what} to {to:?}"), vec![frame]);
            if from == Tool && FREE.contains(&to) {
                attack.may_see(&[to]).inert();
            }
        }
    }
    for family in Family::ALL {
        let (ports, to, source): ([u16; 2], IpAddr, IpAddr) = match family {
            Family::V4 => ([67, 68], Ipv4Addr::BROADCAST.into(), scene.v4(from).into()),
            Family::V6 => ([547, 546], all.into(), link_local.into()),
        };
        let mac = match family {
            Family::V4 => BROADCAST,
            Family::V6 => to_all,
        };
        let frame = ip_frame(mac, own, &datagram_at(source, to, ports));
        let attack = table.add(
            from,
            format!("DHCP server's answer, {family:?}"),
            vec![frame],
        );
        if routed {
            attack.inert();
        }
    }
}

fn tunnels(scene: &Scene, from: Who, table: &mut Table) {
    let own = scene.mac(from, from);
    let gateway = scene.mac(Node, from);
    let outer = scene.address(from, Family::V4);
    let inner = datagram(
        scene.address(Web, Family::V4),
        scene.address(Db, Family::V4),
    );
    let inner_frame = ip_frame(OVERLAY_MAC, [2, 0, 0, 0, 0xee, 9], &inner);
    let inner_v6 = datagram(
        scene.address(Web, Family::V6),
        scene.address(Db, Family::V6),
    );
    let inner_v6 = ip_frame(OVERLAY_MAC, [2, 0, 0, 0, 0xee, 9], &inner_v6);
    let nodes: Vec<(&str, IpAddr)> = vec![
        ("its node", scene.address(Node, Family::V4)),
        (
            "its node's other address",
            Ipv4Addr::new(198, 51, 100, 1).into(),
        ),
        ("the tunnel's other end", scene.address(Peer, Family::V4)),
    ];
    for (whose, to) in nodes {
        let remote = to == scene.address(Peer, Family::V4);
        let send = |ports: [u16; 2], payload: &[u8]| {
            let mut bytes = udp(outer, to, ports, payload);
            bytes[6..8].fill(0);
            ip_frame(gateway, own, &ip(outer, to, 17, &bytes))
        };
        for (what, inner) in [("IPv4", &inner_frame), ("IPv6", &inner_v6)] {
            let frame = send([5000, 8472], &raw::vxlan(OVERLAY, inner));
            table.add(
                from,
                format!("VXLAN to {whose}, {what} inside"),
                vec![frame],
            );
            let frame = send([8472, 8472], &raw::vxlan(OVERLAY, inner));
            table.add(
                from,
                format!("VXLAN to {whose} by its own port, {what} inside"),
                vec![frame],
            );
        }
        let frame = send([5000, 6081], &raw::geneve(OVERLAY, &inner_frame));
        let attack = table
            .add(from, format!("Geneve to {whose}"), vec![frame])
            .inert();
        if from == Tool && remote {
            // The node has no Geneve device: a datagram as any other.
            attack.may_see(&[Peer]);
        }
        for (what, protocol) in [
            ("IPIP", 4),
            ("SIT", 41),
            ("GRE", 47),
            ("EtherIP", 97),
            ("L2TP", 115),
            ("MPLS", 137),
        ] {
            let mut payload = match protocol {
                47 => vec![0, 0, 8, 0],
                97 => vec![0x30, 0],
                _ => Vec::new(),
            };
            payload.extend(&inner);
            let frame = ip_frame(gateway, own, &ip(outer, to, protocol, &payload));
            let attack = table.add(from, format!("{what} to {whose}"), vec![frame]);
            if !remote {
                // Where the kernel has no such tunnel.
                attack.inert();
            }
        }
        // In fragments: ports and marker in the first, padding in the rest, which is nothing by itself.
        let padded = [&inner_frame[..], &[0; 64]].concat();
        let mut datagram = udp(outer, to, [5000, 8472], &raw::vxlan(OVERLAY, &padded));
        datagram[6..8].fill(0);
        let (IpAddr::V4(outer), IpAddr::V4(to)) = (outer, to) else {
            unreachable!("IPv4");
        };
        let (first, rest) = datagram.split_at((datagram.len() - 64).next_multiple_of(8));
        let offset = (first.len() / 8) as u16;
        let piece = |fragment, payload: &[u8]| {
            let header = V4 {
                id: 77,
                fragment,
                ..V4::default()
            };
            ip_frame(gateway, own, &ipv4_as(&header, outer, to, 17, payload))
        };
        let frames = vec![piece(0x2000, first), piece(offset, rest)];
        table.add(from, format!("VXLAN to {whose} in fragments"), frames);
        let frames = vec![piece(offset, rest), piece(0x2000, first)];
        table
            .add(
                from,
                format!("VXLAN to {whose} in fragments, the last one first"),
                frames,
            )
            .inert();
    }
}

fn icmp_messages(scene: &Scene, from: Who, table: &mut Table) {
    let own = scene.mac(from, from);
    for family in Family::ALL {
        let address = |who| scene.address(who, family);
        let (unreachable, too_big, quench) = match family {
            Family::V4 => (3, 3, 4),
            Family::V6 => (1, 2, 1),
        };
        // A quote of what the node sends to this pod, and of what others have between them.
        let mut node_flow = udp(address(Node), address(from), [53, 4000], b"quoted");
        node_flow.truncate(8);
        let node_flow = ip(address(Node), address(from), 17, &node_flow);
        let mut others = tcp(address(Db), address(Web), [80, 40000], 0x10, 1, b"");
        others.truncate(20);
        let others = ip(address(Db), address(Web), 6, &others);
        for to in [Db, Web, Friend] {
            for (what, kind, code, quote) in [
                (
                    "unreachable, a quote of the node's",
                    unreachable,
                    1,
                    &node_flow,
                ),
                ("unreachable, a quote of others", unreachable, 1, &others),
                (
                    "too big, a quote of others",
                    too_big,
                    if family == Family::V4 { 4 } else { 0 },
                    &others,
                ),
                (
                    "time exceeded, a quote of the node's",
                    if family == Family::V4 { 11 } else { 3 },
                    0,
                    &node_flow,
                ),
                (
                    "source quench, a quote of the node's",
                    quench,
                    0,
                    &node_flow,
                ),
            ] {
                let mut rest = vec![0, 0, 5, 0];
                rest.extend(quote);
                rest.extend(BLANK);
                let message = icmp(address(from), address(to), kind, code, &rest);
                let protocol = if family == Family::V4 { 1 } else { 58 };
                let packet = ip(address(from), address(to), protocol, &message);
                let frame = ip_frame(scene.next_hop(to, from), own, &packet);
                let attack = table.add(
                    from,
                    format!("ICMP {what}, to {to:?}, {family:?}"),
                    vec![frame],
                );
                if from == Tool && FREE.contains(&to) {
                    attack.may_see(&[to]).inert();
                }
            }
            for (what, kind) in [
                ("echo request", [8, 128]),
                ("echo reply", [0, 129]),
                ("timestamp", [13, 139]),
            ] {
                let mut rest = vec![0, 1, 0, 1];
                rest.extend(BLANK);
                let message = icmp(address(from), address(to), kind[family as usize], 0, &rest);
                let protocol = if family == Family::V4 { 1 } else { 58 };
                let packet = ip(address(from), address(to), protocol, &message);
                let frame = ip_frame(scene.next_hop(to, from), own, &packet);
                let attack = table.add(
                    from,
                    format!("ICMP {what} to {to:?}, {family:?}"),
                    vec![frame],
                );
                if from == Tool && FREE.contains(&to) {
                    attack.may_see(&[to]).inert();
                }
            }
        }
    }
    // A redirect of IPv4, from itself and from the gateway.
    for source in [scene.v4(from), scene.v4(Node)] {
        for to in [Open, Db] {
            let quote = ipv4(scene.v4(to), scene.v4(Friend), 17, &[0; 8]);
            let mut rest = scene.v4(from).octets().to_vec();
            rest.extend(quote);
            rest.extend(BLANK);
            let message = icmp(source.into(), scene.address(to, Family::V4), 5, 1, &rest);
            let packet = ipv4(source, scene.v4(to), 1, &message);
            let frame = ip_frame(scene.next_hop(to, from), own, &packet);
            table.add(
                from,
                format!("redirect from {source} to {to:?}"),
                vec![frame],
            );
        }
    }
}

fn headers(scene: &Scene, from: Who, table: &mut Table) {
    let own = scene.mac(from, from);
    let (source, open) = (scene.v4(from), scene.v4(Open));
    for to in [Db, Web] {
        let target = scene.v4(to);
        let mut datagram = udp(source.into(), target.into(), PORTS, BLANK);
        datagram[6..8].fill(0);
        let mut loose = vec![131, 7, 4];
        loose.extend(target.octets());
        loose.push(0);
        let mut route_record = vec![7, 7, 4, 0, 0, 0, 0, 1];
        route_record[7] = 0;
        for (what, options, dst) in [
            ("loose source route by open", loose.clone(), open),
            ("record route", route_record, target),
            ("router alert", vec![148, 4, 0, 0], target),
            ("no operations", vec![1; 40], target),
        ] {
            let header = V4 {
                options,
                ..V4::default()
            };
            let packet = ipv4_as(&header, source, dst, 17, &datagram);
            let hop = if dst == open { Open } else { to };
            let frame = ip_frame(scene.next_hop(hop, from), own, &packet);
            let attack = table.add(
                from,
                format!("IPv4 options, {what}, to {to:?}"),
                vec![frame],
            );
            if what.starts_with("loose") {
                attack.inert();
                if from == Tool {
                    attack.may_see(&[Open]);
                }
            }
        }
        // IPv6 extension headers before the datagram, the sender's own address and web's.
        for claimed in [from, Web] {
            if claimed == to {
                continue;
            }
            let (source, target) = (scene.v6(claimed), scene.v6(to));
            let datagram = udp(source.into(), target.into(), PORTS, BLANK);
            let pad = [0_u8, 1, 4, 0, 0, 0, 0];
            let mut routing = vec![17, 2, 0, 1, 0, 0, 0, 0];
            routing.extend(target.octets());
            let mut segments = vec![17, 2, 4, 0, 0, 0, 0, 0];
            segments.extend(target.octets());
            let with = |next: u8| {
                let mut header = vec![next];
                header.extend(pad);
                header
            };
            for (what, first, chain) in [
                ("hop-by-hop options", 0, with(17)),
                ("destination options", 60, with(17)),
                ("both", 0, [with(60), with(17)].concat()),
                ("routing header of type 0", 43, routing),
                ("segment routing header", 43, segments),
                ("an atomic fragment", 44, vec![17, 0, 0, 0, 0, 0, 0, 9]),
                (
                    "eight headers",
                    60,
                    [
                        with(60),
                        with(60),
                        with(60),
                        with(60),
                        with(60),
                        with(60),
                        with(60),
                        with(17),
                    ]
                    .concat(),
                ),
                ("a mobility header", 135, vec![17, 0, 0, 0, 0, 0, 0, 0]),
                ("an unknown header", 253, with(17)),
            ] {
                let payload = [chain, datagram.clone()].concat();
                let packet = ipv6(source, target, first, 64, &payload);
                let frame = ip_frame(scene.next_hop(to, from), own, &packet);
                let name = format!("IPv6 with {what}, {claimed:?}'s address to {to:?}");
                table.add(from, name, vec![frame]);
            }
        }
    }
}

fn fragments(scene: &Scene, from: Who, table: &mut Table) {
    let own = scene.mac(from, from);
    let (source, target) = (scene.v4(from), scene.v4(Db));
    let hop = scene.next_hop(Db, from);
    let piece = |id, fragment, protocol, payload: &[u8]| {
        let header = V4 {
            id,
            fragment,
            ..V4::default()
        };
        ip_frame(
            hop,
            own,
            &ipv4_as(&header, source, target, protocol, payload),
        )
    };
    let padded = |head: &[u8]| {
        let mut bytes = head.to_vec();
        bytes.extend(BLANK);
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        bytes
    };
    let ports = |port: u16| {
        let mut head = [4000_u16.to_be_bytes(), port.to_be_bytes()].concat();
        head.extend([0, 64, 0, 0]);
        head
    };
    let allowed_first = || {
        piece(500, 0x2000, 17, &{
            let mut bytes = ports(53);
            bytes.extend([0; 24]);
            bytes
        })
    };
    table
        .add(
            from,
            "a later fragment without a first",
            vec![piece(501, 4, 17, &padded(b""))],
        )
        .inert();
    table
        .add(
            from,
            "the last fragment alone, TCP",
            vec![piece(502, 8, 6, &padded(b""))],
        )
        .inert();
    table
        .add(
            from,
            "a first fragment to a denied port",
            vec![piece(503, 0x2000, 17, &padded(&ports(9000)))],
        )
        .inert();
    // db hears tool at UDP 53 and nowhere else.
    table
        .add(
            from,
            "a second first fragment with another port",
            vec![
                allowed_first(),
                piece(500, 0x2000, 17, &padded(&ports(9000))),
            ],
        )
        .inert();
    table
        .add(
            from,
            "a tiny first fragment of TCP",
            vec![
                piece(504, 0x2000, 6, &[0x0f, 0xa0, 0, 80, 0, 0, 0, 1]),
                piece(504, 1, 6, &padded(&[0; 12])),
            ],
        )
        .inert();
    table
        .add(
            from,
            "a fragment over the flags of TCP",
            vec![
                piece(
                    505,
                    0x2000,
                    6,
                    &tcp(source.into(), target.into(), [4000, 80], 0x10, 1, &[0; 12])[..32],
                ),
                piece(505, 0x2001, 6, &padded(&[0, 0, 0, 1, 0x50, 2, 4, 0])),
            ],
        )
        .inert();
    let (source, target) = (scene.v6(from), scene.v6(Db));
    let piece = |id: u32, fragment: u16, next: u8, payload: &[u8]| {
        let mut bytes = vec![next, 0];
        bytes.extend(fragment.to_be_bytes());
        bytes.extend(id.to_be_bytes());
        bytes.extend(payload);
        ip_frame(hop, own, &ipv6(source, target, 44, 64, &bytes))
    };
    table
        .add(
            from,
            "a later fragment without a first, IPv6",
            vec![piece(601, 4 << 3, 17, &padded(b""))],
        )
        .inert();
    table
        .add(
            from,
            "a first fragment to a denied port, IPv6",
            vec![piece(602, 1, 17, &padded(&ports(9000)))],
        )
        .inert();
    table
        .add(
            from,
            "a first fragment without ports, IPv6",
            vec![
                piece(603, 1, 60, &[17, 0, 1, 4, 0, 0, 0, 0]),
                piece(603, 1 << 3, 60, &padded(&ports(9000))),
            ],
        )
        .inert();
}

fn segments(scene: &Scene, from: Who, table: &mut Table) {
    let own = scene.mac(from, from);
    for family in Family::ALL {
        for to in [Db, Web] {
            for (what, flags) in [
                ("SYN", 2),
                ("SYN-ACK", 0x12),
                ("ACK", 0x10),
                ("FIN", 0x11),
                ("RST", 4),
                ("nothing", 0),
                ("all", 0xff),
            ] {
                for (whose, source) in [("its own", from), ("web's", Web)] {
                    if source == to {
                        continue;
                    }
                    let (source, target) =
                        (scene.address(source, family), scene.address(to, family));
                    let segment = tcp(source, target, [80, 80], flags, 9, BLANK);
                    let frame = ip_frame(
                        scene.next_hop(to, from),
                        own,
                        &ip(source, target, 6, &segment),
                    );
                    table.add(
                        from,
                        format!("TCP {what} from {whose} address to {to:?}, {family:?}"),
                        vec![frame],
                    );
                }
            }
        }
    }
}

fn groups_and_loopback(scene: &Scene, from: Who, table: &mut Table) {
    let own = scene.mac(from, from);
    let to: [IpAddr; 6] = [
        "224.0.0.251",
        "255.255.255.255",
        "10.244.0.255",
        "239.1.2.3",
        "ff02::fb",
        "ff05::2",
    ]
    .map(|text| text.parse().unwrap());
    for group in to {
        let family = if group.is_ipv4() {
            Family::V4
        } else {
            Family::V6
        };
        let mac: Mac = match group {
            IpAddr::V4(group) if !group.is_multicast() => BROADCAST,
            group => group_mac(group),
        };
        let frame = ip_frame(mac, own, &datagram(scene.address(from, family), group));
        let attack = table.add(from, format!("to {group}"), vec![frame]);
        if !scene.is_bridged() {
            attack.inert();
        }
        if from == Tool {
            attack.may_see(&[Open]);
        }
    }
    for (family, loopback) in [
        (Family::V4, IpAddr::from(Ipv4Addr::LOCALHOST)),
        (Family::V6, Ipv6Addr::LOCALHOST.into()),
    ] {
        let frame = ip_frame(
            scene.mac(Node, from),
            own,
            &datagram(scene.address(from, family), loopback),
        );
        table
            .add(from, format!("to {loopback} of the node"), vec![frame])
            .inert();
    }
}

fn other_protocols(scene: &Scene, from: Who, table: &mut Table) {
    let own = scene.mac(from, from);
    for family in Family::ALL {
        for protocol in [2, 4, 41, 47, 50, 51, 88, 89, 103, 112, 132, 136, 255] {
            let packet = bare(
                scene.address(from, family),
                scene.address(Db, family),
                protocol,
            );
            let frame = ip_frame(scene.next_hop(Db, from), own, &packet);
            // A header of AH or of mobility is not one that the marker fits in.
            table
                .add(
                    from,
                    format!("protocol {protocol} to db, {family:?}"),
                    vec![frame],
                )
                .inert();
        }
    }
    for (what, kind) in [
        ("PPPoE", 0x8864),
        ("LLDP", 0x88cc),
        ("MPLS", 0x8847),
        ("EAPOL", 0x888e),
        ("experimental", 0x88b5),
        ("a length", 0x0026),
    ] {
        let mut payload = vec![0x42, 0x42, 3];
        payload.extend(BLANK);
        payload.resize(46, 0);
        let frame = ethernet(scene.mac(Db, from), own, kind, &payload);
        let attack = table.add(
            from,
            format!("Ethernet type {kind:#06x}, {what}, to db"),
            vec![frame],
        );
        if !scene.is_bridged() {
            attack.inert();
        }
    }
}
