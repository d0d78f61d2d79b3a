//! Flows: their keys and values, and the pure rules of how a flow lives and dies.
//!
//! A flow is one connection as seen from one endpoint. Its key names the endpoint and the remote
//! side, so both directions of a connection have one key, and one lookup answers "established?" and
//! "reply?". Flows that were seen in one direction only live in `flows_new_*`; the first packet the
//! other way moves them to `flows_v4/6`, where a flood of one-sided packets cannot evict them.

use bytemuck::{Pod, Zeroable};

use crate::address::{AddressV4, AddressV6};
use crate::config::Timeouts;
use crate::verdict::Direction;

/// Key of the flow tables, for remote addresses of type `A`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct FlowKey<A> {
    /// Endpoint id.
    pub endpoint: u32,
    /// The other side's address.
    pub remote: A,
    /// The endpoint's port (TCP, UDP, SCTP), or the id of an ICMP query; else 0.
    pub local_port: u16,
    /// The other side's port. For ICMP queries the query's type * 256, plus 1 when the endpoint asks;
    /// for other ICMP type * 256 + code. Else 0.
    pub remote_port: u16,
    /// L4 protocol number.
    pub protocol: u8,
    /// Where the flow is seen: [`FlowKey::AT_POD`] or [`FlowKey::TRANSLATED`].
    pub place: u8,
    /// Zero.
    pub _pad: [u8; 2],
}

impl<A> FlowKey<A> {
    /// [`FlowKey::place`]: at the pod's interface, with the addresses that the pod uses.
    pub const AT_POD: u8 = 0;
    /// [`FlowKey::place`]: where a deferred packet is judged, with the addresses that it was translated to.
    pub const TRANSLATED: u8 = 1;
}

/// Number of rows of `one_way_hints`, a power of two.
pub const ONE_WAY_HINTS: u32 = 1 << 10;

/// A number whose upper bits depend on all of `word` (Knuth, The Art of Computer Programming, 6.4).
#[inline(always)]
const fn mix(word: u32) -> u32 {
    word.wrapping_mul(0x9e37_79b1)
}

impl FlowKey<AddressV4> {
    /// The same for all packets of a flow, spread over the upper bits.
    #[inline(always)]
    #[must_use]
    pub fn entropy(&self) -> u32 {
        let [endpoint, remote, ports, last]: [u32; 4] = bytemuck::cast(*self);
        mix(mix(remote ^ last) ^ ports ^ endpoint)
    }

    /// The key in 32-bit words. The kernel hashes keys by words: written in smaller pieces just before,
    /// each would have to wait for its pieces to leave the store buffer.
    #[inline(always)]
    #[must_use]
    pub fn from_parts(
        endpoint: u32,
        remote: AddressV4,
        ports: PortPair,
        protocol: u8,
        place: u8,
    ) -> Self {
        let remote = u32::from_ne_bytes(remote.octets);
        bytemuck::cast([endpoint, remote, ports.word(), last_word(protocol, place)])
    }
}

impl FlowKey<AddressV6> {
    /// As for IPv4.
    #[inline(always)]
    #[must_use]
    pub fn entropy(&self) -> u32 {
        let [endpoint, a, b, c, d, ports, last]: [u32; 7] = bytemuck::cast(*self);
        mix(mix(a ^ b ^ c ^ d ^ last) ^ ports ^ endpoint)
    }

    /// As for IPv4.
    #[inline(always)]
    #[must_use]
    pub fn from_parts(
        endpoint: u32,
        remote: AddressV6,
        ports: PortPair,
        protocol: u8,
        place: u8,
    ) -> Self {
        let [a, b, c, d]: [u32; 4] = bytemuck::cast(remote);
        let last = last_word(protocol, place);
        bytemuck::cast([endpoint, a, b, c, d, ports.word(), last])
    }
}

/// The two port fields of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortPair {
    /// [`FlowKey::local_port`].
    pub local: u16,
    /// [`FlowKey::remote_port`].
    pub remote: u16,
}

impl PortPair {
    /// Both fields as they lie in memory.
    #[inline(always)]
    const fn word(self) -> u32 {
        let (first, second) = (self.local as u32, self.remote as u32);
        if cfg!(target_endian = "little") {
            first | second << 16
        } else {
            first << 16 | second
        }
    }
}

