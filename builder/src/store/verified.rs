//! Which blobs were hashed already, so that a build need not read hundreds of megabytes again.
//!
//! A blob counts as verified while its file has the device, inode, size, mtime and ctime that it had when it was
//! hashed. Every write, truncation, rename, chmod or restored mtime sets ctime, which no program can choose. Two
//! changes within one clock tick share a ctime, so what is remembered across processes had a ctime well in the past
//! when it was hashed. What this cannot see is a disk that returns other bytes than were written.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::OFlags;

use crate::digest::Digest;
use crate::obstacle;

/// Longer than any kernel's or filesystem's timestamp granularity (FAT: two seconds).
const SETTLED_SECONDS: i64 = 3;

/// Beyond this size the file is begun anew.
const MAX_FILE_BYTES: u64 = 4 << 20;

/// What identifies a file's content without reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Identity {
    device: u64,
    inode: u64,
    size: u64,
    mtime: (i64, i64),
    ctime: (i64, i64),
}

impl Identity {
    pub(super) fn of(file: &File) -> io::Result<Self> {
        let metadata = file.metadata()?;
        Ok(Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            mtime: (metadata.mtime(), metadata.mtime_nsec()),
            ctime: (metadata.ctime(), metadata.ctime_nsec()),
        })
    }

    fn settled(&self) -> bool {
        now().is_some_and(|now| now - self.ctime.0 >= SETTLED_SECONDS)
    }

    fn line(&self, digest: &Digest) -> String {
        let Self {
            device,
            inode,
            size,
            mtime,
            ctime,
        } = self;
        format!(
            "{digest} {device} {inode} {size} {} {} {} {}\n",
            mtime.0, mtime.1, ctime.0, ctime.1
        )
    }

    fn parse(line: &str) -> Option<(Digest, Self)> {
        let mut fields = line.split(' ');
        let digest = fields.next()?.parse().ok()?;
        let mut unsigned = || fields.next()?.parse::<u64>().ok();
        let (device, inode, size) = (unsigned()?, unsigned()?, unsigned()?);
        let mut signed = || fields.next()?.parse::<i64>().ok();
        let identity = Self {
            device,
            inode,
            size,
            mtime: (signed()?, signed()?),
            ctime: (signed()?, signed()?),
        };
        fields.next().is_none().then_some((digest, identity))
    }
}

/// Seconds since 1970.
fn now() -> Option<i64> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).ok()?;
    i64::try_from(now.as_secs()).ok()
}

/// The blobs known to be good. Appends to its file; lines that are torn or stale only cost a hash.
pub(super) struct Verified {
    path: PathBuf,
    known: HashMap<Digest, Identity>,
    /// What changed before this second is on the disk.
    synced: i64,
}

impl Verified {
    pub(super) fn load(path: &Path) -> Self {
        let mut text = String::new();
        let mut oversized = false;
        if let Ok(file) = obstacle::open_file(path, OFlags::RDONLY) {
            oversized = file
                .metadata()
                .is_ok_and(|metadata| metadata.len() > MAX_FILE_BYTES);
            if !oversized && file.take(MAX_FILE_BYTES).read_to_string(&mut text).is_err() {
                text.clear();
            }
        }
        if oversized {
            let _ = fs::remove_file(path);
        }
        // Later lines win.
        Self {
            path: path.to_owned(),
            known: text.lines().filter_map(Identity::parse).collect(),
            synced: i64::MIN,
        }
    }

    pub(super) fn knows(&self, digest: &Digest, identity: &Identity) -> bool {
        self.known.get(digest) == Some(identity)
    }

    /// The blob's file was hashed while it had `identity`.
    pub(super) fn remember(&mut self, digest: &Digest, identity: Identity) {
        self.known.insert(*digest, identity);
        if identity.settled() && self.on_disk(&identity).is_some() {
            // Lost lines (a read-only store, a full disk) cost a hash next time. One write per line: appends of
            // several processes don't mix.
            let access = OFlags::WRONLY | OFlags::APPEND | OFlags::CREATE;
            let file = obstacle::open_file(&self.path, access);
            let _ = file.and_then(|mut file| file.write_all(identity.line(digest).as_bytes()));
        }
    }

    /// The bytes that were hashed may be in memory only: after a power cut the record would vouch for other ones. One
    /// call for the filesystem covers all blobs before it.
    fn on_disk(&mut self, identity: &Identity) -> Option<()> {
        if identity.ctime.0 >= self.synced {
            let now = now()?;
            let folder = File::open(self.path.parent()?).ok()?;
            rustix::fs::syncfs(folder).ok()?;
            self.synced = now;
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_reads_back_and_a_torn_one_does_not() {
        let identity = Identity {
            device: 1,
            inode: 2,
            size: 3,
            mtime: (-4, 5),
            ctime: (6, 7),
        };
        let digest = Digest::of(b"x");
        let line = identity.line(&digest);
        assert_eq!(Identity::parse(line.trim_end()), Some((digest, identity)));
        for length in 0..line.len() - 2 {
            assert_eq!(Identity::parse(&line[..length]), None, "{}", &line[..length]);
        }
        assert_eq!(Identity::parse(&format!("{} 8", line.trim_end())), None);
    }

    #[test]
    fn a_blob_stays_verified_across_processes_once_its_ctime_has_settled() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("verified");
        let old = Identity {
            device: 1,
            inode: 2,
            size: 3,
            mtime: (4, 5),
            ctime: (1_700_000_000, 7),
        };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as i64;
        let fresh = Identity {
            ctime: (now, 0),
            ..old
        };
        let (a, b) = (Digest::of(b"a"), Digest::of(b"b"));
        let mut verified = Verified::load(&path);
        verified.remember(&a, old);
        verified.remember(&b, fresh);
        assert!(verified.knows(&a, &old) && verified.knows(&b, &fresh));

        let later = Verified::load(&path);
        assert!(later.knows(&a, &old));
        assert!(
            !later.knows(&b, &fresh),
            "a second change in the same tick would go unseen"
        );
        for changed in [
            Identity { size: 4, ..old },
            Identity { inode: 9, ..old },
            Identity { mtime: (4, 6), ..old },
            Identity {
                ctime: (1_700_000_000, 8),
                ..old
            },
        ] {
            assert!(!later.knows(&a, &changed));
        }
    }

    #[test]
    fn a_damaged_record_is_no_record() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("verified");
        fs::write(&path, b"\xff\xfe\n nonsense \n").unwrap();
        assert!(Verified::load(&path).known.is_empty());
    }
}
