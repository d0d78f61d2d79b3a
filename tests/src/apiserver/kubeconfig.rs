//! The file by which clients find a server.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// A kubeconfig for the server at `endpoint`.
pub(super) fn kubeconfig(endpoint: &str, ca_pem: &str, token: &str) -> String {
    let ca = STANDARD.encode(ca_pem);
    format!(
        "apiVersion: v1\n\
         kind: Config\n\
         current-context: test\n\
         clusters:\n\
         - name: test\n\
         \x20 cluster:\n\
         \x20   server: {endpoint}\n\
         \x20   certificate-authority-data: {ca}\n\
         users:\n\
         - name: test\n\
         \x20 user:\n\
         \x20   token: {token}\n\
         contexts:\n\
         - name: test\n\
         \x20 context:\n\
         \x20   cluster: test\n\
         \x20   user: test\n"
    )
}
