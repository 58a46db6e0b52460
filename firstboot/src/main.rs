//! `kimage-firstboot`: what kimage does in a machine after stage 0.

use std::process::ExitCode;

use kimage_firstboot::failure::Failure;
use kimage_firstboot::host::Host;
use kimage_firstboot::{agent, boot, containers, leave, metadata_wall, selftest, state};

const USAGE: &str = "usage: kimage-firstboot state | metadata-wall | containers | selftest | boot [--dry-run] | agent | leave";
/// Exit status of a failure that trying again on this machine can't mend: systemd doesn't start us again then.
const LASTING: u8 = 3;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let host = Host::system();
    let result = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["state"] => state::run().map_err(Failure::internal),
        ["metadata-wall"] => metadata_wall::run(&host).map_err(Failure::internal),
        ["containers"] => containers::run().map_err(Failure::internal),
        ["selftest"] => selftest::run().map_err(Failure::internal),
        ["boot"] => boot::run(&host),
        ["boot", "--dry-run"] => boot::dry_run(&host),
        ["leave"] => leave::run(&host),
        ["agent"] => agent::run(&host),
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("error: {}", failure.message());
            if failure.cause.is_lasting() {
                ExitCode::from(LASTING)
            } else {
                ExitCode::FAILURE
            }
        }
    }
}
