//! Attaching: the only file that knows TC's own directions.
//!
//! From 6.6 on a program is attached by a TCX link, below by a filter of the clsact qdisc. Both stay
//! when this process ends: a TCX link by its pin `links/IFINDEX-PROGRAM`; a clsact filter by itself,
//! with the program pinned as `links/IFINDEX-PROGRAM-clsact`, a mark of what is ours.
//!
//! A TCX link costs the kernel a grace period under its global network lock, a filter does not. So pods
//! that wait for their start are attached by clsact everywhere ([`Haste::Waited`]), and stay so, also
//! under later agents: while a packet met both, it would be judged, counted and translated twice. But only
//! where that hides nothing from ours:
//!
//! - TCX programs run before filters, and may end the walk; so do filters of a lower priority;
//! - an `ingress` qdisc, as the CNI plugin `bandwidth` adds it, takes the place of clsact.
//!
//! There, and where one of those comes later, ours are attached by TCX. A kernel without TCX has the first
//! priority, which leaves an `ingress` qdisc as the one thing that is refused.
//!
//! What was attached is then asked of the kernel (`hook`).

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use aya::Ebpf;
use aya::programs::links::{FdLink, LinkOrder, PinnedLink};
use aya::programs::tc::{
    NlOptions, SchedClassifierLink, SchedClassifierLinkId, TcAttachOptions, TcError, TcHandle,
};
use aya::programs::{ProgramError, SchedClassifier, TcAttachType};
use aya::util::KernelVersion;
use nix::net::if_::{if_indextoname, if_nametoindex};

use super::clsact;
use super::error::AttachError;
use super::exits;
use super::hook::{self, Hook, Place};
use super::load::{FROM_POD, TO_POD};
use super::removal::unless_gone;
use super::tc::{Filter, Qdisc, Seen, Tc};
use super::tcx;

/// A program, and where it goes.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Program {
    /// Its name in the object and in the kernel.
    pub(super) name: &'static str,
    /// What its pins are named after: programs of which an interface has one share it.
    pub(super) pin: &'static str,
    /// The side of the interface.
    pub(super) side: TcAttachType,
    /// Its number among our filters at that side: an interface that becomes an endpoint, or is one no more, can
    /// have two of them for a moment.
    pub(super) number: u16,
}

/// The pod's egress enters the host on the veth, and its ingress leaves the host there.
pub(super) static ENDPOINT: [Program; 2] = [
    Program {
        name: FROM_POD,
        pin: FROM_POD,
        side: TcAttachType::Ingress,
        number: 1,
    },
    Program {
        name: TO_POD,
        pin: TO_POD,
        side: TcAttachType::Egress,
        number: 1,
    },
];

/// Every program that may be at an interface.
pub(super) fn every() -> impl Iterator<Item = &'static Program> {
    ENDPOINT.iter().chain(exits::PROGRAMS.iter())
}

/// Our place among clsact filters: before those that tools add without a priority.
const PRIORITY: u16 = 50;

/// Our place where a foreign filter has one before [`PRIORITY`] and there is no TCX.
const FRONT: u16 = 1;

/// Handles at [`FRONT`], which others use too, begin with this.
const FRONT_HANDLE: u16 = 0x7063;

fn handle(priority: u16, program: &Program) -> TcHandle {
    match priority {
        FRONT => TcHandle::new(FRONT_HANDLE, program.number),
        _ => TcHandle::new(0, program.number),
    }
}

/// Which of our programs a filter is by its place, whichever agent put it there.
pub(super) fn own(side: TcAttachType, filter: &Filter) -> Option<&'static Program> {
    let (name, _) = filter.program.as_ref()?;
    every().find(|program| {
        program.side == side
            && program.name == name
            && [PRIORITY, FRONT].iter().any(|priority| {
                filter.priority == *priority
                    && filter.handle == u32::from(handle(*priority, program))
            })
    })
}

/// The first filter that packets meet and that is not ours.
pub(super) fn first_foreign(seen: &Seen, side: TcAttachType) -> Option<&Filter> {
    let filters = seen.filters(side).iter();
    let mut in_the_way = filters.filter(|filter| filter.chain == 0 && own(side, filter).is_none());
    in_the_way.next()
}

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

    /// The newest that this kernel has.
    pub(super) fn of_this_kernel() -> Self {
        match KernelVersion::current() {
            Ok(version) if version < KernelVersion::new(6, 6, 0) => Self::Clsact,
            _ => Self::Tcx,
        }
    }
}

