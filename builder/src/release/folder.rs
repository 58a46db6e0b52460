//! The output folder: written beside, then put in place in one step, so that a reader sees the old release or the
//! new one and a killed build leaves nothing that looks finished.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustix::fs::{CWD, FlockOperation, RenameFlags, flock, renameat_with};
use rustix::io::Errno;

use super::names;
use crate::disk::{BESIDE, Format};
use crate::failure::{ExitCode, Failure};
use crate::obstacle::{self, Obstacle};

/// A release folder in the making. Dropped without [`Staging::publish`], it removes itself.
pub struct Staging {
    temporary: PathBuf,
    place: PathBuf,
    /// Held as long as this process writes: the kernel drops it when the process dies.
    _lock: File,
    published: bool,
}

impl Staging {
    /// Begins the release `name` in `output`, which is created where absent.
    pub fn begin(output: &Path, name: &str) -> Result<Self> {
        make_output(output)?;
        let place = output.join(name);
        if is_folder(&place)? {
            refuse_foreign_content(&place, |_| false)?;
        }
        let temporary = output.join(format!(".{name}.kimage"));
        let Some(lock) = take_over(&temporary)? else {
            let message = format!("another kimage is building {name} in {}", output.display());
            let hint = "wait for it or choose another --output";
            return Err(Failure::new(ExitCode::Failed, message).hint(hint).into());
        };
        // Before it is ours to remove.
        empty(&temporary)?;
        Ok(Self {
            temporary,
            place,
            _lock: lock,
            published: false,
        })
    }

    /// Where to write.
    pub fn path(&self) -> &Path {
        &self.temporary
    }

    /// Puts the folder in place of the old one, durably.
    pub fn publish(mut self) -> Result<PathBuf> {
        self.sync_files()?;
        File::open(&self.temporary)?.sync_all()?;
        let context = || format!("put {} in place", self.place.display());
        if is_folder(&self.place)? {
            // The old release gets the name that the next build takes over: not before it is gone.
            let old = File::open(&self.place).with_context(context)?;
            flock(&old, FlockOperation::LockExclusive).with_context(context)?;
            renameat_with(CWD, &self.temporary, CWD, &self.place, RenameFlags::EXCHANGE)
                .with_context(context)?;
            std::fs::remove_dir_all(&self.temporary)
                .with_context(|| format!("remove {}", self.temporary.display()))?;
        } else {
            std::fs::rename(&self.temporary, &self.place).with_context(context)?;
        }
        if let Some(output) = self.place.parent() {
            File::open(output)?.sync_all()?;
        }
        self.published = true;
        Ok(self.place.clone())
    }

    /// Returns when the files are on the disk. They are synced side by side: filesystems commit together what is asked
    /// for at one time.
    fn sync_files(&self) -> Result<()> {
        let entries: Vec<_> = std::fs::read_dir(&self.temporary)?.collect::<Result<_, _>>()?;
        let sync = |path: PathBuf| {
            File::open(&path)
                .and_then(|file| file.sync_all())
                .with_context(|| format!("sync {}", path.display()))
        };
        std::thread::scope(|scope| {
            let synced: Vec<_> = entries
                .iter()
                .map(|entry| scope.spawn(move || sync(entry.path())))
                .collect();
            synced.into_iter().try_for_each(|synced| {
                synced
                    .join()
                    .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            })
        })
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if !self.published {
            // Nothing can be done about a failure here, and the next build removes the folder anyway.
            drop(std::fs::remove_dir_all(&self.temporary));
        }
    }
}

/// Makes `output` where it is absent. A link to a folder is as good as a folder: it is the user's own.
fn make_output(output: &Path) -> Result<()> {
    let Err(error) = std::fs::create_dir_all(output) else {
        return Ok(());
    };
    let parts = output.ancestors().filter(|part| !part.as_os_str().is_empty());
    for part in parts {
        match std::fs::symlink_metadata(part) {
            Ok(there) if !part.is_dir() => return Err(in_the_way(part, Obstacle::folder(&there))),
            _ => {}
        }
    }
    Err(unwritable(output, &error))
}

/// Whether `path` is a folder; an error when something else stands there, a link to a folder included: kimage would
/// put its files where that leads.
fn is_folder(path: &Path) -> Result<bool> {
    obstacle::is_folder(path).map_err(|error| explain(path, &error))
}

fn explain(path: &Path, error: &io::Error) -> anyhow::Error {
    match Obstacle::of(error) {
        Some(obstacle) => in_the_way(path, obstacle),
        None => unwritable(path, error),
    }
}

fn in_the_way(path: &Path, obstacle: impl std::fmt::Display) -> anyhow::Error {
    Failure::new(ExitCode::Usage, format!("output {}: {obstacle}", path.display()))
        .hint("move it away, or choose another folder with --output")
        .into()
}

