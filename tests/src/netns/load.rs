//! Traffic that goes on while something else happens, every exchange of it accounted for.

use std::net::{IpAddr, UdpSocket};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::{Family, Flow, Host, Outcome, PATIENCE, Probe, SILENCE, Stream, What, probe};

/// Who may reach whom, at every moment of the load. The client may open connections to the server, and the
/// server none to anybody; the stranger may not reach the server.
#[derive(Clone, Copy, Debug)]
pub struct Load<'a> {
    /// Opens connections.
    pub client: &'a Host,
    /// Only ever answers.
    pub server: &'a Host,
    /// Is to be kept out.
    pub stranger: &'a Host,
}

/// Exchanges of one kind.
#[derive(Debug, Default)]
struct Tally {
    tried: AtomicU64,
    wrong: AtomicU64,
}

impl Tally {
    fn note(&self, is_right: bool) {
        self.tried.fetch_add(1, Ordering::Relaxed);
        self.wrong
            .fetch_add(u64::from(!is_right), Ordering::Relaxed);
    }
}

/// The kinds of exchanges, in the order of [`Running::tallies`].
const KINDS: [&str; 6] = [
    "bytes over connections that are held, both ways",
    "datagrams from the server over flows that the client began",
    "new connections of the client",
    "new datagrams of the client, and their answers",
    "new connections of the stranger",
    "datagrams of the stranger",
];
const HELD: usize = 0;
const REPLIES: usize = 1;
const NEW_TCP: usize = 2;
const NEW_UDP: usize = 3;
const STRANGER_TCP: usize = 4;
const STRANGER_UDP: usize = 5;

/// Load that goes on.
#[derive(Debug, Default)]
pub struct Running {
    stop: AtomicBool,
    tallies: [Tally; 6],
    /// The first things that went wrong, in words.
    said: Mutex<Vec<String>>,
}

impl Running {
    fn goes_on(&self) -> bool {
        !self.stop.load(Ordering::Relaxed)
    }

    fn note(&self, kind: usize, is_right: bool, what: impl FnOnce() -> String) {
        self.tallies[kind].note(is_right);
        let mut said = self.said.lock().unwrap();
        if !is_right && said.len() < 20 {
            said.push(format!("{}: {}", KINDS[kind], what()));
        }
    }

    /// Waits until there were some more exchanges of every kind.
    pub fn wait_for_more(&self) {
        let count = |tally: &Tally| tally.tried.load(Ordering::Relaxed);
        let before = self.tallies.each_ref().map(count);
        let kinds = || before.iter().zip(&self.tallies).take(STRANGER_UDP);
        while kinds().any(|(before, tally)| count(tally) < before + 4) {
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// What went wrong so far, in words; empty when nothing did.
    #[must_use]
    pub fn wrong(&self) -> String {
        self.said.lock().unwrap().join("\n")
    }
}

/// Ends the load when work is done, or panics.
struct End<'a>(&'a Running);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.stop.store(true, Ordering::Relaxed);
    }
}

