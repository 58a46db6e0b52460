//! From a definition and a signed archive to `image.lock`, with archives that lie.

#![expect(clippy::unwrap_used, reason = "a helper that cannot go on fails its test")]

#[path = "lock/apt.rs"]
mod apt;
#[path = "lock/archive.rs"]
mod archive;

use std::process::Output;

use kimage_builder::archive::suites;
use kimage_builder::download::Network;
use kimage_builder::failure::{ExitCode, exit_code, hints};
use kimage_builder::inputs;
use kimage_builder::lock::{Lock, Pins, changes};
use kimage_builder::progress::Progress;
use sequoia_openpgp::cert::CertRevocationBuilder;
use sequoia_openpgp::serialize::SerializeInto;
use sequoia_openpgp::types::ReasonForRevocation;

use archive::{Bench, certificate, lasting_certificate, package, sign, sign_at, time};

const NEWEST: Pins<'static> = Pins::Newest(None);

/// The archive is refused with `code`, for the reason `why`.
fn refused(bench: &Bench, code: ExitCode, why: &str) {
    let error = bench.read().err().expect("a lying archive was believed");
    let text = format!("{error:#}");
    assert!(
        exit_code(&error) == code && text.contains(why),
        "{:?}: {text}",
        exit_code(&error)
    );
}

/// The command ended with `code` and said each of `words` on standard error.
#[track_caller]
fn ended(output: &Output, code: i32, words: &[&str]) {
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{text}");
    for word in words {
        assert!(text.contains(word), "no `{word}` in: {text}");
    }
}

fn names(lock: &Lock, role: &str) -> Vec<String> {
    lock.packages_of(role)
        .map(|package| package.name.clone())
        .collect()
}

fn version(lock: &Lock, name: &str) -> String {
    lock.package
        .iter()
        .find(|package| package.name == name)
        .unwrap()
        .version
        .clone()
}

#[test]
fn a_lock_holds_the_base_and_each_role() {
    let bench = Bench::new();
    bench.publish();
    let lock = bench.resolve(&NEWEST).unwrap();
    assert_eq!(names(&lock, "worker"), ["agent", "libc6", "tool", "vim"]);
    assert_eq!(names(&lock, "other"), ["libc6", "tool", "vim"]);
    assert_eq!(lock.suite[0].signer, bench.certificate.fingerprint().to_hex());
    assert_eq!(lock.suite[0].date, "2024-06-20T12:00:00Z");
    assert_eq!(
        i64::from(lock.epoch),
        "2024-06-20T12:00:00Z"
            .parse::<jiff::Timestamp>()
            .unwrap()
            .as_second()
    );
}

#[test]
fn the_command_writes_the_lock_lists_it_and_writes_the_same_again() {
    let bench = Bench::timeless();
    ended(&bench.kimage(&["lock", "--image", "base"]), 0, &["4 packages"]);
    let text = std::fs::read(bench.lock_file()).unwrap();
    ended(
        &bench.kimage(&["lock", "--image", "base", "--update"]),
        0,
        &["0 changes"],
    );
    assert_eq!(std::fs::read(bench.lock_file()).unwrap(), text);

    for (role, expected) in [("worker", 4), ("other", 3)] {
        let output = bench.kimage(&["lock", "--image", "base", "--list", "--role", role, "--json"]);
        ended(&output, 0, &[]);
        let listed: Vec<serde_json::Value> = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(listed.len(), expected, "{role}: {listed:?}");
        let digest = listed[0]["sha256"].as_str().unwrap();
        assert!(
            listed[0]["blob"].as_str().unwrap().ends_with(digest),
            "{listed:?}"
        );
    }
    let unknown = bench.kimage(&["lock", "--image", "base", "--list", "--role", "worke"]);
    ended(&unknown, 2, &["unknown role `worke`", "did you mean `worker`?"]);
}

#[test]
fn an_index_by_hash_is_found() {
    let mut bench = Bench::new();
    bench.by_hash = true;
    bench.publish();
    assert_eq!(bench.read().unwrap().packages.len(), 4);
}

#[test]
fn a_changed_text_is_refused_and_leaves_no_lock() {
    let bench = Bench::timeless();
    let text = std::fs::read_to_string(bench.inrelease()).unwrap();
    bench.write(
        &bench.inrelease(),
        text.replace("Codename: rock", "Codename: sand").as_bytes(),
    );
    ended(
        &bench.kimage(&["lock", "--image", "base"]),
        5,
        &["InRelease of stable", "no good signature", "hint: "],
    );
    let left: Vec<_> = std::fs::read_dir(bench.root().join("images/base"))
        .unwrap()
        .collect();
    assert_eq!(left.len(), 2, "{left:?}");
}

