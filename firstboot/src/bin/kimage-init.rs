//! `/init` of the initrd: see [`kimage_firstboot::stage0`].

use std::process::ExitCode;

use kimage_firstboot::stage0::{self, console};

fn main() -> ExitCode {
    std::panic::set_hook(Box::new(|panic| {
        console::give_up(&format!("bug in stage 0: {panic}"))
    }));
    // As an ordinary process it would mount over the host's /dev and move its root.
    if std::process::id() != 1 {
        console::say("this is the first process of an initrd, not a command");
        return ExitCode::from(2);
    }
    match stage0::run() {
        Ok(never) => match never {},
        Err(error) => {
            console::give_up(&format!("{error:#}"));
            // The kernel panics when its first process ends.
            ExitCode::FAILURE
        }
    }
}
