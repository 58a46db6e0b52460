use std::os::unix::fs::PermissionsExt;
use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use super::*;

fn store() -> (Store, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    (Store::open(folder.path()).unwrap(), folder)
}

fn key() -> Digest {
    Digest::of(b"key")
}

#[test]
fn a_blob_is_named_by_its_bytes_and_cannot_be_written() {
    let (store, _folder) = store();
    let (digest, path) = store.put(b"hello").unwrap();
    assert_eq!(digest, Digest::of(b"hello"));
    assert!(path.ends_with(format!("blobs/sha256/{}/{digest}", &digest.to_string()[..2])));
    assert_eq!(fs::read(&path).unwrap(), b"hello");
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o444);
    assert_eq!(store.put(b"hello").unwrap().1, path);
    assert_eq!(store.blob(&Digest::of(b"other")).unwrap(), None);
}

#[test]
fn a_changed_blob_is_noticed_by_the_same_and_by_a_later_process() {
    let (store, folder) = store();
    let (digest, path) = store.put(b"hello").unwrap();
    let change = || {
        let modified = fs::metadata(&path).unwrap().modified().unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        fs::write(&path, b"hellO").unwrap();
        File::options()
            .write(true)
            .open(&path)
            .unwrap()
            .set_modified(modified)
            .unwrap();
    };
    change();
    assert!(
        matches!(store.examine(&digest).unwrap(), Blob::Damaged { found, .. } if found == Digest::of(b"hellO"))
    );
    assert_eq!(store.blob(&digest).unwrap(), None);
    assert!(!path.exists(), "a damaged blob is removed");

    store.put(b"hello").unwrap();
    change();
    assert_eq!(Store::open(folder.path()).unwrap().blob(&digest).unwrap(), None);
}

#[test]
fn an_artifact_appears_whole_or_not_at_all() {
    let (store, _folder) = store();
    let failed = store.artifact_or_build("tree", &key(), |folder| {
        fs::write(folder.join("half"), "half")?;
        bail!("no luck")
    });
    assert_eq!(failed.unwrap_err().to_string(), "no luck");
    assert_eq!(store.artifact("tree", &key()), None);

    let build = |folder: &Path| -> Result<()> {
        assert_eq!(
            store.artifact("tree", &key()),
            None,
            "not there before it is finished"
        );
        Ok(fs::write(folder.join("file"), "content")?)
    };
    let path = store.artifact_or_build("tree", &key(), build).unwrap();
    assert_eq!(store.artifact("tree", &key()), Some(path.clone()));
    assert_eq!(fs::read(path.join("file")).unwrap(), b"content");
    store
        .artifact_or_build("tree", &key(), |_| bail!("built twice"))
        .unwrap();
}

#[test]
fn an_artifact_that_somebody_reads_is_not_replaced() {
    let (reader, folder) = store();
    let make = |text: &'static str| {
        move |folder: &Path| -> Result<()> {
            fs::create_dir(folder.join("closed"))?;
            fs::write(folder.join("closed/file"), text)?;
            Ok(fs::set_permissions(
                folder.join("closed"),
                fs::Permissions::from_mode(0o555),
            )?)
        }
    };
    let text = |held: &Held| fs::read_to_string(held.path().join("closed/file")).unwrap();
    let read = reader.hold_or_build("tree", &key(), make("old")).unwrap();

    let other = Store::open(folder.path()).unwrap();
    let own = other.rebuild("tree", &key(), make("own")).unwrap();
    assert_eq!((text(&read).as_str(), text(&own).as_str()), ("old", "own"));
    assert_eq!(reader.artifact("tree", &key()).as_deref(), Some(read.path()));
    let place = own.path().to_owned();
    drop(own);
    assert!(!place.exists(), "what nobody else has goes");

    drop(read);
    let new = other.rebuild("tree", &key(), make("new")).unwrap();
    assert_eq!(reader.artifact("tree", &key()).as_deref(), Some(new.path()));
    let shared = reader
        .hold_or_build("tree", &key(), |_| bail!("built twice"))
        .unwrap();
    assert_eq!(text(&shared), "new");
    drop((new, shared, other, reader));
    let left = fs::read_dir(folder.path().join("scratch")).unwrap().count();
    assert_eq!(left, 0, "what was replaced is removed");
}

#[test]
fn a_failed_rebuild_leaves_what_was_there() {
    let (store, folder) = store();
    let path = store.artifact_or_build("tree", &key(), |_| Ok(())).unwrap();
    let failed = store.rebuild("tree", &key(), |_| bail!("no luck"));
    assert_eq!(failed.unwrap_err().to_string(), "no luck");
    assert_eq!(store.artifact("tree", &key()), Some(path));
    let fresh = Digest::of(b"another key");
    assert!(store.rebuild("tree", &fresh, |_| Ok(())).unwrap().path().is_dir());
    assert!(
        folder
            .path()
            .join("artifacts/tree")
            .join(fresh.to_string())
            .is_dir()
    );
}