#[test]
fn a_key_that_is_not_pinned_is_refused() {
    let bench = Bench::timeless();
    bench.write(
        &bench.inrelease(),
        &sign(&lasting_certificate(), &bench.release(&bench.index())),
    );
    ended(
        &bench.kimage(&["lock", "--image", "base"]),
        5,
        &["no good signature by a pinned key"],
    );
}

#[test]
fn text_outside_the_signature_is_not_read() {
    let bench = Bench::new();
    bench.publish();
    let good = std::fs::read(bench.inrelease()).unwrap();
    bench.write(
        &bench.inrelease(),
        &[b"Suite: stable\n\n".as_slice(), &good].concat(),
    );
    refused(&bench, ExitCode::Mismatch, "not a clear-signed document");
    bench.write(&bench.inrelease(), bench.release(&bench.index()).as_bytes());
    refused(&bench, ExitCode::Mismatch, "not a clear-signed document");
    bench.write(&bench.inrelease(), &good[..good.len() / 2]);
    refused(&bench, ExitCode::Mismatch, "InRelease of stable");
    // What follows the signature must not become part of the Release file.
    bench.write(
        &bench.inrelease(),
        &[good.as_slice(), b"\nAcquire-By-Hash: yes\n"].concat(),
    );
    if let Ok(read) = bench.read() {
        assert!(!read.suites[0].release.by_hash);
    }
}

#[test]
fn an_expired_certificate_vouches_for_nothing_even_when_it_dates_back() {
    let mut bench = Bench::new();
    bench.certificate = certificate("2024-01-01T00:00:00Z", 30);
    bench.write_definition();
    bench.publish_signed(|certificate, text| sign_at(certificate, text, "2024-01-15T00:00:00Z"));
    refused(&bench, ExitCode::Mismatch, "no good signature");
}

#[test]
fn a_signature_from_the_future_vouches_for_nothing() {
    let bench = Bench::new();
    bench.publish_signed(|certificate, text| sign_at(certificate, text, "2024-07-15T00:00:00Z"));
    refused(&bench, ExitCode::Mismatch, "no good signature");
}

#[test]
fn a_revoked_certificate_vouches_for_nothing() {
    let mut bench = Bench::new();
    bench.publish();
    bench.read().unwrap();
    let key = bench.certificate.primary_key().key().clone();
    let mut key = key.parts_into_secret().unwrap().into_keypair().unwrap();
    let revocation = CertRevocationBuilder::new()
        .set_reason_for_revocation(ReasonForRevocation::KeyCompromised, b"lost")
        .unwrap()
        .set_signature_creation_time(time("2024-06-21T10:00:00Z"))
        .unwrap()
        .build(&mut key, &bench.certificate, None)
        .unwrap();
    bench.certificate = bench.certificate.clone().insert_packets(revocation).unwrap().0;
    bench.write_definition();
    refused(&bench, ExitCode::Mismatch, "no good signature");
}

#[test]
fn a_pin_without_its_key_file_is_a_wrong_definition() {
    let mut bench = Bench::timeless();
    let other = std::mem::replace(&mut bench.certificate, lasting_certificate());
    bench.write_definition();
    bench.write(
        &bench.root().join("images/base/key.asc"),
        &other.armored().to_vec().unwrap(),
    );
    ended(
        &bench.kimage(&["lock", "--image", "base"]),
        2,
        &["no key file holds the pinned certificate"],
    );
}

#[test]
fn an_expired_state_another_suite_and_the_future_are_refused() {
    for (good, bad, why) in [
        (
            "Thu, 27 Jun 2024 12:00:00",
            "Fri, 21 Jun 2024 11:59:59",
            "expired",
        ),
        (
            "Suite: stable\nCodename: rock",
            "Suite: stable-security\nCodename: stable",
            "is for suite stable-security",
        ),
        ("Thu, 20 Jun 2024", "Sun, 23 Jun 2024", "in the future"),
    ] {
        let mut bench = Bench::new();
        assert!(bench.fields.contains(good));
        bench.fields = bench.fields.replace(good, bad);
        bench.publish();
        refused(&bench, ExitCode::Mismatch, why);
    }
    // The command looks at the clock itself.
    let bench = Bench::new();
    bench.publish();
    ended(
        &bench.kimage(&["lock", "--image", "base"]),
        5,
        &["expired on 2024-06-27T12:00:00Z", "--mirror"],
    );
}

