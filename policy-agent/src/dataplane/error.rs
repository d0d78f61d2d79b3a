//! What can go wrong between user space and the kernel, in words that an operator can act on.

use std::io;
use std::path::PathBuf;

use aya::maps::MapError;
use aya::programs::ProgramError;

/// Why the programs could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The binary was built without `cargo xtask build`.
    #[error("built without the eBPF object; use `cargo xtask build`")]
    NoObject,
    /// Not root, or a container without the capabilities.
    #[error(
        "loading BPF programs is not permitted: run as root; root of a container needs CAP_BPF, CAP_NET_ADMIN, \
         CAP_NET_BROADCAST and CAP_PERFMON"
    )]
    NotPermitted,
    /// The same answer from the kernel, where it may also mean too little locked memory.
    #[error(
        "loading BPF maps is not permitted: kernels before 5.11 count them against RLIMIT_MEMLOCK, which cannot be raised \
         without CAP_SYS_RESOURCE; add SYS_RESOURCE to the container's capabilities, or start the agent with an unlimited \
         RLIMIT_MEMLOCK; it needs CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON besides"
    )]
    LockedMemory,
    /// The kernel was built without the bpf system call.
    #[error("this kernel has no BPF (CONFIG_BPF_SYSCALL is off)")]
    NoBpf,
    /// The kernel is too old.
    #[error("kernel {found} is too old: Portcullis needs 5.10 or later")]
    KernelTooOld {
        /// The running kernel's version.
        found: String,
    },
    /// The operator wants what the kernel does not have.
    #[error("PORTCULLIS_ATTACH_MODE=tcx needs Linux 6.6 or later; use auto")]
    NoTcx,
    /// The tables that an earlier agent left could not be read.
    #[error("read the tables that an earlier agent left: {0}")]
    Former(MapError),
    /// bpffs could not be mounted.
    #[error("{path} is not on a BPF file system and mounting one at {mount_point} failed: {source}; \
             run `mount -t bpf bpf {mount_point}`", path = .path.display(), mount_point = .mount_point.display())]
    Bpffs {
        /// Where pins should go.
        path: PathBuf,
        /// Where the mount was tried.
        mount_point: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// Somebody else made the directory for pins.
    #[error("{path} belongs to user {owner}, who could take away what is pinned there; remove it: rm -r {path}",
            path = .path.display())]
    ForeignDirectory {
        /// The directory.
        path: PathBuf,
        /// Its owner's number.
        owner: u32,
    },
    /// A pin or its directory could not be written.
    #[error("pin {path}: {source}", path = .path.display())]
    Pin {
        /// The pin or directory.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// A table size was configured for a table that does not exist.
    #[error("unknown table {name:?}; the tables are {known}")]
    UnknownTable {
        /// The name given.
        name: String,
        /// The names there are.
        known: String,
    },
    /// A table size that makes no sense.
    #[error("table {name}: size {size} is not possible: {why}")]
    BadTableSize {
        /// The table.
        name: String,
        /// The size given.
        size: u32,
        /// Why not.
        why: &'static str,
    },
    /// The object was refused by aya or the kernel.
    #[error("the eBPF object does not load: {0}")]
    Object(#[from] aya::EbpfError),
    /// A program was refused by the kernel.
    #[error("program {name} does not load: {source}")]
    Program {
        /// The program.
        name: &'static str,
        /// Why it failed.
        source: ProgramError,
    },
    /// The object lacks a map or program: built from another revision.
    #[error("the eBPF object has no {0}: it belongs to another revision; run `cargo xtask build`")]
    Missing(&'static str),
    /// A map has another shape than we think.
    #[error("table {name}: {source}")]
    Table {
        /// The table.
        name: &'static str,
        /// Why it failed.
        source: MapError,
    },
    /// The events' ring buffer could not be registered with the runtime.
    #[error("events: {0}")]
    Events(io::Error),
}

/// Why a table operation failed.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// The table is at its capacity.
    #[error("table {table} is full; raise its size with PORTCULLIS_TABLE_SIZES={table}=N")]
    Full {
        /// The table.
        table: &'static str,
    },
    /// Anything else the kernel said.
    #[error("table {table}: {source}")]
    Map {
        /// The table.
        table: &'static str,
        /// Why it failed.
        source: MapError,
    },
    /// An id beyond the end of an array.
    #[error("table {table} has {capacity} rows, and row {index} was asked for")]
    OutOfRange {
        /// The table.
        table: &'static str,
        /// The row.
        index: u32,
        /// Rows that there are.
        capacity: u32,
    },
    /// The grace period could not be waited for.
    #[error("waiting for running programs: {0}")]
    Grace(io::Error),
}

impl ApplyError {
    pub(super) fn map(table: &'static str, source: MapError) -> Self {
        if let MapError::SyscallError(error) = &source
            && matches!(
                error.io_error.raw_os_error(),
                Some(libc::E2BIG | libc::ENOSPC)
            )
        {
            return Self::Full { table };
        }
        Self::Map { table, source }
    }
}

/// Why programs could not be attached or detached.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// The interface is not there (any more).
    #[error("interface {interface} (ifindex {ifindex}) is gone")]
    InterfaceGone {
        /// Its index.
        ifindex: u32,
        /// Its name, as far as known.
        interface: String,
    },
    /// The kernel refused.
    #[error("attach {program} to {interface}: {source}")]
    Attach {
        /// The program.
        program: &'static str,
        /// The interface's name.
        interface: String,
        /// Why it failed.
        source: ProgramError,
    },
    /// The link could not be pinned, or a pin not be removed.
    #[error("link pin {path}: {source}", path = .path.display())]
    Pin {
        /// The pin.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The object lacks a program.
    #[error("program {0} is not loaded")]
    NotLoaded(&'static str),
    /// Another qdisc is where clsact goes, and there is no TCX to do without.
    #[error(
        "interface {interface} has an `ingress` qdisc, as the CNI plugin `bandwidth` adds it for a pod with a limit, and \
         policy for what the pod receives cannot run beside that without TCX: use Linux 6.6 or later (without \
         PORTCULLIS_ATTACH_MODE=clsact), or take the limit off the pod (annotation kubernetes.io/egress-bandwidth), or \
         `tc qdisc del dev {interface} ingress`"
    )]
    IngressQdisc {
        /// The interface's name.
        interface: String,
    },
    /// The kernel took the program, and does not run it, or not first.
    #[error(
        "{program} was attached to {interface}, but does not see every packet there: {found}; `bpftool net` and \
         `tc filter show dev {interface} egress` (or ingress) name what else is there"
    )]
    NotRunning {
        /// The program.
        program: &'static str,
        /// The interface's name.
        interface: String,
        /// What the kernel showed.
        found: String,
    },
    /// The kernel does not say what is at an interface.
    #[error("ask what is attached to {interface}: {source}")]
    Ask {
        /// The interface's name.
        interface: String,
        /// Why it failed.
        source: io::Error,
    },
}
