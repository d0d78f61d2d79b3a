//! Installing into, and uninstalling from, real directories.

use super::*;
use serde_json::{Value, json};

struct Node {
    directory: tempfile::TempDir,
    installation: Installation,
}

impl Node {
    fn new(configurations: &[(&str, &str)]) -> Self {
        let directory = tempfile::tempdir().expect("temporary directory");
        let place = |name: &str| directory.path().join(name);
        fs::write(place("policy-cni"), "the program").expect("write");
        fs::create_dir(place("net.d")).expect("make");
        for (name, text) in configurations {
            fs::write(place("net.d").join(name), text).expect("write");
        }
        let installation = Installation {
            program: place("policy-cni"),
            directories: Directories {
                bin_dir: place("bin"),
                conf_dir: place("net.d"),
            },
            plugin: Plugin {
                run_dir: "/run/portcullis".into(),
                timeout: Duration::from_secs(10),
                fail_open: false,
                hold: Hold::Auto,
            },
            create: None,
            pod_cidrs: PodCidrs::Given(Vec::new()),
        };
        Self {
            directory,
            installation,
        }
    }

    fn conf(&self, name: &str) -> PathBuf {
        self.installation.directories.conf_dir.join(name)
    }

    fn plugins(&self, name: &str) -> Vec<String> {
        let text = fs::read(self.conf(name)).expect("there");
        let list: Value = serde_json::from_slice(&text).expect("JSON");
        let plugins = list["plugins"].as_array().expect("a list").iter();
        plugins
            .map(|plugin| plugin["type"].as_str().expect("text").to_owned())
            .collect()
    }

    /// Every file below the directory, with its content and permissions.
    fn everything(&self) -> Vec<(PathBuf, Vec<u8>, u32)> {
        let mut files = Vec::new();
        for directory in [
            &self.installation.directories.conf_dir,
            &self.installation.directories.bin_dir,
        ] {
            for entry in fs::read_dir(directory).into_iter().flatten() {
                let path = entry.expect("an entry").path();
                files.push((path.clone(), fs::read(&path).expect("a file"), mode(&path)));
            }
        }
        files.sort();
        files
    }
}

const LIST: &str = r#"{"cniVersion": "1.0.0", "name": "net",   "plugins": [{"type": "flannel"}, {"type": "portmap"}]}"#;
const CONF: &str =
    r#"{"cniVersion": "0.3.1", "name": "net",   "type": "bridge", "bridge": "cni0"}"#;

#[test]
fn install_is_idempotent_and_uninstall_restores_every_byte() {
    for (name, text, list) in [
        ("10-net.conflist", LIST, "10-net.conflist"),
        ("10-net.conf", CONF, "10-net.conflist"),
        ("10-net.json", CONF, "10-net.conflist"),
    ] {
        let node = Node::new(&[(name, text)]);
        fs::set_permissions(
            node.conf(name),
            std::os::unix::fs::PermissionsExt::from_mode(0o600),
        )
        .expect("ours");
        let before = node.everything();
        let outcome = node.installation.install().expect("installed");
        assert_eq!(outcome.configuration, node.conf(list));
        assert!(outcome.program_changed && outcome.configuration_changed);
        assert_eq!(
            node.plugins(list).last().map(String::as_str),
            Some("policy-cni"),
            "{name}"
        );
        assert_eq!(outcome.holding, Holding::Held);
        assert_eq!(node.plugins(list)[0], "policy-cni", "{name}");
        assert_eq!(mode(&node.conf(list)), 0o600);
        assert_eq!(
            configurations(&node.installation.directories.conf_dir).expect("there"),
            [node.conf(list)]
        );
        let program = node.installation.directories.installed_program();
        assert_eq!(
            (
                fs::read(&program).expect("there").as_slice(),
                mode(&program)
            ),
            (&b"the program"[..], 0o755)
        );

        let after = node.everything();
        let outcome = node.installation.install().expect("installed");
        assert!(!outcome.program_changed && !outcome.configuration_changed);
        assert_eq!(node.everything(), after);

        node.installation
            .directories
            .uninstall()
            .expect("uninstalled");
        assert_eq!(node.everything(), before, "{name}");
        let again = node
            .installation
            .directories
            .uninstall()
            .expect("nothing to do");
        assert!(again.is_empty(), "{again:?}");
    }
}

