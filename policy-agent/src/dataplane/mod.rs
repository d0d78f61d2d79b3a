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
mod installed;
mod load;
mod overtaken;
mod pinned;
mod removal;
mod row;
mod service_rows;
mod tables;
mod tcx;
mod verify;

pub use attach::{Attached, Haste, Mode};
pub use error::{ApplyError, AttachError, LoadError};
pub use events::EventStream;
pub use exits::LinkLayer;
pub use flow_tables::FlowTables;
pub use grace::wait as wait_for_grace;
pub use installed::{Installed, Part};
pub use load::{DataplaneConfig, OBJECT, capacities};
pub use removal::remove;
pub use tables::{CounterRow, TableUse};
pub use verify::{Drift, DriftedPart};

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;

use aya::Ebpf;
use policy_core::op::Op;
use policy_core::tables::Tables as Former;

use attach::Attachment;
use changeover::Changeover;
use exits::Exit;
use tables::Tables;
use verify::TablePins;

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
    exits: BTreeMap<u32, Exit>,
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
        self.release_displaced(ifindex)?;
        let attachment = attach::attach(&mut self.ebpf, &self.bpffs, ifindex, interface, haste)?;
        self.attachments.insert(ifindex, attachment);
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

    /// Detaches both programs; an interface that is gone, or was never attached, is no error. To be
    /// called before the endpoint's row is deleted.
    pub fn detach(&mut self, ifindex: u32) -> Result<(), AttachError> {
        match self.attachments.remove(&ifindex) {
            Some(attachment) => attach::detach(&self.bpffs, attachment),
            None => Ok(()),
        }
    }

    /// Attaches the program that judges what leaves the host by this interface. Where an earlier agent's
    /// is attached, it is replaced without a gap.
    pub fn attach_exit(
        &mut self,
        ifindex: u32,
        interface: &str,
        layer: LinkLayer,
        haste: Haste,
    ) -> Result<(), AttachError> {
        let exit = exits::attach(
            &mut self.ebpf,
            &self.bpffs,
            ifindex,
            interface,
            layer,
            haste,
        )?;
        self.exits.insert(ifindex, exit);
        Ok(())
    }

    /// Detaches it; an interface that is gone, or was never attached, is no error.
    pub fn detach_exit(&mut self, ifindex: u32) -> Result<(), AttachError> {
        match self.exits.remove(&ifindex) {
            Some(exit) => exits::detach(&self.bpffs, exit),
            None => Ok(()),
        }
    }

    /// Removes what an earlier agent left attached to interfaces that are not attached now, and
    /// returns the interfaces. To be called once every local endpoint and exit is attached, never before.
    pub fn prune(&mut self) -> Result<Vec<u32>, AttachError> {
        if let Some(changeover) = &mut self.changeover {
            changeover.finish().map_err(|source| AttachError::Pin {
                path: self.bpffs.clone(),
                source,
            })?;
        }
        attach::prune(&self.bpffs, &self.attachments, &self.exits)
    }

    /// The interfaces that the programs are attached to.
    #[must_use]
    pub fn attached(&self) -> Vec<Attached> {
        self.attachments
            .values()
            .map(|attachment| attachment.describe(&self.ebpf))
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
