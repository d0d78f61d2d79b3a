//! The plugin as a runtime sees it: the program itself, with stdin and environment, and an agent that
//! says what a row of a table wants it to.
//!
//! The fake proves what the plugin sends and what it makes of answers; that an agent answers only once
//! it enforces is proved with the real one, in the crate of tests on this kernel.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

/// A network namespace that is not this process's, kept alive by a process that sleeps in it.
struct Sandbox(std::process::Child);

impl Sandbox {
    fn new() -> Self {
        assert!(
            nix::unistd::geteuid().is_root(),
            "this test makes a network namespace: run it as root"
        );
        let mut child = Command::new("unshare")
            .args(["--net", "sh", "-c", "echo ready; exec sleep 1000"])
            .stdout(Stdio::piped())
            .spawn()
            .expect("unshare, of util-linux");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("piped"))
            .read_line(&mut line)
            .expect("it says when it is there");
        Self(child)
    }

    fn path(&self) -> String {
        format!("/proc/{}/ns/net", self.0.id())
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        // Already gone is as good.
        let _gone = self.0.kill();
        let _gone = self.0.wait();
    }
}

/// A run directory, and an agent in it that gives these answers one after the other.
struct Agent {
    directory: tempfile::TempDir,
    requests: mpsc::Receiver<(String, Value)>,
}

impl Agent {
    fn away() -> Self {
        let (_, requests) = mpsc::channel();
        let directory = tempfile::tempdir().expect("temporary directory");
        Self {
            directory,
            requests,
        }
    }

    fn answering(answers: Vec<(u16, Value)>) -> Self {
        let directory = tempfile::tempdir().expect("temporary directory");
        let listener = UnixListener::bind(directory.path().join("agent.sock")).expect("listen");
        let (heard, requests) = mpsc::channel();
        thread::spawn(move || {
            for (status, body) in answers {
                let (stream, _) = listener.accept().expect("a connection");
                let mut reader = BufReader::new(&stream);
                let mut line = String::new();
                reader.read_line(&mut line).expect("a request line");
                let path = line.split(' ').nth(1).expect("a path").to_owned();
                let mut length = 0;
                loop {
                    let mut header = String::new();
                    reader.read_line(&mut header).expect("a header");
                    if let Some(value) = header.strip_prefix("Content-Length: ") {
                        length = value.trim().parse().expect("a number");
                    }
                    if header.trim().is_empty() {
                        break;
                    }
                }
                let mut request = vec![0; length];
                reader.read_exact(&mut request).expect("the body");
                let request = serde_json::from_slice(&request).expect("JSON");
                // A test that looks at no request has none of them left to tell.
                let _unheard = heard.send((path, request));
                let body = body.to_string();
                let head = format!(
                    "HTTP/1.1 {status} Word\r\ncontent-length: {}\r\n\r\n",
                    body.len()
                );
                (&stream)
                    .write_all(format!("{head}{body}").as_bytes())
                    .expect("the plugin listens");
            }
        });
        Self {
            directory,
            requests,
        }
    }

    fn run_dir(&self) -> &Path {
        self.directory.path()
    }

    fn socket(&self) -> PathBuf {
        self.run_dir().join("agent.sock")
    }

    fn request(&self) -> (String, Value) {
        self.requests
            .recv_timeout(Duration::from_secs(10))
            .expect("the plugin asked")
    }
}

fn previous_result() -> Value {
    json!({
        "cniVersion": "1.0.0",
        "interfaces": [
            {"name": "veth1", "mac": "02:00:00:00:00:01"},
            {"name": "eth0", "mac": "02:00:00:00:00:02", "sandbox": "/run/netns/x", "mtu": 1450, "unheardOf": [1.5, null]},
        ],
        "ips": [{"address": "10.0.0.5/24", "gateway": "10.0.0.1", "interface": 1}],
        "routes": [{"dst": "0.0.0.0/0"}],
        "dns": {"nameservers": ["10.0.0.10"]},
    })
}

