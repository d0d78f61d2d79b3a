//! Attaching: the only file that knows TC's own directions.
//!
//! From 6.6 on a program is attached by a TCX link, below by a filter of the clsact qdisc. Both stay
//! when this process ends: a TCX link by its pin `links/IFINDEX-PROGRAM`; a clsact filter by itself,
//! with the program pinned as `links/IFINDEX-PROGRAM-clsact`, a mark of what is ours.
//!
//! A TCX link costs the kernel a grace period under its global network lock, a filter does not. So pods
//! that wait for their start are attached by clsact everywhere ([`Haste::Waited`]), and stay so, also
//! under later agents: while a packet met both, it would be judged, counted and translated twice. TCX
//! programs run before filters, though, and may end the walk. So only where there are none of others; where
//! one comes later, the endpoint moves to TCX at once (see `overtaken`).

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use aya::Ebpf;
use aya::programs::links::{FdLink, LinkOrder, PinnedLink};
use aya::programs::tc::{
    NlOptions, SchedClassifierLink, SchedClassifierLinkId, TcAttachOptions, TcError, TcHandle,
};
use aya::programs::{Link, ProgramError, SchedClassifier, TcAttachType};
use aya::util::KernelVersion;
use nix::net::if_::{if_indextoname, if_nametoindex};

use super::clsact;
use super::error::AttachError;
use super::exits::{self, Exit};
use super::load::{EXIT, EXIT_L3, FROM_POD, TO_POD};
use super::removal::unless_gone;
use super::tcx;

/// The pod's egress enters the host on the veth, and its ingress leaves the host there.
pub(super) const PROGRAMS: [(&str, TcAttachType); 2] = [
    (FROM_POD, TcAttachType::Ingress),
    (TO_POD, TcAttachType::Egress),
];

/// Our place among clsact filters: before those that tools add without a priority.
pub(super) const PRIORITY: u16 = 50;
const HANDLE: TcHandle = TcHandle::new(0, 1);

/// Every program that may be at an interface: its name, its side, and its handle among clsact filters.
pub(super) const EVERY: [(&str, TcAttachType, TcHandle); 4] = [
    (FROM_POD, TcAttachType::Ingress, HANDLE),
    (TO_POD, TcAttachType::Egress, HANDLE),
    (EXIT, TcAttachType::Egress, exits::HANDLE),
    (EXIT_L3, TcAttachType::Egress, exits::HANDLE),
];

/// How programs are attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mode {
    /// By TCX links, kernel 6.6 and later.
    Tcx,
    /// By filters of the clsact qdisc.
    Clsact,
}

impl Mode {
    /// The word shown by `policyctl status`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Tcx => "tcx",
            Self::Clsact => "clsact",
        }
    }

    pub(super) fn of_this_kernel() -> Self {
        match KernelVersion::current() {
            Ok(version) if version < KernelVersion::new(6, 6, 0) => Self::Clsact,
            _ => Self::Tcx,
        }
    }
}

/// Whether somebody waits for an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Haste {
    /// Nobody does; the place in front of all other programs matters more.
    None,
    /// The pod's start waits.
    Waited,
}

/// An interface that the programs are attached to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attached {
    /// Its index in the host's network namespace.
    pub ifindex: u32,
    /// Its name when the programs were attached.
    pub interface: String,
    /// How.
    pub mode: Mode,
    /// Kernel's id of `from_pod`, 0 when unknown.
    pub from_pod_program_id: u32,
    /// Kernel's id of `to_pod`, 0 when unknown.
    pub to_pod_program_id: u32,
}

/// What holds the programs at an interface.
pub(super) struct Attachment {
    pub(super) ifindex: u32,
    interface: String,
    pub(super) mode: Mode,
    /// Kept open beside their pins, for TCX; in the order of [`PROGRAMS`].
    pub(super) links: Vec<FdLink>,
}

/// What was found of filters that were to be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Filter {
    Missing,
    Replaced,
}

