//! What the CNI plugin asks: answered by the loop that owns the state, an ADD once it is enforced.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use policy_cni::api::{AddRequest, Attachment, AttachmentKey, GcRequest};
use tokio::sync::oneshot;

use super::Agent;
use super::readiness::{ENDPOINTS_ENFORCED, POD_STARTS_COVERED};
use super::record_files::{Record as _, RecordFiles};
use crate::endpoint::{Announcement, Binding, Interface, Scan};

/// The directories of what outlives the agent, within the run directory.
pub const RECORDS: [&str; 2] = [Announcement::DIRECTORY, Binding::DIRECTORY];

/// Done, or why not.
pub type CniAnswer = Result<(), String>;

/// A question of the CNI plugin's, and where its answer goes.
#[derive(Debug)]
pub enum CniQuery {
    /// An interface was attached. Answered once it is enforced, or when the asker's patience ends.
    Add {
        /// What the plugin says.
        request: AddRequest,
        /// What the host's interfaces that it names were found to be.
        interfaces: Vec<Interface>,
        /// Where the answer goes.
        reply: oneshot::Sender<CniAnswer>,
    },
    /// An interface is about to go. Answered once its pod's address is nobody's.
    Del(AttachmentKey, oneshot::Sender<CniAnswer>),
    /// Is an interface enforced?
    Check(Attachment, oneshot::Sender<CniAnswer>),
    /// Attachments that are not listed are gone.
    Gc(GcRequest, oneshot::Sender<CniAnswer>),
    /// Would an ADD be served?
    Status(oneshot::Sender<CniAnswer>),
}

/// Announcements under way, and those on disk.
#[derive(Debug)]
pub(super) struct Attachments {
    files: RecordFiles<Announcement>,
    bindings: RecordFiles<Binding>,
    /// What an earlier agent left.
    adopted: (Vec<Announcement>, Vec<Binding>),
    adds: Vec<Add>,
    /// Answered after the next step.
    removals: Vec<oneshot::Sender<CniAnswer>>,
    /// Interfaces that a scan need not have seen, unless it began after the mark.
    later: Vec<(u64, Interface)>,
}

#[derive(Debug)]
struct Add {
    key: AttachmentKey,
    began: Instant,
    deadline: Instant,
    reply: oneshot::Sender<CniAnswer>,
}

impl Attachments {
    pub(super) fn open(run_dir: &Path) -> anyhow::Result<Self> {
        let files = RecordFiles::open(run_dir)
            .with_context(|| format!("announcements in {}", run_dir.display()))?;
        let bindings = RecordFiles::open(run_dir)
            .with_context(|| format!("bindings of interfaces in {}", run_dir.display()))?;
        let adopted = (
            files.load().context("announcements of pods")?,
            bindings.load().context("bindings of pods' interfaces")?,
        );
        Ok(Self {
            files,
            bindings,
            adopted,
            adds: Vec::new(),
            removals: Vec::new(),
            later: Vec::new(),
        })
    }

    /// Veths that were pods' for an earlier agent.
    pub(super) fn expected(&self) -> BTreeSet<u32> {
        let (announcements, bindings) = &self.adopted;
        let announced = announcements
            .iter()
            .filter_map(|known| known.device.as_ref());
        let bound = bindings.iter().map(|known| &known.device);
        announced
            .chain(bound)
            .map(|device| device.ifindex)
            .collect()
    }

    /// Adds to a scan what was found after it began. `answers`: as in a scan's report.
    pub(super) fn add_later(&mut self, answers: u64, scan: &mut Scan) {
        self.later.retain(|(mark, _)| *mark > answers);
        for (_, interface) in &self.later {
            scan.add(interface.clone());
        }
    }
}

impl Agent {
    /// Takes over what was announced to an earlier agent, and which devices were whose for it.
    pub(super) fn adopt_attachments(&mut self) {
        let (announcements, bindings) = std::mem::take(&mut self.attachments.adopted);
        for announcement in announcements {
            self.pod_starts.announced();
            self.engine.announce(announcement);
        }
        for binding in bindings {
            self.engine.adopt(binding);
        }
        self.engine.take_changed_announcements();
    }

    pub(super) fn answer_cni(&mut self, query: CniQuery) {
        // A reply that nobody waits for any more is none of our business.
        match query {
            CniQuery::Add {
                request,
                interfaces,
                reply,
            } => self.add(request, interfaces, reply),
            CniQuery::Del(key, reply) => {
                if self.engine.retract(&key) {
                    tracing::info!(
                        container = key.container_id,
                        interface = key.ifname,
                        "interface removed"
                    );
                }
                self.attachments.removals.push(reply);
            }
            CniQuery::Check(attachment, reply) => drop(reply.send(self.check(&attachment))),
            CniQuery::Gc(request, reply) => {
                self.collect(&request);
                self.attachments.removals.push(reply);
            }
            CniQuery::Status(reply) => drop(reply.send(self.serves_adds())),
        }
    }

