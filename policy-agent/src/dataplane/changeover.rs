//! From the tables of an earlier agent to tables made anew beside them.
//!
//! ```text
//! BPFFS/NAME         the tables in force; what they are is known by these pins alone
//! BPFFS/next/NAME    made anew, until the first plan has filled them; then they take the place of those
//! BPFFS/former/NAME  tables of connections whose size changed, until every endpoint has changed over
//! ```
//!
//! The old programs go on with the old tables until [`super::Dataplane::attach`] replaces them, endpoint by
//! endpoint, and that begins only when the new tables are filled and in place. So an agent may die at any
//! moment: the next one finds tables that every attached program agrees with on the endpoints' ids, and all
//! connections that were known.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use aya::maps::MapData;
use policy_common::flow::{FlowKeyV4, FlowKeyV6};
use policy_common::map;

use super::error::LoadError;
use super::flow_tables::Move;
use super::pinned::FLOWS;
use super::removal::unless_gone;

/// See the module.
pub(super) struct Changeover {
    dir: PathBuf,
    /// Whether tables wait in `next`.
    is_staged: bool,
    v4: Vec<Move<FlowKeyV4>>,
    v6: Vec<Move<FlowKeyV6>>,
}

impl Changeover {
    /// Pins all tables of `ebpf` but those that are `reused`, to be brought in force later.
    pub(super) fn stage(
        ebpf: &aya::Ebpf,
        dir: &Path,
        reused: &BTreeSet<&'static str>,
    ) -> Result<(), LoadError> {
        let next = next(dir);
        let failed = |path: &Path| {
            let path = path.to_owned();
            |source| LoadError::Pin { path, source }
        };
        fs::create_dir(&next).map_err(failed(&next))?;
        for spec in map::ALL.iter().filter(|spec| !reused.contains(spec.name)) {
            let path = next.join(spec.name);
            let map = ebpf.map(spec.name).ok_or(LoadError::Missing(spec.name))?;
            map.pin(&path)
                .map_err(|error| failed(&path)(io::Error::other(error)))?;
        }
        Ok(())
    }

    /// The changeover from what is in `dir`, if any; to be called while the new tables are still in `next`.
    pub(super) fn begin(dir: &Path) -> Self {
        let mut changeover = Self {
            dir: dir.to_owned(),
            is_staged: next(dir).is_dir(),
            v4: Vec::new(),
            v6: Vec::new(),
        };
        for spec in FLOWS {
            let staged = next(dir).join(spec.name);
            let (from, to) = if staged.exists() {
                (dir.join(spec.name), staged)
            } else {
                (former(dir).join(spec.name), dir.join(spec.name))
            };
            let (Ok(from), Ok(to)) = (MapData::from_pin(from), MapData::from_pin(to)) else {
                continue;
            };
            // Of another form, it holds nothing that could be carried over.
            if spec == map::FLOWS_V4 || spec == map::FLOWS_NEW_V4 {
                changeover.v4.extend(Move::new(spec.name, from, to).ok());
            } else {
                changeover.v6.extend(Move::new(spec.name, from, to).ok());
            }
        }
        changeover
    }

    /// Whether tables wait to be filled.
    pub(super) fn is_staged(&self) -> bool {
        self.is_staged
    }

    /// Puts tables that wait in the place of those before them. They must be filled.
    pub(super) fn commit(&mut self) -> io::Result<()> {
        if !self.is_staged {
            return Ok(());
        }
        match fs::create_dir(complete(&self.dir)) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        put_in_place(&self.dir)?;
        self.is_staged = false;
        tracing::info!(
            "tables that were made anew are filled, and take the place of the former ones"
        );
        Ok(())
    }

    /// Takes over what is known of an endpoint's connections, as far as the new tables lack it.
    pub(super) fn carry_over(&mut self, endpoint: u32) {
        let v4 = self.v4.iter_mut().map(|table| table.carry_over(endpoint));
        let v6 = self.v6.iter_mut().map(|table| table.carry_over(endpoint));
        for error in v4.chain(v6).filter_map(Result::err) {
            tracing::error!(endpoint, %error, "connections are not taken over, and judged as if they began now");
        }
    }

    /// Every endpoint has changed over.
    pub(super) fn finish(&mut self) -> io::Result<()> {
        self.commit()?;
        self.v4.clear();
        self.v6.clear();
        remove(&former(&self.dir))
    }
}

/// Ends what an agent had begun when it died: brings tables in force that were filled, and removes those that
/// were not, which no program uses.
pub(super) fn recover(dir: &Path) -> Result<(), LoadError> {
    let next = next(dir);
    let outcome = if complete(dir).is_dir() {
        put_in_place(dir)
    } else {
        remove(&next)
    };
    outcome.map_err(|source| LoadError::Pin { path: next, source })
}

/// Forgets former tables of connections, which are of no use without their endpoints' ids.
pub(super) fn forget(dir: &Path) -> Result<(), LoadError> {
    let former = former(dir);
    remove(&former).map_err(|source| LoadError::Pin {
        path: former,
        source,
    })
}

fn put_in_place(dir: &Path) -> io::Result<()> {
    let (next, former) = (next(dir), former(dir));
    for spec in map::ALL {
        let (place, staged) = (dir.join(spec.name), next.join(spec.name));
        if !staged.exists() {
            continue;
        }
        if FLOWS.contains(spec) && place.exists() {
            fs::create_dir_all(&former)?;
            fs::rename(&place, former.join(spec.name))?;
        }
        fs::rename(&staged, &place)?;
    }
    fs::remove_dir(complete(dir))?;
    fs::remove_dir(next)
}

fn remove(directory: &Path) -> io::Result<()> {
    unless_gone(fs::remove_dir_all(directory))
}

/// Where tables wait to be filled.
pub(super) fn next(dir: &Path) -> PathBuf {
    dir.join("next")
}

fn former(dir: &Path) -> PathBuf {
    dir.join("former")
}

/// A directory that says that the tables beside it are filled.
fn complete(dir: &Path) -> PathBuf {
    next(dir).join("complete")
}
