//! Seeded schedules of faults against the code that forms etcd on real machines: crashes between any two effects, lost
//! answers, old reads, old lists of instances, partitions, clock jumps, replaced machines, machines told to leave, lost
//! disks. Whatever happens, no two clusters may serve and no member may go that should stay; and when the faults cease,
//! everybody must become a voting member of one cluster.

use std::time::Duration;

use self::net::{Net, Sabotage, Seat};
use super::formation::{Formation, Patience, Step};
use super::leave::Departure;
use super::world::{Mark, Means};

mod etcd;
mod lists;
mod net;

/// Steps that everybody may take, after the faults, until the cluster is whole.
const CALM_ROUNDS: usize = 400;
/// Between two of these steps. In all there is time for a list that is later than the last claim by more than clocks may
/// differ.
const CALM_STEP: Duration = Duration::from_secs(3);

/// What a schedule met, to see that the schedules meet what they are for.
#[derive(Debug, Default, Clone, Copy)]
struct Met {
    takeovers: usize,
    removals: usize,
    replaced: usize,
    left: usize,
    whole: usize,
    old_reads: usize,
    old_lists: usize,
    crashes: usize,
}

/// One schedule. An error says which promise was broken.
struct Schedule {
    net: Net,
    formations: Vec<Formation>,
    reckless: bool,
    /// Whether somebody is gone whom no inventory speaks of.
    stuck: bool,
}

impl Schedule {
    fn new(seed: u64, sabotage: Option<Sabotage>) -> Self {
        let net = Net::new(seed, sabotage);
        let mut schedule = Self {
            net,
            formations: Vec::new(),
            reckless: false,
            stuck: false,
        };
        schedule.reckless = schedule.net.random.chance(15);
        for machine in 0..schedule.net.machines.len() {
            let formation = schedule.formation(machine);
            schedule.formations.push(formation);
        }
        schedule
    }

    fn formation(&self, machine: usize) -> Formation {
        let means = self.net.list.clone().map_or(Means::Record, Means::List);
        let patience = Patience {
            takeover: Duration::from_secs(60),
            silence: Duration::from_secs(60),
        };
        Formation::new(self.net.machines[machine].identity.clone(), means, patience)
    }

    fn run(mut self) -> Result<Met, String> {
        let length = 40 + self.net.random.below(160);
        for _ in 0..length {
            self.event();
            self.checked()?;
        }
        self.calm()?;
        Ok(self.net.met)
    }

    fn checked(&mut self) -> Result<(), String> {
        self.net.look();
        self.net.violation.take().map_or(Ok(()), Err)
    }

    fn event(&mut self) {
        let standing = self.net.existing();
        let machine = standing[self.net.random.below(standing.len())];
        let pause = if self.net.random.chance(5) { 120_000 } else { 3_000 };
        self.net.time += Duration::from_millis(self.net.random.below(pause) as u64);
        self.net.sign_list();
        match self.net.random.below(100) {
            0..=2 => self.net.partition(),
            3..=5 => self.net.heal(),
            6..=8 => self.power_cut(machine),
            9 => standing.iter().for_each(|machine| self.power_cut(*machine)),
            10..=13 => self.replace(machine),
            14..=15 => self.lose_disk(machine),
            16..=17 => {
                let jump = Duration::from_secs(self.net.random.below(7200) as u64);
                self.net.machines[machine].skew += jump;
            }
            // The process of first boot dies, etcd lives on.
            18..=20 => self.formations[machine] = self.formation(machine),
            21..=22 => self.leave(machine),
            _ => drop(self.step(machine)),
        }
    }

    fn step(&mut self, machine: usize) -> Option<Step> {
        let mut seat = Seat {
            net: &mut self.net,
            me: machine,
        };
        let step = self.formations[machine].step(&mut seat);
        self.after_a_call(machine);
        step.ok()
    }

    /// Somebody tells the machine to leave and waits for a while. One that has left is destroyed, and another comes.
    fn leave(&mut self, machine: usize) {
        // Without marks nothing keeps a machine that left from coming back.
        if self.net.sabotage.is_some() {
            return;
        }
        for _ in 0..8 {
            let mut seat = Seat {
                net: &mut self.net,
                me: machine,
            };
            let left = self.formations[machine].leave(&mut seat);
            self.after_a_call(machine);
            if matches!(left, Ok(Departure::Gone)) {
                self.net.met.left += 1;
                self.succeed(machine);
                return;
            }
        }
    }

    /// Another machine comes for one that goes.
    fn succeed(&mut self, machine: usize) {
        let fresh = self.net.replace(machine);
        let formation = self.formation(fresh);
        self.formations.push(formation);
    }

