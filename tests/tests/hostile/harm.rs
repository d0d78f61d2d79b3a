//! What the neighbours have, before, during and after: flows that go on, addresses and routes as they were.

use std::net::IpAddr;

use portcullis_tests::netns::{Family, Flow, Outcome, PATIENCE, Stream, What, wrong};
use serde_json::Value;

use super::scene::{Scene, Who};
use What::{Fragments, Ping, Tcp, Udp};
use Who::{Db, Evil, Friend, Open, Stranger, Tool, Web};

/// All that policy says, by exchanges: those that come out otherwise.
pub(super) fn against_policy(scene: &Scene) -> Vec<String> {
    let host = |who| scene.host(who);
    let mut rows = Vec::new();
    for (from, to) in [
        (Web, Db),
        (Web, Friend),
        (Friend, Db),
        (Tool, Open),
        (Open, Friend),
        (Stranger, Open),
        (Who::Node, Evil),
        (Evil, Who::Node),
    ] {
        for what in [Tcp(80), Udp(53), Fragments(53), Ping] {
            rows.push((host(from), host(to).addresses(), what, Outcome::Answered));
        }
    }
    for (from, to) in [
        (Evil, Db),
        (Evil, Friend),
        (Db, Web),
        (Tool, Web),
        (Stranger, Db),
    ] {
        for what in [Tcp(80), Udp(53), Ping] {
            rows.push((host(from), host(to).addresses(), what, Outcome::Silent));
        }
    }
    let db = host(Db).addresses();
    rows.push((host(Tool), db, Udp(53), Outcome::Answered));
    rows.push((host(Tool), db, Tcp(80), Outcome::Silent));
    wrong(&rows)
}

/// Flows between neighbours.
pub(super) struct Neighbours {
    pub(super) flows: Vec<(Who, Who, Family, Flow)>,
    stream: Option<Stream>,
    /// Ports of streams so far: those that ended may keep theirs a moment longer.
    streams: u16,
}

impl Neighbours {
    pub(super) fn start(scene: &Scene) -> Self {
        let mut flows = Vec::new();
        for family in Family::ALL {
            for (from, to) in [(Web, Db), (Open, Friend), (Stranger, Open), (Who::Node, Db)] {
                let port = 9100 + flows.len() as u16;
                let (client, server) = (scene.host(from).netns(), scene.host(to).netns());
                let flow = Flow::open(client, server, scene.address(to, family), port).unwrap();
                flows.push((from, to, family, flow));
            }
        }
        let mut neighbours = Self {
            flows,
            stream: None,
            streams: 0,
        };
        neighbours.stream(scene);
        neighbours
    }

    /// Datagrams of web to db, until somebody asks how many arrived.
    fn stream(&mut self, scene: &Scene) {
        self.streams += 1;
        let (web, db) = (scene.host(Web).netns(), scene.host(Db).netns());
        let to = scene.address(Db, Family::V4);
        let stream = Stream::start(web, db, to, 9200 + self.streams).unwrap();
        self.stream = Some(stream);
    }

    /// Whether anything of theirs is not as it was.
    pub(super) fn harmed(&mut self, scene: &Scene) -> Vec<String> {
        let mut wrong = Vec::new();
        for (from, to, family, flow) in &mut self.flows {
            let speaks = flow
                .client_speaks(PATIENCE)
                .and_then(|client| Ok(client && flow.server_speaks(PATIENCE)?));
            if !matches!(speaks, Ok(true)) {
                wrong.push(format!(
                    "  the connection of {from:?} to {to:?}, {family:?}, is harmed: {speaks:?}"
                ));
            }
        }
        if let Some(stream) = self.stream.take() {
            let (sent, arrived) = stream.finish();
            if sent != arrived {
                wrong.push(format!(
                    "  of {sent} datagrams of web to db, {arrived} arrived"
                ));
            }
        }
        self.stream(scene);
        wrong.extend(tables(scene));
        wrong
    }
}

fn ask(scene: &Scene, who: Who, arguments: &[&str]) -> Vec<Value> {
    let output = scene
        .host(who)
        .netns()
        .command("ip")
        .arg("-j")
        .args(arguments)
        .output()
        .unwrap();
    serde_json::from_slice(&output.stdout).unwrap_or_default()
}

/// What neighbours believe: hardware addresses, routers, routes.
fn tables(scene: &Scene) -> Vec<String> {
    let mut wrong = Vec::new();
    let text = |mac: [u8; 6]| mac.map(|byte| format!("{byte:02x}")).join(":");
    for victim in [Web, Db, Open, Who::Node] {
        for entry in ask(scene, victim, &["neigh", "show"]) {
            for attacker in [Evil, Tool] {
                let own: Vec<IpAddr> = Family::ALL
                    .map(|family| scene.address(attacker, family))
                    .into_iter()
                    .chain([scene.link_local(attacker).into()])
                    .collect();
                let is_attackers = entry["lladdr"] == text(scene.mac(attacker, attacker));
                let address: Option<IpAddr> =
                    entry["dst"].as_str().and_then(|dst| dst.parse().ok());
                if is_attackers && address.is_some_and(|address| !own.contains(&address)) {
                    wrong.push(format!(
                        "  {victim:?} takes {attacker:?} for {}",
                        entry["dst"]
                    ));
                }
            }
        }
        if victim == Who::Node {
            continue;
        }
        for route in ask(scene, victim, &["-6", "route", "show"]) {
            if route["protocol"] == "ra" || route["protocol"] == "redirect" {
                wrong.push(format!("  {victim:?} believed a router's message: {route}"));
            }
        }
        for family in Family::ALL {
            let to = scene.address(Friend, family).to_string();
            for route in ask(scene, victim, &["route", "get", &to]) {
                let gateway = scene.address(Who::Node, family).to_string();
                if route["gateway"] != gateway.as_str() {
                    wrong.push(format!("  {victim:?} goes to the friend by {route}"));
                }
            }
        }
    }
    wrong
}
