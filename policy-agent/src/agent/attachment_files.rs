//! Announcements outlive the agent: one small file each, in the run directory.
//!
//! The run directory is emptied when the machine starts. Where it is not, the boot's id tells that a
//! file speaks of devices that are gone.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use policy_cni::api::AttachmentKey;
use serde::{Deserialize, Serialize};

use crate::endpoint::Announcement;

/// Their directory, within the run directory.
pub(super) const DIRECTORY: &str = "attachments";
const SUFFIX: &str = ".json";
/// Not a file that is read back: a container id begins with a letter or digit.
const DRAFT: &str = ".draft";

/// The directory of announcements.
#[derive(Debug)]
pub(super) struct AttachmentFiles {
    directory: PathBuf,
    boot: String,
}

#[derive(Serialize, Deserialize)]
struct Content {
    boot: String,
    #[serde(flatten)]
    announcement: Announcement,
}

impl AttachmentFiles {
    /// Those in a run directory.
    ///
    /// # Errors
    ///
    /// When the directory cannot be made, or the kernel's boot id not be read.
    pub(super) fn open(run_dir: &Path) -> io::Result<Self> {
        let directory = run_dir.join(DIRECTORY);
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&directory)?;
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
        let boot = boot.trim().to_owned();
        Ok(Self { directory, boot })
    }

    /// All announcements of this boot. What cannot be read is removed, and logged: its pod's interface
    /// is found again by the address that the API has of it.
    ///
    /// # Errors
    ///
    /// When the directory cannot be read.
    pub(super) fn load(&self) -> io::Result<Vec<Announcement>> {
        let mut announcements = Vec::new();
        for entry in fs::read_dir(&self.directory)? {
            let path = entry?.path();
            let content = fs::read(&path)
                .and_then(|text| Ok(serde_json::from_slice::<Content>(&text)?))
                .map(|content| (content.boot == self.boot).then_some(content.announcement));
            match content {
                Ok(Some(announcement)) if self.path(&announcement.attachment.key) == path => {
                    announcements.push(announcement);
                    continue;
                }
                Ok(_) => {}
                Err(error) => {
                    tracing::warn!(path = %path.display(), %error, "removing an unreadable announcement");
                }
            }
            fs::remove_file(&path)?;
        }
        Ok(announcements)
    }

    /// Writes an announcement, whole or not at all.
    pub(super) fn write(&self, announcement: &Announcement) -> io::Result<()> {
        let content = Content {
            boot: self.boot.clone(),
            announcement: announcement.clone(),
        };
        let draft = self.directory.join(DRAFT);
        fs::write(&draft, serde_json::to_vec(&content)?)?;
        fs::rename(&draft, self.path(&announcement.attachment.key))
    }

    /// Removes an announcement, if it is there.
    pub(super) fn remove(&self, key: &AttachmentKey) -> io::Result<()> {
        match fs::remove_file(self.path(key)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    fn path(&self, key: &AttachmentKey) -> PathBuf {
        let name = format!("{}:{}{SUFFIX}", key.container_id, key.ifname);
        self.directory.join(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::endpoint::Device;
    use policy_cni::api::{Attachment, PodReference};

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
            }),
        }
    }

    #[test]
    fn what_is_written_is_read_back_and_nothing_else() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let files = AttachmentFiles::open(directory.path()).expect("open");
        for container in ["c1", "c2", "c3"] {
            files.write(&announcement(container)).expect("write");
        }
        files
            .remove(&announcement("c2").attachment.key)
            .expect("remove");
        files
            .remove(&announcement("c2").attachment.key)
            .expect("gone is as good");
        let place = directory.path().join(DIRECTORY);
        fs::write(place.join("c4:eth0.json"), "{").expect("write");
        fs::write(place.join(DRAFT), "{").expect("write");
        let mut read = AttachmentFiles::open(directory.path())
            .expect("open")
            .load()
            .expect("load");
        read.sort_by(|a, b| a.attachment.key.cmp(&b.attachment.key));
        assert_eq!(read, [announcement("c1"), announcement("c3")]);
        assert_eq!(fs::read_dir(&place).expect("there").count(), 2);

        let after_reboot = AttachmentFiles {
            directory: place.clone(),
            boot: "another".to_owned(),
        };
        assert_eq!(after_reboot.load().expect("load"), []);
        assert_eq!(fs::read_dir(&place).expect("there").count(), 0);
    }
}
