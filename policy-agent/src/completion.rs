//! Completion scripts for shells.

use std::fmt::Write as _;
use std::io::Write as _;

use clap::builder::PossibleValue;
use clap::{Args, Command};
use clap_complete::Shell;

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

fn script(shell: Shell, mut command: Command) -> Vec<u8> {
    let mut script = Vec::new();
    let name = command.get_name().to_owned();
    clap_complete::generate(shell, &mut command, name, &mut script);
    if shell == Shell::Fish {
        script.extend(fish_words(&command).into_bytes());
    }
    script
}

/// The words that a subcommand takes as arguments, which clap leaves out of fish's script.
fn fish_words(command: &Command) -> String {
    let mut lines = String::new();
    let program = command.get_name();
    for subcommand in command.get_subcommands() {
        for argument in subcommand.get_positionals() {
            let words = argument.get_possible_values();
            let words: Vec<_> = words.iter().map(PossibleValue::get_name).collect();
            if !words.is_empty() {
                let _infallible = writeln!(
                    lines,
                    "complete -c {program} -n \"__fish_{}_using_subcommand {}\" -f -a \"{}\"",
                    program.replace('-', "_"),
                    subcommand.get_name(),
                    words.join(" ")
                );
            }
        }
    }
    lines
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
