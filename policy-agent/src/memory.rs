//! Memory that was needed for a moment.

/// Gives memory that is free within this process back to the system. glibc keeps what was freed, in case
/// it is needed again; after a first load that is half of all there is.
///
/// Takes some milliseconds; does nothing with another C library.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim has no preconditions, and touches only memory that nobody uses.
    let _whether_there_was_any = unsafe { libc::malloc_trim(0) };
}
