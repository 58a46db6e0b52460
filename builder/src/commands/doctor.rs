//! `kimage doctor`.

use std::fmt::Write;

use anyhow::{Result, bail};

use super::Context;
use crate::cli::Doctor;
use crate::doctor::{Check, State, examine};
use crate::failure::{ExitCode, Failure};

pub(super) fn run(arguments: &Doctor, context: &Context) -> Result<()> {
    let mirrors: &[String] = if arguments.offline {
        &[]
    } else {
        &context.global.mirror
    };
    let checks = examine(&context.store(), mirrors, &context.progress);
    if arguments.json {
        super::print_json(&checks)?;
    } else {
        super::print(report(&checks).as_bytes())?;
    }
    let failed: Vec<&str> = checks
        .iter()
        .filter(|check| check.state == State::Failed)
        .map(|check| check.name)
        .collect();
    if failed.is_empty() {
        return Ok(());
    }
    let code = if checks
        .iter()
        .any(|check| check.state == State::Failed && check.sandbox)
    {
        ExitCode::Sandbox
    } else {
        ExitCode::Failed
    };
    bail!(Failure::new(
        code,
        format!("this host can't build images: {}", failed.join(", "))
    ))
}

fn report(checks: &[Check]) -> String {
    let mut text = String::new();
    let width = checks.iter().map(|check| check.name.len()).max().unwrap_or(0);
    for check in checks {
        let mark = match check.state {
            State::Fine => "ok  ",
            State::Limited => "WARN",
            State::Failed => "FAIL",
        };
        let _ = writeln!(text, "{mark}  {:width$}  {}", check.name, check.found);
        for line in check.remedy.iter().flat_map(|remedy| remedy.lines()) {
            let _ = writeln!(text, "      {:width$}  {line}", "");
        }
    }
    text
}
