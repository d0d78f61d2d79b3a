//! The floor programs, and `rotate`, loaded.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Array, ProgramArray};
use aya::programs::{ProgramFd, SchedClassifier};
use aya::{Ebpf, EbpfLoader};
use policy_common::bench::Rotation;

use crate::testrun;

/// The benchmark's own object.
pub(super) struct Floor {
    ebpf: Ebpf,
}

#[derive(Clone, Copy)]
#[repr(transparent)]
struct Row<T>(T);
// SAFETY: as for the dataplane's rows: plain numbers without padding.
unsafe impl<T: bytemuck::Pod> aya::Pod for Row<T> {}

impl Floor {
    pub(super) fn load(object: &Path, flows: u32) -> Result<Self> {
        let bytes = fs::read(object).with_context(|| format!("read {}", object.display()))?;
        let mut loader = EbpfLoader::new();
        loader.map_max_entries("floor_flows", flows);
        let mut ebpf = loader.load(&bytes).context("load the floor programs")?;
        let names: Vec<String> = ebpf.programs().map(|(name, _)| name.to_owned()).collect();
        for name in names {
            let program: &mut SchedClassifier = ebpf
                .program_mut(&name)
                .context("a name just listed")?
                .try_into()?;
            program.load().with_context(|| format!("load {name}"))?;
        }
        Ok(Self { ebpf })
    }

    /// Runs a floor program on a packet; nanoseconds per run.
    pub(super) fn run(&mut self, name: &str, frame: &[u8], times: u32) -> Result<u32> {
        let program: &SchedClassifier = self
            .ebpf
            .program(name)
            .context("no such floor")?
            .try_into()?;
        Ok(testrun::run_program(program, testrun::LOOPBACK, frame, times)?.1)
    }

    /// The descriptor of a floor program, for `rotate` to go on with.
    pub(super) fn fd(&self, name: &str) -> Result<ProgramFd> {
        let program: &SchedClassifier = self
            .ebpf
            .program(name)
            .context("no such floor")?
            .try_into()?;
        Ok(program.fd()?.try_clone()?)
    }

    /// Runs `next` behind `rotate`; nanoseconds per run of both.
    pub(super) fn run_rotating(
        &mut self,
        next: &ProgramFd,
        rotation: Rotation,
        frame: &[u8],
        times: u32,
    ) -> Result<u32> {
        let mut array: Array<_, Row<Rotation>> = self
            .ebpf
            .map_mut("rotation")
            .context("rotation")?
            .try_into()?;
        array.set(0, Row(rotation), 0)?;
        let mut programs: ProgramArray<_> =
            self.ebpf.map_mut("next").context("next")?.try_into()?;
        programs.set(0, next, 0)?;
        self.run("rotate", frame, times)
    }

    /// Fills the floor's prefix table with `count` networks of 24 bits.
    pub(super) fn fill_prefixes(&mut self, count: u32) -> Result<()> {
        let mut trie: LpmTrie<_, [u8; 4], u32> = self
            .ebpf
            .map_mut("floor_prefixes")
            .context("floor_prefixes")?
            .try_into()?;
        for index in 0..count {
            let network = (0x0a00_0000 + (index << 8)).to_be_bytes();
            trie.insert(&Key::new(24, network), 1, 0)?;
        }
        Ok(())
    }
}
