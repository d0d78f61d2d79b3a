//! Ports as prefixes: the key of `ports`, and how a range becomes a few of them.

use bytemuck::{Pod, Zeroable};

/// Key of `ports`, a longest-prefix table over {policy id, protocol, port}.
///
/// Prefix lengths in use: [`PortKey::ANY_PROTOCOL`] (rules without ports), [`PortKey::ANY_PORT`]
/// (rules for every port of a protocol), and up to 16 bits more for a block of ports. The longest
/// match carries the rules of every shorter one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Pod, Zeroable)]
#[repr(C)]
pub struct PortKey {
    /// Number of leading bits of `data` that count.
    pub prefix_len: u32,
    /// What they are compared with.
    pub data: PortData,
}

/// The data of a [`PortKey`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Pod, Zeroable)]
#[repr(C)]
pub struct PortData {
    /// Policy id of the page, host order (always matched whole).
    pub policy: u32,
    /// L4 protocol number.
    pub protocol: u8,
    /// Zero.
    pub _pad: u8,
    /// Port, most significant octet first, as the prefix match needs.
    pub port: [u8; 2],
}

const _: () = assert!(size_of::<PortKey>() == 12);

impl PortKey {
    /// Bits of policy id alone.
    pub const ANY_PROTOCOL: u32 = 32;
    /// Bits of policy id and protocol.
    pub const ANY_PORT: u32 = 48;
    /// Bits of an exact port: what a lookup uses.
    pub const EXACT: u32 = 64;

    /// The key that matches every protocol and port.
    #[must_use]
    pub const fn any_protocol(policy: u32) -> Self {
        Self {
            prefix_len: Self::ANY_PROTOCOL,
            data: PortData::new(policy, 0, 0),
        }
    }

    /// The key of a block of ports of one protocol.
    #[must_use]
    pub const fn block(policy: u32, protocol: u8, block: PortBlock) -> Self {
        Self {
            prefix_len: Self::ANY_PORT + block.bits as u32,
            data: PortData::new(policy, protocol, block.first),
        }
    }

    /// The key to look an exact port up with.
    #[inline(always)]
    #[must_use]
    pub const fn exact(policy: u32, protocol: u8, port: u16) -> Self {
        Self {
            prefix_len: Self::EXACT,
            data: PortData::new(policy, protocol, port),
        }
    }
}

impl PortData {
    /// Data from a policy id, a protocol and a port, all in host order.
    #[inline(always)]
    #[must_use]
    pub const fn new(policy: u32, protocol: u8, port: u16) -> Self {
        Self {
            policy,
            protocol,
            _pad: 0,
            port: port.to_be_bytes(),
        }
    }
}

/// Ports that share their leading `bits` bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PortBlock {
    /// Lowest port of the block.
    pub first: u16,
    /// Number of leading bits, 0 (all ports) to 16 (one port).
    pub bits: u8,
}

impl PortBlock {
    /// Highest port of the block.
    #[must_use]
    pub const fn last(self) -> u16 {
        self.first | (0xffff_u32 >> self.bits) as u16
    }

    /// Whether every port of `other` is in this block.
    #[must_use]
    pub const fn covers(self, other: Self) -> bool {
        self.bits <= other.bits && self.first <= other.first && other.last() <= self.last()
    }
}

/// The fewest blocks that together are exactly `first..=last`; empty when `first > last`.
pub fn blocks(first: u16, last: u16) -> impl Iterator<Item = PortBlock> {
    let mut next = u32::from(first);
    let last = u32::from(last);
    core::iter::from_fn(move || {
        if next > last {
            return None;
        }
        // The largest block that begins here and does not pass the end.
        let aligned = if next == 0 {
            16
        } else {
            next.trailing_zeros().min(16)
        };
        let fitting = (last - next + 1).ilog2();
        let size_log2 = aligned.min(fitting);
        let block = PortBlock {
            first: next as u16,
            bits: (16 - size_log2) as u8,
        };
        next += 1 << size_log2;
        Some(block)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn known_ranges() {
        let all: Vec<_> = blocks(0, 65535).collect();
        assert_eq!(all, [PortBlock { first: 0, bits: 0 }]);
        let one: Vec<_> = blocks(80, 80).collect();
        assert_eq!(
            one,
            [PortBlock {
                first: 80,
                bits: 16
            }]
        );
        assert_eq!(blocks(1, 65534).count(), 30);
        assert_eq!(blocks(2, 1).count(), 0);
    }

    proptest! {
        #[test]
        fn blocks_are_disjoint_sorted_and_exact(a in any::<u16>(), b in any::<u16>()) {
            let (first, last) = (a.min(b), a.max(b));
            let mut expected = u32::from(first);
            for block in blocks(first, last) {
                prop_assert_eq!(u32::from(block.first), expected);
                prop_assert_eq!(u32::from(block.first) & (0xffff >> block.bits), 0);
                expected = u32::from(block.last()) + 1;
            }
            prop_assert_eq!(expected, u32::from(last) + 1);
            prop_assert!(blocks(first, last).count() <= 30);
        }
    }
}
