//! The agent's own process, under the names that Prometheus's client libraries agree on.

use procfs::ProcResult;
use procfs::process::{LimitValue, Process};
use procfs::{CurrentSI as _, KernelStats, WithCurrentSystemInfo as _};

/// What `/proc/self` says.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct ProcessUse {
    /// CPU time, in seconds, user and system.
    pub(super) cpu: f64,
    /// Memory that is not swapped out, in bytes.
    pub(super) resident: u64,
    /// Open file descriptors.
    pub(super) open_fds: usize,
    /// The limit of the latter.
    pub(super) max_fds: u64,
    /// When it started, in seconds since 1970.
    pub(super) started: f64,
}

impl ProcessUse {
    pub(super) fn read() -> ProcResult<Self> {
        let process = Process::myself()?;
        let stat = process.stat()?;
        let hertz = procfs::ticks_per_second() as f64;
        let max_fds = process.limits()?.max_open_files.soft_limit;
        Ok(Self {
            cpu: (stat.utime + stat.stime) as f64 / hertz,
            resident: stat.rss_bytes().get(),
            open_fds: process.fd_count()?,
            max_fds: match max_fds {
                // Beyond this, the text format has no whole numbers.
                LimitValue::Unlimited => i64::MAX.unsigned_abs(),
                LimitValue::Value(limit) => limit,
            },
            started: KernelStats::current()?.btime as f64 + stat.starttime as f64 / hertz,
        })
    }
}