/// The protocol, the place and their padding as they lie in memory.
#[inline(always)]
const fn last_word(protocol: u8, place: u8) -> u32 {
    if cfg!(target_endian = "little") {
        protocol as u32 | (place as u32) << 8
    } else {
        (protocol as u32) << 24 | (place as u32) << 16
    }
}

/// Key of `flows_v4` and `flows_new_v4`.
pub type FlowKeyV4 = FlowKey<AddressV4>;
/// Key of `flows_v6` and `flows_new_v6`.
pub type FlowKeyV6 = FlowKey<AddressV6>;

crate::pod_without_padding!(FlowKeyV4, 12 + size_of::<AddressV4>());
crate::pod_without_padding!(FlowKeyV6, 12 + size_of::<AddressV6>());

/// Value of the flow tables.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Flow {
    /// The endpoint's epoch when the flow was last judged; for one that is [deferred](Flow::DEFERRED), when a judge
    /// last granted it, 0 where none has.
    pub epoch: u32,
    /// Ticks of the programs' clock at the last packet.
    pub last_seen: u32,
    /// Rule that allowed the flow, counted over all pages; `event::NO_RULE` where none was asked.
    pub rule: u32,
    /// One of the [`FlowState`] numbers.
    pub state: u8,
    /// [`Direction`] of the packet that began the flow, as a number.
    pub initiator: u8,
    /// [`Flow::NODE_ORIGIN`] and [`Flow::DEFERRED`].
    pub flags: u8,
    /// Zero.
    pub _pad: u8,
    /// The endpoint of this node that began the flow, where its address was replaced by another on the way
    /// (a masqueraded packet of a Service); else 0. For a flow that is [deferred](Flow::DEFERRED), the tick at which its
    /// packets began to ask a judge, until one answers; else 0.
    pub peer: u32,
}

const _: () = assert!(size_of::<Flow>() == 20);

impl Flow {
    /// Flag: begun by this node, hence exempt from policy. What claims to be the node's has to prove it, packet by packet.
    pub const NODE_ORIGIN: u8 = 1;
    /// [`Self::state_and_flags`] of a flow that was seen in both directions, and is nothing special.
    pub const TWO_WAY: u32 = FlowState::TWO_WAY as u32;
    /// [`Self::state_and_flags`] of such a flow that is deferred.
    pub const TWO_WAY_DEFERRED: u32 = Self::TWO_WAY | (Self::DEFERRED as u32) << 16;
    /// [`Self::state_and_flags`] of such a flow that this node began.
    pub const TWO_WAY_NODE: u32 = Self::TWO_WAY | (Self::NODE_ORIGIN as u32) << 16;

    /// The state and the flags in one load: what the fast path asks.
    #[inline(always)]
    #[must_use]
    pub fn state_and_flags(&self) -> u32 {
        // In memory: state, initiator, flags, padding.
        let word: u32 = bytemuck::cast([self.state, self.initiator, self.flags, self._pad]);
        u32::from_le(word) & 0x00ff_00ff
    }

    /// Flag: opened by the pod towards an address that is translated later; judged after that.
    pub const DEFERRED: u8 = 2;
}

/// How far a flow has come. Numbers, not an enum, because they stand in a map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowState;

impl FlowState {
    /// Seen in one direction.
    pub const ONE_WAY: u8 = 1;
    /// Seen in both directions.
    pub const TWO_WAY: u8 = 2;
    /// TCP FIN or SCTP SHUTDOWN seen.
    pub const CLOSING: u8 = 3;
    /// TCP RST or SCTP ABORT seen.
    pub const RESET: u8 = 4;
    /// Cut by a policy change; its packets drop until it begins anew.
    pub const REVOKED: u8 = 5;

    /// Bit beside [`Self::CLOSING`] and [`Self::RESET`]: since then, its initiator sent as if nothing had happened.
    const WENT_ON: u8 = 0x10;
    /// Likewise: the other side did.
    const ANSWERED: u8 = 0x20;
    /// The bits of the state itself.
    const STATE: u8 = 0x0f;

    /// The state without what was seen since.
    #[inline(always)]
    #[must_use]
    pub const fn of(state: u8) -> u8 {
        state & Self::STATE
    }
}

