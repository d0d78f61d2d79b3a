//! The real object on the real kernel, with packets by BPF_PROG_TEST_RUN.
//!
//! What this proves: the verdict of the programs that are shipped, for any packet and any tables. What
//! it cannot: `skb->sk` (the kernel puts a stand-in there, which the programs tell apart) and
//! non-linear packets; those are tested in network namespaces with real traffic.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use aya::programs::{SchedClassifier, TestRun, TestRunOptions};
use policy_agent::dataplane::{CounterRow, Dataplane, DataplaneConfig};
use policy_common::verdict::{Direction, Reason, Verdict};
use policy_core::op::Op;

/// Size of the kernel's `struct __sk_buff`, and the offset of `ifindex` in it (linux/bpf.h).
const SK_BUFF_SIZE: usize = 192;
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
        let program: &SchedClassifier = self
            .dataplane
            .ebpf_mut()
            .program(name)
            .context("no such program")?
            .try_into()?;
        run_program(program, ifindex, frame, times)
    }

    fn counts(&self) -> Result<BTreeMap<(Direction, Reason), u64>> {
        let rows: Vec<CounterRow> = self.dataplane.counters()?;
        Ok(rows
            .into_iter()
            .map(|row| ((row.direction, row.reason), row.packets))
            .collect())
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
    let mut context = [0; SK_BUFF_SIZE];
    context[SK_BUFF_IFINDEX..SK_BUFF_IFINDEX + 4].copy_from_slice(&ifindex.to_ne_bytes());
    let result = program.test_run(TestRunOptions {
        data_in: Some(frame),
        ctx_in: Some(&context),
        repeat: times,
        ..TestRunOptions::default()
    })?;
    Ok((
        result.return_value as i32,
        result.duration.as_nanos() as u32,
    ))
}
