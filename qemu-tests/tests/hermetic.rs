//! What the building host is does not get into components: one small program with a part in C, built by the real
//! `kimage` on hosts that differ in everything that has ever shown in the bytes.

#![expect(
    clippy::unwrap_used,
    reason = "what these tests need and do not find ends them"
)]

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use kimage_builder::definition;
use kimage_builder::digest::Digest;
use kimage_builder::lock::{self, LockedOutput};
use kimage_builder::store::Store;
use kimage_qemu_tests::components::component;
use kimage_qemu_tests::images::{command, finish, kimage, workspace};

const IMAGE: &str = "ubuntu-24.04";

/// Written so that it shows who compiled it, where, and with what in the environment.
const FILES: &[(&str, &str)] = &[
    (
        "component.toml",
        r#"schema = 1
title = "Shows where it was built"
version = "1.0.0"
license = "Apache-2.0"
[cargo]
workspace = "."
package = "probe"
inputs = ["build.rs", "src"]
[[cargo.binary]]
name = "probe"
path = "/usr/bin/probe"
"#,
    ),
    (
        "Cargo.toml",
        "[package]\nname = \"probe\"\nversion = \"1.0.0\"\nedition = \"2024\"\n[workspace]\n[profile.release]\nstrip = true\n",
    ),
    (
        "Cargo.lock",
        "version = 4\n\n[[package]]\nname = \"probe\"\nversion = \"1.0.0\"\n",
    ),
    (
        "build.rs",
        r#"use std::process::Command;
fn run(program: &str, arguments: &[&str]) {
    assert!(Command::new(program).args(arguments).status().unwrap().success(), "{program}");
}
fn main() {
    let out = std::env::var("OUT_DIR").unwrap();
    let compiler = std::env::var("CC").unwrap_or("cc".into());
    let flags = std::env::var("CFLAGS").unwrap_or("-O1".into());
    run(&compiler, &[&flags, "-c", "src/part.c", "-o", &format!("{out}/part.o")]);
    run("ar", &["crs", &format!("{out}/libpart.a"), &format!("{out}/part.o")]);
    println!("cargo::rustc-link-search=native={out}");
    println!("cargo::rustc-link-lib=static=part");
}
"#,
    ),
    (
        "src/part.c",
        "const char *part(void) { return \"gcc \" __VERSION__ \" in \" __FILE__; }\n",
    ),
    (
        "src/main.rs",
        r#"unsafe extern "C" { fn part() -> *const std::ffi::c_char; }
fn main() {
    let part = unsafe { std::ffi::CStr::from_ptr(part()) };
    println!("{part:?} {:?} {} {}", option_env!("LEAK"), env!("CARGO_MANIFEST_DIR"), cfg!(debug_assertions));
    assert!(std::env::args().count() < 9, "panics name their file");
}
"#,
    ),
];

/// A host: a checkout with the probe, a store, and the command that locks, which another environment may be given to.
struct Host {
    folder: tempfile::TempDir,
    checkout: PathBuf,
}

impl Host {
    fn new(below: &str) -> Self {
        let folder = tempfile::tempdir_in(workspace().join("target")).unwrap();
        let checkout = folder.path().join(below);
        let host = Self { folder, checkout };
        host.write_definitions();
        host.share_compilers();
        host
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        path
    }

