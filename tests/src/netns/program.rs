//! TC programs of somebody else, small enough to be written as instructions.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context as _, Result};
use nix::net::if_::if_nametoindex;

use super::Netns;

/// What a program does with every packet, in this order; then it returns [`Program::action`].
#[derive(Clone, Copy, Debug, Default)]
pub struct Program {
    /// Sets `skb->hash`.
    pub hash: Option<u32>,
    /// Forgets `skb->hash`.
    pub forgets_hash: bool,
    /// Sets `skb->tc_index`.
    pub tc_index: Option<u32>,
    /// Sets `skb->mark`.
    pub mark: Option<u32>,
    /// TC_ACT_OK is 0, which is TCX_PASS too; TC_ACT_UNSPEC is -1, which is TCX_NEXT too.
    pub action: i32,
}

/// Where a program goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// By TCX, before all others that are there.
    TcxFirst,
    /// By TCX, behind all others that are there.
    TcxLast,
    /// As a clsact filter of this preference; lower ones come first.
    Clsact(u16),
}

/// A program in its place; it goes when this is dropped.
#[derive(Debug)]
pub struct Attached {
    _program: OwnedFd,
    _link: Option<OwnedFd>,
    pin: Option<PathBuf>,
    filter: Option<(super::Inside, Vec<String>)>,
}

impl Drop for Attached {
    fn drop(&mut self) {
        if let Some((inside, arguments)) = &self.filter {
            // The interface may be gone.
            let _gone = inside.command("tc").args(arguments).output();
        }
        if let Some(pin) = &self.pin {
            let _gone = fs::remove_file(pin);
        }
    }
}

const PROG_LOAD: libc::c_long = 5;
const OBJ_PIN: libc::c_long = 6;
const LINK_CREATE: libc::c_long = 28;
/// `BPF_PROG_TYPE_SCHED_CLS`.
const SCHED_CLS: u32 = 3;
/// Attach types of linux/bpf.h.
const TCX_INGRESS: u32 = 46;
const TCX_EGRESS: u32 = 47;
/// `BPF_F_BEFORE` and `BPF_F_AFTER`.
const BEFORE: u32 = 1 << 3;
const AFTER: u32 = 1 << 4;

/// Offsets in `struct __sk_buff`.
const MARK: i16 = 8;
const TC_INDEX: i16 = 44;
/// Helpers of linux/bpf.h.
const SET_HASH_INVALID: i32 = 41;
const SET_HASH: i32 = 48;

fn instruction(code: u8, registers: u8, offset: i16, immediate: i32) -> u64 {
    u64::from(code)
        | u64::from(registers) << 8
        | u64::from(offset.cast_unsigned()) << 16
        | u64::from(immediate.cast_unsigned()) << 32
}

impl Program {
    fn instructions(&self) -> Vec<u64> {
        const MOVE: u8 = 0xbf;
        const MOVE_IMMEDIATE: u8 = 0xb4;
        const CALL: u8 = 0x85;
        const STORE_WORD: u8 = 0x63;
        const EXIT: u8 = 0x95;
        // r6 = r1, the packet.
        let mut code = vec![instruction(MOVE, 0x16, 0, 0)];
        if let Some(hash) = self.hash {
            code.push(instruction(MOVE_IMMEDIATE, 2, 0, hash.cast_signed()));
            code.push(instruction(CALL, 0, 0, SET_HASH));
        }
        if self.forgets_hash {
            code.push(instruction(MOVE, 0x61, 0, 0));
            code.push(instruction(CALL, 0, 0, SET_HASH_INVALID));
        }
        for (offset, value) in [(TC_INDEX, self.tc_index), (MARK, self.mark)] {
            if let Some(value) = value {
                code.push(instruction(MOVE_IMMEDIATE, 3, 0, value.cast_signed()));
                code.push(instruction(STORE_WORD, 0x36, offset, 0));
            }
        }
        // Sign extension matters to nobody: the action is 32 bits.
        code.push(instruction(MOVE_IMMEDIATE, 0, 0, self.action));
        code.push(instruction(EXIT, 0, 0, 0));
        code
    }

