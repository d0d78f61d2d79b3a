//! The demo keeps its promises, and leaves nothing behind, interrupted or not.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

fn start() -> Child {
    Command::new(env!("CARGO_BIN_EXE_portcullis-demo"))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

/// What the demo with this process id left.
fn left_behind(pid: u32) -> Vec<String> {
    let prefix = format!("pcl-{pid}-");
    [
        "/run/netns",
        "/sys/fs/bpf",
        std::env::temp_dir().to_str().unwrap(),
    ]
    .into_iter()
    .filter(|directory| Path::new(directory).exists())
    .flat_map(|directory| fs::read_dir(directory).unwrap())
    .map(|entry| entry.unwrap().path().display().to_string())
    .filter(|path| path.contains(&prefix))
    .collect()
}

#[test]
fn it_shows_policies_at_work() {
    let mut demo = start();
    let mut shown = String::new();
    demo.stdout
        .take()
        .unwrap()
        .read_to_string(&mut shown)
        .unwrap();
    assert!(demo.wait().unwrap().success(), "{shown}");
    assert!(
        !shown.contains('\x1b'),
        "no colours where there is no terminal"
    );
    assert!(
        shown
            .lines()
            .all(|line| !line.starts_with("  from") || line.len() <= 80)
    );
    // The last table; columns are web, api, db, backup, dns, friend and stranger.
    let rows = [
        ("shop/web", vec!["tcp", "-", "-*", "udp*", "-*", "-*"]),
        (
            "shop/api",
            vec!["-", "-", "tcp+udp", "tcp+udp", "tcp+udp", "tcp+udp"],
        ),
        (
            "tools/backup",
            vec!["-", "-", "tcp+udp", "tcp+udp", "tcp+udp", "tcp+udp"],
        ),
        ("friend", vec!["tcp+udp", "-", "-", "tcp+udp", "tcp+udp"]),
        ("stranger", vec!["-", "-", "-", "tcp+udp", "tcp+udp"]),
    ];
    for (name, cells) in rows {
        let line = shown
            .lines()
            .rfind(|line| line.starts_with(&format!("  {name} ")) && line.contains('-'))
            .unwrap_or_else(|| panic!("{name} in {shown}"));
        let line: Vec<_> = line.split_whitespace().skip(1).collect();
        assert_eq!(line, cells, "{name} in {shown}");
    }
    for wanted in [
        "to shop/db: passes; from shop/db to tools/backup: passes",
        "to shop/db: dropped; from shop/db to tools/backup: dropped",
        "HOSTNAME   ORCHESTRATOR   WORKLOAD",
        "\"local_port\":",
        "reason=policy_denied",
    ] {
        assert!(shown.contains(wanted), "{wanted} in {shown}");
    }
    assert_eq!(left_behind(demo.id()), [""; 0]);
}

#[test]
fn interrupting_it_leaves_nothing() {
    let mut demo = start();
    let shown = BufReader::new(demo.stdout.take().unwrap());
    let mut lines = shown.lines().map(Result::unwrap);
    assert!(
        lines.any(|line| line.starts_with("1. ")),
        "the first policy"
    );
    assert_ne!(left_behind(demo.id()), [""; 0]);
    kill(Pid::from_raw(demo.id().cast_signed()), Signal::SIGINT).unwrap();
    // Read on, or it would wait for us.
    assert!(!lines.any(|line| line.starts_with("Done")));
    assert_eq!(demo.wait().unwrap().code(), Some(130));
    assert_eq!(left_behind(demo.id()), [""; 0]);
}
