//! The kernel's tick rate and count.

use nix::time::{ClockId, clock_getres, clock_gettime};

/// Jiffies per second of the running kernel: the resolution of the coarse clock is one jiffy
/// (clock_getres(2)). Falls back to 1000, the rate at which timeouts are the shortest they can be.
pub(super) fn jiffies_per_second() -> u32 {
    let Ok(resolution) = clock_getres(ClockId::CLOCK_MONOTONIC_COARSE) else {
        return 1000;
    };
    let nanoseconds = resolution.tv_sec() * 1_000_000_000 + resolution.tv_nsec();
    let hz = u32::try_from(1_000_000_000 / nanoseconds.max(1)).unwrap_or(0);
    if (24..=2000).contains(&hz) { hz } else { 1000 }
}

/// The lower 32 bits of the kernel's count of jiffies, or up to some seconds less: it begins at -300 s, when the monotonic clock begins,
/// and goes on with that one.
pub(super) fn jiffies() -> u32 {
    const BEGINNING: i64 = -300;
    // The count stands still for a moment while the kernel starts.
    const SLACK: i64 = 2;
    let hz = i64::from(jiffies_per_second());
    let Ok(now) = clock_gettime(ClockId::CLOCK_MONOTONIC) else {
        return 0;
    };
    let ticks = now.tv_nsec() * hz / 1_000_000_000;
    ((now.tv_sec() + BEGINNING - SLACK) * hz + ticks) as u32
}

#[cfg(test)]
mod tests {
    #[test]
    fn is_a_rate_that_linux_offers() {
        assert!([100, 250, 300, 1000].contains(&super::jiffies_per_second()));
    }

    #[test]
    fn the_count_is_the_kernels_or_little_less() {
        // Only root may read it.
        let Ok(list) = std::fs::read_to_string("/proc/timer_list") else {
            eprintln!("SKIPPED: /proc/timer_list cannot be read");
            return;
        };
        let before = super::jiffies();
        let kernels = list.lines().find_map(|line| line.strip_prefix("jiffies: "));
        let kernels: u64 = kernels.expect("a line").parse().expect("a number");
        let less = (kernels as u32).wrapping_sub(before).cast_signed();
        let second = super::jiffies_per_second().cast_signed();
        assert!((0..5 * second).contains(&less), "{less} less");
    }
}
