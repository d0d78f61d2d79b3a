//! Portcullis's compiler: from the cluster's objects to ordered table operations.
//!
//! ```text
//! Change ─> store ─> rule lists ─> pages and atoms ─> identities ─> operations (Plan)
//! ```
//!
//! Pure and synchronous: no clock, no input or output, no Kubernetes library. [`Compiler`] keeps what
//! the kernel's tables hold once every operation handed out so far has been executed, and plans the
//! way from there to what the changed cluster asks for. [`oracle`] says naively what the right
//! verdict is, and [`tables`] executes operations in memory and judges as the programs do; tests
//! hold the compiler against both.
//!
//! Invariant of a [`Plan`]: after each of its operations, every verdict is either the one from before
//! the plan or the one from after it.

mod addresses;
mod adopt;
mod atom;
mod compiler;
mod garbage;
mod identity;
mod limits;
pub mod model;
pub mod op;
pub mod oracle;
mod page;
mod prefix;
mod range;
mod rules;
mod slot;
mod store;
pub mod synthetic;
pub mod tables;
mod view;

pub use compiler::{Compiler, Plan};
pub use limits::{Limits, Problem};
pub use view::{
    DirectionView, EndpointView, Explanation, IdentityView, PolicyCounts, PolicyStatus, PolicyView,
};
