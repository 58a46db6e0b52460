//! The record as files on a file system that all members share (NFS, virtiofs).
//!
//! Version N of the record is the file `<path>.<N>`, written beside, synced, and given its name by link(2): of two writers
//! of the same version one gets `EEXIST`, on the server too, without locks that outlive a crash. Old versions stay, or a
//! writer that is late could make one of them again; they are small and come only when members change.

use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use kimage_roles::cause::Cause;

use super::{MAX_RECORD, Record, RecordStore, Version, Written, broken, bytes_of, parse};
use crate::failure::Failure;

/// A record in files.
#[derive(Debug, Clone)]
pub struct RecordFile {
    path: PathBuf,
}

impl RecordFile {
    /// The record whose versions are `<path>.<N>`.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    fn version(&self, number: u64) -> PathBuf {
        let mut name = self.path.clone().into_os_string();
        name.push(format!(".{number:010}"));
        name.into()
    }

    fn folder(&self) -> &Path {
        self.path.parent().unwrap_or(Path::new("/"))
    }

    /// The newest version's number; 0 when there is none.
    fn newest(&self) -> std::io::Result<u64> {
        let prefix = self
            .path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned()
            + ".";
        let mut newest = 0;
        for entry in fs::read_dir(self.folder())? {
            let name = entry?.file_name();
            let number = name.to_str().and_then(|name| name.strip_prefix(&prefix));
            let digits = number.filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
            newest = newest.max(digits.and_then(|text| text.parse().ok()).unwrap_or(0));
        }
        Ok(newest)
    }

    fn write(&self, number: u64, record: &Record) -> Result<Written, Failure> {
        let bytes = bytes_of(record)?;
        let name = self.version(number);
        self.link(&name, &bytes).map_err(|error| {
            let cause = match error.kind() {
                ErrorKind::StorageFull => Cause::EtcdDiskFull,
                _ => Cause::EtcdForming,
            };
            Failure::because(cause, format!("write {}: {error}", name.display()))
        })
    }

    fn link(&self, name: &Path, bytes: &[u8]) -> std::io::Result<Written> {
        let beside = self.folder().join(format!(".kimage-record-{}", random_name()?));
        let mut file = File::options().write(true).create_new(true).open(&beside)?;
        let result = file
            .write_all(bytes)
            .and_then(|()| file.sync_all())
            .and_then(|()| {
                match fs::hard_link(&beside, name) {
                    Ok(()) => Ok(Written::Done),
                    // A repeated request whose first answer was lost says that the name exists: the count of links knows.
                    Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                        let ours = fs::metadata(&beside)?.nlink() > 1;
                        Ok(if ours { Written::Done } else { Written::Conflict })
                    }
                    Err(error) => Err(error),
                }
            });
        let tidy = fs::remove_file(&beside);
        let written = result?;
        tidy?;
        File::open(self.folder())?.sync_all()?;
        Ok(written)
    }
}

impl RecordStore for RecordFile {
    fn get(&self) -> Result<Option<(Record, Version)>, Failure> {
        let fail = |path: &Path, error: std::io::Error| broken(format!("read {}: {error}", path.display()));
        let newest = self.newest().map_err(|error| fail(self.folder(), error))?;
        if newest == 0 {
            return Ok(None);
        }
        let path = self.version(newest);
        let mut bytes = Vec::new();
        let limit = u64::try_from(MAX_RECORD).unwrap_or(u64::MAX).saturating_add(1);
        let file = File::open(&path).map_err(|error| fail(&path, error))?;
        file.take(limit)
            .read_to_end(&mut bytes)
            .map_err(|error| fail(&path, error))?;
        Ok(Some((
            parse(&bytes, &path.to_string_lossy())?,
            Version(newest.to_string()),
        )))
    }

    fn create(&self, record: &Record) -> Result<Written, Failure> {
        self.write(1, record)
    }

    fn replace(&self, version: &Version, record: &Record) -> Result<Written, Failure> {
        // What isn't one of our versions is not the present one.
        match version
            .0
            .parse::<u64>()
            .ok()
            .and_then(|number| number.checked_add(1))
        {
            Some(next) if self.version(next.saturating_sub(1)).exists() => self.write(next, record),
            _ => Ok(Written::Conflict),
        }
    }
}

fn random_name() -> std::io::Result<String> {
    use ring::rand::SecureRandom;

    let mut bytes = [0; 8];
    ring::rand::SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|_| std::io::Error::other("the kernel gives no random bytes"))?;
    Ok(format!("{:016x}", u64::from_be_bytes(bytes)))
}

#[cfg(test)]
mod tests {
    use super::super::tests::{contract, record};
    use super::*;

    #[test]
    fn a_file_keeps_the_contract() {
        let folder = tempfile::tempdir().unwrap();
        contract(&RecordFile::new(folder.path().join("record")));
    }

    #[test]
    fn of_many_writers_one_wins_every_version() {
        let folder = tempfile::tempdir().unwrap();
        let store = RecordFile::new(folder.path().join("record"));
        for number in 0..20 {
            let wins: usize = std::thread::scope(|scope| {
                let writers: Vec<_> = (0..8)
                    .map(|writer| {
                        let store = &store;
                        scope.spawn(move || match number {
                            0 => store.create(&record(writer)).unwrap(),
                            _ => store
                                .replace(&Version(number.to_string()), &record(writer))
                                .unwrap(),
                        })
                    })
                    .collect();
                let written = writers.into_iter().map(|writer| writer.join().unwrap());
                written.filter(|written| *written == Written::Done).count()
            });
            assert_eq!(wins, 1);
        }
        assert_eq!(store.get().unwrap().unwrap().1, Version("20".to_owned()));
    }

    #[test]
    fn a_file_that_is_no_record_is_a_failure_and_no_absence() {
        let folder = tempfile::tempdir().unwrap();
        let store = RecordFile::new(folder.path().join("record"));
        fs::write(folder.path().join("record.0000000003"), "{").unwrap();
        fs::write(folder.path().join("record.tmp"), "x").unwrap();
        assert!(store.get().is_err());
        let missing = RecordFile::new(folder.path().join("not/there"));
        assert!(missing.get().is_err());
    }
}
