//! Connections without end while backends and policies change: each one's verdict has to be one that the state at
//! some moment of it explains.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use portcullis_tests::netns::kube_proxy::{Mode, Protocol, ServicePort};
use portcullis_tests::netns::{Agent, Form, Greeter, Host};

use super::super::persistence::times;
use super::{Cast, backends, cluster_ips, in_both_forms, kube_proxy, publish};

in_both_forms! { every_verdict_is_one_of_its_time }

const PORT: u16 = 8000;
const TARGET: u16 = 9000;
/// Shorter than the time after which a lost SYN is sent again.
const PATIENCE: Duration = Duration::from_millis(900);
const CLIENTS: usize = 4;

/// Names of servers: those that the Service leads to, or those that policy allows.
type Names = &'static str;

/// Backends and what policy allows, in this order; from one to the next, one of them changes or both do.
const STATES: [(Names, Names); 9] = [
    ("d", "d"),
    ("dt", "d"),
    ("dt", "t"),
    ("t", "t"),
    ("d", "t"),
    ("d", "dt"),
    ("dt", ""),
    ("t", "dt"),
    ("dt", "dt"),
];

/// Something that changes, and what it was when.
struct Timeline(Vec<Span>);

struct Span {
    value: Names,
    /// When it was begun to put in place.
    from: Instant,
    /// When the next was in place.
    until: Option<Instant>,
}

impl Timeline {
    fn new(value: Names) -> Self {
        let from = Instant::now();
        Self(vec![Span {
            value,
            from,
            until: None,
        }])
    }

    fn change(&mut self, value: Names, put: impl FnOnce(Names)) {
        let from = Instant::now();
        put(value);
        if let Some(last) = self.0.last_mut() {
            last.until = Some(Instant::now());
        }
        self.0.push(Span {
            value,
            from,
            until: None,
        });
    }

    fn values_during(&self, attempt: &Attempt) -> Vec<Names> {
        let spans = self.0.iter().filter(|span| {
            span.from <= attempt.ended && span.until.is_none_or(|until| until >= attempt.began)
        });
        spans.map(|span| span.value).collect()
    }
}

#[derive(Debug)]
struct Attempt {
    began: Instant,
    ended: Instant,
    outcome: Outcome,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// This server answered.
    Answered(char),
    /// Nothing came: dropped.
    Silent,
    /// A kernel said at once that it is of no use: nobody translated the packet, or it went nowhere. No policy does that.
    Failed(ErrorKind),
}

impl Attempt {
    /// Whether what came of it is right with these backends and this policy.
    fn is_right(&self, backends: Names, allowed: Names) -> bool {
        match self.outcome {
            Outcome::Answered(name) => backends.contains(name) && allowed.contains(name),
            Outcome::Silent => backends.chars().any(|name| !allowed.contains(name)),
            Outcome::Failed(_) => false,
        }
    }
}

/// Connects until told to stop.
fn connect_on(from: &Host, to: IpAddr, stop: &AtomicBool, done: &Mutex<Vec<Attempt>>) {
    // No port twice: the kernel remembers for minutes where it led a connection of the same addresses and ports.
    static NEXT_PORT: AtomicU16 = AtomicU16::new(10_000);
    let to = SocketAddr::new(to, PORT);
    while !stop.load(Ordering::Relaxed) {
        let began = Instant::now();
        let port = NEXT_PORT.fetch_add(1, Ordering::Relaxed);
        let answer = Greeter::who_answers(from.netns(), port, to, PATIENCE);
        let outcome = match answer.map_err(|error| error.kind()) {
            Ok(name) => Outcome::Answered(char::from(name)),
            Err(ErrorKind::TimedOut | ErrorKind::WouldBlock) => Outcome::Silent,
            Err(kind) => Outcome::Failed(kind),
        };
        let attempt = Attempt {
            began,
            ended: Instant::now(),
            outcome,
        };
        done.lock().unwrap().push(attempt);
        thread::sleep(Duration::from_millis(2));
    }
}

/// Ends the clients, in a panic too.
struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn service(cast: &Cast, names: Names) -> ServicePort {
    let hosts: Vec<_> = [('d', &cast.db), ('t', &cast.tool)]
        .into_iter()
        .filter(|(name, _)| names.contains(*name))
        .map(|(_, host)| host)
        .collect();
    let backends = backends(&hosts, TARGET);
    ServicePort::new(&cluster_ips(10), Protocol::Tcp, PORT, &backends)
}

