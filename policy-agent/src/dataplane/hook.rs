//! Whether a program runs where it was put, as the kernel says it.
//!
//! Asked of every program after it is attached, and again whenever something may have changed (see `watch`).
//! Attached is not enough: a foreign program that runs first may pass a packet for good.

use std::collections::BTreeSet;
use std::io;

use aya::programs::TcAttachType;

use super::attach::{self, Mode};
use super::tc::{Qdisc, Seen, Tc};
use super::tcx;

/// A place where one of our programs is to run before all foreign ones.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Hook {
    /// The program's name.
    pub(super) program: &'static str,
    /// The kernel's id of it.
    pub(super) id: u32,
    /// The side of the interface.
    pub(super) side: TcAttachType,
    /// How it is attached.
    pub(super) mode: Mode,
}

/// What is where a program should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// It is there, and first.
    First,
    /// The interface is gone.
    InterfaceGone,
    /// It is not there.
    Lost(String),
    /// It is there, and a foreign program comes before it.
    NotFirst(String),
}

impl Place {
    /// What is wrong, if anything is.
    pub(super) fn wrong(self) -> Option<String> {
        match self {
            Self::First | Self::InterfaceGone => None,
            Self::Lost(found) | Self::NotFirst(found) => Some(found),
        }
    }
}

/// Asks the kernel about all hooks of one interface. `ours` are the ids of all programs of this agent.
pub(super) fn look(
    tc: &mut Tc,
    ifindex: u32,
    hooks: &[Hook],
    ours: &BTreeSet<u32>,
) -> io::Result<Vec<Place>> {
    let has_filters = hooks.iter().any(|hook| hook.mode == Mode::Clsact);
    let seen = match has_filters.then(|| tc.look(ifindex)).transpose() {
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => {
            return Ok(vec![Place::InterfaceGone; hooks.len()]);
        }
        other => other?,
    };
    hooks
        .iter()
        .map(|hook| {
            let place = by_tcx(ifindex, hook, ours)?;
            Ok(match (&seen, hook.mode, place) {
                (Some(seen), Mode::Clsact, Place::First) => by_clsact(seen, hook, ours),
                (_, _, place) => place,
            })
        })
        .collect()
}

/// Asks only what costs one system call: the TCX programs at the hook, which announce nothing.
pub(super) fn by_tcx(ifindex: u32, hook: &Hook, ours: &BTreeSet<u32>) -> io::Result<Place> {
    if Mode::of_this_kernel() == Mode::Clsact {
        return Ok(Place::First);
    }
    let there = match tcx::programs(ifindex, hook.side) {
        Ok(there) => there,
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => {
            return Ok(Place::InterfaceGone);
        }
        Err(error) => return Err(error),
    };
    Ok(among_tcx(&there, hook, ours))
}

fn among_tcx(there: &[u32], hook: &Hook, ours: &BTreeSet<u32>) -> Place {
    let program = hook.program;
    let foreign = there.iter().position(|id| !ours.contains(id));
    let first = |at: usize| format!("TCX program {} runs before {program}", there[at]);
    match (hook.mode, foreign) {
        // Filters run after all of them.
        (Mode::Clsact, Some(foreign)) => Place::NotFirst(first(foreign)),
        (Mode::Clsact, None) => Place::First,
        (Mode::Tcx, _) => match (there.iter().position(|id| *id == hook.id), foreign) {
            (None, _) => Place::Lost(format!("{program} is not among {there:?}")),
            (Some(own), Some(foreign)) if foreign < own => Place::NotFirst(first(foreign)),
            _ => Place::First,
        },
    }
}

