//! The real kube-apiserver with its etcd, where `KUBEBUILDER_ASSETS` names a directory that has them.
//!
//! Both run in a node's network namespace, where all ports are free. There is no controller and no
//! kubelet: nothing but the test changes objects.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use rcgen::KeyPair;

use super::kubeconfig::kubeconfig;
use super::tls::Authority;
use crate::netns::{Inside, Node, Process};

/// Names the directory of `etcd` and `kube-apiserver`, as envtest's users know it.
pub(super) const ASSETS: &str = "KUBEBUILDER_ASSETS";

/// How long the server may take to start.
const START: Duration = Duration::from_mins(3);

const ADDRESS: Ipv4Addr = Ipv4Addr::LOCALHOST;
const SECURE_PORT: u16 = 6443;
const ETCD_PORT: u16 = 2379;
const ETCD_PEER_PORT: u16 = 2380;

const TOKEN: &str = "portcullis-test";

/// A running kube-apiserver with its etcd. Both end when this is dropped, which has to be before the node
/// is.
#[derive(Debug)]
pub struct RealServer {
    pub(super) inside: Inside,
    assets: PathBuf,
    directory: PathBuf,
    ca_pem: String,
    /// None while stopped.
    apiserver: Mutex<Option<Process>>,
    /// Ends after the above.
    _etcd: Process,
}

impl RealServer {
    /// Starts both in a node's network namespace and waits until the API is ready; none when
    /// `KUBEBUILDER_ASSETS` is not set.
    ///
    /// # Errors
    ///
    /// When a program is not there, ends, or takes too long; with its log.
    pub fn start_on(node: &Node) -> Result<Option<Self>> {
        let Some(assets) = env::var_os(ASSETS).filter(|assets| !assets.is_empty()) else {
            return Ok(None);
        };
        let assets = PathBuf::from(assets);
        for program in ["etcd", "kube-apiserver"] {
            let path = assets.join(program);
            ensure!(path.is_file(), "{ASSETS}: {} is no file", path.display());
        }
        let directory = node.directory().join("api");
        fs::create_dir_all(&directory)?;
        let ca_pem = write_credentials(&directory)?;
        let inside = node.netns().inside()?;
        let etcd = start_etcd(&inside, &assets, &directory)?;
        let server = Self {
            inside,
            assets,
            directory,
            ca_pem,
            apiserver: Mutex::default(),
            _etcd: etcd,
        };
        server.start()?;
        Ok(Some(server))
    }

    /// A kubeconfig with the server's token.
    #[must_use]
    pub fn kubeconfig(&self) -> String {
        self.kubeconfig_with(TOKEN)
    }

    /// A kubeconfig with another token.
    #[must_use]
    pub fn kubeconfig_with(&self, token: &str) -> String {
        let endpoint = format!("https://{ADDRESS}:{SECURE_PORT}");
        kubeconfig(&endpoint, &self.ca_pem, token)
    }

    /// Kills the API server; etcd stays.
    ///
    /// # Errors
    ///
    /// When it had ended by itself.
    pub fn stop(&self) -> Result<()> {
        self.apiserver().take().map_or(Ok(()), Process::kill)
    }

    /// Starts the API server again and waits until it is ready.
    ///
    /// # Errors
    ///
    /// When it ends, or takes too long; with its log.
    pub fn start(&self) -> Result<()> {
        let mut apiserver = self.apiserver();
        if apiserver.is_some() {
            return Ok(());
        }
        let mut command = self.inside.command(self.assets.join("kube-apiserver"));
        command.args(apiserver_arguments(&self.directory));
        let log = self.directory.join("kube-apiserver.log");
        let mut process = Process::spawn("kube-apiserver", command, log)?;
        let deadline = Instant::now() + START;
        while let Err(error) = self.ask_readyz() {
            if let Some(status) = process.ended()? {
                bail!("kube-apiserver ended: {status}\n{}", process.log());
            }
            ensure!(
                Instant::now() < deadline,
                "kube-apiserver is not ready: {error}\n{}",
                process.log()
            );
            thread::sleep(Duration::from_millis(50));
        }
        *apiserver = Some(process);
        Ok(())
    }

    fn apiserver(&self) -> MutexGuard<'_, Option<Process>> {
        self.apiserver
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// Writes what the server needs to know, and gives its certificate authority, as PEM.
fn write_credentials(directory: &Path) -> Result<String> {
    let authority = Authority::new()?;
    let server = authority.server(IpAddr::V4(ADDRESS))?;
    let accounts = KeyPair::generate()?;
    for (name, content) in [
        ("server.crt", server.certificate),
        ("server.key", server.key),
        ("accounts.key", accounts.serialize_pem()),
        ("accounts.pub", accounts.public_key_pem()),
        // Token, name, uid, groups: system:masters may do everything.
        (
            "tokens.csv",
            format!("{TOKEN},portcullis-test,1,system:masters\n"),
        ),
    ] {
        fs::write(directory.join(name), content)?;
    }
    Ok(authority.pem().to_owned())
}

fn start_etcd(inside: &Inside, assets: &Path, directory: &Path) -> Result<Process> {
    let client = format!("http://{ADDRESS}:{ETCD_PORT}");
    let peer = format!("http://{ADDRESS}:{ETCD_PEER_PORT}");
    let mut command = inside.command(assets.join("etcd"));
    command
        .arg("--data-dir")
        .arg(directory.join("etcd"))
        .arg(format!("--listen-client-urls={client}"))
        .arg(format!("--advertise-client-urls={client}"))
        .arg(format!("--listen-peer-urls={peer}"))
        .arg(format!("--initial-advertise-peer-urls={peer}"))
        .arg(format!("--initial-cluster=default={peer}"))
        .arg("--unsafe-no-fsync");
    Process::spawn("etcd", command, directory.join("etcd.log"))
}

/// As envtest starts it, but with our certificates and tokens.
fn apiserver_arguments(directory: &Path) -> Vec<OsString> {
    let with_file = |flag: &str, file: &str| {
        let mut argument = OsString::from(format!("--{flag}="));
        argument.push(directory.join(file));
        argument
    };
    let mut arguments = vec![
        with_file("tls-cert-file", "server.crt"),
        with_file("tls-private-key-file", "server.key"),
        with_file("service-account-key-file", "accounts.pub"),
        with_file("service-account-signing-key-file", "accounts.key"),
        with_file("token-auth-file", "tokens.csv"),
        with_file("cert-dir", ""),
    ];
    arguments.extend([
        format!("--etcd-servers=http://{ADDRESS}:{ETCD_PORT}").into(),
        format!("--bind-address={ADDRESS}").into(),
        format!("--advertise-address={ADDRESS}").into(),
        format!("--secure-port={SECURE_PORT}").into(),
        "--service-account-issuer=https://kubernetes.default.svc".into(),
        "--service-cluster-ip-range=10.0.0.0/24".into(),
        "--endpoint-reconciler-type=none".into(),
        "--authorization-mode=RBAC".into(),
        "--allow-privileged=true".into(),
        // Pods need a ServiceAccount otherwise, which a controller would make.
        "--disable-admission-plugins=ServiceAccount".into(),
    ]);
    arguments
}
