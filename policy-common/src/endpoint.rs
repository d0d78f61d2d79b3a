//! The `endpoints` table: what the programs know of one pod interface.

use bytemuck::{Pod, Zeroable};

use crate::address::{AddressV4, AddressV6};

/// One pod interface on this node, found by the ifindex of its host side.
///
/// Row 0, whose index no interface has, is not an endpoint's: its `epoch` is the generation of endpoint
/// ids that was begun last, its `flags` are `map::LAYOUT`, and its `ingress_policy` is `map::FLOW_LAYOUT`.
///
/// User space replaces a row in two steps, policies first and `epoch` second, and the programs
/// read `epoch` before the policies: a verdict made with the old policies can then only ever be
/// stored under the old epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C, align(8))]
pub struct Endpoint {
    /// Grows whenever something that could revoke access of this endpoint's flows changed.
    pub epoch: u32,
    /// Endpoint id; 0 means that the row is empty. The lower 16 bits are a slot that is unique
    /// among live endpoints; the upper 16 bits tell successive users of a slot apart.
    pub id: u32,
    /// Policy id that judges what enters the pod; 0 = not isolated for ingress.
    pub ingress_policy: u32,
    /// Policy id that judges what leaves the pod; 0 = not isolated for egress.
    pub egress_policy: u32,
    /// [`Endpoint::HAS_IPV4`] and others.
    pub flags: u32,
    /// The endpoint's own IPv4 address, where it has one.
    pub ipv4: AddressV4,
    /// The endpoint's own IPv6 address, where it has one.
    pub ipv6: AddressV6,
    /// UDP ports at which this node decapsulates (its VXLAN, Geneve and similar devices), in host order; 0 where
    /// there are fewer. The same in every row: here they cost no lookup.
    pub tunnel_ports: [u16; 4],
}

impl Endpoint {
    /// Flag: `ipv4` holds an address.
    pub const HAS_IPV4: u32 = 1;
    /// Flag: `ipv6` holds an address.
    pub const HAS_IPV6: u32 = 2;
    /// Flag: the pod's namespace is listed as one of routers: it may send from addresses that are not its own, and
    /// what only routers, DHCP servers and tunnels send.
    pub const ROUTER: u32 = 4;
    /// Flag: flows are recorded although no policy isolates the pod, because nothing else on this node knows who
    /// began them.
    pub const RECORD: u32 = 8;

    /// Whether any policy selects the pod, for either direction.
    #[inline(always)]
    #[must_use]
    pub const fn is_isolated(&self) -> bool {
        (self.ingress_policy | self.egress_policy) != 0
    }
}

/// Key of `endpoints_ext`, the table for interfaces past the end of the `endpoints` array.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Pod, Zeroable)]
#[repr(C)]
pub struct Ifindex {
    /// Interface index in the host's network namespace.
    pub ifindex: u32,
}

const _: () = assert!(size_of::<Endpoint>() == 48);