/// Makes the folder, or takes the one that a killed build left, and locks it; `None` when a living build has it.
///
/// # Errors
/// Something that no build of this user left stands there: [`ExitCode::Usage`]. What is opened is never followed and
/// never waited for, and the folder that is locked is the one that is judged.
fn take_over(folder: &Path) -> Result<Option<File>> {
    let explain = |error: io::Error| explain(folder, &error);
    loop {
        match std::fs::create_dir(folder) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(explain(error)),
            _ => {}
        }
        let lock = match obstacle::open_folder(folder) {
            // Whoever had it has just put it in place.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            opened => opened.map_err(explain)?,
        };
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) => return Ok(None),
            locked => locked.map_err(|error| explain(error.into()))?,
        }
        let ours = lock.metadata().map_err(explain)?;
        match std::fs::symlink_metadata(folder) {
            Ok(there) if (there.dev(), there.ino()) == (ours.dev(), ours.ino()) => {
                if ours.uid() != rustix::process::geteuid().as_raw() {
                    return Err(in_the_way(folder, "it is another user's folder"));
                }
                return Ok(Some(lock));
            }
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(explain(error)),
            _ => {}
        }
    }
}

/// Removes what a killed run left, and nothing else.
fn empty(folder: &Path) -> Result<()> {
    refuse_foreign_content(folder, |name| name.starts_with(BESIDE))?;
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        std::fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))?;
    }
    Ok(())
}

fn unwritable(output: &Path, error: &io::Error) -> anyhow::Error {
    Failure::new(
        ExitCode::Failed,
        format!("write to output folder {}: {error}", output.display()),
    )
    .hint("choose a folder that you may write to with --output")
    .into()
}

