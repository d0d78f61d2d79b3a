//! Waiting until no packet is in the programs that was there before.

use std::io;

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

/// Waits for an RCU grace period: TC programs run inside an RCU read section, so when this returns,
/// every packet that could have looked at older rows is done. Takes some milliseconds.
///
/// # Errors
///
/// When the kernel has neither of the ways to wait.
pub fn wait() -> io::Result<()> {
    const MEMBARRIER_CMD_GLOBAL: libc::c_int = 1;
    // SAFETY: a system call without pointers. For this command the kernel runs synchronize_rcu().
    let done = unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0) };
    if done == 0 { Ok(()) } else { visit_every_cpu() }
}

/// For kernels without membarrier, or with nohz_full: a program is never preempted, so once this
/// thread ran on a CPU, whatever program ran there before has ended.
fn visit_every_cpu() -> io::Result<()> {
    let this_thread = Pid::from_raw(0);
    let allowed = sched_getaffinity(this_thread)?;
    for cpu in 0..CpuSet::count() {
        let mut only = CpuSet::new();
        only.set(cpu)?;
        // CPUs that are offline or outside our cpuset are refused; the latter still run programs, but
        // a cpuset for the agent is not supported on such a kernel.
        let _ = sched_setaffinity(this_thread, &only);
    }
    sched_setaffinity(this_thread, &allowed)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    #[test]
    fn both_ways_return() {
        super::wait().expect("grace period");
        super::visit_every_cpu().expect("visit");
    }
}
