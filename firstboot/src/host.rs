//! The one door for child processes (what ran is known, and an error carries what the child said), and what is said
//! to whoever watches.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// Lines of a failed child's output that are worth repeating.
const TAIL_LINES: usize = 20;

/// Runs `program` with an empty environment but `PATH`; an exit status that is not in `fine` is an error.
#[expect(clippy::disallowed_methods, reason = "this is the door")]
pub(crate) fn run(program: &str, arguments: &[&str], device: &Path, fine: &[i32]) -> Result<i32> {
    let line = format!("{program} {} {}", arguments.join(" "), device.display());
    let mut command = Command::new(program);
    command
        .args(arguments)
        .arg(device)
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("start `{line}`"))?;
    match output.status.code() {
        Some(code) if fine.contains(&code) => Ok(code),
        _ => {
            let text = [output.stdout, output.stderr].concat();
            let text = String::from_utf8_lossy(&text);
            let lines: Vec<&str> = text.lines().collect();
            let tail = lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n    ");
            bail!("`{line}` failed ({})\n    {tail}", output.status)
        }
    }
}

/// Everything that `program` prints, on either stream, when it succeeds.
#[expect(clippy::disallowed_methods, reason = "this is the door")]
pub(crate) fn output(program: &str, arguments: &[String]) -> Result<String> {
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .env("HOME", "/run");
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("start `{program}`"))?;
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    if !output.status.success() {
        let last = text.lines().last().unwrap_or("it said nothing");
        bail!("`{program}` failed ({}): {last}", output.status);
    }
    Ok(text)
}

/// Says one line, with the name of who says it.
pub(crate) fn say(who: &str, text: &str) {
    use std::io::Write;

    let line = format!("{who}: {text}\n");
    // The unit's output goes to the journal, which keeps it; the console is for whoever watches.
    let _ = std::io::stderr().write_all(line.as_bytes());
    let console = std::fs::OpenOptions::new().write(true).open("/dev/console");
    let _ = console.and_then(|mut console| console.write_all(line.as_bytes()));
}

/// Writes a report to standard output, which systemd leads to the console and the journal.
pub(crate) fn print(text: &str) {
    use std::io::Write;

    // A report that nobody reads is no reason to fail.
    drop(std::io::stdout().lock().write_all(text.as_bytes()));
}
