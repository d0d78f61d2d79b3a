//! Whether pods' starts are held, which wants an entry of ours before the plugin that makes the interface.
//!
//! That plugin then gets the result of a plugin before it, which it has to ignore. Reference plugins of that
//! kind do; others of the same place in a chain (ipvlan, for example) look for a master interface there and fail.

use std::fmt;

use clap::ValueEnum;

/// Plugins that take no notice of a result before them: the first two are part of the tests, the others' sources say so.
const KNOWN: [&str; 4] = ["bridge", "ptp", "flannel", "aws-cni"];

/// Whether to hold starts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Hold {
    /// With the plugins that are known to take it.
    #[default]
    Auto,
    /// With any plugin.
    Always,
    /// With none.
    Never,
}

/// Whether starts are held, and why not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Holding {
    /// From before the interface until it is enforced.
    Held,
    /// The operator does not want it.
    NotWanted,
    /// This main plugin may not take it.
    UnknownPlugin(String),
}

impl Hold {
    /// What that means for a list with this main plugin.
    pub(super) fn of(self, main_plugin: Option<&str>) -> Holding {
        match self {
            Self::Always => Holding::Held,
            Self::Never => Holding::NotWanted,
            Self::Auto => match main_plugin {
                Some(known) if KNOWN.contains(&known) => Holding::Held,
                unknown => Holding::UnknownPlugin(unknown.unwrap_or_default().to_owned()),
            },
        }
    }
}

impl Holding {
    /// Why not, if so.
    #[must_use]
    pub fn why_not(&self) -> Option<String> {
        match self {
            Self::Held => None,
            Self::NotWanted => Some("PORTCULLIS_CNI_HOLD=never".to_owned()),
            Self::UnknownPlugin(plugin) => Some(format!(
                "{plugin} is not known to work behind another plugin (known are {}); PORTCULLIS_CNI_HOLD=always \
                 holds them nevertheless",
                KNOWN.join(", ")
            )),
        }
    }
}

impl fmt::Display for Holding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.why_not() {
            None => f.write_str("starts are held"),
            Some(why) => write!(f, "starts are not held: {why}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_known_plugins_are_held_unless_the_operator_says_otherwise() {
        for known in KNOWN {
            assert_eq!(Hold::Auto.of(Some(known)), Holding::Held);
            assert_eq!(Hold::Never.of(Some(known)), Holding::NotWanted);
        }
        for unknown in ["ipvlan", "macvlan", "azure-vnet", "multus"] {
            let holding = Hold::Auto.of(Some(unknown));
            assert_eq!(holding, Holding::UnknownPlugin(unknown.to_owned()));
            let words = holding.to_string();
            assert!(
                words.contains(unknown) && words.contains("bridge, ptp"),
                "{words}"
            );
            assert_eq!(Hold::Always.of(Some(unknown)), Holding::Held);
        }
    }
}
