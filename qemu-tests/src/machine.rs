//! One virtual machine: what it is made of, and its life. A machine ends with the value that stands for it.

use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use kimage_builder::qemu::{self, Accelerator, Hardware};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::accelerator;
use crate::clock::Clock;
use crate::console::Console;
use crate::control::Control;
use crate::namespaces::network::{Network, Tap};
use crate::processes::start_for_good;

pub use kimage_builder::qemu::{Bus, Cache, Disk, Firmware, Format};

/// QEMU opens its control socket before anything slow.
const START: Duration = Duration::from_secs(20);
/// Between two looks at a child that is about to end; the standard library has no wait with a deadline.
const POLL: Duration = Duration::from_millis(5);

/// What a machine is made of.
pub struct Blueprint {
    memory_mb: u32,
    cpus: u32,
    boot: Boot,
    disks: Vec<Disk>,
    reboots: bool,
    network: Option<String>,
    clock: Clock,
    arguments: Vec<String>,
}

enum Boot {
    /// QEMU loads the kernel itself.
    Direct {
        kernel: PathBuf,
        initrd: PathBuf,
        command_line: String,
    },
    /// UEFI with this firmware and this variable store, which the machine writes to.
    Firmware {
        firmware: Firmware,
        vars: PathBuf,
        /// What a hypervisor adds to the kernel's command line.
        more: String,
    },
}

impl Blueprint {
    /// A machine whose kernel, initrd and command line QEMU loads itself.
    pub fn direct(kernel: &Path, initrd: &Path, command_line: &str) -> Self {
        let command_line = command_line.to_owned();
        Self::new(Boot::Direct {
            kernel: kernel.into(),
            initrd: initrd.into(),
            command_line,
        })
    }

    /// A machine with UEFI firmware, which boots from its disks. `vars` is the machine's own variable store.
    pub fn firmware(firmware: Firmware, vars: &Path) -> Self {
        Self::new(Boot::Firmware {
            firmware,
            vars: vars.into(),
            more: String::new(),
        })
    }

    /// Adds to the command line of a kernel that firmware starts, the way a hypervisor may.
    #[must_use]
    pub fn kernel_arguments(mut self, words: &str) -> Self {
        if let Boot::Firmware { more, .. } = &mut self.boot {
            words.clone_into(more);
        }
        self
    }

    fn new(boot: Boot) -> Self {
        Self {
            memory_mb: 1024,
            cpus: 2,
            boot,
            disks: Vec::new(),
            reboots: false,
            network: None,
            clock: Clock::wall(),
            arguments: Vec::new(),
        }
    }

    /// Memory in MiB; 1024 unless told.
    #[must_use]
    pub fn memory_mb(mut self, memory_mb: u32) -> Self {
        self.memory_mb = memory_mb;
        self
    }

    /// Processors; 2 unless told.
    #[must_use]
    pub fn cpus(mut self, cpus: u32) -> Self {
        self.cpus = cpus;
        self
    }

    /// Adds a disk. The first one is booted from.
    #[must_use]
    pub fn disk(mut self, disk: Disk) -> Self {
        self.disks.push(disk);
        self
    }

    /// Lets the guest reboot; otherwise its reboot is its end.
    #[must_use]
    pub fn reboots(mut self) -> Self {
        self.reboots = true;
        self
    }

    /// Plugs one network port in at `tap`, and lets QEMU live in the network that `tap` is in.
    #[must_use]
    pub fn connected(mut self, tap: &Tap) -> Self {
        self.network = Some(tap.network().to_owned());
        let netdev = format!("tap,id=port,ifname={},script=no,downscript=no", tap.name());
        let device = format!("virtio-net-pci,netdev=port,mac={}", tap.hardware_address());
        self.arguments(["-netdev", &netdev, "-device", &device])
    }

    /// Lets it live by `clock`; by the wall's unless told.
    #[must_use]
    pub fn clock(mut self, clock: Clock) -> Self {
        self.clock = clock;
        self
    }

    /// Adds arguments of QEMU: network, SMBIOS strings, more ports.
    #[must_use]
    pub fn arguments<A: Into<String>>(mut self, arguments: impl IntoIterator<Item = A>) -> Self {
        self.arguments.extend(arguments.into_iter().map(Into::into));
        self
    }

    /// Switches the machine on.
    pub fn start(self) -> Result<Machine> {
        let folder = tempfile::tempdir().context("make a folder for the machine")?;
        let socket = folder.path().join("control");
        // QEMU connects to us: so there is no moment at which its socket is not there yet.
        let listener = UnixListener::bind(&socket).context("open the control socket")?;
        let arguments = self.command_line(accelerator::chosen()?, &socket);
        let mut child = spawn(&arguments, self.network.as_deref(), &self.clock)?;
        let (output, errors) = (child.stdout.take(), child.stderr.take());
        let console = Console::attach(output.context("no console")?, child.stdin.take());
        let errors = Console::attach(errors.context("no standard error")?, None);
        let mut machine = Machine {
            child: Process(child),
            switched_on: Instant::now(),
            console,
            errors,
            control: None,
            _folder: folder,
        };
        machine.control = Some(
            machine
                .accept(&listener)
                .with_context(|| format!("start `{}`", arguments.join(" ")))?,
        );
        Ok(machine)
    }

