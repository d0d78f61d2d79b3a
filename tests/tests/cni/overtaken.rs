//! Endpoints that clsact holds, and TCX programs of others, which run before every filter.

use std::ffi::CString;
use std::fs;
use std::os::fd::{AsFd as _, AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use aya::programs::links::LinkOrder;
use aya::programs::tc::TcAttachOptions;
use aya::programs::{SchedClassifier, TcAttachType};
use aya::util::KernelVersion;
use portcullis_tests::netns::{Agent, Netns, Outcome, PATIENCE, Probe, SILENCE, What, probe};

use super::starts::host_interface;
use super::{machine, network};

/// A program that lets every packet pass for good, so that no filter sees it.
struct PassesAll {
    program: SchedClassifier,
}

impl PassesAll {
    /// Two instructions need no object file: `r0 = TC_ACT_OK; exit`.
    fn load(pin: &Path) -> Self {
        const INSTRUCTIONS: [u64; 2] = [0xb7, 0x95];
        const PROG_LOAD: i64 = 5;
        const OBJ_PIN: i64 = 6;
        const SCHED_CLS: u64 = 3;
        let license = c"GPL";
        let path = CString::new(pin.as_os_str().as_bytes()).unwrap();
        let count = (INSTRUCTIONS.len() as u64) << 32;
        let mut load = [0_u64; 16];
        load[..3].copy_from_slice(&[
            SCHED_CLS | count,
            INSTRUCTIONS.as_ptr() as u64,
            license.as_ptr() as u64,
        ]);
        let fd = bpf(PROG_LOAD, &load);
        let mut pinned = [0_u64; 16];
        pinned[..2].copy_from_slice(&[
            path.as_ptr() as u64,
            u64::from(fd.as_raw_fd().cast_unsigned()),
        ]);
        let _no_fd = bpf(OBJ_PIN, &pinned);
        let program = SchedClassifier::from_pin(pin).unwrap();
        fs::remove_file(pin).unwrap();
        Self { program }
    }

    /// Attaches it by TCX, in front of all others, for as long as this lives.
    fn attach(&mut self, netns: &Netns, interface: &str) {
        let order = TcAttachOptions::TcxOrder(LinkOrder::first());
        let program = &mut self.program;
        netns
            .enter(|| program.attach_with_options(interface, TcAttachType::Egress, order))
            .unwrap();
    }
}

/// bpf(2), for what gives a file descriptor or zero.
fn bpf(command: i64, attributes: &[u64; 16]) -> OwnedFd {
    // SAFETY: the attributes, and what they point to, live as long as the call, and are as long as is said.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            attributes.as_ptr(),
            size_of_val(attributes),
        )
    };
    let fd = i32::try_from(result).unwrap();
    assert!(fd >= 0, "{}", std::io::Error::last_os_error());
    if fd == 0 {
        return std::io::stdin().as_fd().try_clone_to_owned().unwrap();
    }
    // SAFETY: a new descriptor, which nobody else has.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

#[test]
fn ours_goes_in_front_of_tcx_programs_of_others() {
    if KernelVersion::current().unwrap() < KernelVersion::new(6, 6, 0) {
        println!("skipped: this kernel has no TCX");
        return;
    }
    let node = machine();
    let (network, outside) = network(&node, "ptp");
    let agent = Agent::start(&node).unwrap();
    let mut sandboxes = ["before", "after"].map(|name| {
        node.datastore()
            .put_pod("shop", name, &[], &[], &[])
            .unwrap();
        network.sandbox("shop", name)
    });
    let [overtaken, second] = &mut sandboxes;
    network.add(overtaken).unwrap();
    let [at] = &agent.status().unwrap().programs[..] else {
        panic!("one endpoint");
    };
    assert_eq!(at.mode, "clsact");
    let pin = node
        .bpffs()
        .join(format!("links/{}-to_pod-clsact", at.ifindex));

    // One that was there first.
    network.add_without_ours(second).unwrap();
    let mut others = PassesAll::load(Path::new(&format!("/sys/fs/bpf/{}-passes", node.prefix())));
    others.attach(node.netns(), &host_interface(second));
    network.add_ours(second).unwrap();
    let modes = |agent: &Agent<'_>| {
        let programs = agent.status().unwrap().programs;
        programs
            .iter()
            .map(|at| at.mode.clone())
            .collect::<Vec<_>>()
    };
    assert_eq!(modes(&agent), ["clsact", "tcx"]);

    // One that comes later.
    others.attach(node.netns(), &at.interface);
    agent
        .wait_for_status(|status| status.programs.iter().all(|at| at.mode == "tcx"))
        .unwrap();
    agent
        .wait_for_log(|line| line.contains("runs before to_pod"))
        .unwrap();
    assert!(!pin.exists(), "the filter's mark went with it");

    // At an interface by which packets leave the node.
    let exits = agent.status().unwrap().exits;
    let mut exits = exits
        .iter()
        .filter(|exit| exit.interface.starts_with("pcl-out"));
    let exit = exits.next().unwrap();
    let pins = |end| {
        let name = format!("links/{}-exit{end}", exit.ifindex);
        node.bpffs().join(name).exists()
    };
    assert_eq!([pins(""), pins("-clsact")], [true, false]);
    others.attach(node.netns(), &exit.interface);
    agent
        .wait_for_log(|line| line.contains("runs before exit") && line.contains(&exit.interface))
        .unwrap();
    // While it moves, a filter stands in for it.
    let deadline = Instant::now() + PATIENCE;
    while [pins(""), pins("-clsact")] != [true, false] {
        assert!(Instant::now() < deadline, "the filter stays");
        thread::sleep(Duration::from_millis(1));
    }
    for pod in &sandboxes {
        network.check(pod).unwrap();
        let outcome = probe(&Probe {
            from: outside.netns(),
            to: pod.address(true),
            what: What::Ping,
            patience: SILENCE,
        });
        assert_eq!(outcome, Outcome::Silent);
    }
    agent.kill().unwrap();
    let agent = Agent::start(&node).unwrap();
    assert_eq!(modes(&agent), ["tcx", "tcx"]);
    for pod in &sandboxes {
        network.del(pod).unwrap();
    }
}
