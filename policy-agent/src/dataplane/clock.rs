//! The kernel's tick rate.

use nix::time::{ClockId, clock_getres};

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
}
