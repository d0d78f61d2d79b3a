//! Agents that die and are followed by others, of the same kind or not: what is enforced goes on.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use aya::maps::{HashMap, Map, MapData};
use aya::programs::{SchedClassifier, TcAttachType};
use nix::net::if_::if_nametoindex;
use policy_common::endpoint::Endpoint;
use policy_common::flow::{Flow as FlowRow, FlowKeyV4, FlowState, protocol};
use policy_common::map;
use policy_common::verdict::Direction;

use super::uninstall::{Loaded, uninstall};
use super::{Cast, Form, What, check, in_both_forms};
use What::{Tcp, Udp};
use portcullis_tests::netns::{Agent, Family, Flow, Load, PATIENCE, PodSpec, get};

in_both_forms! {
    a_killed_agents_flows_counters_and_ids_are_taken_over
    what_changed_meanwhile_opens_no_window
    connections_survive_tables_of_another_size
    an_agent_may_die_in_the_middle_of_a_plan
}

fn load(cast: &Cast) -> Load<'_> {
    Load {
        client: &cast.web,
        server: &cast.db,
        stranger: &cast.tool,
    }
}

/// Rows of a table of flows.
fn flows(cast: &Cast, table: &str) -> BTreeMap<[u8; 16], FlowRow> {
    let data = MapData::from_pin(cast.node.bpffs().join(table)).unwrap();
    let rows: HashMap<_, [u8; 16], [u8; 20]> = Map::LruHashMap(data).try_into().unwrap();
    let rows = rows.iter().map(Result::unwrap);
    rows.map(|(key, row)| (key, bytemuck::cast(row))).collect()
}

/// Endpoints' ids by ifindex.
fn endpoint_ids(cast: &Cast) -> BTreeMap<u32, u32> {
    let data = MapData::from_pin(cast.node.bpffs().join(map::ENDPOINTS.name)).unwrap();
    let rows: aya::maps::Array<_, [u64; 6]> = Map::Array(data).try_into().unwrap();
    let rows = (0..).zip(rows.iter().map(Result::unwrap));
    rows.map(|(ifindex, row)| (ifindex, bytemuck::cast::<_, Endpoint>(row).id))
        .filter(|(_, id)| *id != 0)
        .collect()
}

/// `portcullis_packets_total`, series by series.
fn packets(cast: &Cast) -> BTreeMap<String, u64> {
    let page = get(cast.node.netns(), "/metrics").unwrap();
    let series = page.series("portcullis_packets_total").map(|line| {
        let (name, value) = line.rsplit_once(' ').unwrap();
        (name.to_owned(), value.parse().unwrap())
    });
    series.collect()
}

/// Everything that is pinned, relative to the agent's directory.
fn pins(cast: &Cast) -> BTreeSet<PathBuf> {
    fn walk(directory: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, found);
            }
            found.push(path);
        }
    }
    let mut found = Vec::new();
    walk(cast.node.bpffs(), &mut found);
    let relative = |path: PathBuf| path.strip_prefix(cast.node.bpffs()).unwrap().to_owned();
    found.into_iter().map(relative).collect()
}

/// Waits until every table and every endpoint's links are pinned, and nothing else.
#[track_caller]
fn assert_tidy(cast: &Cast) {
    let tables = map::ALL.iter().map(|spec| PathBuf::from(spec.name));
    let ids = endpoint_ids(cast);
    let links = ids.keys().flat_map(|ifindex| {
        ["from_pod", "to_pod"].map(|name| PathBuf::from(format!("links/{ifindex}-{name}")))
    });
    let mut wanted: BTreeSet<PathBuf> = tables.chain(links).collect();
    wanted.insert("links".into());
    if cast.node.form() == Form::Bridge {
        let bridge = cast.node.netns().enter(|| if_nametoindex("cni0").unwrap());
        wanted.insert(format!("links/{bridge}-from_node").into());
    }
    await_that("nothing but what is in use is pinned", || {
        let found = pins(cast);
        let odd: Vec<_> = found.symmetric_difference(&wanted).cloned().collect();
        (odd.is_empty(), odd)
    });
}

/// Waits until a condition holds; what it is about is printed when it never does.
#[track_caller]
fn await_that<T: std::fmt::Debug>(what: &str, condition: impl Fn() -> (bool, T)) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let (holds, about) = condition();
        if holds {
            return;
        }
        assert!(Instant::now() < deadline, "{what}: {about:?}");
        thread::sleep(Duration::from_millis(20));
    }
}

