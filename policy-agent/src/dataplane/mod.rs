//! The kernel side: loads the programs, executes table operations, attaches to interfaces, reads
//! counters and events.
//!
//! Direction of dependency: knows `policy_core::op` and `policy_common`, and nothing of Kubernetes.
//! Invariants: an operation is either done or an error; nothing here decides what should be in a
//! table; programs, maps and links are pinned, so enforcement outlives this process.

mod attach;
mod bpffs;
mod changeover;
mod clock;
mod clsact;
mod counted;
mod error;
mod events;
mod exits;
mod flow_tables;
mod grace;
mod guard_rows;
mod hook;
mod installed;
mod load;
mod pinned;
mod removal;
mod row;
mod service_rows;
mod tables;
mod tc;
mod tcx;
mod verify;
mod watch;

pub use attach::{AttachMode, Attached, Haste, Mode};
pub use error::{ApplyError, AttachError, LoadError};
pub use events::EventStream;
pub use exits::{LinkLayer, NetdevProgram};
pub use flow_tables::FlowTables;
pub use grace::wait as wait_for_grace;
pub use installed::{Installed, Part};
pub use load::{DataplaneConfig, OBJECT, capacities};
pub use removal::remove;
pub use tables::{CounterRow, TableUse};
pub use verify::{Drift, DriftedPart, Role};
pub use watch::Drifts;

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use aya::Ebpf;
use policy_core::op::Op;
use policy_core::tables::Tables as Former;

use attach::{Attachment, Program, Site};
use changeover::Changeover;
use tables::Tables;
use tc::Tc;
use verify::TablePins;
use watch::Watched;

/// The loaded programs and maps, and the interfaces that the programs are attached to.
pub struct Dataplane {
    ebpf: Ebpf,
    tables: Tables,
    /// What an earlier agent left in the tables.
    former: Option<Former>,
    /// From the tables of an earlier agent to those in use; none where nothing is pinned.
    changeover: Option<Changeover>,
    table_pins: Option<TablePins>,
    attachments: BTreeMap<u32, Attachment>,
    netdevs: BTreeMap<u32, Attachment>,
    /// What should be attached, for the thread that watches it.
    watched: Arc<Watched>,
    /// The connection by which the kernel is asked what is attached, once it was needed.
    tc: Option<Tc>,
    attach_mode: AttachMode,
    /// Directory for pins.
    bpffs: PathBuf,
}

impl Dataplane {
    /// Checks the kernel, mounts bpffs where it is missing, and loads the programs: with the tables that an
    /// earlier agent left pinned under `config.bpffs`, where they are of the same layout and size, or else
    /// with tables of their own beside those, which take their place when they are filled. Programs that an earlier agent left attached
    /// go on enforcing until [`Dataplane::attach`] replaces them or [`Dataplane::prune`] removes them.
    pub fn load(config: &DataplaneConfig) -> Result<Self, LoadError> {
        load::load(config)
    }

    /// What an earlier agent left, once: the tables are in use, and a compiler has to lead over from there; of
    /// tables that are made anew, the endpoints alone, which are to keep their ids. `None` where there was
    /// nothing.
    pub fn take_former(&mut self) -> Option<Former> {
        self.former.take()
    }

    /// Executes one operation. Idempotent: what failed may be tried again.
    pub fn apply(&mut self, op: &Op) -> Result<(), ApplyError> {
        self.tables.apply(op)
    }

    /// The UDP ports at which this node decapsulates, 0 where there are fewer: puts them into every endpoint's row, and
    /// into those that operations put from now on.
    ///
    /// # Errors
    ///
    /// When a row cannot be put. Some may have the ports by then; calling it again puts the others.
    pub fn set_tunnel_ports(&mut self, ports: [u16; 4]) -> Result<(), ApplyError> {
        self.tables.set_tunnel_ports(ports)
    }

    /// Attaches both programs to the host side of a pod's interface; the endpoint's row must be in
    /// place. Where an earlier agent's programs are attached, they are replaced without a gap, and
    /// stay attached the way they are; where ours are already, what is not at its place is attached again,
    /// before all others.
    pub fn attach(
        &mut self,
        ifindex: u32,
        interface: &str,
        haste: Haste,
    ) -> Result<(), AttachError> {
        // Attaching begins once the tables are filled, and every time both ends of it must see what is known of
        // the endpoint's connections: the programs before these went on until now.
        let endpoint = self.tables.endpoint(ifindex).map_or(0, |row| row.id);
        if let Some(changeover) = &mut self.changeover {
            changeover.commit().map_err(|source| AttachError::Pin {
                path: self.bpffs.clone(),
                source,
            })?;
            changeover.carry_over(endpoint);
        }
        self.put(Role::Endpoint, ifindex, interface, haste, &attach::ENDPOINT)?;
        if let Some(changeover) = &mut self.changeover {
            changeover.carry_over(endpoint);
        }
        Ok(())
    }

    /// An endpoint's interface belongs to this bridge or VRF now; 0 where it belongs to none. Packets that come in by
    /// that are the endpoint's, too.
    pub fn set_master(&mut self, ifindex: u32, master: u32) -> Result<(), ApplyError> {
        self.tables.set_master(ifindex, master)
    }

