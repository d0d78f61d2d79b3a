//! The real object on the real kernel, with packets by BPF_PROG_TEST_RUN.
//!
//! What this proves: the verdict of the programs that are shipped, for any packet and any tables. What
//! it cannot: `skb->sk` (the kernel puts a stand-in there, which the programs tell apart) and
//! non-linear packets; those are tested in network namespaces with real traffic. A test run's context has no place for
//! `skb->hash` and `skb->tc_index`: the program `carry` sets them, and goes on with the one under test.

use std::collections::BTreeMap;
use std::net::IpAddr;

use anyhow::{Context, Result, ensure};
use aya::maps::{Array, ProgramArray};
use aya::programs::{ProgramFd, SchedClassifier, TestRun, TestRunOptions};
use aya::{Ebpf, EbpfLoader};
use policy_agent::dataplane::{CounterRow, Dataplane, DataplaneConfig};
use policy_common::bench::Carriage;
use policy_common::carrier::{self, Tag};
use policy_common::service::ServiceAddress;
use policy_common::verdict::{Direction, Reason, Verdict};
use policy_core::op::Op;

/// Size of the kernel's `struct __sk_buff`, and the offsets of `mark`, `ingress_ifindex` and `ifindex` in it
/// (linux/bpf.h).
const SK_BUFF_SIZE: usize = 192;
const SK_BUFF_MARK: usize = 8;
const SK_BUFF_INGRESS_IFINDEX: usize = 36;
const SK_BUFF_IFINDEX: usize = 40;

/// The loopback interface, which every network namespace has under this index.
pub const LOOPBACK: u32 = 1;

/// A loaded dataplane that packets are run through.
pub struct Machine {
    /// The dataplane itself.
    pub dataplane: Dataplane,
    /// Holds the program `carry`, once something was carried.
    carrier: Option<Carrier>,
}

/// What became of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Why it passed or dropped, from the counters.
    pub reason: Reason,
    /// Nanoseconds per run, as the kernel measured them.
    pub nanoseconds: u32,
}

impl Outcome {
    /// Whether it passed.
    #[must_use]
    pub fn passed(&self) -> bool {
        self.reason.verdict() == Verdict::Pass
    }
}

impl Machine {
    /// Loads the object with small tables and no pins.
    pub fn new() -> Result<Self> {
        Self::with(DataplaneConfig::default())
    }

    /// Loads the object with a configuration of one's own; pins are off in any case, and tables that
    /// it does not size are small.
    pub fn with(mut config: DataplaneConfig) -> Result<Self> {
        config.pin = false;
        let small = [
            ("flows_v4", 4096),
            ("flows_v6", 4096),
            ("flows_new_v4", 4096),
            ("flows_new_v6", 4096),
            ("fragments", 256),
        ];
        for (name, size) in small {
            config.capacities.entry(name.to_owned()).or_insert(size);
        }
        let dataplane = Dataplane::load(&config).context(
            "load the eBPF object (tests need root, and PORTCULLIS_BPF_OBJECT at build time: \
             use `cargo xtask test`)",
        )?;
        Ok(Self {
            dataplane,
            carrier: None,
        })
    }

    /// Executes operations in order.
    pub fn apply(&mut self, ops: &[Op]) -> Result<()> {
        for op in ops {
            self.dataplane
                .apply(op)
                .with_context(|| format!("{op:?}"))?;
        }
        Ok(())
    }

    /// Runs a frame through `from_pod` (egress) or `to_pod` (ingress) as if on `ifindex`.
    pub fn run(&mut self, direction: Direction, ifindex: u32, frame: &[u8]) -> Result<Outcome> {
        let before = self.counts()?;
        let (action, nanoseconds) = self.repeat(direction, ifindex, frame, 1)?;
        let mut counted = self
            .counts()?
            .into_iter()
            .filter(|(key, packets)| before[key] != *packets);
        let ((counted_direction, reason), _) = counted.next().context("nothing was counted")?;
        ensure!(counted.next().is_none(), "one packet was counted twice");
        ensure!(
            counted_direction == direction,
            "counted as {counted_direction:?}"
        );
        // TC_ACT_UNSPEC and TC_ACT_SHOT of linux/pkt_cls.h.
        let expected = match reason.verdict() {
            Verdict::Pass => -1,
            Verdict::Drop => 2,
        };
        ensure!(
            action == expected,
            "{reason:?} was counted, and the action was {action}"
        );
        Ok(Outcome {
            reason,
            nanoseconds,
        })
    }

