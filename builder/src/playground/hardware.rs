//! The processes of a playground: QEMU for each machine, and QEMU without a machine for the way out.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Child;

use anyhow::{Context, Result};

use super::{API_PORT, GATEWAY, Machine, Playground, switch};
use crate::qemu::{self, Accelerator, Disk, Firmware, Format, Hardware};
use crate::tool::Tool;

/// Files of a machine, within its folder.
pub(super) const DISK: &str = "disk.qcow2";
pub(super) const VARIABLES: &str = "ovmf-vars.fd";
pub(super) const NODE_CONFIG: &str = "node-config.json";
pub(super) const META_DATA: &str = "meta-data.json";
/// What the gateway says.
pub(super) const GATEWAY_LOG: &str = "gateway.log";

/// Starts a machine. The current folder must be the playground's.
pub(super) fn start_machine(
    machine: &Machine,
    accelerator: Accelerator,
    firmware: &Firmware,
) -> Result<Child> {
    let folder = machine.folder();
    let variables = folder.join(VARIABLES);
    let disks = [Disk::of(&folder.join(DISK), Format::Qcow2)];
    let hardware = Hardware {
        accelerator,
        memory_mb: machine.memory_mb,
        cpus: machine.cpus,
        firmware: Some((firmware, &variables)),
        disks: &disks,
    };
    let mac = machine.mac().map(|byte| format!("{byte:02x}")).join(":");
    let file = |name: &str| folder.join(name).display().to_string();
    let more = [
        "-name".to_owned(),
        machine.name.clone(),
        "-uuid".to_owned(),
        machine.uuid.clone(),
        "-device".to_owned(),
        format!("virtio-net-pci,netdev=cable,mac={mac},romfile="),
        "-fw_cfg".to_owned(),
        format!("name=opt/dev.kimage/node-config,file={}", file(NODE_CONFIG)),
        "-fw_cfg".to_owned(),
        format!("name=opt/dev.kimage/meta-data,file={}", file(META_DATA)),
        "-serial".to_owned(),
        format!("file:{}", machine.console().display()),
    ];
    let tool = qemu::tool()?
        .args(hardware.arguments())
        .args(switch::cable("cable", &machine.socket()))
        .args(qemu::kernel_arguments(accelerator, ""))
        .args(more);
    spawn(tool, &machine.log())
}

/// Starts the gateway: QEMU's user network at the switch, with a way in to each API server.
pub(super) fn start_gateway(playground: &Playground) -> Result<Child> {
    let mut user = format!("user,id=outside,ipv6=off,net={GATEWAY}/24,host={GATEWAY}");
    for machine in &playground.machines {
        if let Some(port) = machine.forward {
            user.push_str(&format!(
                ",hostfwd=tcp:127.0.0.1:{port}-{}:{API_PORT}",
                machine.address
            ));
        }
    }
    let hub = |backend: &str| {
        [
            "-netdev".to_owned(),
            format!("hubport,id=hub-{backend},hubid=0,netdev={backend}"),
        ]
    };
    let fixed = [
        "-machine",
        "none",
        "-nodefaults",
        "-no-user-config",
        "-display",
        "none",
    ];
    let tool = qemu::tool()?
        .args(fixed)
        .args(["-netdev".to_owned(), user])
        .args(switch::cable("cable", &switch::gateway()))
        .args(hub("outside"))
        .args(hub("cable"));
    spawn(tool, Path::new(GATEWAY_LOG))
}

fn spawn(tool: Tool, log: &Path) -> Result<Child> {
    let line = tool.line();
    let open = || File::options().create(true).append(true).open(log);
    let files: PathBuf = log.to_owned();
    let (output, errors) = open()
        .and_then(|output| Ok((output, open()?)))
        .with_context(|| format!("open {}", files.display()))?;
    let mut command = tool.into_command();
    command.stdout(output).stderr(errors);
    command.spawn().with_context(|| format!("start `{line}`"))
}
