//! Packet tables: a packet, the tables it meets, the verdict, through the real object.
//!
//! Every row of LESSONS that speaks of a packet has a row here.

#![expect(
    clippy::unwrap_used,
    reason = "a set-up that fails should fail its test, where it stands"
)]

#[path = "packet_table/world.rs"]
mod world;

#[path = "packet_table/counts.rs"]
mod counts;
#[path = "packet_table/flows.rs"]
mod flows;
#[path = "packet_table/fragments.rs"]
mod fragments;
#[path = "packet_table/hostile.rs"]
mod hostile;
#[path = "packet_table/icmp.rs"]
mod icmp;
#[path = "packet_table/link.rs"]
mod link;
#[path = "packet_table/policies.rs"]
mod policies;
#[path = "packet_table/services.rs"]
mod services;
#[path = "packet_table/tables.rs"]
mod tables;
