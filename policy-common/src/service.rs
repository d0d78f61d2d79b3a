//! Services: addresses that are translated after `from_pod` has seen the packet, and the mark that such a
//! packet bears until it is judged.

use bytemuck::{Pod, Zeroable};

use crate::address::{AddressV4, AddressV6};

/// Value of `service_v4/6`: an address that stands for another one until kube-proxy has translated it.
/// What an isolated endpoint opens towards it is let through with the endpoint's mark, and judged where
/// it leaves the node or enters another of its pods.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct ServiceAddress {
    /// [`ServiceAddress::SERVICE`] or [`ServiceAddress::NODE`]; for people, the programs do not read it.
    pub kind: u32,
}

impl ServiceAddress {
    /// A Service's cluster IP, external IP, or load balancer's address.
    pub const SERVICE: u32 = 1;
    /// This node's own address: a node port there is translated, everything else delivered.
    pub const NODE: u32 = 2;
}

/// A bit of `service_hints`: where it is 0, no address that leads to it is in `service_v4/6`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Hint {
    /// Index of the row.
    pub word: u32,
    /// The bit in it, as a mask.
    pub bit: u64,
}

impl Hint {
    /// Number of rows: 8 KiB, so that at a thousand Services one address in 64 is looked up in vain.
    pub const WORDS: u32 = 1 << 10;

    /// Of an IPv4 address.
    #[inline(always)]
    #[must_use]
    pub const fn of_v4(address: AddressV4) -> Self {
        Self::of_word(u32::from_ne_bytes(address.octets))
    }

    /// Of an IPv6 address.
    #[inline(always)]
    #[must_use]
    pub fn of_v6(address: AddressV6) -> Self {
        let [a, b, c, d]: [u32; 4] = bytemuck::cast(address);
        Self::of_word(a ^ b ^ c ^ d)
    }

    /// Multiplicative hashing (Knuth, The Art of Computer Programming, 6.4): the upper bits are mixed best.
    const fn of_word(word: u32) -> Self {
        let mixed = word.wrapping_mul(0x9e37_79b1);
        Self {
            word: mixed >> 22,
            bit: 1 << (mixed >> 16 & 63),
        }
    }
}

/// Value of `mark_slots`: the interface of the endpoint whose id has this slot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct SlotInterface {
    /// Its ifindex, 0 where the slot is free.
    pub ifindex: u32,
}

/// The part of a packet's mark (`skb->mark`) that names the endpoint whose egress is still to be judged, by its
/// slot; 0 = none. The other bits belong to others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct MarkBits {
    /// The bits in the mark; contiguous.
    pub mask: u32,
    /// How far the slot is shifted into the mark.
    pub shift: u32,
}

impl MarkBits {
    /// The upper half.
    pub const DEFAULT: Self = Self {
        mask: 0xffff_0000,
        shift: 16,
    };

    /// The slot in a mark; 0 = not marked.
    #[inline(always)]
    #[must_use]
    pub const fn slot(self, mark: u32) -> u32 {
        (mark & self.mask) >> self.shift
    }

    /// `mark` with a slot in it; 0 clears it.
    #[inline(always)]
    #[must_use]
    pub const fn with_slot(self, mark: u32, slot: u32) -> u32 {
        (mark & !self.mask) | (slot << self.shift & self.mask)
    }

    /// The highest slot that fits.
    #[must_use]
    pub const fn highest_slot(self) -> u32 {
        self.mask >> self.shift
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hints_of_neighbours_are_spread() {
        let hints: std::collections::HashSet<_> = (0..=255)
            .map(|last| {
                Hint::of_v4(AddressV4 {
                    octets: [10, 96, 0, last],
                })
            })
            .collect();
        assert!(hints.len() > 200, "{}", hints.len());
        assert!(
            hints
                .iter()
                .all(|hint| hint.word < Hint::WORDS && hint.bit.is_power_of_two())
        );
        let mut octets = [0; 16];
        octets[12..].copy_from_slice(&[10, 96, 0, 7]);
        let v6 = Hint::of_v6(AddressV6 { octets });
        assert_eq!(
            v6,
            Hint::of_v4(AddressV4 {
                octets: [10, 96, 0, 7]
            })
        );
    }

    #[test]
    fn other_bits_of_a_mark_are_kept() {
        let marked = MarkBits::DEFAULT.with_slot(0x1234_4000, 7);
        assert_eq!(marked, 0x0007_4000);
        assert_eq!(MarkBits::DEFAULT.slot(marked), 7);
        assert_eq!(MarkBits::DEFAULT.with_slot(marked, 0), 0x4000);
        let narrow = MarkBits {
            mask: 0x0ff0_0000,
            shift: 20,
        };
        assert_eq!(narrow.highest_slot(), 255);
        assert_eq!(narrow.with_slot(0xf00f_ffff, 255), u32::MAX);
    }
}
