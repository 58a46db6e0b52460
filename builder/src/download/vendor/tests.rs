use std::os::unix::fs::{PermissionsExt, symlink};

use super::*;
use crate::download::{Network, fetch};
use crate::failure::exit_code;

struct Site {
    store: Store,
    folder: tempfile::TempDir,
}

fn site() -> Site {
    let folder = tempfile::tempdir().unwrap();
    Site {
        store: Store::open(&folder.path().join("store")).unwrap(),
        folder,
    }
}

fn silent() -> Progress {
    Progress::silent()
}

fn request(name: &str, content: &[u8]) -> Request {
    let urls = vec!["http://nowhere.invalid/x".into()];
    Request {
        name: name.to_owned(),
        urls,
        digest: Digest::of(content),
        size: content.len() as u64,
    }
}

fn module_cache(folder: &Path) -> Result<()> {
    let module = folder.join("example.org").join("deep").join("x".repeat(120));
    fs::create_dir_all(&module)?;
    fs::write(module.join("go.mod"), "module x")?;
    fs::write(module.join("run"), "#!/bin/sh")?;
    fs::set_permissions(module.join("run"), fs::Permissions::from_mode(0o555))?;
    fs::create_dir(folder.join("empty"))?;
    fs::set_permissions(&module, fs::Permissions::from_mode(0o555))?;
    Ok(())
}

/// A site with two blobs and an artifact, and the vendor file of it.
fn vendored() -> (Site, Vec<Request>, (String, Digest), PathBuf) {
    let site = site();
    let requests = vec![
        request("b", b"bbb"),
        request("a", b"aa"),
        request("a again", b"aa"),
    ];
    site.store.put(b"bbb").unwrap();
    site.store.put(b"aa").unwrap();
    let artifact = ("go-modules".to_owned(), Digest::of(b"go.sum"));
    site.store
        .artifact_or_build(&artifact.0, &artifact.1, module_cache)
        .unwrap();
    let out = site.folder.path().join("vendor.tar");
    write(
        &requests,
        std::slice::from_ref(&artifact),
        &site.store,
        &out,
        &silent(),
    )
    .unwrap();
    (site, requests, artifact, out)
}

#[test]
fn what_was_vendored_is_there_without_a_network() {
    let (_source, requests, (kind, key), file) = vendored();
    let target = site();
    let summary = import(&file, &target.store, &|_, _, _| Ok(()), &silent()).unwrap();
    assert_eq!((summary.blobs, summary.artifacts), (2, 1));
    assert_eq!((summary.digest, summary.size), Digest::of_file(&file).unwrap());
    fetch(&requests, &target.store, Network::Offline, &silent()).unwrap();
    let module = target
        .store
        .artifact(&kind, &key)
        .unwrap()
        .join("example.org/deep")
        .join("x".repeat(120));
    assert_eq!(fs::read(module.join("go.mod")).unwrap(), b"module x");
    assert_eq!(
        fs::metadata(module.join("run")).unwrap().permissions().mode() & 0o777,
        0o755
    );
    import(&file, &target.store, &|_, _, _| Ok(()), &silent()).expect("a second import changes nothing");
}

#[test]
fn what_the_judge_refuses_and_what_holds_a_link_stays_out() {
    let (source, _, (kind, key), file) = vendored();
    let target = site();
    let judge = |found: &str, _: &Digest, folder: &Path| {
        assert_eq!(found, kind);
        assert!(folder.join("example.org").is_dir(), "it is judged where it lies");
        anyhow::bail!("forged")
    };
    let error = import(&file, &target.store, &judge, &silent()).unwrap_err();
    assert!(format!("{error:#}").contains("forged"), "{error:#}");
    assert_eq!(target.store.artifact(&kind, &key), None);

    let other = Digest::of(b"linked");
    let fill = |folder: &Path| Ok(symlink("/etc", folder.join("etc"))?);
    source.store.artifact_or_build(&kind, &other, fill).unwrap();
    let error = write(&[], &[(kind, other)], &source.store, &file, &silent()).unwrap_err();
    assert!(format!("{error:#}").contains("`etc` is a link"), "{error:#}");
}

