//! Kernels from Debian's archive, with package lists of their own: nothing on the system changes.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result};

use super::Series;
use crate::layout::Layout;
use crate::{run, setup};

/// How long a kernel that was found stays the newest of its series.
const FRESH: Duration = Duration::from_secs(7 * 24 * 3600);

/// A kernel, unpacked.
pub(crate) struct Kernel {
    /// What `uname -r` says.
    pub(crate) release: String,
    /// Its packages' files.
    pub(crate) root: PathBuf,
    /// The compressed kernel.
    pub(crate) image: PathBuf,
}

/// Gets the newest kernel of a series, from the cache when it is fresh.
pub(crate) fn get(layout: &Layout, series: &Series) -> Result<Kernel> {
    let directory = layout.target.join("kernels").join(series.name);
    fs::create_dir_all(&directory)?;
    let note = directory.join("resolved");
    let cached = fs::read_to_string(&note).ok().filter(|text| {
        text.lines()
            .skip(1)
            .all(|file| directory.join(file).exists())
    });
    let fresh = fs::metadata(&note)
        .and_then(|metadata| metadata.modified())
        .is_ok_and(|at| {
            SystemTime::now()
                .duration_since(at)
                .is_ok_and(|age| age < FRESH)
        });
    let resolved = match cached {
        Some(text) if fresh => text,
        cached => match (download(&directory, series), cached) {
            (Ok(text), _) => {
                fs::write(&note, &text)?;
                text
            }
            (Err(error), Some(text)) => {
                eprintln!("{error:#}; going on with the kernel that was downloaded before");
                text
            }
            (Err(error), None) => return Err(error),
        },
    };
    let mut lines = resolved.lines();
    let release = lines
        .next()
        .context("an empty note of a kernel")?
        .to_owned();
    unpack(&directory, release, &lines.collect::<Vec<_>>())
}

/// Downloads the newest kernel. Returns its release and the names of its files, a line each.
fn download(directory: &Path, series: &Series) -> Result<String> {
    let (debian, security) = setup::mirrors()?;
    let sources: Vec<_> = series
        .suites
        .iter()
        .map(|suite| {
            let mirror = if suite.ends_with("-security") {
                &security
            } else {
                &debian
            };
            format!("{mirror} {suite}")
        })
        .collect();
    let configuration = setup::private_configuration(directory, &sources)?;
    let apt = |program: &str| {
        let mut command = Command::new(program);
        command
            .env("APT_CONFIG", &configuration)
            .current_dir(directory);
        command
    };
    run::behind(
        &format!(
            "fetching the package lists of {}",
            series.suites.join(" and ")
        ),
        apt("apt-get").args(["update", "-q"]),
    )?;
    let listed = run::output(apt("apt-cache").args([
        "search",
        "--names-only",
        "^linux-image-.*-cloud-amd64$",
    ]))?;
    let release = newest(&listed, series.prefix)
        .with_context(|| format!("there is no kernel {} in its suites", series.name))?;
    let image = format!("linux-image-{release}");
    let shown = run::output(apt("apt-cache").args(["show", "--no-all-versions", &image]))?;
    let mut packages = parts(&shown, release);
    packages.push(image);
    let uris = run::output(
        apt("apt-get")
            .args(["download", "--print-uris"])
            .args(&packages),
    )?;
    let files = files_of(&uris);
    run::behind(
        &format!("downloading kernel {release}"),
        apt("apt-get").args(["download", "-q"]).args(&packages),
    )?;
    Ok(format!("{release}\n{}\n", files.join("\n")))
}

