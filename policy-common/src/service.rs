//! Services: addresses that are translated after `from_pod` has seen the packet.

use bytemuck::{Pod, Zeroable};

use crate::address::{AddressV4, AddressV6};

/// Value of `service_v4/6`: an address that stands for another one until kube-proxy has translated it.
/// What an isolated endpoint opens towards it is let through with the endpoint's token (see `carrier`), and judged where
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
}