#[test]
fn equal_content_gives_an_equal_file_whatever_the_order() {
    let (source, mut requests, artifact, file) = vendored();
    let again = source.folder.path().join("again.tar");
    requests[..2].reverse();
    let summary = write(
        &requests,
        &[artifact.clone(), artifact],
        &source.store,
        &again,
        &silent(),
    )
    .unwrap();
    assert_eq!(fs::read(&file).unwrap(), fs::read(&again).unwrap());
    assert_eq!((summary.digest, summary.size), Digest::of_file(&again).unwrap());
}

#[test]
fn another_tar_reads_it() {
    let (_source, _, _, file) = vendored();
    let listing = crate::tool::Tool::new("tar")
        .arg("-tf")
        .arg(&file)
        .inherit(&["PATH"])
        .run()
        .unwrap();
    let listing = String::from_utf8(listing).unwrap();
    let names: Vec<&str> = listing.lines().collect();
    assert_eq!(names[0], "kimage-vendor.json");
    assert!(
        names.contains(&format!("blobs/sha256/{}", Digest::of(b"aa")).as_str()),
        "{listing}"
    );
    assert!(names.iter().any(|name| name.ends_with("x/go.mod")), "{listing}");
}

#[test]
fn damage_anywhere_is_found_or_harmless() {
    let (_source, requests, _, file) = vendored();
    let bytes = fs::read(&file).unwrap();
    let position = |needle: &[u8]| {
        let found = bytes.windows(needle.len()).rposition(|window| window == needle);
        found.unwrap()
    };
    for needle in [&b"bbb"[..], b"module x", b"#!/bin/sh"] {
        let target = site();
        let mut damaged = bytes.clone();
        damaged[position(needle)] ^= 1;
        let path = target.folder.path().join("damaged.tar");
        fs::write(&path, &damaged).unwrap();
        let error = import(&path, &target.store, &|_, _, _| Ok(()), &silent()).unwrap_err();
        assert_eq!(exit_code(&error), ExitCode::Mismatch, "{error:#}");
        assert_eq!(target.store.artifact("go-modules", &Digest::of(b"go.sum")), None);
    }
    // Whatever byte flips, the import may fail or not: a wrong blob is never in the store.
    for offset in (0..bytes.len()).step_by(211) {
        let target = site();
        let mut damaged = bytes.clone();
        damaged[offset] ^= 0x40;
        let path = target.folder.path().join("damaged.tar");
        fs::write(&path, &damaged).unwrap();
        let _ = import(&path, &target.store, &|_, _, _| Ok(()), &silent());
        for request in &requests {
            let blob = crate::store::Store::examine(&target.store, &request.digest).unwrap();
            assert!(
                !matches!(blob, crate::store::Blob::Damaged { .. }),
                "byte {offset}"
            );
        }
    }
}

#[test]
fn a_cut_file_is_an_error() {
    let (_source, _, _, file) = vendored();
    let bytes = fs::read(&file).unwrap();
    // Behind that stands only padding, which carries nothing.
    let last_content = bytes.iter().rposition(|byte| *byte != 0).unwrap();
    for length in [0, 100, 512, 3000, last_content] {
        let target = site();
        let path = target.folder.path().join("cut.tar");
        fs::write(&path, &bytes[..length]).unwrap();
        let error = import(&path, &target.store, &|_, _, _| Ok(()), &silent()).unwrap_err();
        let expected = if length > 512 {
            ExitCode::Mismatch
        } else {
            exit_code(&error)
        };
        assert_eq!(exit_code(&error), expected, "{length}: {error:#}");
        assert_ne!(exit_code(&error), ExitCode::Failed, "{length}: {error:#}");
    }
}

#[test]
fn what_the_store_lacks_cannot_be_vendored() {
    let site = site();
    let out = site.folder.path().join("vendor.tar");
    let error = write(&[request("a", b"aa")], &[], &site.store, &out, &silent()).unwrap_err();
    assert_eq!(exit_code(&error), ExitCode::Fetch);
    assert!(!out.exists());
    assert!(
        write(
            &[],
            &[("go".to_owned(), Digest::of(b""))],
            &site.store,
            &out,
            &silent()
        )
        .is_err()
    );
}