impl Attachment {
    pub(super) fn describe(&self, ebpf: &Ebpf) -> Attached {
        let id = |name| {
            ebpf.program(name)
                .and_then(|program| program.info().ok())
                .map_or(0, |info| info.id())
        };
        Attached {
            ifindex: self.ifindex,
            interface: self.interface.clone(),
            mode: self.mode,
            from_pod_program_id: id(FROM_POD),
            to_pod_program_id: id(TO_POD),
        }
    }
}

/// Attaches both programs, replacing those of an earlier agent atomically.
pub(super) fn attach(
    ebpf: &mut Ebpf,
    bpffs: &Path,
    ifindex: u32,
    interface: &str,
    haste: Haste,
) -> Result<Attachment, AttachError> {
    let interface = current_name(ifindex, interface)?;
    let mode = choose(bpffs, ifindex, haste, &[FROM_POD, TO_POD]);
    let mut links = Vec::new();
    for (name, attach_type) in PROGRAMS {
        let program: &mut SchedClassifier = ebpf
            .program_mut(name)
            .and_then(|program| program.try_into().ok())
            .ok_or(AttachError::NotLoaded(name))?;
        let pin = pin_path(bpffs, ifindex, name, mode);
        let attached = match mode {
            Mode::Tcx => attach_tcx(program, &interface, attach_type, &pin).map(|link| {
                links.push(link);
            }),
            Mode::Clsact => clsact::add(bpffs, ifindex, &interface)
                .map_err(|error| Failure::from(ProgramError::from(error)))
                .and_then(|()| attach_clsact(program, &interface, attach_type, HANDLE, &pin))
                .map(|_| ()),
        };
        let attached = attached.and_then(|()| {
            let place = (name, attach_type, HANDLE);
            clear_other(bpffs, ifindex, &interface, place, mode)
        });
        if let Err(error) = attached {
            let error = explain(error, name, ifindex, &interface, &pin);
            // Half attached is not attached: nobody would detach the other half.
            let half = Attachment {
                ifindex,
                interface,
                mode,
                links,
            };
            if let Err(left) = detach(bpffs, half) {
                tracing::warn!(ifindex, error = %left, "a half attached interface stays so");
            }
            return Err(error);
        }
    }
    // The name was resolved before: make sure that it still means the same interface.
    if if_nametoindex(interface.as_str()).ok() != Some(ifindex) {
        let attachment = Attachment {
            ifindex,
            interface: interface.clone(),
            mode,
            links,
        };
        detach(bpffs, attachment)?;
        return Err(AttachError::InterfaceGone { ifindex, interface });
    }
    Ok(Attachment {
        ifindex,
        interface,
        mode,
        links,
    })
}

/// The mode in which an interface is attached already, or is best attached now.
pub(super) fn choose(bpffs: &Path, ifindex: u32, haste: Haste, programs: &[&str]) -> Mode {
    let is_pinned = |mode| {
        let mut pins = programs
            .iter()
            .map(|name| pin_path(bpffs, ifindex, name, mode));
        pins.any(|pin| pin.exists())
    };
    if Mode::of_this_kernel() == Mode::Clsact {
        return Mode::Clsact;
    }
    let fast = is_pinned(Mode::Clsact) || haste == Haste::Waited;
    if fast && !is_pinned(Mode::Tcx) && !has_tcx_programs(ifindex) {
        Mode::Clsact
    } else {
        Mode::Tcx
    }
}

/// Whether any TCX program is at an interface, and so before every filter of clsact.
pub(super) fn has_tcx_programs(ifindex: u32) -> bool {
    PROGRAMS.into_iter().any(|(_, attach_type)| {
        // Where the kernel does not say, TCX is the safe side.
        tcx::programs(ifindex, attach_type).map_or(true, |programs| !programs.is_empty())
    })
}

/// Takes away what the other mode attached, now that this one has.
pub(super) fn clear_other(
    bpffs: &Path,
    ifindex: u32,
    interface: &str,
    (program, attach_type, handle): (&str, TcAttachType, TcHandle),
    mode: Mode,
) -> Result<(), Failure> {
    let other = match mode {
        Mode::Tcx => Mode::Clsact,
        Mode::Clsact => Mode::Tcx,
    };
    let pin = pin_path(bpffs, ifindex, program, other);
    if other == Mode::Clsact && pin.exists() {
        detach_clsact(ifindex, interface, attach_type, handle);
    }
    remove_pin(&pin)
}

