//! What a pod that nobody isolates may send although few do, and what the link needs.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::thread;
use std::time::{Duration, Instant};

use portcullis_tests::netns::{Family, Injector, PATIENCE};
use portcullis_tests::raw::{
    self, BROADCAST, arp, ethernet, ethertype, group_mac, icmp, ip, ip_frame, udp,
};

use super::scene::{NOBODY, Scene, Who};
use super::verdicts::{look, marker, name};
use Who::{Friend, Node, Open, Stranger, Tool};

/// The first number of this table's markers.
const FIRST: usize = 5_000_000;

struct Row {
    name: &'static str,
    frame: Vec<u8>,
    to: Who,
}

fn rows(scene: &Scene) -> Vec<Row> {
    let own = scene.mac(Tool, Tool);
    let gateway = scene.mac(Node, Tool);
    let mut rows: Vec<Row> = Vec::new();
    let mut add = |name, to, make: &dyn Fn(&[u8]) -> Vec<u8>| {
        let marker = marker(FIRST + rows.len());
        rows.push(Row {
            name,
            frame: make(&marker),
            to,
        });
    };
    let plain = |source: IpAddr, to: IpAddr, ports: [u16; 2], marker: &[u8]| {
        ip(source, to, 17, &udp(source, to, ports, marker))
    };
    let hop = scene.next_hop(Open, Tool);
    for family in Family::ALL {
        let nobody = NOBODY[family as usize];
        let (stranger, open) = (scene.address(Stranger, family), scene.address(Open, family));
        add(
            "a router pod: a source that is nobody's, to outside",
            Stranger,
            &|marker| ip_frame(gateway, own, &plain(nobody, stranger, [1, 2], marker)),
        );
        add(
            "a router pod: a source that is nobody's, to a pod",
            Open,
            &|marker| ip_frame(hop, own, &plain(nobody, open, [1, 2], marker)),
        );
        add("VRRP to a pod", Open, &|marker| {
            let source = scene.address(Tool, family);
            ip_frame(hop, own, &ip(source, open, 112, marker))
        });
        add("a nested overlay: VXLAN to a pod", Open, &|marker| {
            let source = scene.address(Tool, family);
            let inner = ethernet([2; 6], [4; 6], 0x0800, marker);
            ip_frame(
                hop,
                own,
                &plain(source, open, [5000, 8472], &raw::vxlan(1, &inner)),
            )
        });
        add("GRE to a pod", Open, &|marker| {
            let payload = [&[0, 0, 8, 0], marker].concat();
            ip_frame(
                hop,
                own,
                &ip(scene.address(Tool, family), open, 47, &payload),
            )
        });
    }
    let slaac: IpAddr = "2001:db8:77::aff:fef4:3".parse().unwrap();
    let stranger = scene.address(Stranger, Family::V6);
    add("a SLAAC address", Stranger, &|marker| {
        ip_frame(gateway, own, &plain(slaac, stranger, [1, 2], marker))
    });
    let friend = scene.address(Friend, Family::V4);
    add("a traceroute's answer", Friend, &|marker| {
        let source = scene.address(Tool, Family::V4);
        let quote = ip(friend, source, 17, &[0x80, 0, 0x82, 0x9b, 0, 16, 0, 0]);
        let rest = [&[0; 4], &quote[..], marker].concat();
        ip_frame(
            gateway,
            own,
            &ip(source, friend, 1, &icmp(source, friend, 3, 3, &rest)),
        )
    });
    if !scene.is_bridged() {
        return rows;
    }
    let unspecified = Ipv4Addr::UNSPECIFIED.into();
    add("a DHCP client's discovery", Open, &|marker| {
        let to = Ipv4Addr::BROADCAST.into();
        ip_frame(BROADCAST, own, &plain(unspecified, to, [68, 67], marker))
    });
    add("a gratuitous ARP for a virtual address", Open, &|marker| {
        let address = Ipv4Addr::new(10, 244, 0, 200);
        let message = arp(1, (own, address), ([0; 6], address), marker);
        ethernet(BROADCAST, own, ethertype::ARP, &message)
    });
    add("VRRP to its group", Open, &|marker| {
        let to: IpAddr = Ipv4Addr::new(224, 0, 0, 18).into();
        ip_frame(
            group_mac(to),
            own,
            &ip(scene.address(Tool, Family::V4), to, 112, marker),
        )
    });
    add("an ARP request with its own address", Open, &|marker| {
        let message = arp(1, (own, scene.v4(Tool)), ([0; 6], scene.v4(Open)), marker);
        ethernet(BROADCAST, own, ethertype::ARP, &message)
    });
    let open = scene.v6(Open).octets();
    let group: Ipv6Addr = format!(
        "ff02::1:ff{:02x}:{:02x}{:02x}",
        open[13], open[14], open[15]
    )
    .parse()
    .unwrap();
    add("a neighbour solicitation", Open, &|marker| {
        let source = scene.v6(Tool);
        let mut rest = vec![0; 4];
        rest.extend(open);
        rest.extend([253, 2, 0]);
        rest.extend(marker);
        rest.extend([0; 2]);
        let message = icmp(source.into(), group.into(), 135, 0, &rest);
        ip_frame(
            group_mac(group.into()),
            own,
            &raw::ipv6(source, group, 58, 255, &message),
        )
    });
    rows
}

/// What does not work.
pub(super) fn try_all(scene: &Scene) -> Vec<String> {
    let rows = rows(scene);
    let injector = Injector::new(scene.host(Tool).netns(), "eth0").unwrap();
    for row in &rows {
        injector.send(&row.frame).unwrap();
    }
    let wanted: BTreeSet<_> = rows
        .iter()
        .enumerate()
        .map(|(index, row)| (FIRST + index, name(row.to)))
        .collect();
    let mut seen = BTreeSet::new();
    // Nothing sends it again.
    let deadline = Instant::now() + PATIENCE / 5;
    while !wanted.is_subset(&seen) && Instant::now() < deadline {
        seen.extend(look(scene));
        thread::sleep(Duration::from_millis(5));
    }
    println!(
        "{:?}: {} of {} things that must work do",
        scene.base,
        wanted.intersection(&seen).count(),
        rows.len()
    );
    rows.iter()
        .enumerate()
        .filter(|(index, row)| !seen.contains(&(FIRST + index, name(row.to))))
        .map(|(_, row)| {
            format!(
                "  tool {}: expected at {:?}, did not arrive",
                row.name, row.to
            )
        })
        .collect()
}
