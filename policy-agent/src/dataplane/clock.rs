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

/// How far jiffies are shifted to be ticks of the programs' clock: at least twelve of them a second, and few enough that
/// 32 bits last for years.
pub(super) fn shift(hz: u32) -> u32 {
    const TICKS: u32 = 12;
    (hz.max(TICKS) / TICKS).ilog2()
}

/// The programs' clock, or up to some seconds less. Jiffies begin 300 s before 32 bits of them are full, when the monotonic clock
/// begins, and go on with that one.
pub(super) fn ticks() -> u32 {
    // They stand still for a moment while the kernel starts.
    const SLACK: i64 = 2;
    const BEGINNING: i64 = 300 + SLACK;
    let hz = i64::from(jiffies_per_second());
    let Ok(now) = clock_gettime(ClockId::CLOCK_MONOTONIC) else {
        return 0;
    };
    let since = (now.tv_sec() - BEGINNING) * hz + now.tv_nsec() * hz / 1_000_000_000;
    (((1 << 32) + since) >> shift(jiffies_per_second())) as u32
}

#[cfg(test)]
mod tests {
    #[test]
    fn ticks_are_neither_long_nor_many() {
        for hz in [100, 250, 300, 1000] {
            let ticks = hz >> super::shift(hz);
            assert!((12..25).contains(&ticks), "{hz}: {ticks}");
        }
    }

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
        let ours = super::ticks();
        let kernels = list.lines().find_map(|line| line.strip_prefix("jiffies: "));
        let kernels: u64 = kernels.expect("a line").parse().expect("a number");
        let hz = super::jiffies_per_second();
        let less = ((kernels >> super::shift(hz)) as u32).wrapping_sub(ours);
        assert!(less < (5 * hz) >> super::shift(hz), "{less} less");
    }
}
