//! What is said when there is nothing to list, and with which exit code.

use std::fs::File;
use std::net::TcpListener;
use std::path::Path;
use std::process::Stdio;

use portcullis_tests::apiserver::Resource;
use portcullis_tests::objects;
use serde_json::json;

use super::{Answer, Machine, pod};

/// One sentence on standard error with these words, nothing on standard output, and this code.
#[track_caller]
fn assert_failed(answer: &Answer, code: i32, words: &[&str]) {
    assert_eq!(answer.code, Some(code), "{answer:?}");
    assert_eq!(answer.out, "");
    assert_eq!(answer.err.lines().count(), 1, "{}", answer.err);
    assert!(answer.err.starts_with("policyctl: "), "{}", answer.err);
    for word in words {
        assert!(answer.err.contains(word), "{word}: {}", answer.err);
    }
}

#[test]
fn an_api_that_does_not_answer() {
    let machine = Machine::new();
    let good = machine.server.kubeconfig();
    let nobody = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let other = Machine::new();
    let rows = [
        (
            good.replace(&machine.server.endpoint(), &format!("https://{nobody}")),
            ["connection refused", "K8S_API_ENDPOINT or KUBECONFIG"],
        ),
        (
            other
                .server
                .kubeconfig()
                .replace(&other.server.endpoint(), &machine.server.endpoint()),
            ["not from the certificate authority", "K8S_CA_FILE"],
        ),
        (
            machine.server.kubeconfig_with("expired"),
            ["401 Unauthorized", "the user in KUBECONFIG"],
        ),
    ];
    for (kubeconfig, words) in rows {
        machine.write("kubeconfig", &kubeconfig);
        for resource in ["wep", "netpol", "wep -o wide"] {
            let answer = machine.policyctl(&format!("get {resource}"));
            assert_failed(&answer, 1, &words);
        }
    }
}

#[test]
fn a_list_that_cannot_be_written_is_none() {
    let machine = Machine::new();
    let kubeconfig = machine.path("kubeconfig");
    let command = || machine.command(&[("KUBECONFIG", &kubeconfig)], "get netpol");
    let full = File::options().write(true).open("/dev/full").unwrap();
    let mut answer = Answer::of(command().stdout(full).output().unwrap());
    answer.err = answer.err.lines().last().unwrap_or_default().to_owned();
    assert_failed(&answer, 1, &["standard output", "No space left"]);
    // Whoever stops reading has seen enough.
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let status = command().stdout(writer).stderr(Stdio::null()).status();
    assert_eq!(status.unwrap().code(), Some(0));
}

#[test]
fn what_is_not_allowed_is_named() {
    let machine = Machine::new();
    machine.server.put(objects::namespace("shop", &[])).unwrap();
    machine
        .server
        .put(pod("shop", "web", "n1", &[], [10, 0, 0, 1]))
        .unwrap();
    machine.server.forbid(Resource::NetworkPolicies);
    let words = [
        "not allowed to list networkpolicies",
        "403 Forbidden",
        "ClusterRole",
    ];
    assert_failed(&machine.policyctl("get netpol"), 1, &words);
    // The endpoints can be listed all the same.
    assert!(machine.policyctl("get wep").listed().contains("shop.web"));
    let wide = machine.policyctl("get wep -o wide");
    assert_eq!(wide.code, Some(0));
    assert!(
        wide.out.contains("10.0.0.1    unknown   unknown"),
        "{}",
        wide.out
    );
    assert!(
        wide.err
            .contains("which policies isolate these endpoints is not known")
    );

    machine.server.forbid(Resource::Pods);
    assert_failed(
        &machine.policyctl("get wep"),
        1,
        &["not allowed to list pods"],
    );
}

