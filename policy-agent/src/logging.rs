//! Log lines: one event a line, `key=value`, on standard error.

use std::io::{self, IsTerminal as _};

use tracing::Level;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

/// What the programs' own lines bear as their target: the name of their crate.
const PROGRAMS: &str = "portcullis";

/// Begins to log what is at least as important as `level`, and the programs' decisions, which they write for
/// debugging, if they are to be logged.
pub fn init(level: Level, decisions: bool) {
    // What these libraries say below a warning is about their sockets, not about the node.
    let quiet = [
        "netlink_proto",
        "hyper",
        "hyper_util",
        "axum",
        "aya",
        "aya_obj",
        "kube_client",
        "rustls",
        "tower",
    ];
    let targets = Targets::new().with_default(level).with_targets(
        quiet.map(|target| (target, LevelFilter::from_level(level.min(Level::WARN)))),
    );
    let targets = if decisions {
        targets.with_target(PROGRAMS, LevelFilter::DEBUG)
    } else {
        targets
    };
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal());
    // A second call, as in a test, keeps the first subscriber.
    let _already_logging = tracing_subscriber::registry()
        .with(lines)
        .with(targets)
        .try_init();
}
