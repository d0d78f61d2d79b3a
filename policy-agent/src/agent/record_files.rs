//! What outlives the agent: announcements, and which device is which pod's. One small file each, in the run directory.
//!
//! The run directory is emptied when the machine starts. Where it is not, the boot's id tells that a
//! file speaks of devices that are gone.

use std::fs::{self, DirBuilder};
use std::io;
use std::marker::PhantomData;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use policy_cni::api::AttachmentKey;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::endpoint::{Announcement, Binding};

const SUFFIX: &str = ".json";
/// Not a file that is read back: no record's name begins with a dot.
const DRAFT: &str = ".draft";

/// What is written down, a file each.
pub(super) trait Record: Clone + Serialize + DeserializeOwned {
    /// What tells one from another.
    type Key: ?Sized;
    /// The directory, within the run directory.
    const DIRECTORY: &str;
    /// What it is, for people.
    const WHAT: &str;
    /// The file's name, without its suffix.
    fn name(key: &Self::Key) -> String;
    /// The key of this one.
    fn key(&self) -> &Self::Key;
}

impl Record for Announcement {
    type Key = AttachmentKey;
    const DIRECTORY: &str = "attachments";
    const WHAT: &str = "announcement";

    fn name(key: &AttachmentKey) -> String {
        format!("{}:{}", key.container_id, key.ifname)
    }

    fn key(&self) -> &AttachmentKey {
        &self.attachment.key
    }
}

/// Keyed by the host side's ifindex.
impl Record for Binding {
    type Key = u32;
    const DIRECTORY: &str = "bindings";
    const WHAT: &str = "binding of a pod's interface";

    fn name(ifindex: &u32) -> String {
        ifindex.to_string()
    }

    fn key(&self) -> &u32 {
        &self.device.ifindex
    }
}

/// The directory of one kind of records.
#[derive(Debug)]
pub(super) struct RecordFiles<R> {
    directory: PathBuf,
    boot: String,
    records: PhantomData<R>,
}

#[derive(Serialize, Deserialize)]
struct Content<R> {
    boot: String,
    #[serde(flatten)]
    record: R,
}

