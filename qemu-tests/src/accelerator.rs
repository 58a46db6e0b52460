//! What the bench's machines run on.

use std::sync::OnceLock;

use anyhow::{Result, bail};
use kimage_builder::qemu::Accelerator;

/// Overrides the probe: `kvm` or `tcg`.
const VARIABLE: &str = "KIMAGE_ACCELERATOR";

/// The one that was asked for, else the fastest one that works here. Looked for once per process.
pub fn chosen() -> Result<Accelerator> {
    static FOUND: OnceLock<Accelerator> = OnceLock::new();
    if let Some(found) = FOUND.get() {
        return Ok(*found);
    }
    let found = match std::env::var(VARIABLE).as_deref() {
        Ok("kvm") => Accelerator::Kvm,
        Ok("tcg") => Accelerator::Tcg,
        Ok(other) => bail!("{VARIABLE}={other}: `kvm` or `tcg` expected"),
        Err(_) => Accelerator::fastest()?,
    };
    Ok(*FOUND.get_or_init(|| found))
}
