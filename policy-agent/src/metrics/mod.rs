//! What Prometheus scrapes: `/metrics` in OpenMetrics text.
//!
//! ```text
//! agent's loop --Snapshot--┐
//! flow tables ---counted---┼--> families --> text
//! /proc -------------------┘
//! ```
//!
//! Direction of dependency: reads what others own and changes nothing. Invariants: a scrape takes no
//! lock that the agent's loop needs; every metric and every value of its labels is there from the
//! start; no label is a name that users choose. `docs/reference/metrics.md` describes each.

mod families;
mod flow_use;
mod latency;
mod process;
mod scrape;
mod snapshot;

pub use latency::Latency;
pub use scrape::{Scraper, Unavailable};
pub use snapshot::{Lost, Snapshot};

/// Media type of the text.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
