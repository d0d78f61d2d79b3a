//! What the agent serves: health over TCP, its local interface over a unix socket; and the client of
//! the latter.

pub mod client;
mod cni;
pub mod health;
pub mod local;
