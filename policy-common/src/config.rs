//! What user space tells the programs once, when it loads them.

use bytemuck::{Pod, Zeroable};

/// Load-time constants, placed in read-only data so that the verifier folds them and removes the
/// code of what is off. All times are in ticks of the programs' clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct DatapathConfig {
    /// How long flows live without a packet.
    pub timeouts: Timeouts,
    /// Length of the drop events' rate window.
    pub event_window: u32,
    /// Drop events allowed per CPU and window; 0 turns events off.
    pub event_limit: u32,
    /// Number of rows of the `endpoints` array.
    pub endpoint_slots: u32,
    /// How many ticks a second has.
    pub second: u32,
    /// How far jiffies are shifted to the right to be ticks.
    pub clock_shift: u32,
    /// Non-zero turns on aya-log lines for slow-path decisions.
    pub log_decisions: u32,
}

/// Idle timeouts by protocol and state, in ticks; each below 2^31.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Timeouts {
    /// TCP and SCTP: opened, no answer yet.
    pub opening: u32,
    /// TCP and SCTP: both sides seen.
    pub established: u32,
    /// TCP after a FIN, SCTP after a SHUTDOWN.
    pub closing: u32,
    /// TCP after a RST, SCTP after an ABORT.
    pub reset: u32,
    /// UDP, no answer yet.
    pub udp_one_way: u32,
    /// UDP, both sides seen.
    pub udp_two_way: u32,
    /// ICMP queries, either state.
    pub icmp: u32,
    /// Every other protocol, either state.
    pub other: u32,
    /// TCP and SCTP flows that a policy change cut.
    pub revoked: u32,
    /// Fragments after their first one.
    pub fragment: u32,
}

impl Timeouts {
    /// The defaults, those of `nf_conntrack`, in seconds
    /// (<https://docs.kernel.org/networking/nf_conntrack-sysctl.html>).
    pub const SECONDS: Self = Self {
        opening: 120,
        established: 432_000,
        closing: 120,
        reset: 10,
        udp_one_way: 30,
        udp_two_way: 180,
        icmp: 30,
        other: 600,
        revoked: 1_800,
        fragment: 30,
    };

    /// These times, taken as seconds, in ticks of a clock of `hz` jiffies a second that are shifted by `shift`; capped so
    /// that wrapping 32-bit comparison stays right.
    #[must_use]
    pub const fn to_ticks(self, hz: u32, shift: u32) -> Self {
        const fn scale(seconds: u32, (hz, shift): (u32, u32)) -> u32 {
            let ticks = (seconds as u64 * hz as u64).div_ceil(1 << shift);
            if ticks > i32::MAX as u64 {
                i32::MAX as u32
            } else {
                ticks as u32
            }
        }
        let hz = (hz, shift);
        Self {
            opening: scale(self.opening, hz),
            established: scale(self.established, hz),
            closing: scale(self.closing, hz),
            reset: scale(self.reset, hz),
            udp_one_way: scale(self.udp_one_way, hz),
            udp_two_way: scale(self.udp_two_way, hz),
            icmp: scale(self.icmp, hz),
            other: scale(self.other, hz),
            revoked: scale(self.revoked, hz),
            fragment: scale(self.fragment, hz),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_stay_below_half_the_clock() {
        let at_1000 = Timeouts::SECONDS.to_ticks(1000, 0);
        assert_eq!(at_1000.established, 432_000_000);
        assert_eq!(at_1000.udp_one_way, 30_000);
        assert_eq!(Timeouts::SECONDS.to_ticks(1000, 6).udp_one_way, 469);
        let long = Timeouts {
            established: u32::MAX,
            ..Timeouts::SECONDS
        };
        assert_eq!(long.to_ticks(1000, 0).established, i32::MAX as u32);
    }
}
