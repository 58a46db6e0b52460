//! `kimage-firstboot metadata-wall`: a table of nftables that keeps what this machine forwards (the packets of pods)
//! from the platforms' metadata services. Which addresses these are, what passes and what the wall can't hold stands
//! beside the rules, in the image's `metadata-wall.nft`.
//!
//! `kimage-metadata-wall.service` raises it before anything can run a pod. First boot opens it where the NodeConfig says
//! so; a timer raises it again after somebody has emptied the machine's rules. All three come here, one at a time. What
//! first boot has decided lives as long as the boot; without it, or where it can't be read, the wall stands.

use std::fs::{self, File};
use std::io::ErrorKind;

use anyhow::{Context, Result, bail};
use kimage_roles::node_config::PodMetadata;

use crate::host::{self, Host, read_bounded};

/// Raises the wall.
pub(crate) const UNIT: &str = "kimage-metadata-wall.service";
/// The rules, under verity.
const RULES: &str = "/usr/lib/kimage/metadata-wall.nft";
/// What is true until power-off: the decision, and the rules as the kernel listed them when they had been raised.
const FOLDER: &str = "/run/kimage-metadata-wall";
const DECISION: &str = "/run/kimage-metadata-wall/decision";
const RAISED: &str = "/run/kimage-metadata-wall/raised";
const LOCK: &str = "/run/kimage-metadata-wall/lock";
/// The one decision that opens.
const ALLOWED: &str = "allowed";
/// Largest list of rules that is read back, in bytes.
const MAX_RULES: u64 = 64 << 10;
/// Removes the table in one transaction, whether it is there or not.
const REMOVAL: &str = "add table inet kimage-metadata; delete table inet kimage-metadata";

/// What there is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Work {
    /// It stands as it was raised.
    Nothing,
    /// It has not stood before in this boot.
    Raise,
    /// Somebody has removed or changed it.
    RaiseAgain,
    /// Pods may pass.
    Open,
}

/// Makes the wall be as first boot has decided; standing, before it has decided.
pub fn run(host: &Host) -> Result<()> {
    let _turn = turn(host)?;
    hold(host)
}

/// Decides for this boot, and makes the wall be so.
pub(crate) fn decide(host: &Host, pods: PodMetadata) -> Result<()> {
    let _turn = turn(host)?;
    let decision = match pods {
        PodMetadata::Blocked => "blocked",
        PodMetadata::Allowed => ALLOWED,
    };
    host::write(&host.path(DECISION), decision.as_bytes(), 0o644)?;
    hold(host)
}

/// Others wait until the file is closed: whoever reads a decision acts on it before another one is made.
fn turn(host: &Host) -> Result<File> {
    let folder = host.path(FOLDER);
    fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
    let path = host.path(LOCK);
    let lock = File::create(&path).and_then(|file| file.lock().map(|()| file));
    lock.with_context(|| format!("lock {}", path.display()))
}

fn hold(host: &Host) -> Result<()> {
    let decision = text(host, DECISION);
    let (standing, raised) = (listed().ok(), text(host, RAISED));
    match work(decision.as_deref(), standing.as_deref(), raised.as_deref()) {
        Work::Nothing => Ok(()),
        Work::Raise => raise(host),
        Work::RaiseAgain => {
            host::say(
                "kimage-metadata-wall",
                "somebody removed or changed the rules that keep pods from metadata services: they are raised again",
            );
            raise(host)
        }
        Work::Open => open(host).context("let pods reach metadata services"),
    }
}

/// Pure: `standing` is what the kernel lists now, `raised` what it listed when the wall had been raised.
fn work(decision: Option<&str>, standing: Option<&str>, raised: Option<&str>) -> Work {
    if decision == Some(ALLOWED) {
        return Work::Open;
    }
    match raised {
        None => Work::Raise,
        Some(_) if standing == raised => Work::Nothing,
        Some(_) => Work::RaiseAgain,
    }
}

/// Whether the wall is as it should be, in words.
pub(crate) fn report(host: &Host) -> Result<String> {
    let decision = text(host, DECISION);
    let (standing, raised) = (listed().ok(), text(host, RAISED));
    match work(decision.as_deref(), standing.as_deref(), raised.as_deref()) {
        Work::Nothing => Ok("the rules stand".to_owned()),
        Work::Open => Ok("not kept, as the NodeConfig says".to_owned()),
        Work::Raise | Work::RaiseAgain => bail!("the rules don't stand"),
    }
}

/// One transaction: the kernel takes all of the rules or none.
fn raise(host: &Host) -> Result<()> {
    nft(&["-f", RULES]).context("keep pods from metadata services")?;
    host::write(&host.path(RAISED), listed()?.as_bytes(), 0o644).map(drop)
}

fn open(host: &Host) -> Result<()> {
    // Who finds none later hasn't lost any.
    let path = host.path(RAISED);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("remove {}", path.display()));
        }
        _ => {}
    }
    nft(&[REMOVAL]).map(drop)
}

/// The rules as the kernel has them, without counts.
fn listed() -> Result<String> {
    nft(&["--stateless", "list", "table", "inet", "kimage-metadata"])
}

fn nft(words: &[&str]) -> Result<String> {
    let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
    host::output("nft", &words)
}

fn text(host: &Host, path: &str) -> Option<String> {
    let bytes = read_bounded(&host.path(path), MAX_RULES).ok()?;
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_but_the_decision_itself_opens_the_wall() {
        for decision in [
            None,
            Some(""),
            Some("blocked"),
            Some("allowed\n"),
            Some("ALLOWED"),
        ] {
            assert_eq!(work(decision, None, None), Work::Raise, "{decision:?}");
        }
        assert_eq!(work(Some("allowed"), Some("rules"), Some("rules")), Work::Open);
    }

    #[test]
    fn rules_that_somebody_removed_or_changed_are_raised_again_and_others_are_left_alone() {
        let raised = Some("drop");
        assert_eq!(work(None, raised, raised), Work::Nothing);
        for standing in [None, Some(""), Some("accept")] {
            assert_eq!(work(Some("blocked"), standing, raised), Work::RaiseAgain);
        }
    }
}
