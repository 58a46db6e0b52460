//! `kimage keys new`.

use anyhow::Result;

use super::Context;
use crate::cli::KeysNew;
use crate::sign::keys;

/// Makes the keys and says how to use them.
pub(super) fn run(arguments: &KeysNew, context: &Context) -> Result<()> {
    keys::create(&arguments.directory)?;
    let folder = arguments.directory.display();
    context.progress.line(&format!(
        "{folder}: Secure Boot keys PK, KEK and db, and the release key"
    ));
    context
        .progress
        .line(&format!("next: kimage build --role worker --keys {folder}"));
    Ok(())
}
