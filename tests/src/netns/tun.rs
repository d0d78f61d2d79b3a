//! A tunnel between two network namespaces, without a link layer: what one end is given comes out at the other.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::thread::{self, JoinHandle};

use anyhow::{Context as _, Result};

use super::{Inside, Netns};

/// Devices of this name in both namespaces. They go when this is dropped.
#[derive(Debug)]
pub struct Tunnel {
    name: &'static str,
    ends: [Inside; 2],
    threads: Vec<JoinHandle<()>>,
}

impl Tunnel {
    /// Makes the devices, not yet up.
    ///
    /// # Errors
    ///
    /// Where the kernel has no TUN, or the name is taken.
    pub fn create(name: &'static str, ends: [&Netns; 2]) -> Result<Self> {
        let [near, far] = ends;
        let files = [near.enter(|| open(name))?, far.enter(|| open(name))?];
        let mut threads = Vec::new();
        for (from, to) in [(0, 1), (1, 0)] {
            let (from, to) = (files[from].try_clone()?, files[to].try_clone()?);
            threads.push(thread::spawn(move || carry(from, to)));
        }
        let ends = [near.inside()?, far.inside()?];
        Ok(Self {
            name,
            ends,
            threads,
        })
    }
}

fn open(name: &str) -> Result<File> {
    let path = "/dev/net/tun";
    let file = OpenOptions::new().read(true).write(true).open(path);
    let file = file.context(path)?;
    // SAFETY: plain numbers and bytes, for which zero is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI) as i16;
    // SAFETY: the request is what this call reads, and it outlives the call.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    if result < 0 {
        return Err(io::Error::last_os_error()).context(name.to_owned());
    }
    Ok(file)
}

/// Until the device is gone.
fn carry(mut from: File, mut to: File) {
    let mut packet = vec![0; 65536];
    while let Ok(length) = from.read(&mut packet) {
        // The other end may not be up yet, or no more.
        let _lost = to.write_all(&packet[..length]);
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        for end in &self.ends {
            let deleted = end
                .command("ip")
                .args(["link", "delete", self.name])
                .status();
            if !deleted.is_ok_and(|status| status.success()) {
                eprintln!("{} could not be removed", self.name);
                return;
            }
        }
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                eprintln!("{}: a thread panicked", self.name);
            }
        }
    }
}
