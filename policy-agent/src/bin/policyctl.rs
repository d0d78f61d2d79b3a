//! The operator's tool.

use std::process::ExitCode;

fn main() -> ExitCode {
    policy_agent::ctl::main()
}
