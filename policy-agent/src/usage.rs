//! What the command line cannot take, where it stands in the environment.
//!
//! clap names the option. Who set a variable, as by a ConfigMap, knows nothing of options.

use std::error::Error as _;
use std::ffi::OsString;

use clap::Command;
use clap::error::{ContextKind, ContextValue, Error};

/// Says what is wrong, and ends the process with the exit code that clap has for it; after `--help` with 0.
pub fn exit(error: &Error, command: &Command) -> ! {
    let arguments: Vec<_> = std::env::args_os().collect();
    match of_variable(error, command, &arguments) {
        Some(words) => {
            eprintln!("{}: {words}", command.get_name());
            std::process::exit(error.exit_code())
        }
        None => error.exit(),
    }
}

/// The error in words that name the variable, when the value that cannot be taken is a variable's.
fn of_variable(error: &Error, command: &Command, arguments: &[OsString]) -> Option<String> {
    // Such as `--cni-timeout <SECONDS>`.
    let Some(ContextValue::String(option)) = error.get(ContextKind::InvalidArg) else {
        return None;
    };
    let option = option.split(' ').next()?;
    let Some(ContextValue::String(value)) = error.get(ContextKind::InvalidValue) else {
        return None;
    };
    let is_given = arguments.iter().any(|argument| {
        let argument = argument.to_string_lossy();
        argument.split('=').next() == Some(option)
    });
    if is_given {
        return None;
    }
    let variable = variable(command, option.strip_prefix("--")?)?;
    let is_listed = |list: &&Vec<String>| !list.is_empty();
    let choices = match error.get(ContextKind::ValidValue) {
        Some(ContextValue::Strings(choices)) => Some(choices).filter(is_listed),
        _ => None,
    };
    Some(match (choices, error.source()) {
        (Some(choices), _) => {
            let choices = choices.join(", ");
            format!("{variable}={value:?} is unknown; the choices are {choices}")
        }
        (None, Some(why)) => format!("{variable}={value:?}: {why}"),
        (None, None) if value.is_empty() => {
            format!("{variable} is set and empty; unset it for the default")
        }
        (None, None) => return None,
    })
}

/// The variable that stands for an option, which is the same in every subcommand.
fn variable(command: &Command, long: &str) -> Option<String> {
    let mut options = command.get_arguments();
    let option = options.find(|option| option.get_long() == Some(long));
    let variable = option.and_then(|option| option.get_env());
    match variable {
        Some(variable) => Some(variable.to_string_lossy().into_owned()),
        None => command
            .get_subcommands()
            .find_map(|subcommand| self::variable(subcommand, long)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::{Arg, value_parser};

    fn command() -> Command {
        let seconds = Arg::new("seconds")
            .long("seconds")
            .env("PORTCULLIS_TEST_SECONDS")
            .value_parser(value_parser!(u64).range(1..=120));
        let form = Arg::new("form")
            .long("form")
            .env("PORTCULLIS_TEST_FORM")
            .value_parser(["a", "b"]);
        let place = Arg::new("place")
            .long("place")
            .env("PORTCULLIS_TEST_PLACE")
            .value_parser(value_parser!(std::path::PathBuf));
        let run = Command::new("run").args([seconds, form, place]);
        Command::new("agent").subcommand(run)
    }

    /// What is said of an option's value, given as an option; `variable` has it looked at as if it were not.
    fn said(given: &str, as_variable: bool) -> Option<String> {
        let arguments = ["agent", "run", given].map(OsString::from);
        let error = command()
            .try_get_matches_from(&arguments)
            .expect_err("an error");
        let seen = if as_variable { 2 } else { 3 };
        of_variable(&error, &command(), &arguments[..seen])
    }

    #[test]
    fn the_variable_is_named_where_the_option_was_not_given() {
        let rows = [
            (
                "--seconds=0",
                "PORTCULLIS_TEST_SECONDS=\"0\": 0 is not in 1..=120",
            ),
            (
                "--seconds=1m",
                "PORTCULLIS_TEST_SECONDS=\"1m\": invalid digit found in string",
            ),
            (
                "--form=c",
                "PORTCULLIS_TEST_FORM=\"c\" is unknown; the choices are a, b",
            ),
            (
                "--form=",
                "PORTCULLIS_TEST_FORM=\"\" is unknown; the choices are a, b",
            ),
            (
                "--place=",
                "PORTCULLIS_TEST_PLACE is set and empty; unset it for the default",
            ),
        ];
        for (given, words) in rows {
            assert_eq!(said(given, true).as_deref(), Some(words));
            assert_eq!(said(given, false), None, "{given}");
        }
        assert_eq!(said("--other=1", true), None);
    }
}
