//! Portcullis's compiler.

pub mod model;
pub mod op;