impl<R: Record> RecordFiles<R> {
    /// Those in a run directory.
    ///
    /// # Errors
    ///
    /// When the directory cannot be made, or the kernel's boot id not be read.
    pub(super) fn open(run_dir: &Path) -> io::Result<Self> {
        let directory = run_dir.join(R::DIRECTORY);
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&directory)?;
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
        let boot = boot.trim().to_owned();
        Ok(Self {
            directory,
            boot,
            records: PhantomData,
        })
    }

    /// All records of this boot. What cannot be read is removed, and logged: its pod's interface is found again by the
    /// address that the API has of it.
    ///
    /// # Errors
    ///
    /// When the directory cannot be read.
    pub(super) fn load(&self) -> io::Result<Vec<R>> {
        let mut records = Vec::new();
        for entry in fs::read_dir(&self.directory)? {
            let path = entry?.path();
            let content = fs::read(&path)
                .and_then(|text| Ok(serde_json::from_slice::<Content<R>>(&text)?))
                .map(|content| (content.boot == self.boot).then_some(content.record));
            match content {
                Ok(Some(record)) if self.path(record.key()) == path => {
                    records.push(record);
                    continue;
                }
                Ok(_) => {}
                Err(error) => {
                    tracing::warn!(
                        path = %path.display(), %error, "removing an unreadable {}", R::WHAT
                    );
                }
            }
            fs::remove_file(&path)?;
        }
        Ok(records)
    }

    /// Writes a record, whole or not at all.
    pub(super) fn write(&self, record: &R) -> io::Result<()> {
        let content = Content {
            boot: self.boot.clone(),
            record: record.clone(),
        };
        let draft = self.directory.join(DRAFT);
        fs::write(&draft, serde_json::to_vec(&content)?)?;
        fs::rename(&draft, self.path(record.key()))
    }

    /// Removes a record, if it is there.
    pub(super) fn remove(&self, key: &R::Key) -> io::Result<()> {
        match fs::remove_file(self.path(key)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    fn path(&self, key: &R::Key) -> PathBuf {
        self.directory.join(format!("{}{SUFFIX}", R::name(key)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    use crate::endpoint::{Device, Evidence};
    use policy_cni::api::{Attachment, PodReference};
    use policy_core::model::{NamedPort, ObjectName, Pod, Protocol};

    fn announcement(container: &str) -> Announcement {
        Announcement {
            attachment: Attachment {
                key: AttachmentKey {
                    container_id: container.to_owned(),
                    ifname: "eth0".to_owned(),
                },
                network: "pods".to_owned(),
                netns: "/run/netns/x".to_owned(),
                pod: PodReference {
                    namespace: "shop".to_owned(),
                    name: "web".to_owned(),
                    uid: "u1".to_owned(),
                },
                host_interfaces: vec!["veth7".to_owned()],
                addresses: vec![[10, 0, 0, 5].into()],
            },
            device: Some(Device {
                ifindex: 7,
                netns: 1,
                peer: 2,
                hardware_address: vec![2, 0, 0, 0, 0, 7],
            }),
        }
    }

    #[test]
    fn a_binding_comes_back_with_all_that_was_known_of_its_pod() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let files = RecordFiles::<Binding>::open(directory.path()).expect("open");
        let port = NamedPort {
            name: "http".into(),
            protocol: Protocol::Tcp,
            port: 8080,
        };
        let known = Pod {
            name: ObjectName::new("shop", "web"),
            labels: Arc::new([("app".into(), "web".into())].into()),
            addresses: vec![[10, 0, 0, 5].into()],
            ports: Arc::new([port].into()),
            terminated: false,
            created: 9,
            uid: "u1".into(),
        };
        let binding = |ifindex, known| Binding {
            device: Device {
                ifindex,
                netns: 1,
                peer: 2,
                hardware_address: vec![2, 0, 0, 0, 0, 7],
            },
            host_interface: "veth7".to_owned(),
            interface: "eth0".to_owned(),
            pod: announcement("c1").attachment.pod,
            evidence: Evidence::Address,
            addresses: vec![[10, 0, 0, 5].into()],
            released: false,
            known,
        };
        let bindings = [binding(7, Some(Arc::new(known))), binding(8, None)];
        for binding in &bindings {
            files.write(binding).expect("write");
        }
        let mut read = files.load().expect("load");
        read.sort_by_key(|binding| binding.device.ifindex);
        assert_eq!(read, bindings);
        files.remove(&7).expect("remove");
        assert_eq!(files.load().expect("load"), bindings[1..]);
    }

    #[test]
    fn what_is_written_is_read_back_and_nothing_else() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let files = RecordFiles::<Announcement>::open(directory.path()).expect("open");
        for container in ["c1", "c2", "c3"] {
            files.write(&announcement(container)).expect("write");
        }
        files
            .remove(&announcement("c2").attachment.key)
            .expect("remove");
        files
            .remove(&announcement("c2").attachment.key)
            .expect("gone is as good");
        let place = directory.path().join(Announcement::DIRECTORY);
        fs::write(place.join("c4:eth0.json"), "{").expect("write");
        fs::write(place.join(DRAFT), "{").expect("write");
        let mut read = RecordFiles::<Announcement>::open(directory.path())
            .expect("open")
            .load()
            .expect("load");
        read.sort_by(|a, b| a.attachment.key.cmp(&b.attachment.key));
        assert_eq!(read, [announcement("c1"), announcement("c3")]);
        assert_eq!(fs::read_dir(&place).expect("there").count(), 2);

        let after_reboot = RecordFiles::<Announcement> {
            directory: place.clone(),
            boot: "another".to_owned(),
            records: PhantomData,
        };
        assert_eq!(after_reboot.load().expect("load"), []);
        assert_eq!(fs::read_dir(&place).expect("there").count(), 0);
    }
}
