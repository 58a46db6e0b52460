//! What goes wrong around a real build: killed, crowded, without network or room; and what goes wrong with a release
//! after it. Either a whole release lies in the output folder or none, and what failed is named.

#![expect(
    clippy::unwrap_used,
    reason = "what these tests need and do not find ends them"
)]

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use kimage_builder::digest::Digest;
use kimage_builder::release::manifest::Manifest;
use kimage_builder::store::Store;
use kimage_qemu_tests::images::{command, finish, keys, kimage, release, store_parts, workspace};

const IMAGE: &str = "ubuntu-24.04";

/// A folder on the disk of the build folder: stores and images are large.
fn folder() -> tempfile::TempDir {
    let place = workspace().join("target/images");
    fs::create_dir_all(&place).unwrap();
    tempfile::Builder::new()
        .prefix("faults-")
        .tempdir_in(place)
        .unwrap()
}

/// Inputs and components of the user's own store, without a tree. The files are links: no test may write to one.
fn linked_store(place: &Path) -> PathBuf {
    release(IMAGE, "etcd").unwrap();
    let own = Store::default_root().unwrap();
    let store = place.join("store");
    fs::create_dir_all(store.join("artifacts")).unwrap();
    for part in store_parts(&own) {
        let into = store.join(part);
        let linked = command("cp").arg("-al").arg(own.join(part)).arg(&into).output();
        if !linked.unwrap().status.success() {
            // Another filesystem.
            finish(command("cp").arg("-rT").arg(own.join(part)).arg(&into)).unwrap();
        }
    }
    store
}