    /// Attaches programs, and makes sure that they run. What is attached and cannot be proven to run stays, because
    /// it may judge more than nothing.
    fn put(
        &mut self,
        role: Role,
        ifindex: u32,
        interface: &str,
        haste: Haste,
        programs: &'static [Program],
    ) -> Result<(), AttachError> {
        self.watched.forget(ifindex, role);
        let mut tc = self.connection(interface)?;
        let attachments = match role {
            Role::Endpoint => &mut self.attachments,
            Role::Netdev => &mut self.netdevs,
        };
        let before = attachments.get_mut(&ifindex);
        let mut site = Site {
            ebpf: &mut self.ebpf,
            bpffs: &self.bpffs,
            tc: &mut tc,
            mode: self.attach_mode,
            ours: self.watched.ours(),
            held: before
                .map(|before| std::mem::take(&mut before.links))
                .unwrap_or_default(),
        };
        let attachment = match attach::attach(&mut site, ifindex, interface, haste, programs) {
            Ok(attachment) => attachment,
            Err(error) => {
                if let Some(before) = attachments.get_mut(&ifindex) {
                    before.links = site.held;
                }
                return Err(error);
            }
        };
        // First, so that nothing is missed that happens after the proof.
        self.watched.expect(ifindex, role, &attachment.hooks);
        let proven = attach::prove(&mut site, &attachment);
        attachments.insert(ifindex, attachment);
        match proven {
            Ok(()) => self.tc = Some(tc),
            // The connection may not be in order any more.
            Err(_) => self.watched.forget(ifindex, role),
        }
        proven
    }

    fn take(&mut self, role: Role, ifindex: u32) -> Result<(), AttachError> {
        self.watched.forget(ifindex, role);
        let mut tc = self.connection("")?;
        let attachments = match role {
            Role::Endpoint => &mut self.attachments,
            Role::Netdev => &mut self.netdevs,
        };
        let Some(attachment) = attachments.remove(&ifindex) else {
            return Ok(());
        };
        attach::detach(&self.bpffs, &mut tc, attachment)?;
        self.tc = Some(tc);
        Ok(())
    }

    fn connection(&mut self, interface: &str) -> Result<Tc, AttachError> {
        match self.tc.take() {
            Some(tc) => Ok(tc),
            None => Tc::open().map_err(|source| AttachError::Ask {
                interface: interface.to_owned(),
                source,
            }),
        }
    }

    /// Begins to watch that what is attached from now on stays so, in this thread's network namespace.
    ///
    /// # Errors
    ///
    /// When netlink is not to be had.
    pub fn watch(&self) -> io::Result<Drifts> {
        watch::start(&self.watched)
    }

    /// Detaches both programs; an interface that is gone, or was never attached, is no error. To be
    /// called before the endpoint's row is deleted.
    pub fn detach(&mut self, ifindex: u32) -> Result<(), AttachError> {
        self.take(Role::Endpoint, ifindex)
    }

    /// Attaches the program that an interface of the node itself is to have. Where an earlier agent's
    /// is attached, it is replaced without a gap.
    pub fn attach_netdev(
        &mut self,
        ifindex: u32,
        interface: &str,
        program: NetdevProgram,
        haste: Haste,
    ) -> Result<(), AttachError> {
        self.put(Role::Netdev, ifindex, interface, haste, program.programs())
    }

    /// Detaches it; an interface that is gone, or was never attached, is no error.
    pub fn detach_netdev(&mut self, ifindex: u32) -> Result<(), AttachError> {
        self.take(Role::Netdev, ifindex)
    }

    /// Removes what an earlier agent left attached to interfaces that are not attached now, and
    /// returns the interfaces. To be called once every local endpoint and netdev is attached, never before.
    pub fn prune(&mut self) -> Result<Vec<u32>, AttachError> {
        if let Some(changeover) = &mut self.changeover {
            changeover.finish().map_err(|source| AttachError::Pin {
                path: self.bpffs.clone(),
                source,
            })?;
        }
        let mut tc = self.connection("")?;
        attach::prune(&self.bpffs, &mut tc, &self.attachments, &self.netdevs)
    }

    /// The interfaces that the programs are attached to.
    #[must_use]
    pub fn attached(&self) -> Vec<Attached> {
        self.attachments
            .values()
            .map(Attachment::describe)
            .collect()
    }

    /// Use and capacity of the tables that operations write; costs next to nothing.
    #[must_use]
    pub fn written_tables(&self) -> Vec<TableUse> {
        self.tables.usage()
    }

    /// The tables that the programs write, to be counted elsewhere.
    #[must_use]
    pub fn flow_tables(&self) -> FlowTables {
        self.tables.flows().clone()
    }

    /// Use and capacity of every table. Counts flows one by one: for a person, not a loop.
    ///
    /// # Errors
    ///
    /// When the kernel refuses to be asked.
    pub fn tables(&self) -> io::Result<Vec<TableUse>> {
        let mut tables = self.tables.usage();
        tables.extend(self.tables.flows().count()?);
        Ok(tables)
    }

    /// Packets and bytes by direction and reason, summed over CPUs; every pair has a row.
    pub fn counters(&self) -> Result<Vec<CounterRow>, ApplyError> {
        self.tables.counters()
    }

    /// Events that were not sent since load: (because of the rate limit, because the buffer was full).
    pub fn events_lost(&self) -> Result<(u64, u64), ApplyError> {
        self.tables.events_lost()
    }

    /// The stream of drop events; may be taken once. Must be called within a tokio runtime.
    pub fn events(&mut self) -> Result<EventStream, LoadError> {
        events::stream(&mut self.ebpf)
    }

    /// The loaded object, for tests that run packets through the programs.
    pub fn ebpf_mut(&mut self) -> &mut Ebpf {
        &mut self.ebpf
    }
}