    /// Runs a frame `times` times; returns the action and nanoseconds per run.
    pub fn repeat(
        &mut self,
        direction: Direction,
        ifindex: u32,
        frame: &[u8],
        times: u32,
    ) -> Result<(i32, u32)> {
        let name = match direction {
            Direction::Egress => "from_pod",
            Direction::Ingress => "to_pod",
        };
        run_program(self.program(name)?, ifindex, frame, times)
    }

    /// Runs a frame with what it carries through the program of this name, as if on `ifindex`.
    pub fn pass(
        &mut self,
        program: &str,
        ifindex: u32,
        frame: &[u8],
        carried: Carried,
    ) -> Result<Passage> {
        let before = self.counts()?;
        let next = self.program_fd(program)?;
        let after = self.carrier()?.look(&next, ifindex, frame, carried)?;
        let counted: Vec<_> = self
            .counts()?
            .into_iter()
            .filter(|(key, packets)| before[key] != *packets)
            .map(|(key, _)| key)
            .collect();
        Ok(Passage {
            passed: counted
                .iter()
                .all(|(_, reason)| reason.verdict() == Verdict::Pass),
            carried: after,
            counted,
        })
    }

    /// Runs a frame with what it carries `times` times through the program of this name; returns the action and
    /// nanoseconds per run, `carry` included.
    pub fn repeat_carrying(
        &mut self,
        program: &str,
        ifindex: u32,
        frame: &[u8],
        carried: Carried,
        times: u32,
    ) -> Result<(i32, u32)> {
        let next = self.program_fd(program)?;
        self.carrier()?
            .repeat(&next, ifindex, frame, carried, times)
    }

    /// Whether this kernel's test runs take the interface that a packet came in by. Says so where they do not: Linux 5.10.
    pub fn takes_ingress(&mut self) -> Result<bool> {
        let program = self.program("from_node")?;
        let takes = run_from(program, LOOPBACK, &[0; 64], LOOPBACK, 1).is_ok();
        if !takes {
            println!(
                "SKIPPED: test runs of this kernel take no interface that a packet came in by"
            );
        }
        Ok(takes)
    }

    fn program_fd(&mut self, name: &str) -> Result<ProgramFd> {
        Ok(self.program(name)?.fd()?.try_clone()?)
    }

    fn carrier(&mut self) -> Result<&mut Carrier> {
        if self.carrier.is_none() {
            self.carrier = Some(Carrier::load()?);
        }
        self.carrier.as_mut().context("just loaded")
    }

    /// Makes an address one that is translated later.
    pub fn put_service(&mut self, address: IpAddr) -> Result<()> {
        self.apply(&[Op::PutService {
            address,
            row: ServiceAddress {
                kind: ServiceAddress::SERVICE,
            },
        }])
    }

    /// A program of the object.
    pub fn program(&mut self, name: &str) -> Result<&SchedClassifier> {
        Ok(self
            .dataplane
            .ebpf_mut()
            .program(name)
            .with_context(|| format!("no program {name}"))?
            .try_into()?)
    }

    fn counts(&self) -> Result<BTreeMap<(Direction, Reason), u64>> {
        let rows: Vec<CounterRow> = self.dataplane.counters()?;
        Ok(rows
            .into_iter()
            .map(|row| ((row.direction, row.reason), row.packets))
            .collect())
    }
}

/// What a packet carries beside its bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Carried {
    /// `skb->hash`.
    pub hash: u32,
    /// `skb->tc_index`.
    pub tag: u32,
    /// The interface that it came in by.
    pub ingress: u32,
}

impl Carried {
    /// What `from_pod` gives a packet of the endpoint in `slot` that is to be judged, which came in by `ingress`.
    #[must_use]
    pub fn deferred(slot: u32, ingress: u32) -> Self {
        Self {
            hash: carrier::encode(slot, 0),
            tag: Tag::DEFERRED | slot,
            ingress,
        }
    }

    /// The slot in its token, and its tag.
    #[must_use]
    pub fn named(&self) -> (u32, u32) {
        (carrier::decode(self.hash), self.tag)
    }
}

/// What one program did with a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Passage {
    /// Whether it let the packet through.
    pub passed: bool,
    /// What the packet carries afterwards.
    pub carried: Carried,
    /// What was counted, in the order of directions.
    pub counted: Vec<(Direction, Reason)>,
}

