//! Load-time constants: user space writes them into read-only data before the programs are verified,
//! so that the verifier folds them and removes the code of what is off.

use policy_common::config::{DatapathConfig, Timeouts};
use policy_common::map;

/// Written by user space at load, under this name.
#[unsafe(no_mangle)]
static CONFIG: DatapathConfig = DatapathConfig {
    // Placeholders that are right for a kernel of 250 jiffies a second.
    timeouts: Timeouts::SECONDS.to_ticks(250, 0),
    event_window: 250,
    event_limit: 0,
    endpoint_slots: map::ENDPOINTS.capacity,
    second: 250,
    clock_shift: 0,
    log_decisions: 0,
};

macro_rules! constant {
    ($($field:ident).+) => {
        // SAFETY: CONFIG is a plain static; volatile keeps the compiler from folding the placeholder.
        unsafe { core::ptr::read_volatile(&raw const CONFIG.$($field).+) }
    };
}

/// Timeout of a flow, in ticks.
#[inline(always)]
pub(crate) fn flow_timeout(protocol: u8, state: u8) -> u32 {
    use policy_common::flow::{FlowState, protocol as number};
    // As `policy_common::flow::timeout`, which is tested on the host, but reading only the one field.
    match protocol {
        number::TCP | number::SCTP => match FlowState::of(state) {
            FlowState::TWO_WAY => constant!(timeouts.established),
            FlowState::ONE_WAY => constant!(timeouts.opening),
            FlowState::CLOSING => constant!(timeouts.closing),
            FlowState::REVOKED => constant!(timeouts.revoked),
            _ => constant!(timeouts.reset),
        },
        number::UDP => match state {
            FlowState::ONE_WAY => constant!(timeouts.udp_one_way),
            _ => constant!(timeouts.udp_two_way),
        },
        number::ICMP | number::ICMPV6 => constant!(timeouts.icmp),
        _ => constant!(timeouts.other),
    }
}

/// How long later fragments may follow the first, in ticks.
#[inline(always)]
pub(crate) fn fragment_timeout() -> u32 {
    constant!(timeouts.fragment)
}

/// Length of the events' rate window in ticks.
#[inline(always)]
pub(crate) fn event_window() -> u32 {
    constant!(event_window)
}

/// Events allowed per CPU and window; 0 = events are off.
#[inline(always)]
pub(crate) fn event_limit() -> u32 {
    constant!(event_limit)
}

/// Ticks of [`crate::event::now`] in a second.
#[inline(always)]
pub(crate) fn second() -> u32 {
    constant!(second)
}

/// How far jiffies are shifted to be ticks.
#[inline(always)]
pub(crate) fn clock_shift() -> u32 {
    constant!(clock_shift)
}

/// Rows of the `endpoints` array.
#[inline(always)]
pub(crate) fn endpoint_slots() -> u32 {
    constant!(endpoint_slots)
}

/// Whether slow-path decisions are logged through aya-log.
#[inline(always)]
pub(crate) fn log_decisions() -> bool {
    constant!(log_decisions) != 0
}
