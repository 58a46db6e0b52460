//! `kimage doctor`.

use std::fmt::Write;

use anyhow::{Result, bail};

use super::Context;
use crate::archive::mirrors;
use crate::cli::Doctor;
use crate::definition;
use crate::doctor::{Check, State, examine};
use crate::download::Address;
use crate::failure::{ExitCode, Failure};

pub(super) fn run(arguments: &Doctor, context: &Context) -> Result<()> {
    let indexes = if arguments.offline {
        Vec::new()
    } else {
        indexes(&arguments.image.image, context)
    };
    let checks = examine(&context.store(), &indexes, &context.progress);
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

/// The signed index of every suite of `image` on every mirror.
fn indexes(image: &str, context: &Context) -> Vec<Result<Address>> {
    let workspace = match context.definitions() {
        Ok(workspace) => workspace,
        Err(error) if context.global.definitions.is_some() => return vec![Err(error)],
        Err(_) => {
            let line = "archives are not checked: no folder from here upwards holds images/ and roles/";
            context.progress.line(line);
            return Vec::new();
        }
    };
    let image = match definition::load_image(&workspace, image) {
        Ok(definition) => definition.image,
        Err(error) => return vec![Err(error)],
    };
    let archive = &image.manifest.archive;
    let mut indexes = Vec::new();
    for suite in &archive.suites {
        match mirrors::of(archive, suite, &context.global.mirror) {
            Ok(mirrors) => {
                let urls = mirrors.urls(&format!("dists/{}/InRelease", suite.name));
                indexes.extend(urls.into_iter().map(Ok));
            }
            Err(error) => indexes.push(Err(error)),
        }
    }
    indexes
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
