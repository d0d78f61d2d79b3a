//! Somebody outside who sends to pods from before they exist.

use std::net::{Ipv4Addr, UdpSocket};
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use portcullis_tests::netns::Netns;

/// The port that is watched.
pub(crate) const PORT: u16 = 9000;

/// What is sent there.
pub(crate) const OBSERVED: &[u8] = b"observed";

/// Last parts of the addresses that are watched.
pub(crate) const ADDRESSES: RangeInclusive<u8> = 2..=39;

/// Sends to every address that a pod may get, from before there is one.
pub(crate) struct Observer {
    stop: Arc<AtomicBool>,
    rounds: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Observer {
    pub(crate) fn start(outside: &Netns) -> Self {
        let socket = outside.enter(|| UdpSocket::bind("0.0.0.0:0")).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let rounds = Arc::new(AtomicU64::new(0));
        let (stopped, counted) = (stop.clone(), rounds.clone());
        let thread = thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                for last in ADDRESSES {
                    // Refused where there is no pod (yet).
                    let _sent = socket.send_to(OBSERVED, (Ipv4Addr::new(10, 245, 0, last), PORT));
                }
                counted.fetch_add(1, Ordering::Relaxed);
                thread::sleep(Duration::from_millis(1));
            }
        });
        Self {
            stop,
            rounds,
            thread: Some(thread),
        }
    }

    /// Waits until every address has been sent to since now.
    pub(crate) fn wait_for_a_round(&self) {
        let goal = self.rounds.load(Ordering::Relaxed) + 2;
        while self.rounds.load(Ordering::Relaxed) < goal {
            thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Drop for Observer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}
