//! `[cargo]`: static programs of a Rust workspace, the same bytes from any checkout, user and cargo home.
//!
//! Paths are the only thing of the host that rustc writes into a program; they are mapped to fixed ones.
//! The C library that `crt-static` links in is the host's: hosts with another glibc give other bytes.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::complaint::{self, Cause};
use super::{Bench, Product, Products, watch};
use crate::definition::Component;
use crate::definition::component::{Cargo, files_below};
use crate::digest::Hasher;
use crate::download::Network;
use crate::failure::{ExitCode, Failure};
use crate::lock::LockedToolchain;
use crate::progress::Task;
use crate::tool::Tool;

const TARGET: &str = "x86_64-unknown-linux-gnu";
/// What cargo, rustc and the linker need of the environment.
const VARIABLES: &[&str] = &[
    "PATH",
    "HOME",
    "CARGO_HOME",
    "RUSTUP_HOME",
    "RUSTUP_TOOLCHAIN",
    "RUSTUP_AUTO_INSTALL",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
];

/// Adds the compiler and the workspace's files that the programs are made of.
pub(super) fn add_to_key(
    component: &Component,
    cargo: &Cargo,
    compiler: &Compiler,
    hasher: &mut Hasher,
) -> Result<()> {
    hasher.field(compiler.to_string().as_bytes());
    let workspace = workspace(component, cargo)?;
    let mut files: Vec<PathBuf> = vec!["Cargo.toml".into(), "Cargo.lock".into()];
    for input in &cargo.inputs {
        let path = workspace.join(input.as_str());
        if path.is_dir() {
            files.extend(
                files_below(&path)?
                    .into_iter()
                    .map(|file| Path::new(input.as_str()).join(file)),
            );
        } else {
            files.push(input.as_str().into());
        }
    }
    for file in files {
        let path = workspace.join(&file);
        let bytes = std::fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        hasher.field(file.as_os_str().as_encoded_bytes()).field(&bytes);
    }
    Ok(())
}

/// Builds the programs into `folder`.
pub(super) fn build(
    component: &Component,
    cargo: &Cargo,
    bench: &Bench<'_>,
    folder: &Path,
) -> Result<Products> {
    let host = Host::look(bench.toolchain("rust")?)?;
    let target = bench.store.cache("cargo-target")?;
    let task = bench.progress.task(&format!("build {}", component.name), None);
    let workspace = workspace(component, cargo)?;
    host.fetch(&workspace, bench.access.network, &task)?;
    let built = host.compile(&workspace, cargo, &target, &task)?;
    let mut products = Products {
        compiler: Some(host.compiler.to_string()),
        ..Products::default()
    };
    for (index, binary) in cargo.binary.iter().enumerate() {
        let (from, file) = (built.join(&binary.name), index.to_string());
        std::fs::copy(&from, folder.join(&file)).with_context(|| format!("copy {}", from.display()))?;
        products.files.push(Product {
            path: binary.path.clone(),
            mode: 0o755,
            links: Vec::new(),
            file,
        });
    }
    task.done();
    Ok(products)
}

/// A Rust compiler, as `rustc -vV` names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Compiler {
    release: String,
    commit: String,
}

impl std::fmt::Display for Compiler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "rustc {} ({})", self.release, self.commit)
    }
}

impl Compiler {
    /// The one whose bytes are the image's.
    pub(super) fn pinned(pin: &LockedToolchain) -> Self {
        Self {
            release: pin.version.clone(),
            commit: pin.hash.clone(),
        }
    }

    /// The one of this host, if it is the pinned one or a newer one.
    pub(super) fn of_host(pin: &LockedToolchain) -> Result<Self> {
        let version = rustc(pin, &["-vV"])?;
        let field = |name: &str| {
            let value = version.lines().find_map(|line| line.strip_prefix(name));
            value.unwrap_or("unknown").to_owned()
        };
        let found = Self {
            release: field("release: "),
            commit: field("commit-hash: "),
        };
        let pinned = Self::pinned(pin);
        if found == pinned || found.is_as_new_as(&pinned) {
            return Ok(found);
        }
        Err(missing(pin, &format!("this host has {found}")).into())
    }

    /// Nightlies and betas of a version come before it.
    fn is_as_new_as(&self, pinned: &Self) -> bool {
        let (Some(found), Some(least)) = (number(&self.release), number(&pinned.release)) else {
            return false;
        };
        found > least || found == least && !self.release.contains('-')
    }
}

