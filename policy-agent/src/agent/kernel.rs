//! What the engine asks of the dataplane, so that it can be tested without a kernel.

use policy_core::op::Op;

use crate::dataplane::{ApplyError, AttachError, Dataplane, Drift};

/// Executes what the engine decides.
pub trait Kernel {
    /// See [`Dataplane::apply`].
    fn apply(&mut self, op: &Op) -> Result<(), ApplyError>;
    /// See [`Dataplane::attach`].
    fn attach(&mut self, ifindex: u32, interface: &str) -> Result<(), AttachError>;
    /// See [`Dataplane::detach`].
    fn detach(&mut self, ifindex: u32) -> Result<(), AttachError>;
    /// See [`Dataplane::prune`].
    fn prune(&mut self) -> Result<Vec<u32>, AttachError>;
    /// See [`Dataplane::verify`].
    fn verify(&mut self) -> Vec<Drift>;
}

impl Kernel for Dataplane {
    fn apply(&mut self, op: &Op) -> Result<(), ApplyError> {
        self.apply(op)
    }
    fn attach(&mut self, ifindex: u32, interface: &str) -> Result<(), AttachError> {
        self.attach(ifindex, interface)
    }
    fn detach(&mut self, ifindex: u32) -> Result<(), AttachError> {
        self.detach(ifindex)
    }
    fn prune(&mut self) -> Result<Vec<u32>, AttachError> {
        self.prune()
    }
    fn verify(&mut self) -> Vec<Drift> {
        self.verify()
    }
}