    fn after_a_call(&mut self, machine: usize) {
        if std::mem::take(&mut self.net.machines[machine].crashed) {
            self.net.met.crashes += 1;
            // Half of the crashes take the machine along, half only the process.
            if self.net.random.chance(50) {
                self.power_cut(machine);
            }
            self.formations[machine] = self.formation(machine);
        }
    }

    fn power_cut(&mut self, machine: usize) {
        self.net.machines[machine].process = None;
        self.formations[machine] = self.formation(machine);
    }

    /// The instance goes for ever; another takes its place, perhaps at its address.
    fn replace(&mut self, machine: usize) {
        if !self.reckless && !self.net.can_spare(machine) {
            return;
        }
        self.net.met.replaced += 1;
        self.stuck |= !self.net.has_inventory;
        self.succeed(machine);
    }

    /// The same instance comes up with empty disks.
    fn lose_disk(&mut self, machine: usize) {
        if self.reckless || self.net.can_spare(machine) {
            let whole = self.net.random.chance(50);
            let lost = &mut self.net.machines[machine];
            lost.data = None;
            // Otherwise only etcd's own disk.
            if whole {
                lost.mark = None;
                lost.seen = None;
            }
            self.power_cut(machine);
        }
    }

    /// No more faults: everybody must get there.
    fn calm(&mut self) -> Result<(), String> {
        self.net.heal();
        self.net.faults = false;
        let mut last = Vec::new();
        for _ in 0..CALM_ROUNDS {
            last.clear();
            self.net.time += CALM_STEP;
            self.net.sign_list();
            for machine in self.net.existing() {
                if self.net.machines[machine].mark == Some(Mark::Left) {
                    self.succeed(machine);
                }
            }
            for machine in self.net.existing() {
                let step = self.step(machine);
                last.push(step);
                self.checked()?;
            }
            let settled = last.iter().all(|step| matches!(step, Some(Step::Settled(_))));
            if settled && self.net.is_whole() {
                self.net.met.whole += 1;
                return Ok(());
            }
        }
        // A schedule that was allowed to destroy a quorum must only be safe.
        if self.reckless || self.stuck {
            return Ok(());
        }
        Err(format!(
            "not whole after the faults: {last:#?}\n{}",
            self.net.describe()
        ))
    }
}

fn run(seeds: std::ops::Range<u64>, sabotage: Option<Sabotage>) -> Result<Met, String> {
    let mut sum = Met::default();
    for seed in seeds {
        let met = Schedule::new(seed, sabotage)
            .run()
            .map_err(|why| format!("seed {seed}: {why}"))?;
        sum.takeovers += met.takeovers;
        sum.removals += met.removals;
        sum.replaced += met.replaced;
        sum.left += met.left;
        sum.whole += met.whole;
        sum.old_reads += met.old_reads;
        sum.old_lists += met.old_lists;
        sum.crashes += met.crashes;
    }
    Ok(sum)
}

/// `KIMAGE_SEED=N` runs one schedule, `KIMAGE_SCHEDULES=N` more of them.
#[test]
fn whatever_fails_there_is_one_cluster_and_it_becomes_whole() {
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    if let Some(seed) = number("KIMAGE_SEED") {
        run(seed..seed + 1, None).unwrap();
        return;
    }
    let schedules = number("KIMAGE_SCHEDULES").unwrap_or(3000);
    let met = run(0..schedules, None).unwrap_or_else(|why| panic!("{why}"));
    println!("{schedules} schedules: {met:?}");
    // The schedules are of use only if they meet what they are for.
    let often = usize::try_from(schedules).unwrap() / 40;
    assert!(
        met.takeovers > often && met.removals > often && met.replaced > often && met.left > often,
        "{met:?}"
    );
    assert!(
        met.old_reads > often && met.old_lists > often && met.crashes > often,
        "{met:?}"
    );
    assert!(met.whole > usize::try_from(schedules).unwrap() / 2, "{met:?}");
}

#[test]
fn broken_formations_are_caught() {
    let broken = [
        (Sabotage::ServeBeforePublish, "two clusters serve"),
        (Sabotage::SilenceIsDeath, "which exists"),
        (Sabotage::FormWhenSilent, "two clusters serve"),
        // Formation notices and refuses to go on.
        (Sabotage::StoreWithoutCompare, "not whole"),
        (Sabotage::EmptyDiskKeepsVote, "takes up the vote"),
        (Sabotage::ForgetsMarks, "not whole"),
        (Sabotage::ListsAreTimeless, "which exists"),
    ];
    for (sabotage, expected) in broken {
        let why = run(0..1000, Some(sabotage)).expect_err("nothing was caught");
        println!("{sabotage:?}: {}", why.lines().next().unwrap_or_default());
        assert!(why.contains(expected), "{sabotage:?}: {why}");
    }
}