#[test]
fn an_index_with_other_bytes_is_refused() {
    let bench = Bench::timeless();
    let path = bench.mirror().join("dists/stable/main/binary-amd64/Packages");
    let same_length = bench.index().replace("2.40-1", "6.66-1");
    bench.write(&path, same_length.as_bytes());
    let output = bench.kimage(&["lock", "--image", "base"]);
    ended(
        &output,
        5,
        &["stable main/binary-amd64/Packages", &bench.mirror_url()],
    );
    assert!(!bench.lock_file().exists());
}

#[test]
fn an_index_or_inrelease_without_end_is_refused() {
    let bench = Bench::new();
    bench.publish();
    let release = bench.release(&bench.index());
    let huge = release.replace(&format!(" {} main", bench.index().len()), " 99999999999 main");
    bench.write(&bench.inrelease(), &sign(&bench.certificate, &huge));
    refused(&bench, ExitCode::Mismatch, "99999999999 bytes");
    bench.write(&bench.inrelease(), &vec![b'x'; 9 << 20]);
    refused(&bench, ExitCode::Fetch, "longer than");
}

#[test]
fn an_unreachable_archive_says_what_was_tried_and_what_helps() {
    let bench = Bench::new();
    let tried = format!("{}/dists/stable/InRelease", bench.mirror_url());
    let output = bench.kimage(&["lock", "--image", "base"]);
    ended(
        &output,
        4,
        &[
            "suite stable of image base",
            &tried,
            "hint: ",
            "--mirror https://HOST/test",
            "--image",
        ],
    );
    let output = bench.kimage_from("ftp://host/test", &["lock", "--image", "base"]);
    ended(&output, 2, &["--mirror: ", "ftp://host/test"]);
}

#[test]
fn an_archive_that_went_back_in_time_is_refused() {
    let mut bench = Bench::timeless();
    ended(&bench.kimage(&["lock", "--image", "base"]), 0, &[]);
    bench.fields = bench.fields.replace("Thu, 20 Jun", "Wed, 19 Jun");
    bench.publish();
    let before = std::fs::read(bench.lock_file()).unwrap();
    for arguments in [
        &["lock", "--image", "base"][..],
        &["lock", "--image", "base", "--update"],
    ] {
        ended(
            &bench.kimage(arguments),
            5,
            &["suite stable", "older than the lock's 2024-06-20T12:00:00Z"],
        );
    }
    assert_eq!(std::fs::read(bench.lock_file()).unwrap(), before);
    let told = ["lock", "--image", "base", "--update", "--allow-old"];
    ended(&bench.kimage(&told), 0, &["signed on 2024-06-19"]);
    assert_ne!(std::fs::read(bench.lock_file()).unwrap(), before);
}

#[test]
fn an_archive_that_stands_still_is_refused_at_the_first_lock_when_the_definition_limits_its_age() {
    let mut bench = Bench::timeless();
    ended(
        &bench.kimage(&["lock", "--image", "base"]),
        0,
        &[
            "suite stable was signed on 2024-06-20, ",
            " days ago (neither archive nor definition says",
        ],
    );
    std::fs::remove_file(bench.lock_file()).unwrap();
    bench.suite_options = "max-age-days = 30\n";
    bench.write_definition();
    for arguments in [
        &["lock", "--image", "base"][..],
        &["lock", "--image", "base", "--update"],
    ] {
        ended(
            &bench.kimage(arguments),
            5,
            &[
                "suite stable was signed on 2024-06-20, ",
                "(30 are allowed)",
                "hint: ",
                "--mirror",
                "--allow-old",
            ],
        );
        assert!(!bench.lock_file().exists());
    }
    bench.suite_options = "max-age-days = 9999\n";
    bench.write_definition();
    ended(
        &bench.kimage(&["lock", "--image", "base"]),
        0,
        &["(9999 are allowed)"],
    );
    bench.suite_options = "max-age-days = 0\n";
    bench.write_definition();
    ended(
        &bench.kimage(&["lock", "--image", "base"]),
        2,
        &["max-age-days must be 1 or more"],
    );
}