fn conf(agent: &Agent) -> Value {
    json!({
        "cniVersion": "1.0.0", "name": "pods", "type": "policy-cni", "runDir": agent.run_dir(),
        "timeout": 0.5, "prevResult": previous_result(),
    })
}

fn with(mut conf: Value, field: &str, value: Value) -> Value {
    conf[field] = value;
    conf
}

fn without(mut conf: Value, field: &str) -> Value {
    conf.as_object_mut().expect("an object").remove(field);
    conf
}

/// Runs the plugin; `changes` replace or, where empty, remove variables.
fn run(command: &str, netns: &str, changes: &[(&str, &str)], stdin: &str) -> Output {
    let mut plugin = Command::new(env!("CARGO_BIN_EXE_policy-cni"));
    plugin
        .env_clear()
        .env("CNI_COMMAND", command)
        .env("CNI_CONTAINERID", "c1")
        .env("CNI_NETNS", netns)
        .env("CNI_IFNAME", "eth0")
        .env(
            "CNI_ARGS",
            "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web;K8S_POD_UID=u1",
        )
        .env("CNI_PATH", "/opt/cni/bin");
    for (name, value) in changes {
        match *value {
            "" => plugin.env_remove(name),
            value => plugin.env(name, value),
        };
    }
    let mut child = plugin
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the plugin");
    child
        .stdin
        .take()
        .expect("piped")
        .write_all(stdin.as_bytes())
        .expect("it reads");
    child.wait_with_output().expect("it ends")
}

/// What a command that succeeds prints.
#[track_caller]
fn succeeds(output: &Output) -> Value {
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{stdout}");
    if stdout.is_empty() {
        return Value::Null;
    }
    serde_json::from_str(&stdout).expect("JSON")
}

/// Code, message and details of a command that fails.
#[track_caller]
fn fails(output: &Output, code: u32) -> String {
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{stdout}");
    let error: Value = serde_json::from_str(&stdout).expect("JSON");
    assert_eq!(error["code"], json!(code), "{stdout}");
    assert!(error["cniVersion"].is_string(), "{stdout}");
    format!("{} {}", error["msg"], error["details"])
}

const DONE: (u16, Value) = (200, Value::Null);

fn refusal(status: u16, why: &str) -> (u16, Value) {
    (status, json!({"error": why}))
}

#[test]
fn add_tells_the_agent_and_passes_the_result_on() {
    let sandbox = Sandbox::new();
    for version in ["0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        let agent = Agent::answering(vec![DONE]);
        let conf = with(conf(&agent), "cniVersion", version.into());
        let output = run("ADD", &sandbox.path(), &[], &conf.to_string());
        assert_eq!(succeeds(&output), previous_result(), "{version}");
        let (path, mut request) = agent.request();
        assert_eq!(path, "/v1/cni/add");
        let patience = request["patienceMs"].take().as_u64().expect("a number");
        assert!((1..500).contains(&patience), "{patience}");
        assert_eq!(
            request["attachment"],
            json!({
                "containerId": "c1", "ifname": "eth0", "network": "pods", "netns": sandbox.path(),
                "pod": {"namespace": "shop", "name": "web", "uid": "u1"},
                "hostInterfaces": ["veth1"], "addresses": ["10.0.0.5"],
            })
        );
    }
}

/// The entry at the chain's beginning, which knows no more than this.
fn holding(version: &str) -> Value {
    json!({"cniVersion": version, "name": "pods", "type": "policy-cni", "hold": true})
}

