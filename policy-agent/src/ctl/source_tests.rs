use std::fs;

use clap::{CommandFactory as _, FromArgMatches as _};

use super::super::args::{Cli, Command};
use super::*;

/// With these origins, and DATASTORE_TYPE.
fn row(run_dir: Origin, datastore_type: Origin, api: Origin) -> Origins {
    Origins {
        run_dir,
        datastore_type,
        api,
    }
}

#[test]
fn options_go_before_variables_and_the_agent_is_meant_by_its_directory() {
    use DatastoreType::{Files, Kubernetes};
    use Origin::{CommandLine, Environment, Nowhere};
    let rows = [
        (
            false,
            Kubernetes,
            row(Nowhere, Nowhere, Nowhere),
            Preference::ApiIfAny,
        ),
        (
            false,
            Kubernetes,
            row(Nowhere, Environment, Environment),
            Preference::ApiIfAny,
        ),
        (
            true,
            Kubernetes,
            row(Nowhere, Nowhere, CommandLine),
            Preference::Agent,
        ),
        (
            false,
            Kubernetes,
            row(CommandLine, Nowhere, CommandLine),
            Preference::Agent,
        ),
        (
            false,
            Kubernetes,
            row(Environment, Nowhere, Environment),
            Preference::Agent,
        ),
        (
            false,
            Kubernetes,
            row(Environment, Nowhere, CommandLine),
            Preference::Api,
        ),
        (
            false,
            Kubernetes,
            row(Environment, CommandLine, Nowhere),
            Preference::Api,
        ),
        (
            false,
            Files,
            row(Nowhere, Environment, Environment),
            Preference::Agent,
        ),
        (
            false,
            Files,
            row(Nowhere, CommandLine, CommandLine),
            Preference::Agent,
        ),
        (
            false,
            Files,
            row(Nowhere, Environment, CommandLine),
            Preference::Api,
        ),
    ];
    for (agent, datastore, origins, expected) in rows {
        let preference = preference(agent, datastore, origins);
        assert_eq!(preference, expected, "{agent} {datastore:?} {origins:?}");
    }
}

#[test]
fn options_are_told_from_defaults() {
    let origins = |arguments: &[&str]| {
        let matches = Cli::command()
            // What the test's environment has does not count.
            .mut_arg("run_dir", |arg| arg.env(None::<&str>))
            .mut_subcommand("get", |get| get.mut_args(|arg| arg.env(None::<&str>)))
            .try_get_matches_from(["policyctl", "get", "wep"].iter().chain(arguments))
            .expect("arguments");
        let get = matches.subcommand_matches("get").expect("get");
        let Origins {
            run_dir,
            datastore_type,
            api,
        } = Origins::of(get);
        [run_dir, datastore_type, api]
    };
    use Origin::{CommandLine, Nowhere};
    assert_eq!(origins(&[]), [Nowhere; 3]);
    assert_eq!(
        origins(&["--run-dir", "/r"]),
        [CommandLine, Nowhere, Nowhere]
    );
    assert_eq!(
        origins(&["--datastore-type", "files", "--k8s-token", "t"]),
        [Nowhere, CommandLine, CommandLine]
    );
}

/// The source for these settings, a home directory and a socket.
fn source(
    arguments: &[&str],
    origins: Origins,
    home: &Path,
    socket: &Path,
) -> Result<Source, CtlError> {
    let matches = Cli::command()
        .mut_subcommand("get", |get| get.mut_args(|arg| arg.env(None::<&str>)))
        .try_get_matches_from(["policyctl", "get", "wep"].iter().chain(arguments))
        .expect("arguments");
    let cli = Cli::from_arg_matches(&matches).expect("arguments");
    let Command::Get(get) = cli.command else {
        panic!("get")
    };
    choose(get.source, origins, Some(home), socket)
}

#[test]
fn the_kubeconfig_at_home_is_taken_and_then_the_agent() {
    let home = tempfile::tempdir().expect("temporary directory");
    let socket = home.path().join("agent.sock");
    let choose = |arguments: &[&str]| source(arguments, Origins::default(), home.path(), &socket);
    let nobody = choose(&[]).expect_err("nobody to ask");
    assert!(
        nobody.to_string().contains("no agent listens on"),
        "{nobody}"
    );

    fs::write(&socket, "").expect("write");
    assert!(matches!(choose(&[]), Ok(Source::AgentForWantOfApi)));
    let said = Origins {
        datastore_type: Origin::CommandLine,
        ..Origins::default()
    };
    let no_api = source(&[], said, home.path(), &socket).expect_err("the API was asked for");
    assert!(
        matches!(no_api, CtlError::Config(ConfigError::NoApi)),
        "{no_api}"
    );

    let kubeconfig = home.path().join(".kube/config");
    fs::create_dir(home.path().join(".kube")).expect("directory");
    fs::write(
        &kubeconfig,
        "current-context: c\ncontexts: [{name: c, context: {cluster: k}}]\n\
         clusters: [{name: k, cluster: {server: 'http://10.0.0.1'}}]\n",
    )
    .expect("write");
    let Ok(Source::Api(api)) = choose(&[]) else {
        panic!("there is a kubeconfig")
    };
    assert_eq!(api.url(), "http://10.0.0.1");
    // Its credentials are not for others.
    let Ok(Source::Api(api)) = choose(&["--k8s-api-endpoint", "http://10.0.0.2"]) else {
        panic!("there is an endpoint")
    };
    assert!(
        api.source().ends_with("http://10.0.0.2 (K8S_API_ENDPOINT)"),
        "{api:?}"
    );

    fs::write(&kubeconfig, "clusters: []").expect("write");
    let broken = choose(&[]).expect_err("no contexts").to_string();
    assert!(
        broken.contains(".kube/config")
            && broken.ends_with("KUBECONFIG is not set; this file is taken then)"),
        "{broken}"
    );
}

#[test]
fn unknown_datastores_are_refused() {
    let home = Path::new("/absent");
    let refused = |name| {
        let error = source(&["--datastore-type", name], Origins::default(), home, home);
        error.expect_err(name).to_string()
    };
    assert!(refused("etcdv2").contains("is refused"));
    assert!(refused("etcd").contains("the choices are kubernetes, files"));
}
