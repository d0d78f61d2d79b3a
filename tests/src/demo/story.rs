//! The demo, chapter by chapter.

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use signal_hook::consts::{SIGINT, SIGTERM};

use super::measured::Connectivity;
use super::screen::{Screen, Style};
use crate::netns::{Agent, Family, Flow, Form, Host, Node, PATIENCE, PodSpec, SILENCE};

/// The user had enough.
#[derive(Debug)]
pub(super) struct Interrupted;

impl std::fmt::Display for Interrupted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("interrupted")
    }
}

impl std::error::Error for Interrupted {}

/// A policy and what it is there to show.
struct Chapter {
    title: &'static str,
    name: &'static str,
    spec: &'static str,
}

const CHAPTERS: [Chapter; 5] = [
    Chapter {
        title: "Default deny: nothing may enter shop's pods",
        name: "default-deny",
        spec: "podSelector: {}\npolicyTypes: [Ingress]",
    },
    Chapter {
        title: "Allow by labels: web may reach api on TCP port 80",
        name: "web-to-api",
        spec: "podSelector: {matchLabels: {app: api}}\n\
               ingress:\n\
               - from: [{podSelector: {matchLabels: {app: web}}}]\n\
               \x20 ports: [{port: 80}]",
    },
    Chapter {
        title: "Allow by namespace: whatever runs in tools may reach db",
        name: "tools-to-db",
        spec: "podSelector: {matchLabels: {app: db}}\n\
               ingress:\n\
               - from: [{namespaceSelector: {matchLabels: {team: tools}}}]",
    },
    Chapter {
        title: "ipBlock with except: the outside may reach web, but for one address",
        name: "outside-to-web",
        spec: "podSelector: {matchLabels: {app: web}}\n\
               ingress:\n\
               - from:\n\
               \x20 - ipBlock: {cidr: 198.51.100.0/24, except: [198.51.100.20/32]}\n\
               \x20 - ipBlock: {cidr: \"2001:db8:51::/64\", except: [\"2001:db8:51::14/128\"]}",
    },
    Chapter {
        title: "Egress with DNS: web may ask the name server and reach api, and nothing else",
        name: "web-egress",
        spec: "podSelector: {matchLabels: {app: web}}\n\
               policyTypes: [Egress]\n\
               egress:\n\
               - to: [{namespaceSelector: {}, podSelector: {matchLabels: {app: dns}}}]\n\
               \x20 ports: [{port: 53, protocol: UDP}, {port: 53, protocol: TCP}]\n\
               - to: [{podSelector: {matchLabels: {app: api}}}]\n\
               \x20 ports: [{port: 80}]",
    },
];

/// The pods, and two hosts outside of the cluster.
struct Cast {
    pods: Vec<Host>,
    outside: Vec<Host>,
}

const PODS: [(&str, &str); 5] = [
    ("shop", "web"),
    ("shop", "api"),
    ("shop", "db"),
    ("tools", "backup"),
    ("tools", "dns"),
];

impl Cast {
    fn new(node: &Node) -> Result<Self> {
        for namespace in ["shop", "tools"] {
            node.datastore()
                .put_namespace(namespace, &[("team", namespace)])?;
        }
        let pod = |(namespace, name)| node.add(PodSpec::new(namespace, name, &[("app", name)]));
        Ok(Self {
            pods: PODS.into_iter().map(pod).collect::<Result<_>>()?,
            outside: vec![
                node.add_outside("friend", 10)?,
                node.add_outside("stranger", 20)?,
            ],
        })
    }

    fn pod(&self, name: &str) -> Result<&Host> {
        let pod = self.pods.iter().find(|pod| pod.name() == name);
        pod.with_context(|| format!("no pod {name}"))
    }

    fn measure(&self) -> Connectivity {
        let hosts: Vec<_> = self.pods.iter().chain(&self.outside).collect();
        Connectivity::measure(&hosts, self.pods.len())
    }
}

/// Tells it all; what was made is gone on return.
pub(super) fn tell(screen: &Screen) -> Result<()> {
    let began = Instant::now();
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, interrupted.clone())?;
    }
    let go_on = || match interrupted.load(Ordering::Relaxed) {
        true => bail!(Interrupted),
        false => Ok(()),
    };
    screen.heading("Portcullis: NetworkPolicies in the kernel, on this machine");
    screen.say(
        "A node and its pods are network namespaces joined by veths, as a CNI plugin joins them.",
    );
    screen.say(
        "Every table below is measured with real connections, over IPv4 and IPv6: tcp is port 80,",
    );
    screen.say("udp is port 53, - is silence. What a policy changed is marked with *.");
    let node = Node::new(Form::Routed)?;
    let cast = Cast::new(&node)?;
    show_cast(screen, &cast);
    go_on()?;
    let agent = Agent::start(&node)?;
    screen.heading("No policies: everything connects");
    let mut before = cast.measure();
    before.show(screen, None);
    let (mut exchanges, _) = before.count();
    for (number, chapter) in CHAPTERS.iter().enumerate() {
        go_on()?;
        screen.heading(&format!("{}. {}", number + 1, chapter.title));
        screen.quote(chapter.spec);
        node.datastore()
            .put_policy("shop", chapter.name, chapter.spec)?;
        agent.sync()?;
        let now = cast.measure();
        now.show(screen, Some(&before));
        exchanges += now.count().0;
        before = now;
    }
    go_on()?;
    cut(screen, &node, &agent, &cast)?;
    go_on()?;
    looking_inside(screen, &node, &agent)?;
    drop(agent);
    drop(cast);
    drop(node);
    screen.heading(&format!(
        "Done: {exchanges} exchanges tried in {:.0} s; programs, tables and namespaces are gone again",
        began.elapsed().as_secs_f64()
    ));
    Ok(())
}