#[test]
fn other_settings_replace_our_entry_and_keep_the_backup() {
    let mut node = Node::new(&[("10-net.conflist", LIST)]);
    let before = node.everything();
    node.installation.install().expect("installed");
    node.installation.plugin.fail_open = true;
    assert!(
        node.installation
            .install()
            .expect("installed")
            .configuration_changed
    );
    assert_eq!(
        node.plugins("10-net.conflist"),
        ["policy-cni", "flannel", "portmap", "policy-cni"]
    );
    let text = fs::read_to_string(node.conf("10-net.conflist")).expect("there");
    assert!(text.contains(r#""failOpen":true"#), "{text}");
    node.installation
        .directories
        .uninstall()
        .expect("uninstalled");
    assert_eq!(node.everything(), before);
}

#[test]
fn a_chain_of_an_earlier_version_gets_the_holding_entry() {
    let mut node = Node::new(&[("10-net.conflist", LIST)]);
    let before = node.everything();
    // What was installed before there were two entries.
    node.installation.plugin.hold = Hold::Never;
    let outcome = node.installation.install().expect("installed");
    assert_eq!(outcome.holding, Holding::NotWanted);
    let single = ["flannel", "portmap", "policy-cni"];
    assert_eq!(node.plugins("10-net.conflist"), single);

    node.installation.plugin.hold = Hold::Auto;
    let outcome = node.installation.install().expect("installed");
    assert!(outcome.configuration_changed);
    assert_eq!(
        node.plugins("10-net.conflist"),
        ["policy-cni", "flannel", "portmap", "policy-cni"]
    );
    assert!(
        !node
            .installation
            .install()
            .expect("installed")
            .configuration_changed
    );
    // Another component takes the first away, or the last.
    for kept in [1.., 0..] {
        let text = fs::read(node.conf("10-net.conflist")).expect("there");
        let mut list: Value = serde_json::from_slice(&text).expect("JSON");
        let plugins = list["plugins"].as_array().expect("a list");
        let end = plugins.len() - usize::from(kept.start == 0);
        list["plugins"] = plugins[kept.start..end].into();
        fs::write(node.conf("10-net.conflist"), list.to_string()).expect("write");
        assert!(
            node.installation
                .install()
                .expect("installed")
                .configuration_changed
        );
        assert_eq!(
            node.plugins("10-net.conflist"),
            ["policy-cni", "flannel", "portmap", "policy-cni"]
        );
    }
    node.installation
        .directories
        .uninstall()
        .expect("uninstalled");
    assert_eq!(node.everything(), before);
}

#[test]
fn a_main_plugin_that_may_not_take_it_is_not_preceded() {
    let other = LIST.replace("flannel", "ipvlan");
    let mut node = Node::new(&[("10-net.conflist", &other)]);
    let outcome = node.installation.install().expect("installed");
    assert_eq!(outcome.holding, Holding::UnknownPlugin("ipvlan".to_owned()));
    assert_eq!(
        node.plugins("10-net.conflist"),
        ["ipvlan", "portmap", "policy-cni"]
    );
    node.installation.plugin.hold = Hold::Always;
    let outcome = node.installation.install().expect("installed");
    assert_eq!(outcome.holding, Holding::Held);
    assert_eq!(
        node.plugins("10-net.conflist"),
        ["policy-cni", "ipvlan", "portmap", "policy-cni"]
    );
}

#[test]
fn a_configuration_that_is_rewritten_gets_it_again() {
    let node = Node::new(&[("10-net.conflist", LIST)]);
    node.installation.install().expect("installed");
    let upgraded = LIST.replace("portmap", "bandwidth");
    fs::write(node.conf("10-net.conflist"), &upgraded).expect("write");
    assert!(
        node.installation
            .install()
            .expect("installed")
            .configuration_changed
    );
    assert_eq!(
        node.plugins("10-net.conflist"),
        ["policy-cni", "flannel", "bandwidth", "policy-cni"]
    );
    node.installation
        .directories
        .uninstall()
        .expect("uninstalled");
    assert_eq!(
        fs::read_to_string(node.conf("10-net.conflist")).expect("there"),
        upgraded
    );
}

#[test]
fn what_was_changed_since_stays_changed() {
    let node = Node::new(&[("10-net.conflist", LIST)]);
    node.installation.install().expect("installed");
    let text = fs::read_to_string(node.conf("10-net.conflist")).expect("there");
    fs::write(
        node.conf("10-net.conflist"),
        text.replace("portmap", "bandwidth"),
    )
    .expect("write");
    node.installation
        .directories
        .uninstall()
        .expect("uninstalled");
    assert_eq!(node.plugins("10-net.conflist"), ["flannel", "bandwidth"]);
    assert_eq!(node.everything().len(), 1, "no backup, no program");
}

#[test]
fn the_first_of_several_configurations_is_the_one() {
    let node = Node::new(&[
        ("20-b.conflist", LIST),
        ("10-a.conf", CONF),
        ("05-x.conflist.bak", LIST),
        ("readme", ""),
    ]);
    let outcome = node.installation.install().expect("installed");
    assert_eq!(outcome.configuration, node.conf("10-a.conflist"));
    assert_eq!(outcome.ignored, [node.conf("20-b.conflist")]);
    assert_eq!(node.plugins("20-b.conflist"), ["flannel", "portmap"]);
}

#[test]
fn without_a_configuration_one_is_made_where_that_is_asked_for() {
    let mut node = Node::new(&[]);
    let before = node.everything();
    let error = node.installation.install().expect_err("nothing there");
    assert!(matches!(error, InstallError::NoConfiguration(_)), "{error}");
    for (main, name) in [(MainPlugin::Ptp, "ptp"), (MainPlugin::Bridge, "bridge")] {
        node.installation.create = Some(main);
        node.installation.pod_cidrs = PodCidrs::Given(Vec::new());
        let error = node.installation.install().expect_err("no addresses");
        assert!(matches!(error, InstallError::NoPodCidr(_)), "{error}");
        let cidrs =
            ["10.244.3.0/24", "fd00:10:244:3::/64"].map(|cidr| cidr.parse().expect("a CIDR"));
        node.installation.pod_cidrs = PodCidrs::Given(cidrs.to_vec());
        let error = node.installation.install().expect_err("no plugins");
        assert!(
            error
                .to_string()
                .contains(&format!("has no {name}, host-local, portmap")),
            "{error}"
        );
        assert_eq!(node.everything(), before, "nothing is half-written");

        fs::create_dir_all(&node.installation.directories.bin_dir).expect("make");
        for plugin in [name, "host-local", "portmap"] {
            fs::write(node.installation.directories.bin_dir.join(plugin), "").expect("write");
        }
        let with_plugins = node.everything();
        let outcome = node.installation.install().expect("installed");
        assert_eq!(outcome.configuration, node.conf("10-portcullis.conflist"));
        assert_eq!(
            node.plugins("10-portcullis.conflist"),
            ["policy-cni", name, "portmap", "policy-cni"]
        );
        let text = fs::read(&outcome.configuration).expect("there");
        let list: Value = serde_json::from_slice(&text).expect("JSON");
        assert_eq!(
            list["plugins"][1]["ipam"]["ranges"],
            json!([[{"subnet": "10.244.3.0/24"}], [{"subnet": "fd00:10:244:3::/64"}]])
        );
        assert!(
            !node
                .installation
                .install()
                .expect("installed")
                .configuration_changed
        );
        node.installation
            .directories
            .uninstall()
            .expect("uninstalled");
        assert_eq!(node.everything(), with_plugins);
        fs::remove_dir_all(&node.installation.directories.bin_dir).expect("remove");
    }
}

#[test]
fn what_cannot_be_done_leaves_everything_as_it_was() {
    let old = CONF.replace("0.3.1", "0.2.0");
    for (name, text, says) in [
        ("10-net.conflist", "{", "not a JSON object"),
        ("10-net.conflist", "", "not a JSON object"),
        ("10-net.conf", "[]", "not a JSON object"),
        ("10-net.conf", &old, "cniVersion 0.2.0"),
    ] {
        let node = Node::new(&[(name, text), ("20-net.conflist", LIST)]);
        let before = node.everything();
        let error = node.installation.install().expect_err(text).to_string();
        assert!(error.contains(says) && error.contains(name), "{error}");
        assert_eq!(node.everything(), before, "not even the program");
    }
    let mut node = Node::new(&[("10-net.conflist", LIST)]);
    node.installation.program = node.directory.path().join("absent");
    let before = node.everything();
    let error = node
        .installation
        .install()
        .expect_err("no program")
        .to_string();
    assert!(error.contains("absent"), "{error}");
    assert_eq!(node.everything(), before);
}

#[test]
fn a_directory_that_cannot_be_written_is_named() {
    // Root may write everywhere that is not mounted read-only; /proc lets nobody make files.
    let mut node = Node::new(&[("10-net.conflist", LIST)]);
    let files = |node: &Node| {
        fs::read_dir(&node.installation.directories.conf_dir)
            .expect("there")
            .count()
    };
    let before = files(&node);
    node.installation.directories.bin_dir = "/proc/sys".into();
    let error = node
        .installation
        .install()
        .expect_err("not writable")
        .to_string();
    assert!(error.contains("/proc/sys/policy-cni"), "{error}");
    assert_eq!(node.plugins("10-net.conflist"), ["flannel", "portmap"]);
    assert_eq!(files(&node), before);
}

#[test]
fn watching_installs_again() {
    let node = Node::new(&[("10-net.conflist", LIST)]);
    let installation = node.installation.clone();
    let (report, reports) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        installation.keep(|outcome| {
            // The test may be over.
            let _heard = report.send(outcome.map(|outcome| outcome.configuration_changed));
        })
    });
    let patience = Duration::from_secs(10);
    let until = |wanted: bool| {
        let deadline = std::time::Instant::now() + patience;
        loop {
            let left = deadline.saturating_duration_since(std::time::Instant::now());
            let changed = reports
                .recv_timeout(left)
                .expect("an attempt")
                .expect("installed");
            if changed == wanted {
                break;
            }
        }
    };
    until(true);
    // Our own writing is an event too.
    until(false);
    fs::write(node.conf("10-net.conflist"), LIST).expect("write");
    until(true);
    assert_eq!(
        node.plugins("10-net.conflist"),
        ["policy-cni", "flannel", "portmap", "policy-cni"]
    );
}
