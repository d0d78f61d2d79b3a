//! What this node decapsulates: its VXLAN, Geneve, bare UDP and GTP devices' UDP ports, and the other ends of all its
//! tunnels.
//!
//! A pod that sends to such a port of a node, or to a tunnel's other end, what a node would send there, has its inner
//! packet delivered under any source that it likes. So the ports are in every endpoint's row, and the other ends among
//! the addresses that are guarded.
//!
//! Only devices that are up listen. Entries of a VXLAN device's forwarding database come and go without an event that a
//! scan follows, and are read by each scan. Tunnels that prove who sent a packet (WireGuard, IPsec) are none here. Not
//! seen: ports of FOU, GUE and L2TP, and other ends that are in nexthop objects.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures_util::TryStreamExt as _;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::link::{
    InfoBareUdp, InfoData, InfoGeneve, InfoGre, InfoGre6, InfoIpTunnel, InfoKind, InfoVxlan,
    LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage};
use rtnetlink::Handle;

/// What the kernel's own sockets of a GTP device listen on (3GPP TS 29.281, 29.060). Sockets that a program made for
/// it can be bound elsewhere, which netlink does not tell.
const GTP_PORTS: [u16; 2] = [2152, 3386];

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tunnels {
    /// UDP ports at which this node decapsulates, sorted, then 0 where there are fewer.
    pub ports: [u16; Self::MOST_PORTS],
    /// The other ends of this node's tunnels.
    pub remotes: BTreeSet<IpAddr>,
    /// Devices for whose UDP ports there was no room, with the ports.
    pub uncovered: Vec<(String, u16)>,
    /// Devices whose forwarding database could not be read, with the reason: `remotes` lacks what is in it.
    pub unread: Vec<(String, String)>,
}

impl Tunnels {
    /// As many ports as a row of `endpoints` has room for.
    pub const MOST_PORTS: usize = 4;

    fn new(devices: Vec<Device>) -> Self {
        let mut tunnels = Self::default();
        let mut covered = BTreeSet::new();
        for device in devices {
            tunnels.remotes.extend(device.remotes);
            for port in device.ports {
                if covered.contains(&port) || covered.len() < Self::MOST_PORTS {
                    covered.insert(port);
                } else {
                    tunnels.uncovered.push((device.name.clone(), port));
                }
            }
        }
        for (place, port) in tunnels.ports.iter_mut().zip(covered) {
            *place = port;
        }
        tunnels
    }

    /// What is not covered, a sentence for each reason.
    #[must_use]
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if !self.uncovered.is_empty() {
            let devices = self.uncovered.iter();
            let devices: Vec<_> = devices
                .map(|(name, port)| format!("{name} at UDP port {port}"))
                .collect();
            problems.push(format!(
                "this node's tunnel devices listen on more than {} UDP ports: pods can send packets into {} (remove \
                 devices that nobody needs, or let them share a port)",
                Self::MOST_PORTS,
                devices.join(", ")
            ));
        }
        problems.extend(self.unread.iter().map(|(name, error)| {
            format!(
                "cannot read the forwarding database of {name}: {error}; pods may be able to send packets into this \
                 tunnel's other ends that are new"
            )
        }));
        problems
    }
}

/// A device that decapsulates.
#[derive(Debug, PartialEq, Eq)]
struct Device {
    name: String,
    ports: Vec<u16>,
    remotes: Vec<IpAddr>,
}

/// Gathers devices from the links that a scan goes through.
#[derive(Debug, Default)]
pub(super) struct Gathering {
    /// By ifindex: where there are too many ports, devices that were there before others are covered.
    devices: BTreeMap<u32, Device>,
    /// Those with a forwarding database of remotes.
    vxlans: Vec<u32>,
}

impl Gathering {
    /// Takes in a link, if it decapsulates.
    pub(super) fn add(&mut self, message: &LinkMessage) {
        let Some((device, is_vxlan)) = device(message) else {
            return;
        };
        let ifindex = message.header.index;
        self.devices.insert(ifindex, device);
        if is_vxlan {
            self.vxlans.push(ifindex);
        }
    }

    /// Adds the remotes that are in forwarding databases.
    pub(super) async fn complete(mut self, handle: &Handle) -> Tunnels {
        let mut unread = Vec::new();
        for ifindex in self.vxlans {
            let Some(device) = self.devices.get_mut(&ifindex) else {
                continue;
            };
            match remotes(handle, ifindex).await {
                Ok(remotes) => device.remotes.extend(remotes),
                Err(error) => unread.push((device.name.clone(), error.to_string())),
            }
        }
        let mut tunnels = Tunnels::new(self.devices.into_values().collect());
        tunnels.unread = unread;
        tunnels
    }
}

