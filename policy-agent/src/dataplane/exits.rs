//! Which program the host's interfaces other than endpoints need, by what they are.
//!
//! Where packets leave the node, one on TC egress judges what `from_pod` let through unjudged; in four forms, by
//! where the IP header is. Bridges, whose ports are what packets leave by, need none of these: theirs tells the
//! ports which packets the node itself made, because the copies that a bridge floods lose their socket.
//!
//! They are attached by the same means as an endpoint's programs. On a clsact qdisc their filter has a number of its
//! own, so that an interface that becomes an endpoint, or ceases to be one, can have both for a moment.

use aya::programs::TcAttachType;

use super::attach::Program;
use super::load::{EXIT, EXIT_IB, EXIT_L3, FROM_NODE};

/// What an interface's packets begin with at its egress.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LinkLayer {
    /// An Ethernet header.
    Ethernet,
    /// The IP header, as those of tunnels do.
    Network,
    /// 20 bytes of address and the 4 bytes of an IPoIB header.
    Infiniband,
}

/// The program that an interface is to have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum NetdevProgram {
    /// The one that judges what leaves the node, for packets of this kind.
    ToNetdev(LinkLayer),
    /// The one that marks as the node's what the node sends by a bridge.
    FromNode,
}

/// Those of which an interface has one share what its pin is named after.
const fn to_netdev(name: &'static str) -> Program {
    Program {
        name,
        pin: EXIT,
        side: TcAttachType::Egress,
        number: 2,
    }
}

/// In the order of [`NetdevProgram::programs`].
pub(super) static PROGRAMS: [Program; 4] = [
    to_netdev(EXIT),
    to_netdev(EXIT_L3),
    to_netdev(EXIT_IB),
    Program {
        name: FROM_NODE,
        pin: FROM_NODE,
        side: TcAttachType::Egress,
        number: 2,
    },
];

impl NetdevProgram {
    /// The program's name, shown by `policyctl status`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::ToNetdev(LinkLayer::Ethernet) => EXIT,
            Self::ToNetdev(LinkLayer::Network) => EXIT_L3,
            Self::ToNetdev(LinkLayer::Infiniband) => EXIT_IB,
            Self::FromNode => FROM_NODE,
        }
    }

    pub(super) fn programs(self) -> &'static [Program] {
        let at = match self {
            Self::ToNetdev(LinkLayer::Ethernet) => 0,
            Self::ToNetdev(LinkLayer::Network) => 1,
            Self::ToNetdev(LinkLayer::Infiniband) => 2,
            Self::FromNode => 3,
        };
        &PROGRAMS[at..=at]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_netdev_has_the_program_of_its_name() {
        for program in [
            NetdevProgram::ToNetdev(LinkLayer::Ethernet),
            NetdevProgram::ToNetdev(LinkLayer::Network),
            NetdevProgram::ToNetdev(LinkLayer::Infiniband),
            NetdevProgram::FromNode,
        ] {
            let [attached] = program.programs() else {
                panic!("{program:?} is one program");
            };
            assert_eq!(attached.name, program.name());
        }
    }
}