fn show_cast(screen: &Screen, cast: &Cast) {
    let heading = ["POD", "LABELS", "IPV4", "IPV6"].map(|text| (text.to_owned(), Style::Dim));
    let mut rows = vec![heading.to_vec()];
    let addresses = |host: &Host| Family::ALL.map(|family| host.address(family).to_string());
    for pod in &cast.pods {
        let (_, app) = pod.name().split_once('/').unwrap_or_default();
        let [v4, v6] = addresses(pod);
        rows.push(
            [pod.name().to_owned(), format!("app={app}"), v4, v6]
                .map(plain)
                .to_vec(),
        );
    }
    for host in &cast.outside {
        let [v4, v6] = addresses(host);
        rows.push(
            [host.name().to_owned(), "(outside)".to_owned(), v4, v6]
                .map(plain)
                .to_vec(),
        );
    }
    println!();
    screen.table(&rows, 2);
}

fn plain(text: String) -> (String, Style) {
    (text, Style::Plain)
}

/// A connection that a policy change no longer allows.
fn cut(screen: &Screen, node: &Node, agent: &Agent<'_>, cast: &Cast) -> Result<()> {
    let (backup, db) = (cast.pod("tools/backup")?, cast.pod("shop/db")?);
    screen.heading(
        "A policy change cuts what it no longer allows, connections that are open included",
    );
    let mut flow = Flow::open(backup.netns(), db.netns(), db.address(Family::V4), 5432)?;
    let speak = |flow: &mut Flow, patience: Duration| -> Result<()> {
        let to_server = flow.client_speaks(patience)?;
        let to_client = flow.server_speaks(patience)?;
        let word = |passed| match passed {
            true => screen.styled(Style::Good, "passes"),
            false => screen.styled(Style::Bad, "dropped"),
        };
        screen.say(&format!(
            "data from tools/backup to shop/db: {}; from shop/db to tools/backup: {}",
            word(to_server),
            word(to_client)
        ));
        Ok(())
    };
    screen.say("tools/backup has a connection to port 5432 of shop/db");
    speak(&mut flow, PATIENCE)?;
    node.datastore().delete_policy("shop", "tools-to-db")?;
    let began = Instant::now();
    agent.sync()?;
    screen.say(&format!(
        "policy tools-to-db is deleted; policyctl sync returns after {} ms",
        began.elapsed().as_millis()
    ));
    speak(&mut flow, SILENCE)
}

/// The operator's view.
fn looking_inside(screen: &Screen, node: &Node, agent: &Agent<'_>) -> Result<()> {
    screen.heading("policyctl get workloadendpoints");
    screen.quote(&agent.ask(&["get", "workloadendpoints"])?);
    screen.heading("policyctl get networkpolicies");
    screen.quote(&agent.ask(&["get", "networkpolicies"])?);
    let pin = node.bpffs().join("flows_v4");
    screen.heading("bpftool map dump pinned .../flows_v4 (the first connection)");
    screen.quote(&first_row(&bpftool(&pin.display().to_string())?));
    screen.heading("What the agent logs of a drop");
    let line = agent
        .wait_for_log(|line| line.contains("drop ingress shop/") && line.contains("<- tools/"))?;
    screen.quote(&line);
    Ok(())
}

fn bpftool(pin: &str) -> Result<String> {
    // Not in every user's PATH on Debian.
    let program = ["/usr/sbin/bpftool", "/sbin/bpftool"]
        .into_iter()
        .find(|path| std::path::Path::new(path).exists())
        .unwrap_or("bpftool");
    let output = Command::new(program)
        .args(["map", "dump", "pinned", pin])
        .output()
        .context("bpftool cannot be run (Debian: apt install bpftool)")?;
    ensure!(
        output.status.success(),
        "bpftool: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(String::from_utf8(output.stdout)?)
}

/// The first element of a dump, with its arrays in one line and without padding.
fn first_row(dump: &str) -> String {
    let mut lines: Vec<String> = Vec::new();
    for line in dump.lines() {
        match (line.trim(), lines.last_mut()) {
            ("},{", _) => break,
            (end @ ("]" | "],"), Some(array)) => array.push_str(end),
            _ => lines.push(line.to_owned()),
        }
    }
    lines.retain(|line| !line.contains("\"_pad\""));
    lines.push("    }, ...".to_owned());
    lines.join("\n")
}
