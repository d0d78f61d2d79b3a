//! Puts the plugin's program and its entries in the configuration in place; done again, it changes nothing.
//!
//! The configuration that is in force is the first in lexical order, as runtimes choose it. A `.conf` or
//! `.json` becomes a `.conflist` beside it. What was there before is kept under the same name with
//! [`BACKUP`] appended.

use std::ffi::OsStr;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use serde_json::json;

use super::conflist::{Conflist, Mistake, Ours, TYPE};
use super::create::{self, MainPlugin};
use super::files::{beside, failed, mode, read, remove, replace};
use super::hold::{Hold, Holding};
use super::{Directories, InstallError};

/// Ends the name of a configuration that was there before ours.
pub(super) const BACKUP: &str = ".portcullis-backup";

/// Ends the name of a copy of a configuration that we made, without our plugin.
pub(super) const CREATED: &str = ".portcullis-created";

/// Our entries in the configuration.
#[derive(Clone, Debug)]
pub struct Plugin {
    /// The agent's run directory on the host.
    pub run_dir: PathBuf,
    /// How long an ADD may take.
    pub timeout: Duration,
    /// Whether pods start unprotected where the agent is away.
    pub fail_open: bool,
    /// Whether starts are held.
    pub hold: Hold,
}

impl Plugin {
    /// Our entries for this list, and whether they hold starts.
    fn entries(&self, list: &Conflist) -> (Ours, Holding) {
        let holding = self.hold.of(list.main_plugin().as_deref());
        let mut first = json!({"type": TYPE, "hold": true});
        let mut last = json!({
            "type": TYPE, "runDir": self.run_dir, "timeout": self.timeout.as_secs_f64(),
        });
        if self.fail_open {
            first["failOpen"] = json!(true);
            last["failOpen"] = json!(true);
        }
        let first = (holding == Holding::Held).then_some(first);
        (Ours { first, last }, holding)
    }
}

/// What is to be installed, and where.
#[derive(Clone, Debug)]
pub struct Installation {
    /// The program to install.
    pub program: PathBuf,
    /// Where the runtime looks for plugins and configurations.
    pub directories: Directories,
    /// Our entries.
    pub plugin: Plugin,
    /// What to configure where there is no configuration.
    pub create: Option<MainPlugin>,
    /// This node's pod CIDRs, for that.
    pub pod_cidrs: PodCidrs,
}

/// This node's pod CIDRs, which only a configuration to be made needs.
#[derive(Clone)]
pub enum PodCidrs {
    /// As the operator says.
    Given(Vec<IpNet>),
    /// To be asked for.
    Asked(Arc<dyn Fn() -> Result<Vec<IpNet>, String> + Send + Sync>),
}

impl PodCidrs {
    fn get(&self) -> Result<Vec<IpNet>, InstallError> {
        let cidrs = match self {
            Self::Given(cidrs) => Ok(cidrs.clone()),
            Self::Asked(ask) => ask(),
        };
        cidrs.map_err(InstallError::NoPodCidr)
    }
}

impl fmt::Debug for PodCidrs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Given(cidrs) => f.debug_list().entries(cidrs).finish(),
            Self::Asked(_) => f.write_str("to be asked for"),
        }
    }
}

/// What was done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The configuration in force.
    pub configuration: PathBuf,
    /// Others that runtimes do not look at.
    pub ignored: Vec<PathBuf>,
    /// Whether the program was put in place.
    pub program_changed: bool,
    /// Whether the configuration was.
    pub configuration_changed: bool,
    /// Whether starts are held.
    pub holding: Holding,
}

impl Installation {
    /// Makes it so.
    ///
    /// # Errors
    ///
    /// What keeps it from being so; nothing is half-written then.
    pub fn install(&self) -> Result<Outcome, InstallError> {
        let mut found = configurations(&self.directories.conf_dir)?.into_iter();
        match (found.next(), self.create) {
            (Some(active), _) => {
                let edit = Edit::of(&active, &self.plugin)?;
                let program_changed = self.install_program()?;
                Ok(Outcome {
                    configuration_changed: edit.write()?,
                    holding: edit.holding,
                    configuration: edit.target,
                    ignored: found.collect(),
                    program_changed,
                })
            }
            (None, Some(main)) => self.create(main),
            (None, None) => Err(InstallError::NoConfiguration(
                self.directories.conf_dir.clone(),
            )),
        }
    }

