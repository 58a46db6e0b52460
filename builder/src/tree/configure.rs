//! Runs the packages' own scripts in the sandbox: every `preinst install`, then `dpkg --configure`.
//!
//! Policy: the definition alone says which units run, so the programs that packages use to enable, start or ask
//! about services do nothing here ([`SILENT`]). `dpkg-maintscript-helper` only acts on upgrades, and `depmod` runs
//! once, beside the scripts, instead of once per kernel package. They are shadowed by entries of `PATH`, not changed.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::control::clauses;
use super::dpkg::{Package, put};
use super::sandbox::{Ending, Owners, Sandbox};
use crate::progress::Task;

/// Programs that do nothing and succeed.
pub const SILENT: [&str; 9] = [
    "deb-systemd-helper",
    "deb-systemd-invoke",
    "depmod",
    "dpkg-maintscript-helper",
    "invoke-rc.d",
    "service",
    "systemctl",
    "update-initramfs",
    "update-rc.d",
];

/// Where the host's scratch folder shows inside.
const INSIDE: &str = "/run/kimage";
/// Lines of the scripts' output that an error repeats.
const TAIL: usize = 25;

/// How long each package took: from its "Setting up" line to the next.
pub type Timing = Vec<(String, Duration)>;

/// The order in which packages are configured, and how many of them belong to the first of two rounds: the essential
/// ones and what they need, because scripts use those without saying so (every bootstrap does it like that). Within a
/// round dependencies stand before dependents where there is no cycle.
pub fn order(packages: &[Package]) -> (Vec<usize>, usize) {
    let mut providers: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    for (index, package) in packages.iter().enumerate() {
        for name in package.names() {
            providers.entry(name).or_default().push(index);
        }
    }
    let mut first: Vec<usize> = (0..packages.len()).collect();
    let rank = |package: &Package| match package.name.as_str() {
        "base-passwd" => 0,
        "base-files" => 1,
        _ if package.essential() => 2,
        _ => 3,
    };
    first.sort_by_key(|index| (rank(&packages[*index]), packages[*index].name.clone()));
    let mut visit = Visit {
        packages,
        providers,
        seen: BTreeSet::new(),
        order: Vec::new(),
    };
    let mut essential = 0;
    for index in first {
        visit.package(index);
        if rank(&packages[index]) < 3 {
            essential = visit.order.len();
        }
    }
    (visit.order, essential)
}

struct Visit<'a> {
    packages: &'a [Package],
    providers: BTreeMap<String, Vec<usize>>,
    seen: BTreeSet<usize>,
    order: Vec<usize>,
}

impl Visit<'_> {
    fn package(&mut self, index: usize) {
        if !self.seen.insert(index) {
            return;
        }
        for field in ["Pre-Depends", "Depends"] {
            for alternative in clauses(self.packages[index].field(field).unwrap_or_default())
                .iter()
                .flatten()
            {
                for provider in self.providers.get(&alternative.name).cloned().unwrap_or_default() {
                    self.package(provider);
                }
            }
        }
        self.order.push(index);
    }
}

/// What runs in the sandbox.
pub struct Script<'a> {
    /// The packages, configured one round after the other: all of the tree that are unpacked, in the order of [`order`].
    pub rounds: [&'a [Package]; 2],
    /// A shell line that runs from the beginning on, beside the packages' scripts: they must not need each other.
    pub beside: Option<&'a str>,
    /// A shell line that runs afterwards.
    pub after: &'a str,
}

