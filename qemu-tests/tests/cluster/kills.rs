//! First boot is killed, or the power cut, at every step of every plan; what comes after it completes.
//! 52 boots of three machines: three minutes on a busy host.

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use kimage_qemu_tests::cluster::machine::Machine;
use kimage_qemu_tests::cluster::{Cluster, Shape};
use kimage_qemu_tests::images::{command, finish};
use kimage_qemu_tests::namespaces::machine::{Contained, Service};
use kimage_roles::status::Phase;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use serde_json::Value;

use super::{FORMATION, SOON};

pub(crate) const FIRST_BOOT: [&str; 2] = ["/usr/lib/kimage/kimage-firstboot", "boot"];
/// A step may pass unseen when the host is busy; the next boot passes it again.
const TRIES: u32 = 20;

/// Where in a step first boot is stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Moment {
    /// The ledger says that the step is under way.
    During,
    /// The ledger says that it is done.
    After,
}

/// What stops it.
#[derive(Debug, Clone, Copy)]
enum Blow {
    /// SIGKILL of first boot; systemd starts it again.
    Kill,
    /// The end of the whole machine, which is switched on again.
    PowerCut,
}

/// Names of the steps that the machine's plan has, as soon as the machine can say.
fn steps(machine: &Contained) -> Result<Vec<String>> {
    let [program, boot] = FIRST_BOOT;
    let end = Instant::now() + FORMATION;
    let plan = loop {
        match machine.run(&[program, boot, "--dry-run"]) {
            Ok(plan) => break plan,
            Err(error) if Instant::now() > end => return Err(error),
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    };
    // `  1. configure      host-name                call the host w1`, below a line of heading.
    let names = plan.lines().skip(1).map(|line| line.split_whitespace().nth(2));
    let names: Option<Vec<String>> = names.map(|name| name.map(str::to_owned)).collect();
    names.with_context(|| format!("a plan: {plan}"))
}

/// Watches a machine's ledger: every change of it wakes this thread before the machine comes to its next step.
struct Ledger {
    path: PathBuf,
    events: OwnedFd,
}

/// The ledger as the disk has it at one moment.
struct Page {
    /// Every write makes a new file: its number, which may come again, and its time.
    file: (u64, i64, i64),
    under_way: Option<String>,
}

impl Ledger {
    fn of(machine: &Contained) -> Result<Self> {
        let folder = machine.var().join("lib/kimage");
        std::fs::create_dir_all(&folder)?;
        let events = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
        inotify::add_watch(&events, &folder, WatchFlags::MOVED_TO)?;
        Ok(Self {
            path: folder.join("ledger.json"),
            events,
        })
    }

    /// Waits a while for a change.
    fn wait(&self) -> Result<()> {
        let mut waiting = [PollFd::new(&self.events, PollFlags::IN)];
        poll(&mut waiting, Some(&Timespec::try_from(Duration::from_secs(1))?))?;
        while rustix::io::read(&self.events, &mut [0; 4096]).is_ok() {}
        Ok(())
    }

    fn read(&self) -> Option<Page> {
        let mut file = File::open(&self.path).ok()?;
        let mut text = String::new();
        file.read_to_string(&mut text).ok()?;
        let ledger: Value = serde_json::from_str(&text).ok()?;
        let known = file.metadata().ok()?;
        Some(Page {
            file: (known.ino(), known.mtime(), known.mtime_nsec()),
            under_way: ledger["underWay"].as_str().map(str::to_owned),
        })
    }
}

/// Gives this thread the processor whenever it has something to do: the steps that it is to meet are short.
fn hurry() -> Result<()> {
    let thread = rustix::thread::gettid().as_raw_nonzero().to_string();
    finish(command("chrt").args(["--fifo", "--reset-on-fork", "--pid", "1", &thread])).map(drop)
}

/// Stops a machine's first boot at one moment after the other.
struct Executioner<'a> {
    machine: &'a mut Contained,
    steps: Vec<String>,
    blow: Blow,
    ledger: Ledger,
    /// What the last stopped boot left.
    left: Option<(u64, i64, i64)>,
    blows: u32,
}

impl<'a> Executioner<'a> {
    /// Switches the machine on.
    fn new(machine: &'a mut Contained, blow: Blow) -> Result<Self> {
        let ledger = Ledger::of(machine)?;
        machine.start()?;
        let steps = steps(machine)?;
        Ok(Self {
            machine,
            steps,
            blow,
            ledger,
            left: None,
            blows: 0,
        })
    }

