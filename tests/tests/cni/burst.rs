//! As many pods at once as a node has: what the plugin adds to each start.

use std::thread;
use std::time::{Duration, Instant};

use portcullis_tests::netns::Agent;

use super::{Network, machine};

/// The kubelet's default limit.
const PODS: usize = 110;

/// Prints how long our ADD takes, for one pod after the other and for all at once.
#[test]
#[ignore = "a measurement: run it by name, on a quiet machine"]
fn pods_started_at_once() {
    let node = machine();
    let network = Network::new(&node, "ptp");
    let _agent = Agent::start(&node).unwrap();
    let mut sandboxes: Vec<_> = (0..2 * PODS)
        .map(|number| {
            let name = format!("pod-{number}");
            node.datastore()
                .put_pod("shop", &name, &[], &[], &[])
                .unwrap();
            let mut sandbox = network.sandbox("shop", &name);
            network.add_without_ours(&mut sandbox).unwrap();
            sandbox
        })
        .collect();
    let (alone, together) = sandboxes.split_at_mut(PODS);
    let one_by_one = alone.iter_mut().map(|sandbox| {
        let began = Instant::now();
        network.add_ours(sandbox).unwrap();
        began.elapsed()
    });
    report("one after the other", one_by_one.collect());
    let began = Instant::now();
    let network = &network;
    let at_once = thread::scope(|scope| {
        let threads: Vec<_> = together
            .iter_mut()
            .map(|sandbox| {
                scope.spawn(move || {
                    let began = Instant::now();
                    network.add_ours(sandbox).unwrap();
                    began.elapsed()
                })
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect()
    });
    println!("{PODS} at once: {:?}", began.elapsed());
    report("at once", at_once);
    for sandbox in &sandboxes {
        network.del(sandbox).unwrap();
    }
}

/// Prints a distribution.
pub(crate) fn report(what: &str, mut times: Vec<Duration>) {
    times.sort_unstable();
    let at = |percent: usize| times[(times.len() - 1) * percent / 100];
    println!(
        "{what}: p50 {:?}, p99 {:?}, longest {:?}",
        at(50),
        at(99),
        at(100)
    );
}
