use std::fs;

use rcgen::{CertificateParams, KeyPair};
use tempfile::TempDir;

use super::*;

/// A directory with files to name in settings.
struct Files {
    directory: TempDir,
    certificate: String,
    key: String,
}

impl Files {
    fn new() -> Self {
        let key = KeyPair::generate().expect("key");
        let certificate = CertificateParams::new(vec!["api".to_owned()])
            .and_then(|params| params.self_signed(&key))
            .expect("certificate");
        Self {
            directory: tempfile::tempdir().expect("temporary directory"),
            certificate: certificate.pem(),
            key: key.serialize_pem(),
        }
    }

    fn write(&self, name: &str, content: &str) -> PathBuf {
        let path = self.directory.path().join(name);
        fs::write(&path, content).expect("write");
        path
    }

    /// Outside of a cluster, with the directory as home.
    fn outside(&self) -> Surroundings {
        Surroundings {
            service: None,
            service_account: self.directory.path().join("serviceaccount"),
            home: Some(self.directory.path().to_owned()),
            proxy: false,
        }
    }

    /// In a pod of a cluster.
    fn inside(&self) -> Surroundings {
        let surroundings = Surroundings {
            service: Some(("10.96.0.1".to_owned(), "443".to_owned())),
            ..self.outside()
        };
        fs::create_dir_all(&surroundings.service_account).expect("directory");
        self.write("serviceaccount/ca.crt", &self.certificate);
        self.write("serviceaccount/token", "from-the-cluster");
        surroundings
    }

    /// A kubeconfig with client certificate and authority.
    fn kubeconfig(&self) -> String {
        self.write("ca.pem", &self.certificate);
        self.write("client.pem", &self.certificate);
        self.write("client.key", &self.key);
        "current-context: c\n\
         contexts: [{name: c, context: {cluster: k, user: u}}, {name: d, context: {cluster: absent}}]\n\
         clusters: [{name: k, cluster: {server: 'https://10.0.0.1:6443', certificate-authority: ca.pem}}]\n\
         users: [{name: u, user: {client-certificate: client.pem, client-key: client.key, tokenFile: tokens}}]\n"
            .to_owned()
    }
}

fn os(path: &Path) -> Option<OsString> {
    Some(path.as_os_str().to_owned())
}

fn with_endpoint(url: &str) -> ApiSettings {
    ApiSettings {
        k8s_api_endpoint: Some(url.to_owned()),
        ..ApiSettings::default()
    }
}

#[test]
fn in_a_cluster_nothing_has_to_be_set() {
    let files = Files::new();
    let config = ApiSettings::default()
        .resolve(&files.inside())
        .expect("valid");
    assert_eq!(
        config.source(),
        "Kubernetes API https://10.96.0.1:443 (in-cluster)"
    );
    assert!(config.warnings().is_empty());
    let service_account = files.directory.path().join("serviceaccount");
    assert_eq!(
        config.kube().auth_info.token_file.as_deref().map(Path::new),
        Some(service_account.join("token").as_path())
    );
    assert_eq!(
        config.kube().root_cert_file,
        Some(service_account.join("ca.crt"))
    );
    let six = Surroundings {
        service: Some(("fd00::1".to_owned(), "6443".to_owned())),
        ..files.inside()
    };
    let config = ApiSettings::default().resolve(&six).expect("valid");
    assert_eq!(config.url(), "https://[fd00::1]:6443");
}

