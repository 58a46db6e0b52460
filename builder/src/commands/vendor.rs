//! `kimage vendor`.

use anyhow::{Result, bail};

use super::Context;
use crate::cli::Vendor;
use crate::download::vendor::{Summary, import};
use crate::progress::bytes;

pub(super) fn run(arguments: &Vendor, context: &Context) -> Result<()> {
    if arguments.import {
        let summary = import(&arguments.file, &context.store()?, &context.progress)?;
        return tell("imported", arguments, &summary, context);
    }
    bail!("`kimage vendor` is not wired to the lock yet")
}

fn tell(what: &str, arguments: &Vendor, summary: &Summary, context: &Context) -> Result<()> {
    if arguments.json {
        return super::print_json(summary);
    }
    let Summary {
        blobs,
        artifacts,
        size,
        digest,
    } = summary;
    let file = arguments.file.display();
    let size = bytes(*size);
    context.progress.line(&format!(
        "{what} `{file}`: {blobs} blobs, {artifacts} artifacts, {size}, sha256 {digest}"
    ));
    Ok(())
}
