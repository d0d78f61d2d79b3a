//! The stream of drop events.

use std::io;

use aya::Ebpf;
use aya::maps::RingBuf;
use policy_common::event::Event;
use policy_common::map;
use tokio::io::unix::AsyncFd;

use super::error::LoadError;
use super::load::{Data, take_as};

/// Drop events, in the order in which the programs wrote them.
pub struct EventStream {
    ring: AsyncFd<RingBuf<Data>>,
}

pub(super) fn stream(ebpf: &mut Ebpf) -> Result<EventStream, LoadError> {
    let ring: RingBuf<Data> = take_as(ebpf, map::EVENTS.name)?;
    // SAFETY: the ring owns its descriptor, keeps it open, and always gives the same one.
    let ring =
        unsafe { AsyncFd::register(ring) }.map_err(|error| LoadError::Events(error.into()))?;
    Ok(EventStream { ring })
}

impl EventStream {
    /// The next event; waits for it. Cancel-safe.
    ///
    /// # Errors
    ///
    /// When the ring buffer cannot be polled, or holds a record of another size than `Event`.
    pub async fn next(&mut self) -> io::Result<Event> {
        loop {
            if let Some(record) = self.ring.get_mut().next() {
                return bytemuck::try_pod_read_unaligned(&record).map_err(|error| {
                    io::Error::new(
                        io::ErrorKind::InvalidData,
                        format!("event of {} bytes: {error}", record.len()),
                    )
                });
            }
            let mut ready = self.ring.readable_mut().await?;
            ready.clear_ready();
        }
    }
}
