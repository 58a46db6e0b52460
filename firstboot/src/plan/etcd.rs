//! Steps of a member of a separate etcd.

use kimage_roles::status::Phase;

use super::{Step, files, step};
use crate::action::Action;
use crate::control_plane::identity::etcd_certificates;
use crate::failure::Failure;
use crate::metadata::Machine;

pub(super) fn steps(machine: &Machine) -> Result<Vec<Step>, Failure> {
    let mut steps = files::with_authorities(machine, etcd_certificates(&machine.node()).into())?;
    steps.push(step("etcd", Phase::Etcd, Action::FormEtcd));
    Ok(steps)
}