    fn install_program(&self) -> Result<bool, InstallError> {
        let program = fs::read(&self.program).map_err(failed(&self.program))?;
        let Directories { bin_dir, .. } = &self.directories;
        let place = self.directories.installed_program();
        const EXECUTABLE: u32 = 0o755;
        if read(&place)?.as_ref() == Some(&program) && mode(&place) == EXECUTABLE {
            return Ok(false);
        }
        fs::create_dir_all(bin_dir).map_err(failed(bin_dir))?;
        replace(&place, &program, EXECUTABLE)?;
        Ok(true)
    }

    fn create(&self, main: MainPlugin) -> Result<Outcome, InstallError> {
        let Directories { bin_dir, conf_dir } = &self.directories;
        let before = create::conflist(main, &self.pod_cidrs.get()?)?;
        create::check_plugins(main, bin_dir)?;
        let path = conf_dir.join(create::FILE);
        let text = before.to_string();
        let list = Conflist::parse(text.as_bytes()).map_err(|mistake| explain(&path, mistake))?;
        let program_changed = self.install_program()?;
        fs::create_dir_all(conf_dir).map_err(failed(conf_dir))?;
        let record = beside(&path, CREATED);
        replace(&record, text.as_bytes(), mode(&record))?;
        let (ours, holding) = self.plugin.entries(&list);
        let list = list.with_ours(&ours);
        replace(&path, list.to_string().as_bytes(), mode(&path))?;
        Ok(Outcome {
            configuration: path,
            ignored: Vec::new(),
            program_changed,
            configuration_changed: true,
            holding,
        })
    }
}

/// What becomes of a configuration, worked out before anything is written.
struct Edit {
    source: PathBuf,
    target: PathBuf,
    before: Vec<u8>,
    /// `None` where all is as it should be.
    after: Option<String>,
    /// Whether what is there now is nobody's but ours, so that the backup stays.
    was_ours: bool,
    holding: Holding,
}

impl Edit {
    fn of(active: &Path, plugin: &Plugin) -> Result<Self, InstallError> {
        let before = fs::read(active).map_err(failed(active))?;
        let list = parse(active, &before)?;
        let was_ours = list.has_ours();
        let (ours, holding) = plugin.entries(&list);
        let after = (!list.has(&ours)).then(|| list.with_ours(&ours).to_string());
        Ok(Self {
            source: active.to_owned(),
            target: active.with_extension("conflist"),
            before,
            after,
            was_ours,
            holding,
        })
    }

    /// Writes it, backup first, and says whether there was anything to write.
    fn write(&self) -> Result<bool, InstallError> {
        let Some(after) = &self.after else {
            return Ok(false);
        };
        let mode = mode(&self.source);
        if !self.was_ours {
            replace(&beside(&self.source, BACKUP), &self.before, mode)?;
            // What is there now is not what we made.
            remove(&beside(&self.source, CREATED))?;
        }
        replace(&self.target, after.as_bytes(), mode)?;
        if self.source != self.target {
            // It would stay the first in order. Its backup has it.
            remove(&self.source)?;
        }
        Ok(true)
    }
}

/// Reads a configuration of either kind.
pub(super) fn parse(path: &Path, text: &[u8]) -> Result<Conflist, InstallError> {
    let list = if is_list(path) {
        Conflist::parse(text)
    } else {
        Conflist::of_plugin(text)
    };
    list.map_err(|mistake| explain(path, mistake))
}

fn is_list(path: &Path) -> bool {
    path.extension() == Some(OsStr::new("conflist"))
}

fn explain(path: &Path, mistake: Mistake) -> InstallError {
    let path = path.to_owned();
    match mistake {
        Mistake::Malformed(mistake) => InstallError::Malformed { path, mistake },
        Mistake::Version(version) => InstallError::Version { path, version },
    }
}

/// Configurations in the order in which runtimes look at them; the first is in force.
pub(super) fn configurations(conf_dir: &Path) -> Result<Vec<PathBuf>, InstallError> {
    let entries = match fs::read_dir(conf_dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(conf_dir)(error)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.map_err(failed(conf_dir))?.path();
        let extension = path.extension().and_then(OsStr::to_str);
        if matches!(extension, Some("conf" | "conflist" | "json")) && path.is_file() {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
#[path = "install_tests.rs"]
mod tests;