/// An attach step's failure, before it is known what it means.
pub(super) enum Failure {
    Program(ProgramError),
    Pin(io::Error),
}

impl From<ProgramError> for Failure {
    fn from(error: ProgramError) -> Self {
        Self::Program(error)
    }
}

pub(super) fn explain(
    failure: Failure,
    program: &'static str,
    ifindex: u32,
    interface: &str,
    pin: &Path,
) -> AttachError {
    if current_name(ifindex, interface).is_err() {
        return AttachError::InterfaceGone {
            ifindex,
            interface: interface.to_owned(),
        };
    }
    match failure {
        Failure::Program(source) => AttachError::Attach {
            program,
            interface: interface.to_owned(),
            source,
        },
        Failure::Pin(source) => AttachError::Pin {
            path: pin.to_owned(),
            source,
        },
    }
}

pub(super) fn attach_tcx(
    program: &mut SchedClassifier,
    interface: &str,
    attach_type: TcAttachType,
    pin: &Path,
) -> Result<FdLink, Failure> {
    if let Some(link) = replace_tcx(program, pin)? {
        return Ok(link);
    }
    // First in line, so that another program's "pass" cannot end the walk before ours.
    let order = TcAttachOptions::TcxOrder(LinkOrder::first());
    let id = program.attach_with_options(interface, attach_type, order)?;
    let pinned = take_fd(program, id)?
        .pin(pin)
        .map_err(|error| Failure::Pin(io::Error::other(error)))?;
    Ok(FdLink::from(pinned))
}

/// Puts our program into the link that an earlier agent pinned; `None` when there is none that lives.
fn replace_tcx(program: &mut SchedClassifier, pin: &Path) -> Result<Option<FdLink>, Failure> {
    let Ok(pinned) = PinnedLink::from_pin(pin) else {
        return remove_pin(pin).map(|()| None);
    };
    let link = SchedClassifierLink::try_from(FdLink::from(pinned))
        .map_err(|error| Failure::Pin(io::Error::other(error)))?;
    match program.attach_to_link(link) {
        Ok(id) => Ok(Some(take_fd(program, id)?)),
        // The link's interface is gone, and its index in use again.
        Err(_) => remove_pin(pin).map(|()| None),
    }
}

fn take_fd(program: &mut SchedClassifier, id: SchedClassifierLinkId) -> Result<FdLink, Failure> {
    let link = program.take_link(id)?;
    FdLink::try_from(link).map_err(|error| Failure::Pin(io::Error::other(error)))
}

pub(super) fn attach_clsact(
    program: &mut SchedClassifier,
    interface: &str,
    attach_type: TcAttachType,
    handle: TcHandle,
    pin: &Path,
) -> Result<Filter, Failure> {
    // First, so that there is never a filter without its mark.
    remove_pin(pin)?;
    program
        .pin(pin)
        .map_err(|error| Failure::Pin(io::Error::other(error)))?;
    let options = NlOptions {
        priority: PRIORITY,
        handle,
        classid: None,
    };
    let attached =
        program.attach_with_options(interface, attach_type, TcAttachOptions::Netlink(options));
    let (id, found) = match attached {
        Err(ProgramError::TcError(TcError::NetlinkError(error)))
            if error.raw_os_error() == Some(libc::EEXIST) =>
        {
            let old = clsact_link(interface, attach_type, handle).map_err(Failure::Pin)?;
            (program.attach_to_link(old)?, Filter::Replaced)
        }
        other => (other?, Filter::Missing),
    };
    // Dropping the link would detach the filter; it is found again by priority and handle.
    std::mem::forget(program.take_link(id)?);
    Ok(found)
}