#[test]
fn wishes_that_exclude_each_other_are_refused_with_the_reason() {
    let mut bench = Bench::timeless();
    bench
        .packages
        .push(package("nano", "1", "Conflicts: tool (<< 2)\n"));
    bench.install = vec!["tool", "nano"];
    bench.write_definition();
    bench.publish();
    ended(
        &bench.kimage(&["lock", "--image", "base"]),
        2,
        &["base: no set of packages", "nano", "tool"],
    );
    assert!(!bench.lock_file().exists());
}

#[test]
fn a_dependency_that_nothing_satisfies_is_refused_and_can_be_left_out() {
    let mut bench = Bench::new();
    bench.packages[1] = package("tool", "1.0-1", "Depends: firmware (>= 2)\n");
    bench.packages.push(package("firmware", "1", ""));
    bench.publish();
    let text = format!("{:#}", bench.resolve(&NEWEST).unwrap_err());
    assert!(text.contains("firmware (>= 2)"), "{text}");
    bench.extra = "[[packages.leave-out]]\npackage = \"firmware\"\nbecause = \"no device\"\n".into();
    bench.write_definition();
    assert_eq!(
        names(&bench.resolve(&NEWEST).unwrap(), "worker"),
        ["agent", "libc6", "tool"]
    );
}

#[test]
fn a_provider_that_is_left_out_makes_room_for_another() {
    let mut bench = Bench::new();
    bench.packages.push(package("zed", "1", "Provides: editor\n"));
    bench.extra = "[[packages.leave-out]]\npackage = \"vim\"\nbecause = \"zed\"\n".into();
    bench.write_definition();
    bench.publish();
    assert_eq!(
        names(&bench.resolve(&NEWEST).unwrap(), "other"),
        ["libc6", "tool", "zed"]
    );
}

#[test]
fn names_that_no_suite_has_are_answered_with_the_nearest() {
    let mut bench = Bench::timeless();
    for (install, why, hint) in [
        (
            "tol",
            "package `tol` is in no suite",
            "hint: did you mean `tool`?",
        ),
        (
            "editor",
            "package `editor` is virtual",
            "hint: name one that provides it: vim",
        ),
    ] {
        bench.install = vec![install];
        bench.write_definition();
        ended(
            &bench.kimage(&["lock", "--image", "base"]),
            2,
            &["images/base/image.toml", why, hint],
        );
    }
}

#[test]
fn a_virtual_package_with_many_providers_is_satisfied_by_the_more_important() {
    let mut bench = Bench::new();
    let ed = package("ed", "1", "Provides: editor\n").replace("optional", "important");
    bench.packages.push(package("zed", "1", "Provides: editor\n"));
    bench.packages.push(ed);
    bench.publish();
    assert_eq!(
        names(&bench.resolve(&NEWEST).unwrap(), "other"),
        ["ed", "libc6", "tool"]
    );
}

#[test]
fn an_absent_and_a_stale_lock_name_what_drifted_and_the_command() {
    let mut bench = Bench::timeless();
    let build = ["build", "--image", "base", "--role", "worker"];
    ended(
        &bench.kimage(&build),
        3,
        &["image.lock is absent", "hint: kimage lock --image base"],
    );
    ended(&bench.kimage(&["lock", "--image", "base"]), 0, &[]);

    bench.install = vec!["vim"];
    bench.write_definition();
    let drift = [
        "image.lock is stale",
        "package vim was added",
        "package tool was removed",
        "hint: kimage lock --image base",
    ];
    ended(&bench.kimage(&build), 3, &drift);
    ended(&bench.kimage(&["lock", "--image", "base", "--list"]), 3, &drift);
}

#[test]
fn a_change_that_resolution_does_not_depend_on_leaves_the_lock_fresh() {
    let mut bench = Bench::timeless();
    ended(&bench.kimage(&["lock", "--image", "base"]), 0, &[]);
    bench.extra =
        "[units]\nenable = [\"tool.service\"]\n[[users]]\nname = \"tool\"\nuid = 900\ngid = 900\n".into();
    bench.write_definition();
    ended(&bench.kimage(&["lock", "--image", "base", "--list"]), 0, &[]);
}

#[test]
fn a_damaged_lock_is_refused_with_its_line() {
    let bench = Bench::timeless();
    bench.write(&bench.lock_file(), b"schema = 1\nsurprise = true\n");
    let output = bench.kimage(&["build", "--image", "base", "--role", "worker"]);
    ended(&output, 3, &["images/base/image.lock:2: ", "surprise"]);
    ended(&bench.kimage(&["lock", "--image", "base", "--update"]), 0, &[]);
}

