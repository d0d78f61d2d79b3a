//! The table that holds a namespace. nft(8) shows it so:
//!
//! ```text
//! table inet portcullis-hold {
//!     chain in {
//!         type filter hook prerouting priority -450; policy drop;
//!         meta nfproto ipv6 meta l4proto ipv6-icmp @th,0,8 >= 130 @th,0,8 <= 136 accept
//!         meta nfproto ipv6 meta l4proto ipv6-icmp @th,0,8 143 accept
//!     }
//!     chain out {
//!         type filter hook output priority -450; policy drop; ... the same
//!     }
//! }
//! ```
//!
//! Types 130 to 136 and 143 are the link's own affairs: multicast listener reports, router and neighbour discovery. The kernel
//! takes them from the link only. IPv4 has ARP for that, which is no IP.

use super::netlink::{APPEND, Attributes, CREATE, Message};

/// The table's name in every pod's namespace while it is held.
const TABLE: &str = "portcullis-hold";

/// Before connection tracking puts fragments together (-400), and so before everything that others do.
const PRIORITY: i32 = -450;

// Kinds of messages (`NFT_MSG_*`).
const NEW_TABLE: u16 = 0;
const GET_TABLE: u16 = 1;
const DELETE_TABLE: u16 = 2;
const NEW_CHAIN: u16 = 3;
const NEW_RULE: u16 = 6;

// Attributes of tables, chains and rules (`NFTA_*`).
const TABLE_NAME: u16 = 1;
const CHAIN_TABLE: u16 = 1;
const CHAIN_NAME: u16 = 3;
const CHAIN_HOOK: u16 = 4;
const CHAIN_POLICY: u16 = 5;
const CHAIN_TYPE: u16 = 7;
const HOOK_NUMBER: u16 = 1;
const HOOK_PRIORITY: u16 = 2;
const RULE_TABLE: u16 = 1;
const RULE_CHAIN: u16 = 2;
const RULE_EXPRESSIONS: u16 = 4;
const LIST_ELEMENT: u16 = 1;
const EXPRESSION_NAME: u16 = 1;
const EXPRESSION_DATA: u16 = 2;

// Values of those.
const DROP: u32 = 0;
const ACCEPT: u32 = 1;
const HOOK_PREROUTING: u32 = 0;
const HOOK_OUTPUT: u32 = 3;

/// The register that takes a verdict.
const REGISTER_VERDICT: u32 = 0;
/// The one that values are compared in.
const REGISTER: u32 = 1;

/// `NFT_META_NFPROTO`.
const META_FAMILY: u32 = 15;
/// `NFT_META_L4PROTO`.
const META_PROTOCOL: u32 = 16;
/// `NFPROTO_IPV6`.
const IPV6: u8 = 10;
/// `IPPROTO_ICMPV6`.
const ICMPV6: u8 = 58;
/// Multicast listener query, report and done; router solicitation and advertisement; neighbour solicitation and
/// advertisement.
const LINK_CONTROL: [u8; 2] = [130, 136];
/// Multicast listener report, version 2.
const LISTENER_REPORT: [u8; 2] = [143, 143];

/// How a register compares (`NFT_CMP_*`).
#[derive(Clone, Copy)]
enum Compare {
    Equal = 0,
    AtMost = 3,
    AtLeast = 5,
}

/// Asks for the table.
pub(super) fn find() -> Message {
    Message::new(GET_TABLE, 0, Attributes::default().text(TABLE_NAME, TABLE))
}

/// Makes it, with chains and rules.
pub(super) fn create() -> Vec<Message> {
    let table = Attributes::default().text(TABLE_NAME, TABLE);
    let mut messages = vec![Message::new(NEW_TABLE, CREATE, table)];
    for (chain, hook) in [("in", HOOK_PREROUTING), ("out", HOOK_OUTPUT)] {
        let hook = Attributes::default()
            .number(HOOK_NUMBER, hook)
            .bytes(HOOK_PRIORITY, &PRIORITY.to_be_bytes());
        let attributes = Attributes::default()
            .text(CHAIN_TABLE, TABLE)
            .text(CHAIN_NAME, chain)
            .nested(CHAIN_HOOK, &hook)
            .number(CHAIN_POLICY, DROP)
            .text(CHAIN_TYPE, "filter");
        messages.push(Message::new(NEW_CHAIN, CREATE, attributes));
        for types in [LINK_CONTROL, LISTENER_REPORT] {
            let attributes = Attributes::default()
                .text(RULE_TABLE, TABLE)
                .text(RULE_CHAIN, chain)
                .nested(RULE_EXPRESSIONS, &accepts(types));
            messages.push(Message::new(NEW_RULE, CREATE | APPEND, attributes));
        }
    }
    messages
}

/// Removes it with all that is in it.
pub(super) fn delete() -> Message {
    Message::new(
        DELETE_TABLE,
        0,
        Attributes::default().text(TABLE_NAME, TABLE),
    )
}

/// Expressions that accept ICMPv6 of these types, from the first to the last.
fn accepts([first, last]: [u8; 2]) -> Attributes {
    let expressions = [
        meta(META_FAMILY),
        compare(Compare::Equal, IPV6),
        meta(META_PROTOCOL),
        compare(Compare::Equal, ICMPV6),
        icmp_type(),
        compare(Compare::AtLeast, first),
        compare(Compare::AtMost, last),
        accept(),
    ];
    expressions
        .iter()
        .fold(Attributes::default(), |list, expression| {
            list.nested(LIST_ELEMENT, expression)
        })
}

fn expression(name: &str, data: &Attributes) -> Attributes {
    Attributes::default()
        .text(EXPRESSION_NAME, name)
        .nested(EXPRESSION_DATA, data)
}

/// Loads what the kernel knows of a packet.
fn meta(key: u32) -> Attributes {
    let (register, which) = (1, 2);
    let data = Attributes::default()
        .number(register, REGISTER)
        .number(which, key);
    expression("meta", &data)
}

/// Loads the first byte behind the IP headers.
fn icmp_type() -> Attributes {
    let (register, base, offset, length) = (1, 2, 3, 4);
    const TRANSPORT: u32 = 2;
    let data = Attributes::default()
        .number(register, REGISTER)
        .number(base, TRANSPORT)
        .number(offset, 0)
        .number(length, 1);
    expression("payload", &data)
}

/// Goes on only where the register compares so.
fn compare(how: Compare, value: u8) -> Attributes {
    let (register, operation, data) = (1, 2, 3);
    const VALUE: u16 = 1;
    let value = Attributes::default().bytes(VALUE, &[value]);
    let data = Attributes::default()
        .number(register, REGISTER)
        .number(operation, how as u32)
        .nested(data, &value);
    expression("cmp", &data)
}

fn accept() -> Attributes {
    let (register, data) = (1, 2);
    const VERDICT: u16 = 2;
    const CODE: u16 = 1;
    let code = Attributes::default().number(CODE, ACCEPT);
    let verdict = Attributes::default().nested(VERDICT, &code);
    let data = Attributes::default()
        .number(register, REGISTER_VERDICT)
        .nested(data, &verdict);
    expression("immediate", &data)
}
