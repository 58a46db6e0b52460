//! Words to the person at the console.

use std::fs::OpenOptions;
use std::io::Write;

/// Prints one line on the console.
pub fn say(text: &str) {
    // In one piece, so that no kernel message comes between. The console may be gone or full; stage 0's work does
    // not depend on it.
    let _ = std::io::stderr().write_all(format!("kimage-init: {text}\n").as_bytes());
}

/// Prints the line that explains why the machine does not boot.
///
/// It goes through the kernel's log, which reaches every console at once: what is merely written to a serial
/// terminal can still be in its buffer when the panic stops the machine. Level 0 passes `quiet`.
pub fn give_up(text: &str) {
    let line = format!("<0>kimage-init: {text}; can't boot\n");
    let logged = OpenOptions::new()
        .write(true)
        .open("/dev/kmsg")
        .and_then(|mut log| log.write_all(line.as_bytes()));
    if logged.is_err() {
        say(&format!("{text}; can't boot"));
    }
}
