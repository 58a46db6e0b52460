//! First boot that is killed somewhere, against a model of files and services.

use std::collections::BTreeMap;

use kimage_roles::cause::Cause;

use super::*;
use crate::plan::tests::machine;

/// Which version of its files each step has written, and which versions were there when each step started its services.
#[derive(Default)]
struct Model {
    files: BTreeMap<&'static str, u32>,
    services: BTreeMap<&'static str, BTreeMap<&'static str, u32>>,
    restarts: u32,
}

/// A walk is killed before it does what the step of this index is about, or after that.
#[derive(Debug, Clone, Copy)]
struct Blow {
    step: usize,
    after: bool,
}

impl Model {
    /// Does the last of `steps` while the NodeConfig asks for `version`; the answer is that of the walk's `take`.
    fn take(&mut self, steps: &[Step], stale: bool, version: u32) -> bool {
        let Some(step) = steps.last() else {
            return false;
        };
        let mut changed = false;
        if step.action.changes_files() {
            changed = self.files.insert(step.name, version) != Some(version);
        }
        if step.action.starts_services() {
            let runs = self.services.contains_key(step.name);
            if !runs || stale || changed {
                // A service reads nothing of what only later steps write.
                let written = |step: &Step| Some((step.name, *self.files.get(step.name)?));
                self.services
                    .insert(step.name, steps.iter().filter_map(written).collect());
                self.restarts += u32::from(runs);
            }
        }
        changed
    }
}

/// A run of first boot, from opening the ledger.
fn run(host: &Host, plan: &Plan, model: &mut Model, version: u32, blow: Option<Blow>) {
    let mut ledger = Ledger::open(host, &plan.identity, "i-1").unwrap();
    let mut index = 0;
    let done = walk(plan, &mut ledger, |_, stale| {
        let here = blow.filter(|blow| blow.step == index);
        index += 1;
        if here.is_some_and(|blow| !blow.after) {
            return Err(killed());
        }
        let changed = model.take(&plan.steps[..index], stale, version);
        here.map_or(Ok(changed), |_| Err(killed()))
    });
    assert_eq!(done.is_err(), blow.is_some());
}

fn killed() -> Failure {
    Failure::because(Cause::Internal, "killed")
}

fn blows(plan: &Plan) -> impl Iterator<Item = Blow> + Clone {
    let both = [false, true];
    (0..plan.steps.len()).flat_map(move |step| both.map(|after| Blow { step, after }))
}

fn plans() -> [Plan; 2] {
    [("control-plane", "stacked"), ("worker", "")].map(|(role, layout)| plan(&machine(role, layout)).unwrap())
}

#[test]
fn a_service_never_stays_with_older_files_wherever_first_boot_is_killed() {
    for plan in plans() {
        for first in blows(&plan) {
            // The second one comes where the first one did, or before the walk has got there again.
            let begin = Blow {
                step: 0,
                after: false,
            };
            for second in [first, begin] {
                let folder = tempfile::tempdir().unwrap();
                let (host, mut model) = (Host::at(folder.path()), Model::default());
                run(&host, &plan, &mut model, 1, None);
                run(&host, &plan, &mut model, 2, Some(first));
                run(&host, &plan, &mut model, 2, Some(second));
                run(&host, &plan, &mut model, 2, None);
                for (service, read) in &model.services {
                    let old = read.iter().find(|(_, version)| **version != 2);
                    assert_eq!(old, None, "{service} after {first:?} and {second:?}");
                }
            }
        }
    }
}

#[test]
fn services_that_run_with_the_present_files_are_left_alone() {
    for plan in plans() {
        for blow in blows(&plan) {
            let step = &plan.steps[blow.step];
            if step.action.changes_files() {
                // It may have changed one: nobody can know.
                continue;
            }
            let folder = tempfile::tempdir().unwrap();
            let (host, mut model) = (Host::at(folder.path()), Model::default());
            run(&host, &plan, &mut model, 1, None);
            run(&host, &plan, &mut model, 1, Some(blow));
            run(&host, &plan, &mut model, 1, None);
            assert_eq!(model.restarts, 0, "{} {blow:?}", step.name);
        }
    }
}