fn a_killed_agents_flows_counters_and_ids_are_taken_over(form: Form) {
    let cast = Cast::new(form);
    cast.only_web_to_db();
    let agent = Agent::start(&cast.node).unwrap();
    let mut held: Vec<_> = Family::ALL
        .iter()
        .map(|family| {
            let to = cast.db.address(*family);
            Flow::open(cast.web.netns(), cast.db.netns(), to, 9000).unwrap()
        })
        .collect();
    for flow in &mut held {
        assert!(flow.client_speaks(PATIENCE).unwrap() && flow.server_speaks(PATIENCE).unwrap());
    }
    let bind = |host: &super::Host| {
        let address = host.address(Family::V4);
        let socket = host
            .netns()
            .enter(|| std::net::UdpSocket::bind((address, 9000)));
        let socket = socket.unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket
    };
    let (asking, answering) = (bind(&cast.web), bind(&cast.db));
    let ask = || {
        asking
            .send_to(b"q", answering.local_addr().unwrap())
            .unwrap();
        answering.recv(&mut [0; 8]).unwrap();
    };
    let answer = || {
        answering
            .send_to(b"a", asking.local_addr().unwrap())
            .unwrap();
        asking.recv(&mut [0; 8]).unwrap();
    };
    ask();
    answer();
    check(
        "a drop, for the counters",
        &[(&cast.tool, &cast.db, Tcp(80), false)],
    );
    let (ids, before, counted) = (
        endpoint_ids(&cast),
        flows(&cast, "flows_v4"),
        packets(&cast),
    );
    let db_udp = |rows: &BTreeMap<[u8; 16], FlowRow>| {
        let mut rows = rows.iter().filter(|(key, row)| {
            let key: FlowKeyV4 = bytemuck::cast(**key);
            key.protocol == protocol::UDP
                && key.local_port == 9000
                && row.initiator == Direction::Ingress as u8
        });
        let (key, row) = rows.next().map(|(key, row)| (*key, *row)).unwrap();
        assert_eq!(row.state, FlowState::TWO_WAY);
        (key, row)
    };
    let (udp_key, _) = db_udp(&before);
    agent.kill().unwrap();
    answer();
    let agent = Agent::start(&cast.node).unwrap();
    // The servers first, who may open nothing: it is the flow that lets them speak.
    answer();
    for flow in &mut held {
        assert!(flow.server_speaks(PATIENCE).unwrap(), "{flow:?}");
        assert!(flow.client_speaks(PATIENCE).unwrap(), "{flow:?}");
    }
    assert_eq!(endpoint_ids(&cast), ids);
    let after = flows(&cast, "flows_v4");
    assert_eq!(db_udp(&after).0, udp_key, "the same flow, begun by web");
    for key in before.keys() {
        assert!(after.contains_key(key), "{key:?}");
    }
    for (series, value) in packets(&cast) {
        assert!(
            value >= counted[&series],
            "{series}: {value} after {counted:?}"
        );
    }
    check(
        "with a new agent",
        &[
            (&cast.web, &cast.db, Tcp(80), true),
            (&cast.tool, &cast.db, Udp(53), false),
            (&cast.db, &cast.web, Tcp(80), false),
        ],
    );
    assert_tidy(&cast);
    drop(agent);
}

fn what_changed_meanwhile_opens_no_window(form: Form) {
    let cast = Cast::new(form);
    cast.only_web_to_db();
    let other = cast
        .node
        .add(PodSpec::new("shop", "other", &[("app", "other")]))
        .unwrap();
    let agent = Agent::start(&cast.node).unwrap();
    let told = load(&cast).during(|running| {
        running.wait_for_more();
        agent.kill().unwrap();
        running.wait_for_more();
        // Other policies that come to the same for these three, a pod that goes, and one that comes.
        cast.policy(
            "web-to-db-and-more",
            "podSelector: {}\n\
             ingress:\n- from: [{podSelector: {matchLabels: {app: web}}}]\n- ports: [{port: 9999}]",
        );
        cast.no_policy("web-to-db");
        cast.policy(
            "web-out",
            "podSelector: {matchLabels: {app: web}}\n\
             policyTypes: [Egress]\n\
             egress:\n- to: [{namespaceSelector: {matchLabels: {team: shop}}}]",
        );
        drop(other);
        cast.node.datastore().delete_pod("shop", "other").unwrap();
        let new = cast
            .node
            .add(PodSpec::new("shop", "new", &[("app", "new")]))
            .unwrap();
        running.wait_for_more();
        let agent = Agent::start(&cast.node).unwrap();
        running.wait_for_more();
        check(
            "what is new",
            &[
                (&cast.web, &new, Tcp(80), true),
                (&cast.tool, &new, Tcp(80), false),
                (&new, &cast.web, Tcp(80), false),
            ],
        );
        assert_tidy(&cast);
        drop(agent);
    });
    eprintln!("{}", told.unwrap());
}