/// `[1, 95, 0]` of `1.95.0` and of `1.95.0-nightly`.
fn number(release: &str) -> Option<Vec<u64>> {
    let numbers = release.split('-').next()?.split('.');
    let numbers: Vec<u64> = numbers.map(|part| part.parse().ok()).collect::<Option<_>>()?;
    (numbers.len() == 3).then_some(numbers)
}

fn missing(pin: &LockedToolchain, found: &str) -> Failure {
    let message = format!("Rust {} or newer is needed, {found}", pin.version);
    let hint = format!(
        "install it: `rustup toolchain install {0}`, then RUSTUP_TOOLCHAIN={0}",
        pin.version
    );
    Failure::new(ExitCode::Failed, message).hint(hint)
}

fn rustc(pin: &LockedToolchain, arguments: &[&str]) -> Result<String> {
    let output = Tool::new("rustc").args(arguments).inherit(VARIABLES).run();
    let output = output.with_context(|| missing(pin, "but rustc does not run"))?;
    Ok(String::from_utf8_lossy(&output).trim().to_owned())
}

/// The Rust installation of this host.
struct Host {
    cargo_home: PathBuf,
    sysroot: PathBuf,
    compiler: Compiler,
}

impl Host {
    /// Finds rustc and checks that it may build what is pinned to `pin`.
    fn look(pin: &LockedToolchain) -> Result<Self> {
        let compiler = Compiler::of_host(pin)?;
        let sysroot = PathBuf::from(rustc(pin, &["--print", "sysroot"])?);
        let variable = |name: &str| {
            std::env::var_os(name)
                .filter(|value| !value.is_empty())
                .map(PathBuf::from)
        };
        let cargo_home = variable("CARGO_HOME").or_else(|| variable("HOME").map(|home| home.join(".cargo")));
        let cargo_home = cargo_home.context("neither CARGO_HOME nor HOME is set")?;
        Ok(Self {
            cargo_home,
            sysroot,
            compiler,
        })
    }

    fn cargo(&self, workspace: &Path) -> Tool {
        let cargo = Tool::new("cargo")
            .directory(workspace)
            .inherit(VARIABLES)
            .env("CARGO_HOME", &self.cargo_home);
        cargo
            .env("CARGO_INCREMENTAL", "0")
            .env("RUSTC_WRAPPER", "")
            .env("CARGO_TERM_COLOR", "never")
    }

    /// Fetches the crates that Cargo.lock pins. It comes first because it makes the folders whose paths are mapped.
    fn fetch(&self, workspace: &Path, network: Network, task: &Task) -> Result<()> {
        let mut fetch = self
            .cargo(workspace)
            .args(["fetch", "--locked", "--target", TARGET]);
        if network == Network::Offline {
            fetch = fetch.arg("--offline");
        }
        step("fetch the crates", fetch, task)
    }

    /// Compiles the programs; they lie in the folder that is returned.
    fn compile(&self, workspace: &Path, cargo: &Cargo, target: &Path, task: &Task) -> Result<PathBuf> {
        let build = self
            .cargo(workspace)
            .args(["build", "--locked", "--offline", "--target", TARGET]);
        let build = build.args(["--profile", &cargo.profile, "--package", &cargo.package]);
        let build = cargo
            .binary
            .iter()
            .fold(build, |build, binary| build.args(["--bin", &binary.name]));
        // The user's configuration may name another linker, which would give other bytes.
        let build = build.args(["--config", &format!("target.{TARGET}.linker=\"cc\"")]);
        let build = build
            .env("CARGO_ENCODED_RUSTFLAGS", self.flags(workspace, cargo)?)
            .env("CARGO_TARGET_DIR", target);
        step("compile", build, task)?;
        Ok(target.join(TARGET).join(if cargo.profile == "dev" {
            "debug"
        } else {
            &cargo.profile
        }))
    }

