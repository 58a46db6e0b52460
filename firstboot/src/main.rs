//! `kimage-firstboot`: what kimage does in a machine after stage 0.

use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let result = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["state"] => kimage_firstboot::state::run(),
        ["containers"] => kimage_firstboot::containers::run(),
        ["selftest"] => kimage_firstboot::selftest::run(),
        _ => {
            eprintln!("usage: kimage-firstboot state | containers | selftest");
            return ExitCode::from(2);
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