/// IANA protocol numbers (<https://www.iana.org/assignments/protocol-numbers>) that flows tell apart.
pub mod protocol {
    /// ICMP for IPv4.
    pub const ICMP: u8 = 1;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// ICMP for IPv6.
    pub const ICMPV6: u8 = 58;
    /// SCTP.
    pub const SCTP: u8 = 132;
}

/// What a packet says about its connection's life, over all protocols: bits as in TCP's flags (RFC
/// 9293, section 3.1), which other protocols are translated to.
///
/// Bits, not an enum: a TCP packet's signal is then a mask of its flags, without a branch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct Signal(pub u8);

impl Signal {
    /// No more data from the sender: TCP FIN, SCTP SHUTDOWN or SHUTDOWN COMPLETE.
    pub const FIN: u8 = 0x01;
    /// Begins a connection: TCP SYN, SCTP INIT.
    pub const SYN: u8 = 0x02;
    /// Ends a connection at once: TCP RST, SCTP ABORT.
    pub const RST: u8 = 0x04;
    /// Answers; with [`Signal::SYN`] the answer to an opening: TCP SYN-ACK, SCTP INIT ACK.
    pub const ACK: u8 = 0x10;
    /// An ICMP query's answer, an ICMP error, or another message that asks for no answer: may be
    /// judged, but never begins a flow, so that it cannot make way for what goes the other way.
    pub const NO_FLOW: u8 = 0x40;

    /// Nothing special: data, UDP, an ICMP query, ...
    pub const NONE: Self = Self(0);

    /// From a TCP header's flags byte.
    #[inline(always)]
    #[must_use]
    pub const fn tcp(flags: u8) -> Self {
        Self(flags & (Self::FIN | Self::SYN | Self::RST | Self::ACK))
    }

    /// From the type of an SCTP packet's first chunk (RFC 9260, section 3.2).
    #[inline(always)]
    #[must_use]
    pub const fn sctp(chunk_type: u8) -> Self {
        match chunk_type {
            1 => Self(Self::SYN),
            2 => Self(Self::SYN | Self::ACK),
            6 => Self(Self::RST),
            7 | 14 => Self(Self::FIN),
            _ => Self::NONE,
        }
    }

    /// Whether the packet begins or ends a connection, or answers a beginning.
    #[inline(always)]
    #[must_use]
    pub const fn tells_life(self) -> bool {
        self.0 & (Self::FIN | Self::SYN | Self::RST) != 0
    }

    /// Whether the packet begins a connection, and so is never part of an older one: SYN without ACK,
    /// whatever else is set but RST.
    #[inline(always)]
    #[must_use]
    pub const fn opens(self) -> bool {
        self.0 & (Self::SYN | Self::RST | Self::ACK) == Self::SYN
    }

    /// Whether the packet may be the answer to one that [`Signal::opens`]: an acceptance or a refusal.
    #[inline(always)]
    #[must_use]
    pub const fn may_answer_opening(self) -> bool {
        self.0 & (Self::SYN | Self::RST) != 0
    }

    /// Whether the packet, when it is allowed and belongs to no flow, begins one. What only ever
    /// answers or ends a connection does not.
    #[inline(always)]
    #[must_use]
    pub const fn begins_flow(self) -> bool {
        self.opens() || self.0 & (Self::SYN | Self::RST | Self::NO_FLOW) == 0
    }
}

/// The state after a packet with `signal`. `reply` says whether it goes against the flow's
/// initiator.
///
/// Whoever forges a RST or FIN need not know the sequence numbers that the two ends go by. So where both of them send
/// on afterwards, the flow lives.
#[inline(always)]
#[must_use]
pub const fn next_state(state: u8, signal: Signal, reply: bool) -> u8 {
    let ending =
        FlowState::of(state) == FlowState::CLOSING || state & FlowState::STATE == FlowState::RESET;
    if state == FlowState::REVOKED {
        state
    } else if signal.0 & Signal::RST != 0 {
        FlowState::RESET
    } else if signal.0 & Signal::FIN != 0 {
        // A late FIN says no more than the RST before it.
        if FlowState::of(state) == FlowState::RESET {
            FlowState::RESET
        } else {
            FlowState::CLOSING
        }
    } else if ending {
        let seen = if reply {
            FlowState::ANSWERED
        } else {
            FlowState::WENT_ON
        };
        let state = state | seen;
        if state & FlowState::ANSWERED != 0 && state & FlowState::WENT_ON != 0 {
            FlowState::TWO_WAY
        } else {
            state
        }
    } else if reply {
        FlowState::TWO_WAY
    } else {
        state
    }
}