/// Puts filters again where they are to be, each at once in the place of the one that is there, and says which
/// were missing. An interface that is gone misses none.
pub(super) fn renew_clsact(
    ebpf: &mut Ebpf,
    bpffs: &Path,
    attachment: &Attachment,
) -> Result<Vec<&'static str>, AttachError> {
    let (ifindex, mut missing) = (attachment.ifindex, Vec::new());
    let Ok(interface) = current_name(ifindex, &attachment.interface) else {
        return Ok(missing);
    };
    for (name, attach_type) in PROGRAMS {
        let program: &mut SchedClassifier = ebpf
            .program_mut(name)
            .and_then(|program| program.try_into().ok())
            .ok_or(AttachError::NotLoaded(name))?;
        let pin = pin_path(bpffs, ifindex, name, Mode::Clsact);
        let found = clsact::add(bpffs, ifindex, &interface)
            .map_err(|error| Failure::from(ProgramError::from(error)))
            .and_then(|()| attach_clsact(program, &interface, attach_type, HANDLE, &pin));
        match found {
            Ok(Filter::Missing) => missing.push(name),
            Ok(Filter::Replaced) => {}
            Err(error) => return Err(explain(error, name, ifindex, &interface, &pin)),
        }
    }
    Ok(missing)
}

/// Lets go of a TCX link, so that the program can be attached anew before all others.
pub(super) fn release(bpffs: &Path, attachment: &mut Attachment, program: &str) -> io::Result<()> {
    let pin = pin_path(bpffs, attachment.ifindex, program, Mode::Tcx);
    unless_gone(fs::remove_file(&pin))?;
    let place = PROGRAMS.iter().position(|(name, _)| *name == program);
    if let Some(place) = place.filter(|place| *place < attachment.links.len()) {
        drop(attachment.links.remove(place));
    }
    Ok(())
}

fn clsact_link(
    interface: &str,
    attach_type: TcAttachType,
    handle: TcHandle,
) -> io::Result<SchedClassifierLink> {
    SchedClassifierLink::attached(interface, attach_type, PRIORITY, handle, None)
}

/// Detaches both programs; what is gone already is no error.
pub(super) fn detach(bpffs: &Path, attachment: Attachment) -> Result<(), AttachError> {
    let Attachment {
        ifindex,
        interface,
        mode,
        links,
    } = attachment;
    for (name, attach_type) in PROGRAMS {
        if mode == Mode::Clsact {
            detach_clsact(ifindex, &interface, attach_type, HANDLE);
        }
        let pin = pin_path(bpffs, ifindex, name, mode);
        remove_pin(&pin).map_err(|failure| explain(failure, name, ifindex, &interface, &pin))?;
    }
    // The last reference to a TCX link, now that its pin is gone.
    drop(links);
    // An empty qdisc costs nothing, and most interfaces go with their pod; what stays, `uninstall` takes.
    if current_name(ifindex, &interface).is_err() {
        clsact::forget(bpffs, ifindex).map_err(|source| AttachError::Pin {
            path: clsact::notes(bpffs),
            source,
        })?;
    }
    Ok(())
}

/// Best effort: a filter goes with its interface.
pub(super) fn detach_clsact(
    ifindex: u32,
    interface: &str,
    attach_type: TcAttachType,
    handle: TcHandle,
) {
    if let Ok(name) = current_name(ifindex, interface)
        && let Ok(link) = clsact_link(&name, attach_type, handle)
        && let Err(error) = link.detach()
    {
        tracing::debug!(interface = name, %error, "clsact filter was already gone");
    }
}

