//! The same verdicts in every surrounding: one table of cases ([`cases`]), one of surroundings, and every case in
//! every surrounding.
//!
//! What a case expects follows from the policies in [`cast`] alone. A surrounding says which cases it cannot have
//! (a rule that overwrites kube-proxy's bit has no masquerade), never that one comes out otherwise.
//!
//! `PORTCULLIS_SURROUNDINGS=all` runs every mark by every hook, tool and form in every kind of node, instead of each
//! mark by each hook once; `PORTCULLIS_RANDOM_ROUNDS=N` runs N rounds of random policies a surrounding.

#![expect(
    clippy::unwrap_used,
    reason = "a test's set-up that fails should fail the test, where it stands"
)]

mod cases;
mod cast;
mod devices;
mod flows;
mod foreign;
mod nodes;
mod programs;
mod random;
mod report;
mod world;
