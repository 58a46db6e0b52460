//! The machine as kimage acts on it: its files behind a root prefix, and the one door for child processes, where what
//! ran is known and an error carries what the child said.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// Lines of a failed child's output that are worth repeating.
const TAIL_LINES: usize = 20;

/// The files of a machine. Tests see a folder where a machine sees its root.
#[derive(Debug, Clone)]
pub struct Host {
    root: PathBuf,
}

impl Host {
    /// The machine this runs on.
    pub fn system() -> Self {
        Self::at(Path::new("/"))
    }

    /// A machine whose root is this folder.
    pub fn at(root: &Path) -> Self {
        Self { root: root.into() }
    }

    /// Where an absolute path of the machine is.
    pub fn path(&self, absolute: impl AsRef<Path>) -> PathBuf {
        let absolute = absolute.as_ref();
        self.root.join(absolute.strip_prefix("/").unwrap_or(absolute))
    }
}

/// Writes a whole file or nothing: beside, fsync, rename, fsync of the folder. Missing folders are made (0755).
/// A file that has these bytes and this mode already is left alone; the answer says whether it was written.
pub(crate) fn write(path: &Path, bytes: &[u8], mode: u32) -> Result<bool> {
    write_for(path, bytes, mode, None)
}

/// [`write`] for a file that belongs to another user and group.
pub(crate) fn write_for(path: &Path, bytes: &[u8], mode: u32, owner: Option<(u32, u32)>) -> Result<bool> {
    let shown = path.display();
    if is_written(path, bytes, mode, owner) {
        return Ok(false);
    }
    let folder = path.parent().with_context(|| format!("{shown} has no folder"))?;
    fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
    let name = path.file_name().with_context(|| format!("{shown} has no name"))?;
    let mut beside = std::ffi::OsString::from(".");
    beside.push(name);
    beside.push(".new");
    let beside = folder.join(beside);
    let written = write_synced(&beside, bytes, mode, owner).and_then(|()| fs::rename(&beside, path));
    written.with_context(|| format!("write {shown}"))?;
    let synced = File::open(folder).and_then(|folder| folder.sync_all());
    synced.with_context(|| format!("sync {}", folder.display()))?;
    Ok(true)
}

fn is_written(path: &Path, bytes: &[u8], mode: u32, owner: Option<(u32, u32)>) -> bool {
    use std::os::unix::fs::MetadataExt;

    let Ok(known) = fs::symlink_metadata(path) else {
        return false;
    };
    let owned = owner.is_none_or(|owner| owner == (known.uid(), known.gid()));
    known.is_file()
        && owned
        && known.mode() & 0o7777 == mode
        && known.len() == bytes.len() as u64
        && fs::read(path).is_ok_and(|known| known == bytes)
}

fn write_synced(path: &Path, bytes: &[u8], mode: u32, owner: Option<(u32, u32)>) -> io::Result<()> {
    // What an interrupted run left must not lend its mode or owner to this one.
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(bytes)?;
    if let Some((uid, gid)) = owner {
        chown(path, Some(uid), Some(gid))?;
    }
    file.set_permissions(fs::Permissions::from_mode(mode))?;
    file.sync_all()
}

/// Reads a file of at most `limit` bytes; a larger one is an error of kind `FileTooLarge`.
pub(crate) fn read_bounded(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?
        .take(limit.saturating_add(1))
        .read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!("more than {limit} bytes"),
        ));
    }
    Ok(bytes)
}

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