fn by_clsact(seen: &Seen, hook: &Hook, ours: &BTreeSet<u32>) -> Place {
    let program = hook.program;
    match seen.qdisc {
        Qdisc::Clsact => {}
        Qdisc::None => return Place::Lost(format!("no filter for {program}: no clsact qdisc")),
        Qdisc::Ingress => {
            return Place::Lost(format!(
                "no filter for {program}: an ingress qdisc is in the place of clsact"
            ));
        }
    }
    for filter in seen.filters(hook.side) {
        match &filter.program {
            Some((_, id)) if *id == hook.id => return Place::First,
            Some((_, id)) if ours.contains(id) => {}
            // Packets meet chain 0 alone, unless a filter of it sends them elsewhere.
            _ if filter.chain != 0 || attach::own(hook.side, filter).is_some() => {}
            _ => {
                let is_there = seen.filters(hook.side).iter().any(|filter| {
                    let program = filter.program.as_ref();
                    program.is_some_and(|(_, id)| *id == hook.id)
                });
                if !is_there {
                    break;
                }
                return Place::NotFirst(format!(
                    "a filter of kind {} and priority {} runs before {program}",
                    filter.kind, filter.priority
                ));
            }
        }
    }
    Place::Lost(format!("no filter for {program}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataplane::tc::Filter;

    const OURS: u32 = 7;

    fn hook(mode: Mode) -> Hook {
        Hook {
            program: "to_pod",
            id: OURS,
            side: TcAttachType::Egress,
            mode,
        }
    }

    /// 7 and 8 are ours.
    fn ours() -> BTreeSet<u32> {
        [OURS, 8].into()
    }

    #[test]
    fn foreign_tcx_programs_run_before_filters_and_before_what_comes_later() {
        for (mode, there, is_first, is_lost) in [
            (Mode::Tcx, &[7][..], true, false),
            (Mode::Tcx, &[7, 1], true, false),
            (Mode::Tcx, &[8, 7], true, false),
            (Mode::Tcx, &[1, 7], false, false),
            (Mode::Tcx, &[], false, true),
            (Mode::Tcx, &[1], false, true),
            (Mode::Clsact, &[], true, false),
            (Mode::Clsact, &[8], true, false),
            (Mode::Clsact, &[8, 1], false, false),
        ] {
            let place = among_tcx(there, &hook(mode), &ours());
            assert_eq!(place == Place::First, is_first, "{mode:?} {there:?}");
            let lost = matches!(place, Place::Lost(_));
            assert_eq!(lost, is_lost, "{mode:?} {there:?}");
        }
    }

    #[test]
    fn filters_run_in_their_order_and_only_in_a_clsact_qdisc() {
        let filter = |priority, chain, id: Option<u32>| Filter {
            priority,
            handle: 1,
            chain,
            kind: if id.is_some() { "bpf" } else { "u32" }.to_owned(),
            program: id.map(|id| (String::new(), id)),
        };
        let seen = |qdisc, egress: &[Filter]| Seen {
            qdisc,
            ingress: Vec::new(),
            egress: egress.to_vec(),
        };
        let own = filter(50, 0, Some(OURS));
        let foreign = filter(1, 0, None);
        for (qdisc, egress, wrong) in [
            (Qdisc::Clsact, vec![own.clone()], None),
            (
                Qdisc::Clsact,
                vec![own.clone(), filter(51, 0, Some(1))],
                None,
            ),
            (
                Qdisc::Clsact,
                vec![filter(1, 5, None), filter(1, 0, Some(8)), own.clone()],
                None,
            ),
            (
                Qdisc::Clsact,
                vec![foreign.clone(), own.clone()],
                Some("a filter of kind u32 and priority 1 runs before to_pod"),
            ),
            (Qdisc::Clsact, vec![foreign], Some("no filter for to_pod")),
            (
                Qdisc::Ingress,
                vec![own.clone()],
                Some("no filter for to_pod: an ingress qdisc is in the place of clsact"),
            ),
            (
                Qdisc::None,
                vec![own],
                Some("no filter for to_pod: no clsact qdisc"),
            ),
        ] {
            let place = by_clsact(&seen(qdisc, &egress), &hook(Mode::Clsact), &ours());
            assert_eq!(place.wrong().as_deref(), wrong, "{qdisc:?} {egress:?}");
        }
    }
}