/// The device that a link is, if it decapsulates, and whether it is a VXLAN device.
fn device(message: &LinkMessage) -> Option<(Device, bool)> {
    if !message.header.flags.contains(LinkFlags::Up) {
        return None;
    }
    let (mut name, mut kind, mut data) = (None, None, None);
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(given) => name = Some(given.clone()),
            LinkAttribute::LinkInfo(infos) => {
                for info in infos {
                    match info {
                        LinkInfo::Kind(given) => kind = Some(given),
                        LinkInfo::Data(given) => data = Some(given),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    let (mut ports, mut remotes) = (Vec::new(), Vec::new());
    match data {
        Some(InfoData::Vxlan(data)) => {
            for info in data {
                match info {
                    InfoVxlan::Port(port) => ports.push(*port),
                    InfoVxlan::Group(remote) => remotes.push(IpAddr::V4(*remote)),
                    InfoVxlan::Group6(remote) => remotes.push(IpAddr::V6(*remote)),
                    _ => {}
                }
            }
        }
        Some(InfoData::Geneve(data)) => {
            for info in data {
                match info {
                    InfoGeneve::Port(port) => ports.push(*port),
                    InfoGeneve::Remote(remote) => remotes.push(IpAddr::V4(*remote)),
                    InfoGeneve::Remote6(remote) => remotes.push(IpAddr::V6(*remote)),
                    _ => {}
                }
            }
        }
        Some(InfoData::BareUdp(data)) => {
            let given = data.iter().filter_map(|info| match info {
                InfoBareUdp::Port(port) => Some(*port),
                _ => None,
            });
            ports.extend(given);
        }
        Some(InfoData::IpTunnel(data)) => {
            let given = data.iter().filter_map(|info| match info {
                InfoIpTunnel::Remote(remote) => Some(*remote),
                _ => None,
            });
            remotes.extend(given);
        }
        Some(InfoData::GreTun(data) | InfoData::GreTap(data) | InfoData::ErSpan(data)) => {
            let given = data.iter().filter_map(|info| match info {
                InfoGre::Remote(remote) => Some(IpAddr::V4(*remote)),
                _ => None,
            });
            remotes.extend(given);
        }
        Some(InfoData::GreTun6(data) | InfoData::GreTap6(data) | InfoData::Ip6ErSpan(data)) => {
            let given = data.iter().filter_map(|info| match info {
                InfoGre6::Remote(remote) => Some(IpAddr::V6(*remote)),
                _ => None,
            });
            remotes.extend(given);
        }
        _ if kind == Some(&InfoKind::Gtp) => ports.extend(GTP_PORTS),
        _ => return None,
    }
    ports.retain(|port| *port != 0);
    remotes.retain(|remote| !remote.is_unspecified());
    let name = name?;
    let is_vxlan = kind == Some(&InfoKind::Vxlan);
    Some((
        Device {
            name,
            ports,
            remotes,
        },
        is_vxlan,
    ))
}

/// The destinations in a VXLAN device's forwarding database.
async fn remotes(handle: &Handle, ifindex: u32) -> io::Result<BTreeSet<IpAddr>> {
    let mut request = handle
        .neighbours()
        .get()
        .set_address_family(AddressFamily::Bridge);
    request.message_mut().header.ifindex = ifindex;
    let mut entries = std::pin::pin!(request.execute());
    let mut remotes = BTreeSet::new();
    while let Some(entry) = entries.try_next().await.map_err(io::Error::other)? {
        if entry.header.ifindex == ifindex {
            remotes.extend(remote(&entry));
        }
    }
    Ok(remotes)
}

fn remote(entry: &NeighbourMessage) -> Option<IpAddr> {
    let remote = entry.attributes.iter().find_map(|attribute| {
        let NeighbourAttribute::Destination(destination) = attribute else {
            return None;
        };
        match destination {
            NeighbourAddress::Inet(v4) => Some(IpAddr::V4(*v4)),
            NeighbourAddress::Inet6(v6) => Some(IpAddr::V6(*v6)),
            // Of the bridge family, by length.
            NeighbourAddress::Other(octets) => {
                let v4 = <[u8; 4]>::try_from(octets.as_slice());
                let v6 = <[u8; 16]>::try_from(octets.as_slice());
                v4.map(|octets| Ipv4Addr::from(octets).into())
                    .or(v6.map(|octets| Ipv6Addr::from(octets).into()))
                    .ok()
            }
            _ => None,
        }
    });
    remote.filter(|remote| !remote.is_unspecified())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(name: &str, flags: LinkFlags, kind: InfoKind, data: Option<InfoData>) -> LinkMessage {
        let mut message = LinkMessage::default();
        message.header.flags = flags;
        let infos = [LinkInfo::Kind(kind)]
            .into_iter()
            .chain(data.map(LinkInfo::Data));
        message.attributes = vec![
            LinkAttribute::IfName(name.to_owned()),
            LinkAttribute::LinkInfo(infos.collect()),
        ];
        message
    }

    fn found(kind: InfoKind, data: Option<InfoData>) -> Option<(Vec<u16>, Vec<String>)> {
        let (device, _) = device(&link("x0", LinkFlags::Up, kind, data))?;
        let remotes = device.remotes.iter().map(ToString::to_string);
        Some((device.ports, remotes.collect()))
    }

    /// Kinds that not every test kernel has, among them.
    #[test]
    fn devices_that_decapsulate_are_known_by_their_kind() {
        let v4 = Ipv4Addr::new(192, 0, 2, 7);
        let v6 = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 7);
        let (four, six) = (v4.to_string(), v6.to_string());
        type Row = (InfoKind, Option<InfoData>, Option<(Vec<u16>, Vec<String>)>);
        let gre = || vec![InfoGre::Remote(v4)];
        let gre6 = || vec![InfoGre6::Remote(v6)];
        let ip = |remote: IpAddr| Some(InfoData::IpTunnel(vec![InfoIpTunnel::Remote(remote)]));
        let rows: Vec<Row> = vec![
            (
                InfoKind::Vxlan,
                Some(InfoData::Vxlan(vec![
                    InfoVxlan::Group6(v6),
                    InfoVxlan::Port(4789),
                ])),
                Some((vec![4789], vec![six.clone()])),
            ),
            (
                InfoKind::Geneve,
                Some(InfoData::Geneve(vec![
                    InfoGeneve::Port(6081),
                    InfoGeneve::Remote(v4),
                ])),
                Some((vec![6081], vec![four.clone()])),
            ),
            (
                InfoKind::BareUdp,
                Some(InfoData::BareUdp(vec![InfoBareUdp::Port(6635)])),
                Some((vec![6635], vec![])),
            ),
            (InfoKind::Gtp, None, Some((vec![2152, 3386], vec![]))),
            (
                InfoKind::IpIp,
                ip(v4.into()),
                Some((vec![], vec![four.clone()])),
            ),
            (
                InfoKind::SitTun,
                ip(v4.into()),
                Some((vec![], vec![four.clone()])),
            ),
            (
                InfoKind::Ip6Tnl,
                ip(v6.into()),
                Some((vec![], vec![six.clone()])),
            ),
            // As Calico makes it.
            (
                InfoKind::IpIp,
                ip(Ipv4Addr::UNSPECIFIED.into()),
                Some((vec![], vec![])),
            ),
            (
                InfoKind::GreTun,
                Some(InfoData::GreTun(gre())),
                Some((vec![], vec![four.clone()])),
            ),
            (
                InfoKind::GreTap,
                Some(InfoData::GreTap(gre())),
                Some((vec![], vec![four])),
            ),
            (
                InfoKind::GreTun6,
                Some(InfoData::GreTun6(gre6())),
                Some((vec![], vec![six.clone()])),
            ),
            (
                InfoKind::GreTap6,
                Some(InfoData::GreTap6(gre6())),
                Some((vec![], vec![six])),
            ),
            (InfoKind::Wireguard, None, None),
            (InfoKind::Bridge, None, None),
        ];
        for (kind, data, expected) in rows {
            assert_eq!(found(kind.clone(), data), expected, "{kind:?}");
        }
        let down = link("tunl0", LinkFlags::empty(), InfoKind::IpIp, ip(v4.into()));
        assert_eq!(device(&down), None, "it takes nothing in");
    }

    fn listening(name: &str, ports: &[u16]) -> Device {
        Device {
            name: name.to_owned(),
            ports: ports.to_vec(),
            remotes: Vec::new(),
        }
    }

    #[test]
    fn ports_without_room_are_named_with_their_devices() {
        let devices = vec![
            listening("flannel.1", &[8472]),
            listening("vxlan.calico", &[4789]),
            listening("also", &[8472]),
            listening("gtp0", &[2152, 3386]),
        ];
        let tunnels = Tunnels::new(devices);
        assert_eq!(tunnels.ports, [2152, 3386, 4789, 8472]);
        assert_eq!(tunnels.problems(), [""; 0]);
        let devices = [1, 2, 3, 4, 5, 4, 6].map(|port| listening(&format!("d{port}"), &[port]));
        let mut tunnels = Tunnels::new(devices.into());
        assert_eq!(tunnels.ports, [1, 2, 3, 4]);
        tunnels.unread = vec![("vx0".to_owned(), "no buffer space".to_owned())];
        let problems = tunnels.problems();
        let said = "pods can send packets into d5 at UDP port 5, d6 at UDP port 6 ";
        assert!(problems[0].contains(said), "{problems:?}");
        assert!(
            problems[1].contains("of vx0: no buffer space;"),
            "{problems:?}"
        );
    }
}