#[test]
fn a_kubeconfig_goes_before_the_cluster_and_settings_before_both() {
    let files = Files::new();
    files.write("tokens", "from-a-file");
    let path = files.write("config", &files.kubeconfig());
    // Empty is unset.
    let mut settings = ApiSettings {
        kubeconfig: os(&path),
        k8s_api_endpoint: Some(String::new()),
        k8s_cert_file: Some(OsString::new()),
        k8s_key_file: Some(OsString::new()),
        k8s_ca_file: Some(OsString::new()),
        k8s_token: Some(SecretString::from("")),
    };
    let config = settings.resolve(&files.inside()).expect("valid");
    assert_eq!(
        config.source(),
        format!(
            "Kubernetes API https://10.0.0.1:6443 (KUBECONFIG={})",
            path.display()
        )
    );
    let expected = files.directory.path().join("tokens");
    assert_eq!(
        config.kube().auth_info.token_file.as_deref().map(Path::new),
        Some(expected.as_path())
    );

    settings.kubeconfig = Some("~/config".into());
    settings.k8s_api_endpoint = Some("https://api.example:1".to_owned());
    settings.k8s_token = Some(SecretString::from("explicit"));
    let config = settings.resolve(&files.inside()).expect("valid");
    assert_eq!(
        config.source(),
        "Kubernetes API https://api.example:1 (K8S_API_ENDPOINT)"
    );
    let auth = &config.kube().auth_info;
    assert_eq!(
        auth.token.as_ref().map(|t| t.expose_secret()),
        Some("explicit")
    );
    assert_eq!(auth.token_file, None);
    // What was not overridden is the kubeconfig's.
    assert!(auth.client_certificate.is_some() && config.kube().root_cert.is_some());
    assert!(!format!("{settings:?} {config:?}").contains("explicit"));

    let other = Files::new();
    settings.k8s_cert_file = os(&other.write("c", &other.certificate));
    settings.k8s_key_file = os(&other.write("k", &other.key));
    settings.k8s_ca_file = os(&other.write("a", &(other.certificate.clone() + &files.certificate)));
    let config = settings.resolve(&files.inside()).expect("valid");
    let auth = &config.kube().auth_info;
    assert_eq!(
        auth.client_key.as_deref().map(Path::new),
        settings.k8s_key_file.as_deref().map(Path::new)
    );
    assert_eq!(config.kube().root_cert.as_ref().map(Vec::len), Some(2));

    // The home directory itself names no kubeconfig.
    settings.kubeconfig = Some("~".into());
    let error = settings.resolve(&files.inside()).expect_err("a directory");
    assert!(error.to_string().contains("Is a directory"), "{error}");
}

#[test]
fn an_endpoint_alone_will_do() {
    let files = Files::new();
    let config = with_endpoint("http://127.0.0.1:8001")
        .resolve(&files.outside())
        .expect("valid");
    assert_eq!(config.url(), "http://127.0.0.1:8001");
    assert!(config.warnings()[0].contains("without TLS"), "{config:?}");
    // A pod without a service account's files may name everything itself.
    let bare = Surroundings {
        service: Some(("10.96.0.1".to_owned(), "443".to_owned())),
        ..files.outside()
    };
    with_endpoint("http://127.0.0.1:8001")
        .resolve(&bare)
        .expect("valid");
    assert!(ApiSettings::default().resolve(&bare).is_err());
}

#[test]
fn several_kubeconfigs_are_one() {
    let files = Files::new();
    files.write("tokens", "t");
    let none = files.write("none", "current-context: ''\n");
    let first = files.write("first", "current-context: c\n");
    let second = files.write("second", &files.kubeconfig());
    let resolve = |list: &[&Path]| {
        let list: Vec<_> = list.iter().map(|path| path.to_string_lossy()).collect();
        let settings = ApiSettings {
            kubeconfig: Some(list.join(":").into()),
            ..ApiSettings::default()
        };
        settings.resolve(&files.outside())
    };
    let config = resolve(&[&none, &first, &second]).expect("valid");
    assert_eq!(config.url(), "https://10.0.0.1:6443");
    assert!(config.warnings().is_empty());
    // As with kubectl not all have to exist, but one has.
    let [gone, lost] = ["gone", "lost"].map(|name| files.directory.path().join(name));
    let config = resolve(&[&gone, &second]).expect("valid");
    let warning = format!("KUBECONFIG: {} does not exist", gone.display());
    assert_eq!(config.warnings(), [warning]);
    let error = resolve(&[&gone, &lost]).expect_err("none").to_string();
    assert_eq!(
        error,
        format!("KUBECONFIG={}: does not exist", gone.display())
    );
}

