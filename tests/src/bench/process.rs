//! What the kernel says of a process.

use anyhow::{Context as _, Result};

/// One of the fields of `/proc/PID/status` that are sizes, in bytes.
pub(super) fn memory(process: &str, field: &str) -> Result<f64> {
    let path = format!("/proc/{process}/status");
    let status = std::fs::read_to_string(&path).with_context(|| path.clone())?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))
        .with_context(|| format!("{field} in {path}"))?;
    let kilobytes = line.split_whitespace().next().context("a size")?;
    Ok(kilobytes.parse::<f64>()? * 1024.0)
}
