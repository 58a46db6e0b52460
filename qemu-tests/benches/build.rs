//! How fast kimage builds, beside a peer that does the same job with the usual tools in the same run: mmdebstrap,
//! mksquashfs and veritysetup on the same packages from a local mirror. Prints every command and its figures;
//! asserts no time.
//!
//! `cargo bench -p kimage-qemu-tests --bench build` (as root: mmdebstrap's fastest mode needs it). Inputs and
//! components must be in the store: the first thing that runs is an ordinary build of all roles, which is not timed.

#![expect(clippy::print_stdout, reason = "a benchmark prints its figures")]

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use kimage_qemu_tests::images::{self, WORKSPACE_PARTS, workspace};

const ROLES: [&str; 3] = ["worker", "control-plane", "etcd"];

/// Megabytes (10^6) that a compressed qcow2 may have.
const SIZE_GOALS: [(&str, f64); 3] = [("etcd", 130.0), ("worker", 250.0), ("control-plane", 290.0)];

struct Measured {
    wall: Duration,
    /// Largest resident set of any process of the command, in MB.
    peak_mb: f64,
}

fn main() -> Result<()> {
    let bench = Bench::new()?;
    bench.warm_up()?;
    bench.fresh_store()?;
    let peer = bench.peer()?;
    println!(
        "\n{:<58} {:>8} {:>7} {:>7} {:>8}",
        "what", "seconds", "ratio", "goal", "peak MB"
    );
    let row = |what: &str, measured: &Measured, goal: &str| {
        let seconds = measured.wall.as_secs_f64();
        let ratio = seconds / peer.wall.as_secs_f64();
        println!(
            "{what:<58} {seconds:>8.2} {ratio:>7.3} {goal:>7} {:>8.0}",
            measured.peak_mb
        );
    };
    row("peer: mmdebstrap + mksquashfs + veritysetup", &peer, "");
    row(
        "worker, no cached tree, no blocks but the components'",
        &bench.build("worker", &bench.workspace)?,
        "0.4",
    );
    row(
        "worker, nothing changed",
        &bench.build("worker", &bench.workspace)?,
        "0.5 s",
    );
    row("worker, a file of the role changed", &bench.role_change()?, "0.1");
    for role in ["control-plane", "etcd"] {
        row(
            &format!("{role}, after the worker"),
            &bench.build(role, &bench.workspace)?,
            "3 s",
        );
    }
    // The other way to read "with components in the store": compiled, and not yet compressed.
    bench.forget(&["artifacts/tree", "caches"])?;
    row(
        "worker, no cached tree, no blocks at all",
        &bench.build("worker", &bench.workspace)?,
        "0.4",
    );
    bench.print_sizes()?;
    println!(
        "\nPublished by others, not run here: mkosi full build 81 s, incremental 22 s; image-builder 1790 s, 1600-3700 MB."
    );
    Ok(())
}

struct Bench {
    kimage: PathBuf,
    workspace: PathBuf,
    output: PathBuf,
    scratch: tempfile::TempDir,
}

impl Bench {
    fn new() -> Result<Self> {
        let scratch = tempfile::Builder::new().prefix("kimage-bench-").tempdir()?;
        Ok(Self {
            kimage: images::kimage()?.to_owned(),
            output: scratch.path().join("out"),
            workspace: workspace().to_owned(),
            scratch,
        })
    }

    /// Everything fetched and compiled, nothing timed.
    fn warm_up(&self) -> Result<()> {
        for role in ROLES {
            self.build(role, &self.workspace)?;
        }
        Ok(())
    }

    fn build(&self, role: &str, workspace: &Path) -> Result<Measured> {
        let mut build = command(&self.kimage);
        build
            .args(["build", "--role", role, "--format", "raw,qcow2", "--output"])
            .arg(&self.output);
        if self.store().exists() {
            build.arg("--store").arg(self.store());
        }
        run(build.current_dir(workspace))
    }

    /// The store of the timed builds: inputs, components (with their compressed blocks, which belong to compiling them)
    /// and keys of the usual one. No trees, no other blocks.
    fn store(&self) -> PathBuf {
        self.scratch.path().join("store")
    }

