//! The least of a container runtime: runs a chain of plugins as libcni does.

use std::io::Write as _;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::atomic::{AtomicU32, Ordering};

use portcullis_tests::netns::{Netns, Node, binary};
use serde_json::{Value, json};

use super::observer::ADDRESSES;

/// Where Debian has the reference plugins.
const PLUGINS: &str = "/usr/lib/cni";

/// The bridge of the plugin of that name.
pub(crate) const BRIDGE: &str = "pcl-br0";

/// A CNI configuration on a node.
pub(crate) struct Network<'a> {
    node: &'a Node,
    plugins: Vec<Value>,
    next: AtomicU32,
}

/// What a runtime keeps of one pod: a network namespace, an id, and the result of the last ADD.
pub(crate) struct Sandbox {
    pub(crate) netns: Netns,
    container_id: String,
    arguments: String,
    result: Value,
}

/// A plugin's error, as it printed it.
#[derive(Debug)]
pub(crate) struct PluginError {
    pub(crate) plugin: String,
    pub(crate) printed: Value,
}

impl PluginError {
    pub(crate) fn code(&self) -> u64 {
        self.printed["code"].as_u64().unwrap_or_default()
    }

    pub(crate) fn words(&self) -> String {
        format!("{} {}", self.printed["msg"], self.printed["details"])
    }
}

impl Sandbox {
    /// What the last ADD printed.
    pub(crate) fn result(&self) -> &Value {
        &self.result
    }

    /// The address of a family: 4 or 6.
    pub(crate) fn address(&self, is_ipv4: bool) -> IpAddr {
        let ips = self.result["ips"].as_array().unwrap().iter();
        ips.map(|ip| ip["address"].as_str().unwrap().split_once('/').unwrap().0)
            .map(|ip| ip.parse::<IpAddr>().unwrap())
            .find(|ip| ip.is_ipv4() == is_ipv4)
            .unwrap()
    }
}

impl<'a> Network<'a> {
    /// `plugin` with host-local and portmap, and ours.
    pub(crate) fn new(node: &'a Node, plugin: &str) -> Self {
        let ipam = json!({
            "type": "host-local", "dataDir": node.directory().join("ipam"),
            "ranges": [[{"subnet": "10.245.0.0/24"}], [{"subnet": "fd00:10:245::/64"}]],
            "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
        });
        let mut main = json!({"type": plugin, "ipam": ipam});
        if plugin == "bridge" {
            main["bridge"] = json!(BRIDGE);
            main["isGateway"] = json!(true);
        }
        let own = json!({"type": "policy-cni", "runDir": node.run_directory(), "timeout": 60});
        Self {
            node,
            plugins: vec![main, json!({"type": "portmap"}), own],
            next: AtomicU32::new(1),
        }
    }

    /// The same with only the addresses that an observer watches, so that each is used again and again.
    pub(crate) fn watched(mut self) -> Self {
        let range = &mut self.plugins[0]["ipam"]["ranges"][0][0];
        for (name, last) in [
            ("rangeStart", ADDRESSES.start()),
            ("rangeEnd", ADDRESSES.end()),
        ] {
            range[name] = json!(format!("10.245.0.{last}"));
        }
        self
    }

    /// The same as another node's part of the cluster's range.
    pub(crate) fn numbered(mut self, node: u8) -> Self {
        let subnet = json!([[{"subnet": format!("10.245.{node}.0/24")}]]);
        self.plugins[0]["ipam"]["ranges"] = subnet;
        self
    }

    /// The same with a setting of ours.
    pub(crate) fn with(mut self, name: &str, value: Value) -> Self {
        let mut plugins = self.plugins.iter_mut();
        let own = plugins.find(|plugin| plugin["type"] == "policy-cni");
        own.unwrap()[name] = value;
        self
    }

    /// The same with limits on what its pods send and receive, by Debian's `bandwidth` before ours.
    pub(crate) fn limited_before_ours(mut self) -> Self {
        let last = self.plugins.len() - 1;
        self.plugins.insert(last, limits());
        self
    }

    /// The same with limits by `bandwidth` after ours, as whoever writes a configuration by hand may have it.
    pub(crate) fn limited_after_ours(mut self) -> Self {
        self.plugins.push(limits());
        self
    }

    /// The same network for pods without limits.
    pub(crate) fn unlimited(&self) -> Self {
        let mut plugins = self.plugins.clone();
        plugins.retain(|plugin| plugin["type"] != "bandwidth");
        Self {
            node: self.node,
            plugins,
            // Beside those of this one.
            next: AtomicU32::new(1000),
        }
    }

    /// The configuration as a runtime reads it.
    pub(crate) fn conflist(&self) -> String {
        json!({"cniVersion": "1.0.0", "name": "pods", "plugins": self.plugins}).to_string()
    }

    /// The ADD of the main plugin alone.
    pub(crate) fn add_main(&self, sandbox: &mut Sandbox) -> Result<(), PluginError> {
        self.add_by(0, sandbox)
    }

    /// The ADD of `bandwidth`.
    pub(crate) fn add_limits(&self, sandbox: &mut Sandbox) -> Result<(), PluginError> {
        let mut plugins = self.plugins.iter();
        let limits = plugins.position(|plugin| plugin["type"] == "bandwidth");
        self.add_by(limits.unwrap(), sandbox)
    }

