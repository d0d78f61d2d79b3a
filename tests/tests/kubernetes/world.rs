//! A node with three pods, and the API server that knows them.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, TcpStream};
use std::path::PathBuf;

use portcullis_tests::apiserver::{Api, ApiServer, Resource};
use portcullis_tests::netns::{Agent, Form, Host, Node, PodSpec, Source};
use portcullis_tests::objects::{self, Labels};
use serde_json::{Value, json};

/// A node, its pods, and the API.
pub(crate) struct World {
    /// Ends before the node whose network namespace it is in.
    pub(crate) api: Api,
    /// In `shop`, with `app: web`.
    pub(crate) web: Host,
    /// In `shop`, with `app: db`.
    pub(crate) db: Host,
    /// In `dev`, with `app: tool`.
    pub(crate) tool: Host,
    pub(crate) node: Node,
}

impl World {
    /// With the API server within the test.
    pub(crate) fn in_process() -> Self {
        let node = Node::new(Form::Routed).unwrap();
        let api = Api::in_process(&node).unwrap();
        Self::of(node, api)
    }

    /// With kube-apiserver; none, with a word about it, where there is none.
    pub(crate) fn real() -> Option<Self> {
        let node = Node::new(Form::Routed).unwrap();
        let api = Api::real(&node).unwrap()?;
        Some(Self::of(node, api))
    }

    fn of(node: Node, api: Api) -> Self {
        let host = |namespace, name, labels| {
            node.add_unknown(PodSpec::new(namespace, name, labels))
                .unwrap()
        };
        let world = Self {
            web: host("shop", "web", &[]),
            db: host("shop", "db", &[]),
            tool: host("dev", "tool", &[]),
            api,
            node,
        };
        world.put(json!({
            "apiVersion": "v1", "kind": "Node", "metadata": {"name": world.node.node_name()},
        }));
        world.put_namespace("shop", &[("team", "shop")]);
        world.put_namespace("dev", &[("team", "dev")]);
        world.put_pod("shop", "web", &[("app", "web")], &world.web.addresses());
        world.put_pod("shop", "db", &[("app", "db")], &world.db.addresses());
        world.put_pod("dev", "tool", &[("app", "tool")], &world.tool.addresses());
        world
    }

    /// The server within the test, for faults.
    pub(crate) fn server(&self) -> &ApiServer {
        match &self.api {
            Api::InProcess(server) => server,
            Api::Real(_) => panic!("the real server has no faults to order"),
        }
    }

    /// Starts the agent and waits until it enforces what the API holds.
    pub(crate) fn agent(&self) -> Agent<'_> {
        let file = self.file("kubeconfig", &self.api.kubeconfig());
        let source = Source::Api(&[("KUBECONFIG", file.as_os_str())]);
        Agent::start_from(&self.node, source).unwrap()
    }

    /// Starts an agent with this kubeconfig, and waits no longer than until it answers.
    pub(crate) fn agent_with(&self, kubeconfig: &str) -> Agent<'_> {
        let file = self.file("kubeconfig", kubeconfig);
        let source = Source::Api(&[("KUBECONFIG", file.as_os_str())]);
        let mut agent = Agent::spawn_from(&self.node, source).unwrap();
        agent.wait_for_answers().unwrap();
        agent
    }

    /// What `/readyz` on the node says: the status line first, then the conditions.
    pub(crate) fn readyz(&self) -> String {
        self.node.netns().enter(|| {
            let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, 9099)).unwrap();
            let request = b"GET /readyz HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n";
            stream.write_all(request).unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            answer
        })
    }

    /// A file that goes with the node.
    pub(crate) fn file(&self, name: &str, content: &str) -> PathBuf {
        let path = self.node.directory().join(name);
        fs::write(&path, content).unwrap();
        path
    }

    pub(crate) fn put(&self, object: Value) {
        self.api.put(object).unwrap();
    }

    pub(crate) fn put_namespace(&self, name: &str, labels: Labels<'_>) {
        self.put(objects::namespace(name, labels));
    }

    pub(crate) fn put_pod(
        &self,
        namespace: &str,
        name: &str,
        labels: Labels<'_>,
        addresses: &[IpAddr],
    ) {
        self.put(self.pod(namespace, name, labels, addresses));
    }

    /// A pod of this node.
    pub(crate) fn pod(
        &self,
        namespace: &str,
        name: &str,
        labels: Labels<'_>,
        addresses: &[IpAddr],
    ) -> Value {
        let mut pod = objects::pod(namespace, name, labels, &[], addresses);
        pod["spec"]["nodeName"] = json!(self.node.node_name());
        pod
    }

    pub(crate) fn put_policy(&self, name: &str, spec: &Value) {
        self.put(objects::network_policy("shop", name, spec));
    }

    pub(crate) fn delete(&self, resource: Resource, namespace: &str, name: &str) {
        self.api.delete(resource, namespace, name).unwrap();
    }
}

/// What `policyctl sync` says when it gives up, soon.
pub(crate) fn sync_fails(agent: &Agent<'_>) -> String {
    let output = agent.policyctl(&["sync", "--timeout", "1"]).unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success(), "{said}");
    said
}
