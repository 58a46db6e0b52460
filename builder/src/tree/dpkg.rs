//! dpkg's database (`/var/lib/dpkg`), written as `dpkg --unpack` would leave it, so that the image's own dpkg can
//! configure what kimage unpacked and any scanner can read what is installed.

mod package;
mod triggers;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, OpenOptions, Permissions};
use std::io::Write as _;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use anyhow::{Context, Result, bail};

use super::control::{Paragraph, clauses};
use super::unpack::Unpacked;
use super::value::TreePath;

pub use package::Package;
pub use triggers::write_triggers;

/// Where the database is while packages are configured.
pub const ADMIN: &str = "var/lib/dpkg";
/// Control files that dpkg does not keep in `info/`.
const NOT_KEPT: [&str; 1] = ["control"];

/// The database of packages that are unpacked and not yet configured.
pub struct Database<'a> {
    /// The packages in the order of [`Unpacked::lists`].
    pub packages: &'a [Package],
    /// What unpacking found out.
    pub unpacked: &'a Unpacked,
    /// The packages of the tree below, configured.
    pub below: &'a [Package],
}

impl Database<'_> {
    /// Writes the database below `root` as `dpkg --unpack` leaves it. Dependencies on packages that the definition
    /// leaves out are dropped from the status file until [`Database::finish`] writes the packages' own words.
    pub fn write(&self, root: &Path) -> Result<()> {
        let admin = root.join(ADMIN);
        for folder in ["info", "updates", "triggers", "parts", "alternatives"] {
            make_folders(root, &format!("{ADMIN}/{folder}"))?;
        }
        for (package, list) in self.packages.iter().zip(&self.unpacked.lists) {
            self.write_info(&admin.join("info"), package, list)?;
        }
        if self.below.is_empty() {
            put(&admin.join("info/format"), b"1\n", 0o644)?;
            put(&admin.join("available"), b"", 0o644)?;
            put(&admin.join("diversions"), b"", 0o644)?;
            put(&admin.join("statoverride"), b"", 0o644)?;
        }
        let present: BTreeSet<String> = self
            .below
            .iter()
            .chain(self.packages)
            .flat_map(Package::names)
            .collect();
        let mut stanzas = self.stanzas("install ok unpacked");
        let new: BTreeSet<&str> = self
            .packages
            .iter()
            .map(|package| package.name.as_str())
            .collect();
        for stanza in stanzas
            .iter_mut()
            .filter(|stanza| new.contains(stanza.get("Package").unwrap_or_default()))
        {
            drop_absent(stanza, &present);
        }
        put(&admin.join("status"), render(&stanzas).as_bytes(), 0o644)?;
        Ok(())
    }

    /// Checks that dpkg configured everything and writes the final status file.
    pub fn finish(&self, root: &Path) -> Result<()> {
        let path = root.join(ADMIN).join("status");
        let text = fs::read(&path).context("read dpkg's status")?;
        let paragraphs = Paragraph::parse_all(&text).context("dpkg's status")?;
        let unfinished = paragraphs
            .iter()
            .filter(|stanza| stanza.get("Status") != Some("install ok installed"));
        let unfinished: Vec<String> = unfinished
            .map(|stanza| {
                let field = |name| stanza.get(name).unwrap_or_default();
                format!("{} ({})", field("Package"), field("Status"))
            })
            .collect();
        if !unfinished.is_empty() {
            bail!("packages that dpkg left unconfigured: {}", unfinished.join(", "));
        }
        if paragraphs.len() != self.packages.len() + self.below.len() {
            bail!(
                "dpkg's status lists {} packages, {} were unpacked",
                paragraphs.len(),
                self.packages.len()
            );
        }
        put(
            &path,
            render(&self.stanzas("install ok installed")).as_bytes(),
            0o644,
        )
    }

    /// All stanzas sorted by name, the new packages with `status`.
    fn stanzas(&self, status: &str) -> Vec<Paragraph> {
        let none = BTreeMap::new();
        let new = self
            .packages
            .iter()
            .zip(&self.unpacked.conffiles)
            .map(|(package, conffiles)| package.stanza(status, conffiles));
        let old = self
            .below
            .iter()
            .map(|package| package.stanza("install ok installed", &none));
        let mut all: Vec<Paragraph> = old.chain(new).collect();
        all.sort_by(|one, other| one.get("Package").cmp(&other.get("Package")));
        all
    }

    fn write_info(&self, info: &Path, package: &Package, list: &[TreePath]) -> Result<()> {
        let prefix = package.info_name();
        let mut text = Vec::new();
        for path in list {
            text.push(b'/');
            // dpkg writes the root as `/.`.
            text.extend(if path.parts().is_empty() {
                b".".to_vec()
            } else {
                path.to_bytes()
            });
            text.push(b'\n');
        }
        put(&info.join(format!("{prefix}.list")), &text, 0o644)?;
        for (name, file) in package
            .control
            .iter()
            .filter(|(name, _)| !NOT_KEPT.contains(&name.as_str()))
        {
            put(
                &info.join(format!("{prefix}.{name}")),
                &file.bytes,
                u32::from(file.mode & 0o777),
            )?;
        }
        Ok(())
    }
}

/// Drops the dependencies that nothing present can satisfy: the lock has accepted them as left out. What is present
/// in a wrong version stays, for dpkg to refuse.
fn drop_absent(stanza: &mut Paragraph, present: &BTreeSet<String>) {
    for field in ["Pre-Depends", "Depends"] {
        let Some(value) = stanza.get(field) else { continue };
        let kept = clauses(value)
            .into_iter()
            .filter(|clause| clause.iter().any(|one| present.contains(&one.name)));
        let text = |clause: Vec<super::control::Alternative>| {
            clause
                .into_iter()
                .map(|alternative| alternative.text)
                .collect::<Vec<_>>()
                .join(" | ")
        };
        let kept: Vec<String> = kept.map(text).collect();
        if kept.is_empty() {
            stanza.remove(field);
        } else {
            stanza.set(field, &kept.join(", "), "Status");
        }
    }
}

fn render(stanzas: &[Paragraph]) -> String {
    stanzas.iter().map(|stanza| stanza.render() + "\n").collect()
}

/// Makes the folders of `path` below `root` that are absent, with mode 0755 whatever the process's umask.
pub(super) fn make_folders(root: &Path, path: &str) -> Result<()> {
    let mut folder = root.to_owned();
    for part in path.split('/') {
        folder.push(part);
        match fs::create_dir(&folder) {
            Ok(()) => fs::set_permissions(&folder, Permissions::from_mode(0o755))?,
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error).with_context(|| format!("make {}", folder.display())),
        }
    }
    Ok(())
}

/// Writes a file anew, with exactly these permission bits.
pub(super) fn put(path: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    let write = || -> std::io::Result<()> {
        match fs::remove_file(path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)?;
        file.write_all(bytes)?;
        file.set_permissions(Permissions::from_mode(mode))
    };
    write().with_context(|| format!("write {}", path.display()))
}

#[cfg(test)]
mod tests;
