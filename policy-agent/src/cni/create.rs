//! A configuration for nodes that have none: a reference plugin with addresses of the node's own range.
//! The way to other nodes' pods is the cluster's business: cloud routes, or static ones.

use std::path::Path;

use clap::ValueEnum;
use ipnet::IpNet;
use serde_json::{Value, json};

use super::InstallError;

/// Which plugin makes the pods' interfaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum MainPlugin {
    /// A routed veth for each pod.
    Ptp,
    /// Veths on a bridge, `cni0`.
    Bridge,
}

impl MainPlugin {
    fn program(self) -> &'static str {
        match self {
            Self::Ptp => "ptp",
            Self::Bridge => "bridge",
        }
    }
}

/// Name of the file.
pub(super) const FILE: &str = "10-portcullis.conflist";

/// The configuration, without our plugin.
pub(super) fn conflist(main: MainPlugin, pod_cidrs: &[IpNet]) -> Result<Value, InstallError> {
    if pod_cidrs.is_empty() {
        return Err(InstallError::NoPodCidr("none is given".to_owned()));
    }
    let ranges: Vec<_> = pod_cidrs
        .iter()
        .map(|cidr| json!([{"subnet": cidr.trunc().to_string()}]))
        .collect();
    let mut routes = Vec::new();
    for (everything, is_v4) in [("0.0.0.0/0", true), ("::/0", false)] {
        if pod_cidrs
            .iter()
            .any(|cidr| matches!(cidr, IpNet::V4(_)) == is_v4)
        {
            routes.push(json!({"dst": everything}));
        }
    }
    let mut plugin = json!({
        "type": main.program(),
        "ipam": {"type": "host-local", "ranges": ranges, "routes": routes},
    });
    if main == MainPlugin::Bridge {
        plugin["bridge"] = json!("cni0");
        plugin["isGateway"] = json!(true);
        plugin["hairpinMode"] = json!(true);
    }
    Ok(json!({
        "cniVersion": "1.0.0",
        "name": "portcullis",
        "plugins": [plugin, {"type": "portmap", "capabilities": {"portMappings": true}}],
    }))
}

/// Whether the plugins that the configuration names are there.
pub(super) fn check_plugins(main: MainPlugin, bin_dir: &Path) -> Result<(), InstallError> {
    let missing: Vec<_> = [main.program(), "host-local", "portmap"]
        .into_iter()
        .filter(|program| !bin_dir.join(program).exists())
        .map(str::to_owned)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    Err(InstallError::NoPlugins {
        directory: bin_dir.to_owned(),
        missing,
    })
}
