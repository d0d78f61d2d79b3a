//! Which source an image is made from, and the one time that it bears.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};
use k8s_openapi::jiff::Timestamp;

use crate::run;

/// Overrides the time, as <https://reproducible-builds.org/specs/source-date-epoch/> has it.
const EPOCH: &str = "SOURCE_DATE_EPOCH";

/// See the module.
#[derive(Clone, Debug)]
pub(super) struct Origin {
    /// The commit; with `-dirty` when files differ from it.
    pub(super) revision: String,
    /// SOURCE_DATE_EPOCH, or else the commit's time.
    time: Timestamp,
}

impl Origin {
    /// The origin of the source at `root`.
    ///
    /// # Errors
    ///
    /// When git does not know it, or SOURCE_DATE_EPOCH is no number of seconds.
    pub(super) fn find(root: &Path) -> Result<Self> {
        let git =
            |arguments: &[&str]| run::output(Command::new("git").args(arguments).current_dir(root));
        let commit = git(&["log", "-1", "--format=%H %ct"])
            .context("the image says which commit it is of, so it is made in a git work tree")?;
        let (hash, committed) = commit
            .trim()
            .split_once(' ')
            .context("git log printed no commit")?;
        let changed = git(&["status", "--porcelain", "--untracked-files=no"])?;
        let dirty = if changed.is_empty() { "" } else { "-dirty" };
        let given = std::env::var(EPOCH).ok();
        Self::new(
            format!("{hash}{dirty}"),
            given.as_deref().unwrap_or(committed),
        )
    }

    /// `seconds` since 1970, in decimal.
    pub(super) fn new(revision: String, seconds: &str) -> Result<Self> {
        let time = seconds
            .parse()
            .ok()
            .filter(|seconds| *seconds >= 0)
            .and_then(|seconds| Timestamp::from_second(seconds).ok())
            .with_context(|| format!("{EPOCH}={seconds:?}: not a number of seconds since 1970"))?;
        Ok(Self { revision, time })
    }

    /// Seconds since 1970.
    pub(super) fn seconds(&self) -> u64 {
        // Not negative, see `new`.
        self.time.as_second().unsigned_abs()
    }

    /// As RFC 3339 has it.
    pub(super) fn created(&self) -> String {
        self.time.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::Origin;

    #[test]
    fn times_are_seconds_since_1970() {
        let origin = Origin::new("abc".to_owned(), "1700000000").expect("valid");
        assert_eq!(origin.seconds(), 1_700_000_000);
        assert_eq!(origin.created(), "2023-11-14T22:13:20Z");
        for wrong in ["", "-1", "yesterday", "1.5", "99999999999999"] {
            let error = Origin::new(String::new(), wrong).expect_err(wrong);
            assert!(
                error.to_string().starts_with("SOURCE_DATE_EPOCH="),
                "{error}"
            );
        }
    }
}