    /// The image with the probe as its only component, and the packages of the committed lock.
    fn write_definitions(&self) {
        let image = self.checkout.join("images").join(IMAGE);
        let probe = self.checkout.join("images/components/probe");
        fs::create_dir_all(probe.join("src")).unwrap();
        fs::create_dir_all(&image).unwrap();
        fs::create_dir_all(self.checkout.join("roles")).unwrap();
        for (name, text) in FILES {
            fs::write(probe.join(name), text).unwrap();
        }
        let from = workspace().join("images");
        fs::copy(
            from.join("components/toolchain.toml"),
            self.checkout.join("images/components/toolchain.toml"),
        )
        .unwrap();
        let keys = from.join(IMAGE).join("keys");
        finish(command("cp").arg("-r").arg(keys).arg(&image)).unwrap();
        let definition = fs::read_to_string(from.join(IMAGE).join("image.toml")).unwrap();
        let definition = definition.replace("components = [\"firstboot\"]", "components = [\"probe\"]");
        fs::write(image.join("image.toml"), definition).unwrap();
        let committed = definition::load_image(workspace(), IMAGE).unwrap().image;
        let mut lock = lock::load(&committed).unwrap().unwrap();
        lock.component.clear();
        lock.request.retain(|request| request.role.is_none());
        lock.package.retain(|package| package.base || package.compile);
        for package in &mut lock.package {
            package.roles.clear();
        }
        let ours = definition::load_image(&self.checkout, IMAGE).unwrap().image;
        lock::write(&ours, &lock).unwrap();
    }

    /// What proves itself by digest, from the user's store: half a gigabyte need not be fetched for each host.
    fn share_compilers(&self) {
        let shared = Store::default_root().unwrap();
        let store = self.path("store");
        fs::create_dir_all(store.join("artifacts")).unwrap();
        for name in ["blobs", "artifacts/toolchain", "artifacts/compile-root"] {
            symlink(shared.join(name), store.join(name)).unwrap();
        }
    }

    fn lock(&self) -> Command {
        let mut lock = command(kimage().unwrap());
        lock.arg("lock").arg("--definitions").arg(&self.checkout);
        lock.arg("--store").arg(self.path("store"));
        lock
    }

    fn output(&self) -> LockedOutput {
        let image = definition::load_image(&self.checkout, IMAGE).unwrap().image;
        let mut lock = lock::load(&image).unwrap().unwrap();
        lock.component.remove(0).built.unwrap()
    }

    fn locked_by(&self, lock: &mut Command) -> Digest {
        finish(lock).unwrap();
        self.output().output
    }
}

