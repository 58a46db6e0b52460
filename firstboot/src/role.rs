//! The image's `role.json`.

use anyhow::{Context, Result, ensure};
use kimage_roles::role::{MAX_ROLE, ROLE_PATH, Role};

/// Reads it from the root filesystem.
pub(crate) fn read() -> Result<Role> {
    let size = std::fs::metadata(ROLE_PATH)
        .with_context(|| format!("read {ROLE_PATH}"))?
        .len();
    ensure!(
        size <= MAX_ROLE as u64,
        "{ROLE_PATH} has {size} bytes, more than {MAX_ROLE}"
    );
    let bytes = std::fs::read(ROLE_PATH).with_context(|| format!("read {ROLE_PATH}"))?;
    Role::from_json(&bytes).with_context(|| format!("read {ROLE_PATH}"))
}