impl Load<'_> {
    /// Does `work` under this load. Returns how many exchanges there were, kind by kind, in words.
    ///
    /// # Errors
    ///
    /// When the load cannot be begun, or one exchange did not go as it should: with all that went wrong.
    ///
    /// # Panics
    ///
    /// When `work` does.
    pub fn during(&self, work: impl FnOnce(&Running)) -> Result<String> {
        let running = Running::default();
        let mut streams = Vec::new();
        thread::scope(|scope| -> Result<()> {
            let end = End(&running);
            for (family, port) in [
                (Family::V4, 9000),
                (Family::V4, 9001),
                (Family::V6, 9000),
                (Family::V6, 9001),
            ] {
                let (client, server) = (self.client.netns(), self.server.netns());
                let flow = Flow::open(client, server, self.server.address(family), port)?;
                let running = &running;
                scope.spawn(move || hold(running, flow));
            }
            for family in Family::ALL {
                let (client, server) = self.pair(family)?;
                let running = &running;
                scope.spawn(move || reply(running, &client, &server));
                let (from, to) = (self.stranger.netns(), self.server.netns());
                streams.push(Stream::start(from, to, self.server.address(family), 9200)?);
                scope.spawn(move || self.begin_anew(running, self.server.address(family)));
            }
            work(&running);
            drop(end);
            Ok(())
        })?;
        for stream in streams {
            let (sent, arrived) = stream.finish();
            let tally = &running.tallies[STRANGER_UDP];
            tally.tried.fetch_add(sent, Ordering::Relaxed);
            tally.wrong.fetch_add(arrived, Ordering::Relaxed);
        }
        let told: Vec<_> = KINDS
            .iter()
            .zip(&running.tallies)
            .map(|(kind, tally)| {
                let (tried, wrong) = (&tally.tried, &tally.wrong);
                format!(
                    "{kind}: {}, {} of them wrong",
                    tried.load(Ordering::Relaxed),
                    wrong.load(Ordering::Relaxed)
                )
            })
            .collect();
        let told = told.join("\n");
        let is_right = |tally: &Tally| tally.wrong.load(Ordering::Relaxed) == 0;
        anyhow::ensure!(
            running.tallies.iter().all(is_right),
            "{told}\n{}",
            running.wrong()
        );
        Ok(told)
    }

    /// Sockets of the client and the server, which know each other.
    fn pair(&self, family: Family) -> Result<(UdpSocket, UdpSocket)> {
        let bind = |host: &Host, port: u16| {
            let address = host.address(family);
            host.netns().enter(|| UdpSocket::bind((address, port)))
        };
        let (client, server) = (bind(self.client, 9100)?, bind(self.server, 9100)?);
        client.connect(server.local_addr()?)?;
        server.connect(client.local_addr()?)?;
        for socket in [&client, &server] {
            socket.set_read_timeout(Some(PATIENCE))?;
        }
        client.send(b"first")?;
        server.recv(&mut [0; 16]).context("the first datagram")?;
        for socket in [&client, &server] {
            socket.set_read_timeout(Some(SILENCE))?;
        }
        Ok((client, server))
    }

    /// What has no flow yet, one exchange after the other.
    fn begin_anew(&self, running: &Running, to: IpAddr) {
        // Shorter than the time after which a lost SYN is sent again.
        const SYN: Duration = Duration::from_millis(900);
        let attempt = |host: &Host, what, patience| {
            probe(&Probe {
                from: host.netns(),
                to,
                what,
                patience,
            })
        };
        while running.goes_on() {
            for (kind, what, patience) in [
                (NEW_TCP, What::Tcp(80), SYN),
                (NEW_UDP, What::Udp(53), PATIENCE.min(Duration::from_secs(2))),
            ] {
                let outcome = attempt(self.client, what, patience);
                running.note(kind, outcome == Outcome::Answered, || {
                    format!("{to}: {outcome}")
                });
            }
            let outcome = attempt(self.stranger, What::Tcp(80), Duration::from_millis(30));
            running.note(STRANGER_TCP, outcome == Outcome::Silent, || {
                format!("{to}: {outcome}")
            });
        }
    }
}

/// The server first: it is the client's opening alone that policy allows.
fn hold(running: &Running, mut flow: Flow) {
    while running.goes_on() {
        let outcomes = [flow.server_speaks(PATIENCE), flow.client_speaks(PATIENCE)];
        let is_right = outcomes.iter().all(|outcome| matches!(outcome, Ok(true)));
        running.note(HELD, is_right, || format!("{flow:?}: {outcomes:?}"));
        if !is_right {
            return;
        }
        thread::sleep(Duration::from_millis(2));
    }
}

/// The server alone, and once in a while the client, so that the flow stays alive in the eyes of all.
fn reply(running: &Running, client: &UdpSocket, server: &UdpSocket) {
    let mut round = 0_u32;
    while running.goes_on() {
        round = round.wrapping_add(1);
        let (from, to) = if round.is_multiple_of(64) {
            (client, server)
        } else {
            (server, client)
        };
        let sent = round.to_ne_bytes();
        let mut got = [0; 4];
        let outcome = from.send(&sent).and_then(|_| to.recv(&mut got));
        let is_right = outcome.is_ok() && got == sent;
        running.note(REPLIES, is_right, || {
            format!(
                "{:?} to {:?}: {outcome:?}",
                from.local_addr(),
                to.local_addr()
            )
        });
        thread::sleep(Duration::from_millis(1));
    }
}
