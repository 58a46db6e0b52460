//! Everything that can go wrong before a real image is needed, through the real `kimage`: hostile packages, servers
//! that hang up, kills, crowds, disks without room or rights. One clear error, and nothing half is left.

#![expect(clippy::unwrap_used, reason = "a helper that cannot go on fails its test")]

#[path = "lock/archive.rs"]
#[expect(dead_code, reason = "shared with the tests of the lock, which use the rest")]
mod archive;
#[path = "download/server.rs"]
#[expect(dead_code, reason = "shared with the tests of downloads, which use the rest")]
mod server;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use archive::{Bench, package};
use kimage_builder::digest::Digest;
use kimage_builder::tool::Tool;
use server::{Server, serve, serve_cut, wait_for_hangup};

const KIMAGE: &str = env!("CARGO_BIN_EXE_kimage");

/// The command ended with `code`, with one error that has each of `words`.
#[track_caller]
fn ended(output: &Output, code: i32, words: &[&str]) {
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{text}");
    for word in words {
        assert!(text.contains(word), "no `{word}` in: {text}");
    }
    let errors = text.lines().filter(|line| line.starts_with("error: ")).count();
    assert_eq!(errors, usize::from(code != 0), "{text}");
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten();
    let mut names: Vec<_> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// One member of a tarball, with a header that may lie.
#[derive(Clone, Copy)]
struct Item<'a> {
    name: &'a str,
    kind: u8,
    link: &'a str,
    body: &'a [u8],
    claimed: u64,
}

fn file<'a>(name: &'a str, body: &'a [u8]) -> Item<'a> {
    Item {
        name,
        kind: b'0',
        link: "",
        body,
        claimed: body.len() as u64,
    }
}

fn other<'a>(name: &'a str, kind: u8, link: &'a str) -> Item<'a> {
    Item {
        kind,
        link,
        ..file(name, b"")
    }
}

