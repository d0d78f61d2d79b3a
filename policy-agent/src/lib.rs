//! Portcullis on a node: datastores, endpoints, dataplane, and what operators talk to.

pub mod config;
pub mod dataplane;
pub mod datastore;
pub mod endpoint;
pub mod logging;
pub mod report;