#[test]
fn a_start_is_held_from_the_first_turn_to_the_end_of_the_last() {
    for version in ["0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        let sandbox = Sandbox::new();
        let first = |command: &str| {
            let conf = holding(version).to_string();
            run(command, &sandbox.path(), &[], &conf)
        };
        succeeds(&first("CHECK"));
        for attempt in ["first", "retried"] {
            let result = succeeds(&first("ADD"));
            assert_eq!(result, json!({"cniVersion": version}), "{attempt}");
            let says = fails(&first("CHECK"), 103);
            assert!(says.contains("still held"), "{says}");
        }
        // A failure leaves it held, because the sandbox is taken down.
        let last = |agent: &Agent| run("ADD", &sandbox.path(), &[], &conf(agent).to_string());
        fails(&last(&Agent::away()), 11);
        fails(&first("CHECK"), 103);

        let agent = Agent::answering(vec![DONE]);
        assert_eq!(succeeds(&last(&agent)), previous_result());
        assert_eq!(agent.request().1["held"], json!(true));
        succeeds(&first("CHECK"));
        // One that nobody held.
        let agent = Agent::answering(vec![DONE]);
        assert_eq!(succeeds(&last(&agent)), previous_result());
        assert_eq!(agent.request().1["held"], json!(false));
    }
}

#[test]
fn fail_open_releases_too() {
    let sandbox = Sandbox::new();
    let held = holding("1.0.0").to_string();
    succeeds(&run("ADD", &sandbox.path(), &[], &held));
    let conf = with(conf(&Agent::away()), "failOpen", true.into());
    succeeds(&run("ADD", &sandbox.path(), &[], &conf.to_string()));
    succeeds(&run("CHECK", &sandbox.path(), &[], &held));
}

#[test]
fn the_holding_entry_needs_no_agent() {
    let sandbox = Sandbox::new();
    let bare = [
        ("CNI_CONTAINERID", ""),
        ("CNI_IFNAME", ""),
        ("CNI_NETNS", ""),
    ];
    let conf = holding("1.1.0").to_string();
    for command in ["DEL", "GC", "STATUS"] {
        let output = run(command, "/run/netns/gone", &bare, &conf);
        assert_eq!(succeeds(&output), Value::Null, "{command}");
    }
    // DEL never fails, whatever was written into the entry.
    let wrong = with(holding("1.0.0"), "timeout", "?".into()).to_string();
    assert_eq!(
        succeeds(&run("DEL", "/run/netns/gone", &[], &wrong)),
        Value::Null
    );
    fails(&run("ADD", &sandbox.path(), &[], &wrong), 7);
    let old = holding("0.2.0").to_string();
    fails(&run("ADD", &sandbox.path(), &[], &old), 1);
    fails(&run("ADD", "/run/netns/gone", &[], &conf), 4);
    // It holds no host.
    fails(&run("ADD", "/proc/self/ns/net", &[], &conf), 4);
    // One that is not the first passes on what there is.
    let later = with(holding("1.0.0"), "prevResult", previous_result()).to_string();
    let output = run("ADD", &sandbox.path(), &[], &later);
    assert_eq!(succeeds(&output), previous_result());
}

#[test]
fn a_namespace_in_use_is_never_held() {
    let sandbox = Sandbox::new();
    let inside = |arguments: &str| {
        let target = sandbox.0.id().to_string();
        let status = Command::new("nsenter")
            .args(["--net", "--target", &target, "ip"])
            .args(arguments.split(' '))
            .status();
        assert!(status.expect("nsenter, of util-linux").success());
    };
    let conf = holding("1.0.0").to_string();
    let first = |command: &str| run(command, &sandbox.path(), &[], &conf);
    // Loopback is everybody's, and an interface without an address answers nobody.
    inside("link set lo up");
    inside("link add eth0 type bridge");
    succeeds(&first("ADD"));
    fails(&first("CHECK"), 103);
    let agent = Agent::answering(vec![DONE]);
    let last = run("ADD", &sandbox.path(), &[], &self::conf(&agent).to_string());
    succeeds(&last);

    inside("address add 10.0.0.5/24 dev eth0");
    let output = first("ADD");
    assert_eq!(succeeds(&output), json!({"cniVersion": "1.0.0"}));
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(log.contains("not held"), "{log}");
    succeeds(&first("CHECK"));
}

