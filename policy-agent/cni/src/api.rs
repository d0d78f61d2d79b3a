//! What plugin and agent say to each other: JSON in the bodies of `POST`s on the agent's socket.
//!
//! | path | request | answer |
//! | --- | --- | --- |
//! | [`ADD`] | [`AddRequest`] | [`Done`], once the interface is enforced both ways |
//! | [`DEL`] | [`AttachmentKey`] | [`Done`], whether or not it was known |
//! | [`CHECK`] | [`Attachment`] | [`Done`], if it is enforced now |
//! | [`GC`] | [`GcRequest`] | [`Done`] |
//! | [`STATUS`] | [`Done`] | [`Done`], if an ADD would be served |
//!
//! Anything but 200 carries a [`Failure`]. 503 means that the same may work later.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// Where the agent's socket is by default.
pub const RUN_DIR: &str = "/run/portcullis";
/// The agent's socket, within its run directory.
pub const SOCKET: &str = "agent.sock";

/// An interface was attached.
pub const ADD: &str = "/v1/cni/add";
/// An interface is about to go.
pub const DEL: &str = "/v1/cni/del";
/// Is an interface enforced?
pub const CHECK: &str = "/v1/cni/check";
/// Interfaces that are not listed are gone.
pub const GC: &str = "/v1/cni/gc";
/// Would an ADD be served?
pub const STATUS: &str = "/v1/cni/status";

/// What CNI tells attachments apart by.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AttachmentKey {
    /// The sandbox's container id: letters, digits, `_`, `.` and `-`, the first a letter or digit.
    pub container_id: String,
    /// The interface's name inside the sandbox.
    pub ifname: String,
}

/// The pod that a sandbox is for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodReference {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its uid as the kubelet has it; empty where the runtime does not say.
    #[serde(default)]
    pub uid: String,
}

/// One interface of one pod, as the plugins before us made it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Attachment {
    /// Which attachment.
    #[serde(flatten)]
    pub key: AttachmentKey,
    /// The network's name in the CNI configuration.
    pub network: String,
    /// Path of the sandbox's network namespace.
    pub netns: String,
    /// Its pod.
    pub pod: PodReference,
    /// Interfaces of the host that the plugins before us named: the veth's host side is one of them.
    /// Empty where they named none.
    pub host_interfaces: Vec<String>,
    /// The interface's addresses, never empty.
    pub addresses: Vec<IpAddr>,
}

/// Body of [`ADD`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AddRequest {
    /// What was attached.
    pub attachment: Attachment,
    /// How long the asker waits, in milliseconds; the agent then says what it still waits for.
    pub patience_ms: u64,
    /// Whether the pod's network namespace is held until the agent answers.
    #[serde(default)]
    pub held: bool,
}

/// Body of [`GC`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GcRequest {
    /// The network that it is about.
    pub network: String,
    /// All of its attachments.
    pub valid: Vec<AttachmentKey>,
}

/// Nothing to add.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {}

/// Why not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// A sentence for people.
    pub error: String,
}

impl AttachmentKey {
    /// Whether both parts are as the CNI specification and the kernel want them. They become part of a
    /// file's name.
    #[must_use]
    pub fn is_valid(&self) -> bool {
        is_container_id(&self.container_id) && is_interface_name(&self.ifname)
    }
}

/// Whether `text` can be a container id.
#[must_use]
pub fn is_container_id(text: &str) -> bool {
    const LONGEST: usize = 200;
    let mut bytes = text.bytes();
    text.len() <= LONGEST
        && bytes
            .next()
            .is_some_and(|first| first.is_ascii_alphanumeric())
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte))
}

/// Whether the kernel would take `text` for an interface's name.
#[must_use]
pub fn is_interface_name(text: &str) -> bool {
    const LONGEST: usize = 15;
    (1..=LONGEST).contains(&text.len())
        && !matches!(text, "." | "..")
        && !text
            .bytes()
            .any(|byte| byte == b'/' || byte == b':' || byte.is_ascii_whitespace() || byte == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_fit_for_file_names() {
        let valid = |container_id: &str, ifname: &str| {
            let key = AttachmentKey {
                container_id: container_id.to_owned(),
                ifname: ifname.to_owned(),
            };
            key.is_valid()
        };
        assert!(valid("3b8f_a.b-c", "eth0"));
        for container_id in ["", "..", ".a", "-a", "a/b", "a b", "é", &"a".repeat(201)] {
            assert!(!valid(container_id, "eth0"), "{container_id}");
        }
        for ifname in ["", ".", "..", "a/b", "a:b", "a b", "sixteen-letters-"] {
            assert!(!valid("a", ifname), "{ifname}");
        }
    }

    #[test]
    fn an_attachment_is_one_flat_object() {
        let text = r#"{"containerId":"c","ifname":"eth0","network":"pods","netns":"/run/netns/x",
            "pod":{"namespace":"shop","name":"web"},"hostInterfaces":["veth1"],"addresses":["10.0.0.5"]}"#;
        let attachment: Attachment = serde_json::from_str(text).expect("valid");
        assert_eq!(
            (attachment.key.ifname.as_str(), attachment.pod.uid.as_str()),
            ("eth0", "")
        );
        let again: Attachment =
            serde_json::from_value(serde_json::to_value(&attachment).expect("JSON"))
                .expect("valid");
        assert_eq!(again, attachment);
    }
}
