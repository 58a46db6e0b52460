//! kimage.

use std::process::ExitCode;

fn main() -> ExitCode {
    // First of all: the sandbox runs this same program again, and must find it with one thread.
    if let Some(code) = kimage_builder::tree::sandbox::child_main() {
        return code;
    }
    ExitCode::SUCCESS
}
