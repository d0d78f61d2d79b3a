//! The real object on the real kernel, with packets by BPF_PROG_TEST_RUN.
//!
//! What this proves: the verdict of the programs that are shipped, for any packet and any tables. What
//! it cannot: `skb->sk` (the kernel puts a stand-in there, which the programs tell apart) and
//! non-linear packets; those are tested in network namespaces with real traffic.

use std::collections::BTreeMap;
use std::net::IpAddr;

use anyhow::{Context, Result, ensure};
use aya::programs::{SchedClassifier, TestRun, TestRunOptions};
use policy_agent::dataplane::{CounterRow, Dataplane, DataplaneConfig};
use policy_common::service::ServiceAddress;
use policy_common::verdict::{Direction, Reason, Verdict};
use policy_core::op::Op;

/// Size of the kernel's `struct __sk_buff`, and the offsets of `mark` and `ifindex` in it (linux/bpf.h).
const SK_BUFF_SIZE: usize = 192;
const SK_BUFF_MARK: usize = 8;
const SK_BUFF_IFINDEX: usize = 40;

/// The loopback interface, which every network namespace has under this index.
pub const LOOPBACK: u32 = 1;

/// A loaded dataplane that packets are run through.
pub struct Machine {
    /// The dataplane itself.
    pub dataplane: Dataplane,
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
        Ok(Self { dataplane })
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

    /// Runs a frame that bears `mark` through the program of this name, as if on `ifindex`.
    pub fn pass(
        &mut self,
        program: &str,
        ifindex: u32,
        frame: &[u8],
        mark: u32,
    ) -> Result<Passage> {
        let before = self.counts()?;
        let program = self.program(program)?;
        let ((action, _), mark) = run_marked(program, ifindex, frame, mark, 1)?;
        let counted = self.counts()?.into_iter();
        let counted = counted
            .filter(|(key, packets)| before[key] != *packets)
            .map(|(key, _)| key)
            .collect();
        Ok(Passage {
            passed: action == -1,
            mark,
            counted,
        })
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

/// What one program did with a packet that may bear a mark.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Passage {
    /// Whether it let the packet through.
    pub passed: bool,
    /// The packet's mark afterwards.
    pub mark: u32,
    /// What was counted, in the order of directions.
    pub counted: Vec<(Direction, Reason)>,
}

/// Runs a frame `times` times through a program as if on `ifindex`; returns the action and nanoseconds
/// per run.
pub fn run_program(
    program: &SchedClassifier,
    ifindex: u32,
    frame: &[u8],
    times: u32,
) -> Result<(i32, u32)> {
    Ok(run_marked(program, ifindex, frame, 0, times)?.0)
}

/// As [`run_program`] for a frame that bears `mark`; returns its mark afterwards too.
pub fn run_marked(
    program: &SchedClassifier,
    ifindex: u32,
    frame: &[u8],
    mark: u32,
    times: u32,
) -> Result<((i32, u32), u32)> {
    let mut context = [0; SK_BUFF_SIZE];
    let mut after = [0; SK_BUFF_SIZE];
    context[SK_BUFF_MARK..SK_BUFF_MARK + 4].copy_from_slice(&mark.to_ne_bytes());
    context[SK_BUFF_IFINDEX..SK_BUFF_IFINDEX + 4].copy_from_slice(&ifindex.to_ne_bytes());
    let result = program.test_run(TestRunOptions {
        data_in: Some(frame),
        ctx_in: Some(&context),
        ctx_out: Some(&mut after),
        repeat: times,
        ..TestRunOptions::default()
    })?;
    let mark = after[SK_BUFF_MARK..SK_BUFF_MARK + 4]
        .try_into()
        .map(u32::from_ne_bytes)?;
    let timed = (
        result.return_value as i32,
        result.duration.as_nanos() as u32,
    );
    Ok((timed, mark))
}