#[test]
fn a_result_without_a_version_gets_the_configurations() {
    let sandbox = Sandbox::new();
    let agent = Agent::answering(vec![DONE]);
    let conf = with(
        conf(&agent),
        "prevResult",
        without(previous_result(), "cniVersion"),
    );
    let output = run("ADD", &sandbox.path(), &[], &conf.to_string());
    assert_eq!(succeeds(&output), previous_result());
}

#[test]
fn add_asks_again_while_it_may() {
    let sandbox = Sandbox::new();
    let agent = Agent::answering(vec![refusal(503, "starting"), DONE]);
    let conf = with(conf(&agent), "timeout", json!(10));
    let output = run("ADD", &sandbox.path(), &[], &conf.to_string());
    assert_eq!(succeeds(&output), previous_result());
}

#[test]
fn add_fails_when_the_agent_is_away_or_not_done() {
    let sandbox = Sandbox::new();
    let add = |conf: &Value| run("ADD", &sandbox.path(), &[], &conf.to_string());
    let says = fails(&add(&conf(&Agent::away())), 11);
    assert!(
        says.contains("shop/web") && says.contains("does not listen"),
        "{says}"
    );

    // Listens, but never answers.
    let silent = Agent::away();
    let listener = UnixListener::bind(silent.socket()).expect("listen");
    let says = fails(&add(&conf(&silent)), 11);
    assert!(says.contains("did not answer in time"), "{says}");
    drop(listener);

    let busy = Agent::answering(vec![refusal(503, "the pod is not known yet"); 1000]);
    let says = fails(&add(&conf(&busy)), 11);
    assert!(says.contains("the pod is not known yet"), "{says}");

    let unwilling = Agent::answering(vec![refusal(400, "no such thing")]);
    let says = fails(&add(&conf(&unwilling)), 102);
    assert!(says.contains("no such thing"), "{says}");
}

#[test]
fn fail_open_lets_pods_pass_and_says_so() {
    let sandbox = Sandbox::new();
    for agent in [
        Agent::away(),
        Agent::answering(vec![refusal(503, "starting"); 1000]),
    ] {
        let conf = with(conf(&agent), "failOpen", true.into());
        let output = run("ADD", &sandbox.path(), &[], &conf.to_string());
        assert_eq!(succeeds(&output), previous_result());
        let log = String::from_utf8_lossy(&output.stderr);
        assert!(
            log.contains("failOpen: pod shop/web starts without enforcement"),
            "{log}"
        );
    }
    let unwilling = Agent::answering(vec![refusal(400, "no such thing")]);
    let conf = with(conf(&unwilling), "failOpen", true.into());
    fails(&run("ADD", &sandbox.path(), &[], &conf.to_string()), 102);
}

#[test]
fn nobody_but_root_is_asked() {
    let sandbox = Sandbox::new();
    let agent = Agent::away();
    fs::write(agent.socket(), "no socket").expect("write");
    let add = |agent: &Agent| {
        let conf = with(conf(agent), "failOpen", true.into());
        run("ADD", &sandbox.path(), &[], &conf.to_string())
    };
    let says = fails(&add(&agent), 100);
    assert!(says.contains("not a socket"), "{says}");

    let agent = Agent::answering(vec![DONE]);
    std::os::unix::fs::chown(agent.socket(), Some(65534), None).expect("root");
    let says = fails(&add(&agent), 100);
    assert!(says.contains("belongs to uid 65534"), "{says}");
    assert!(agent.requests.try_recv().is_err(), "it is told nothing");
}

