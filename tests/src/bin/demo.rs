//! `portcullis-demo`, run by `cargo xtask demo`.

use std::process::ExitCode;

fn main() -> ExitCode {
    portcullis_tests::demo::main()
}
