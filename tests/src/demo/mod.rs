//! What Portcullis does, shown with real connections between pods that are network namespaces.

mod measured;
mod screen;
mod story;

use std::process::ExitCode;

use screen::Screen;

/// Runs the demo.
#[must_use]
pub fn main() -> ExitCode {
    if !nix::unistd::geteuid().is_root() {
        eprintln!(
            "The demo makes network namespaces and loads eBPF programs, which needs root; run: sudo {}",
            command_line()
        );
        return ExitCode::FAILURE;
    }
    match story::tell(&Screen::new()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.is::<story::Interrupted>() => {
            eprintln!("interrupted; everything that the demo made is gone");
            ExitCode::from(130)
        }
        Err(error) => {
            eprintln!("portcullis-demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// How this program was started, with what it needs from the environment.
fn command_line() -> String {
    let program = std::env::current_exe().map_or("portcullis-demo".to_owned(), |path| {
        path.display().to_string()
    });
    match std::env::var("PORTCULLIS_BIN_DIR") {
        Ok(directory) => format!("PORTCULLIS_BIN_DIR={directory} {program}"),
        Err(_) => program,
    }
}