#[test]
fn del_never_fails_a_removal() {
    let rows: [(&str, Agent); 3] = [
        ("done", Agent::answering(vec![DONE])),
        ("away", Agent::away()),
        ("unwilling", Agent::answering(vec![refusal(500, "no")])),
    ];
    for (what, agent) in rows {
        // The sandbox is often gone by then.
        let output = run("DEL", "/run/netns/gone", &[], &conf(&agent).to_string());
        assert_eq!(succeeds(&output), Value::Null, "{what}");
    }
    let agent = Agent::answering(vec![DONE]);
    let bare = without(with(conf(&agent), "timeout", "?".into()), "prevResult");
    let output = run(
        "DEL",
        "",
        &[("CNI_NETNS", ""), ("CNI_ARGS", "")],
        &bare.to_string(),
    );
    assert_eq!(succeeds(&output), Value::Null);
    let agent = Agent::answering(vec![DONE]);
    let bare = without(conf(&agent), "prevResult");
    succeeds(&run("DEL", "", &[("CNI_NETNS", "")], &bare.to_string()));
    assert_eq!(
        agent.request(),
        (
            "/v1/cni/del".to_owned(),
            json!({"containerId": "c1", "ifname": "eth0"})
        )
    );
}

#[test]
fn check_says_whether_it_is_enforced() {
    let sandbox = Sandbox::new();
    let check = |agent: &Agent| run("CHECK", &sandbox.path(), &[], &conf(agent).to_string());
    let agent = Agent::answering(vec![DONE]);
    assert_eq!(succeeds(&check(&agent)), Value::Null);
    let (path, request) = agent.request();
    assert_eq!(
        (path.as_str(), &request["addresses"]),
        ("/v1/cni/check", &json!(["10.0.0.5"]))
    );
    let says = fails(
        &check(&Agent::answering(vec![refusal(404, "not enforced")])),
        101,
    );
    assert!(says.contains("not enforced"), "{says}");
    fails(&check(&Agent::away()), 11);
}

#[test]
fn status_says_whether_an_add_would_be_served() {
    let status = |agent: &Agent| {
        let conf = with(
            without(conf(agent), "prevResult"),
            "cniVersion",
            "1.1.0".into(),
        );
        run(
            "STATUS",
            "",
            &[("CNI_NETNS", ""), ("CNI_CONTAINERID", "")],
            &conf.to_string(),
        )
    };
    assert_eq!(
        succeeds(&status(&Agent::answering(vec![DONE]))),
        Value::Null
    );
    let says = fails(
        &status(&Agent::answering(vec![refusal(503, "loading")])),
        50,
    );
    assert!(says.contains("loading"), "{says}");
    fails(&status(&Agent::away()), 50);
}

#[test]
fn gc_passes_the_attachments_on() {
    let agent = Agent::answering(vec![DONE]);
    let valid =
        json!([{"containerID": "c1", "ifname": "eth0"}, {"containerID": "c2", "ifname": "net1"}]);
    let conf = with(conf(&agent), "cni.dev/valid-attachments", valid);
    let bare = [
        ("CNI_CONTAINERID", ""),
        ("CNI_IFNAME", ""),
        ("CNI_NETNS", ""),
    ];
    assert_eq!(
        succeeds(&run("GC", "", &bare, &conf.to_string())),
        Value::Null
    );
    let wanted = json!({"network": "pods", "valid": [
        {"containerId": "c1", "ifname": "eth0"}, {"containerId": "c2", "ifname": "net1"},
    ]});
    assert_eq!(agent.request(), ("/v1/cni/gc".to_owned(), wanted));
    // Taken for an empty list, a missing one would make the agent forget every pod.
    let without_list = without(conf, "cni.dev/valid-attachments");
    fails(&run("GC", "", &bare, &without_list.to_string()), 7);
}

#[test]
fn version_answers_whatever_is_asked() {
    for version in ["0.1.0", "1.1.0", "9.9.9"] {
        let output = run(
            "VERSION",
            "",
            &[],
            &json!({"cniVersion": version}).to_string(),
        );
        let wanted = json!({"cniVersion": version, "supportedVersions": ["0.3.1", "0.4.0", "1.0.0", "1.1.0"]});
        assert_eq!(succeeds(&output), wanted);
    }
}