/// A folder of programs that say so and fail.
fn other_compilers(host: &Host) -> String {
    for name in [
        "cc", "gcc", "ld", "ar", "as", "c++", "ld.lld", "rustc", "cargo", "git",
    ] {
        let path = host.write(
            &format!("bin/{name}"),
            "#!/bin/sh\necho \"$0 was used\" >&2\nexit 1\n",
        );
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    format!(
        "{}:{}",
        host.path("bin").display(),
        std::env::var("PATH").unwrap()
    )
}

/// A user's cargo configuration that would change every byte.
const CONFIGURATION: &str = r#"[env]
LEAK = { value = "leaked", force = true }
CFLAGS = { value = "-O0", force = true }
[build]
rustflags = ["-C", "debug-assertions=on"]
rustc-wrapper = "/nowhere/wrapper"
[profile.release]
opt-level = 0
debug-assertions = true
strip = false
[target.x86_64-unknown-linux-gnu]
linker = "/nowhere/linker"
"#;

#[test]
fn a_component_is_the_same_whatever_the_host_is_like() {
    // The compilers are in the store from here on.
    component("pause");
    let plain = Host::new("checkout");
    let expected = plain.locked_by(&mut plain.lock());
    let program = Store::open(&plain.path("store"))
        .unwrap()
        .artifact("component", &plain.output().key)
        .unwrap()
        .join("0");
    let said = finish(&mut command(program)).unwrap().stdout;
    let said = String::from_utf8(said).unwrap();
    assert!(said.contains("gcc 13"), "{said}");
    assert!(said.contains("None /build/workspace false"), "{said}");

    let host = Host::new("another/place/with a space/checkout");
    assert_eq!(host.locked_by(&mut host.lock()), expected, "another checkout");

    let host = Host::new("checkout");
    let path = other_compilers(&host);
    assert_eq!(
        host.locked_by(host.lock().env("PATH", path)),
        expected,
        "other compilers first in PATH"
    );

    let host = Host::new("checkout");
    host.write("home/.cargo/config.toml", CONFIGURATION);
    assert_eq!(
        host.locked_by(host.lock().env("HOME", host.path("home"))),
        expected,
        "another home with a cargo configuration"
    );

    let host = Host::new("checkout");
    host.write("checkout/.cargo/config.toml", CONFIGURATION);
    host.write("checkout/images/components/.cargo/config.toml", CONFIGURATION);
    let inside = host.write("checkout/.ci-cache/cargo/config.toml", CONFIGURATION);
    assert_eq!(
        host.locked_by(host.lock().env("CARGO_HOME", inside.parent().unwrap())),
        expected,
        "CARGO_HOME and configurations inside of the checkout"
    );

    let host = Host::new("checkout");
    let mut lock = host.lock();
    for (name, value) in [
        ("RUSTFLAGS", "-C debug-assertions=on"),
        ("CARGO_BUILD_RUSTFLAGS", "-C opt-level=0"),
        ("CARGO_PROFILE_RELEASE_OPT_LEVEL", "0"),
        ("RUSTC_WRAPPER", "/nowhere/wrapper"),
        ("RUSTC", "/nowhere/rustc"),
        ("CC", "/nowhere/cc"),
        ("CFLAGS", "-O0"),
        ("LEAK", "leaked"),
        ("LD_PRELOAD", ""),
        ("SOURCE_DATE_EPOCH", "77"),
        ("LC_ALL", "tr_TR.UTF-8"),
        ("TZ", "Asia/Kathmandu"),
    ] {
        lock.env(name, value);
    }
    assert_eq!(host.locked_by(&mut lock), expected, "another environment");
}

#[test]
fn a_component_is_the_same_for_another_user() {
    component("pause");
    let plain = Host::new("checkout");
    let expected = plain.locked_by(&mut plain.lock());

    let host = Host::new("checkout");
    // What the other user may read: copies, in a place that is not below this user's home.
    let place = tempfile::tempdir_in("/tmp").unwrap();
    let copy = |from: &Path, to: &str| {
        finish(
            command("cp")
                .args(["-rL", "--reflink=auto"])
                .arg(from)
                .arg(place.path().join(to)),
        )
        .unwrap();
    };
    copy(kimage().unwrap(), "kimage");
    copy(&host.checkout, "checkout");
    fs::create_dir_all(place.path().join("store/artifacts")).unwrap();
    for name in ["artifacts/toolchain", "artifacts/compile-root"] {
        finish(
            command("cp")
                .args(["-a", "--reflink=auto"])
                .arg(Store::default_root().unwrap().join(name))
                .arg(place.path().join("store/artifacts")),
        )
        .unwrap();
    }
    finish(command("chown").args(["-R", "65534:65534"]).arg(place.path())).unwrap();
    let mut lock = command("setpriv");
    lock.args(["--reuid=65534", "--regid=65534", "--clear-groups"])
        .arg(place.path().join("kimage"))
        .arg("lock")
        .arg("--definitions")
        .arg(place.path().join("checkout"))
        .arg("--store")
        .arg(place.path().join("store"))
        .env("HOME", place.path())
        .current_dir(place.path());
    finish(&mut lock).unwrap();
    let image = definition::load_image(&place.path().join("checkout"), IMAGE)
        .unwrap()
        .image;
    let lock = lock::load(&image).unwrap().unwrap();
    assert_eq!(lock.component[0].built.as_ref().unwrap().output, expected);
}

#[test]
fn a_source_that_changed_since_it_was_locked_is_told_with_the_remedy() {
    component("pause");
    let host = Host::new("checkout");
    let locked = host.locked_by(&mut host.lock());
    let main = host.checkout.join("images/components/probe/src/part.c");
    let text = fs::read_to_string(&main).unwrap();
    fs::write(&main, text + "/* no byte of the program */\n").unwrap();
    let mut list = host.lock();
    let output = list.arg("--list").output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(3), "{said}");
    assert!(said.contains("probe") && said.contains("kimage lock"), "{said}");
    // Locked again without an archive, which this host has no way to.
    let mut again = host.lock();
    again.args(["--mirror", "http://nowhere.invalid/ubuntu"]);
    finish(&mut again).unwrap();
    assert_eq!(host.output().output, locked);
}
