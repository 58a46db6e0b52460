//! The newest list of instances that this machine has seen of each signer: `/var/lib/kimage/inventory.json`, on the disk
//! that survives a reboot. It is noted before anybody acts on a list, so that no list which is older than one that was
//! acted on is believed again, whenever the power goes.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::ErrorKind;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use kimage_roles::inventory::Edition;
use serde::{Deserialize, Serialize};

use crate::host::{self, read_bounded};

/// Version of the format.
const SCHEMA: u32 = 1;
/// Largest file that is read, in bytes; some hundred signers.
const MAX_FILE: u64 = 64 << 10;

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Content {
    schema: u32,
    /// By the name of the signer ([`kimage_roles::inventory::issuer`]).
    issuers: BTreeMap<String, Edition>,
}

/// The file, for processes of this machine that may write at the same time.
#[derive(Debug, Clone)]
pub struct SeenLists {
    path: PathBuf,
}

impl SeenLists {
    /// The file at `path`; none means that nothing was seen.
    pub fn at(path: PathBuf) -> Self {
        Self { path }
    }

    /// The newest edition of `issuer` that was seen.
    ///
    /// # Errors
    ///
    /// The file can't be read or isn't one of ours: nobody knows what was seen, so no list may be believed.
    pub fn newest(&self, issuer: &str) -> Result<Option<Edition>> {
        Ok(self.read()?.issuers.get(issuer).copied())
    }

    /// Notes that `edition` was seen. Neither of its numbers ever lowers what stands there.
    pub fn note(&self, issuer: &str, edition: Edition) -> Result<()> {
        let _alone = self.lock()?;
        let mut content = self.read()?;
        let known = content.issuers.entry(issuer.to_owned()).or_default();
        known.sequence = known.sequence.max(edition.sequence);
        known.issued_at = known.issued_at.max(edition.issued_at);
        let bytes = serde_json::to_vec(&content)?;
        host::write(&self.path, &bytes, 0o600).map(drop)
    }

    fn read(&self) -> Result<Content> {
        let bytes = match read_bounded(&self.path, MAX_FILE) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let issuers = BTreeMap::new();
                return Ok(Content {
                    schema: SCHEMA,
                    issuers,
                });
            }
            Err(error) => return Err(error).with_context(|| format!("read {}", self.path.display())),
        };
        let content: Content = serde_json::from_slice(&bytes).with_context(|| self.damaged())?;
        ensure!(content.schema == SCHEMA, self.damaged());
        Ok(content)
    }

    fn damaged(&self) -> String {
        let path = self.path.display();
        format!(
            "{path} doesn't say which lists were seen; `rm {path}` lets this machine begin with the next one"
        )
    }

    /// Two processes must not put their numbers in each other's place.
    fn lock(&self) -> Result<File> {
        let path = self.path.with_extension("lock");
        let open = || -> std::io::Result<File> {
            if let Some(folder) = path.parent() {
                std::fs::create_dir_all(folder)?;
            }
            let file = File::options()
                .write(true)
                .create(true)
                .truncate(false)
                .open(&path)?;
            file.lock()?;
            Ok(file)
        };
        open().with_context(|| format!("lock {}", path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn edition(sequence: u64, issued_at: u64) -> Edition {
        Edition { sequence, issued_at }
    }

    #[test]
    fn what_was_seen_never_goes_back_and_is_kept_for_each_signer() {
        let folder = tempfile::tempdir().unwrap();
        let seen = SeenLists::at(folder.path().join("kimage/inventory.json"));
        assert_eq!(seen.newest("a").unwrap(), None);
        for (noted, newest) in [
            (edition(7, 100), edition(7, 100)),
            (edition(6, 90), edition(7, 100)),
            (edition(8, 90), edition(8, 100)),
            (edition(8, 110), edition(8, 110)),
        ] {
            seen.note("a", noted).unwrap();
            assert_eq!(seen.newest("a").unwrap(), Some(newest));
        }
        assert_eq!(seen.newest("b").unwrap(), None);
    }

    #[test]
    fn of_many_writers_at_once_the_newest_edition_stays() {
        let folder = tempfile::tempdir().unwrap();
        let seen = SeenLists::at(folder.path().join("inventory.json"));
        std::thread::scope(|scope| {
            for writer in 0..8 {
                let seen = &seen;
                scope.spawn(move || {
                    for number in 0..10 {
                        seen.note("a", edition(writer * 10 + number, 0)).unwrap();
                    }
                });
            }
        });
        assert_eq!(seen.newest("a").unwrap(), Some(edition(79, 0)));
    }

    #[test]
    fn a_damaged_file_means_that_nobody_knows_and_says_how_to_mend_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("inventory.json");
        let seen = SeenLists::at(path.clone());
        for damage in ["", "{", "null", r#"{"schema":2,"issuers":{}}"#, r#"{"schema":1}"#] {
            std::fs::write(&path, damage).unwrap();
            let error = format!("{:#}", seen.newest("a").unwrap_err());
            assert!(
                error.contains("`rm ") && seen.note("a", edition(1, 1)).is_err(),
                "{error}"
            );
        }
    }
}