/// A folder that holds anything but a release, and names that `also` accepts, is not ours to replace or to empty.
fn refuse_foreign_content(place: &Path, also: impl Fn(&str) -> bool) -> Result<()> {
    let known = [
        names::MANIFEST,
        names::MANIFEST_SIGNATURE,
        names::SPDX,
        names::CYCLONEDX,
        names::PROVENANCE,
        names::UKI,
        names::OVMF_VARS,
        names::RELEASE_KEY,
        names::DATABASE_CERTIFICATE,
        names::CHECKSUMS,
    ];
    let entries = match std::fs::read_dir(place) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).with_context(|| format!("read {}", place.display())),
    };
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name();
        let text = name.to_string_lossy();
        let ours = known.contains(&text.as_ref()) || text.starts_with(Format::PREFIX) || also(&text);
        if !ours || entry.file_type()?.is_dir() {
            let message = format!(
                "{} holds `{text}`, which is no part of a release",
                place.display()
            );
            let hint = "kimage replaces the whole folder: move your file away or choose another --output";
            return Err(Failure::new(ExitCode::Usage, message).hint(hint).into());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::obstacle::testing::OBSTACLES;

    fn names_in(folder: &Path) -> Vec<String> {
        let mut names: Vec<_> = std::fs::read_dir(folder)
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn a_release_appears_whole_and_replaces_the_old_one_whole() {
        let output = tempfile::tempdir().unwrap();
        for (file, gone) in [("disk.raw", "disk.qcow2"), ("disk.qcow2", "disk.raw")] {
            let staging = Staging::begin(output.path(), "worker").unwrap();
            std::fs::write(staging.path().join(file), file).unwrap();
            assert!(!output.path().join("worker").join(file).exists());
            let place = staging.publish().unwrap();
            assert!(place.join(file).exists() && !place.join(gone).exists());
        }
        assert_eq!(names_in(output.path()), ["worker"]);
    }

    #[test]
    fn an_abandoned_release_leaves_nothing() {
        let output = tempfile::tempdir().unwrap();
        let staging = Staging::begin(output.path(), "etcd").unwrap();
        std::fs::write(staging.path().join("disk.raw"), b"half").unwrap();
        drop(staging);
        assert!(names_in(output.path()).is_empty());
    }

    #[test]
    fn what_a_killed_build_left_is_taken_over() {
        let output = tempfile::tempdir().unwrap();
        std::fs::create_dir(output.path().join(".etcd.kimage")).unwrap();
        for left in ["disk.raw", ".kimage-Ab1xyz"] {
            std::fs::write(output.path().join(".etcd.kimage").join(left), b"half").unwrap();
        }
        let staging = Staging::begin(output.path(), "etcd").unwrap();
        assert!(names_in(staging.path()).is_empty());
    }

    #[test]
    fn two_builds_of_one_role_into_one_folder_do_not_mix() {
        let output = tempfile::tempdir().unwrap();
        let _first = Staging::begin(output.path(), "etcd").unwrap();
        let error = Staging::begin(output.path(), "etcd").err().unwrap();
        assert!(error.to_string().contains("another kimage"), "{error}");
    }

    #[test]
    fn builds_that_follow_each_other_closely_never_lose_a_release() {
        let output = tempfile::tempdir().unwrap();
        let build = &|worker: usize| {
            for turn in 0..100 {
                let Ok(staging) = Staging::begin(output.path(), "etcd") else {
                    continue;
                };
                for name in ["disk.raw", "kernel.efi"] {
                    std::fs::write(staging.path().join(name), format!("{worker} {turn}")).unwrap();
                }
                staging.publish().unwrap();
            }
        };
        std::thread::scope(|scope| {
            for worker in 0..4 {
                scope.spawn(move || build(worker));
            }
        });
        assert_eq!(names_in(output.path()), ["etcd"]);
        let read = |name: &str| std::fs::read(output.path().join("etcd").join(name)).unwrap();
        assert_eq!(read("disk.raw"), read("kernel.efi"));
    }

    #[test]
    fn whatever_stands_in_the_way_is_named_and_left_alone() {
        for place in [".worker.kimage", "worker"] {
            for (what, make) in OBSTACLES {
                let (output, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
                std::fs::write(elsewhere.path().join("disk.raw"), b"keep").unwrap();
                let path = output.path().join(place);
                make(&path, elsewhere.path());
                let error = Staging::begin(output.path(), "worker").err().unwrap();
                let text = format!("{error:#}");
                assert_eq!(crate::failure::exit_code(&error), ExitCode::Usage, "{text}");
                assert_eq!(crate::failure::hints(&error).count(), 1, "{text}");
                assert!(
                    text.contains(what) && text.contains(path.to_str().unwrap()),
                    "{text}"
                );
                assert!(path.symlink_metadata().is_ok() && elsewhere.path().join("disk.raw").exists());
            }
        }
    }

    #[test]
    fn an_output_that_is_no_folder_is_named_and_a_link_to_one_is_followed() {
        for (what, make) in &OBSTACLES[1..] {
            let parent = tempfile::tempdir().unwrap();
            let output = parent.path().join("out");
            make(&output, parent.path());
            for output in [output.clone(), output.join("below")] {
                let error = Staging::begin(&output, "worker").err().unwrap();
                let text = format!("{error:#}");
                assert_eq!(crate::failure::exit_code(&error), ExitCode::Usage, "{text}");
                assert!(text.contains(what), "{text}");
            }
        }
        let (parent, real) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let output = parent.path().join("out");
        std::os::unix::fs::symlink(real.path(), &output).unwrap();
        let staging = Staging::begin(&output, "worker").unwrap();
        std::fs::write(staging.path().join("disk.raw"), b"raw").unwrap();
        staging.publish().unwrap();
        assert!(real.path().join("worker/disk.raw").exists());
    }

    #[test]
    fn a_link_that_appears_while_a_release_is_made_does_not_become_it() {
        let (output, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let staging = Staging::begin(output.path(), "worker").unwrap();
        std::fs::write(staging.path().join("disk.raw"), b"raw").unwrap();
        std::os::unix::fs::symlink(elsewhere.path(), output.path().join("worker")).unwrap();
        let error = staging.publish().err().unwrap();
        assert!(format!("{error:#}").contains("symbolic link"), "{error:#}");
        assert_eq!(names_in(output.path()), ["worker"]);
        assert!(names_in(elsewhere.path()).is_empty());
    }

    #[test]
    fn a_folder_of_the_staging_name_that_no_build_left_is_left_alone() {
        let output = tempfile::tempdir().unwrap();
        let folder = output.path().join(".worker.kimage");
        for strange in ["thesis.tex", "disk.raw"] {
            std::fs::create_dir(&folder).unwrap();
            // A folder called disk.raw is no disk.
            let path = folder.join(strange);
            if strange == "disk.raw" {
                std::fs::create_dir(&path).unwrap();
            } else {
                std::fs::write(&path, b"years of work").unwrap();
            }
            std::fs::write(folder.join("manifest.json"), b"{}").unwrap();
            let error = Staging::begin(output.path(), "worker").err().unwrap();
            assert_eq!(crate::failure::exit_code(&error), ExitCode::Usage);
            assert!(error.to_string().contains(strange), "{error}");
            assert!(path.exists() && folder.join("manifest.json").exists());
            std::fs::remove_dir_all(&folder).unwrap();
        }
    }

    #[test]
    fn a_folder_with_other_content_is_left_alone() {
        let output = tempfile::tempdir().unwrap();
        let place = output.path().join("etcd");
        std::fs::create_dir(&place).unwrap();
        std::fs::write(place.join("thesis.tex"), b"years of work").unwrap();
        let error = Staging::begin(output.path(), "etcd").err().unwrap();
        assert!(error.to_string().contains("thesis.tex"), "{error}");
        assert!(place.join("thesis.tex").exists());
    }
}
