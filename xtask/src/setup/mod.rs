//! `cargo xtask setup`: finds or installs what a build and the tests need. Silent when all is there.

mod apt;
mod compiler;
mod linker;
mod qemu;

pub(crate) use apt::{mirrors, private_configuration};
pub(crate) use compiler::{Compiler, TARGET};
pub(crate) use qemu::PROGRAM as QEMU;

use anyhow::Result;

use crate::layout::Layout;

/// A program, and the Debian package that has it.
type Tool = (&'static str, &'static str);

/// What the build, the demo and the tests on this kernel run.
const TOOLS: &[Tool] = &[
    ("cc", "gcc"),
    ("bpftool", "bpftool"),
    ("ip", "iproute2"),
    ("ping", "iputils-ping"),
];

/// What makes a guest for another kernel.
const GUEST_TOOLS: &[Tool] = &[
    ("busybox", "busybox-static"),
    ("dash", "dash"),
    ("cpio", "cpio"),
    ("depmod", "kmod"),
    ("xz", "xz-utils"),
];

/// The subcommand.
pub(crate) fn run(layout: &Layout, kernels: bool) -> Result<()> {
    for_build()?;
    for_tests()?;
    if kernels {
        for_kernels(layout)?;
    }
    Ok(())
}

/// What `build` needs.
pub(crate) fn for_build() -> Result<Compiler> {
    apt::ensure_tools(&TOOLS[..1], "to link programs")?;
    let compiler = compiler::ensure()?;
    linker::ensure(&compiler)?;
    Ok(compiler)
}

/// Packages without a program on the path: the reference CNI plugins.
const TEST_PACKAGES: &[&str] = &["containernetworking-plugins"];

/// What `demo`, `test` and `bench` need besides.
pub(crate) fn for_tests() -> Result<()> {
    apt::ensure_tools(&TOOLS[1..], "for the tests and the demo")?;
    apt::ensure_packages(TEST_PACKAGES, "for the tests of the CNI plugin")
}

/// What `test --kernel` needs besides.
pub(crate) fn for_kernels(layout: &Layout) -> Result<()> {
    apt::ensure_tools(GUEST_TOOLS, "to make guests for other kernels")?;
    qemu::ensure(layout)
}