#[test]
fn wrong_definitions_are_refused_with_file_and_line() {
    let mut bench = Bench::timeless();
    ended(
        &bench.kimage(&["lock", "--image", "bas"]),
        2,
        &["unknown image `bas`", "did you mean `base`?"],
    );
    ended(
        &bench.kimage(&["build", "--image", "base", "--role", "x"]),
        2,
        &["unknown role `x`", "other, worker"],
    );
    bench.extra = "surprise = 1\n".into();
    bench.write_definition();
    ended(
        &bench.kimage(&["lock", "--image", "base"]),
        2,
        &["images/base/image.toml:13: unknown key `surprise`"],
    );
}

#[test]
fn plain_lock_keeps_what_is_pinned_and_update_moves_it() {
    let mut bench = Bench::new();
    bench.publish();
    let old = bench.resolve(&NEWEST).unwrap();
    bench.packages.push(package("vim", "9.2", "Provides: editor\n"));
    bench.publish();
    let kept = bench.resolve(&Pins::Keep(&old)).unwrap();
    let moved = bench.resolve(&Pins::Newest(Some(&old))).unwrap();
    assert_eq!(
        (version(&kept, "vim"), version(&moved, "vim")),
        ("9.1".into(), "9.2".into())
    );
    let told: Vec<String> = changes::between(&kept, &moved)
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(told, ["upgraded    package vim 9.1 -> 9.2"]);
    assert!(changes::between(&kept, &kept).is_empty());

    // The pinned version is gone, or something needs a newer one: then it moves.
    bench.packages.retain(|stanza| !stanza.contains("Version: 9.1\n"));
    bench.publish();
    assert_eq!(version(&bench.resolve(&Pins::Keep(&old)).unwrap(), "vim"), "9.2");
    bench.packages.push(package("vim", "9.1", "Provides: editor\n"));
    bench.packages[2] = package("agent", "4", "Depends: tool, vim (= 9.2)\n");
    bench.publish();
    assert_eq!(version(&bench.resolve(&Pins::Keep(&old)).unwrap(), "vim"), "9.2");
}

#[test]
fn a_damaged_blob_is_fetched_again() {
    let bench = Bench::new();
    bench.publish();
    let lock = bench.resolve(&NEWEST).unwrap();
    let image = bench.definition().image;
    let mirrors = [bench.mirror_url()];
    let fetch = || {
        inputs::fetch(
            &image,
            &lock,
            "worker",
            &mirrors,
            Network::Online,
            &bench.store(),
            &Progress::silent(),
        )
    };
    fetch().unwrap();
    let agent = lock
        .package
        .iter()
        .find(|package| package.name == "agent")
        .unwrap();
    let blob = bench.store().blob(&agent.sha256).unwrap().unwrap();
    std::fs::remove_file(&blob).unwrap();
    std::fs::write(&blob, "agent 6").unwrap();
    fetch().unwrap();
    assert_eq!(std::fs::read_to_string(&blob).unwrap(), "agent 3");
}

#[test]
fn a_package_with_other_bytes_is_refused_with_its_name_and_url() {
    let bench = Bench::timeless();
    ended(&bench.kimage(&["lock", "--image", "base"]), 0, &[]);
    bench.write(&bench.mirror().join("pool/agent_3.deb"), b"agent 6");
    let output = bench.folder.path().join("out");
    let build = [
        "build",
        "--image",
        "base",
        "--role",
        "worker",
        "--output",
        output.to_str().unwrap(),
    ];
    let url = format!("{}/pool/agent_3.deb", bench.mirror_url());
    ended(&bench.kimage(&build), 5, &["agent 3", &url, "hint: "]);
    assert!(!output.join("worker").exists());

    std::fs::remove_file(bench.mirror().join("pool/agent_3.deb")).unwrap();
    ended(&bench.kimage(&build), 4, &["agent 3", &url, "hint: ", "--mirror"]);
}

#[test]
fn no_mirror_at_all_is_told_with_the_option_that_helps() {
    let bench = Bench::new();
    let (image, now) = (bench.definition().image, archive::NOW.parse().unwrap());
    let error = suites::fetch(&image, &[], &bench.store(), now, &Progress::silent());
    let error = error.err().unwrap();
    assert_eq!(exit_code(&error), ExitCode::Fetch);
    assert!(hints(&error).any(|hint| hint.contains("--mirror")), "{error:#}");
}
