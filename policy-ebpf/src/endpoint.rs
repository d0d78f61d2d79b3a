//! Step 2: from the interface that a program runs on to the endpoint behind it.

use core::ptr;

use aya_ebpf::programs::TcContext;
use policy_common::endpoint::{Endpoint, Ifindex};
use policy_common::verdict::Direction;

use crate::config;
use crate::maps::{ENDPOINTS, ENDPOINTS_EXT, SLOTS};

/// What a verdict needs to know of an endpoint, read in the order that makes updates safe.
#[derive(Clone, Copy)]
pub(crate) struct Subject {
    /// The row; valid as long as the program runs.
    pub(crate) row: *const Endpoint,
    /// Its epoch, read before anything else.
    pub(crate) epoch: u32,
    /// Endpoint id.
    pub(crate) id: u32,
}

impl Subject {
    /// The same subject in a function of its own, from what was handed to it.
    #[inline(always)]
    pub(crate) fn again(row: *const Endpoint, epoch: u32) -> Self {
        // SAFETY: a row of a map.
        let id = unsafe { ptr::read_volatile(&raw const (*row).id) };
        Self { row, epoch, id }
    }

    /// The row's policy id for one direction; 0 = not isolated. Reads the table anew, and so never
    /// an older value than what belongs to `epoch`.
    #[inline(always)]
    pub(crate) fn policy(&self, direction: Direction) -> u32 {
        // SAFETY: `row` points into a map that outlives the program's run.
        unsafe {
            match direction {
                Direction::Ingress => ptr::read_volatile(&raw const (*self.row).ingress_policy),
                Direction::Egress => ptr::read_volatile(&raw const (*self.row).egress_policy),
            }
        }
    }

    /// Whether a policy selects the pod, for either direction.
    #[inline(always)]
    pub(crate) fn is_isolated(&self) -> bool {
        self.policy(Direction::Ingress) | self.policy(Direction::Egress) != 0
    }

    /// Whether the endpoint's flows are to be kept: a policy selects the pod, or nothing else knows who began them.
    #[inline(always)]
    pub(crate) fn tracks(&self) -> bool {
        self.is_isolated() || self.row().flags & Endpoint::RECORD != 0
    }

    /// Whether the pod may send what only routers do.
    #[inline(always)]
    pub(crate) fn is_router(&self) -> bool {
        self.row().flags & Endpoint::ROUTER != 0
    }

    /// The UDP ports at which this node decapsulates, four in one word.
    #[inline(always)]
    pub(crate) fn tunnel_ports(&self) -> u64 {
        // SAFETY: as in `policy`; the row is aligned to 8 bytes, and so are its ports.
        unsafe { ptr::read_volatile((&raw const (*self.row).tunnel_ports).cast::<u64>()) }
    }

    /// The row as a reference, for what never changes while the endpoint lives.
    #[inline(always)]
    pub(crate) fn row(&self) -> &Endpoint {
        // SAFETY: as in `policy`.
        unsafe { &*self.row }
    }
}

/// The endpoint of the interface that the packet passes; `None` when it has no row.
#[inline(always)]
pub(crate) fn find(skb: &TcContext) -> Option<Subject> {
    by_ifindex(ifindex(skb))
}

/// The endpoint whose id has this slot; `None` when there is none.
#[inline(always)]
pub(crate) fn by_slot(slot: u32) -> Option<Subject> {
    let ifindex = SLOTS.get(slot)?.ifindex;
    by_ifindex(ifindex).filter(|subject| subject.id & 0xffff == slot)
}

/// The endpoint of an interface.
#[inline(always)]
pub(crate) fn by_ifindex(ifindex: u32) -> Option<Subject> {
    let row = if ifindex < config::endpoint_slots() {
        ENDPOINTS.get_ptr(ifindex)?
    } else {
        ENDPOINTS_EXT.get_ptr(Ifindex { ifindex })?
    };
    // SAFETY: a row of a map. The epoch comes first: user space writes policies, then the epoch, so
    // whoever reads a new epoch reads the policies that belong to it.
    let epoch = unsafe { ptr::read_volatile(&raw const (*row).epoch) };
    // SAFETY: as above.
    let id = unsafe { ptr::read_volatile(&raw const (*row).id) };
    if id == 0 {
        None
    } else {
        Some(Subject { row, epoch, id })
    }
}

/// The interface that the packet passes.
#[inline(always)]
pub(crate) fn ifindex(skb: &TcContext) -> u32 {
    // SAFETY: a context field that the verifier lets TC programs read.
    unsafe { (*skb.skb.skb).ifindex }
}
