//! The compiler's rows: 10,000 policies and 100,000 pods, of which 100 are local.

use std::sync::Arc;
use std::time::Instant;

use anyhow::Result;
use policy_core::model::Change;
use policy_core::{Compiler, Limits, synthetic};

use super::process::memory;
use super::report::{Mark, Row};

pub(super) fn measure() -> Result<Vec<Row>> {
    let changes = synthetic::cluster(10_000, 100_000, 100);
    let before = memory("self", "VmRSS")?;
    let start = Instant::now();
    let mut compiler = Compiler::new(Limits::default());
    let plan = compiler.apply(changes);
    let seconds = start.elapsed().as_secs_f64();
    eprintln!("compiled {} operations", plan.ops.len() + plan.stale.len());
    // The changes' own objects are handed over, not copied: what grew is the compiler's and the plan's.
    let grown = (memory("self", "VmRSS")? - before) / 1e6;
    drop(plan);
    let mut samples: Vec<f64> = Vec::new();
    for index in (0..100_000).step_by(97) {
        let mut pod = synthetic::pod(index);
        Arc::make_mut(&mut pod.labels)
            .insert("app".into(), format!("app-{}", index % 7).as_str().into());
        let start = Instant::now();
        let plan = compiler.apply(vec![Change::Pod(pod)]);
        samples.push(start.elapsed().as_secs_f64() * 1e6);
        drop(plan);
    }
    samples.sort_unstable_by(f64::total_cmp);
    let row = |name: &str, median, unit, limit| Row {
        name: name.to_owned(),
        median,
        unit,
        mark: Some(Mark::Below(limit)),
    };
    Ok(vec![
        row(
            "compile 10k policies, 100k pods, 100 local",
            seconds,
            "s",
            2.0,
        ),
        row("memory grown by that", grown, "MB", 200.0),
        row(
            "one pod event, median",
            samples[samples.len() / 2],
            "us",
            1000.0,
        ),
        row(
            "one pod event, worst of 1031",
            samples[samples.len() - 1],
            "us",
            1000.0,
        ),
    ])
}