    fn add(
        &mut self,
        request: AddRequest,
        interfaces: Vec<Interface>,
        reply: oneshot::Sender<CniAnswer>,
    ) {
        let AddRequest {
            attachment,
            patience_ms,
        } = request;
        tracing::info!(
            pod = format!("{}/{}", attachment.pod.namespace, attachment.pod.name),
            container = attachment.key.container_id,
            interface = attachment.key.ifname,
            addresses = ?attachment.addresses,
            "interface announced"
        );
        self.pod_starts.announced();
        let began = Instant::now();
        self.attachments.adds.push(Add {
            key: attachment.key.clone(),
            began,
            deadline: began + Duration::from_millis(patience_ms),
            reply,
        });
        if interfaces.is_empty() {
            self.discovery.request();
        }
        for interface in interfaces {
            let mark = self.discovery.mark();
            self.discovery.expect(interface.ifindex);
            self.attachments.later.push((mark, interface.clone()));
            self.engine.found(interface);
        }
        self.engine.announce(Announcement {
            attachment,
            device: None,
        });
    }

    fn check(&self, attachment: &Attachment) -> CniAnswer {
        let known = self.engine.announced().get(&attachment.key);
        if let Some(known) = known
            && known.attachment.addresses != attachment.addresses
        {
            return Err(format!(
                "the interface was announced with {:?}, not with {:?}",
                known.attachment.addresses, attachment.addresses
            ));
        }
        self.engine.is_enforced(&attachment.key, Instant::now())
    }

    fn collect(&mut self, request: &GcRequest) {
        let announcements = self.engine.announced().iter();
        let stale: Vec<_> = announcements
            .map(|announcement| &announcement.attachment)
            .filter(|said| said.network == request.network && !request.valid.contains(&said.key))
            .map(|said| said.key.clone())
            .collect();
        for key in stale {
            tracing::info!(
                container = key.container_id,
                interface = key.ifname,
                "interface collected"
            );
            self.engine.retract(&key);
        }
    }

    fn serves_adds(&self) -> CniAnswer {
        let conditions = self.conditions();
        let unmet = conditions
            .iter()
            .filter(|condition| !condition.ok)
            // One pod's trouble is no other's, and whoever asks got here.
            .find(|condition| {
                ![ENDPOINTS_ENFORCED, POD_STARTS_COVERED].contains(&&*condition.name)
            });
        unmet.map_or(Ok(()), |condition| {
            Err(format!("{}: {}", condition.name, condition.message))
        })
    }

    /// Writes down what changed, answers what is done, and gives the time of the next deadline.
    pub(super) fn finish_attachments(&mut self) -> Option<Instant> {
        let mut unwritten = Vec::new();
        for key in self.engine.take_changed_announcements() {
            let written = match self.engine.announced().get(&key) {
                Some(announcement) => self.attachments.files.write(announcement),
                None => self.attachments.files.remove(&key),
            };
            if let Err(error) = written {
                tracing::error!(container = key.container_id, %error, "an announcement cannot be written down");
                unwritten.push((key, error.to_string()));
            }
        }
        for ifindex in self.engine.take_changed_bindings() {
            let written = match self.engine.bindings().get(ifindex) {
                Some(binding) => self.attachments.bindings.write(binding),
                None => self.attachments.bindings.remove(&ifindex),
            };
            if let Err(error) = written {
                tracing::error!(
                    ifindex, %error, "whose interface it is cannot be written down; trying again"
                );
                self.engine.retry_binding(ifindex);
            }
        }
        for reply in std::mem::take(&mut self.attachments.removals) {
            drop(reply.send(Ok(())));
        }
        let now = Instant::now();
        for add in std::mem::take(&mut self.attachments.adds) {
            if add.reply.is_closed() {
                continue;
            }
            let unwritten = unwritten.iter().find(|(key, _)| *key == add.key);
            let answer = match unwritten {
                Some((_, error)) => Err(format!("it cannot be written down: {error}")),
                None => self.engine.is_enforced(&add.key, now),
            };
            match answer {
                Ok(()) => {
                    let milliseconds =
                        u64::try_from((now - add.began).as_millis()).unwrap_or(u64::MAX);
                    tracing::debug!(
                        container = add.key.container_id,
                        milliseconds,
                        "announced interface enforced"
                    );
                    drop(add.reply.send(Ok(())));
                }
                Err(why) if unwritten.is_some() || now >= add.deadline => {
                    tracing::warn!(
                        container = add.key.container_id,
                        why,
                        "announced interface not enforced in time"
                    );
                    drop(add.reply.send(Err(why)));
                }
                Err(_) => self.attachments.adds.push(add),
            }
        }
        self.attachments.adds.iter().map(|add| add.deadline).min()
    }
}
