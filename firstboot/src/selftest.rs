//! `kimage-firstboot selftest`: does this machine run what its image promises? Runs every baked binary, compares
//! its version with the locked one, asks systemd for failed units, and says on the console what it found. It starts
//! only when asked for (`systemd.wants=kimage-selftest.service` on the kernel command line, or by hand).

use std::fmt::Write;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use kimage_roles::containers::STORE;

use crate::{containers, host, metadata_wall, role};

/// Begins every line, so that a reader of the console finds them.
const PREFIX: &str = "kimage-selftest:";

/// How often this state partition has seen a self-test: tells a kept state from a fresh one.
const COUNTER: &str = "/var/lib/kimage/self-tests";

/// A program that is written and must not run.
const SCRIPT: &str = "/var/lib/kimage/program";

/// Its unit is on machines that run pods.
const KUBELET: &str = "/usr/lib/systemd/system/kubelet.service";

/// A program in a pod's volume.
const POD_SCRIPT: &str = "/var/lib/kubelet/pods/self-test";

/// What containerd works in.
const CONTAINERD: &str = "/var/lib/containerd";

/// The outcome of one check.
struct Check {
    what: String,
    outcome: Result<String>,
}

/// Runs all checks, prints one line each and a last line `kimage-selftest: N passed, N failed`. Failed checks are an
/// error, so that the unit fails too.
pub fn run() -> Result<()> {
    let role = role::read()?;
    let mut checks: Vec<Check> = role.components.iter().flat_map(version_checks).collect();
    checks.push(Check {
        what: "no unit has failed".to_owned(),
        outcome: failed_units(),
    });
    checks.push(Check {
        what: "/var keeps what is written".to_owned(),
        outcome: count_on_state(Path::new(COUNTER)),
    });
    checks.push(Check {
        what: "no program on /var runs".to_owned(),
        outcome: refused(runs_program(Path::new(SCRIPT))),
    });
    if Path::new(KUBELET).exists() {
        checks.extend(node_checks());
    }
    if Path::new(STORE).exists() {
        checks.push(Check {
            what: "containerd uses the image's store".to_owned(),
            outcome: store_in_use(Path::new(STORE), Path::new(CONTAINERD)),
        });
    }
    let failed = checks.iter().filter(|check| check.outcome.is_err()).count();
    let mut report = format!(
        "{PREFIX} role {} of {} with kernel {}\n",
        role.role, role.image, role.kernel
    );
    for check in &checks {
        let (word, text) = match &check.outcome {
            Ok(text) => ("ok", text.clone()),
            Err(error) => ("FAILED", format!("{error:#}")),
        };
        writeln!(report, "{PREFIX} {word}: {}: {text}", check.what)?;
    }
    writeln!(
        report,
        "{PREFIX} {} passed, {failed} failed",
        checks.len() - failed
    )?;
    host::print(&report);
    ensure!(failed == 0, "{failed} checks failed");
    Ok(())
}

/// What holds where pods run.
fn node_checks() -> [Check; 2] {
    [
        Check {
            what: "a program in a pod's volume runs".to_owned(),
            outcome: runs_program(Path::new(POD_SCRIPT)).map(|()| "it ran".to_owned()),
        },
        Check {
            what: "pods are kept from metadata services".to_owned(),
            outcome: metadata_wall::report(&host::Host::system()),
        },
    ]
}

fn version_checks(component: &kimage_roles::role::Component) -> impl Iterator<Item = Check> {
    component.version_commands.iter().map(|command| Check {
        what: command.join(" "),
        outcome: prints_version(command, &component.version),
    })
}

/// Runs `command` and looks for `version` in what it prints, with or without the leading `v`.
fn prints_version(command: &[String], version: &str) -> Result<String> {
    let (program, arguments) = command.split_first().context("empty command in role.json")?;
    let text = host::output(program, arguments)?;
    let line = version_line(&text, version);
    line.with_context(|| {
        format!(
            "does not print {version}, but: {}",
            text.lines().next().unwrap_or("nothing")
        )
    })
}

/// The first line that holds `version` as a word of its own.
fn version_line(text: &str, version: &str) -> Option<String> {
    let wanted = version.trim_start_matches('v');
    let is_word = |c: char| c.is_alphanumeric() || matches!(c, '.' | '-' | '+' | '~');
    let holds = |line: &&str| {
        line.split(|c: char| !is_word(c))
            .any(|word| word.trim_start_matches('v').trim_end_matches('.') == wanted)
    };
    text.lines().find(holds).map(|line| line.trim().to_owned())
}

