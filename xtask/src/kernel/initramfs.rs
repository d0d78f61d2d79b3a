//! A guest's whole file system: an initramfs with the tests, the few tools they run, and an init.

use std::fs::{self, File};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};

use super::archive::Kernel;
use super::{Series, TESTS, guest, libraries, modules};
use crate::layout::Layout;
use crate::run;

/// Makes the initramfs for a kernel. `filter` is for the names of tests.
pub(crate) fn make(
    layout: &Layout,
    series: &Series,
    kernel: &Kernel,
    payload: &[(String, PathBuf)],
    filter: Option<&str>,
) -> Result<PathBuf> {
    let directory = layout.target.join("kernels").join(series.name);
    let tree = directory.join("guest");
    if tree.exists() {
        fs::remove_dir_all(&tree)?;
    }
    for path in [
        "bin", "sbin", "dev", "proc", "sys", "run", "tmp", "etc", "root", "modules",
    ] {
        fs::create_dir_all(tree.join(path))?;
    }
    for (name, from) in payload {
        copy(from, &tree.join("portcullis").join(name))?;
    }
    for (program, to) in [
        ("busybox", "bin/busybox"),
        ("dash", "bin/sh"),
        ("ip", "sbin/ip"),
        ("setpriv", "bin/setpriv"),
    ] {
        let from = run::find(program).with_context(|| format!("{program} is missing"))?;
        copy(&from, &tree.join(to))?;
        if program != "busybox" {
            for library in libraries(&from)? {
                copy(&library, &tree.join(library.strip_prefix("/")?))?;
            }
        }
    }
    for applet in [
        "mount", "insmod", "uname", "cat", "sleep", "poweroff", "ping",
    ] {
        symlink("busybox", tree.join("bin").join(applet))?;
    }
    let init = tree.join("init");
    fs::write(
        &init,
        guest::init(&put_modules(kernel, &tree)?, &TESTS, filter),
    )?;
    fs::set_permissions(&init, fs::Permissions::from_mode(0o755))?;
    let image = directory.join("initramfs");
    pack(&tree, &image)?;
    Ok(image)
}

/// Puts modules into the tree, decompressed. Returns their paths in the order of loading.
fn put_modules(kernel: &Kernel, tree: &Path) -> Result<Vec<String>> {
    let from = kernel.root.join("lib/modules").join(&kernel.release);
    let read = |name: &str| {
        fs::read_to_string(from.join(name)).with_context(|| format!("read {name} of the kernel"))
    };
    let order = modules::closure(
        &read("modules.dep")?,
        &read("modules.builtin")?,
        &modules::NEEDED,
    )?;
    let mut loaded = Vec::new();
    for path in order {
        let file = path.rsplit('/').next().unwrap_or(&path);
        let to = tree.join("modules").join(file);
        copy(&from.join(&path), &to)?;
        if let Some(plain) = file.strip_suffix(".xz") {
            run::output(Command::new("xz").arg("-df").arg(&to))?;
            loaded.push(format!("/modules/{plain}"));
        } else {
            loaded.push(format!("/modules/{file}"));
        }
    }
    Ok(loaded)
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    if let Some(parent) = to.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::copy(from, to)
        .with_context(|| format!("copy {} to {}", from.display(), to.display()))
        .map(drop)
}

fn pack(tree: &Path, image: &Path) -> Result<()> {
    let mut find = Command::new("find")
        .arg(".")
        .current_dir(tree)
        .stdout(Stdio::piped())
        .spawn()
        .context("start find")?;
    let names = find.stdout.take().context("find has no output")?;
    let status = Command::new("cpio")
        .args(["--quiet", "-o", "-H", "newc", "-R", "0:0"])
        .current_dir(tree)
        .stdin(names)
        .stdout(File::create(image)?)
        .status()
        .context("start cpio")?;
    ensure!(
        find.wait()?.success() && status.success(),
        "cpio could not pack the guest's files"
    );
    Ok(())
}