fn tarball(items: &[Item<'_>]) -> Vec<u8> {
    let mut out = Vec::new();
    for item in items {
        let mut header = tar::Header::new_gnu();
        let fields = header.as_old_mut();
        fields.name[..item.name.len()].copy_from_slice(item.name.as_bytes());
        fields.linkname[..item.link.len()].copy_from_slice(item.link.as_bytes());
        header.set_entry_type(tar::EntryType::new(item.kind));
        header.set_mode(0o755);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(item.claimed);
        header.set_cksum();
        out.extend(header.as_bytes());
        out.extend(item.body);
        out.resize(out.len().next_multiple_of(512), 0);
    }
    out.resize(out.len() + 1024, 0);
    out
}

/// An `ar` archive; a member may claim another size than it has.
fn ar(members: &[(&str, &[u8], u64)]) -> Vec<u8> {
    let mut out = b"!<arch>\n".to_vec();
    for (name, body, claimed) in members {
        let header = format!(
            "{name:<16}{:<12}{:<6}{:<6}{:<8}{claimed:<10}`\n",
            0, 0, 0, 100_644
        );
        out.extend(header.as_bytes());
        out.extend(*body);
        out.resize(out.len().next_multiple_of(2), b'\n');
    }
    out
}

fn deb(name: &str, data: &[Item<'_>]) -> Vec<u8> {
    deb_with(name, &tarball(data), None)
}

fn deb_with(name: &str, data: &[u8], claimed: Option<u64>) -> Vec<u8> {
    let control =
        format!("Package: {name}\nVersion: 1\nArchitecture: amd64\nMaintainer: x\nDescription: x\n");
    let control = tarball(&[file("./control", control.as_bytes())]);
    let length = |bytes: &[u8]| bytes.len() as u64;
    ar(&[
        ("debian-binary", b"2.0\n", 4),
        ("control.tar", &control, length(&control)),
        ("data.tar", data, claimed.unwrap_or(length(data))),
    ])
}

/// A package's name and its .deb.
type Package = (&'static str, Vec<u8>);

/// The archive of [`Bench`] whose base is these packages.
fn archive_of(debs: &[Package]) -> Bench {
    let mut bench = Bench::timeless();
    bench.install = debs.iter().map(|(name, _)| *name).collect();
    bench.packages = debs
        .iter()
        .map(|(name, bytes)| stanza(name, bytes.len() as u64, &Digest::of(bytes)))
        .collect();
    bench.packages.push(package("agent", "3", ""));
    bench.write_definition();
    bench.publish();
    for (name, bytes) in debs {
        bench.write(&bench.mirror().join(format!("pool/{name}_1.deb")), bytes);
    }
    ended(&bench.kimage(&["lock", "--image", "base"]), 0, &[]);
    bench
}

fn stanza(name: &str, size: u64, digest: &Digest) -> String {
    format!(
        "Package: {name}\nVersion: 1\nArchitecture: amd64\nFilename: pool/{name}_1.deb\nSize: {size}\n\
         SHA256: {digest}\nPriority: optional\n"
    )
}

fn build(bench: &Bench) -> (Output, PathBuf) {
    let out = bench.folder.path().join("out");
    let output = bench.kimage(&[
        "build",
        "--image",
        "base",
        "--role",
        "other",
        "--output",
        text(&out),
    ]);
    (output, out)
}

#[test]
fn hostile_packages_are_refused_by_name_and_write_nothing() {
    let elsewhere = tempfile::tempdir().unwrap();
    let (target, below) = (text(elsewhere.path()), "./usr/way/evil");
    let absolute = format!("{target}/evil");
    let one = |items: &[Item<'_>]| vec![("evil", deb("evil", items))];
    let huge = Item {
        claimed: 10 << 30,
        ..file("./huge", b"little")
    };
    let folder = other("./usr/", b'5', "");
    let cases: Vec<(Vec<Package>, &str)> = vec![
        (
            one(&[file("../../../../../../tmp/kimage-evil", b"x")]),
            "../../tmp/kimage-evil",
        ),
        (one(&[file(&absolute, b"x")]), &absolute),
        (one(&[folder, other("./usr/disk", b'4', "")]), "./usr/disk"),
        (one(&[folder, other("./usr/null", b'3', "")]), "./usr/null"),
        (
            one(&[folder, other("./usr/way", b'2', target), file(below, b"x")]),
            below,
        ),
        (
            one(&[folder, other("./usr/hard", b'1', "../../etc/shadow")]),
            "./usr/hard",
        ),
        (one(&[huge]), "./huge"),
        (
            vec![("evil", deb_with("evil", &tarball(&[]), Some(9_999_999_999)))],
            "9999999999",
        ),
        (vec![("evil", deb_with("evil", b"", None))], "data.tar"),
        (vec![("evil", Vec::new())], "not a .deb"),
        (vec![("evil", b"agent 3".to_vec())], "not a .deb"),
    ];
    for (debs, word) in cases {
        let (output, out) = build(&archive_of(&debs));
        ended(&output, 1, &["evil", word]);
        assert_eq!(names(&out), [""; 0], "{word}");
    }
    // One package puts a link, the other writes through it.
    let bench = archive_of(&[
        ("evil", deb("evil", &[folder, file(below, b"x")])),
        ("way", deb("way", &[folder, other("./usr/way", b'2', target)])),
    ]);
    let (output, out) = build(&bench);
    ended(&output, 1, &["unpack ", "usr/way"]);
    assert_eq!(names(&out), [""; 0]);
    assert_eq!(names(elsewhere.path()), [""; 0], "written outside");
    assert!(!Path::new("/tmp/kimage-evil").exists());
}

#[test]
fn a_package_that_claims_10_gb_is_not_fetched() {
    let mut bench = Bench::timeless();
    bench.packages[2] =
        stanza("vim", 10 << 30, &Digest::of(b"vim 9.1")).replace("Priority", "Provides: editor\nPriority");
    bench.publish();
    bench.write(&bench.mirror().join("pool/vim_1.deb"), b"vim 9.1");
    ended(&bench.kimage(&["lock", "--image", "base"]), 0, &[]);
    let (store, out) = (bench.folder.path().join("store"), bench.folder.path().join("out"));
    let arguments = [
        "build",
        "--image",
        "base",
        "--role",
        "other",
        "--output",
        text(&out),
        "--store",
        text(&store),
    ];
    let small = "mount -t tmpfs -o size=64m tmpfs \"$MOUNT\"";
    let output = mounted(&bench, small, &store, &arguments);
    ended(&output, 1, &["free, but 10.7 GB", "hint: free some space"]);
    assert_eq!(names(&out), [""; 0]);
    // With room: the file has another length.
    let (output, out) = build(&bench);
    if bench.store().free_space().unwrap() > 11 << 30 {
        ended(&output, 5, &["vim 1", "hint: "]);
    }
    assert_ne!(output.status.code(), Some(0));
    assert_eq!(names(&out), [""; 0]);
}

/// Serves the mirror of `bench`; `large` as `answer` says.
fn served(
    bench: &Bench,
    answer: impl Fn(&server::Seen, &mut std::net::TcpStream, &[u8]) + Send + Sync + 'static,
) -> (Server, String) {
    let root = bench.mirror().parent().unwrap().to_owned();
    let server = Server::start(move |request, stream| {
        match fs::read(root.join(request.path().trim_start_matches('/'))) {
            Ok(bytes) if request.path().contains("large") => answer(request, stream, &bytes),
            Ok(bytes) => serve(request, stream, &bytes, "\"one\""),
            Err(_) => server::reply(stream, "404 Not Found", "", b""),
        }
    });
    let url = server.url("/test");
    (server, url)
}

/// An archive with a package `large` of a megabyte, and a vendor file that the command would make of it.
fn large() -> (Bench, Vec<u8>) {
    let mut state = 1_u32;
    let mut noise = Vec::new();
    while noise.len() < 1 << 20 {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        noise.push((state >> 24) as u8);
    }
    let bench = archive_of(&[("large", deb("large", &[file("./noise", &noise)]))]);
    ended(&vendor(&bench, &bench.mirror_url()), 0, &[]);
    let expected = fs::read(vendor_file(&bench)).unwrap();
    fs::remove_file(vendor_file(&bench)).unwrap();
    fs::remove_dir_all(bench.folder.path().join("store")).unwrap();
    (bench, expected)
}

fn vendor_file(bench: &Bench) -> PathBuf {
    bench.folder.path().join("inputs.tar")
}

fn vendor(bench: &Bench, mirror: &str) -> Output {
    bench.kimage_from(mirror, &["vendor", "--image", "base", text(&vendor_file(bench))])
}

/// Starts `kimage vendor` as [`vendor`] runs it.
fn start_vendor(bench: &Bench, mirror: &str, file: &Path) -> std::process::Child {
    let mut command = Tool::new(KIMAGE)
        .args([
            "vendor",
            "--image",
            "base",
            text(file),
            "--mirror",
            mirror,
            "--store",
        ])
        .arg(bench.folder.path().join("store"))
        .arg("--definitions")
        .arg(bench.root())
        .into_command();
    command.stdout(Stdio::null()).stderr(Stdio::piped());
    command.spawn().unwrap()
}

fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let begin = Instant::now();
    while !condition() {
        assert!(begin.elapsed() < Duration::from_secs(60), "no {what} in a minute");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn a_truncated_download_is_told_and_continued_by_the_next_run() {
    let (bench, expected) = large();
    let whole = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&whole);
    // The connection ends in the middle, and further ones end at once.
    let (server, url) = served(&bench, move |request, stream, bytes| {
        let limit = match (told.load(Ordering::Relaxed), request.range()) {
            (true, _) => usize::MAX,
            (false, None) => 600_000,
            (false, Some(_)) => 0,
        };
        serve_cut(request, stream, bytes, "\"one\"", limit);
    });
    let output = vendor(&bench, &url);
    ended(&output, 4, &["large 1", &url, "hint: "]);
    assert!(!vendor_file(&bench).exists());
    whole.store(true, Ordering::Relaxed);
    ended(&vendor(&bench, &url), 0, &[]);
    assert!(fs::read(vendor_file(&bench)).unwrap() == expected);
    let last = server
        .seen()
        .into_iter()
        .rfind(|seen| seen.path().contains("large"))
        .unwrap();
    assert!(last.range().is_some_and(|start| start > 0), "{last:?}");
}

#[test]
fn a_run_that_was_killed_while_it_fetched_is_continued_by_the_next() {
    let (bench, expected) = large();
    let (_hanging, url) = served(&bench, |request, stream, bytes| {
        serve_cut(request, stream, bytes, "\"one\"", 700_000);
        wait_for_hangup(stream);
    });
    let partial = bench.folder.path().join("store/partial");
    let fetched = || {
        let parts = names(&partial).into_iter().map(|name| partial.join(name));
        parts
            .map(|part| part.metadata().map_or(0, |data| data.len()))
            .sum::<u64>()
    };
    let mut child = start_vendor(&bench, &url, &vendor_file(&bench));
    wait_until("partial download", || fetched() > 100_000);
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!vendor_file(&bench).exists());

    // Another server at another address, with the same file.
    let (honest, url) = served(&bench, |request, stream, bytes| {
        serve(request, stream, bytes, "\"one\"")
    });
    ended(&vendor(&bench, &url), 0, &[]);
    assert!(fs::read(vendor_file(&bench)).unwrap() == expected);
    assert!(!honest.seen().is_empty());
    assert_eq!(names(&partial), [""; 0]);
    assert_eq!(names(&bench.folder.path().join("store/scratch")), [""; 0]);
}

#[test]
fn two_runs_at_once_on_one_store_both_succeed_and_fetch_once() {
    let (bench, expected) = large();
    // Slow enough that both want it at the same time.
    let (server, url) = served(&bench, |request, stream, bytes| {
        std::thread::sleep(Duration::from_millis(500));
        serve(request, stream, bytes, "\"one\"");
    });
    let files = ["one.tar", "two.tar", "three.tar"].map(|name| bench.folder.path().join(name));
    let children = files.each_ref().map(|file| start_vendor(&bench, &url, file));
    for (child, file) in children.into_iter().zip(&files) {
        let output = child.wait_with_output().unwrap();
        ended(&output, 0, &[]);
        assert!(fs::read(file).unwrap() == expected, "{}", file.display());
    }
    let fetched = server
        .seen()
        .iter()
        .filter(|seen| seen.path().contains("large"))
        .count();
    assert_eq!(fetched, 1);
    assert_eq!(names(&bench.folder.path().join("store/locks")), [""; 0]);
}

#[test]
fn a_damaged_blob_is_told_and_fetched_again_and_never_used() {
    let (bench, expected) = large();
    ended(&vendor(&bench, &bench.mirror_url()), 0, &[]);
    let digest = Digest::of(&fs::read(bench.mirror().join("pool/large_1.deb")).unwrap());
    let damage = || {
        let blob = bench.store().blob_path(&digest);
        let mut bytes = fs::read(&blob).unwrap();
        bytes[300_000] ^= 1;
        fs::set_permissions(&blob, fs::Permissions::from_mode(0o644)).unwrap();
        fs::write(&blob, bytes).unwrap();
    };
    damage();
    ended(
        &vendor(&bench, &bench.mirror_url()),
        0,
        &["is damaged", &digest.to_string()],
    );
    assert!(fs::read(vendor_file(&bench)).unwrap() == expected);

    damage();
    fs::remove_file(vendor_file(&bench)).unwrap();
    let offline = [
        "vendor",
        "--offline",
        "--image",
        "base",
        text(&vendor_file(&bench)),
    ]
    .map(str::to_owned);
    let offline: Vec<&str> = offline.iter().map(String::as_str).collect();
    ended(&bench.kimage(&offline), 4, &["is damaged", "large 1", "hint: "]);
    assert!(!vendor_file(&bench).exists());
}

/// Runs `kimage` after `mount` on a filesystem of its own at `$MOUNT`; then what is there, on standard output.
fn mounted(bench: &Bench, mount: &str, place: &Path, arguments: &[&str]) -> Output {
    fs::create_dir_all(place).unwrap();
    let script = format!("{mount} && {{ \"$@\"; code=$?; ls -A \"$MOUNT\"; exit $code; }}");
    Tool::new("unshare")
        .args([
            "--user",
            "--map-root-user",
            "--mount",
            "sh",
            "-c",
            &script,
            "sh",
            KIMAGE,
        ])
        .args(arguments)
        .args(["--mirror", &bench.mirror_url(), "--definitions"])
        .arg(bench.root())
        .env("MOUNT", place)
        .inherit(&["PATH"])
        .output()
        .unwrap()
}

#[test]
fn a_full_disk_is_told_with_place_and_remedy_and_leaves_nothing_half() {
    let (bench, _) = large();
    let (store, small) = (
        bench.folder.path().join("store"),
        bench.folder.path().join("small"),
    );
    let (store_text, tiny) = (text(&store), "mount -t tmpfs -o size=500k tmpfs \"$MOUNT\"");
    let file = small.join("inputs.tar");
    let output = mounted(
        &bench,
        tiny,
        &small,
        &["vendor", "--image", "base", text(&file), "--store", store_text],
    );
    ended(
        &output,
        1,
        &["No space left on device", text(&file), "hint: free some space"],
    );
    assert!(output.stdout.is_empty(), "{output:?}");

    fs::remove_dir_all(&store).unwrap();
    let to = bench.folder.path().join("inputs.tar");
    let output = mounted(
        &bench,
        tiny,
        &store,
        &["vendor", "--image", "base", text(&to), "--store", store_text],
    );
    ended(&output, 1, &[store_text, "free", "hint: ", "--store DIR"]);
    assert!(!to.exists());

    // The lock stays what it was.
    let before = fs::read(bench.lock_file()).unwrap();
    let image = bench.root().join("images/base");
    let full = "cp -r \"$MOUNT\" \"$MOUNT.copy\" && mount -t tmpfs -o size=32k tmpfs \"$MOUNT\" \
        && cp \"$MOUNT.copy/image.toml\" \"$MOUNT.copy/key.asc\" \"$MOUNT\" \
        && { cat /dev/zero > \"$MOUNT/zero\" || true; } 2> /dev/null";
    let output = mounted(
        &bench,
        full,
        &image,
        &[
            "lock",
            "--image",
            "base",
            "--store",
            text(&bench.folder.path().join("other-store")),
        ],
    );
    ended(
        &output,
        1,
        &["No space left on device", "image.lock", "hint: free some space"],
    );
    let left = String::from_utf8(output.stdout).unwrap();
    assert_eq!(
        left.lines().collect::<Vec<_>>(),
        ["image.toml", "key.asc", "zero"]
    );
    assert_eq!(fs::read(bench.lock_file()).unwrap(), before);
}

#[test]
fn a_folder_that_cannot_be_written_to_is_told_before_any_work() {
    let (bench, _) = large();
    let out = bench.folder.path().join("out");
    let (store, untouched) = (
        bench.folder.path().join("store"),
        bench.folder.path().join("store/blobs"),
    );
    let arguments = [
        "build",
        "--image",
        "base",
        "--role",
        "other",
        "--output",
        text(&out),
        "--store",
        text(&store),
    ];
    let output = mounted(&bench, "mount -t tmpfs -o ro tmpfs \"$MOUNT\"", &out, &arguments);
    let words = ["write to output folder", text(&out), "hint: ", "--output"];
    ended(&output, 1, &[&words[..], &["Read-only file system"]].concat());
    assert!(output.stdout.is_empty() && !untouched.exists(), "{output:?}");

    // As somebody without rights. Root becomes nobody, who may not look into the folder where cargo put the program.
    let program = bench.folder.path().join("kimage");
    fs::copy(KIMAGE, &program).unwrap();
    fs::set_permissions(&out, fs::Permissions::from_mode(0o555)).unwrap();
    let mut run = Tool::new(text(&program));
    if rustix::process::getuid().is_root() {
        // The store is root's.
        fs::remove_dir_all(&store).unwrap();
        fs::create_dir(&store).unwrap();
        for (path, mode) in [(bench.folder.path(), 0o755), (store.as_path(), 0o777)] {
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        }
        run = Tool::new("setpriv")
            .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
            .arg(&program);
    }
    let output = run
        .args(arguments)
        .args(["--mirror", &bench.mirror_url(), "--definitions"])
        .arg(bench.root())
        .inherit(&["PATH"])
        .output()
        .unwrap();
    ended(&output, 1, &[&words[..], &["Permission denied"]].concat());
    assert!(!untouched.exists());
    assert_eq!(names(&out), [""; 0]);
}

#[test]
fn wrong_roles_are_refused_with_file_and_line() {
    let bench = Bench::timeless();
    let role = bench.root().join("roles/worker/role.toml");
    let good = fs::read_to_string(&role).unwrap();
    for (added, place, why) in [
        (
            "colour = \"red\"\n",
            "roles/worker/role.toml:3: ",
            "unknown key `colour`",
        ),
        ("components = [\"etdc\"]\n", "roles/worker/role.toml:3", "etdc"),
    ] {
        let lines: Vec<&str> = good.lines().collect();
        let text = format!("{}\n{added}{}\n", lines[..2].join("\n"), lines[2..].join("\n"));
        bench.write(&role, text.as_bytes());
        ended(&bench.kimage(&["lock", "--image", "base"]), 2, &[place, why]);
        assert!(!bench.lock_file().exists());
    }
}
