//! `kimage explain`.

use std::fs::File;
use std::io::{self, BufReader};
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use serde::Serialize;

use super::{print, print_json};
use crate::cli::Explain;
use crate::explain::{Console, Verdict, report};
use crate::failure::{ExitCode, Failure};

/// `--json`.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Answer<'a> {
    schema: u32,
    verdict: &'a Verdict,
    #[serde(flatten)]
    console: &'a Console,
}

/// Explains; a machine that is not in service is an error.
pub(super) fn run(arguments: &Explain) -> Result<()> {
    let console = read(&arguments.console).map_err(|error| {
        let message = format!("read {}: {error}", arguments.console.display());
        Failure::new(ExitCode::Usage, message)
    })?;
    let verdict = console.verdict();
    if arguments.json {
        print_json(&Answer {
            schema: 1,
            verdict: &verdict,
            console: &console,
        })?;
    } else {
        print(format!("{}\n", report(&console)).as_bytes()).context("print the report")?;
    }
    if verdict != Verdict::InService {
        let node = console.boots.last().and_then(|boot| boot.node.as_deref());
        bail!(
            "{} is not in service: {}",
            node.unwrap_or("the machine"),
            verdict.reason()
        );
    }
    Ok(())
}

fn read(path: &Path) -> io::Result<Console> {
    if path == Path::new("-") {
        return Console::read(io::stdin().lock());
    }
    Console::read(BufReader::new(File::open(path)?))
}
