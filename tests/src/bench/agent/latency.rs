//! From a change in the API to the verdict: by packets, and by the agent's own word.

use std::time::Instant;

use anyhow::{Context as _, Result, ensure};

use super::super::report::Row;
use super::below;
use super::wire::Wire;
use super::world::World;
use crate::netns::{Agent, Page, get};

/// Changes of each kind, half of them to allow and half to deny.
const CHANGES: usize = 200;

/// Marks, in milliseconds.
const MEDIAN: f64 = 10.0;
const NEARLY_ALL: f64 = 50.0;

const HISTOGRAM: &str = "portcullis_event_to_enforced_seconds_bucket";

/// Measures changes of a policy and of a peer's labels. Each is made as soon as the one before is in
/// force, which is when the agent is still busy with what is left to do after that one.
pub(super) fn measure(world: &World, agent: &Agent<'_>) -> Result<Vec<Row>> {
    eprintln!("{CHANGES} changes of a policy, {CHANGES} of a pod");
    let mut wire = Wire::new(&world.client, &world.server)?;
    wire.opens()?;
    let before = buckets(&get(world.node.netns(), "/metrics")?)?;
    let policy = flips(&mut wire, |app| world.put_gate(app))?;
    world.put_gate("client")?;
    wire.opens()?;
    let labels = flips(&mut wire, |app| world.put_client(app))?;
    agent.sync()?;
    let after = buckets(&get(world.node.netns(), "/metrics")?)?;
    let mut rows = Vec::new();
    for (what, samples) in [("policy", &policy), ("labels", &labels)] {
        rows.push(below(
            MEDIAN,
            format!("{what} changed to packet's verdict, median"),
            quantile(samples, 0.5),
            "ms",
        ));
        rows.push(below(
            NEARLY_ALL,
            format!("{what} changed to packet's verdict, 99%"),
            quantile(samples, 0.99),
            "ms",
        ));
    }
    for (what, share, mark) in [("median", 0.5, MEDIAN), ("99%", 0.99, NEARLY_ALL)] {
        rows.push(below(
            mark,
            format!("event to enforced by agent's metric, {what}"),
            histogram_quantile(&before, &after, share)? * 1e3,
            "ms",
        ));
    }
    Ok(rows)
}

/// Denies and allows by turns; milliseconds from when the API server has a change to the first packet
/// with the new verdict, sorted.
fn flips(wire: &mut Wire, change: impl Fn(&str) -> Result<()>) -> Result<Vec<f64>> {
    let mut samples = Vec::with_capacity(CHANGES);
    for number in 0..CHANGES {
        let allow = number % 2 == 1;
        let changed = Instant::now();
        change(if allow { "client" } else { "nobody" })?;
        let seen = if allow { wire.opens()? } else { wire.closes()? };
        // A packet may be dropped while the change is still being told.
        let passed = seen.saturating_duration_since(changed);
        samples.push(passed.as_secs_f64() * 1e3);
    }
    samples.sort_unstable_by(f64::total_cmp);
    Ok(samples)
}

/// Of sorted samples, that below which this share of them is.
fn quantile(sorted: &[f64], share: f64) -> f64 {
    let rank = (sorted.len() as f64 * share).ceil() as usize;
    sorted[rank.clamp(1, sorted.len()) - 1]
}

/// The histogram's buckets: upper end in seconds, and how many are at most that.
fn buckets(page: &Page) -> Result<Vec<(f64, f64)>> {
    let buckets: Vec<(f64, f64)> = page
        .series(HISTOGRAM)
        .map(|line| {
            let (name, count) = line.rsplit_once(' ')?;
            let end = name.split('"').nth(1)?;
            Some((end.parse().ok()?, count.parse().ok()?))
        })
        .collect::<Option<_>>()
        .with_context(|| format!("{HISTOGRAM} in\n{}", page.text))?;
    ensure!(!buckets.is_empty(), "no {HISTOGRAM} in\n{}", page.text);
    Ok(buckets)
}

/// As Prometheus estimates it: within a bucket, evenly spread.
fn histogram_quantile(before: &[(f64, f64)], after: &[(f64, f64)], share: f64) -> Result<f64> {
    let counts: Vec<(f64, f64)> = before
        .iter()
        .zip(after)
        .map(|((end, before), (_, after))| (*end, after - before))
        .collect();
    let all = counts.last().map_or(0.0, |(_, count)| *count);
    ensure!(
        all >= CHANGES as f64,
        "the agent counted {all} changes only"
    );
    let wanted = all * share;
    let (mut start, mut below) = (0.0, 0.0);
    for (end, count) in counts {
        if count >= wanted {
            // Beyond the last end nothing is known.
            let end = if end.is_finite() { end } else { start };
            return Ok(start + (end - start) * (wanted - below) / (count - below));
        }
        (start, below) = (end, count);
    }
    Ok(start)
}
