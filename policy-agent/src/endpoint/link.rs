//! The host's interfaces that have a program without being a pod's: those by which packets leave it, and bridges.

use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkInfo, LinkLayerType, LinkMessage};

use crate::dataplane::{LinkLayer, NetdevProgram};

/// An interface of this network namespace that may be a packet's last before it leaves, or a bridge, whose ports
/// are. Loopback is neither, and at an `ifb` packets are on their way in, not translated yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its name.
    pub name: String,
    /// What it is to have.
    pub program: NetdevProgram,
    /// Its hardware address: a device that was made anew under the same index has another one.
    pub hardware_address: Vec<u8>,
    /// Whether it is one side of a pair, as those that appear with pods are, many at a time.
    pub is_veth: bool,
    /// Whether the other side is in another network namespace, as a pod's is.
    pub leads_elsewhere: bool,
}

impl Link {
    /// From the kernel's description.
    pub(super) fn from_message(message: &LinkMessage) -> Option<Self> {
        let layer = match message.header.link_layer_type {
            LinkLayerType::Loopback => return None,
            LinkLayerType::Ether => LinkLayer::Ethernet,
            LinkLayerType::Infiniband => LinkLayer::Infiniband,
            _ => LinkLayer::Network,
        };
        let mut program = NetdevProgram::ToNetdev(layer);
        let (mut name, mut hardware_address, mut is_veth) = (None, Vec::new(), false);
        let mut leads_elsewhere = false;
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::IfName(given) => name = Some(given.clone()),
                LinkAttribute::LinkNetNsId(_) => leads_elsewhere = true,
                LinkAttribute::Address(given) => hardware_address.clone_from(given),
                LinkAttribute::LinkInfo(infos) => {
                    for info in infos {
                        match info {
                            LinkInfo::Kind(InfoKind::Ifb) => return None,
                            LinkInfo::Kind(InfoKind::Bridge) => {
                                program = NetdevProgram::FromNode;
                            }
                            LinkInfo::Kind(InfoKind::Veth) => is_veth = true,
                            _ => {}
                        }
                    }
                }
                _ => {}
            }
        }
        Some(Self {
            name: name?,
            program,
            hardware_address,
            is_veth,
            leads_elsewhere,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(layer: LinkLayerType, kind: Option<InfoKind>) -> Option<NetdevProgram> {
        let mut message = LinkMessage::default();
        message.header.link_layer_type = layer;
        let name = LinkAttribute::IfName("x0".to_owned());
        let info = kind.map(|kind| LinkAttribute::LinkInfo(vec![LinkInfo::Kind(kind)]));
        message.attributes = [name].into_iter().chain(info).collect();
        Link::from_message(&message).map(|link| link.program)
    }

    #[test]
    fn packets_leave_by_all_but_loopback_bridges_and_ifb() {
        let ethernet = [
            None,
            Some(InfoKind::Veth),
            Some(InfoKind::Vxlan),
            Some(InfoKind::Bond),
            Some(InfoKind::Vrf),
            Some(InfoKind::Dummy),
        ];
        for kind in ethernet {
            let found = link(LinkLayerType::Ether, kind.clone());
            let wanted = NetdevProgram::ToNetdev(LinkLayer::Ethernet);
            assert_eq!(found, Some(wanted), "{kind:?}");
        }
        for layer in [
            LinkLayerType::None,
            LinkLayerType::Tunnel,
            LinkLayerType::Tunnel6,
            LinkLayerType::Sit,
            LinkLayerType::Ipgre,
            LinkLayerType::Ppp,
            LinkLayerType::Rawip,
        ] {
            let wanted = NetdevProgram::ToNetdev(LinkLayer::Network);
            assert_eq!(link(layer, None), Some(wanted), "{layer:?}");
        }
        assert_eq!(link(LinkLayerType::Loopback, None), None);
        assert_eq!(link(LinkLayerType::Ether, Some(InfoKind::Ifb)), None);
        assert_eq!(
            link(LinkLayerType::Ether, Some(InfoKind::Bridge)),
            Some(NetdevProgram::FromNode)
        );
        // What an IPoIB device gives the first packets of: 20 bytes of address, 4 of its header.
        assert_eq!(
            link(LinkLayerType::Infiniband, Some(InfoKind::Ipoib)),
            Some(NetdevProgram::ToNetdev(LinkLayer::Infiniband))
        );
    }
}
