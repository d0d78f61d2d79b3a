//! Addresses and the identities that stand for them: the keys of `identity_v4/6` and `prefix_v4/6`.

use bytemuck::{Pod, Zeroable};

/// A number for a set of remote addresses that no rule in force on this node tells apart.
///
/// 0 ([`Identity::UNKNOWN`]) is the identity of every address that no rule names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Pod, Zeroable)]
#[repr(C)]
pub struct Identity {
    /// The number itself.
    pub id: u32,
}

impl Identity {
    /// Matched by no peer of any rule in force.
    pub const UNKNOWN: Self = Self { id: 0 };
}

/// An exact IPv4 address, octets in network order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Pod, Zeroable)]
#[repr(C, align(4))]
pub struct AddressV4 {
    /// The four octets, most significant first.
    pub octets: [u8; 4],
}

/// An exact IPv6 address, octets in network order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Pod, Zeroable)]
#[repr(C, align(4))]
pub struct AddressV6 {
    /// The sixteen octets, most significant first.
    pub octets: [u8; 16],
}

/// Addresses that one row of `identity_v4/6` stands for.
pub const BLOCK: usize = 8;

/// Value of `identity_v4/6`: the identities of [`BLOCK`] neighbouring addresses, 0 where an address has
/// none of its own. The key is the first of them, whose lowest bits are zero.
///
/// Pods of a node have neighbouring addresses: by blocks, the table of a large cluster takes an eighth
/// of the rows and fits into the processor's cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct IdentityBlock {
    /// By the lowest bits of the address.
    pub ids: [u32; BLOCK],
}

const LAST_BITS: u8 = BLOCK as u8 - 1;

impl AddressV4 {
    /// The key of the address's block.
    #[inline(always)]
    #[must_use]
    pub const fn block(mut self) -> Self {
        self.octets[3] &= !LAST_BITS;
        self
    }

    /// Its place in its block.
    #[inline(always)]
    #[must_use]
    pub const fn place(self) -> usize {
        (self.octets[3] & LAST_BITS) as usize
    }
}

impl AddressV6 {
    /// The address as four words, each as it lies in memory.
    #[inline(always)]
    #[must_use]
    pub fn words(self) -> [u32; 4] {
        bytemuck::cast(self)
    }

    /// The key of the address's block.
    #[inline(always)]
    #[must_use]
    pub const fn block(mut self) -> Self {
        self.octets[15] &= !LAST_BITS;
        self
    }

    /// Its place in its block.
    #[inline(always)]
    #[must_use]
    pub const fn place(self) -> usize {
        (self.octets[15] & LAST_BITS) as usize
    }
}

/// A key of the longest-prefix table of address type `A`.
///
/// The kernel wants the prefix length, in host order, in front of the data
/// (<https://docs.kernel.org/bpf/map_lpm_trie.html>).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct Prefix<A> {
    /// Number of leading bits of `address` that count.
    pub prefix_len: u32,
    /// The network address; bits past `prefix_len` are zero.
    pub address: A,
}

/// Key of `prefix_v4`.
pub type PrefixV4 = Prefix<AddressV4>;
/// Key of `prefix_v6`.
pub type PrefixV6 = Prefix<AddressV6>;

crate::pod_without_padding!(PrefixV4, 4 + size_of::<AddressV4>());
crate::pod_without_padding!(PrefixV6, 4 + size_of::<AddressV6>());
