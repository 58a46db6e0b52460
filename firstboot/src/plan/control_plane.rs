//! Steps of a control plane. Nothing here goes through the balancer.

use kimage_roles::status::Phase;

use super::{Step, files, is_stacked, step};
use crate::action::Action;
use crate::control_plane::identity::{certificates, kubeconfigs};
use crate::failure::Failure;
use crate::metadata::Machine;

pub(super) fn steps(machine: &Machine) -> Result<Vec<Step>, Failure> {
    let (config, node) = (&machine.config, machine.node());
    let etcd = if is_stacked(config) {
        Action::FormEtcd
    } else {
        Action::FindEtcd
    };
    let mut steps = files::with_authorities(machine, certificates(config, &node))?;
    steps.extend([
        files::metadata_wall(machine),
        step(
            "kubeconfigs",
            Phase::Configure,
            Action::Kubeconfigs(kubeconfigs(config, &node)),
        ),
        step("etcd", Phase::Etcd, etcd),
        step(
            "control-plane-files",
            Phase::ControlPlane,
            Action::ConfigureControlPlane,
        ),
        step(
            "control-plane",
            Phase::ControlPlane,
            Action::Start(vec!["kube-apiserver.service"]),
        ),
        step("api-server", Phase::ControlPlane, Action::AwaitApiServer),
        // Not earlier: they give up on an API server that needs longer than ten seconds and begin anew, and on a small
        // machine that is what keeps it from getting ready.
        step(
            "controllers",
            Phase::ControlPlane,
            Action::Start(vec!["kube-controller-manager.service", "kube-scheduler.service"]),
        ),
        step("objects", Phase::ControlPlane, Action::ApplyObjects),
        step("node", Phase::Node, Action::RegisterNode),
        step("kubelet-files", Phase::Node, Action::ConfigureKubelet),
        step("kubelet", Phase::Node, Action::Start(vec!["kubelet.service"])),
        step("pod-network", Phase::Node, Action::ConfigurePodNetwork),
        step("mark-control-plane", Phase::Node, Action::MarkControlPlane),
        step("node-ready", Phase::Node, Action::AwaitNode),
    ]);
    Ok(steps)
}