    /// A sandbox for a pod, without an interface yet.
    pub(crate) fn sandbox(&self, namespace: &str, name: &str) -> Sandbox {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let netns = Netns::create(&format!("{}-s{number}", self.node.prefix())).unwrap();
        Sandbox {
            netns,
            container_id: format!("sandbox-{number}"),
            arguments: format!("IgnoreUnknown=1;K8S_POD_NAMESPACE={namespace};K8S_POD_NAME={name}"),
            result: Value::Null,
        }
    }

    /// The whole chain's ADD.
    pub(crate) fn add(&self, sandbox: &mut Sandbox) -> Result<(), PluginError> {
        for plugin in 0..self.plugins.len() {
            self.add_by(plugin, sandbox)?;
        }
        Ok(())
    }

    /// The ADD of all plugins but ours.
    pub(crate) fn add_without_ours(&self, sandbox: &mut Sandbox) -> Result<(), PluginError> {
        for plugin in 0..self.plugins.len() - 1 {
            self.add_by(plugin, sandbox)?;
        }
        Ok(())
    }

    /// Our ADD.
    pub(crate) fn add_ours(&self, sandbox: &mut Sandbox) -> Result<(), PluginError> {
        self.add_by(self.plugins.len() - 1, sandbox)
    }

    fn add_by(&self, plugin: usize, sandbox: &mut Sandbox) -> Result<(), PluginError> {
        let before = sandbox.result.clone();
        sandbox.result = self.run("ADD", &self.plugins[plugin], sandbox)?;
        if self.plugins[plugin]["type"] == "policy-cni" {
            assert_eq!(sandbox.result, before, "ours passes the result on");
        }
        Ok(())
    }

    /// The whole chain's DEL.
    pub(crate) fn del(&self, sandbox: &Sandbox) -> Result<(), PluginError> {
        for plugin in self.plugins.iter().rev() {
            self.run("DEL", plugin, sandbox)?;
        }
        Ok(())
    }

    /// Our CHECK.
    pub(crate) fn check(&self, sandbox: &Sandbox) -> Result<(), PluginError> {
        let mut plugins = self.plugins.iter();
        let own = plugins.find(|plugin| plugin["type"] == "policy-cni");
        self.run("CHECK", own.unwrap(), sandbox).map(drop)
    }

    /// Our STATUS.
    pub(crate) fn status(&self) -> Result<(), PluginError> {
        self.run_alone("STATUS", self.plugins.last().unwrap().clone())
    }

    /// Our GC.
    pub(crate) fn gc(&self, valid: &[&Sandbox]) -> Result<(), PluginError> {
        let mut conf = self.plugins.last().unwrap().clone();
        conf["cni.dev/valid-attachments"] = valid
            .iter()
            .map(|sandbox| json!({"containerID": sandbox.container_id, "ifname": "eth0"}))
            .collect();
        self.run_alone("GC", conf)
    }

    fn run(&self, command: &str, plugin: &Value, sandbox: &Sandbox) -> Result<Value, PluginError> {
        let mut conf = plugin.clone();
        conf["prevResult"] = sandbox.result.clone();
        let variables = [
            ("CNI_CONTAINERID", sandbox.container_id.clone()),
            ("CNI_NETNS", sandbox.netns.path()),
            ("CNI_IFNAME", "eth0".to_owned()),
            ("CNI_ARGS", sandbox.arguments.clone()),
        ];
        self.execute(command, "1.0.0", conf, &variables)
    }

    fn run_alone(&self, command: &str, conf: Value) -> Result<(), PluginError> {
        self.execute(command, "1.1.0", conf, &[]).map(drop)
    }

    fn execute(
        &self,
        command: &str,
        version: &str,
        mut conf: Value,
        variables: &[(&str, String)],
    ) -> Result<Value, PluginError> {
        conf["cniVersion"] = json!(version);
        conf["name"] = json!("pods");
        if conf["prevResult"].is_null() {
            conf.as_object_mut().unwrap().remove("prevResult");
        }
        let plugin = conf["type"].as_str().unwrap().to_owned();
        let mut child = self
            .node
            .netns()
            .command(program(&plugin))
            .env("CNI_COMMAND", command)
            .env("CNI_PATH", PLUGINS)
            .envs(variables.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| {
                panic!("{plugin}: {error}; containernetworking-plugins has it")
            });
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(conf.to_string().as_bytes()).unwrap();
        drop(stdin);
        let output = child.wait_with_output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let printed = serde_json::from_str(&text).unwrap_or(Value::Null);
        if output.status.success() {
            Ok(printed)
        } else {
            Err(PluginError { plugin, printed })
        }
    }
}

/// `bandwidth`, as a runtime calls it for a pod with the annotations.
fn limits() -> Value {
    let rate = 100_000_000;
    json!({
        "type": "bandwidth", "capabilities": {"bandwidth": true},
        "runtimeConfig": {"bandwidth": {
            "ingressRate": rate, "ingressBurst": rate, "egressRate": rate, "egressBurst": rate,
        }},
    })
}

fn program(plugin: &str) -> PathBuf {
    match plugin {
        "policy-cni" => binary(plugin).unwrap(),
        _ => PathBuf::from(PLUGINS).join(plugin),
    }
}