#[test]
fn no_verification_is_warned_of_and_an_authority_ends_it() {
    let files = Files::new();
    let path = files.write(
        "config",
        "current-context: c\ncontexts: [{name: c, context: {cluster: k}}]\n\
         clusters: [{name: k, cluster: {server: 'https://h', insecure-skip-tls-verify: true}}]\n",
    );
    let ca = files.write("ca", &files.certificate);
    let mut settings = ApiSettings {
        kubeconfig: os(&path),
        ..ApiSettings::default()
    };
    let surroundings = Surroundings {
        proxy: true,
        ..files.outside()
    };
    let config = settings.resolve(&surroundings).expect("valid");
    assert!(config.warnings()[0].contains("HTTPS_PROXY is set and not used"));
    assert!(config.warnings()[1].contains("insecure-skip-tls-verify"));
    settings.k8s_ca_file = os(&ca);
    let config = settings.resolve(&files.outside()).expect("valid");
    assert!(config.warnings().is_empty(), "{:?}", config.warnings());
}

#[test]
fn what_is_wrong_with_explicit_settings_is_named() {
    let files = Files::new();
    let certificate = files.write("certificate", &files.certificate);
    let key = files.write("key", &files.key);
    let other_key = files.write("other", &Files::new().key);
    let cut = files.write("cut", files.certificate.split_at(100).0);
    let text = files.write("text", "hello");
    let absent = files.directory.path().join("absent");
    let endpoint = with_endpoint("https://10.0.0.1:6443");
    let pair = |certificate: &Path, key: &Path| ApiSettings {
        k8s_cert_file: os(certificate),
        k8s_key_file: os(key),
        k8s_ca_file: os(&files.directory.path().join("certificate")),
        ..endpoint.clone()
    };
    let authority = |path: &Path| ApiSettings {
        k8s_ca_file: os(path),
        ..endpoint.clone()
    };
    let token = |token: &str| ApiSettings {
        k8s_token: Some(SecretString::from(token)),
        ..endpoint.clone()
    };
    let rows: &[(ApiSettings, String)] = &[
        (
            ApiSettings::default(),
            "DATASTORE_TYPE=kubernetes: no Kubernetes API is configured and this is no pod".to_owned(),
        ),
        (
            with_endpoint("10.0.0.1:6443"),
            "K8S_API_ENDPOINT=\"10.0.0.1:6443\": not a URL such as https://10.0.0.1:6443: it needs https://".to_owned(),
        ),
        (with_endpoint("ftp://h"), "K8S_API_ENDPOINT=\"ftp://h\": not a URL such as".to_owned()),
        (with_endpoint("https://"), "K8S_API_ENDPOINT=\"https://\": not a URL such as".to_owned()),
        (with_endpoint("https://h:0"), "K8S_API_ENDPOINT=\"https://h:0\": the port is not".to_owned()),
        (with_endpoint("https://h:70000"), "K8S_API_ENDPOINT=\"https://h:70000\": ".to_owned()),
        (with_endpoint("https://u:p@h"), "K8S_API_ENDPOINT=\"https://u:p@h\": a user in the URL".to_owned()),
        (with_endpoint("https://h/?a=b"), "K8S_API_ENDPOINT=\"https://h/?a=b\": a query".to_owned()),
        (
            ApiSettings { k8s_key_file: None, ..pair(&certificate, &key) },
            "K8S_CERT_FILE is set and K8S_KEY_FILE is not; a client certificate and its key go together".to_owned(),
        ),
        (
            ApiSettings { k8s_cert_file: None, ..pair(&certificate, &key) },
            "K8S_KEY_FILE is set and K8S_CERT_FILE is not".to_owned(),
        ),
        (pair(&absent, &key), format!("K8S_CERT_FILE={}: does not exist", absent.display())),
        (
            pair(files.directory.path(), &key),
            format!("K8S_CERT_FILE={}: cannot be read: Is a directory", files.directory.path().display()),
        ),
        (
            pair(&key, &key),
            format!("K8S_CERT_FILE={}: holds no certificate; it must be PEM", key.display()),
        ),
        (
            pair(&certificate, &certificate),
            format!("K8S_KEY_FILE={}: holds no private key; it must be PEM", certificate.display()),
        ),
        (
            pair(&certificate, &other_key),
            "Kubernetes API by K8S_API_ENDPOINT: the private key (K8S_KEY_FILE, client-key) does not belong to the \
             client certificate"
                .to_owned(),
        ),
        (
            authority(&cut),
            format!("K8S_CA_FILE={}: is not valid PEM: it has a BEGIN line but no END line", cut.display()),
        ),
        (authority(&text), format!("K8S_CA_FILE={}: holds no certificate", text.display())),
        (token("a b"), "K8S_TOKEN has whitespace in it".to_owned()),
        (token("a\n"), "K8S_TOKEN has whitespace in it".to_owned()),
        (token("a\u{7f}"), "K8S_TOKEN has characters in it that no token has".to_owned()),
    ];
    for (settings, message) in rows {
        let error = settings
            .resolve(&files.outside())
            .expect_err(message)
            .to_string();
        assert!(error.starts_with(message), "{error}");
    }
}

