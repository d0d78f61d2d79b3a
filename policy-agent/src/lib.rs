//! Portcullis on a node: datastores, endpoints, dataplane, and what operators talk to.

pub mod agent;
pub mod cli;
pub mod cni;
pub mod completion;
pub mod config;
pub mod ctl;
pub mod dataplane;
pub mod datastore;
pub mod endpoint;
pub mod http;
pub mod logging;
pub mod memory;
pub mod metrics;
pub mod report;
pub mod uninstall;
pub mod usage;