/// Whether its connections go on, and the tables have the size that they are to have.
fn connections_survive_tables_of_another_size(form: Form) {
    let cast = Cast::new(form);
    cast.only_web_to_db();
    let mut agent = Agent::start(&cast.node).unwrap();
    let mut held: Vec<_> = Family::ALL
        .iter()
        .map(|family| {
            let to = cast.db.address(*family);
            Flow::open(cast.web.netns(), cast.db.netns(), to, 9000).unwrap()
        })
        .collect();
    let rows = [
        (&cast.web, &cast.db, Tcp(80), true),
        (&cast.tool, &cast.db, Tcp(80), false),
        (&cast.tool, &cast.db, Udp(53), false),
        (&cast.db, &cast.web, Tcp(80), false),
    ];
    let ids = endpoint_ids(&cast);
    let counted = packets(&cast);
    for (table, size) in [
        ("peers", 4096),
        ("endpoints", 64),
        // Those of the connections themselves.
        ("flows_v4", 4096),
        ("flows_v6", 8192),
        ("flows_new_v4", 4096),
    ] {
        agent.kill().unwrap();
        let sizes = format!("{table}={size}");
        agent = Agent::spawn_with(&cast.node, &[("PORTCULLIS_TABLE_SIZES", &sizes)]).unwrap();
        agent.wait().unwrap();
        for flow in &mut held {
            assert!(flow.server_speaks(PATIENCE).unwrap(), "{sizes}: {flow:?}");
            assert!(flow.client_speaks(PATIENCE).unwrap(), "{sizes}: {flow:?}");
        }
        check(&sizes, &rows);
        assert_tidy(&cast);
        assert_eq!(endpoint_ids(&cast), ids, "{sizes}");
        let pinned = MapData::from_pin(cast.node.bpffs().join(table)).unwrap();
        assert_eq!(pinned.info().unwrap().max_entries(), size);
    }
    for (series, value) in packets(&cast) {
        assert!(
            value >= counted[&series],
            "{series}: {value} after {counted:?}"
        );
    }
}

/// Where there is no room for new rows beside the former ones.
#[test]
fn crowded_tables_are_no_obstacle() {
    let cast = Cast::new(Form::Routed);
    cast.only_web_to_db();
    let agent = Agent::start(&cast.node).unwrap();
    let used = |agent: &Agent<'_>, table: &str| {
        let tables = agent.status().unwrap().tables;
        tables.iter().find(|row| row.name == table).unwrap().used
    };
    let (peers, policies) = (used(&agent, "peers"), used(&agent, "policies"));
    assert!(peers > 0 && policies > 0);
    agent.stop().unwrap();
    // Page 0 is none.
    let sizes = format!("peers={peers},policies={}", policies + 1);
    let start = || {
        let mut agent =
            Agent::spawn_with(&cast.node, &[("PORTCULLIS_TABLE_SIZES", &sizes)]).unwrap();
        agent.wait().unwrap();
        agent
    };
    let mut agent = start();
    let told = load(&cast).during(|running| {
        for _ in 0..3 {
            running.wait_for_more();
            agent.kill().unwrap();
            agent = start();
            assert_eq!(agent.status().unwrap().problems, [""; 0]);
            assert_tidy(&cast);
        }
        running.wait_for_more();
        drop(agent);
    });
    eprintln!("{sizes}\n{}", told.unwrap());
}

/// An agent that died while it made tables anew, before and after they were filled.
#[test]
fn a_changeover_that_was_interrupted_is_ended() {
    let cast = Cast::new(Form::Routed);
    cast.only_web_to_db();
    let agent = Agent::start(&cast.node).unwrap();
    let ids = endpoint_ids(&cast);
    let to = cast.db.address(Family::V4);
    let mut held = Flow::open(cast.web.netns(), cast.db.netns(), to, 9000).unwrap();
    let place = |name: &str| cast.node.bpffs().join(name);
    let mut assert_goes_on = |when: &str| {
        assert!(held.server_speaks(PATIENCE).unwrap(), "{when}");
        assert!(held.client_speaks(PATIENCE).unwrap(), "{when}");
        assert_eq!(endpoint_ids(&cast), ids, "{when}");
        check(when, &[(&cast.tool, &cast.db, Tcp(80), false)]);
        assert_tidy(&cast);
    };
    agent.kill().unwrap();
    fs::create_dir(place("next")).unwrap();
    let other = MapData::from_pin(place("rules")).unwrap();
    other.pin(place("next/peers")).unwrap();
    let agent = Agent::start(&cast.node).unwrap();
    assert_goes_on("before they were filled");
    agent.kill().unwrap();
    fs::create_dir_all(place("next/complete")).unwrap();
    for name in ["peers", "endpoints"] {
        let waits = Path::new("next").join(name);
        fs::rename(place(name), cast.node.bpffs().join(waits)).unwrap();
    }
    let _agent = Agent::start(&cast.node).unwrap();
    assert_goes_on("while they took their places");
}

