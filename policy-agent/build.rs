//! Embeds the eBPF object that `cargo xtask build` made. Without it the crate still builds, so that
//! `cargo check` works on a bare toolchain; the agent then says at start what is missing.

use std::path::PathBuf;
use std::{env, fs, io};

/// Names the eBPF object to embed.
const OBJECT: &str = "PORTCULLIS_BPF_OBJECT";

fn main() -> io::Result<()> {
    println!("cargo:rerun-if-env-changed={OBJECT}");
    let out_dir = env::var_os("OUT_DIR")
        .map(PathBuf::from)
        .ok_or(io::ErrorKind::NotFound)?;
    let embedded = out_dir.join("portcullis.o");
    match env::var_os(OBJECT) {
        Some(object) => {
            println!(
                "cargo:rerun-if-changed={}",
                PathBuf::from(&object).display()
            );
            fs::copy(&object, &embedded).map_err(|error| {
                io::Error::new(
                    error.kind(),
                    format!("{OBJECT}={}: {error}", PathBuf::from(&object).display()),
                )
            })?;
        }
        None => fs::write(&embedded, [])?,
    }
    Ok(())
}
