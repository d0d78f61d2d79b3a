//! `policyctl` over all pods of the cluster, from a machine with a kubeconfig and nothing else.

use std::time::Instant;

use anyhow::{Result, ensure};

use super::super::report::Row;
use super::below;
use super::world::World;
use crate::netns::binary;

/// How often it is run; odd.
const RUNS: usize = 5;

/// The mark, in seconds.
const MARK: f64 = 1.0;

/// The whole run of the program, for at least this many pods.
pub(super) fn measure(world: &World, pods: usize) -> Result<Row> {
    let kubeconfig = world.kubeconfig()?;
    let mut samples = Vec::with_capacity(RUNS);
    for _ in 0..RUNS {
        let mut command = world.node.netns().command(binary("policyctl")?);
        command
            .args(["get", "workloadendpoints"])
            .env_clear()
            .env("HOME", world.node.directory())
            .env("KUBECONFIG", &kubeconfig);
        let began = Instant::now();
        let output = command.output()?;
        samples.push(began.elapsed().as_secs_f64());
        let lines = output.stdout.iter().filter(|byte| **byte == b'\n').count();
        ensure!(
            output.status.success() && lines > pods,
            "policyctl get workloadendpoints printed {lines} lines: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    samples.sort_unstable_by(f64::total_cmp);
    let name = "policyctl get workloadendpoints, 10k pods".to_owned();
    Ok(below(MARK, name, samples[RUNS / 2], "s"))
}
