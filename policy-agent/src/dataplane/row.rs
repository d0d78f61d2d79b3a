//! The shared types as aya wants them.

/// A key or value of a map. aya has a `Pod` trait of its own; `bytemuck::Pod` promises more.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(super) struct Row<T>(pub T);

// SAFETY: `bytemuck::Pod` means any bit pattern is valid and there is no padding; transparent.
unsafe impl<T: bytemuck::Pod> aya::Pod for Row<T> {}
