//! The chained CNI plugin. A container runtime runs it.

use std::io::{self, Read as _, Write as _};
use std::process::ExitCode;

use policy_cni::conf::NEWEST;
use policy_cni::error::{Code, Error};
use policy_cni::plugin::{self, Outcome};

fn main() -> ExitCode {
    let mut stdin = Vec::new();
    let outcome = match io::stdin().read_to_end(&mut stdin) {
        Ok(_) => plugin::run(&|name| std::env::var(name).ok(), &stdin),
        Err(error) => Outcome {
            output: Error::new(Code::Io, "stdin cannot be read")
                .with_details(error)
                .to_json(NEWEST),
            failed: true,
        },
    };
    // A runtime that no longer listens cannot be told so.
    let _told = if outcome.output.is_empty() {
        Ok(())
    } else {
        writeln!(io::stdout(), "{}", outcome.output)
    };
    if outcome.failed {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    }
}