    fn fresh_store(&self) -> Result<()> {
        let usual = kimage_builder::store::Store::default_root()?;
        for folder in ["artifacts", "caches"] {
            fs::create_dir_all(self.store().join(folder))?;
        }
        for part in [
            "blobs",
            "development-keys",
            "artifacts/component",
            "artifacts/toolchain",
            "caches/component-blocks",
        ] {
            let (from, to) = (usual.join(part), self.store().join(part));
            if from.exists() {
                run(command("cp").arg("-a").arg(from).arg(to))?;
            }
        }
        fs::remove_dir_all(&self.output).context("remove the output of the warm-up")
    }

    /// Takes parts out of the store of the timed builds, so that they are made anew. What a release was made from is
    /// part of `caches`: the next build doesn't find that nothing changed.
    fn forget(&self, parts: &[&str]) -> Result<()> {
        for part in parts {
            fs::remove_dir_all(self.store().join(part)).with_context(|| format!("remove {part}"))?;
        }
        Ok(())
    }

    fn print_sizes(&self) -> Result<()> {
        println!(
            "\n{:<16} {:>10} {:>10} {:>10}",
            "compressed qcow2", "MB", "goal MB", "raw MB"
        );
        for (role, goal) in SIZE_GOALS {
            let size = |name: &str| {
                fs::metadata(self.output.join(role).join(name)).map(|file| file.len() as f64 / 1e6)
            };
            println!(
                "{role:<16} {:>10.1} {goal:>10.0} {:>10.1}",
                size("disk.qcow2")?,
                size("disk.raw")?
            );
        }
        Ok(())
    }

    /// The definition with one more file in the worker role.
    fn role_change(&self) -> Result<Measured> {
        let copy = self.scratch.path().join("workspace");
        fs::create_dir_all(&copy)?;
        run(command("cp")
            .arg("-a")
            .args(WORKSPACE_PARTS.map(|name| self.workspace.join(name)))
            .arg(&copy))?;
        let files = copy.join("roles/worker/files/etc");
        fs::create_dir_all(&files)?;
        fs::write(files.join("bench"), "changed\n")?;
        self.build("worker", &copy)
    }

    /// The peer's three steps on the packages of the worker's lock, from a mirror on this disk.
    fn peer(&self) -> Result<Measured> {
        let mirror = self.scratch.path().join("mirror");
        let packages = self.local_mirror(&mirror)?;
        let root = self.scratch.path().join("peer");
        let (squashfs, verity) = (root.with_extension("squashfs"), root.with_extension("verity"));
        let mut total = Measured {
            wall: Duration::ZERO,
            peak_mb: 0.0,
        };
        let mut step = |command: &mut Command| -> Result<()> {
            let measured = run(command)?;
            total.wall += measured.wall;
            total.peak_mb = total.peak_mb.max(measured.peak_mb);
            Ok(())
        };
        let source = format!("deb [trusted=yes] copy://{} ./", mirror.display());
        step(
            command("mmdebstrap")
                .args(["--variant=custom", "--format=directory", "--skip=check/qemu"])
                // The definition leaves packages out on purpose.
                .args(["--dpkgopt=force-depends"])
                .arg(format!("--include={}", packages.join(",")))
                .arg("noble")
                .arg(&root)
                .arg(source),
        )?;
        step(command("mksquashfs").arg(&root).arg(&squashfs).args([
            "-comp",
            "zstd",
            "-Xcompression-level",
            "6",
            "-noappend",
            "-quiet",
            "-no-progress",
        ]))?;
        step(command("veritysetup").arg("format").arg(&squashfs).arg(&verity))?;
        Ok(total)
    }

