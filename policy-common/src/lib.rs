//! Everything that Portcullis's eBPF programs and its user space must agree on.
//!
//! Responsibility: the key and value types of every BPF map, with their layout asserted by the
//! compiler (`bytemuck::Pod` rejects padding and enums), the numbers that stand in them, and the
//! pure parts of the packet's path that can be tested on the host (flow states, bit vectors, port
//! prefixes, tier order).
//!
//! Direction of dependency: `policy-ebpf`, `policy-core` and `policy-agent` depend on this crate; it
//! depends on nothing but `bytemuck` and `core`.
//!
//! Byte order: ports and every other integer are in host order; addresses are arrays of octets in
//! network order, so that `bpftool map dump` shows them as people read them.

#![cfg_attr(not(test), no_std)]

/// `bytemuck::Pod` for an instance of a generic struct, which the derive cannot check: `$size` is the
/// sum of the fields' sizes, so equality with the struct's size proves that there is no padding.
macro_rules! pod_without_padding {
    ($type:ty, $size:expr) => {
        const _: () = assert!(size_of::<$type>() == $size);
        // SAFETY: every field is Zeroable.
        unsafe impl bytemuck::Zeroable for $type {}
        // SAFETY: repr(C), every field is Pod, and the assertion above rules out padding.
        unsafe impl bytemuck::Pod for $type {}
    };
}
pub(crate) use pod_without_padding;

pub mod address;
pub mod bench;
pub mod carrier;
pub mod config;
pub mod endpoint;
pub mod event;
pub mod flow;
pub mod guard;
pub mod map;
pub mod policy;
pub mod port;
pub mod service;
pub mod verdict;