    fn load(&self) -> Result<OwnedFd> {
        #[repr(C)]
        struct Attributes {
            kind: u32,
            count: u32,
            instructions: u64,
            license: u64,
            log_level: u32,
            log_size: u32,
            log: u64,
        }
        let code = self.instructions();
        let license = c"GPL";
        let attributes = Attributes {
            kind: SCHED_CLS,
            count: code.len() as u32,
            instructions: code.as_ptr().expose_provenance() as u64,
            license: license.as_ptr().expose_provenance() as u64,
            log_level: 0,
            log_size: 0,
            log: 0,
        };
        let fd = bpf(PROG_LOAD, &attributes).context("load a foreign program")?;
        // SAFETY: the kernel has just given it to us.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }

    /// Puts it on TC ingress or egress of an interface.
    ///
    /// # Errors
    ///
    /// Where the kernel has no such hook, or the interface is not there.
    pub fn attach(
        &self,
        netns: &Netns,
        interface: &str,
        ingress: bool,
        hook: Hook,
        pins: &Path,
    ) -> Result<Attached> {
        let program = self.load()?;
        let Hook::Clsact(preference) = hook else {
            let link = netns.enter(|| link(&program, interface, ingress, hook))?;
            return Ok(Attached {
                _program: program,
                _link: Some(link),
                pin: None,
                filter: None,
            });
        };
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        fs::create_dir_all(pins)?;
        let pin = pins.join(format!("foreign-{number}"));
        pin_at(&program, &pin)?;
        // There may be one.
        let _there = netns
            .command("tc")
            .args(["qdisc", "add", "dev", interface, "clsact"])
            .output()?;
        let direction = if ingress { "ingress" } else { "egress" };
        let preference = preference.to_string();
        let pinned = pin.display().to_string();
        let filter = [
            "dev",
            interface,
            direction,
            "protocol",
            "all",
            "pref",
            &preference,
        ];
        let add = [
            &["filter", "add"][..],
            &filter,
            &["bpf", "da", "pinned", &pinned],
        ]
        .concat();
        netns.script("tc", &add, "")?;
        let delete: Vec<_> = ["filter", "del"]
            .iter()
            .chain(&filter)
            .map(|word| (*word).to_owned())
            .collect();
        Ok(Attached {
            _program: program,
            _link: None,
            pin: Some(pin),
            filter: Some((netns.inside()?, delete)),
        })
    }
}

fn pin_at(program: &OwnedFd, path: &Path) -> Result<()> {
    #[repr(C)]
    struct Attributes {
        path: u64,
        fd: u32,
        flags: u32,
    }
    let name = std::ffi::CString::new(path.as_os_str().as_encoded_bytes())?;
    let attributes = Attributes {
        path: name.as_ptr().expose_provenance() as u64,
        fd: program.as_raw_fd().cast_unsigned(),
        flags: 0,
    };
    bpf(OBJ_PIN, &attributes).with_context(|| path.display().to_string())?;
    Ok(())
}

fn link(program: &OwnedFd, interface: &str, ingress: bool, hook: Hook) -> Result<OwnedFd> {
    #[repr(C)]
    struct Attributes {
        program: u32,
        interface: u32,
        kind: u32,
        flags: u32,
        relative: u32,
        _pad: u32,
        revision: u64,
    }
    let attributes = Attributes {
        program: program.as_raw_fd().cast_unsigned(),
        interface: if_nametoindex(interface)?,
        kind: if ingress { TCX_INGRESS } else { TCX_EGRESS },
        flags: if hook == Hook::TcxFirst {
            BEFORE
        } else {
            AFTER
        },
        relative: 0,
        _pad: 0,
        revision: 0,
    };
    let fd = bpf(LINK_CREATE, &attributes).context("TCX")?;
    // SAFETY: the kernel has just given it to us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn bpf<A>(command: libc::c_long, attributes: &A) -> io::Result<libc::c_int> {
    // SAFETY: the attributes are what the command reads, and as long as is said.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_ref(attributes),
            size_of::<A>(),
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result as libc::c_int)
    }
}
