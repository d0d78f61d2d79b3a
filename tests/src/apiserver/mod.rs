//! A Kubernetes API server within the test's process: real HTTPS, objects in memory, and faults at will.
//!
//! ```text
//! listener --> request --> path, query --> list (pages), watcher --.
//!                                     '--> store (object)  <-------' history, versions
//! ```
//!
//! What it shows: lists in pages over one snapshot, watches that go on from a version, bookmarks, 410
//! Gone, conflicts, 401, 403, the Namespace's name as its label, the status as a resource of its own.
//! What it leaves out: defaulting and validation of specs, graceful deletion, authorisation by role,
//! compression, and every encoding but JSON. Tests that depend on those need the real one ([`RealServer`]).
//! [`Api`] is either.

mod api;
mod failure;
mod filter;
mod kubeconfig;
mod list;
mod listener;
mod object;
mod pages;
mod path;
mod query;
mod real;
mod real_client;
mod request;
mod resource;
mod server;
mod shared;
mod store;
mod tls;
mod watcher;

pub use api::Api;
pub use failure::Failure;
pub use real::RealServer;
pub use resource::Resource;
pub use server::{ApiServer, ApiServerConfig, Gone};
pub use shared::Served;
pub use tls::Identity;
