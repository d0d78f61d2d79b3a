//! `cargo xtask image`: a container image as an OCI archive, without a daemon.
//!
//! ```text
//! compile (programs) --> content (files) --> layer (tar) --> archive (OCI layout, and what docker load reads)
//!                        origin (revision, time) --------------^
//! ```
//!
//! The same commit gives the same bytes, wherever it is built: `--verify` builds it again somewhere else.

mod archive;
mod compile;
mod content;
mod layer;
mod origin;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::layout::Layout;
use crate::run;
use archive::Image;
use content::Content;
use origin::Origin;

/// What an image may take, as an archive and unpacked, in bytes.
const LIMIT: usize = 40_000_000;

/// What the user asked for.
pub(crate) struct Options {
    /// Where the archive goes; below the target directory by default.
    pub(crate) output: Option<PathBuf>,
    /// Where the image's files go too, for a Dockerfile.
    pub(crate) rootfs: Option<PathBuf>,
    /// Whether it is built a second time, elsewhere, and compared.
    pub(crate) verify: bool,
}

/// The subcommand.
pub(crate) fn run(layout: &Layout, options: &Options) -> Result<()> {
    let origin = Origin::find(&layout.root)?;
    let content = build(layout)?;
    let image = archive::pack(&content, &origin)?;
    if let Some(directory) = &options.rootfs {
        content.write_to(directory)?;
    }
    let path = match &options.output {
        Some(path) => path.clone(),
        None => place(layout).join(format!("portcullis-v{}.tar", env!("CARGO_PKG_VERSION"))),
    };
    fs::write(&path, &image.archive).with_context(|| format!("write {}", path.display()))?;
    report(&path, &content, &origin, &image);
    check_size("the archive", image.archive.len())?;
    check_size("the unpacked image", content.size())?;
    if options.verify {
        verify(layout, &origin, &content, &image)?;
    }
    Ok(())
}

/// Where all that is built for the image goes.
fn place(layout: &Layout) -> PathBuf {
    layout.target.join("image")
}

fn build(layout: &Layout) -> Result<Content> {
    let programs = compile::programs(layout)?;
    content::of(&layout.root, &programs)
}

fn report(path: &Path, content: &Content, origin: &Origin, image: &Image) {
    for entry in &content.files {
        println!("{:>9}  /{}", entry.data.len(), entry.path);
    }
    println!("{:>9}  unpacked", content.size());
    println!("{:>9}  {}", image.archive.len(), path.display());
    println!("name      {}", image.name);
    println!("revision  {}", origin.revision);
    println!("created   {}", origin.created());
    println!("archive   {}", image.digest());
    println!("manifest  {}", image.manifest);
    println!("config    {}", image.config);
}

fn check_size(what: &str, size: usize) -> Result<()> {
    ensure!(
        size <= LIMIT,
        "{what} has {size} bytes; an image may have {LIMIT}"
    );
    Ok(())
}

/// Builds from a copy of the source in another place, and compares.
fn verify(layout: &Layout, origin: &Origin, first: &Content, image: &Image) -> Result<()> {
    let place = place(layout).join("again");
    if place.exists() {
        fs::remove_dir_all(&place)?;
    }
    let elsewhere = Layout {
        root: place.join("a/copy/of/the/source"),
        target: place.join("target"),
    };
    copy_source(&layout.root, &elsewhere.root)?;
    let second = build(&elsewhere)?;
    for (one, other) in first.files.iter().zip(&second.files) {
        ensure!(
            one == other,
            "/{} differs when it is built in {}",
            one.path,
            elsewhere.root.display()
        );
    }
    let again = archive::pack(&second, origin)?;
    ensure!(
        again.archive == image.archive,
        "the same files give another archive: {} and {}",
        image.digest(),
        again.digest()
    );
    fs::remove_dir_all(&place)?;
    println!("verified  built again elsewhere: the same bytes");
    Ok(())
}

/// Copies what git knows of the source, as it is now.
fn copy_source(from: &Path, to: &Path) -> Result<()> {
    let names = run::output(
        Command::new("git")
            .args(["ls-files", "-z"])
            .current_dir(from),
    )?;
    for name in names.split('\0').filter(|name| !name.is_empty()) {
        let (from, to) = (from.join(name), to.join(name));
        // A file that was deleted and not committed yet.
        if !from.exists() {
            continue;
        }
        if let Some(directory) = to.parent() {
            fs::create_dir_all(directory)?;
        }
        fs::copy(&from, &to).with_context(|| format!("copy {}", from.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{LIMIT, check_size};

    #[test]
    fn an_image_over_the_limit_is_an_error() {
        check_size("it", LIMIT).expect("fits");
        let error = check_size("the archive", LIMIT + 1).expect_err("too big");
        assert_eq!(
            error.to_string(),
            "the archive has 40000001 bytes; an image may have 40000000"
        );
    }
}
