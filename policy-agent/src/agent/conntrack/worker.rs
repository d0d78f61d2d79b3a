//! The thread that asks nf_conntrack, and puts what the tables of flows lack.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Instant;

use policy_common::verdict::Direction;
use tokio::sync::mpsc as answers;

use super::conversation::{Finder, Subject, Surroundings};
use super::netlink::{Conntrack, Entry, Filter};
use crate::dataplane::{Conversation, FlowRows, Learned};

/// There where nf_conntrack is loaded.
const ENTRIES: &str = "/proc/sys/net/netfilter/nf_conntrack_count";

/// With more IPv4 addresses than these, one dump of everything is less work than two for each of them.
const FILTERED_ADDRESSES: usize = 3;

/// Conversations of one endpoint that are put at most: a share of the tables that leaves room for the others'.
const MOST_CONVERSATIONS: usize = 1 << 15;

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Question {
    /// Put what the tables of flows lack of these endpoints' conversations.
    Learn {
        /// Comes back with the answer.
        ticket: u64,
        /// The endpoints.
        subjects: Vec<Subject>,
        /// Who else there is.
        surroundings: Surroundings,
    },
    /// Of which of these addresses there are entries with packets of both directions.
    Look(BTreeSet<IpAddr>),
}

/// What came of a question.
#[derive(Debug)]
pub enum Answer {
    /// Of [`Question::Learn`].
    Learned {
        /// The question's.
        ticket: u64,
        /// How many conversations were found, or why none could be.
        outcome: io::Result<usize>,
    },
    /// Of [`Question::Look`].
    Seen(io::Result<BTreeSet<IpAddr>>),
}

/// Whether nf_conntrack is loaded. Asking would load it.
pub(in crate::agent) fn is_loaded() -> bool {
    Path::new(ENTRIES).exists()
}

/// Starts the thread, which ends with the sender.
pub(in crate::agent) fn start(
    rows: FlowRows,
) -> io::Result<(Sender<Question>, answers::UnboundedReceiver<Answer>)> {
    let (questions_in, questions) = channel();
    let (answers_in, answers) = answers::unbounded_channel();
    thread::Builder::new()
        .name("conntrack".to_owned())
        .spawn(move || run(rows, &questions, &answers_in))?;
    Ok((questions_in, answers))
}

fn run(
    mut rows: FlowRows,
    questions: &Receiver<Question>,
    answers: &answers::UnboundedSender<Answer>,
) {
    while let Ok(question) = questions.recv() {
        let answer = match question {
            Question::Learn {
                ticket,
                subjects,
                surroundings,
            } => Answer::Learned {
                ticket,
                outcome: learn(&mut rows, &subjects, &surroundings),
            },
            Question::Look(addresses) => Answer::Seen(look(&addresses)),
        };
        if answers.send(answer).is_err() {
            return;
        }
    }
}

/// Whether there is anything to ask for.
fn has_entries() -> bool {
    std::fs::read_to_string(ENTRIES).is_ok_and(|count| count.trim() != "0")
}

fn learn(
    rows: &mut FlowRows,
    subjects: &[Subject],
    surroundings: &Surroundings,
) -> io::Result<usize> {
    if !has_entries() {
        return Ok(0);
    }
    let began = Instant::now();
    let found = find(subjects, surroundings)?;
    let took_to_find = began.elapsed();
    let mut counts = BTreeMap::new();
    let mut failed = None;
    for conversation in found.values() {
        match rows.learn(conversation) {
            Ok(Learned::Known) => *counts.entry("known").or_insert(0) += 1,
            Ok(Learned::Added) => *counts.entry("added").or_insert(0) += 1,
            Ok(Learned::Corrected) => *counts.entry("corrected").or_insert(0) += 1,
            Err(error) => failed = Some(error),
        }
    }
    tracing::debug!(
        ?took_to_find, took = ?began.elapsed(), endpoints = subjects.len(), ?counts,
        "asked nf_conntrack who began what lives"
    );
    failed.map_or(Ok(found.len()), Err)
}

/// What tells one flow of an endpoint from another.
type Key = (u32, IpAddr, u16, u16, u8);

fn find(
    subjects: &[Subject],
    surroundings: &Surroundings,
) -> io::Result<HashMap<Key, Conversation>> {
    let mut conntrack = Conntrack::open()?;
    let finder = Finder::new(subjects, surroundings);
    let mut found: HashMap<Key, Conversation> = HashMap::new();
    let mut counts: HashMap<u32, usize> = HashMap::new();
    let mut left_out: BTreeMap<u32, (&Subject, usize)> = BTreeMap::new();
    let mut note = |entry: &Entry| {
        for (subject, conversation) in finder.find(entry) {
            let Conversation {
                endpoint, protocol, ..
            } = conversation;
            let ports = conversation.ports;
            let key = (
                endpoint,
                conversation.remote,
                ports.local,
                ports.remote,
                protocol,
            );
            if let Some(known) = found.get_mut(&key) {
                // Protocols without ports: both sides may have begun something. It is judged as the isolated direction's.
                let preferred = match subject.isolated_for_ingress {
                    true => Direction::Ingress,
                    false => Direction::Egress,
                };
                if known.initiator != preferred && conversation.initiator == preferred {
                    *known = conversation;
                }
                continue;
            }
            let count = counts.entry(endpoint).or_default();
            if *count == MOST_CONVERSATIONS {
                left_out.entry(endpoint).or_insert((subject, 0)).1 += 1;
                continue;
            }
            *count += 1;
            found.insert(key, conversation);
        }
    };
    let addresses = subjects.iter().flat_map(|subject| &subject.addresses);
    for filter in filters(addresses.copied()) {
        conntrack.dump(filter, &mut note)?;
    }
    for (subject, conversations) in left_out.values() {
        tracing::error!(
            pod = &*subject.pod,
            interface = &*subject.interface,
            conversations,
            most = MOST_CONVERSATIONS,
            "more conversations live than the tables of flows have room for; those left out are judged by the direction of their next \
             packet"
        );
    }
    Ok(found)
}

/// The least work that finds every entry of these addresses.
fn filters(addresses: impl Iterator<Item = IpAddr>) -> Vec<Filter> {
    let (mut v4, mut has_v6) = (BTreeSet::new(), false);
    for address in addresses {
        match address {
            IpAddr::V4(address) => {
                v4.insert(address);
            }
            IpAddr::V6(_) => has_v6 = true,
        }
    }
    let mut filters = Vec::new();
    if v4.len() > FILTERED_ADDRESSES {
        filters.push(Filter::V4);
    } else {
        for address in v4 {
            filters.extend([Filter::FromV4(address), Filter::AnsweredByV4(address)]);
        }
    }
    if has_v6 {
        filters.push(Filter::V6);
    }
    filters
}

fn look(addresses: &BTreeSet<IpAddr>) -> io::Result<BTreeSet<IpAddr>> {
    let mut seen = BTreeSet::new();
    if !has_entries() {
        return Ok(seen);
    }
    let mut conntrack = Conntrack::open()?;
    for filter in filters(addresses.iter().copied()) {
        conntrack.dump(filter, |entry| {
            if entry.is_answered() {
                let ends = [entry.original.saddr, entry.reply.saddr];
                seen.extend(ends.into_iter().filter(|end| addresses.contains(end)));
            }
        })?;
    }
    Ok(seen)
}
