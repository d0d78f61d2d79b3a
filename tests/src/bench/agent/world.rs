//! A node with a few real pods, and the API server that knows them and a large cluster.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::cluster::{self, Cluster};
use crate::apiserver::{ApiServer, ApiServerConfig};
use crate::netns::{Agent, Form, Host, Node, PodSpec, Source};
use crate::objects;

/// The namespace of the pods between which packets go.
pub(super) const MEASURED: &str = "measured";

/// This node's pods beside those two; policies of the cluster select each of them.
const LOCAL: usize = 20;

/// See the module.
pub(super) struct World {
    /// Ends before the node whose network namespace it is in.
    pub(super) api: ApiServer,
    pub(super) client: Host,
    pub(super) server: Host,
    _others: Vec<Host>,
    pub(super) node: Node,
}

impl World {
    pub(super) fn new(pods: usize, policies: usize) -> Result<Self> {
        eprintln!("a cluster of {pods} pods and {policies} policies");
        let node = Node::new(Form::Routed)?;
        let api = ApiServer::new(ApiServerConfig::inside(node.netns())?)?;
        let pod =
            |namespace: &str, name: &str| node.add_unknown(PodSpec::new(namespace, name, &[]));
        let (client, server) = (pod(MEASURED, "client")?, pod(MEASURED, "server")?);
        api.put(json!({
            "apiVersion": "v1", "kind": "Node", "metadata": {"name": node.node_name()},
        }))?;
        api.put(objects::namespace(MEASURED, &[]))?;
        for object in (Cluster { pods, policies }).objects() {
            api.put(object)?;
        }
        let mut others = Vec::new();
        for index in 0..LOCAL {
            // Applications from 0 on have policies.
            let (namespace, name) = (format!("ns-{index}"), format!("local-{index}"));
            let host = pod(&namespace, &name)?;
            let labels = cluster::labels(index % 10 * 5);
            let labels = labels.each_ref().map(|(key, value)| (*key, value.as_str()));
            api.put(local(&node, &host, (&namespace, &name), &labels))?;
            others.push(host);
        }
        let world = Self {
            api,
            client,
            server,
            _others: others,
            node,
        };
        world.put_client("client")?;
        let server = local(
            &world.node,
            &world.server,
            (MEASURED, "server"),
            &[("app", "server")],
        );
        world.api.put(server)?;
        world.put_gate("client")?;
        Ok(world)
    }

    /// Starts the agent and waits until it enforces all of this.
    pub(super) fn agent(&self) -> Result<Agent<'_>> {
        let file = self.kubeconfig()?;
        Agent::start_from(&self.node, Source::Api(&[("KUBECONFIG", file.as_os_str())]))
    }

    /// A file by which clients find the API.
    pub(super) fn kubeconfig(&self) -> Result<PathBuf> {
        let file = self.node.directory().join("kubeconfig");
        fs::write(&file, self.api.kubeconfig()).context("kubeconfig")?;
        Ok(file)
    }

    /// Writes the client's pod, with this label `app`.
    pub(super) fn put_client(&self, app: &str) -> Result<()> {
        let labels = [("app", app)];
        let pod = local(&self.node, &self.client, (MEASURED, "client"), &labels);
        self.api.put(pod)
    }

    /// Writes the policy that lets pods with this label `app`, and nobody else, come to the server.
    pub(super) fn put_gate(&self, app: &str) -> Result<()> {
        let spec = json!({
            "podSelector": {"matchLabels": {"app": "server"}},
            "policyTypes": ["Ingress"],
            "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": app}}}]}],
        });
        self.api
            .put(objects::network_policy(MEASURED, "gate", &spec))
    }
}

/// The object of one of this node's pods.
fn local(
    node: &Node,
    host: &Host,
    (namespace, name): (&str, &str),
    labels: objects::Labels<'_>,
) -> Value {
    let mut pod = objects::pod(namespace, name, labels, &[], &host.addresses());
    pod["spec"]["nodeName"] = json!(node.node_name());
    pod
}