/// How many ticks a flow of `protocol` in `state` lives without a packet.
#[inline(always)]
#[must_use]
pub const fn timeout(protocol: u8, state: u8, timeouts: &Timeouts) -> u32 {
    match protocol {
        protocol::TCP | protocol::SCTP => match FlowState::of(state) {
            FlowState::ONE_WAY => timeouts.opening,
            FlowState::TWO_WAY => timeouts.established,
            FlowState::CLOSING => timeouts.closing,
            FlowState::REVOKED => timeouts.revoked,
            _ => timeouts.reset,
        },
        protocol::UDP => match state {
            FlowState::ONE_WAY => timeouts.udp_one_way,
            _ => timeouts.udp_two_way,
        },
        protocol::ICMP | protocol::ICMPV6 => timeouts.icmp,
        _ => timeouts.other,
    }
}

/// Whether a flow last seen at `last_seen` is over at `now`; both are ticks, which wrap after years.
#[inline(always)]
#[must_use]
pub const fn is_expired(now: u32, last_seen: u32, timeout: u32) -> bool {
    // A packet on another CPU may have written a slightly later time: that is age 0, not 2^32 - 1.
    const LATER: u32 = 64;
    let age = now.wrapping_sub(last_seen);
    age > timeout && age < u32::MAX - LATER
}

/// The other direction.
#[inline(always)]
#[must_use]
pub const fn opposite(direction: Direction) -> Direction {
    match direction {
        Direction::Ingress => Direction::Egress,
        Direction::Egress => Direction::Ingress,
    }
}

/// Key of `fragments`: a datagram whose first fragment was seen. IPv4 in the first four octets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Pod, Zeroable)]
#[repr(C)]
pub struct FragmentKey {
    /// Source address.
    pub saddr: [u8; 16],
    /// Destination address.
    pub daddr: [u8; 16],
    /// Fragment identification; 16 bits in IPv4.
    pub identification: u32,
    /// Endpoint id: the same datagram passes two endpoints of one node.
    pub endpoint: u32,
    /// L4 protocol number for IPv4 (RFC 791: identifications are per protocol), 0 for IPv6 (RFC 8200:
    /// they are not, and a later fragment need not know its protocol).
    pub protocol: u8,
    /// `Direction` as a number.
    pub direction: u8,
    /// 4 or 6.
    pub family: u8,
    /// Zero.
    pub _pad: u8,
}

/// Value of `fragments`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct FragmentPorts {
    /// `FlowKey::local_port` of the datagram.
    pub local_port: u16,
    /// `FlowKey::remote_port` of the datagram.
    pub remote_port: u16,
    /// Ticks of the programs' clock at the first fragment.
    pub seen: u32,
    /// L4 protocol number.
    pub protocol: u8,
    /// Zero.
    pub _pad: [u8; 3],
}