    /// rustc's flags, separated by the byte that `CARGO_ENCODED_RUSTFLAGS` wants.
    fn flags(&self, workspace: &Path, cargo: &Cargo) -> Result<OsString> {
        let mut flags: Vec<OsString> = vec!["-C".into(), "target-feature=+crt-static".into()];
        // The last mapping that fits wins: the most special come last.
        let mut map = |from: &Path, to: &str| {
            let mut flag = OsString::from("--remap-path-prefix=");
            flag.push(from);
            flag.push("=");
            flag.push(to);
            flags.push(flag);
        };
        map(&self.sysroot, "/rust");
        // With rust-src installed, rustc shows the standard library's files there instead of under /rustc.
        map(
            &self.sysroot.join("lib/rustlib/src/rust"),
            &format!("/rustc/{}", self.compiler.commit),
        );
        map(&self.cargo_home, "/cargo");
        // One folder per registry address: mirrors must not show.
        for source in registry_sources(&self.cargo_home)? {
            map(&source, "/cargo/registry");
        }
        map(workspace, "/kimage");
        flags.extend(cargo.rustflags.iter().map(OsString::from));
        Ok(flags.join(&OsString::from("\x1f")))
    }
}

/// Runs one cargo command.
fn step(what: &str, tool: Tool, task: &Task) -> Result<()> {
    task.message(what);
    let finished = watch::run(tool, task, |line| {
        let line = line.trim_start();
        let name = line
            .strip_prefix("Compiling ")
            .or_else(|| line.strip_prefix("Downloaded "))?;
        task.advance(1);
        Some(name.to_owned())
    })?;
    if finished.status.success() {
        Ok(())
    } else {
        Err(explain(what, &finished.stderr))
    }
}

fn registry_sources(cargo_home: &Path) -> Result<Vec<PathBuf>> {
    let folder = cargo_home.join("registry/src");
    let entries = match std::fs::read_dir(&folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| format!("read folder {}", folder.display())),
    };
    let mut sources = Vec::new();
    for entry in entries {
        sources.push(
            entry
                .with_context(|| format!("read folder {}", folder.display()))?
                .path(),
        );
    }
    sources.sort();
    Ok(sources)
}

fn workspace(component: &Component, cargo: &Cargo) -> Result<PathBuf> {
    let path = component.folder.join(&cargo.workspace);
    path.canonicalize()
        .with_context(|| format!("find the Rust workspace {}", path.display()))
}

