//! The kubelet's credential, while the machine runs. The kubelet renews it by itself; one that has expired, is damaged or
//! is refused it can't renew, nor can it leave a cluster whose authority has changed.

use std::time::{Duration, Instant};

use kimage_roles::node_config::NodeRole;

use super::supervisor::{Shift, Work};
use crate::action::{Standing, Worker};
use crate::boot::{self, Exclusive};
use crate::failure::Failure;
use crate::ledger::Ledger;
use crate::report::Reporter;

/// Between two looks at the file.
const LOOK: Duration = Duration::from_secs(30);
/// Between two questions to the cluster, when nothing is wrong with the file.
const QUESTION: Duration = Duration::from_secs(300);

/// Watches over a worker's credential, and joins anew when it is lost.
pub(super) fn worker<'a>(shift: &'a Shift<'a>) -> Result<Work<'a>, Failure> {
    let mut asked: Option<Instant> = None;
    Ok(Box::new(move || {
        let worker = Worker::new(shift.host, &shift.machine);
        let is_time = asked.is_none_or(|asked| asked.elapsed() >= QUESTION);
        let lost = match worker.check_credential() {
            Err(why) => Some(why),
            // Until the cluster has said yes it is asked in every round.
            Ok(_) if is_time => match worker.standing() {
                Standing::Refused(why) => Some(why),
                Standing::Unheard(why) => return Err(why),
                Standing::Node => {
                    asked = Some(Instant::now());
                    None
                }
            },
            Ok(_) => None,
        };
        match lost {
            Some(why) => {
                asked = None;
                shift.say(&format!("the kubelet's credential is lost: {why}"));
                join_anew(shift)?;
            }
            // An earlier run of this was cut off before the services had the new credential.
            None if Ledger::is_unfinished(shift.host) => join_anew(shift)?,
            None => {}
        }
        Ok(LOOK)
    }))
}

/// Watches over a control plane's: this machine has the authority's key, and needs nobody to join.
pub(super) fn control_plane<'a>(shift: &'a Shift<'a>) -> Result<Work<'a>, Failure> {
    let worker = Worker::new(shift.host, &shift.machine);
    Ok(Box::new(move || {
        if let Some(why) = worker.renew_own_kubelet()? {
            shift.say(&format!(
                "the kubelet's credential is lost: {why}; it starts anew with the one of its kubeconfig"
            ));
        }
        Ok(LOOK)
    }))
}

/// Walks the plan once more, as a boot does. First boot itself may be at it.
fn join_anew(shift: &Shift<'_>) -> Result<(), Failure> {
    let Some(alone) = Exclusive::try_now(shift.host)? else {
        return Ok(());
    };
    let machine = &shift.machine;
    let mut reporter = Reporter::new(shift.host, NodeRole::Worker.as_str());
    reporter.name(&machine.name);
    let done = boot::serve(shift.host, machine, None, &mut reporter, &alone, &|| {
        !shift.is_over()
    });
    done.inspect_err(|failure| reporter.failed(failure, false))?;
    reporter.in_service();
    shift.say("this machine has joined anew");
    Ok(())
}
