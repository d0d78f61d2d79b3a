//! Exits: the programs on TC egress of the host's interfaces other than endpoints, which judge what
//! `from_pod` let through unjudged.
//!
//! Attached by the same means as an endpoint's programs. An interface has one of two programs, by what its
//! packets begin with, under one pin, `links/IFINDEX-exit`. On a clsact qdisc their filter has a handle of
//! its own, so that an interface that becomes an endpoint, or ceases to be one, can have both for a moment.

use std::collections::BTreeMap;
use std::path::Path;

use aya::Ebpf;
use aya::programs::links::FdLink;
use aya::programs::tc::TcHandle;
use aya::programs::{ProgramError, SchedClassifier, TcAttachType};
use nix::net::if_::if_nametoindex;

use super::attach::{self, Failure, Haste, Mode};
use super::clsact;
use super::error::AttachError;
use super::load::{EXIT, EXIT_L3};

/// Which program an interface needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LinkLayer {
    /// Its packets begin with an Ethernet header.
    Ethernet,
    /// They begin with the IP header, as those of tunnels do.
    Network,
}

impl LinkLayer {
    pub(super) const fn program(self) -> &'static str {
        match self {
            Self::Ethernet => EXIT,
            Self::Network => EXIT_L3,
        }
    }
}

/// The side of an interface that is its egress.
const ATTACH_TYPE: TcAttachType = TcAttachType::Egress;

/// Beside the endpoints' filters.
pub(super) const HANDLE: TcHandle = TcHandle::new(0, 2);

/// What a pin's name ends with, whichever program it is.
const PIN: &str = EXIT;

/// What holds an exit at an interface.
pub(super) struct Exit {
    ifindex: u32,
    interface: String,
    pub(super) mode: Mode,
    pub(super) layer: LinkLayer,
    /// Kept open beside its pin, for TCX.
    _link: Option<FdLink>,
}

/// Attaches an exit, replacing that of an earlier agent atomically.
pub(super) fn attach(
    ebpf: &mut Ebpf,
    bpffs: &Path,
    ifindex: u32,
    interface: &str,
    layer: LinkLayer,
    haste: Haste,
) -> Result<Exit, AttachError> {
    let name = layer.program();
    let interface = attach::current_name(ifindex, interface)?;
    let mode = attach::choose(bpffs, ifindex, haste, &[PIN]);
    let program: &mut SchedClassifier = ebpf
        .program_mut(name)
        .and_then(|program| program.try_into().ok())
        .ok_or(AttachError::NotLoaded(name))?;
    let pin = attach::pin_path(bpffs, ifindex, PIN, mode);
    let attached = match mode {
        Mode::Tcx => attach::attach_tcx(program, &interface, ATTACH_TYPE, &pin).map(Some),
        Mode::Clsact => clsact::add(bpffs, ifindex, &interface)
            .map_err(|error| Failure::from(ProgramError::from(error)))
            .and_then(|()| {
                attach::attach_clsact(program, &interface, ATTACH_TYPE, HANDLE, &pin).map(|_| None)
            }),
    };
    let attached = attached.and_then(|link| {
        attach::clear_other(bpffs, ifindex, &interface, (PIN, ATTACH_TYPE, HANDLE), mode)?;
        Ok(link)
    });
    let link = attached.map_err(|error| attach::explain(error, name, ifindex, &interface, &pin))?;
    let exit = Exit {
        ifindex,
        interface,
        mode,
        layer,
        _link: link,
    };
    // The name was resolved before: make sure that it still means the same interface.
    if if_nametoindex(exit.interface.as_str()).ok() != Some(ifindex) {
        let interface = exit.interface.clone();
        detach(bpffs, exit)?;
        return Err(AttachError::InterfaceGone { ifindex, interface });
    }
    Ok(exit)
}

/// Detaches an exit; what is gone already is no error.
pub(super) fn detach(bpffs: &Path, exit: Exit) -> Result<(), AttachError> {
    let Exit {
        ifindex,
        interface,
        mode,
        _link: link,
        ..
    } = exit;
    if mode == Mode::Clsact {
        attach::detach_clsact(ifindex, &interface, ATTACH_TYPE, HANDLE);
    }
    let pin = attach::pin_path(bpffs, ifindex, PIN, mode);
    attach::remove_pin(&pin)
        .map_err(|failure| attach::explain(failure, EXIT, ifindex, &interface, &pin))?;
    // The last reference to a TCX link, now that its pin is gone.
    drop(link);
    if attach::current_name(ifindex, &interface).is_err() {
        clsact::forget(bpffs, ifindex).map_err(|source| AttachError::Pin {
            path: clsact::notes(bpffs),
            source,
        })?;
    }
    Ok(())
}

/// The interface of an exit's pin that is not in `keep`.
pub(super) fn stale_pin(pin: &Path, keep: &BTreeMap<u32, Exit>) -> Option<(u32, Mode)> {
    let (ifindex, program, mode) = attach::split_pin(pin)?;
    (program == PIN && !keep.contains_key(&ifindex)).then_some((ifindex, mode))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn live_exits_are_not_stale() {
        let dir = Path::new("/sys/fs/bpf/portcullis");
        let exit = Exit {
            ifindex: 7,
            interface: "eth0".to_owned(),
            mode: Mode::Tcx,
            layer: LinkLayer::Ethernet,
            _link: None,
        };
        let live = BTreeMap::from([(7, exit)]);
        let stale =
            |ifindex, name| stale_pin(&attach::pin_path(dir, ifindex, name, Mode::Clsact), &live);
        assert_eq!(stale(8, PIN), Some((8, Mode::Clsact)));
        assert_eq!([stale(7, PIN), stale(8, "from_pod")], [None, None]);
    }
}