fn explain(what: &str, stderr: &str) -> anyhow::Error {
    let causes = [
        Cause {
            phrases: &["failed to verify the checksum", "checksum for"],
            code: ExitCode::Mismatch,
            hint: "the registry serves other bytes than Cargo.lock pins",
        },
        Cause {
            phrases: &[
                "--offline",
                "failed to download",
                "failed to fetch",
                "spurious network error",
            ],
            code: ExitCode::Fetch,
            hint: "run once online",
        },
    ];
    complaint::explain(what, "cargo", stderr, &causes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::definition::component::{CargoBinary, GuestPath};
    use crate::progress::Progress;

    fn program() -> Cargo {
        let path = GuestPath::try_from("/p".to_owned()).unwrap();
        Cargo {
            workspace: ".".into(),
            package: "program".into(),
            profile: "release".into(),
            inputs: Vec::new(),
            rustflags: Vec::new(),
            binary: vec![CargoBinary {
                name: "program".into(),
                path,
            }],
        }
    }

    /// A workspace of two members, so that a path inside the workspace is part of a panic message.
    fn checkout(folder: &Path) {
        let file = |path: &str, text: &str| {
            let path = folder.join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        let member =
            |name: &str| format!("[package]\nname = \"{name}\"\nversion = \"1.0.0\"\nedition = \"2024\"\n");
        file(
            "Cargo.toml",
            "[workspace]\nmembers = [\"program\", \"library\"]\nresolver = \"3\"\n",
        );
        file(
            "program/Cargo.toml",
            &(member("program") + "[dependencies]\nlibrary = { path = \"../library\" }\n"),
        );
        file(
            "program/src/main.rs",
            "fn main() { println!(\"{}\", library::first(&std::env::args().collect::<Vec<_>>())) }",
        );
        file("library/Cargo.toml", &member("library"));
        file(
            "library/src/lib.rs",
            "pub fn first(words: &[String]) -> &str { words.get(7).expect(\"seven words\") }",
        );
        let lock = "version = 4\n[[package]]\nname = \"library\"\nversion = \"1.0.0\"\n\n\
            [[package]]\nname = \"program\"\nversion = \"1.0.0\"\ndependencies = [\n \"library\",\n]\n";
        file("Cargo.lock", lock);
    }

    #[test]
    fn checkouts_target_folders_and_cargo_homes_do_not_show_in_the_bytes() {
        let version = Tool::new("rustc")
            .arg("-vV")
            .inherit(VARIABLES)
            .run()
            .expect("install Rust");
        let version = String::from_utf8(version).unwrap();
        let field = |name: &str| {
            version
                .lines()
                .find_map(|line| line.strip_prefix(name))
                .unwrap()
                .to_owned()
        };
        let pin = LockedToolchain {
            name: "rust".into(),
            version: field("release: "),
            hash: field("commit-hash: "),
        };
        let task = Progress::silent().task("test", None);
        let programs = ["one", "another-place/deeper"].map(|place| {
            let root = tempfile::tempdir().unwrap();
            let (checkout_folder, home) = (root.path().join(place), root.path().join("home"));
            checkout(&checkout_folder);
            let host = Host {
                cargo_home: home,
                ..Host::look(&pin).unwrap()
            };
            host.fetch(&checkout_folder, Network::Offline, &task).unwrap();
            let built = host
                .compile(&checkout_folder, &program(), &root.path().join("target"), &task)
                .unwrap();
            let bytes = std::fs::read(built.join("program")).unwrap();
            let place = root.path().as_os_str().as_encoded_bytes();
            assert!(
                !bytes.windows(place.len()).any(|window| window == place),
                "the program names {}",
                root.path().display()
            );
            bytes
        });
        // Cargo gives rustc the paths of workspace members relative to the workspace.
        let path = b"library/src/lib.rs";
        assert!(
            programs[0].windows(path.len()).any(|window| window == path),
            "the test program lost its panic"
        );
    }

    #[test]
    fn an_older_compiler_is_refused_with_the_remedy_and_a_newer_one_is_not() {
        let pin = |version: &str| LockedToolchain {
            name: "rust".into(),
            version: version.into(),
            hash: "0".repeat(40),
        };
        let error = Host::look(&pin("999.0.0")).err().unwrap();
        assert!(error.to_string().contains("Rust 999.0.0"), "{error:#}");
        assert!(
            crate::failure::hints(&error)
                .next()
                .unwrap()
                .contains("rustup toolchain install 999.0.0")
        );
        let newer = Host::look(&pin("1.0.0")).unwrap().compiler;
        assert_ne!(newer, Compiler::pinned(&pin("1.0.0")));
    }

    #[test]
    fn versions_are_numbers_and_previews_come_before_them() {
        let compiler = |release: &str| Compiler {
            release: release.into(),
            commit: "c".into(),
        };
        let pinned = compiler("1.95.0");
        for newer in ["1.95.0", "1.95.1", "1.100.0", "2.0.0", "1.96.0-nightly"] {
            assert!(compiler(newer).is_as_new_as(&pinned), "{newer}");
        }
        for older in [
            "1.94.9",
            "1.9.0",
            "1.95.0-beta.3",
            "unknown",
            "1.95",
            "",
            "99999999999999999999.0.0",
        ] {
            assert!(!compiler(older).is_as_new_as(&pinned), "{older}");
        }
    }

    #[test]
    fn another_compiler_gives_another_key() {
        let folder = tempfile::tempdir().unwrap();
        checkout(folder.path());
        std::fs::write(folder.path().join("Cargo.lock"), "").unwrap();
        let text = "schema = 1\ntitle = \"t\"\nversion = \"1\"\nlicense = \"MIT\"\n[cargo]\nworkspace = \".\"\n\
            package = \"program\"\nprofile = \"release\"\ninputs = [\"Cargo.toml\"]\n\
            [[cargo.binary]]\nname = \"program\"\npath = \"/p\"\n";
        std::fs::create_dir(folder.path().join("c")).unwrap();
        std::fs::write(folder.path().join("c/component.toml"), text).unwrap();
        let component = Component::load(folder.path(), "c").unwrap();
        let cargo = Cargo {
            workspace: "..".into(),
            ..program()
        };
        let key = |release: &str| {
            let compiler = Compiler {
                release: release.into(),
                commit: "c".into(),
            };
            let mut hasher = Hasher::new();
            add_to_key(&component, &cargo, &compiler, &mut hasher).unwrap();
            hasher.finish()
        };
        assert_eq!(key("1.95.0"), key("1.95.0"));
        assert_ne!(key("1.95.0"), key("1.96.0"));
    }
}
