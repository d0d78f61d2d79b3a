//! Completion scripts for shells.

use std::io::Write as _;

use clap::{Args, Command};
use clap_complete::{Generator, Shell};

/// Which shell.
#[derive(Args, Clone, Copy, Debug)]
pub struct Completion {
    /// The shell
    shell: Shell,
}

impl Completion {
    /// Prints the script that teaches the shell `command`'s subcommands and options.
    pub fn print(self, command: Command) {
        let script = script(self.shell, command);
        // Whoever stops reading, as `head` does, has seen enough.
        let _closed = std::io::stdout().write_all(&script);
    }
}

fn script(shell: impl Generator, mut command: Command) -> Vec<u8> {
    let mut script = Vec::new();
    let name = command.get_name().to_owned();
    clap_complete::generate(shell, &mut command, name, &mut script);
    script
}

/// The scripts for bash, zsh and fish, each with the words that have to occur in it.
#[cfg(test)]
pub(crate) fn assert_complete(command: &Command, words: &[&str]) {
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        let script = script(shell, command.clone());
        let script = String::from_utf8(script).expect("text");
        for word in words.iter().chain([&command.get_name()]) {
            assert!(script.contains(word), "{shell}: {word}\n{script}");
        }
    }
}
