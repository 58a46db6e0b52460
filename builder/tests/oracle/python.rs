//! Judges written in Python, which `qemu-tests/run-all` installs into `target/oracles`.

use std::path::Path;

use kimage_builder::tool::Tool;

/// A program of `target/oracles`: `python` or what a package brings.
pub(crate) fn python(program: &str) -> Tool {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let path = workspace.join("target/oracles/bin").join(program);
    assert!(
        path.exists(),
        "{} is absent: run `qemu-tests/run-all fast` once",
        path.display()
    );
    Tool::new(path).env("LC_ALL", "C.UTF-8")
}