/// What the operator says about how programs are attached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AttachMode {
    /// By whichever means is best at an interface.
    #[default]
    Auto,
    /// By TCX alone, which needs Linux 6.6.
    Tcx,
    /// By clsact alone, as on older kernels.
    Clsact,
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
    pub(super) interface: String,
    pub(super) mode: Mode,
    pub(super) programs: &'static [Program],
    /// Where the kernel should have them.
    pub(super) hooks: Vec<Hook>,
    /// Kept open beside their pins, for TCX; by the program's name.
    pub(super) links: BTreeMap<&'static str, FdLink>,
}

impl Attachment {
    pub(super) fn describe(&self) -> Attached {
        let id = |name| {
            let mut hooks = self.hooks.iter();
            hooks
                .find(|hook| hook.program == name)
                .map_or(0, |hook| hook.id)
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

/// What attaching needs besides.
pub(super) struct Site<'a> {
    pub(super) ebpf: &'a mut Ebpf,
    pub(super) bpffs: &'a Path,
    pub(super) tc: &'a mut Tc,
    pub(super) mode: AttachMode,
    /// The kernel's ids of this agent's programs.
    pub(super) ours: &'a BTreeSet<u32>,
    /// Links that this agent has at the interface already, by the program's name. They last as long as they are held.
    pub(super) held: BTreeMap<&'static str, FdLink>,
}

impl Site<'_> {
    fn program(&mut self, name: &'static str) -> Result<&mut SchedClassifier, AttachError> {
        let program = self.ebpf.program_mut(name);
        program
            .and_then(|program| program.try_into().ok())
            .ok_or(AttachError::NotLoaded(name))
    }
}

/// Attaches all of these programs, replacing those of an earlier agent atomically. [`prove`] then says whether
/// they run.
pub(super) fn attach(
    site: &mut Site<'_>,
    ifindex: u32,
    interface: &str,
    haste: Haste,
    programs: &'static [Program],
) -> Result<Attachment, AttachError> {
    let interface = current_name(ifindex, interface)?;
    let seen = look(site.tc, ifindex, &interface)?;
    let mut attachment = Attachment {
        ifindex,
        mode: choose(site, ifindex, &interface, haste, programs, &seen)?,
        interface,
        programs,
        hooks: Vec::new(),
        links: BTreeMap::new(),
    };
    for program in programs {
        if let Err(error) = attach_program(site, &mut attachment, program, &seen) {
            // Half attached is not attached: nobody would detach the other half.
            if let Err(left) = detach(site.bpffs, site.tc, attachment) {
                tracing::warn!(ifindex, error = %left, "a half attached interface stays so");
            }
            return Err(error);
        }
    }
    // The name was resolved before: make sure that it still means the same interface.
    if if_nametoindex(attachment.interface.as_str()).ok() != Some(ifindex) {
        let interface = attachment.interface.clone();
        detach(site.bpffs, site.tc, attachment)?;
        return Err(AttachError::InterfaceGone { ifindex, interface });
    }
    Ok(attachment)
}

/// Whether the kernel has each program where it was put, before all foreign ones.
pub(super) fn prove(site: &mut Site<'_>, attachment: &Attachment) -> Result<(), AttachError> {
    let Attachment {
        ifindex,
        interface,
        hooks,
        ..
    } = attachment;
    let places = hook::look(site.tc, *ifindex, hooks, site.ours)
        .map_err(|source| asked(*ifindex, interface, source))?;
    for (hook, place) in hooks.iter().zip(places) {
        match place {
            Place::First => {}
            Place::InterfaceGone => {
                return Err(AttachError::InterfaceGone {
                    ifindex: *ifindex,
                    interface: interface.clone(),
                });
            }
            Place::Lost(found) | Place::NotFirst(found) => {
                return Err(AttachError::NotRunning {
                    program: hook.program,
                    interface: interface.clone(),
                    found,
                });
            }
        }
    }
    Ok(())
}

fn look(tc: &mut Tc, ifindex: u32, interface: &str) -> Result<Seen, AttachError> {
    tc.look(ifindex)
        .map_err(|source| asked(ifindex, interface, source))
}

fn asked(ifindex: u32, interface: &str, source: io::Error) -> AttachError {
    let interface = interface.to_owned();
    match source.raw_os_error() {
        Some(libc::ENODEV) => AttachError::InterfaceGone { ifindex, interface },
        _ => AttachError::Ask { interface, source },
    }
}

/// The mode in which an interface is attached already, or is best attached now.
fn choose(
    site: &Site<'_>,
    ifindex: u32,
    interface: &str,
    haste: Haste,
    programs: &[Program],
    seen: &Seen,
) -> Result<Mode, AttachError> {
    let has_tcx = site.mode != AttachMode::Clsact && Mode::of_this_kernel() == Mode::Tcx;
    if !has_tcx {
        return match seen.qdisc {
            Qdisc::Ingress => Err(AttachError::IngressQdisc {
                interface: interface.to_owned(),
            }),
            Qdisc::None | Qdisc::Clsact => Ok(Mode::Clsact),
        };
    }
    let is_pinned = |mode| {
        let mut pins = programs
            .iter()
            .map(|program| pin_path(site.bpffs, ifindex, program.pin, mode));
        pins.any(|pin| pin.exists())
    };
    let is_free = |program: &Program| {
        first_foreign(seen, program.side).is_none_or(|foreign| foreign.priority > PRIORITY)
            // Where the kernel does not say, TCX is the safe side.
            && tcx::programs(ifindex, program.side).is_ok_and(|there| there.is_empty())
    };
    let by_clsact = site.mode == AttachMode::Auto
        && seen.qdisc != Qdisc::Ingress
        && (haste == Haste::Waited || is_pinned(Mode::Clsact))
        && !is_pinned(Mode::Tcx)
        && programs.iter().all(is_free);
    Ok(if by_clsact { Mode::Clsact } else { Mode::Tcx })
}

fn attach_program(
    site: &mut Site<'_>,
    attachment: &mut Attachment,
    program: &'static Program,
    seen: &Seen,
) -> Result<(), AttachError> {
    let (ifindex, mode) = (attachment.ifindex, attachment.mode);
    let interface = attachment.interface.clone();
    let pin = pin_path(site.bpffs, ifindex, program.pin, mode);
    let explained = |failure| explain(failure, program.name, ifindex, &interface, &pin);
    let id = site.program(program.name)?.info();
    let id = id.map_err(|error| explained(error.into()))?.id();
    let hook = Hook {
        program: program.name,
        id,
        side: program.side,
        mode,
    };
    let mut place = None;
    match mode {
        Mode::Tcx => {
            // The kernel takes a program only once, so that one which others are before has to go first. Meanwhile a
            // filter stands in for it, behind the others as it was itself: a packet that meets both comes to the same.
            let is_behind = matches!(
                hook::by_tcx(ifindex, &hook, site.ours),
                Ok(Place::NotFirst(_))
            );
            if is_behind {
                if let Err(error) = stand_in(site, ifindex, &interface, program, seen) {
                    tracing::warn!(interface, %error, "no filter stands in while a program moves before others");
                }
                remove_pin(&pin).map_err(explained)?;
                drop(site.held.remove(program.name));
            }
            let loaded = site.program(program.name)?;
            let link = attach_tcx(loaded, &interface, program.side, &pin).map_err(explained)?;
            attachment.links.insert(program.name, link);
            if is_behind {
                detach_filter(site.tc, ifindex, program);
            }
        }
        Mode::Clsact => {
            clsact::add(site.bpffs, ifindex, &interface)
                .map_err(|error| explained(ProgramError::from(error).into()))?;
            let qdisc = site.tc.qdisc(ifindex);
            if qdisc.map_err(|source| asked(ifindex, &interface, source))? == Qdisc::Ingress {
                return Err(AttachError::IngressQdisc { interface });
            }
            let priority = priority(seen, program);
            place = Some((priority, u32::from(handle(priority, program))));
            let loaded = site.program(program.name)?;
            attach_clsact(loaded, &interface, program, priority, &pin).map_err(explained)?;
        }
    }
    attachment.hooks.push(hook);
    // What the other mode attached, or this one at another priority, goes now that this is there.
    for filter in seen.filters(program.side) {
        let is_same = own(program.side, filter).is_some_and(|there| there.number == program.number)
            && Some((filter.priority, filter.handle)) != place;
        if is_same && let Err(error) = site.tc.remove_filter(ifindex, program.side, filter) {
            tracing::warn!(interface, %error, "a filter that another replaced stays");
        }
    }
    let other = match mode {
        Mode::Tcx => Mode::Clsact,
        Mode::Clsact => Mode::Tcx,
    };
    remove_pin(&pin_path(site.bpffs, ifindex, program.pin, other)).map_err(explained)
}

/// Attaches a filter in addition to a program's TCX link, which is about to move.
fn stand_in(
    site: &mut Site<'_>,
    ifindex: u32,
    interface: &str,
    program: &Program,
    seen: &Seen,
) -> Result<(), AttachError> {
    if seen.qdisc == Qdisc::Ingress {
        return Err(AttachError::IngressQdisc {
            interface: interface.to_owned(),
        });
    }
    let pin = pin_path(site.bpffs, ifindex, program.pin, Mode::Clsact);
    let explained = |failure| explain(failure, program.name, ifindex, interface, &pin);
    clsact::add(site.bpffs, ifindex, interface)
        .map_err(|error| explained(ProgramError::from(error).into()))?;
    let loaded = site.program(program.name)?;
    attach_clsact(loaded, interface, program, PRIORITY, &pin).map_err(explained)
}

/// Where a program goes among filters.
fn priority(seen: &Seen, program: &Program) -> u16 {
    let is_own = |filter: &&Filter| {
        own(program.side, filter).is_some_and(|there| there.number == program.number)
    };
    let filters = seen.filters(program.side);
    let own_at = filters.iter().find(is_own).map(|filter| filter.priority);
    let foreign = first_foreign(seen, program.side).map(|filter| filter.priority);
    match (own_at, foreign) {
        (Some(FRONT), _) => FRONT,
        (_, Some(foreign)) if foreign <= PRIORITY => FRONT,
        _ => PRIORITY,
    }
}

/// An attach step's failure, before it is known what it means.
enum Failure {
    Program(ProgramError),
    Pin(io::Error),
}

impl From<ProgramError> for Failure {
    fn from(error: ProgramError) -> Self {
        Self::Program(error)
    }
}

fn explain(
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

fn attach_tcx(
    program: &mut SchedClassifier,
    interface: &str,
    side: TcAttachType,
    pin: &Path,
) -> Result<FdLink, Failure> {
    if let Some(link) = replace_tcx(program, pin)? {
        return Ok(link);
    }
    // First in line, so that another program's "pass" cannot end the walk before ours.
    let order = TcAttachOptions::TcxOrder(LinkOrder::first());
    let id = program.attach_with_options(interface, side, order)?;
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
        // The link's interface is gone, and its index in use again; or somebody detached it.
        Err(_) => remove_pin(pin).map(|()| None),
    }
}

fn take_fd(program: &mut SchedClassifier, id: SchedClassifierLinkId) -> Result<FdLink, Failure> {
    let link = program.take_link(id)?;
    FdLink::try_from(link).map_err(|error| Failure::Pin(io::Error::other(error)))
}

fn attach_clsact(
    loaded: &mut SchedClassifier,
    interface: &str,
    program: &Program,
    priority: u16,
    pin: &Path,
) -> Result<(), Failure> {
    // First, so that there is never a filter without its mark.
    remove_pin(pin)?;
    loaded
        .pin(pin)
        .map_err(|error| Failure::Pin(io::Error::other(error)))?;
    let handle = handle(priority, program);
    let options = NlOptions {
        priority,
        handle,
        classid: None,
    };
    let attached =
        loaded.attach_with_options(interface, program.side, TcAttachOptions::Netlink(options));
    let id = match attached {
        Err(ProgramError::TcError(TcError::NetlinkError(error)))
            if error.raw_os_error() == Some(libc::EEXIST) =>
        {
            let old =
                SchedClassifierLink::attached(interface, program.side, priority, handle, None)
                    .map_err(Failure::Pin)?;
            loaded.attach_to_link(old)?
        }
        other => other?,
    };
    // Dropping the link would detach the filter; it is found again by priority and handle.
    std::mem::forget(loaded.take_link(id)?);
    Ok(())
}

/// Detaches all programs; what is gone already is no error.
pub(super) fn detach(bpffs: &Path, tc: &mut Tc, attachment: Attachment) -> Result<(), AttachError> {
    let Attachment {
        ifindex,
        interface,
        mode,
        programs,
        links,
        ..
    } = attachment;
    for program in programs {
        if mode == Mode::Clsact {
            detach_filter(tc, ifindex, program);
        }
        let pin = pin_path(bpffs, ifindex, program.pin, mode);
        remove_pin(&pin)
            .map_err(|failure| explain(failure, program.name, ifindex, &interface, &pin))?;
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

/// Removes a program's filters at all places that may be its own. Best effort: a filter goes with its interface.
pub(super) fn detach_filter(tc: &mut Tc, ifindex: u32, program: &Program) {
    let removed = tc.look(ifindex).and_then(|seen| {
        let filters = seen.filters(program.side).iter();
        let mut of_program = filters.filter(|filter| {
            own(program.side, filter).is_some_and(|there| there.number == program.number)
        });
        of_program.try_for_each(|filter| tc.remove_filter(ifindex, program.side, filter))
    });
    match removed {
        Err(error) if error.raw_os_error() != Some(libc::ENODEV) => {
            tracing::debug!(ifindex, %error, "a clsact filter could not be removed");
        }
        _ => {}
    }
}

/// Removes what is pinned below `bpffs` for interfaces that are not in `endpoints`, and for netdevs that are not
/// in `netdevs`.
pub(super) fn prune(
    bpffs: &Path,
    tc: &mut Tc,
    endpoints: &BTreeMap<u32, Attachment>,
    netdevs: &BTreeMap<u32, Attachment>,
) -> Result<Vec<u32>, AttachError> {
    let failed = |source| AttachError::Pin {
        path: links(bpffs),
        source,
    };
    let is_kept = |ifindex: u32, pin: &str| {
        let attachments = [endpoints, netdevs].into_iter();
        let mut of_interface = attachments.filter_map(|attachments| attachments.get(&ifindex));
        of_interface.any(|attachment| attachment.programs.iter().any(|program| program.pin == pin))
    };
    let mut pruned = Vec::new();
    for entry in fs::read_dir(links(bpffs)).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let Some((ifindex, pin, mode)) = split_pin(&path) else {
            continue;
        };
        let Some(program) = every().find(|program| program.pin == pin) else {
            continue;
        };
        if is_kept(ifindex, pin) {
            continue;
        }
        if mode == Mode::Clsact {
            detach_filter(tc, ifindex, program);
        }
        fs::remove_file(&path).map_err(|source| AttachError::Pin {
            path: path.clone(),
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

pub(super) fn pin_path(bpffs: &Path, ifindex: u32, pin: &str, mode: Mode) -> PathBuf {
    let end = match mode {
        Mode::Tcx => "",
        Mode::Clsact => MARK,
    };
    links(bpffs).join(format!("{ifindex}-{pin}{end}"))
}

/// The interface, the program's word and the mode that a pin names.
fn split_pin(pin: &Path) -> Option<(u32, &str, Mode)> {
    let (ifindex, rest) = pin.file_name()?.to_str()?.split_once('-')?;
    let (program, mode) = match rest.strip_suffix(MARK) {
        Some(program) => (program, Mode::Clsact),
        None => (rest, Mode::Tcx),
    };
    Some((ifindex.parse().ok()?, program, mode))
}

fn remove_pin(pin: &Path) -> Result<(), Failure> {
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
        for program in every() {
            for mode in [Mode::Tcx, Mode::Clsact] {
                let path = pin_path(dir, 42, program.pin, mode);
                let parsed = split_pin(&path).expect("our own name");
                assert_eq!(parsed, (42, program.pin, mode));
            }
        }
        for other in ["42", "x-from_pod", "README"] {
            assert!(split_pin(&dir.join(other)).is_none(), "{other}");
        }
    }

    fn filter(priority: u16, handle: u32, name: &str) -> Filter {
        Filter {
            priority,
            handle,
            chain: 0,
            kind: "bpf".to_owned(),
            program: (!name.is_empty()).then(|| (name.to_owned(), 1)),
        }
    }

    fn seen(egress: &[Filter]) -> Seen {
        Seen {
            qdisc: Qdisc::Clsact,
            ingress: Vec::new(),
            egress: egress.to_vec(),
        }
    }

    #[test]
    fn a_filter_is_ours_by_name_and_place_together() {
        for (priority, handle, name, number) in [
            (50, 1, "to_pod", Some(1)),
            (50, 2, "exit_l3", Some(2)),
            (1, 0x7063_0001, "to_pod", Some(1)),
            (1, 1, "to_pod", None),
            (50, 1, "exit", None),
            (50, 1, "from_pod", None),
            (50, 1, "other", None),
            (50, 1, "", None),
            (49, 1, "to_pod", None),
        ] {
            let found = own(TcAttachType::Egress, &filter(priority, handle, name));
            let found = found.map(|program| program.number);
            assert_eq!(found, number, "{priority} {handle:x} {name}");
        }
    }

    #[test]
    fn ours_goes_before_foreign_filters() {
        let to_pod = &ENDPOINT[1];
        for (egress, wanted) in [
            (&[][..], PRIORITY),
            (&[filter(51, 1, "other")], PRIORITY),
            (&[filter(50, 1, "to_pod"), filter(51, 1, "other")], PRIORITY),
            (&[filter(50, 2, "exit")], PRIORITY),
            (&[filter(1, 1, "other")], FRONT),
            (&[filter(50, 1, "")], FRONT),
            (&[filter(2, 1, "other"), filter(50, 1, "to_pod")], FRONT),
            // It stays there when the other has gone.
            (&[filter(1, 0x7063_0001, "to_pod")], FRONT),
        ] {
            assert_eq!(priority(&seen(egress), to_pod), wanted, "{egress:?}");
        }
    }
}