/// Runs `script`. `scratch` is an empty folder of the host.
pub fn configure(
    sandbox: Sandbox,
    script: &Script<'_>,
    scratch: &Path,
    task: &Task,
) -> Result<(Owners, Timing)> {
    let bin = scratch.join("bin");
    fs::create_dir_all(&bin)?;
    for name in SILENT {
        std::os::unix::fs::symlink("/usr/bin/true", bin.join(name))?;
    }
    put(&scratch.join("configure"), script.text().as_bytes(), 0o755)?;
    let mut sandbox = sandbox
        .bind(scratch, Path::new(INSIDE))
        .env(
            "PATH",
            format!("{INSIDE}/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
        )
        .env("DPKG_MAINTSCRIPT_DEBUG", "0");
    let mut log: Vec<String> = Vec::new();
    let mut timing: Timing = Vec::new();
    let mut since = Instant::now();
    let outcome = sandbox.run(["/bin/sh", &format!("{INSIDE}/configure")], &mut |line| {
        let line = String::from_utf8_lossy(line).into_owned();
        let name = line
            .strip_prefix("Setting up ")
            .or_else(|| line.strip_prefix("kimage: "));
        if let Some(name) = name {
            if let Some(last) = timing.last_mut() {
                last.1 = since.elapsed();
            }
            since = Instant::now();
            task.message(name.trim_end_matches(" ..."));
            timing.push((name.to_owned(), Duration::ZERO));
        }
        // A script that never stops talking must not fill our memory.
        if log.len() >= 2 * TAIL {
            log.drain(..TAIL);
        }
        log.push(line);
    })?;
    if let Some(last) = timing.last_mut() {
        last.1 = since.elapsed();
    }
    if outcome.ending != Ending::Exited(0) {
        let tail: Vec<String> = log[log.len().saturating_sub(TAIL)..]
            .iter()
            .map(|line| format!("    {line}"))
            .collect();
        bail!(
            "configuring packages failed ({})\n{}",
            outcome.ending,
            tail.join("\n")
        );
    }
    Ok((outcome.owners, timing))
}

impl Script<'_> {
    /// The shell script that the sandbox runs. Package names are checked characters, so they need no quotes.
    fn text(&self) -> String {
        let mut text =
            String::from("set -e\numask 022\ncd /\nexport DPKG_ROOT= DPKG_ADMINDIR=/var/lib/dpkg\n");
        text.push_str("fail() { echo \"kimage: the preinst script of $1 failed\"; exit 1; }\n");
        if let Some(beside) = self.beside {
            let _ = writeln!(text, "{{ {beside}; }} &\nbeside=$!");
        }
        for package in self
            .rounds
            .into_iter()
            .flatten()
            .filter(|package| package.control_file("preinst").is_some())
        {
            let (name, architecture) = (&package.name, &package.architecture);
            let _ = writeln!(
                text,
                "echo 'kimage: preinst of {name}'\n\
                 DPKG_MAINTSCRIPT_PACKAGE={name} DPKG_MAINTSCRIPT_PACKAGE_REFCOUNT=1 DPKG_MAINTSCRIPT_ARCH={architecture} \
                 DPKG_MAINTSCRIPT_NAME=preinst /var/lib/dpkg/info/{}.preinst install || fail {name}",
                package.info_name()
            );
        }
        // dpkg configures in the order given wherever dependencies allow.
        for round in self.rounds.into_iter().filter(|round| !round.is_empty()) {
            text.push_str("dpkg --log=/dev/null --force-confold --configure");
            for package in round {
                let _ = write!(text, " {}", package.name);
            }
            text.push('\n');
        }
        if let Some(beside) = self.beside {
            step(&mut text, beside, "wait $beside");
        }
        step(&mut text, self.after, self.after);
        text
    }
}

/// Adds a shell line to the script, and a line that tells the log what runs.
fn step(text: &mut String, what: &str, line: &str) {
    let _ = writeln!(text, "echo 'kimage: {}'\n{line}", what.replace('\'', ""));
}

/// Refuses diversions that would have moved a file of the unpacked packages.
pub fn check_diversions(root: &Path, owner_of: impl Fn(&[u8]) -> Option<String>) -> Result<()> {
    let text =
        fs::read(root.join(super::dpkg::ADMIN).join("diversions")).context("read dpkg's diversions")?;
    let lines: Vec<&[u8]> = text
        .split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty())
        .collect();
    for entry in lines.chunks(3) {
        let [from, to, by] = entry else {
            bail!("dpkg's diversions have a cut-off entry")
        };
        let shown = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if let Some(owner) = owner_of(from).filter(|owner| owner.as_bytes() != *by && *by != b":") {
            bail!(
                "{} diverts {} to {}, but {owner} ships it",
                shown(by),
                shown(from),
                shown(to)
            );
        }
    }
    Ok(())
}