#[test]
fn bad_input_has_the_specifications_codes() {
    let sandbox = Sandbox::new();
    let agent = Agent::away();
    let conf = conf(&agent);
    let plain_file = agent.run_dir().join("file");
    fs::write(&plain_file, "").expect("write");
    let plain_file = plain_file.display().to_string();
    let own = "/proc/self/ns/net";
    type Row<'a> = (&'a str, &'a [(&'a str, &'a str)], String, u32, &'a str);
    let good = conf.to_string();
    let rows: &[Row<'_>] = &[
        ("ADD", &[], "{".into(), 6, "not JSON"),
        ("DEL", &[], String::new(), 6, "not JSON"),
        ("ADD", &[], "[]".into(), 6, "not a JSON object"),
        (
            "ADD",
            &[],
            with(conf.clone(), "cniVersion", "0.2.0".into()).to_string(),
            1,
            "0.2.0",
        ),
        (
            "ADD",
            &[],
            with(conf.clone(), "cniVersion", "2.0.0".into()).to_string(),
            1,
            "2.0.0",
        ),
        (
            "ADD",
            &[],
            without(conf.clone(), "cniVersion").to_string(),
            1,
            "0.1.0",
        ),
        (
            "CHECK",
            &[],
            with(conf.clone(), "cniVersion", "2.0.0".into()).to_string(),
            1,
            "2.0.0",
        ),
        (
            "ADD",
            &[],
            without(conf.clone(), "prevResult").to_string(),
            7,
            "prevResult",
        ),
        (
            "CHECK",
            &[],
            without(conf.clone(), "prevResult").to_string(),
            7,
            "prevResult",
        ),
        (
            "ADD",
            &[],
            with(conf.clone(), "prevResult", json!({})).to_string(),
            7,
            "no address of eth0",
        ),
        (
            "ADD",
            &[],
            without(conf.clone(), "name").to_string(),
            7,
            "name",
        ),
        (
            "ADD",
            &[],
            with(conf.clone(), "timeout", "10s".into()).to_string(),
            7,
            "timeout",
        ),
        (
            "ADD",
            &[("CNI_COMMAND", "")],
            good.clone(),
            4,
            "CNI_COMMAND",
        ),
        ("UPDATE", &[], good.clone(), 4, "CNI_COMMAND"),
        (
            "ADD",
            &[("CNI_CONTAINERID", "")],
            good.clone(),
            4,
            "CNI_CONTAINERID",
        ),
        (
            "DEL",
            &[("CNI_CONTAINERID", "../x")],
            good.clone(),
            4,
            "CNI_CONTAINERID",
        ),
        ("ADD", &[("CNI_IFNAME", "")], good.clone(), 4, "CNI_IFNAME"),
        (
            "ADD",
            &[("CNI_IFNAME", "a/b")],
            good.clone(),
            4,
            "CNI_IFNAME",
        ),
        ("ADD", &[("CNI_NETNS", "")], good.clone(), 4, "CNI_NETNS"),
        (
            "ADD",
            &[("CNI_NETNS", "/run/netns/gone")],
            good.clone(),
            4,
            "is gone",
        ),
        (
            "ADD",
            &[("CNI_NETNS", &plain_file)],
            good.clone(),
            4,
            "not a network namespace",
        ),
        ("ADD", &[("CNI_NETNS", own)], good.clone(), 4, "the host's"),
        (
            "ADD",
            &[("CNI_ARGS", "")],
            good.clone(),
            4,
            "K8S_POD_NAMESPACE",
        ),
        (
            "ADD",
            &[("CNI_ARGS", "K8S_POD_NAMESPACE=shop;K8S_POD_NAME=")],
            good,
            4,
            "K8S_POD_NAME",
        ),
    ];
    for (command, changes, stdin, code, says) in rows {
        let output = run(command, &sandbox.path(), changes, stdin);
        let said = fails(&output, *code);
        assert!(said.contains(says), "{command} {changes:?}: {said}");
    }
}