fn unpack(directory: &Path, release: String, files: &[&str]) -> Result<Kernel> {
    let root = directory.join(format!("root-{release}"));
    if !root.exists() {
        let partial = directory.join("partial");
        if partial.exists() {
            fs::remove_dir_all(&partial)?;
        }
        for file in files {
            run::output(
                Command::new("dpkg-deb")
                    .arg("-x")
                    .arg(directory.join(file))
                    .arg(&partial),
            )?;
        }
        if !partial.join("lib").exists() {
            std::os::unix::fs::symlink("usr/lib", partial.join("lib"))?;
        }
        run::output(
            Command::new(run::find("depmod").context("depmod is missing")?)
                .arg("-b")
                .arg(&partial)
                .arg(&release),
        )?;
        fs::rename(&partial, &root)?;
    }
    let image = [
        format!("boot/vmlinuz-{release}"),
        format!("lib/modules/{release}/vmlinuz"),
    ]
    .into_iter()
    .map(|path| root.join(path))
    .find(|path| path.exists())
    .with_context(|| format!("the packages of {release} have no vmlinuz"))?;
    Ok(Kernel {
        release,
        root,
        image,
    })
}

/// The newest release that begins with `prefix`, of what `apt-cache search` printed.
fn newest<'a>(listed: &'a str, prefix: &str) -> Option<&'a str> {
    listed
        .lines()
        .filter_map(|line| line.split(' ').next()?.strip_prefix("linux-image-"))
        .filter(|release| release.starts_with(prefix) && is_release(release))
        .max_by_key(|release| numbers(release))
}

/// Three numbers first, as opposed to a package that follows a series.
fn is_release(name: &str) -> bool {
    let version = name.split(['-', '+']).next().unwrap_or_default();
    version
        .split('.')
        .filter(|part| part.parse::<u32>().is_ok())
        .count()
        >= 3
}

fn numbers(release: &str) -> Vec<u64> {
    release
        .split(|character: char| !character.is_ascii_digit())
        .filter_map(|digits| digits.parse().ok())
        .collect()
}

/// The packages that a kernel's image is split into, from what `apt-cache show` printed.
fn parts(shown: &str, release: &str) -> Vec<String> {
    shown
        .lines()
        .filter_map(|line| line.strip_prefix("Depends: "))
        .flat_map(|depends| depends.split(", "))
        .filter_map(|depend| depend.split(' ').next())
        .filter(|name| name.starts_with("linux-") && name.ends_with(release))
        .map(str::to_owned)
        .collect()
}

/// The names of files, from what `apt-get download --print-uris` printed.
fn files_of(uris: &str) -> Vec<&str> {
    uris.lines()
        .filter(|line| line.starts_with('\''))
        .filter_map(|line| line.split(' ').nth(1))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::{files_of, newest, parts};

    #[test]
    fn the_newest_release_is_by_number() {
        let listed = "linux-image-5.10.0-9-cloud-amd64 - Linux\n\
                      linux-image-5.10.0-46-cloud-amd64 - Linux\n\
                      linux-image-6.1.0-0.deb11.52-cloud-amd64 - Linux\n\
                      linux-image-6.1-cloud-amd64 - Linux\n\
                      linux-image-7.3-cloud-amd64 - Linux\n\
                      linux-image-cloud-amd64 - Linux\n";
        assert_eq!(newest(listed, "5.10."), Some("5.10.0-46-cloud-amd64"));
        assert_eq!(newest(listed, ""), Some("6.1.0-0.deb11.52-cloud-amd64"));
        assert_eq!(newest(listed, "6.12."), None);
    }

    #[test]
    fn a_split_kernel_has_parts() {
        let shown = "Package: linux-image-7.3.4-cloud-amd64\nDepends: dracut | initramfs-tools, \
                     linux-binary-7.3.4-cloud-amd64 (= 7.3.4-1), linux-modules-7.3.4-cloud-amd64 (= 1)\n";
        assert_eq!(
            parts(shown, "7.3.4-cloud-amd64"),
            [
                "linux-binary-7.3.4-cloud-amd64",
                "linux-modules-7.3.4-cloud-amd64"
            ]
        );
        assert!(
            parts(
                "Depends: kmod, linux-base (>= 4.3~)\n",
                "5.10.0-46-cloud-amd64"
            )
            .is_empty()
        );
    }

    #[test]
    fn file_names_are_read() {
        let uris = "'http://m/p/a_1%2b2.deb' a_1+2.deb 12 SHA256:00\nnoise\n";
        assert_eq!(files_of(uris), ["a_1+2.deb"]);
    }
}
