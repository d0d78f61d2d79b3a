//! The agent's rows: the real agent on a node, beside a large cluster in the tests' own API server.

mod cluster;
mod ctl;
mod latency;
mod memory;
mod wire;
mod world;

use anyhow::Result;

use super::report::{Mark, Row};
use world::World;

/// Policies, however many pods there are.
const POLICIES: usize = 1_000;

pub(super) fn measure() -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    {
        let world = World::new(10_000, POLICIES)?;
        let agent = world.agent()?;
        rows.extend(memory::measure(&agent, "10k", 40.0)?);
        rows.extend(latency::measure(&world, &agent)?);
        rows.push(ctl::measure(&world, 10_000)?);
    }
    let world = World::new(100_000, POLICIES)?;
    let agent = world.agent()?;
    rows.extend(memory::measure(&agent, "100k", 150.0)?);
    Ok(rows)
}

fn below(limit: f64, name: String, median: f64, unit: &'static str) -> Row {
    Row {
        name,
        median,
        unit,
        mark: Some(Mark::Below(limit)),
    }
}
