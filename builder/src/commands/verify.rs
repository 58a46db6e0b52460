//! `kimage verify`.

use anyhow::Result;

use super::{Context, print, print_json};
use crate::cli::Verify;
use crate::release::verify::{Trust, verify};

/// Checks the release and says what holds and what does not.
pub(super) fn run(arguments: &Verify, context: &Context) -> Result<()> {
    let trust = match &arguments.key {
        Some(path) => Trust::read(path)?,
        None => Trust::Folder,
    };
    let (_manifest, findings) = verify(&arguments.directory, trust)?;
    if arguments.json {
        print_json(&findings)?;
    } else {
        print(findings.to_string().as_bytes())?;
    }
    findings.conclude()?;
    context.progress.total("verified");
    Ok(())
}