    /// Strikes at `moment` of the step at `wanted`, in this boot or in one after it.
    fn strike(&mut self, wanted: usize, moment: Moment) -> Result<()> {
        for _ in 0..TRIES {
            let struck = self.strike_once(wanted, moment)?;
            self.left = self.ledger.read().map(|page| page.file);
            if let Blow::PowerCut = self.blow {
                self.machine.start()?;
            }
            if struck {
                return Ok(());
            }
        }
        bail!("{} passes too fast to be met {moment:?}", self.steps[wanted])
    }

    /// `false` when the moment passed unseen; then first boot is stopped a little later.
    fn strike_once(&mut self, wanted: usize, moment: Moment) -> Result<bool> {
        let end = Instant::now() + FORMATION;
        let (mut seen, mut victim) = (false, None);
        while Instant::now() < end {
            if victim.is_none() && matches!(self.blow, Blow::Kill) {
                victim = self.machine.service(&FIRST_BOOT)?;
                if victim.is_none() {
                    std::thread::sleep(Duration::from_millis(2));
                    continue;
                }
            }
            let page = self.ledger.read().filter(|page| Some(page.file) != self.left);
            let Some(page) = page else {
                self.ledger.wait()?;
                continue;
            };
            let name = page.under_way.as_deref();
            let here = name.and_then(|name| self.steps.iter().position(|step| step == name));
            let due = match moment {
                Moment::During => here == Some(wanted),
                Moment::After => seen && here != Some(wanted),
            };
            seen |= here == Some(wanted);
            if due || here.is_some_and(|here| here > wanted) {
                return Ok(self.stop(victim)? && due);
            }
            self.ledger.wait()?;
        }
        let (step, name) = (&self.steps[wanted], self.machine.name());
        bail!("{moment:?} {step} on {name}\n{}", self.machine.journal_tail())
    }

    /// `false` when first boot has just ended by itself; then it begins anew.
    fn stop(&mut self, victim: Option<Service>) -> Result<bool> {
        match self.blow {
            Blow::PowerCut => self.machine.kill()?,
            Blow::Kill => {
                if !victim.is_some_and(Service::kill) {
                    self.machine.repeat_first_boot()?;
                    return Ok(false);
                }
            }
        }
        self.blows += 1;
        Ok(true)
    }

    /// Strikes at each of `moments` of every step, and waits until the machine is in service after all.
    fn strike_everywhere(mut self, moments: &[Moment]) -> Result<()> {
        let began = Instant::now();
        for wanted in 0..self.steps.len() {
            for moment in moments {
                self.strike(wanted, *moment)?;
            }
        }
        self.machine.wait_for(Phase::InService, FORMATION)?;
        println!(
            "{}: {:?} {} times at {moments:?} of {} steps: in service after {:.1?}",
            self.machine.name(),
            self.blow,
            self.blows,
            self.steps.len(),
            began.elapsed()
        );
        Ok(())
    }
}

fn strike(cluster: &mut Cluster<Contained>, name: &str, blow: Blow, moments: &[Moment]) {
    let executioner = Executioner::new(cluster.machine(name), blow).unwrap();
    executioner.strike_everywhere(moments).unwrap();
}

#[test]
fn first_boot_completes_when_it_is_killed_at_every_step_and_the_power_cut_at_every_step() {
    let mut cluster = Cluster::<Contained>::new(Shape {
        etcd: 0,
        control_planes: 1,
        workers: 2,
    })
    .unwrap();
    hurry().unwrap();
    let both = [Moment::During, Moment::After];
    strike(&mut cluster, "cp1", Blow::Kill, &both);
    let members = cluster.etcd_member_ids().unwrap();
    let writer = cluster.start_writer().unwrap();
    strike(&mut cluster, "w1", Blow::Kill, &both);
    strike(&mut cluster, "w2", Blow::PowerCut, &[Moment::After]);
    let record = writer.finish().unwrap();
    println!("{record}");
    println!("power cut for the control plane");
    cluster.machine("cp1").kill().unwrap();
    cluster.machine("cp1").start().unwrap();
    cluster.wait_for_service(FORMATION).unwrap();
    cluster.wait_for_ready_nodes(SOON).unwrap();
    assert_eq!(cluster.etcd_member_ids().unwrap(), members);
    assert_eq!(cluster.lost(&record).unwrap(), Vec::<String>::new());
}
