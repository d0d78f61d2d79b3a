//! The DaemonSet: one agent a node, with the least that it needs.

use anyhow::Result;
use k8s_openapi::api::apps::v1::{
    DaemonSet, DaemonSetSpec, DaemonSetUpdateStrategy, RollingUpdateDaemonSet,
};
use k8s_openapi::api::core::v1::{
    AppArmorProfile, Capabilities, Container, HTTPGetAction, HostPathVolumeSource, PodSpec,
    PodTemplateSpec, Probe, ResourceRequirements, SELinuxOptions, SeccompProfile,
    SecretVolumeSource, SecurityContext, Toleration, Volume, VolumeMount,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::objects::{self, AddonMode, NAME, NAMESPACE, SELECTOR, VERSION};
use super::settings;
use super::yaml::Document;

/// The image's name, without the tag.
pub(crate) const IMAGE: &str = "ghcr.io/portcullis/portcullis";

/// The image's name and tag: the workspace's version.
pub(crate) fn image() -> String {
    format!("{IMAGE}:v{VERSION}")
}

/// Where the agent serves health; the port is that of HEALTH_ADDR's default.
pub(super) const HEALTH: (&str, i32) = ("127.0.0.1", 9099);

/// Capabilities, and why: without any one the agent does not start.
///
/// SYS_RESOURCE is not among them, though kernels before 5.11 ask for it: a runtime that lacks it itself starts
/// no container that is to have it.
pub(super) const CAPABILITIES: [(&str, &str); 4] = [
    ("BPF", "Makes BPF maps and loads programs."),
    (
        "NET_ADMIN",
        "Attaches programs to interfaces, and asks netlink for the addresses on the pods' side of them.",
    ),
    (
        "NET_BROADCAST",
        "Hears over netlink of changes in the pods' network namespaces.",
    ),
    (
        "PERFMON",
        "The verifier lets programs compare pointers and do pointer arithmetic.",
    ),
];

/// JSON pointers of the parts that comments are on.
const POD: &str = "/spec/template/spec";
const CONTAINER: &str = "/spec/template/spec/containers/0";

/// The object.
pub(super) fn daemon_set(mode: Option<AddonMode>) -> Result<Document> {
    let (key, value) = SELECTOR;
    let spec = DaemonSetSpec {
        selector: LabelSelector {
            match_labels: Some([(key.to_owned(), value.to_owned())].into()),
            ..LabelSelector::default()
        },
        template: PodTemplateSpec {
            metadata: Some(ObjectMeta {
                labels: Some(objects::pod_labels()),
                ..ObjectMeta::default()
            }),
            spec: Some(pod()),
        },
        update_strategy: Some(DaemonSetUpdateStrategy {
            type_: Some("RollingUpdate".to_owned()),
            rolling_update: Some(RollingUpdateDaemonSet {
                max_unavailable: Some(IntOrString::Int(1)),
                ..RollingUpdateDaemonSet::default()
            }),
        }),
        ..DaemonSetSpec::default()
    };
    let mut document = Document::of(&DaemonSet {
        metadata: objects::metadata(NAME, Some(NAMESPACE), mode),
        spec: Some(spec),
        ..DaemonSet::default()
    })?;
    for (pointer, comment) in comments() {
        document = document.comment(&pointer, comment);
    }
    Ok(document)
}

fn pod() -> PodSpec {
    PodSpec {
        init_containers: Some(vec![install_cni()]),
        containers: vec![container()],
        dns_policy: Some("Default".to_owned()),
        host_network: Some(true),
        node_selector: Some([("kubernetes.io/os".to_owned(), "linux".to_owned())].into()),
        priority_class_name: Some("system-node-critical".to_owned()),
        service_account_name: Some(NAME.to_owned()),
        termination_grace_period_seconds: Some(5),
        tolerations: Some(vec![Toleration {
            operator: Some("Exists".to_owned()),
            ..Toleration::default()
        }]),
        volumes: Some(volumes()),
        ..PodSpec::default()
    }
}

fn container() -> Container {
    let quantity =
        |resource: &str, amount: &str| (resource.to_owned(), Quantity(amount.to_owned()));
    Container {
        name: "policy-agent".to_owned(),
        image: Some(image()),
        image_pull_policy: Some("IfNotPresent".to_owned()),
        args: Some(vec!["run".to_owned()]),
        env: Some(settings::environment()),
        startup_probe: Some(probe("/livez", 1, 120)),
        liveness_probe: Some(probe("/livez", 10, 3)),
        readiness_probe: Some(probe("/readyz", 5, 1)),
        resources: Some(ResourceRequirements {
            requests: Some([quantity("cpu", "20m"), quantity("memory", "64Mi")].into()),
            ..ResourceRequirements::default()
        }),
        security_context: Some(security()),
        volume_mounts: Some(mounts()),
        ..Container::default()
    }
}

/// Puts the plugin in place before the agent, which keeps it there.
fn install_cni() -> Container {
    Container {
        name: "install-cni".to_owned(),
        image: Some(image()),
        image_pull_policy: Some("IfNotPresent".to_owned()),
        args: Some(vec!["install-cni".to_owned(), "--or-later".to_owned()]),
        env: Some(settings::environment()),
        security_context: Some(SecurityContext {
            capabilities: Some(Capabilities {
                drop: Some(vec!["ALL".to_owned()]),
                ..Capabilities::default()
            }),
            ..security()
        }),
        volume_mounts: Some(vec![
            mount("cni-bin", "/opt/cni/bin"),
            mount("cni-conf", "/etc/cni/net.d"),
            credentials(),
        ]),
        ..Container::default()
    }
}

fn probe(path: &str, period: i32, failures: i32) -> Probe {
    let (host, port) = HEALTH;
    Probe {
        http_get: Some(HTTPGetAction {
            host: Some(host.to_owned()),
            path: Some(path.to_owned()),
            port: IntOrString::Int(port),
            ..HTTPGetAction::default()
        }),
        period_seconds: Some(period),
        timeout_seconds: Some(5),
        failure_threshold: Some(failures),
        ..Probe::default()
    }
}

fn security() -> SecurityContext {
    SecurityContext {
        allow_privilege_escalation: Some(false),
        app_armor_profile: Some(AppArmorProfile {
            type_: "Unconfined".to_owned(),
            ..AppArmorProfile::default()
        }),
        capabilities: Some(Capabilities {
            add: Some(CAPABILITIES.map(|(name, _)| name.to_owned()).into()),
            drop: Some(vec!["ALL".to_owned()]),
        }),
        privileged: Some(false),
        read_only_root_filesystem: Some(true),
        run_as_user: Some(0),
        se_linux_options: Some(SELinuxOptions {
            type_: Some("spc_t".to_owned()),
            ..SELinuxOptions::default()
        }),
        seccomp_profile: Some(SeccompProfile {
            type_: "Unconfined".to_owned(),
            ..SeccompProfile::default()
        }),
        ..SecurityContext::default()
    }
}

fn mount(name: &str, path: &str) -> VolumeMount {
    VolumeMount {
        name: name.to_owned(),
        mount_path: path.to_owned(),
        ..VolumeMount::default()
    }
}

fn credentials() -> VolumeMount {
    VolumeMount {
        read_only: Some(true),
        ..mount("credentials", settings::SECRET_DIRECTORY)
    }
}

fn mounts() -> Vec<VolumeMount> {
    vec![
        // Without propagation, which runtimes refuse where the node's mounts are private: the agent ends
        // where there is no bpffs, and a container gets what is mounted when it starts.
        mount("bpffs", "/sys/fs/bpf"),
        mount("run", "/run/portcullis"),
        mount("cni-bin", "/opt/cni/bin"),
        mount("cni-conf", "/etc/cni/net.d"),
        credentials(),
    ]
}

fn volumes() -> Vec<Volume> {
    let host = |name: &str, path: &str, kind: &str| Volume {
        name: name.to_owned(),
        host_path: Some(HostPathVolumeSource {
            path: path.to_owned(),
            type_: Some(kind.to_owned()),
        }),
        ..Volume::default()
    };
    vec![
        host("bpffs", "/sys/fs/bpf", "Directory"),
        host("run", "/run/portcullis", "DirectoryOrCreate"),
        host("cni-bin", "/opt/cni/bin", "DirectoryOrCreate"),
        host("cni-conf", "/etc/cni/net.d", "DirectoryOrCreate"),
        Volume {
            name: "credentials".to_owned(),
            secret: Some(SecretVolumeSource {
                secret_name: Some(settings::SECRET.to_owned()),
                default_mode: Some(0o400),
                optional: Some(true),
                ..SecretVolumeSource::default()
            }),
            ..Volume::default()
        },
    ]
}

/// Why things are as they are, by JSON pointer.
fn comments() -> Vec<(String, &'static str)> {
    let pod = [
        (
            "hostNetwork",
            "The pods' interfaces are in the node's network namespace.",
        ),
        (
            "dnsPolicy",
            "The node's own resolver: policy may not wait for the cluster's DNS, which waits for policy.",
        ),
        (
            "tolerations/0/operator",
            "Every node, whatever its taints: pods on a node without an agent are not protected.",
        ),
        (
            "nodeSelector/kubernetes.io~1os",
            "Not by architecture: an agent that cannot run on a node shall be seen to fail there.",
        ),
        (
            "terminationGracePeriodSeconds",
            "Enforcement goes on without the agent: programs and maps are pinned.",
        ),
        (
            "volumes/0/name",
            "systemd mounts bpffs there. Where nothing does, the agent, which may not mount, says so and \
             ends; run on the node: mount -t bpf bpf /sys/fs/bpf",
        ),
        (
            "volumes/2/name",
            "The container runtime's bin_dir; where it is another, change the path here.",
        ),
        (
            "volumes/3/name",
            "The container runtime's conf_dir; where it is another, change the path here.",
        ),
        (
            "initContainers/0/args/1",
            "Where there is no CNI configuration yet, the agent adds to it once there is one.",
        ),
    ]
    .map(|(pointer, comment)| (format!("{POD}/{pointer}"), comment));
    let container = [
        (
            "startupProbe/httpGet/path",
            "The kernel verifies the programs first: a second or two, more on a slow node.",
        ),
        (
            "resources/requests/cpu",
            "No limits: a throttled agent enforces changes late, and BPF maps count as its memory.",
        ),
        (
            "securityContext/runAsUser",
            "Root, with no capabilities but these. Kernels before 5.11 count BPF maps against RLIMIT_MEMLOCK: \
             for such nodes add SYS_RESOURCE.",
        ),
        (
            "securityContext/appArmorProfile/type",
            "The default profiles of container runtimes forbid writing below /sys/fs/bpf.",
        ),
        (
            "securityContext/seLinuxOptions/type",
            "container_t may not use BPF. Ignored where SELinux is off.",
        ),
        (
            "securityContext/seccompProfile/type",
            "CRI-O's default profile, and older ones of others, forbid bpf(2) to containers without CAP_SYS_ADMIN.",
        ),
    ]
    .map(|(pointer, comment)| (format!("{CONTAINER}/{pointer}"), comment));
    let capabilities = CAPABILITIES.iter().enumerate().map(|(index, (_, why))| {
        let pointer = format!("{CONTAINER}/securityContext/capabilities/add/{index}");
        (pointer, *why)
    });
    pod.into_iter()
        .chain(container)
        .chain(capabilities)
        .collect()
}
