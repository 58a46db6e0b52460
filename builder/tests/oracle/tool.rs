//! Programs that others wrote, as judges: `qemu-tests/run-all` installs them.

use kimage_builder::tool::Tool;

/// An installed program, found where administrators' programs are too; it speaks English.
pub(crate) fn tool(program: &str) -> Tool {
    Tool::new(program)
        .env("LC_ALL", "C")
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
}
