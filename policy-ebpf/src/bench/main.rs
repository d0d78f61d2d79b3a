//! Programs for `cargo xtask bench` only: floors, which do the least that any dataplane must do, and
//! `rotate`, which changes the packet and goes on with another program.
//!
//! A test run repeats one packet; what a program writes into it stays. `rotate` uses that to make every
//! repetition another flow, in front of floors and of the real programs alike.

#![cfg_attr(target_arch = "bpf", no_std, no_main)]
#![expect(
    unreachable_pub,
    missing_docs,
    reason = "the classifier macro makes items of its own"
)]
// As the real programs do.
#![expect(
    clippy::needless_borrows_for_generic_args,
    reason = "map helpers take keys by reference"
)]

use core::mem::offset_of;

use aya_ebpf::bindings::{BPF_ANY, TC_ACT_UNSPEC};
use aya_ebpf::btf_maps::lpm_trie::Key;
use aya_ebpf::btf_maps::{Array, LpmTrie, LruHashMap, ProgramArray};
use aya_ebpf::helpers::generated::bpf_set_hash;
use aya_ebpf::macros::{btf_map, classifier};
use aya_ebpf::programs::TcContext;
use network_types::eth::EthHdr;
use network_types::ip::Ipv4Hdr;
use policy_common::address::{AddressV4, Identity};
use policy_common::bench::{Carriage, Rotation};
use policy_common::flow::{Flow, FlowKeyV4, PortPair};

/// What `rotate` does, and where it stands.
#[btf_map(name = "rotation")]
static ROTATION: Array<Rotation, 1> = Array::new();
/// What `carry` gives the packet, and finds on it.
#[btf_map(name = "carriage")]
static CARRIAGE: Array<Carriage, 1> = Array::new();
/// The program that `rotate` and `carry` go on with.
#[btf_map(name = "next")]
static NEXT: ProgramArray<1> = ProgramArray::new();
/// For the program `floor_array`.
#[btf_map(name = "floor_rows")]
static ARRAY: Array<Flow, 16_384> = Array::new();
/// For `floor_lru` and `floor_insert`; sized as the real flow table by the bench.
#[btf_map(name = "floor_flows")]
static FLOWS: LruHashMap<FlowKeyV4, Flow, 131_072> = LruHashMap::new();
/// For `floor_lpm`.
#[btf_map(name = "floor_prefixes")]
static PREFIXES: LpmTrie<AddressV4, Identity, 65_536> = LpmTrie::new();

/// Nothing.
#[classifier]
pub fn floor_empty(_: TcContext) -> i32 {
    TC_ACT_UNSPEC
}

/// One array lookup.
#[classifier]
pub fn floor_array(skb: TcContext) -> i32 {
    // SAFETY: a context field that the verifier lets TC programs read.
    let ifindex = unsafe { (*skb.skb.skb).ifindex };
    match ARRAY.get(ifindex) {
        Some(row) => row.state as i32 | TC_ACT_UNSPEC,
        None => 0,
    }
}

/// Parsing and one hit in an LRU table.
#[classifier]
pub fn floor_lru(skb: TcContext) -> i32 {
    let Some(key) = parse(&skb) else { return 0 };
    match FLOWS.get_ptr_mut(&key) {
        // SAFETY: a row of the table; read so that the lookup is not for nothing.
        Some(flow) => TC_ACT_UNSPEC | unsafe { (*flow).state as i32 },
        None => 0,
    }
}

/// Parsing and one insert into an LRU table.
#[classifier]
pub fn floor_insert(skb: TcContext) -> i32 {
    let Some(key) = parse(&skb) else { return 0 };
    let flow = Flow {
        epoch: 1,
        last_seen: 1,
        rule: 0,
        state: 1,
        initiator: 0,
        flags: 0,
        _pad: 0,
        peer: 0,
    };
    match FLOWS.insert(&key, flow, BPF_ANY as u64) {
        Ok(()) => TC_ACT_UNSPEC,
        Err(_) => 0,
    }
}

