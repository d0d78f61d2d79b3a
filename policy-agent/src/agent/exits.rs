//! The host's interfaces that have to have a program, other than endpoints, and how far each has come.
//!
//! Attaching takes some milliseconds each, and a host can have hundreds of interfaces. So it is done a few
//! at a time, and what is to be done for pods comes in between.
//!
//! A veth that appears and leads into another network namespace is probably a pod's, which other CNI plugins are still at work on. One of them, `bandwidth`,
//! fails where a clsact qdisc is; and what is attached to it would only have to be taken off again. So it waits until
//! it has been nobody's for some time.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::failure::Failure;
use super::kernel::Kernel;
use super::operations::{ATTACH_EXIT, DETACH_EXIT, Operations};
use crate::dataplane::{AttachError, Haste};
use crate::endpoint::Link;

/// How many are attached or detached at a time.
const SLICE: usize = 2;

/// For how long a new veth has to have been nobody's: longer than a pod's start takes.
const NOBODYS: Duration = Duration::from_secs(10);

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Exits {
    exits: BTreeMap<u32, Exit>,
}

#[derive(Debug)]
struct Exit {
    link: Link,
    haste: Haste,
    state: State,
}

#[derive(Debug)]
enum State {
    /// It may become a pod's until then.
    Waiting(Instant),
    Attaching(Option<Failure>),
    Attached,
    Detaching(Option<Failure>),
}

impl State {
    fn word(&self) -> &'static str {
        match self {
            Self::Waiting(_) => ExitState::WAITING,
            Self::Attaching(_) => "attaching",
            Self::Attached => "attached",
            Self::Detaching(_) => "detaching",
        }
    }

    fn failure(&self) -> Option<&Failure> {
        match self {
            Self::Attaching(failure) | Self::Detaching(failure) => failure.as_ref(),
            Self::Waiting(_) | Self::Attached => None,
        }
    }

    /// Whether something can be done for it now.
    fn is_due(&self, now: Instant) -> bool {
        match self {
            Self::Attached => false,
            Self::Waiting(until) => *until <= now,
            Self::Attaching(failure) | Self::Detaching(failure) => failure
                .as_ref()
                .is_none_or(|failure| failure.backoff.is_due(now)),
        }
    }
}

/// Where an exit stands, in words for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExitState {
    /// The interface's index.
    pub ifindex: u32,
    /// Its name.
    pub interface: String,
    /// The program's name.
    pub program: &'static str,
    /// One of [`ExitState::WORDS`].
    pub word: &'static str,
    /// Why it gets no further, where something fails.
    pub error: Option<String>,
}

impl ExitState {
    /// Every value of `word`.
    pub const WORDS: [&str; 4] = [Self::WAITING, "attaching", "attached", "detaching"];

    /// The word for a new veth that may become a pod's.
    pub const WAITING: &str = "waiting";
}

/// Whether an interface is to have an exit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wish {
    /// It is.
    Exit,
    /// It is, once it has been nobody's for some time.
    OnceNobodys,
    /// It is not.
    None,
    /// What it has, it keeps.
    AsItIs,
}

impl Exits {
    /// The interfaces are these, each with its wish; `late` says whether packets may leave already by those that are
    /// new here.
    pub(super) fn follow(
        &mut self,
        links: &BTreeMap<u32, Link>,
        late: bool,
        now: Instant,
        wish: impl Fn(u32) -> Wish,
    ) {
        // It became an endpoint's, or is gone.
        self.exits.retain(|ifindex, exit| {
            !matches!(exit.state, State::Waiting(_))
                || (links.contains_key(ifindex)
                    && matches!(wish(*ifindex), Wish::Exit | Wish::OnceNobodys))
        });
        for (ifindex, exit) in &mut self.exits {
            let wish = links.get(ifindex).map_or(Wish::None, |_| wish(*ifindex));
            match (wish, &exit.state) {
                (Wish::None, State::Attaching(_) | State::Attached) => {
                    exit.state = State::Detaching(None);
                }
                (Wish::Exit | Wish::OnceNobodys, State::Detaching(_))
                | (Wish::Exit, State::Waiting(_)) => exit.state = State::Attaching(None),
                _ => {}
            }
        }
        for (ifindex, link) in links {
            match self.exits.get_mut(ifindex) {
                Some(exit) if exit.link != *link => {
                    // Another device perhaps, which lost what the former one had.
                    exit.link = link.clone();
                    if matches!(exit.state, State::Attached) {
                        exit.state = State::Attaching(None);
                    }
                }
                Some(_) => {}
                None => {
                    let state = match wish(*ifindex) {
                        Wish::Exit => State::Attaching(None),
                        Wish::OnceNobodys => State::Waiting(now + NOBODYS),
                        Wish::None | Wish::AsItIs => continue,
                    };
                    let exit = Exit {
                        link: link.clone(),
                        // A clsact qdisc on what is, or was, a pod's is in the way of the plugin `bandwidth`.
                        haste: if late && !link.is_veth {
                            Haste::Waited
                        } else {
                            Haste::None
                        },
                        state,
                    };
                    self.exits.insert(*ifindex, exit);
                }
            }
        }
    }