#[test]
fn what_is_wrong_with_a_kubeconfig_is_said_with_its_path() {
    let files = Files::new();
    files.write("tokens", "t");
    let good = files.kubeconfig();
    let rows: &[(&str, String, &str)] = &[
        ("yaml", "a: [".to_owned(), "is not a kubeconfig in YAML: "),
        ("list", "- a\n".to_owned(), "is not a kubeconfig in YAML: "),
        (
            "empty",
            String::new(),
            "has no current-context; it has no contexts at all; is it a kubeconfig?",
        ),
        (
            "no-current",
            good.replace("current-context: c\n", ""),
            "has no current-context; choose one with `kubectl config use-context NAME`: c, d",
        ),
        (
            "no-context",
            good.replace("current-context: c", "current-context: e"),
            "its current-context \"e\" is not among its contexts; choose one",
        ),
        (
            "no-cluster",
            good.replace("current-context: c", "current-context: d"),
            "its current-context \"d\" names the cluster \"absent\", which it does not have",
        ),
        (
            "no-user",
            good.replace("name: u,", "name: v,"),
            "its current-context \"c\" names the user \"u\", which it does not have",
        ),
        (
            "no-server",
            good.replace("server: 'https://10.0.0.1:6443', ", ""),
            "its cluster has no server",
        ),
        (
            "server",
            good.replace("https://10", "10"),
            "its cluster's server 10.0.0.1:6443: not a URL",
        ),
        (
            "authority",
            good.replace(
                "certificate-authority: ca.pem",
                "certificate-authority: gone.pem",
            ),
            "its certificate-authority ",
        ),
        (
            "no-authority",
            good.replace(
                "certificate-authority: ca.pem",
                "certificate-authority: client.key",
            ),
            "its certificate-authority holds no certificate",
        ),
        (
            "data",
            good.replace(
                "certificate-authority: ca.pem",
                "certificate-authority-data: '%'",
            ),
            "its certificate-authority data is not base64",
        ),
        (
            "token",
            good.replace("tokenFile: tokens", "tokenFile: gone"),
            "its user's tokenFile ",
        ),
        (
            "proxy",
            good.replace("certificate-authority: ca.pem", "proxy-url: 'http://p:1'"),
            "its cluster has a proxy-url, and proxies are not supported",
        ),
    ];
    for (name, text, message) in rows {
        let path = files.write(name, text);
        let settings = ApiSettings {
            kubeconfig: os(&path),
            ..ApiSettings::default()
        };
        let error = settings
            .resolve(&files.outside())
            .expect_err(message)
            .to_string();
        let expected = format!("KUBECONFIG={}: {message}", path.display());
        assert!(error.starts_with(&expected), "{name}: {error}");
    }
    let inline = files.write("inline", &good.replace("tokenFile: tokens", "token: 'a b'"));
    let rows = [
        (inline, "KUBECONFIG: its user's token has whitespace in it"),
        (
            files.write("key", &good.replace("client-key: client.key, ", "")),
            "Kubernetes API by KUBECONFIG=",
        ),
        (
            "/absent/config".into(),
            "KUBECONFIG=/absent/config: does not exist",
        ),
    ];
    for (path, message) in rows {
        let settings = ApiSettings {
            kubeconfig: os(&path),
            ..ApiSettings::default()
        };
        let error = settings
            .resolve(&files.outside())
            .expect_err(message)
            .to_string();
        assert!(error.starts_with(message), "{error}");
    }
}
