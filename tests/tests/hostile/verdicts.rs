//! Sends a table's packets, all of them, and says who saw which.

use std::collections::{BTreeMap, BTreeSet};
use std::thread;
use std::time::{Duration, Instant};

use portcullis_tests::netns::{Injector, PATIENCE, SILENCE};

use super::attacks::{Attack, Table};
use super::scene::{Base, Scene, Who};

/// Who saw an attack, by its number.
pub(super) type Seen = BTreeMap<usize, BTreeSet<&'static str>>;

/// A marker: what no other packet holds.
pub(super) fn marker(number: usize) -> Vec<u8> {
    format!("PCL{number:07}!").into_bytes()
}

const MARKER_LENGTH: usize = 11;

fn markers_in(frame: &[u8]) -> impl Iterator<Item = usize> + '_ {
    frame.windows(MARKER_LENGTH).filter_map(|window| {
        let number = window.strip_prefix(b"PCL")?.strip_suffix(b"!")?;
        std::str::from_utf8(number).ok()?.parse().ok()
    })
}

pub(super) fn name(who: Who) -> &'static str {
    match who {
        Who::Evil => "evil",
        Who::Tool => "tool",
        Who::Web => "web",
        Who::Db => "db",
        Who::Open => "open",
        Who::Friend => "friend",
        Who::Stranger => "stranger",
        Who::Peer => "peer",
        Who::Node => "node",
    }
}

/// Sends everything, and waits until nothing more comes.
pub(super) fn fire(scene: &Scene, table: &Table) -> Seen {
    look(scene);
    for attack in &table.attacks {
        let injector = Injector::new(scene.host(attack.from).netns(), "eth0").unwrap();
        for frame in &attack.frames {
            injector.send(&attack.marked(frame)).unwrap();
        }
    }
    let mut seen = Seen::new();
    let deadline = Instant::now() + PATIENCE;
    let mut quiet = Instant::now();
    while quiet.elapsed() < SILENCE && Instant::now() < deadline {
        let more = look(scene);
        if !more.is_empty() {
            quiet = Instant::now();
        }
        for (number, who) in more {
            seen.entry(number).or_default().insert(who);
        }
        thread::sleep(Duration::from_millis(5));
    }
    seen
}

/// Markers that arrived since the last look, and where.
pub(super) fn look(scene: &Scene) -> Vec<(usize, &'static str)> {
    let sniffers = scene.sniffers.iter();
    sniffers
        .flat_map(|(who, sniffer)| {
            let frames = sniffer.frames().unwrap();
            let markers: BTreeSet<_> = frames.iter().flat_map(|frame| markers_in(frame)).collect();
            markers.into_iter().map(|number| (number, name(*who)))
        })
        .collect()
}

/// Without an agent every attack has to get somewhere where it may not, except those that the table knows of.
pub(super) fn check_baseline(table: &Table, seen: &Seen) {
    let idle: Vec<_> = table
        .attacks
        .iter()
        .filter(|attack| !attack.may_be_inert && forbidden(attack, seen).is_empty())
        .map(|attack| format!("  {} {}", name(attack.from), attack.name))
        .collect();
    assert!(
        idle.is_empty(),
        "these prove nothing, because they get nowhere without an agent either:\n{}",
        idle.join("\n")
    );
}

fn forbidden(attack: &Attack, seen: &Seen) -> Vec<&'static str> {
    let by = seen.get(&attack.number);
    let by = by.into_iter().flatten().copied();
    by.filter(|by| *by != name(attack.from))
        .filter(|by| !attack.may_see.iter().any(|who| name(*who) == *by))
        .collect()
}

/// What gained something.
pub(super) fn judge(scene: &Scene, table: &Table, seen: &Seen) -> Vec<String> {
    let wrong = table.attacks.iter().filter_map(|attack| {
        let by = forbidden(attack, seen);
        (!by.is_empty()).then(|| {
            format!(
                "  {} {}: expected nothing, got a packet at {}",
                name(attack.from),
                attack.name,
                by.join(", ")
            )
        })
    });
    let wrong: Vec<_> = wrong.collect();
    println!(
        "{:?}: {} attacks, {} got through",
        scene.base,
        table.attacks.len(),
        wrong.len()
    );
    wrong
}

/// Fails with all that went wrong.
#[track_caller]
pub(super) fn finish(base: Base, wrong: &[String]) {
    println!("{base:?}: {} wrong in all", wrong.len());
    assert!(wrong.is_empty(), "{base:?}:\n{}", wrong.join("\n"));
}
