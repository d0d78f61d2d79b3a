//! The node agent.

use std::process::ExitCode;

fn main() -> ExitCode {
    policy_agent::cli::main()
}