/// Parsing and one longest-prefix lookup.
#[classifier]
pub fn floor_lpm(skb: TcContext) -> i32 {
    let Some(key) = parse(&skb) else { return 0 };
    match PREFIXES.get(&Key::new(32, key.remote)) {
        Some(identity) => identity.id as i32 | TC_ACT_UNSPEC,
        None => 0,
    }
}

/// The least that finds a flow: Ethernet, IPv4 without options, ports.
#[inline(always)]
fn parse(skb: &TcContext) -> Option<FlowKeyV4> {
    const L4: usize = EthHdr::LEN + Ipv4Hdr::LEN;
    let start = skb.data();
    if start + L4 + 4 > skb.data_end() {
        return None;
    }
    let at = |offset: usize| (start + offset) as *const u8;
    // SAFETY: within the bounds checked above; unaligned packet reads are the kernel's custom.
    unsafe {
        if *at(EthHdr::LEN) != 0x45 {
            return None;
        }
        let ports = *at(L4).cast::<u32>();
        let remote = *at(EthHdr::LEN + offset_of!(Ipv4Hdr, dst_addr)).cast();
        let ports = PortPair {
            local: u16::from_be(ports as u16),
            remote: u16::from_be((ports >> 16) as u16),
        };
        let protocol = *at(EthHdr::LEN + offset_of!(Ipv4Hdr, proto));
        Some(FlowKeyV4::from_parts(
            1,
            remote,
            ports,
            protocol,
            FlowKeyV4::AT_POD,
        ))
    }
}

/// Makes the packet another flow, then goes on with `NEXT`.
#[classifier]
pub fn rotate(skb: TcContext) -> i32 {
    const L4: usize = EthHdr::LEN + Ipv4Hdr::LEN;
    let Some(rotation) = ROTATION.get_ptr_mut(0) else {
        return 0;
    };
    let start = skb.data();
    if start + L4 + 4 > skb.data_end() {
        return 0;
    }
    // SAFETY: the row is ours alone during a test run, and the packet is within bounds.
    unsafe {
        let rotation = &mut *rotation;
        // A linear congruential generator of full period over 32 bits: no order for a cache to learn.
        rotation.seed = rotation
            .seed
            .wrapping_mul(1_664_525)
            .wrapping_add(1_013_904_223);
        let random = rotation.seed >> 8;
        if rotation.ports != 0 {
            let port = (rotation.first_port + random % rotation.ports) as u16;
            *((start + L4) as *mut u16) = port.to_be();
        }
        if rotation.peers != 0 {
            let address = rotation.first_peer + (random >> 3) % rotation.peers;
            *((start + EthHdr::LEN + offset_of!(Ipv4Hdr, dst_addr)) as *mut u32) = address.to_be();
        }
    }
    // SAFETY: a program of the same type, whoever put it there.
    unsafe { NEXT.tail_call(&skb, 0) };
    0
}

/// Gives the packet what a test run's context has no place for, then goes on with `NEXT`. When the same packet comes by
/// again, looks at what became of that.
#[classifier]
pub fn carry(skb: TcContext) -> i32 {
    let Some(carriage) = CARRIAGE.get_ptr_mut(0) else {
        return 0;
    };
    // SAFETY: the row is ours alone during a test run; the others are context fields that TC programs may read and
    // write, and a helper that writes one of them.
    unsafe {
        let carriage = &mut *carriage;
        if carriage.looks != 0 && carriage.runs != 0 {
            carriage.hash_after = (*skb.skb.skb).hash;
            carriage.tag_after = (*skb.skb.skb).tc_index;
            return TC_ACT_UNSPEC;
        }
        carriage.runs = 1;
        if carriage.hash != 0 {
            bpf_set_hash(skb.skb.skb, carriage.hash);
        }
        (*skb.skb.skb).tc_index = carriage.tag;
        NEXT.tail_call(&skb, 0);
    }
    0
}

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// The licence that the kernel reads.
#[cfg(target_arch = "bpf")]
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[cfg(not(target_arch = "bpf"))]
fn main() {}
