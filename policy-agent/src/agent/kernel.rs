//! What the engine asks of the dataplane, so that it can be tested without a kernel.

use policy_core::op::Op;

use crate::dataplane::{ApplyError, AttachError, Dataplane, Drift, Haste, NetdevProgram};

/// Executes what the engine decides.
pub trait Kernel {
    /// See [`Dataplane::apply`].
    fn apply(&mut self, op: &Op) -> Result<(), ApplyError>;
    /// See [`Dataplane::set_tunnel_ports`].
    fn set_tunnel_ports(&mut self, ports: [u16; 4]) -> Result<(), ApplyError>;
    /// See [`Dataplane::set_master`].
    fn set_master(&mut self, ifindex: u32, master: u32) -> Result<(), ApplyError>;
    /// See [`Dataplane::attach`].
    fn attach(&mut self, ifindex: u32, interface: &str, haste: Haste) -> Result<(), AttachError>;
    /// See [`Dataplane::detach`].
    fn detach(&mut self, ifindex: u32) -> Result<(), AttachError>;
    /// See [`Dataplane::attach_netdev`].
    fn attach_netdev(
        &mut self,
        ifindex: u32,
        interface: &str,
        program: NetdevProgram,
        haste: Haste,
    ) -> Result<(), AttachError>;
    /// See [`Dataplane::detach_netdev`].
    fn detach_netdev(&mut self, ifindex: u32) -> Result<(), AttachError>;
    /// See [`Dataplane::prune`].
    fn prune(&mut self) -> Result<Vec<u32>, AttachError>;
    /// See [`Dataplane::verify`].
    fn verify(&mut self) -> Vec<Drift>;
}

impl Kernel for Dataplane {
    fn apply(&mut self, op: &Op) -> Result<(), ApplyError> {
        self.apply(op)
    }
    fn set_tunnel_ports(&mut self, ports: [u16; 4]) -> Result<(), ApplyError> {
        self.set_tunnel_ports(ports)
    }
    fn set_master(&mut self, ifindex: u32, master: u32) -> Result<(), ApplyError> {
        self.set_master(ifindex, master)
    }
    fn attach(&mut self, ifindex: u32, interface: &str, haste: Haste) -> Result<(), AttachError> {
        self.attach(ifindex, interface, haste)
    }
    fn detach(&mut self, ifindex: u32) -> Result<(), AttachError> {
        self.detach(ifindex)
    }
    fn attach_netdev(
        &mut self,
        ifindex: u32,
        interface: &str,
        program: NetdevProgram,
        haste: Haste,
    ) -> Result<(), AttachError> {
        self.attach_netdev(ifindex, interface, program, haste)
    }
    fn detach_netdev(&mut self, ifindex: u32) -> Result<(), AttachError> {
        self.detach_netdev(ifindex)
    }
    fn prune(&mut self) -> Result<Vec<u32>, AttachError> {
        self.prune()
    }
    fn verify(&mut self) -> Vec<Drift> {
        self.verify()
    }
}