const _: () = assert!(size_of::<FragmentKey>() == 44);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_from_words_are_keys_from_fields() {
        let ports = PortPair {
            local: 0x1234,
            remote: 0xabcd,
        };
        let v4 = AddressV4 {
            octets: [10, 1, 2, 3],
        };
        let expected = FlowKey {
            endpoint: 7,
            remote: v4,
            local_port: 0x1234,
            remote_port: 0xabcd,
            protocol: 17,
            place: FlowKey::<AddressV4>::AT_POD,
            _pad: [0; 2],
        };
        assert_eq!(
            FlowKeyV4::from_parts(7, v4, ports, 17, FlowKeyV4::AT_POD),
            expected
        );
        let octets = core::array::from_fn(|index| index as u8);
        let v6 = AddressV6 { octets };
        let key = FlowKeyV6::from_parts(7, v6, ports, 17, FlowKeyV6::TRANSLATED);
        assert_eq!((key.endpoint, key.remote, key.protocol), (7, v6, 17));
        assert_eq!((key.local_port, key.remote_port), (0x1234, 0xabcd));
    }

    #[test]
    fn tcp_signals() {
        const FIN: u8 = Signal::FIN;
        const SYN: u8 = Signal::SYN;
        const RST: u8 = Signal::RST;
        const ACK: u8 = Signal::ACK;
        const PSH: u8 = 0x08;
        // (what, flags, tells of life, opens, begins a flow)
        let rows = [
            ("bare SYN", SYN, true, true, true),
            ("SYN with FIN still opens", SYN | FIN, true, true, true),
            ("SYN with PSH too", SYN | PSH, true, true, true),
            ("SYN ACK", SYN | ACK, true, false, false),
            ("RST wins over SYN", RST | SYN, true, false, false),
            ("RST ACK", RST | ACK, true, false, false),
            ("FIN ACK", FIN | ACK, true, false, true),
            ("data", ACK | PSH, false, false, true),
            ("no flags at all", 0, false, false, true),
        ];
        for (what, flags, tells_life, opens, begins_flow) in rows {
            let signal = Signal::tcp(flags);
            assert_eq!(signal.tells_life(), tells_life, "{what}");
            assert_eq!(signal.opens(), opens, "{what}");
            assert_eq!(signal.begins_flow(), begins_flow, "{what}");
        }
        assert!(!Signal(Signal::NO_FLOW).begins_flow());
        assert!(!Signal(Signal::NO_FLOW).tells_life());
    }

    #[test]
    fn sctp_signals() {
        let rows = [
            ("DATA", 0, false),
            ("INIT", 1, true),
            ("INIT ACK", 2, false),
            ("ABORT", 6, false),
        ];
        for (what, chunk, opens) in rows {
            assert_eq!(Signal::sctp(chunk).opens(), opens, "{what}");
            assert_eq!(Signal::sctp(chunk).tells_life(), chunk != 0, "{what}");
        }
    }

    #[test]
    fn states_move_forward_only() {
        use FlowState as S;
        const DATA: u8 = 0;
        let rows = [
            (S::ONE_WAY, DATA, false, S::ONE_WAY),
            (S::ONE_WAY, Signal::SYN | Signal::ACK, true, S::TWO_WAY),
            (S::ONE_WAY, Signal::RST, true, S::RESET),
            (S::TWO_WAY, DATA, false, S::TWO_WAY),
            (S::TWO_WAY, Signal::FIN, true, S::CLOSING),
            (S::CLOSING, Signal::RST, false, S::RESET),
            (S::RESET, Signal::FIN, false, S::RESET),
            (S::REVOKED, Signal::RST, true, S::REVOKED),
        ];
        for (state, signal, reply, expected) in rows {
            let next = next_state(state, Signal(signal), reply);
            assert_eq!(next, expected, "{state} {signal:#x} {reply}");
        }
    }

    #[test]
    fn data_both_ways_shows_that_an_end_was_none() {
        use FlowState as S;
        for (end, state) in [(Signal::RST, S::RESET), (Signal::FIN, S::CLOSING)] {
            let ended = next_state(S::TWO_WAY, Signal(end), false);
            assert_eq!(ended, state);
            let one_side = next_state(ended, Signal(Signal::ACK), false);
            assert_eq!(
                S::of(one_side),
                state,
                "an acknowledgement of the end is no sign of life"
            );
            assert_eq!(
                S::of(next_state(one_side, Signal(Signal::ACK), false)),
                state
            );
            assert_eq!(
                next_state(one_side, Signal(end), true),
                state,
                "another end"
            );
            assert_eq!(next_state(one_side, Signal(Signal::ACK), true), S::TWO_WAY);
            let times = Timeouts::SECONDS;
            assert_eq!(
                timeout(protocol::TCP, one_side, &times),
                timeout(protocol::TCP, state, &times)
            );
        }
    }

    #[test]
    fn expiry_survives_the_clock_wrapping() {
        assert!(!is_expired(10, 10, 0));
        assert!(is_expired(11, 10, 0));
        assert!(!is_expired(5, u32::MAX - 4, 10));
        assert!(is_expired(6, u32::MAX - 4, 10));
        assert!(
            !is_expired(10, 12, 0),
            "a later time from another CPU is not an age"
        );
        assert!(
            is_expired(1 << 31, 0, 10),
            "half of the clock is long enough"
        );
    }
}
