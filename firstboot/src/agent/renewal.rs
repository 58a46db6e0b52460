//! Renews what this machine issues, at two thirds of its life by the wall's clock, and says what only a person can renew.

use std::time::{Duration, Instant, SystemTime};

use super::supervisor::{Shift, Work};
use crate::action::{Worker, started};
use crate::failure::Failure;
use crate::host;
use crate::lifetime::{self, Line, Mortal, Place, Successor};

/// The longest pause between two looks at files. A clock that is set is noticed after so long.
const LOOK: Duration = Duration::from_secs(60);
/// Nothing is looked at more often.
const SHORTEST: Duration = Duration::from_secs(1);
/// Between two questions to systemd since when services run.
const SERVICES: Duration = Duration::from_secs(600);

/// Looks at everything on the list.
pub(super) fn chore<'a>(shift: &'a Shift<'a>) -> Result<Work<'a>, Failure> {
    let mut worker = Worker::new(shift.host, &shift.machine);
    let (leaves, clients) = (
        lifetime::leaves(&shift.machine),
        lifetime::clients(&shift.machine),
    );
    let list = lifetime::all(&shift.machine);
    let mut asked: Option<Instant> = None;
    Ok(Box::new(move || {
        if worker.renew(&leaves, &clients)? {
            shift.say("certificates of this machine were two thirds through their lives: it has new ones");
            // Chores that hold the old ones in memory begin again, and so does this one.
            shift.configuration.renewed();
            return Ok(Duration::ZERO);
        }
        if asked.is_none_or(|asked| asked.elapsed() >= SERVICES) {
            note_old_services(shift, &worker, &list)?;
            asked = Some(Instant::now());
        }
        let restarted = worker.restart_waiting()?;
        if !restarted.is_empty() {
            shift.say(&format!(
                "started anew with new certificates: {}",
                restarted.join(", ")
            ));
            asked = None;
        }
        let young = keep_list(shift, &list)?;
        Ok(young.clamp(SHORTEST, LOOK))
    }))
}

/// Notes services for a restart that hold something old in memory.
fn note_old_services(shift: &Shift<'_>, worker: &Worker<'_>, list: &[Mortal]) -> Result<(), Failure> {
    for mortal in list {
        let Place::Memory(unit) = mortal.place else {
            continue;
        };
        let validity = mortal.validity(shift.host, &|unit| started(unit).ok().flatten());
        if validity.is_some_and(|validity| !validity.is_young(SystemTime::now())) {
            worker.note_for_restart(unit)?;
        }
    }
    Ok(())
}

/// Writes the list down and says what is old and nobody renews. How long everything that the agent issues is young.
fn keep_list(shift: &Shift<'_>, list: &[Mortal]) -> Result<Duration, Failure> {
    let now = SystemTime::now();
    let (mut lines, mut old, mut young): (Vec<Line>, Vec<String>, Duration) = (Vec::new(), Vec::new(), LOOK);
    for mortal in list {
        // What services hold in memory is asked for rarely, and stands in the list without times.
        let validity = mortal.validity(shift.host, &|_| None);
        lines.push(mortal.line(validity));
        let Some(validity) = validity else {
            continue;
        };
        match mortal.successor {
            Successor::Agent | Successor::Restart => young = young.min(validity.young_for(now)),
            Successor::Person if !validity.is_young(now) => old.push(mortal.name().to_owned()),
            Successor::Person | Successor::Kubelet => {}
        }
    }
    let text = serde_json::to_vec_pretty(&lines).map_err(Failure::internal)?;
    host::write(&shift.host.path(lifetime::PATH), &text, 0o644).map_err(Failure::internal)?;
    if !old.is_empty() {
        shift.say(&format!(
            "less than a third of its life is left to {}; hint: only you can renew it, see {}",
            old.join(", "),
            lifetime::PATH
        ));
    }
    Ok(young)
}