/// Adds the options of a build of `role` that needs no network.
fn build<'a>(command: &'a mut Command, role: &str, store: &Path, output: &Path) -> &'a mut Command {
    command
        .args(["build", "--offline", "--image", IMAGE, "--role", role, "--store"])
        .arg(store)
        .arg("--output")
        .arg(output)
        .arg("--keys")
        .arg(keys().unwrap())
        .current_dir(workspace())
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<_> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn digests(folder: &Path) -> BTreeMap<String, Digest> {
    names(folder)
        .into_iter()
        .map(|name| {
            let digest = Digest::of_file(&folder.join(&name)).unwrap().0;
            (name, digest)
        })
        .collect()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn vendored_inputs_give_the_same_bytes_without_a_network_to_builds_at_once() {
    let expected: Vec<_> = ["etcd", "worker"]
        .map(|role| digests(&release(IMAGE, role).unwrap()))
        .into();
    let place = folder();
    let (file, store) = (place.path().join("inputs.tar"), place.path().join("store"));
    let mut vendor = command(kimage().unwrap());
    vendor.args(["vendor", "--image", IMAGE, "--role", "etcd", "--role", "worker"]);
    finish(vendor.arg(&file).current_dir(workspace())).unwrap();
    let mut import = command(kimage().unwrap());
    import
        .args(["vendor", "--import"])
        .arg(&file)
        .arg("--store")
        .arg(&store);
    finish(&mut import).unwrap();
    fs::remove_file(&file).unwrap();

    // Twice the same role and another one, on one store.
    let orders = [("etcd", "one"), ("etcd", "two"), ("worker", "one")];
    let output = |name: &str| place.path().join(name);
    let builds = orders.map(|(role, out)| {
        let mut unshare = command("unshare");
        unshare
            .args(["--user", "--map-root-user", "--net"])
            .arg(kimage().unwrap());
        build(&mut unshare, role, &store, &output(out));
        unshare.stdout(Stdio::null()).stderr(Stdio::piped());
        unshare.spawn().unwrap()
    });
    for (build, (role, out)) in builds.into_iter().zip(orders) {
        let ended = build.wait_with_output().unwrap();
        assert!(ended.status.success(), "{role} {out}: {}", stderr(&ended));
    }
    for (role, out) in orders {
        let made = digests(&output(out).join(role));
        assert!(
            made.len() > 10 && expected[usize::from(role == "worker")] == made,
            "{role} {out}: {made:#?}"
        );
    }
    assert_eq!(names(&output("one")), ["etcd", "worker"]);
    assert_eq!(names(&store.join("scratch")), [""; 0]);
    assert_eq!(names(&store.join("locks")), [""; 0]);
}

/// Kills the build when it says `line`, and a little later.
fn kill_at(mut build: Command, line: &str, later: Duration) {
    let mut child = build
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = Vec::new();
    let mut reader = BufReader::new(child.stderr.take().unwrap());
    loop {
        let mut text = String::new();
        assert!(
            reader.read_line(&mut text).unwrap() > 0,
            "ended before it said `{line}`: {said:?}"
        );
        let found = text.starts_with(line);
        said.push(text);
        if found {
            break;
        }
    }
    std::thread::sleep(later);
    child.kill().unwrap();
    let status = child.wait().unwrap();
    assert_eq!(
        status.signal(),
        Some(9),
        "finished before it was killed: {status}, {said:?}"
    );
}

#[test]
fn a_killed_build_leaves_no_half_release_and_the_next_run_goes_on() {
    let expected = digests(&release(IMAGE, "etcd").unwrap());
    let place = folder();
    let (store, output) = (linked_store(place.path()), place.path().join("out"));
    let order = |more: &[&str]| {
        let mut kimage = command(kimage().unwrap());
        build(&mut kimage, "etcd", &store, &output).args(more);
        kimage
    };
    let moment = Duration::from_millis(30);
    for (line, later) in [
        ("unpack packages ...", Duration::from_millis(700)),
        ("configure packages ...", Duration::from_millis(700)),
        ("compress root filesystem ...", moment),
        ("write the disk ...", moment),
        ("write disk.qcow2 ...", moment),
    ] {
        kill_at(order(&[]), line, later);
        assert!(
            !output.join("etcd").exists(),
            "{line}: a release appeared before it was whole"
        );
    }
    finish(&mut order(&[])).unwrap();
    assert_eq!(digests(&output.join("etcd")), expected);
    assert_eq!(names(&output), ["etcd"], "what killed builds left");
    assert_eq!(names(&store.join("scratch")), [""; 0], "what killed builds left");

    // A release that is there stays whole until the new one is.
    kill_at(order(&["--format", "raw"]), "write the disk ...", moment);
    assert_eq!(digests(&output.join("etcd")), expected);
    finish(&mut order(&[])).unwrap();
    finish(&mut order(&["--format", "raw"])).unwrap();
    assert!(!output.join("etcd/disk.qcow2").exists());
    assert_eq!(names(&output), ["etcd"]);
}

/// Runs a build with a small filesystem of its own mounted at `mount`, and lists what is in the output folder after.
fn build_with_little_room(script: &str, mount: &Path, store: &Path, output: &Path) -> Output {
    fs::create_dir_all(mount).unwrap();
    let script = format!("{script} && {{ \"$@\"; code=$?; ls -A \"$OUTPUT\"; exit $code; }}");
    let mut unshare = command("unshare");
    unshare
        .args(["--user", "--map-root-user", "--mount", "sh", "-c", &script, "sh"])
        .arg(kimage().unwrap())
        .env("MOUNT", mount)
        .env("OUTPUT", output)
        .env("OWN", Store::default_root().unwrap());
    build(&mut unshare, "etcd", store, output).output().unwrap()
}

#[test]
fn a_full_disk_is_told_with_place_and_remedy_and_leaves_nothing() {
    let built = release(IMAGE, "etcd").unwrap();
    let place = folder();
    let output = place.path().join("out");
    fs::create_dir(&output).unwrap();
    let told = |ended: &Output, words: &[&str]| {
        let text = stderr(ended);
        assert_eq!(ended.status.code(), Some(1), "{text}");
        for word in ["No space left on device", "hint: free some space"]
            .iter()
            .chain(words)
        {
            assert!(text.contains(word), "no `{word}` in: {text}");
        }
        let errors = text.lines().filter(|line| line.starts_with("error: ")).count();
        assert_eq!(errors, 1, "{text}");
        assert_eq!(
            String::from_utf8_lossy(&ended.stdout),
            "",
            "left in the output folder"
        );
    };
    let own = Store::default_root().unwrap();
    // Room for half of each of the three large files, one after the other.
    let stored = |name: &str| built.join(name).metadata().unwrap().blocks() * 512;
    let (raw, qcow2, uki) = (stored("disk.raw"), stored("disk.qcow2"), stored("kernel.efi"));
    for (size, file) in [
        (raw / 2, "disk.raw"),
        (raw + qcow2 / 2, "disk.qcow2"),
        (raw + qcow2 + uki / 2, "kernel.efi"),
    ] {
        let mount = format!("mount -t tmpfs -o size={size} tmpfs \"$MOUNT\"");
        told(
            &build_with_little_room(&mount, &output, &own, &output),
            &[output.to_str().unwrap(), file],
        );
    }
    // The store: full while packages are unpacked.
    let store = place.path().join("store");
    let mount = "mount -t tmpfs -o size=60m tmpfs \"$MOUNT\" && mkdir \"$MOUNT/artifacts\" && ln -s \"$OWN/blobs\" \"$MOUNT\" \
        && for kind in component toolchain; do ln -s \"$OWN/artifacts/$kind\" \"$MOUNT/artifacts\"; done";
    told(
        &build_with_little_room(mount, &store, &store, &output),
        &["unpack "],
    );
}

/// A copy to take [`Copy`]s of: a new link to a file of the release itself would make the next build look at it anew.
fn copied(release: &Path) -> tempfile::TempDir {
    let folder = folder();
    finish(
        command("cp")
            .args(["-rT", "--sparse=always"])
            .arg(release)
            .arg(folder.path()),
    )
    .unwrap();
    folder
}

/// A release that a test may damage: the files are links until [`Copy::own`].
struct Copy {
    folder: tempfile::TempDir,
}

impl Copy {
    fn of(release: &Path) -> Self {
        let copy = Self { folder: folder() };
        for name in names(release) {
            fs::hard_link(release.join(&name), copy.path().join(name)).unwrap();
        }
        copy
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Makes `name` a file of its own, and returns it opened.
    fn own(&self, name: &str) -> File {
        let (file, beside) = (self.path().join(name), self.path().join("beside"));
        finish(command("cp").arg("--sparse=always").arg(&file).arg(&beside)).unwrap();
        fs::rename(&beside, &file).unwrap();
        File::options().read(true).write(true).open(&file).unwrap()
    }

    fn flip(&self, name: &str, offset: u64) {
        let (file, mut byte) = (self.own(name), [0]);
        file.read_exact_at(&mut byte, offset).unwrap();
        file.write_all_at(&[byte[0] ^ 1], offset).unwrap();
    }

    /// Exit code and the names of the checks that failed.
    fn verify(&self, key: &Path) -> (i32, Vec<String>) {
        let mut verify = command(kimage().unwrap());
        verify
            .args(["verify", "--json", "--key"])
            .arg(key)
            .arg(self.path());
        let output = verify.output().unwrap();
        let findings: Vec<serde_json::Value> =
            serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"));
        let failed = findings
            .iter()
            .filter(|finding| finding["state"] == "mismatch" || finding["state"] == "contradiction");
        let failed: Vec<String> = failed
            .map(|finding| finding["check"].as_str().unwrap().to_owned())
            .collect();
        for name in &failed {
            assert!(
                stderr(&output).contains(name.as_str()),
                "{name} is not in: {}",
                stderr(&output)
            );
        }
        (output.status.code().unwrap(), failed)
    }
}

#[test]
fn verify_names_what_was_changed_in_a_release() {
    let (release, key) = (copied(&release(IMAGE, "etcd").unwrap()), keys().unwrap());
    let release = release.path();
    let manifest = Manifest::from_json(&fs::read(release.join("manifest.json")).unwrap()).unwrap();
    let inside = |name: &str| {
        let found = manifest
            .partitions
            .iter()
            .find(|partition| partition.name == name);
        found.unwrap().offset + 4096 + 17
    };
    assert_eq!(Copy::of(release).verify(&key), (0, vec![]));

    type Damage<'a> = Box<dyn Fn(&Copy) + 'a>;
    let flip =
        |name: &'static str, offset: u64| -> Damage<'_> { Box::new(move |copy| copy.flip(name, offset)) };
    let remove = |name: &'static str| -> Damage<'_> {
        Box::new(move |copy| fs::remove_file(copy.path().join(name)).unwrap())
    };
    let length = |name: &str| release.join(name).metadata().unwrap().len();
    // A claim that reads as well as the signed one.
    let lie: Damage<'_> = Box::new(|copy| {
        let path = copy.path().join("manifest.json");
        let text = fs::read_to_string(&path).unwrap();
        let changed = text.replace("\"role\": \"etcd\"", "\"role\": \"evil\"");
        assert_ne!(text, changed);
        fs::remove_file(&path).unwrap();
        fs::write(&path, changed).unwrap();
    });
    let cases: [(Damage<'_>, &[&str]); 13] = [
        (lie, &["manifest.json.sig"]),
        (flip("manifest.json.sig", 0), &["manifest.json.sig"]),
        (flip("disk.raw", 600), &["file disk.raw", "partition table"]),
        (
            flip("disk.raw", inside("esp")),
            &["file disk.raw", "partition esp"],
        ),
        (
            flip("disk.raw", inside("root-a")),
            &["file disk.raw", "partition root-a", "verity"],
        ),
        (
            flip("disk.raw", inside("root-a-verity")),
            &["file disk.raw", "partition root-a-verity", "verity"],
        ),
        (flip("disk.qcow2", length("disk.qcow2") / 2), &["file disk.qcow2"]),
        (
            flip("kernel.efi", length("kernel.efi") / 2),
            &["file kernel.efi", "uki signature"],
        ),
        (flip("sbom.cdx.json", 100), &["file sbom.cdx.json"]),
        (flip("ovmf-vars.fd", 1000), &["file ovmf-vars.fd"]),
        (remove("kernel.efi"), &["file kernel.efi"]),
        (remove("sbom.spdx.json"), &["file sbom.spdx.json"]),
        (remove("manifest.json.sig"), &["manifest.json.sig"]),
    ];
    for (damage, expected) in cases {
        let copy = Copy::of(release);
        damage(&copy);
        let (code, failed) = copy.verify(&key);
        assert_eq!(code, 5, "{expected:?}: {failed:?}");
        for name in expected {
            assert!(failed.iter().any(|failed| failed == name), "{name}: {failed:?}");
        }
    }

    let copy = Copy::of(release);
    let foreign = copy.path().join("../foreign-keys");
    let _ = fs::remove_dir_all(&foreign);
    finish(command(kimage().unwrap()).args(["keys", "new"]).arg(&foreign)).unwrap();
    let (code, failed) = copy.verify(&foreign);
    fs::remove_dir_all(&foreign).unwrap();
    assert!(
        code == 5 && failed.contains(&"manifest.json.sig".to_owned()),
        "{code} {failed:?}"
    );
}

#[test]
fn inspect_and_diff_say_what_is_in_real_releases() {
    let (etcd, worker) = (release(IMAGE, "etcd").unwrap(), release(IMAGE, "worker").unwrap());
    let manifest = Manifest::from_json(&fs::read(etcd.join("manifest.json")).unwrap()).unwrap();
    let say = |arguments: &[&str], folders: &[&Path]| {
        let mut told = command(kimage().unwrap());
        String::from_utf8(finish(told.args(arguments).args(folders)).unwrap().stdout).unwrap()
    };
    let json = |text: String| serde_json::from_str::<serde_json::Value>(&text).unwrap();

    let text = say(&["inspect"], &[&etcd]);
    let hash = manifest.root.hash.to_string();
    for expected in [
        "role          etcd",
        &manifest.version,
        &hash,
        "root-a-verity",
        "disk.qcow2",
        &manifest.kernel.version,
    ] {
        assert!(text.contains(expected), "no `{expected}` in: {text}");
    }
    let inspected = json(say(&["inspect", "--json"], &[&etcd]));
    assert_eq!(inspected["root"]["hash"], hash);
    assert!(inspected["go-modules"].as_u64().unwrap() > 10, "{inspected}");

    assert_eq!(say(&["diff"], &[&etcd, &etcd]), "identical\n");
    let text = say(&["diff"], &[&etcd, &worker]);
    for expected in [
        "- etcd v3.",
        "+ cni-plugins ",
        "+ containerd ",
        "+ /usr/bin/kubelet",
        "- /usr/bin/etcd",
    ] {
        assert!(
            text.contains(expected),
            "no `{expected}` in: {}",
            &text[..text.len().min(4000)]
        );
    }
    let difference = json(say(&["diff", "--json"], &[&etcd, &worker]));
    let added = |list: &str, name: &str| {
        let changes = difference[list].as_array().unwrap();
        changes
            .iter()
            .any(|change| change["change"] == "added" && change["name"] == name)
    };
    assert!(added("packages", "nfs-common"), "{}", difference["packages"]);
    assert!(added("components", "cni-plugins"), "{}", difference["components"]);

    // Both believe a manifest only when it is signed.
    let whole = copied(&etcd);
    let copy = Copy::of(whole.path());
    copy.flip("manifest.json", 20);
    for arguments in [&["inspect"][..], &["diff", etcd.to_str().unwrap()]] {
        let mut refused = command(kimage().unwrap());
        let output = refused.args(arguments).arg(copy.path()).output().unwrap();
        assert_eq!(output.status.code(), Some(5), "{output:?}");
        assert!(stderr(&output).contains("manifest.json"), "{output:?}");
    }
}