    fn command_line(&self, accelerator: Accelerator, socket: &Path) -> Vec<String> {
        let firmware = match &self.boot {
            Boot::Firmware { firmware, vars, .. } => Some((firmware, vars.as_path())),
            Boot::Direct { .. } => None,
        };
        let hardware = Hardware {
            accelerator,
            memory_mb: self.memory_mb,
            cpus: self.cpus,
            firmware,
            disks: &self.disks,
        };
        let mut words = hardware.arguments();
        let fixed =
            "-chardev stdio,id=serial,signal=off -serial chardev:serial -mon chardev=control,mode=control";
        words.extend(fixed.split_ascii_whitespace().map(Into::into));
        let mut pair = |option: &str, value: String| words.extend([option.to_owned(), value]);
        pair("-chardev", format!("socket,id=control,path={}", socket.display()));
        if let Boot::Direct {
            kernel,
            initrd,
            command_line,
        } = &self.boot
        {
            pair("-kernel", kernel.display().to_string());
            pair("-initrd", initrd.display().to_string());
            pair("-append", command_line.clone());
        }
        if let Boot::Firmware { more, .. } = &self.boot {
            words.extend(qemu::kernel_arguments(accelerator, more));
        }
        if !self.reboots {
            words.push("-no-reboot".into());
        }
        words.extend(self.arguments.iter().cloned());
        words
    }
}

/// A machine that is switched on. Dropping it pulls the plug; so does the end of this process.
pub struct Machine {
    child: Process,
    switched_on: Instant,
    console: Console,
    errors: Console,
    control: Option<Control>,
    _folder: TempDir,
}

impl Machine {
    /// Its serial console.
    pub fn console(&mut self) -> &mut Console {
        &mut self.console
    }

    /// When it was switched on.
    pub fn switched_on(&self) -> Instant {
        self.switched_on
    }

    /// The id of QEMU's process.
    pub fn process_id(&self) -> u32 {
        self.child.0.id()
    }

    /// Its control socket, for what has no method here.
    pub fn control(&mut self) -> Result<&mut Control> {
        self.control.as_mut().context("the machine has no control socket")
    }

    /// `running`, `paused`, `shutdown`, `guest-panicked`, ...
    pub fn status(&mut self) -> Result<String> {
        let status = self.control()?.execute("query-status", json!({}))?;
        status["status"]
            .as_str()
            .map(str::to_owned)
            .context("query-status without a status")
    }

    /// Presses the reset button.
    pub fn reset(&mut self) -> Result<()> {
        self.control()?.execute("system_reset", json!({})).map(drop)
    }

    /// Presses the power button, which asks the guest to shut down.
    pub fn press_power(&mut self) -> Result<()> {
        self.control()?.execute("system_powerdown", json!({})).map(drop)
    }

    /// Ends QEMU in an orderly way, whatever the guest does: its disk files are complete afterwards.
    pub fn quit(mut self) -> Result<()> {
        let _: Value = self.control()?.execute("quit", json!({}))?;
        self.wait_for_end(START).map(drop)
    }

    /// Cuts the power: QEMU is killed where it stands, and what the guest has not flushed may be lost.
    pub fn cut_power(self) {
        drop(self);
    }

    /// Waits until the machine is off.
    pub fn wait_for_end(&mut self, deadline: Duration) -> Result<ExitStatus> {
        let end = Instant::now() + deadline;
        loop {
            if let Some(status) = self.child.0.try_wait().context("wait for QEMU")? {
                return Ok(status);
            }
            if Instant::now() > end {
                let text = self.console.transcript();
                bail!(
                    "the machine still runs after {deadline:?}; its console ends with:\n{}",
                    crate::console::tail(text.as_bytes())
                );
            }
            thread::sleep(POLL);
        }
    }

    fn accept(&mut self, listener: &UnixListener) -> Result<Control> {
        listener
            .set_nonblocking(true)
            .context("prepare the control socket")?;
        let end = Instant::now() + START;
        loop {
            match listener.accept() {
                Ok((stream, _)) => {
                    stream
                        .set_nonblocking(false)
                        .context("prepare the control connection")?;
                    return Control::connect(stream);
                }
                Err(error) if error.kind() != std::io::ErrorKind::WouldBlock => {
                    return Err(error).context("accept the control connection");
                }
                Err(_) => {}
            }
            if let Some(status) = self.child.0.try_wait().context("wait for QEMU")? {
                bail!("QEMU ended ({status}):\n{}", self.errors.transcript());
            }
            if Instant::now() > end {
                bail!("QEMU did not connect within {START:?}");
            }
            thread::sleep(POLL);
        }
    }
}

/// A child in its own process group, which goes with it.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        if let Ok(None) = self.0.try_wait()
            && let Ok(group) = i32::try_from(self.0.id())
        {
            #[expect(unsafe_code, reason = "the standard library kills single processes only")]
            // SAFETY: no memory is involved. The group is the child's own, and the child is not yet reaped.
            unsafe {
                libc::kill(-group, libc::SIGKILL);
            }
        }
        let _ = self.0.wait();
    }
}

/// Starts QEMU with pipes on all its standard streams, in `network` or in ours, and by `clock`.
fn spawn(arguments: &[String], network: Option<&str>, clock: &Clock) -> Result<Child> {
    let tool = qemu::tool()?.args(arguments);
    let line = tool.line();
    let mut command = tool.into_command();
    command
        .envs(clock.environment()?)
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    if let Some(network) = network {
        let namespace = Network::open(network)?;
        #[expect(unsafe_code, reason = "the standard library enters no namespaces")]
        // SAFETY: between fork and exec there is one system call on a file that is open already, and no allocation.
        unsafe {
            command.pre_exec(move || Ok(Network::enter_opened(&namespace)?));
        }
    }
    start_for_good(command).with_context(|| format!("start `{line}`"))
}
