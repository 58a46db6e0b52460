//! Steps of a member of a separate etcd.

use kimage_roles::status::Phase;

use super::{Step, files, step};
use crate::action::Action;
use crate::control_plane::identity::etcd_certificates;
use crate::failure::Failure;
use crate::metadata::Machine;

pub(super) fn steps(machine: &Machine) -> Result<Vec<Step>, Failure> {
    let mut written = files::hosts(machine);
    if let Some(secrets) = &machine.config.secrets {
        written.extend(files::authorities(secrets)?);
    }
    Ok(vec![
        step(
            "host-name",
            Phase::Configure,
            Action::NameHost(machine.name.clone()),
        ),
        step("files", Phase::Configure, Action::Write(written)),
        step(
            "certificates",
            Phase::Configure,
            Action::Issue(etcd_certificates(&machine.node()).into()),
        ),
        step("etcd", Phase::Etcd, Action::FormEtcd),
    ])
}