fn allow(cast: &Cast, names: Names) {
    let mut spec = "podSelector: {matchLabels: {app: web}}\npolicyTypes: [Egress]\negress:\n\
        - ports: [{port: 1}]\n"
        .to_owned();
    if names.contains('d') {
        spec += "- to: [{podSelector: {matchLabels: {app: db}}}]\n";
    }
    if names.contains('t') {
        spec += "- to: [{namespaceSelector: {matchLabels: {team: dev}}}]\n";
    }
    cast.policy("web-out", &spec);
}

/// `PORTCULLIS_TEST_CHURN=20` goes through all states twenty times.
fn every_verdict_is_one_of_its_time(form: Form) {
    let mode = match form {
        Form::Routed => Mode::Nftables,
        Form::Bridge => Mode::IptablesLegacy,
    };
    let cast = Cast::new(form);
    let servers = [(&cast.db, b'd'), (&cast.tool, b't')];
    let _greeters = servers.map(|(host, name)| Greeter::start(host.netns(), TARGET, name).unwrap());
    let translate = |names| {
        let services = [service(&cast, names)];
        kube_proxy(mode, &services)
            .apply(cast.node.netns())
            .unwrap();
    };
    let (first_backends, first_policy) = STATES[0];
    let rounds = times("PORTCULLIS_TEST_CHURN", 1);
    let changes = STATES.into_iter().cycle().take(rounds * STATES.len());
    publish(&cast.node, &[service(&cast, first_backends)]);
    translate(first_backends);
    allow(&cast, first_policy);
    let agent = Agent::start(&cast.node).unwrap();
    let mut backends = Timeline::new(first_backends);
    let mut policies = Timeline::new(first_policy);
    let (stop, done) = (AtomicBool::new(false), Mutex::new(Vec::new()));
    let (web, stopped, attempts) = (&cast.web, &stop, &done);
    thread::scope(|scope| {
        let _end = End(&stop);
        for to in cluster_ips(10) {
            for _ in 0..CLIENTS {
                scope.spawn(move || connect_on(web, to, stopped, attempts));
            }
        }
        await_attempts_in(&done, CLIENTS);
        for (names, allowed) in changes {
            if backends.0.last().unwrap().value != names {
                backends.change(names, translate);
            }
            if policies.0.last().unwrap().value != allowed {
                policies.change(allowed, |allowed| {
                    allow(&cast, allowed);
                    agent.sync().unwrap();
                });
            }
            await_attempts_in(&done, CLIENTS);
        }
    });
    let attempts = done.into_inner().unwrap();
    judge(&attempts, &backends, &policies);
}

/// Waits until some attempts have been made from now on, from beginning to end.
fn await_attempts_in(done: &Mutex<Vec<Attempt>>, count: usize) {
    let now = Instant::now();
    let since = |attempts: &[Attempt]| attempts.iter().filter(|a| a.began >= now).count();
    while since(&done.lock().unwrap()) < count {
        thread::sleep(Duration::from_millis(5));
    }
}

fn judge(attempts: &[Attempt], backends: &Timeline, policies: &Timeline) {
    let (mut answered, mut denied, mut untranslated) = (0, 0, 0);
    let mut wrong = Vec::new();
    for attempt in attempts {
        let backends = backends.values_during(attempt);
        let policies = policies.values_during(attempt);
        // One set of rules goes when the next comes, and who passes between them finds none.
        if matches!(attempt.outcome, Outcome::Failed(_)) && backends.len() > 1 {
            untranslated += 1;
            continue;
        }
        let mut states = backends
            .iter()
            .flat_map(|names| policies.iter().map(move |allowed| (names, allowed)));
        if !states.any(|(names, allowed)| attempt.is_right(names, allowed)) {
            wrong.push(format!("{attempt:?}: {backends:?}, allowed {policies:?}"));
        } else if backends.len() == 1 && policies.len() == 1 {
            match attempt.outcome {
                Outcome::Answered(_) => answered += 1,
                _ => denied += 1,
            }
        }
    }
    eprintln!(
        "{} connections, {untranslated} not translated while rules changed; \
         {answered} answered and {denied} denied in one state from beginning to end; {} wrong",
        attempts.len(),
        wrong.len()
    );
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(
        answered > 0 && denied > 0,
        "nothing was judged by one state"
    );
}
