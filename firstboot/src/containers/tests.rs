use std::cell::Cell;

use super::*;

/// A store in an image and a `/var`.
struct Bench {
    folder: tempfile::TempDir,
    steps: Cell<usize>,
}

impl Bench {
    fn new() -> Self {
        let bench = Self {
            folder: tempfile::tempdir().unwrap(),
            steps: Cell::new(0),
        };
        fs::create_dir_all(bench.var().join("lib")).unwrap();
        bench.image("abc1");
        bench
    }

    fn store(&self) -> PathBuf {
        self.folder.path().join("image")
    }

    fn var(&self) -> PathBuf {
        self.folder.path().join("var")
    }

    fn stores(&self) -> PathBuf {
        self.var().join(STORES)
    }

    /// Another image version, with a store of this name.
    fn image(&self, name: &str) {
        let _ = fs::remove_dir_all(self.store());
        for (path, text) in [
            (STAMP.to_owned(), format!("{name}\n")),
            (format!("{CONTENT}/blobs/sha256/1"), format!("manifest of {name}")),
            (format!("{METADATA}/meta.db"), format!("database of {name}")),
            (
                format!("{SNAPSHOTTER}/metadata.db"),
                format!("snapshots of {name}"),
            ),
            (
                format!("{SNAPSHOTTER}/{SNAPSHOTS}/1/fs/app"),
                "program".to_owned(),
            ),
        ] {
            let path = self.store().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
    }

    /// Seeds until the power goes after `power` changes.
    fn seed(&self, power: usize) -> Result<Outcome> {
        self.steps.set(0);
        let (store, var) = (self.store(), self.var());
        let name = name(&store)?;
        let mut seeding = Seeding {
            store: &store,
            var: &var,
            before_change: &mut |_| {
                ensure!(self.steps.get() < power, "power cut");
                self.steps.set(self.steps.get() + 1);
                Ok(())
            },
        };
        seeding.run(&name)
    }

    /// The store in use, which must be whole; `None` before there is one.
    fn in_use(&self) -> Option<String> {
        let link = self.var().join(LINK);
        let target = fs::read_link(&link).ok()?;
        let name = target.file_name().unwrap().to_str().unwrap().to_owned();
        self.is_whole(&name);
        Some(name)
    }

    fn is_whole(&self, name: &str) {
        let folder = self.stores().join(name);
        let read = |path: String| fs::read_to_string(folder.join(path)).unwrap();
        assert_eq!(
            read(format!("{CONTENT}/blobs/sha256/1")),
            format!("manifest of {name}")
        );
        assert!(read(format!("{METADATA}/meta.db")).starts_with(&format!("database of {name}")));
        assert_eq!(
            read(format!("{SNAPSHOTTER}/metadata.db")),
            format!("snapshots of {name}")
        );
        assert_eq!(read(format!("{SNAPSHOTTER}/{SNAPSHOTS}/1/fs/app")), "program");
    }

    fn names(&self) -> Vec<String> {
        let names = sorted(&self.stores()).unwrap_or_default();
        names
            .into_iter()
            .map(|name| name.into_string().unwrap())
            .collect()
    }
}

const WHOLE: usize = usize::MAX;

#[test]
fn a_store_is_copied_once_and_what_containerd_writes_stays() {
    let bench = Bench::new();
    assert_eq!(bench.seed(WHOLE).unwrap(), Outcome::Copied);
    assert_eq!(bench.in_use().as_deref(), Some("abc1"));
    let database = bench.var().join(LINK).join(METADATA).join("meta.db");
    fs::write(&database, "database of abc1 and of a pod").unwrap();
    assert_eq!(bench.seed(WHOLE).unwrap(), Outcome::Unchanged);
    assert_eq!(
        fs::read_to_string(database).unwrap(),
        "database of abc1 and of a pod"
    );
    let snapshot = bench.var().join(LINK).join(SNAPSHOTTER).join(SNAPSHOTS).join("1");
    let image = bench.store().join(SNAPSHOTTER).join(SNAPSHOTS).join("1");
    assert_eq!(fs::read_link(snapshot).unwrap(), image);
}

#[test]
fn another_version_gets_its_own_store_and_finds_the_old_one_when_rolled_back() {
    let bench = Bench::new();
    bench.seed(WHOLE).unwrap();
    let database = bench.stores().join("abc1").join(METADATA).join("meta.db");
    fs::write(database, "database of abc1 and of a pod").unwrap();
    bench.image("abc2");
    assert_eq!(bench.seed(WHOLE).unwrap(), Outcome::Copied);
    assert_eq!(bench.in_use().as_deref(), Some("abc2"));
    bench.image("abc1");
    assert_eq!(bench.seed(WHOLE).unwrap(), Outcome::Linked);
    let database = bench.var().join(LINK).join(METADATA).join("meta.db");
    assert_eq!(
        fs::read_to_string(database).unwrap(),
        "database of abc1 and of a pod"
    );
    bench.image("abc3");
    bench.seed(WHOLE).unwrap();
    assert_eq!(
        bench.names(),
        ["abc1", "abc3"],
        "the store before stays, older ones go"
    );
}

#[test]
fn a_foreign_folder_in_the_links_place_is_put_aside() {
    let bench = Bench::new();
    for name in ["found", "found-2"] {
        let _ = fs::remove_file(bench.var().join(LINK));
        fs::create_dir_all(bench.var().join(LINK)).unwrap();
        fs::write(bench.var().join(LINK).join("precious"), name).unwrap();
        bench.seed(WHOLE).unwrap();
        assert_eq!(bench.in_use().as_deref(), Some("abc1"));
        let kept = bench.stores().join(name).join("precious");
        assert_eq!(fs::read_to_string(kept).unwrap(), name);
    }
}

#[test]
fn an_end_before_any_change_leaves_a_whole_store_or_none_and_the_next_run_completes() {
    // First boot, an upgrade, an upgrade that removes an older store.
    for versions in [&["abc1"][..], &["abc1", "abc2"], &["abc1", "abc2", "abc3"]] {
        let prepare = || {
            let bench = Bench::new();
            let (last, earlier) = versions.split_last().unwrap();
            for name in earlier {
                bench.image(name);
                bench.seed(WHOLE).unwrap();
            }
            bench.image(last);
            (bench, last.to_string())
        };
        let (bench, _) = prepare();
        bench.seed(WHOLE).unwrap();
        let steps = bench.steps.get();
        assert!(steps > 8, "{steps}");
        for power in 0..steps {
            let (bench, name) = prepare();
            bench.seed(power).unwrap_err();
            let before = bench.in_use();
            assert!(
                before
                    .as_ref()
                    .is_none_or(|name| versions.contains(&name.as_str()))
            );
            for store in bench.names().iter().filter(|name| !name.starts_with('.')) {
                bench.is_whole(store);
            }
            bench.seed(WHOLE).unwrap();
            assert_eq!(bench.in_use(), Some(name));
            assert!(bench.names().iter().all(|name| !name.starts_with('.')));
        }
    }
}

#[test]
fn a_stamp_that_names_no_store_is_refused() {
    let bench = Bench::new();
    for stamp in ["", "../../etc\n", ".new\n", "found", &"a".repeat(MAX_NAME + 1)] {
        fs::write(bench.store().join(STAMP), stamp).unwrap();
        assert!(bench.seed(WHOLE).is_err(), "{stamp}");
    }
    assert_eq!(bench.in_use(), None);
}
