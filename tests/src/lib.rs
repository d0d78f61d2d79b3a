//! What the tests on the real kernel share.

#![expect(
    clippy::unwrap_used,
    reason = "a test's set-up that fails should fail the test, where it stands"
)]

pub mod apiserver;
pub mod bench;
pub mod demo;
pub mod netns;
pub mod objects;
pub mod packet;
pub mod raw;
pub mod tables_by_hand;
pub mod testrun;