/// Removes what is pinned below `bpffs` for interfaces that are not in `keep`, and for exits that are not in
/// `exits`.
pub(super) fn prune(
    bpffs: &Path,
    keep: &BTreeMap<u32, Attachment>,
    exits: &BTreeMap<u32, Exit>,
) -> Result<Vec<u32>, AttachError> {
    let failed = |source| AttachError::Pin {
        path: links(bpffs),
        source,
    };
    let mut pruned = Vec::new();
    for entry in fs::read_dir(links(bpffs)).map_err(failed)? {
        let pin = entry.map_err(failed)?.path();
        let (ifindex, attach_type, mode, handle) = match parse_pin(&pin) {
            Some((ifindex, ..)) if keep.contains_key(&ifindex) => continue,
            Some((ifindex, attach_type, mode)) => (ifindex, attach_type, mode, HANDLE),
            None => match exits::stale_pin(&pin, exits) {
                Some((ifindex, mode)) => (ifindex, TcAttachType::Egress, mode, exits::HANDLE),
                None => continue,
            },
        };
        if mode == Mode::Clsact {
            detach_clsact(ifindex, "", attach_type, handle);
        }
        fs::remove_file(&pin).map_err(|source| AttachError::Pin {
            path: pin.clone(),
            source,
        })?;
        if !pruned.contains(&ifindex) {
            pruned.push(ifindex);
        }
    }
    for ifindex in clsact::noted(bpffs).map_err(failed)? {
        if current_name(ifindex, "").is_err() {
            clsact::forget(bpffs, ifindex).map_err(failed)?;
        }
    }
    Ok(pruned)
}

/// Where links are pinned.
pub(super) fn links(bpffs: &Path) -> PathBuf {
    bpffs.join("links")
}

/// Ends the name of a pin that marks a filter of clsact.
const MARK: &str = "-clsact";

pub(super) fn pin_path(bpffs: &Path, ifindex: u32, program: &str, mode: Mode) -> PathBuf {
    let end = match mode {
        Mode::Tcx => "",
        Mode::Clsact => MARK,
    };
    links(bpffs).join(format!("{ifindex}-{program}{end}"))
}

fn parse_pin(pin: &Path) -> Option<(u32, TcAttachType, Mode)> {
    let (ifindex, program, mode) = split_pin(pin)?;
    let (_, attach_type) = PROGRAMS.into_iter().find(|(name, _)| *name == program)?;
    Some((ifindex, attach_type, mode))
}

/// The interface, the program and the mode that a pin names.
pub(super) fn split_pin(pin: &Path) -> Option<(u32, &str, Mode)> {
    let (ifindex, rest) = pin.file_name()?.to_str()?.split_once('-')?;
    let (program, mode) = match rest.strip_suffix(MARK) {
        Some(program) => (program, Mode::Clsact),
        None => (rest, Mode::Tcx),
    };
    Some((ifindex.parse().ok()?, program, mode))
}

pub(super) fn remove_pin(pin: &Path) -> Result<(), Failure> {
    unless_gone(fs::remove_file(pin)).map_err(Failure::Pin)
}

/// The name that `ifindex` has now.
pub(super) fn current_name(ifindex: u32, last_known: &str) -> Result<String, AttachError> {
    if_indextoname(ifindex)
        .ok()
        .and_then(|name| name.into_string().ok())
        // nix 0.31 takes the null that means "no such interface" for success, with an empty name.
        .filter(|name| !name.is_empty())
        .ok_or_else(|| AttachError::InterfaceGone {
            ifindex,
            interface: last_known.to_owned(),
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interface_that_is_gone_has_no_name() {
        assert_eq!(current_name(1, "").expect("loopback"), "lo");
        let error = current_name(u32::MAX >> 1, "veth7").expect_err("no such index");
        assert!(
            matches!(&error, AttachError::InterfaceGone { interface, .. } if interface == "veth7"),
            "{error}"
        );
    }

    #[test]
    fn pins_are_read_back_as_they_are_named() {
        let dir = Path::new("/sys/fs/bpf/portcullis");
        for (name, attach_type) in PROGRAMS {
            for mode in [Mode::Tcx, Mode::Clsact] {
                let parsed = parse_pin(&pin_path(dir, 42, name, mode)).expect("our own name");
                assert_eq!(parsed, (42, attach_type, mode));
            }
        }
        for other in [
            "42",
            "x-from_pod",
            "42-other",
            "42-from_pod-",
            "42-clsact",
            "README",
        ] {
            assert!(parse_pin(&dir.join(other)).is_none(), "{other}");
        }
    }
}
