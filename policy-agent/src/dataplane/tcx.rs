//! What hangs at an interface by TCX, by the kernel's ids alone: to look at the programs themselves would
//! take `CAP_SYS_ADMIN`, which the agent goes without.

use std::io;

use aya::programs::TcAttachType;

/// Programs at one hook, which is also the kernel's limit (`BPF_MPROG_MAX`).
const MOST: usize = 64;

/// `union bpf_attr` for `BPF_PROG_QUERY` (`linux/bpf.h`).
#[repr(C)]
#[derive(Default)]
struct QueryAttr {
    target_ifindex: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    prog_ids: u64,
    prog_cnt: u32,
    _pad: u32,
    prog_attach_flags: u64,
    link_ids: u64,
    link_attach_flags: u64,
    revision: u64,
}

/// Ids of the programs at an interface of this network namespace, in the order in which they see packets.
///
/// # Errors
///
/// When the kernel refuses; `ENODEV` when the interface is gone.
pub(super) fn programs(ifindex: u32, attach_type: TcAttachType) -> io::Result<Vec<u32>> {
    const BPF_PROG_QUERY: libc::c_long = 16;
    const BPF_TCX_INGRESS: u32 = 46;
    const BPF_TCX_EGRESS: u32 = 47;
    let mut ids = [0_u32; MOST];
    let mut attr = QueryAttr {
        target_ifindex: ifindex,
        attach_type: match attach_type {
            TcAttachType::Egress => BPF_TCX_EGRESS,
            _ => BPF_TCX_INGRESS,
        },
        prog_ids: ids.as_mut_ptr() as u64,
        prog_cnt: MOST as u32,
        ..QueryAttr::default()
    };
    // SAFETY: the attributes are this command's, and the buffer holds as many ids as they say.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_PROG_QUERY,
            std::ptr::from_mut(&mut attr),
            size_of::<QueryAttr>(),
        )
    };
    if result != 0 {
        let error = io::Error::last_os_error();
        // Nothing was ever attached there.
        return match error.raw_os_error() {
            Some(libc::ENOENT) => Ok(Vec::new()),
            _ => Err(error),
        };
    }
    Ok(ids[..attr.prog_cnt as usize].to_vec())
}
