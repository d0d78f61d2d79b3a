//! An agent that keeps the plugin installed, and `uninstall`, after which the node is as it was.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use portcullis_tests::netns::{Agent, Node, binary};

use super::{machine, network, with_both_plugins};

with_both_plugins! {
    after_uninstall_the_node_is_as_before
}

const FLANNEL: &str = r#"{
  "name": "cbr0",
  "cniVersion": "0.3.1",
  "plugins": [{"type": "flannel", "delegate": {"hairpinMode": true}}, {"type": "portmap"}]
}
"#;

/// Everything of this node that an installation may touch.
#[derive(Debug, PartialEq, Eq)]
struct State {
    links: String,
    qdiscs: String,
    filters: bool,
    files: Vec<(PathBuf, u32, Vec<u8>)>,
    pins: bool,
    run_directory: bool,
}

impl State {
    fn of(node: &Node) -> Self {
        let output = |program: &str, arguments: &[&str]| {
            let output = node.netns().command(program).args(arguments).output();
            String::from_utf8(output.unwrap().stdout).unwrap()
        };
        let links = output("ip", &["-o", "link"]);
        let names = links
            .lines()
            .filter_map(|line| line.split(": ").nth(1)?.split('@').next());
        let filters = names
            .flat_map(|name| ["ingress", "egress"].map(|side| (name, side)))
            .any(|(name, side)| !output("tc", &["filter", "show", "dev", name, side]).is_empty());
        Self {
            qdiscs: output("tc", &["qdisc", "show"]),
            filters,
            files: Agent::cni_directories(node)
                .iter()
                .flat_map(|(_, directory)| files(directory))
                .collect(),
            pins: node.bpffs().exists(),
            run_directory: node.run_directory().exists(),
            // The kernel gives an interface a queue length with its first qdisc; without a queue it means nothing.
            links: links.replace("qlen 1000", ""),
        }
    }
}

fn files(directory: &Path) -> Vec<(PathBuf, u32, Vec<u8>)> {
    let entries = fs::read_dir(directory).unwrap();
    let mut files: Vec<_> = entries
        .map(|entry| {
            let path = entry.unwrap().path();
            let mode = fs::metadata(&path).unwrap().permissions().mode();
            (path.clone(), mode, fs::read(&path).unwrap())
        })
        .collect();
    files.sort();
    files
}

fn after_uninstall_the_node_is_as_before(plugin: &str) {
    let node = machine();
    let (network, _outside) = network(&node, plugin);
    let directories = Agent::cni_directories(&node);
    for (_, directory) in &directories {
        fs::create_dir(directory).unwrap();
    }
    let [(_, bin), (_, conf)] = &directories;
    let conflist = conf.join("10-flannel.conflist");
    fs::write(&conflist, FLANNEL).unwrap();
    fs::write(conf.join("99-other.conf"), "{}").unwrap();
    // One that the agent finds by itself, and one that the plugin is going to announce.
    let store = node.datastore();
    let mut found = network.sandbox("shop", "found");
    network.add_without_ours(&mut found).unwrap();
    let addresses = [found.address(true), found.address(false)];
    store
        .put_pod("shop", "found", &[], &[], &addresses)
        .unwrap();
    store.put_pod("shop", "told", &[], &[], &[]).unwrap();
    let mut told = network.sandbox("shop", "told");
    network.add_without_ours(&mut told).unwrap();
    let before = State::of(&node);

    let mut settings: Vec<(&str, &OsStr)> = directories
        .iter()
        .map(|(name, directory)| (*name, directory.as_os_str()))
        .collect();
    settings.push(("PORTCULLIS_INSTALL_CNI", OsStr::new("true")));
    let agent = Agent::start_with(&node, &settings).unwrap();
    let installed = |agent: &Agent<'_>| {
        let status = agent.wait_for_status(|status| status.pod_starts.error.is_none());
        assert_eq!(status.unwrap().pod_starts.mode, "plugin");
        let text = fs::read_to_string(&conflist).unwrap();
        assert!(
            text.contains("policy-cni") && bin.join("policy-cni").exists(),
            "{text}"
        );
    };
    installed(&agent);
    network.add_ours(&mut told).unwrap();
    let modes = agent.status().unwrap().programs;
    let mut modes: Vec<_> = modes.iter().map(|at| at.mode.as_str()).collect();
    modes.sort_unstable();
    let wanted = if has_tcx(&modes) {
        ["clsact", "tcx"]
    } else {
        ["clsact", "clsact"]
    };
    assert_eq!(modes, wanted, "pods that wait are attached by clsact");

    // Another component has no idea.
    fs::write(&conflist, "{ half a").unwrap();
    let broken = agent
        .wait_for_status(|status| status.pod_starts.error.is_some() && !status.ready)
        .unwrap();
    let error = broken.pod_starts.error.unwrap();
    assert!(error.contains("10-flannel.conflist"), "{error}");
    fs::write(&conflist, FLANNEL).unwrap();
    installed(&agent);
    agent.kill().unwrap();

    // The next agent takes over what was attached in either way.
    let agent = Agent::start_with(&node, &settings).unwrap();
    let adopted = agent.status().unwrap().programs;
    let mut adopted: Vec<_> = adopted.iter().map(|at| at.mode.as_str()).collect();
    adopted.sort_unstable();
    assert_eq!(adopted, wanted);
    network.check(&told).unwrap();
    agent.kill().unwrap();

    let output = Agent::uninstall(&node).unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{said}");
    assert!(
        said.contains(&format!(
            "restored CNI configuration {}",
            conflist.display()
        )),
        "{said}"
    );
    assert_eq!(State::of(&node), before, "{said}");
    // The others' DEL goes on without ours.
    network.del(&found).unwrap();
    network.del(&told).unwrap();
}

#[test]
fn a_read_only_directory_stays_as_it_is_and_is_named() {
    let node = machine();
    let directories = Agent::cni_directories(&node);
    for (_, directory) in &directories {
        fs::create_dir(directory).unwrap();
    }
    let [_, (_, conf)] = &directories;
    fs::write(conf.join("10-flannel.conflist"), FLANNEL).unwrap();
    let before = files(conf);
    let conf_text = conf.display();
    let mut command = std::process::Command::new("unshare");
    command
        .args(["--mount", "--propagation", "private", "sh", "-c"])
        .arg(format!(
            "mount --bind {conf_text} {conf_text} && mount -o remount,bind,ro {conf_text} && exec \"$0\" install-cni"
        ))
        .arg(binary("policy-agent").unwrap())
        .envs(Agent::cni_directories(&node));
    let output = command.output().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(
        error.contains("cni-conf/10-flannel.conflist")
            && error.contains("mount the directory writable"),
        "{error}"
    );
    assert_eq!(files(conf), before);
}

fn has_tcx(modes: &[&str]) -> bool {
    modes.contains(&"tcx")
}