fn failed_units() -> Result<String> {
    let arguments = [
        "list-units",
        "--state=failed",
        "--plain",
        "--no-legend",
        "--no-pager",
    ]
    .map(str::to_owned);
    let text = host::output("/usr/bin/systemctl", &arguments)?;
    let units: Vec<&str> = text
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .collect();
    ensure!(units.is_empty(), "{}", units.join(" "));
    Ok("0".to_owned())
}

/// Whether containerd works in what was seeded from this image.
fn store_in_use(store: &Path, link: &Path) -> Result<String> {
    let name = containers::name(store)?;
    let target = std::fs::read_link(link).with_context(|| format!("read {}", link.display()))?;
    ensure!(
        target.ends_with(&name) && target.is_dir(),
        "it uses {}, the image has {name}",
        target.display()
    );
    Ok(name)
}

/// Whether a program was refused for where it lies: any other failure says nothing about that.
fn refused(ran: Result<()>) -> Result<String> {
    let Err(refusal) = ran else {
        bail!("it was run");
    };
    let kind = refusal.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
    ensure!(kind == Some(std::io::ErrorKind::PermissionDenied), "{refusal:#}");
    Ok("permission denied".to_owned())
}

/// Writes a program to `path`, runs it and removes it.
fn runs_program(path: &Path) -> Result<()> {
    let shown = path.to_str().context("a path that is no text")?;
    host::write(path, b"#!/bin/true\n", 0o700)?;
    let ran = host::output(shown, &[]);
    std::fs::remove_file(path).with_context(|| format!("remove {shown}"))?;
    ran.map(drop)
}

/// Adds one to the number in `file`, durably.
fn count_on_state(file: &Path) -> Result<String> {
    let before = match std::fs::read_to_string(file) {
        Ok(text) => text
            .trim()
            .parse::<u64>()
            .with_context(|| format!("{} holds no number", file.display()))?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => 0,
        Err(error) => return Err(error).with_context(|| format!("read {}", file.display())),
    };
    let count = before.saturating_add(1);
    let beside = file.with_extension("new");
    let write = || -> std::io::Result<()> {
        let mut out = std::fs::File::create(&beside)?;
        std::io::Write::write_all(&mut out, format!("{count}\n").as_bytes())?;
        out.sync_all()?;
        std::fs::rename(&beside, file)?;
        std::fs::File::open(file.parent().unwrap_or(Path::new("/")))?.sync_all()
    };
    write().with_context(|| format!("write {}", file.display()))?;
    Ok(format!("self-test {count} on this state"))
}

#[cfg(test)]
mod tests {
    use super::{count_on_state, refused, version_line};

    #[test]
    fn the_counter_goes_on_and_refuses_what_is_no_number() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("self-tests");
        assert_eq!(count_on_state(&file).unwrap(), "self-test 1 on this state");
        assert_eq!(count_on_state(&file).unwrap(), "self-test 2 on this state");
        std::fs::write(&file, "many").unwrap();
        assert!(count_on_state(&file).is_err());
    }

    #[test]
    fn a_program_that_runs_or_is_not_there_was_not_refused() {
        use std::io::{Error, ErrorKind};

        let failed = |kind: ErrorKind| Err(anyhow::Error::from(Error::from(kind)).context("start it"));
        assert!(refused(Ok(())).is_err());
        assert!(refused(failed(ErrorKind::NotFound)).is_err());
        refused(failed(ErrorKind::PermissionDenied)).unwrap();
    }

    #[test]
    fn a_version_counts_only_as_a_whole_word() {
        assert_eq!(
            version_line("Kubernetes v1.36.3\n", "v1.36.3").as_deref(),
            Some("Kubernetes v1.36.3")
        );
        assert_eq!(
            version_line("etcd Version: 3.6.14\nGit SHA: x", "v3.6.14").as_deref(),
            Some("etcd Version: 3.6.14")
        );
        assert_eq!(version_line("CoreDNS-1.14.7", "v1.14.7"), None);
        assert_eq!(version_line("etcd Version: 3.6.145", "v3.6.14"), None);
        assert_eq!(version_line("", "v1"), None);
    }
}