#[test]
fn two_processes_build_an_artifact_once() {
    let (_, folder) = store();
    let (built, begin) = (AtomicUsize::new(0), Barrier::new(4));
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                // Each handle has its own locks, as another process would have.
                let store = Store::open(folder.path()).unwrap();
                begin.wait();
                let count = |_: &Path| {
                    built.fetch_add(1, Ordering::SeqCst);
                    Ok(())
                };
                store.artifact_or_build("tree", &key(), count).unwrap();
            });
        }
    });
    assert_eq!(built.into_inner(), 1);
    assert_eq!(fs::read_dir(folder.path().join("locks")).unwrap().count(), 0);
}

#[test]
fn scratch_of_the_dead_is_removed_and_of_the_living_is_not() {
    let (living, folder) = store();
    let used = living.scratch().unwrap();
    let dead = folder.path().join("scratch/run-dead/tree/usr");
    fs::create_dir_all(&dead).unwrap();
    fs::write(dead.join("file"), "left over").unwrap();
    for path in [&dead, dead.parent().unwrap()] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o555)).unwrap();
    }
    let other = Store::open(folder.path()).unwrap().scratch().unwrap();
    assert!(used.path().is_dir() && other.path().is_dir());
    assert!(!folder.path().join("scratch/run-dead").exists());
}

#[test]
fn scratch_outlives_its_store_and_goes_in_the_end() {
    let (store, folder) = store();
    let runs = || fs::read_dir(folder.path().join("scratch")).unwrap().count();
    let used = store.scratch().unwrap();
    drop(store);
    drop(Store::open(folder.path()).unwrap().scratch().unwrap());
    assert!(used.path().is_dir(), "another process must not take it");
    let (store, folder) = (Store::open(folder.path()).unwrap(), &folder);
    drop(store.scratch().unwrap());
    drop(store);
    assert_eq!(
        runs(),
        1,
        "only the one in use is left in {}",
        folder.path().display()
    );
}

#[test]
fn names_cannot_leave_the_store() {
    let (store, _folder) = store();
    for name in ["", "..", "a/b", "A", "a.b"] {
        assert!(store.cache(name).is_err(), "{name}");
        assert!(
            store.artifact_or_build(name, &key(), |_| Ok(())).is_err(),
            "{name}"
        );
        assert_eq!(store.artifact(name, &key()), None);
    }
    assert!(store.cache("go-mod").unwrap().is_dir());
}

#[test]
fn whatever_stands_where_the_store_puts_its_own_is_named_and_left_alone() {
    use crate::failure::exit_code;
    use crate::obstacle::testing::OBSTACLES;

    for (what, make) in OBSTACLES {
        type Use = fn(&Store) -> anyhow::Error;
        let uses: [(String, Use); 5] = [
            (format!("locks/blob-{}", key()), |store| {
                store.lock_blob(&key(), "x").err().unwrap()
            }),
            (
                format!("blobs/sha256/{}/{}", &key().to_string()[..2], key()),
                |store| store.blob(&key()).unwrap_err(),
            ),
            (format!("artifacts/tree/{}", key()), |store| {
                store.hold_or_build("tree", &key(), |_| Ok(())).unwrap_err()
            }),
            (format!("artifacts/tree/{}", key()), |store| {
                store.rebuild("tree", &key(), |_| Ok(())).unwrap_err()
            }),
            (format!("artifacts/tree/{}", key()), |store| {
                assert_eq!(store.artifact("tree", &key()), None);
                store.artifact_or_build("tree", &key(), |_| Ok(())).unwrap_err()
            }),
        ];
        for (place, attempt) in uses {
            let ((store, folder), elsewhere) = (store(), tempfile::tempdir().unwrap());
            let path = folder.path().join(&place);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            make(&path, elsewhere.path());
            let error = attempt(&store);
            let text = format!("{error:#}");
            assert_eq!(exit_code(&error), ExitCode::Usage, "{text}");
            assert!(text.contains(what) && text.contains(&place), "{text}");
            assert!(path.symlink_metadata().is_ok());
            assert_eq!(fs::read_dir(elsewhere.path()).unwrap().count(), 0);
        }
    }
}

#[test]
fn what_is_no_folder_among_those_of_dead_runs_stops_nobody() {
    for (_, make) in crate::obstacle::testing::OBSTACLES {
        let ((store, folder), elsewhere) = (store(), tempfile::tempdir().unwrap());
        let scratch = folder.path().join("scratch");
        fs::create_dir(&scratch).unwrap();
        make(&scratch.join("run-x"), elsewhere.path());
        make(&folder.path().join("verified"), elsewhere.path());
        store.scratch().unwrap();
        Store::open(folder.path()).unwrap().put(b"x").unwrap();
    }
}
