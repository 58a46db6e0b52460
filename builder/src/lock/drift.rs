//! What the definitions ask for now and a lock does not answer, in words.

use std::collections::{BTreeMap, BTreeSet};

use super::resolve::Wanted;
use super::{Lock, LockedRequest};
use crate::definition::Image;

/// Every difference; none when the lock is fresh.
pub(super) fn drift(lock: &Lock, wanted: &Wanted, image: &Image) -> Vec<String> {
    let mut found = archive_drift(lock, wanted, image);
    found.extend(component_drift(lock, wanted));
    found
}

/// What only the archive can answer.
pub(super) fn archive_drift(lock: &Lock, wanted: &Wanted, image: &Image) -> Vec<String> {
    let mut found = requests(&lock.request, &wanted.requests);
    let suites: Vec<_> = lock
        .suite
        .iter()
        .map(|suite| (&suite.name, &suite.components))
        .collect();
    let wanted_suites: Vec<_> = image
        .manifest
        .archive
        .suites
        .iter()
        .map(|suite| (&suite.name, &suite.components))
        .collect();
    if suites != wanted_suites {
        found.push("the archive's suites changed".to_owned());
    }
    for suite in &lock.suite {
        let pinned = image
            .manifest
            .archive
            .fingerprints
            .iter()
            .any(|pin| pin.eq_ignore_ascii_case(&suite.signer));
        if !pinned {
            found.push(format!(
                "suite {} was signed by {}, which is not pinned any more",
                suite.name, suite.signer
            ));
        }
    }
    found
}

fn component_drift(lock: &Lock, wanted: &Wanted) -> Vec<String> {
    let locked = lock
        .component
        .iter()
        .map(|c| (c.name.as_str(), (c.version.as_str(), c.source.to_string())));
    let now = wanted
        .components
        .iter()
        .map(|c| (c.name.as_str(), (c.version.as_str(), c.source.to_string())));
    let mut found = entries("component", &locked.collect(), &now.collect());
    let locked = lock
        .toolchain
        .iter()
        .map(|t| (t.name.as_str(), (t.version.as_str(), t.hash.clone())));
    let now = wanted
        .toolchains
        .iter()
        .map(|t| (t.name.as_str(), (t.version.as_str(), t.hash.clone())));
    found.extend(entries("toolchain", &locked.collect(), &now.collect()));
    found
}

type Entries<'a> = BTreeMap<&'a str, (&'a str, String)>;

fn entries(kind: &str, locked: &Entries<'_>, now: &Entries<'_>) -> Vec<String> {
    let names: BTreeSet<_> = locked.keys().chain(now.keys()).collect();
    let differs = names
        .into_iter()
        .filter_map(|name| match (locked.get(name), now.get(name)) {
            (None, Some(_)) => Some(format!("{kind} {name} is new")),
            (Some(_), None) => Some(format!("{kind} {name} is gone")),
            (Some((old, _)), Some((new, _))) if old != new => {
                Some(format!("{kind} {name} is {new}, locked is {old}"))
            }
            (Some((_, old)), Some((_, new))) if old != new => Some(format!("{kind} {name} was edited")),
            _ => None,
        });
    differs.collect()
}

fn requests(locked: &[LockedRequest], now: &[LockedRequest]) -> Vec<String> {
    let by_role = |requests: &[LockedRequest]| -> BTreeMap<(bool, Option<String>), LockedRequest> {
        requests
            .iter()
            .map(|request| ((request.compile, request.role.clone()), request.clone()))
            .collect()
    };
    let (locked, now) = (by_role(locked), by_role(now));
    let roles: BTreeSet<_> = locked.keys().chain(now.keys()).collect();
    let mut found = Vec::new();
    for role in roles {
        let who = match role {
            (true, _) => "compile".to_owned(),
            (false, Some(role)) => format!("role {role}"),
            (false, None) => "image".to_owned(),
        };
        let (Some(old), Some(new)) = (locked.get(role), now.get(role)) else {
            found.push(format!(
                "{who} is {}",
                if now.contains_key(role) { "new" } else { "gone" }
            ));
            continue;
        };
        for (what, old, new) in [
            ("package", &old.install, &new.install),
            ("left-out package", &old.leave_out, &new.leave_out),
        ] {
            let missing =
                |a: &[String], b: &[String]| a.iter().filter(|x| !b.contains(x)).cloned().collect::<Vec<_>>();
            found.extend(
                missing(new, old)
                    .iter()
                    .map(|name| format!("{who}: {what} {name} was added")),
            );
            found.extend(
                missing(old, new)
                    .iter()
                    .map(|name| format!("{who}: {what} {name} was removed")),
            );
        }
    }
    found
}
