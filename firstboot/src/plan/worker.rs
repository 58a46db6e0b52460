//! Steps of a worker. Everything goes through the balancer.

use kimage_roles::status::Phase;

use super::{Step, files, step};
use crate::action::Action;
use crate::metadata::Machine;

pub(super) fn steps(machine: &Machine) -> Vec<Step> {
    vec![
        step(
            "host-name",
            Phase::Configure,
            Action::NameHost(machine.name.clone()),
        ),
        step("files", Phase::Configure, Action::Write(files::hosts(machine))),
        files::metadata_wall(machine),
        step("join", Phase::Join, Action::Join),
        step(
            "kubelet-certificate",
            Phase::Join,
            Action::ObtainKubeletCertificate,
        ),
        step("node", Phase::Join, Action::RegisterNode),
        step("kubelet-files", Phase::Join, Action::ConfigureKubelet),
        step("kubelet", Phase::Join, Action::Start(vec!["kubelet.service"])),
        step("pod-network", Phase::Node, Action::ConfigurePodNetwork),
        step("node-ready", Phase::Node, Action::AwaitNode),
    ]
}