    /// Does what is due, a few at a time. Says whether more is due.
    pub(super) fn step(
        &mut self,
        kernel: &mut impl Kernel,
        operations: &mut Operations,
        now: Instant,
    ) -> bool {
        let due = self.exits.iter().filter(|(_, exit)| exit.state.is_due(now));
        let mut due = due.map(|(ifindex, _)| *ifindex);
        let slice: Vec<_> = due.by_ref().take(SLICE).collect();
        let more = due.next().is_some();
        for ifindex in slice {
            self.advance(ifindex, kernel, operations, now);
        }
        more
    }

    /// An interface's program is not where it should be. Says the interface's name.
    pub(super) fn lost(&mut self, ifindex: u32) -> Option<&str> {
        let exit = self.exits.get_mut(&ifindex)?;
        if matches!(exit.state, State::Attached) {
            exit.state = State::Attaching(None);
        }
        Some(&exit.link.name)
    }

    /// The name of an interface.
    pub(super) fn name(&self, ifindex: u32) -> Option<&str> {
        self.exits.get(&ifindex).map(|exit| exit.link.name.as_str())
    }

    /// Makes sure that an interface has an exit, as far as that is possible now.
    pub(super) fn attach_now(
        &mut self,
        ifindex: u32,
        link: &Link,
        kernel: &mut impl Kernel,
        operations: &mut Operations,
        now: Instant,
    ) {
        let exit = self.exits.entry(ifindex).or_insert_with(|| Exit {
            link: link.clone(),
            haste: Haste::Waited,
            state: State::Attaching(None),
        });
        if let State::Detaching(_) | State::Waiting(_) = exit.state {
            exit.state = State::Attaching(None);
        }
        if exit.state.is_due(now) {
            self.advance(ifindex, kernel, operations, now);
        }
    }

    fn advance(
        &mut self,
        ifindex: u32,
        kernel: &mut impl Kernel,
        operations: &mut Operations,
        now: Instant,
    ) {
        let Some(exit) = self.exits.get_mut(&ifindex) else {
            return;
        };
        if let State::Waiting(_) = exit.state {
            exit.state = State::Attaching(None);
        }
        let Link { name, program, .. } = &exit.link;
        let failed = match &mut exit.state {
            State::Waiting(_) | State::Attached => return,
            State::Attaching(failure) => {
                let outcome = kernel.attach_netdev(ifindex, name, *program, exit.haste);
                operations.note(ATTACH_EXIT, &outcome);
                match outcome {
                    Ok(()) => {
                        tracing::debug!(interface = name, program = program.name(), "attached");
                        exit.state = State::Attached;
                        return;
                    }
                    Err(error) => (failure, error),
                }
            }
            State::Detaching(failure) => {
                let outcome = kernel.detach_netdev(ifindex);
                operations.note(DETACH_EXIT, &outcome);
                match outcome {
                    Ok(()) => {
                        tracing::debug!(interface = name, program = program.name(), "detached");
                        self.exits.remove(&ifindex);
                        return;
                    }
                    Err(error) => (failure, error),
                }
            }
        };
        match failed {
            (_, AttachError::InterfaceGone { .. }) => {
                tracing::debug!(interface = name, "interface went with its exit");
                // The next scan has it no more, and takes away what may be left of it.
                exit.state = State::Detaching(None);
            }
            (failure, error) => {
                tracing::error!(
                    interface = name, program = program.name(), %error,
                    "cannot attach or detach the program of one of the node's interfaces; trying again"
                );
                *failure = Some(Failure::after(failure.take(), &error, now));
            }
        }
    }

    /// Whether each is where it should be.
    pub(super) fn are_settled(&self) -> bool {
        self.exits
            .values()
            .all(|exit| matches!(exit.state, State::Attached | State::Waiting(_)))
    }

    /// When something is to be tried again.
    pub(super) fn retry_at(&self) -> Option<Instant> {
        let dates = self.exits.values().filter_map(|exit| match &exit.state {
            State::Waiting(until) => Some(*until),
            state => state.failure().map(|failure| failure.backoff.next()),
        });
        dates.min()
    }

    /// Each exit, by ifindex.
    pub(super) fn states(&self) -> impl Iterator<Item = ExitState> {
        self.exits.iter().map(|(ifindex, exit)| ExitState {
            ifindex: *ifindex,
            interface: exit.link.name.clone(),
            program: exit.link.program.name(),
            word: exit.state.word(),
            error: exit.state.failure().map(|failure| failure.error.clone()),
        })
    }
}
