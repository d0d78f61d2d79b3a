//! Fragments of both families.

use policy_common::verdict::Reason::{
    Established, FragmentUnknown, Malformed, PolicyAllowed, PolicyDenied,
};
use portcullis_tests::packet::Kind::{Tcp, Udp};
use portcullis_tests::packet::flags::{ACK, SYN};
use portcullis_tests::packet::{
    ETH, as_ipv4_fragment, ipv6_fragment, set_ipv4_length, with_ipv6_extensions,
};

use crate::world::{Egress, FAMILIES, FRIEND, Ingress, STRANGER, World, incoming, outgoing};

const FRAGMENT_HEADER: u8 = 44;

/// A fragment of `whole`, in the form of its family.
pub(crate) fn fragment(
    family: usize,
    whole: &[u8],
    offset_units: u16,
    more: bool,
    id: u16,
) -> Vec<u8> {
    if family == 0 {
        as_ipv4_fragment(whole, offset_units, more, id)
    } else {
        let header = ipv6_fragment(offset_units, more, u32::from(id));
        with_ipv6_extensions(whole, &[(FRAGMENT_HEADER, header)])
    }
}

#[test]
fn later_fragments_follow_the_first() {
    for family in FAMILIES {
        let mut world = World::new();
        let whole = incoming(FRIEND, family, 1000, 53, Udp);
        let first = fragment(family, &whole, 0, true, 7);
        let later = fragment(family, &whole, 100, false, 7);
        let middle = fragment(family, &whole, 50, true, 7);
        world.expect("before the first", Ingress, &later, FragmentUnknown);
        world.expect("first", Ingress, &first, PolicyAllowed);
        world.expect("middle", Ingress, &middle, Established);
        world.expect("last", Ingress, &later, Established);
        let other = fragment(family, &whole, 100, false, 8);
        world.expect("another datagram", Ingress, &other, FragmentUnknown);
        let answer = outgoing(FRIEND, family, 53, 1000, Udp);
        world.expect("answer", Egress, &answer, Established);
        let first = fragment(family, &whole, 0, true, 9);
        let later = fragment(family, &whole, 100, false, 9);
        world.expect("first, established", Ingress, &first, Established);
        world.expect("later, established", Ingress, &later, Established);
    }
}

#[test]
fn a_denied_datagram_is_denied_in_all_its_parts() {
    for family in FAMILIES {
        let mut world = World::new();
        let whole = incoming(STRANGER, family, 1000, 53, Udp);
        let first = fragment(family, &whole, 0, true, 7);
        let later = fragment(family, &whole, 100, false, 7);
        world.expect("first", Ingress, &first, PolicyDenied);
        world.expect("later", Ingress, &later, FragmentUnknown);
    }
}

#[test]
fn directions_do_not_share_fragments() {
    let mut world = World::new();
    let whole = incoming(FRIEND, 0, 1000, 53, Udp);
    world.expect(
        "first in",
        Ingress,
        &fragment(0, &whole, 0, true, 7),
        PolicyAllowed,
    );
    let outward = outgoing(FRIEND, 0, 1000, 53, Udp);
    world.expect(
        "later out",
        Egress,
        &fragment(0, &outward, 10, false, 7),
        FragmentUnknown,
    );
}

#[test]
fn fragments_that_would_rewrite_a_judged_header() {
    for family in FAMILIES {
        let mut world = World::new();
        let whole = incoming(FRIEND, family, 1000, 80, Tcp(SYN));
        let first = fragment(family, &whole, 0, true, 7);
        world.expect("first", Ingress, &first, PolicyAllowed);
        for units in [1, 2] {
            let overlapping = fragment(family, &whole, units, false, 7);
            world.expect("overlaps", Ingress, &overlapping, Malformed);
        }
        let later = fragment(family, &whole, 3, false, 7);
        world.expect("past the header", Ingress, &later, Established);
    }
    let mut world = World::new();
    let whole = incoming(FRIEND, 0, 1000, 80, Tcp(ACK));
    let mut tiny = fragment(0, &whole, 0, true, 8);
    tiny.truncate(ETH + 20 + 8);
    set_ipv4_length(&mut tiny);
    world.expect(
        "a first fragment without its flags",
        Ingress,
        &tiny,
        Malformed,
    );
}

#[test]
fn an_atomic_fragment_is_a_whole_datagram() {
    let mut world = World::new();
    let whole = incoming(FRIEND, 1, 1000, 80, Tcp(SYN));
    let atomic = fragment(1, &whole, 0, false, 7);
    world.expect("allowed", Ingress, &atomic, PolicyAllowed);
    let whole = incoming(FRIEND, 1, 1000, 81, Tcp(SYN));
    world.expect(
        "denied",
        Ingress,
        &fragment(1, &whole, 0, false, 7),
        PolicyDenied,
    );
}
