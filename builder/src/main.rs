//! The `kimage` command.

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;
use kimage_builder::cli::Cli;
use kimage_builder::{commands, failure};

fn main() -> ExitCode {
    // First of all: the sandbox runs this same program again, and must find it with one thread.
    if let Some(code) = kimage_builder::tree::sandbox::child_main() {
        return code;
    }
    // Wrong usage ends the program here with exit code 2.
    let cli = Cli::parse();
    match commands::run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let mut text = format!("error: {error:#}\n");
            for hint in failure::hints(&error) {
                text.push_str(&format!("hint: {hint}\n"));
            }
            // Nobody to tell it to is no reason for another exit code.
            let _ = std::io::stderr().write_all(text.as_bytes());
            ExitCode::from(failure::exit_code(&error) as u8)
        }
    }
}
