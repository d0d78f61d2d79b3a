//! Directions, verdicts, reasons, and the counters that are kept of them.

use bytemuck::{Pod, Zeroable};

/// Direction as the pod sees it, never a TC hook's direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Direction {
    /// Into the pod: judged by `to_pod`.
    Ingress = 0,
    /// Out of the pod: judged by `from_pod`.
    Egress = 1,
}

impl Direction {
    /// Both, in the order of their numbers.
    pub const ALL: [Self; 2] = [Self::Ingress, Self::Egress];

    /// The word used in metrics and logs.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        }
    }
}

impl TryFrom<u8> for Direction {
    type Error = u8;
    fn try_from(value: u8) -> Result<Self, u8> {
        match value {
            0 => Ok(Self::Ingress),
            1 => Ok(Self::Egress),
            other => Err(other),
        }
    }
}

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $number:literal, $verdict:ident, $text:literal;)+) => {
        /// Why a packet passed or was dropped. The number is the index of its counter.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum Reason { $($(#[$doc])* $name = $number,)+ }

        impl Reason {
            /// Every reason, in the order of their numbers.
            pub const ALL: &'static [Self] = &[$(Self::$name,)+];

            /// The word used in metrics, logs and events.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)+ }
            }

            /// A bit for each reason that passes.
            const PASSES: u32 = {
                let mut passes = 0_u32;
                $(if matches!(Verdict::$verdict, Verdict::Pass) { passes |= 1 << $number; })+
                passes
            };

            /// The verdict of a reason given by its number; numbers that are none drop.
            #[inline(always)]
            pub const fn verdict_of(number: u32) -> Verdict {
                if number < u32::BITS && Self::PASSES >> number & 1 != 0 {
                    Verdict::Pass
                } else {
                    Verdict::Drop
                }
            }

            /// The verdict that this reason stands for.
            #[inline(always)]
            pub const fn verdict(self) -> Verdict {
                match self { $(Self::$name => Verdict::$verdict,)+ }
            }
        }

        impl TryFrom<u8> for Reason {
            type Error = u8;
            fn try_from(value: u8) -> Result<Self, u8> {
                match value { $($number => Ok(Self::$name),)+ other => Err(other) }
            }
        }
    };
}

reasons! {
    /// The endpoint is isolated in neither direction.
    NotIsolated = 0, Pass, "not_isolated";
    /// The packet belongs to a flow that was allowed in the current epoch.
    Established = 1, Pass, "established";
    /// A rule, or the absence of isolation in this direction, allowed a new flow.
    PolicyAllowed = 2, Pass, "policy_allowed";
    /// ARP, IPv6 neighbour discovery or multicast listener discovery.
    LinkControl = 3, Pass, "link_control";
    /// Made by a socket of this node; Kubernetes lets a node reach its own pods.
    NodeOrigin = 4, Pass, "node_origin";
    /// An ICMP error that quotes a packet of an allowed flow.
    IcmpError = 5, Pass, "icmp_error";
    /// A pod's packet to itself.
    OwnAddress = 6, Pass, "own_address";
    /// To an address that is translated later (a Service's or this node's): judged where it leaves.
    Deferred = 7, Pass, "deferred";
    /// No rule of the policies that isolate the endpoint allows it, or a rule denies it.
    PolicyDenied = 8, Drop, "policy_denied";
    /// The source address is not the endpoint's own.
    SpoofedSource = 9, Drop, "spoofed_source";
    /// Headers are truncated, inconsistent, or nested deeper than the parser goes.
    Malformed = 10, Drop, "malformed";
    /// Neither ARP, IPv4 nor IPv6 (VLAN tags included), at an isolated endpoint.
    NotIp = 11, Drop, "not_ip";
    /// A later fragment whose first fragment was not seen.
    FragmentUnknown = 12, Drop, "fragment_unknown";
    /// The interface has our programs but no row in `endpoints`.
    NoEndpoint = 13, Drop, "no_endpoint";
    /// The flow was cut by a policy change and has not begun anew.
    FlowRevoked = 14, Drop, "flow_revoked";
    /// An IPv6 routing header or IPv4 source route with hops left would hide the true destination.
    SourceRoute = 15, Drop, "source_route";
    /// The endpoint's policy id has no header row: tables are incomplete, so fail closed.
    NoPolicy = 16, Drop, "no_policy";
    /// A new flow was allowed but could not be recorded, so its replies could not pass.
    FlowTableError = 17, Drop, "flow_table_error";
    /// A Service's answer to a connection whose packets were never seen where they leave: what carries the
    /// sender's identity was wiped on the way, or an interface has no program yet.
    ServiceUnverified = 18, Drop, "service_unverified";
    /// ARP or neighbour discovery that claims an address which is not the pod's.
    ClaimedAddress = 19, Drop, "claimed_address";
    /// A router's message (router advertisement, redirect) from a pod.
    RouterMessage = 20, Drop, "router_message";
    /// A DHCP server's answer from a pod.
    DhcpServer = 21, Drop, "dhcp_server";
    /// A tunnel's packet from a pod to a node, whose inner packet nobody would judge.
    NodeTunnel = 22, Drop, "node_tunnel";
    /// The endpoint has no room left for another flow; other endpoints' room is theirs.
    FlowBudget = 23, Drop, "flow_budget";
    /// PORTCULLIS_POD_TO_NODE does not allow pods to reach this port of their node.
    NodeDenied = 24, Drop, "node_denied";
    /// Counted beside the verdict: a part of what carries the sender's identity was lost, and the packet was
    /// judged by the part that was left.
    CarrierDamaged = 25, Pass, "carrier_damaged";
    /// A packet that looks like one of an endpoint's, and was not confirmed to be one.
    CarrierForeign = 26, Pass, "carrier_foreign";
}

/// Our decision on a packet. One place in `policy-ebpf` turns it into a TC action.
#[must_use = "a verdict that is not turned into an action lets the packet through"]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Verdict {
    /// Let it through.
    Pass = 0,
    /// Drop it.
    Drop = 1,
}

impl Verdict {
    /// The word used in metrics and reports.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Drop => "drop",
        }
    }
}

/// Number of counters per direction in `counters`; reasons have room to grow.
pub const REASON_SLOTS: u32 = 32;
const _: () = assert!(Reason::ALL.len() <= REASON_SLOTS as usize);

/// Index in `counters` of a direction and a reason's number.
#[inline(always)]
#[must_use]
pub const fn counter_index(direction: Direction, reason: u32) -> u32 {
    direction as u32 * REASON_SLOTS + (reason & (REASON_SLOTS - 1))
}

/// Value of `counters`, one per CPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Counter {
    /// Packets counted.
    pub packets: u64,
    /// Their length in bytes, Ethernet header included.
    pub bytes: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reason_numbers_are_their_positions_and_round_trip() {
        for (position, reason) in Reason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, position);
            assert_eq!(Reason::try_from(position as u8), Ok(*reason));
            assert_eq!(Reason::verdict_of(position as u32), reason.verdict());
        }
        assert_eq!(
            Reason::try_from(REASON_SLOTS as u8),
            Err(REASON_SLOTS as u8)
        );
    }

    #[test]
    fn counter_indices_do_not_collide() {
        let mut seen = std::collections::BTreeSet::new();
        for direction in Direction::ALL {
            for reason in Reason::ALL {
                assert!(seen.insert(counter_index(direction, *reason as u32)));
            }
        }
    }
}