/// As an agent would find them whose rules lie in the tables in another way.
pub(super) fn mark_as_other_layout(cast: &Cast) {
    let data = MapData::from_pin(cast.node.bpffs().join(map::ENDPOINTS.name)).unwrap();
    let mut rows: aya::maps::Array<_, [u64; 6]> = Map::Array(data).try_into().unwrap();
    let mut head: Endpoint = bytemuck::cast(rows.get(&0, 0).unwrap());
    assert_eq!(head.flags, map::LAYOUT);
    head.flags += 1;
    rows.set(0, bytemuck::cast::<_, [u64; 6]>(head), 0).unwrap();
}

fn an_agent_may_die_in_the_middle_of_a_plan(form: Form) {
    let cast = Cast::new(form);
    cast.only_web_to_db();
    drop(Agent::start(&cast.node).unwrap());
    let told = load(&cast).during(|running| {
        for round in 0..12_u64 {
            running.wait_for_more();
            let size = (1 + round % 3) * 1024;
            let sizes = format!("peers={size}");
            let mut agent =
                Agent::spawn_with(&cast.node, &[("PORTCULLIS_TABLE_SIZES", &sizes)]).unwrap();
            if round % 2 == 0 {
                agent.wait_for_answers().unwrap();
            }
            let dies = Instant::now() + Duration::from_millis(round * 37 % 290);
            let mut change = 0;
            while Instant::now() < dies {
                change += 1;
                cast.policy(
                    "more",
                    &format!(
                        "podSelector: {{}}\ningress:\n- ports: [{{port: {}}}]",
                        7000 + change
                    ),
                );
                if change % 2 == 0 {
                    cast.no_policy("more");
                }
            }
            agent.kill().unwrap();
            assert_eq!(running.wrong(), "", "round {round}");
        }
        let agent = Agent::start(&cast.node).unwrap();
        running.wait_for_more();
        assert_tidy(&cast);
        drop(agent);
    });
    eprintln!("{}", told.unwrap());
}

/// How often, unless the environment says otherwise; continuous integration has other things to do.
pub(super) fn times(variable: &str, unless_told: usize) -> usize {
    match std::env::var(variable) {
        Ok(text) => text.parse().unwrap(),
        Err(_) => unless_told,
    }
}

/// `PORTCULLIS_TEST_KILLS=100 PORTCULLIS_TEST_UPGRADES=20` is what is promised.
#[test]
fn killed_and_upgraded_again_and_again_under_load() {
    let kills = times("PORTCULLIS_TEST_KILLS", 10);
    let upgrades = times("PORTCULLIS_TEST_UPGRADES", 3);
    let cast = Cast::new(Form::Routed);
    cast.only_web_to_db();
    let agent = Agent::start(&cast.node).unwrap();
    let mut loaded = Loaded::of(&agent);
    let mut agent = Some(agent);
    let ids = endpoint_ids(&cast);
    let mut size = 1 << 14;
    let told = load(&cast).during(|running| {
        let cycles = kills + upgrades;
        let mut upgraded = 0;
        for cycle in 0..cycles {
            running.wait_for_more();
            let counted = packets(&cast);
            agent.take().unwrap().kill().unwrap();
            // Spread over the cycles.
            if (cycle + 1) * upgrades / cycles > upgraded {
                upgraded += 1;
                match upgraded % 2 {
                    0 => mark_as_other_layout(&cast),
                    _ => size ^= 3 << 13,
                }
            }
            running.wait_for_more();
            let sizes = format!("peers={size},ports={size}");
            let mut next =
                Agent::spawn_with(&cast.node, &[("PORTCULLIS_TABLE_SIZES", &sizes)]).unwrap();
            next.wait().unwrap();
            loaded.add(&next);
            agent = Some(next);
            assert_tidy(&cast);
            assert_eq!(endpoint_ids(&cast), ids, "cycle {cycle}");
            for (series, value) in packets(&cast) {
                assert!(value >= counted[&series], "cycle {cycle}: {series}");
            }
            assert_eq!(running.wrong(), "", "cycle {cycle}");
        }
        assert_eq!(upgraded, upgrades);
    });
    eprintln!("{kills} kills and {upgrades} upgrades\n{}", told.unwrap());
    agent.unwrap().stop().unwrap();
    uninstall(&cast.node);
    assert_eq!(loaded.still(), (0, 0), "programs and maps");
    assert!(!cast.node.bpffs().exists());
    for name in ["pcl-veth1", "pcl-veth2", "pcl-veth3"] {
        for side in [TcAttachType::Ingress, TcAttachType::Egress] {
            let query = || SchedClassifier::query_tcx(name, side).unwrap().1.len();
            assert_eq!(cast.node.netns().enter(query), 0, "{name}");
        }
    }
}
