//! The clsact qdisc, which holds filters on kernels without TCX: who added it, and what is in it.
//!
//! A qdisc does not say who added it, and other programs' filters may share it. So the agent notes each
//! that it adds, as an empty directory `clsact/IFINDEX` beside the pins: bpffs holds no plain files, and
//! a pin would keep a program and its maps alive.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use aya::programs::tc::{TcError, qdisc_add_clsact};
use futures_util::TryStreamExt as _;
use netlink_packet_route::tc::{TcAttribute, TcFilterBpfOption, TcHandle, TcMessage, TcOption};
use rtnetlink::Handle;

use super::removal::unless_gone;

/// Where the notes are.
pub(super) fn notes(bpffs: &Path) -> PathBuf {
    bpffs.join("clsact")
}

/// Adds the qdisc where it is missing, and notes that it is ours.
pub(super) fn add(bpffs: &Path, ifindex: u32, interface: &str) -> Result<(), TcError> {
    match qdisc_add_clsact(interface) {
        Err(TcError::NetlinkError(error)) if error.raw_os_error() == Some(libc::EEXIST) => {
            return Ok(());
        }
        other => other?,
    }
    Ok(fs::create_dir_all(notes(bpffs).join(ifindex.to_string()))?)
}

/// Interfaces whose qdisc an agent added, and which may be gone.
pub(super) fn noted(bpffs: &Path) -> io::Result<BTreeSet<u32>> {
    let entries = match fs::read_dir(notes(bpffs)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
        other => other?,
    };
    let names = entries.map(|entry| entry.map(|entry| entry.file_name()));
    Ok(names
        .collect::<io::Result<Vec<_>>>()?
        .iter()
        .filter_map(|name| name.to_str()?.parse().ok())
        .collect())
}

/// Forgets an interface.
pub(super) fn forget(bpffs: &Path, ifindex: u32) -> io::Result<()> {
    unless_gone(fs::remove_dir(notes(bpffs).join(ifindex.to_string())))
}

/// A filter of a clsact qdisc.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Filter {
    /// Priority among filters.
    pub(super) priority: u16,
    /// Name and id of the BPF program, when it is one; names of other loaders are as they chose them.
    pub(super) program: Option<(String, u32)>,
}

/// Interfaces of this network namespace that have the qdisc.
pub(super) async fn interfaces(netlink: &Handle) -> Result<BTreeSet<u32>, rtnetlink::Error> {
    let qdiscs: Vec<TcMessage> = netlink.qdisc().get().execute().try_collect().await?;
    Ok(qdiscs
        .iter()
        .filter(|qdisc| has_kind(qdisc, "clsact"))
        .map(|qdisc| qdisc.header.index.cast_unsigned())
        .collect())
}

/// The qdisc's filters on both sides of an interface; none when the interface is gone.
pub(super) async fn filters(
    netlink: &Handle,
    ifindex: u32,
) -> Result<Vec<Filter>, rtnetlink::Error> {
    let mut requests = netlink.traffic_filter(ifindex.cast_signed());
    let mut filters = Vec::new();
    for request in [requests.get().ingress(), requests.get().egress()] {
        match request.execute().try_collect::<Vec<_>>().await {
            // Each priority is announced by a message without a handle before its filters come.
            Ok(messages) => filters.extend(messages.iter().filter_map(filter)),
            Err(error) if is_gone(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filters)
}

/// The filters at each of these interfaces, for callers that are not asynchronous.
pub(super) fn look(ifindices: Vec<u32>) -> io::Result<BTreeMap<u32, Vec<Filter>>> {
    // A thread of its own, in this thread's network namespace: a runtime does not start within another one.
    let asking = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .build()?;
        runtime.block_on(async {
            let (connection, netlink, _) = rtnetlink::new_connection()?;
            tokio::spawn(connection);
            let mut found = BTreeMap::new();
            for ifindex in ifindices {
                let there = filters(&netlink, ifindex).await;
                found.insert(ifindex, there.map_err(io::Error::other)?);
            }
            Ok(found)
        })
    });
    asking
        .join()
        .unwrap_or_else(|_| Err(io::Error::other("the thread that asks netlink failed")))
}

/// Removes the qdisc of an interface, with all that is in it; that it is gone already is no error.
pub(super) async fn remove(netlink: &Handle, ifindex: u32) -> Result<(), rtnetlink::Error> {
    let mut request = netlink.qdisc().del(ifindex.cast_signed());
    request.message_mut().header.parent = TcHandle::CLSACT;
    request.message_mut().header.handle = TcHandle {
        major: TcHandle::CLSACT.major,
        minor: 0,
    };
    match request.execute().await {
        Err(error) if is_gone(&error) => Ok(()),
        other => other,
    }
}

fn has_kind(message: &TcMessage, wanted: &str) -> bool {
    message
        .attributes
        .iter()
        .any(|attribute| matches!(attribute, TcAttribute::Kind(kind) if kind == wanted))
}

fn filter(message: &TcMessage) -> Option<Filter> {
    if message.header.handle == TcHandle::UNSPEC {
        return None;
    }
    let options = || {
        let attributes = message.attributes.iter();
        attributes.flat_map(|attribute| match attribute {
            TcAttribute::Options(options) => options.as_slice(),
            _ => &[],
        })
    };
    let name = options().find_map(|option| match option {
        TcOption::Bpf(TcFilterBpfOption::ProgName(name)) => Some(name.clone()),
        _ => None,
    });
    let id = options().find_map(|option| match option {
        TcOption::Bpf(TcFilterBpfOption::ProgId(id)) => Some(*id),
        _ => None,
    });
    Some(Filter {
        // The upper half is the priority, the lower the ethertype.
        priority: (message.header.info >> 16) as u16,
        program: name.zip(id),
    })
}

fn is_gone(error: &rtnetlink::Error) -> bool {
    matches!(error, rtnetlink::Error::NetlinkError(message)
        if [-libc::ENODEV, -libc::ENOENT, -libc::EINVAL].contains(&message.raw_code()))
}