    /// A flat repository of the .debs that the worker image holds.
    fn local_mirror(&self, mirror: &Path) -> Result<Vec<String>> {
        fs::create_dir_all(mirror)?;
        let list = output(
            command(&self.kimage)
                .args(["lock", "--list", "--role", "worker", "--json"])
                .current_dir(&self.workspace),
        )?;
        let packages: Vec<Listed> = serde_json::from_slice(&list).context("kimage lock --list --json")?;
        let mut entries = Vec::new();
        for package in &packages {
            let name = package.path.rsplit('/').next().context("path")?;
            fs::copy(&package.blob, mirror.join(name))?;
            let control = output(command("dpkg-deb").arg("-f").arg(mirror.join(name)))?;
            let place = format!(
                "Filename: ./{name}\nSize: {}\nSHA256: {}\n",
                package.size, package.sha256
            );
            entries.push(String::from_utf8(control)? + &place);
        }
        let known = provided(&entries);
        let mut index = fs::File::create(mirror.join("Packages"))?;
        for entry in &entries {
            writeln!(index, "{}", without_left_out(entry, &known))?;
        }
        Ok(packages.into_iter().map(|package| package.name).collect())
    }
}

/// One package as `kimage lock --list --json` prints it.
#[derive(serde::Deserialize)]
struct Listed {
    name: String,
    path: String,
    size: u64,
    sha256: String,
    /// The .deb in the store.
    blob: PathBuf,
}

#[expect(
    clippy::disallowed_methods,
    reason = "the benchmark's door for child processes"
)]
fn command(program: impl AsRef<OsStr>) -> Command {
    Command::new(program)
}

fn output(command: &mut Command) -> Result<Vec<u8>> {
    let output = command
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("start {command:?}"))?;
    ensure!(output.status.success(), "{command:?}: {}", output.status);
    Ok(output.stdout)
}

/// Runs `command` to its end; its output goes to a file that is shown when it fails. What commands before it wrote is on
/// the disk by then, so that it does not wait for their bytes.
fn run(command: &mut Command) -> Result<Measured> {
    eprintln!("$ {command:?}");
    let log = tempfile::tempfile()?;
    rustix::fs::sync();
    let started = Instant::now();
    let child = command
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log.try_clone()?)
        .spawn()?;
    let (status, peak_kb) = wait(child.id())?;
    let wall = started.elapsed();
    if !std::process::ExitStatus::from_raw(status).success() {
        let mut text = String::new();
        std::io::Seek::rewind(&mut &log)?;
        std::io::Read::read_to_string(&mut &log, &mut text)?;
        anyhow::bail!("{command:?} failed\n{text}");
    }
    Ok(Measured {
        wall,
        peak_mb: peak_kb as f64 * 1024.0 / 1e6,
    })
}

/// Waits for a child and returns its status and the largest resident set, in KiB, of it and its own children.
#[expect(
    unsafe_code,
    reason = "wait4 is the only call that tells a child's peak memory"
)]
fn wait(pid: u32) -> Result<(i32, i64)> {
    let mut status = 0;
    // SAFETY: rusage is plain data that the kernel fills in; both pointers are valid for the call.
    let (result, usage) = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        (libc::wait4(pid as i32, &mut status, 0, &mut usage), usage)
    };
    ensure!(result > 0, "wait4: {}", std::io::Error::last_os_error());
    Ok((status, usage.ru_maxrss))
}

/// Names of packages and of what they provide.
fn provided(entries: &[String]) -> BTreeSet<String> {
    let lines = entries.iter().flat_map(|entry| entry.lines());
    let lists = lines.filter_map(|line| {
        line.strip_prefix("Package: ")
            .or_else(|| line.strip_prefix("Provides: "))
    });
    lists
        .flat_map(|list| list.split(','))
        .map(|term| bare(term).to_owned())
        .collect()
}

/// Name in a term of a relation: `python3` of ` python3:any (>= 3.12)`.
fn bare(term: &str) -> &str {
    term.trim().split([' ', ':', '(']).next().unwrap_or_default()
}

/// An entry of an index without dependencies that the definition leaves out, which apt would insist on.
fn without_left_out(entry: &str, known: &BTreeSet<String>) -> String {
    let kept = entry.lines().map(|line| match line.split_once(": ") {
        Some((field @ ("Depends" | "Pre-Depends"), list)) => {
            let met = |term: &&str| term.split('|').any(|one| known.contains(bare(one)));
            let terms: Vec<&str> = list.split(',').filter(met).collect();
            format!("{field}: {}\n", terms.join(","))
        }
        _ => format!("{line}\n"),
    });
    // A field without a value is none.
    kept.filter(|line| !line.trim_end().ends_with("Depends:"))
        .collect()
}