#[test]
fn what_is_not_there() {
    let machine = Machine::new();
    machine.server.put(objects::namespace("shop", &[])).unwrap();
    let mut ended = pod("shop", "job", "n1", &[], [10, 0, 0, 1]);
    ended["status"]["phase"] = json!("Failed");
    machine.server.put(ended).unwrap();
    let rows = [
        (
            "wep shop.web",
            "policyctl: workload endpoint shop.web not found\n",
        ),
        (
            "wep shop.web --node n1",
            "policyctl: workload endpoint shop.web on node n1 not found\n",
        ),
        (
            "wep shop.job",
            "policyctl: workload endpoint shop.job not found: the pod has ended\n",
        ),
        (
            "netpol -n shop deny",
            "policyctl: network policy shop/deny not found\n",
        ),
    ];
    for (arguments, message) in rows {
        let answer = machine.policyctl(&format!("get {arguments}"));
        assert_failed(&answer, 1, &[]);
        assert_eq!(answer.err, message);
    }
    // An empty list is no failure.
    let none = machine.policyctl("get wep -n shop");
    assert_eq!(none.code, Some(0));
    assert_eq!(none.out, "HOSTNAME   ORCHESTRATOR   WORKLOAD   NAME\n");
    assert_eq!(
        none.err,
        "policyctl: no workload endpoints in namespace shop\n"
    );
}

#[test]
fn settings_that_cannot_be_taken() {
    let machine = Machine::new();
    let absent = machine.path("absent");
    let bad = machine.write("bad", "{}");
    let cert = machine.write("cert", "");
    let kubeconfig = machine.path("kubeconfig");
    type Variables<'a> = &'a [(&'a str, &'a Path)];
    let rows: [(Variables<'_>, &[&str]); 5] = [
        (
            &[("KUBECONFIG", &absent)],
            &["KUBECONFIG=", "absent: does not exist"],
        ),
        (
            &[("KUBECONFIG", &bad)],
            &["KUBECONFIG=", "no current-context"],
        ),
        (
            &[("KUBECONFIG", &kubeconfig), ("K8S_CERT_FILE", &cert)],
            &["K8S_CERT_FILE is set and K8S_KEY_FILE is not"],
        ),
        (
            &[
                ("KUBECONFIG", &kubeconfig),
                ("DATASTORE_TYPE", "etcdv2".as_ref()),
            ],
            &["DATASTORE_TYPE=\"etcdv2\" is refused"],
        ),
        (
            &[("K8S_API_ENDPOINT", "10.0.0.1".as_ref())],
            &["K8S_API_ENDPOINT=\"10.0.0.1\""],
        ),
    ];
    for (variables, words) in rows {
        let answer = machine.policyctl_with(variables, "get wep");
        assert_failed(&answer, 2, words);
    }
    assert_failed(
        &machine.policyctl("get wep web"),
        2,
        &["in which namespace?"],
    );
    assert_failed(
        &machine.policyctl("get netpol --node n"),
        2,
        &["have no use for --node"],
    );
    assert_eq!(machine.policyctl("get pods").code, Some(2));
    assert_eq!(machine.policyctl("get wep -A -n shop").code, Some(2));
}

#[test]
fn an_agent_that_is_meant_and_not_there() {
    let machine = Machine::new();
    let directory = machine.path("run");
    let kubeconfig = machine.path("kubeconfig");
    let words = ["no agent listens on", "run/agent.sock"];
    let run_dir = format!("get wep --run-dir {}", directory.display());
    assert_failed(&machine.policyctl(&run_dir), 1, &words);
    let variables = [
        ("KUBECONFIG", kubeconfig.as_path()),
        ("PORTCULLIS_RUN_DIR", &directory),
    ];
    for arguments in [
        "get wep",
        "get wep --agent",
        "get netpol --local",
        "get id",
        "status",
    ] {
        assert_failed(&machine.policyctl_with(&variables, arguments), 1, &words);
    }
    // An option says more than a variable.
    let option = format!("get wep --kubeconfig {}", kubeconfig.display());
    assert_eq!(machine.policyctl_with(&variables, &option).code, Some(0));
}