/// The program `carry`, loaded.
struct Carrier {
    ebpf: Ebpf,
}

#[derive(Clone, Copy)]
#[repr(transparent)]
struct Row<T>(T);
// SAFETY: as for the dataplane's rows: plain numbers without padding.
unsafe impl<T: bytemuck::Pod> aya::Pod for Row<T> {}

impl Carrier {
    fn load() -> Result<Self> {
        const OBJECT: &str = "PORTCULLIS_FLOOR_OBJECT";
        let path = std::env::var_os(OBJECT)
            .with_context(|| format!("{OBJECT} is not set: use `cargo xtask test`"))?;
        let mut ebpf = EbpfLoader::new().load_file(path).context("load `carry`")?;
        let program: &mut SchedClassifier =
            ebpf.program_mut("carry").context("carry")?.try_into()?;
        program.load()?;
        Ok(Self { ebpf })
    }

    fn row(&mut self) -> Result<Array<&mut aya::maps::MapData, Row<Carriage>>> {
        Ok(self
            .ebpf
            .map_mut("carriage")
            .context("carriage")?
            .try_into()?)
    }

    /// Runs the packet through `next`, and looks at what it carries then.
    fn look(
        &mut self,
        next: &ProgramFd,
        ifindex: u32,
        frame: &[u8],
        carried: Carried,
    ) -> Result<Carried> {
        self.prepare(next, carried, true)?;
        self.run(ifindex, frame, carried.ingress, 2)?;
        let after = self.row()?.get(&0, 0)?.0;
        Ok(Carried {
            hash: after.hash_after,
            tag: after.tag_after,
            ingress: carried.ingress,
        })
    }

    fn repeat(
        &mut self,
        next: &ProgramFd,
        ifindex: u32,
        frame: &[u8],
        carried: Carried,
        times: u32,
    ) -> Result<(i32, u32)> {
        self.prepare(next, carried, false)?;
        self.run(ifindex, frame, carried.ingress, times)
    }

    fn prepare(&mut self, next: &ProgramFd, carried: Carried, looks: bool) -> Result<()> {
        let carriage = Carriage {
            hash: carried.hash,
            tag: carried.tag,
            looks: u32::from(looks),
            ..Carriage::default()
        };
        self.row()?.set(0, Row(carriage), 0)?;
        let mut programs: ProgramArray<_> =
            self.ebpf.map_mut("next").context("next")?.try_into()?;
        Ok(programs.set(0, next, 0)?)
    }

    fn run(&self, ifindex: u32, frame: &[u8], ingress: u32, times: u32) -> Result<(i32, u32)> {
        let program: &SchedClassifier = self.ebpf.program("carry").context("carry")?.try_into()?;
        run_from(program, ifindex, frame, ingress, times)
    }
}

/// Runs a frame `times` times through a program as if on `ifindex`; returns the action and nanoseconds
/// per run.
pub fn run_program(
    program: &SchedClassifier,
    ifindex: u32,
    frame: &[u8],
    times: u32,
) -> Result<(i32, u32)> {
    run_from(program, ifindex, frame, 0, times)
}

/// As [`run_program`] for a frame that came in by the interface `ingress`.
fn run_from(
    program: &SchedClassifier,
    ifindex: u32,
    frame: &[u8],
    ingress: u32,
    times: u32,
) -> Result<(i32, u32)> {
    let mut context = [0; SK_BUFF_SIZE];
    for (at, value) in [
        (SK_BUFF_MARK, FOREIGN_MARK),
        (SK_BUFF_INGRESS_IFINDEX, ingress),
        (SK_BUFF_IFINDEX, ifindex),
    ] {
        context[at..at + 4].copy_from_slice(&value.to_ne_bytes());
    }
    let mut after = [0; SK_BUFF_SIZE];
    let result = program.test_run(TestRunOptions {
        data_in: Some(frame),
        ctx_in: Some(&context),
        ctx_out: Some(&mut after),
        repeat: times,
        ..TestRunOptions::default()
    })?;
    ensure!(
        after[SK_BUFF_MARK..SK_BUFF_MARK + 4] == FOREIGN_MARK.to_ne_bytes(),
        "the mark is not ours to write"
    );
    Ok((
        result.return_value as i32,
        result.duration.as_nanos() as u32,
    ))
}

/// The mark of every packet: somebody else's.
const FOREIGN_MARK: u32 = 0x0002_4001;
