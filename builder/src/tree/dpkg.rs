//! dpkg's database (`/var/lib/dpkg`), written as `dpkg --unpack` would leave it, so that the image's own dpkg can
//! configure what kimage unpacked and any scanner can read what is installed.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs::{self, OpenOptions, Permissions};
use std::io::Write as _;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use anyhow::{Context, Result, bail};

use super::control::{Paragraph, clauses};
use super::deb::{ControlFile, Deb};
use super::unpack::{Unpacked, merged};
use super::value::TreePath;
use crate::archive::version;

/// Where the database is while packages are configured.
pub const ADMIN: &str = "var/lib/dpkg";
/// Control files that dpkg does not keep in `info/`.
const NOT_KEPT: [&str; 1] = ["control"];

/// A package as its control files describe it.
#[derive(Debug, Clone)]
pub struct Package {
    /// Binary package.
    pub name: String,
    /// Version.
    pub version: String,
    /// `amd64` or `all`.
    pub architecture: String,
    /// Configuration files, as shipped.
    pub conffiles: BTreeSet<TreePath>,
    paragraph: Paragraph,
    control: BTreeMap<String, ControlFile>,
}

impl Package {
    /// Reads a package's own description.
    pub fn of(deb: &Deb) -> Result<Self> {
        let field = |name: &str| {
            deb.paragraph
                .get(name)
                .with_context(|| format!("control: no `{name}`"))
                .map(str::to_owned)
        };
        let name = field("Package")?;
        // The name becomes a file name in `info/`.
        if name.len() < 2
            || !name
                .bytes()
                .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || b"+-.".contains(&c))
        {
            bail!("control: `{name}` is not a package name");
        }
        for file in deb.control.keys() {
            if !file
                .bytes()
                .all(|c| c.is_ascii_alphanumeric() || b"-_".contains(&c))
            {
                bail!("control.tar: `{file}` is not a control file's name");
            }
        }
        let conffiles = match deb.control.get("conffiles") {
            None => BTreeSet::new(),
            Some(file) => {
                let text = std::str::from_utf8(&file.bytes).context("conffiles is not UTF-8")?;
                let paths = text.lines().filter(|line| line.starts_with('/'));
                paths
                    .map(|line| TreePath::parse(line.trim_end().as_bytes()))
                    .collect::<Result<_>>()?
            }
        };
        Ok(Self {
            name,
            version: field("Version")?,
            architecture: field("Architecture")?,
            conffiles,
            paragraph: deb.paragraph.clone(),
            control: deb.control.clone(),
        })
    }

    /// A package of a finished tree, from its paragraph in the status file.
    pub fn installed(paragraph: Paragraph) -> Result<Self> {
        let field = |name: &str| {
            paragraph
                .get(name)
                .with_context(|| format!("status: no `{name}`"))
                .map(str::to_owned)
        };
        Ok(Self {
            name: field("Package")?,
            version: field("Version")?,
            architecture: field("Architecture")?,
            conffiles: BTreeSet::new(),
            paragraph: paragraph.clone(),
            control: BTreeMap::new(),
        })
    }

    /// A field of its control paragraph.
    pub fn field(&self, name: &str) -> Option<&str> {
        self.paragraph.get(name)
    }

    /// Source package and its version, which default to the package's own.
    pub fn source(&self) -> (String, String) {
        let source = self.field("Source").unwrap_or(&self.name);
        match source.split_once(" (") {
            Some((name, version)) => (name.to_owned(), version.trim_end_matches(')').to_owned()),
            None => (source.to_owned(), self.version.clone()),
        }
    }

    /// Whether the system does not work without it.
    pub fn essential(&self) -> bool {
        self.field("Essential") == Some("yes")
    }

    /// Whether it ships a maintainer script or other control file of this name.
    pub fn control_file(&self, name: &str) -> Option<&[u8]> {
        self.control.get(name).map(|file| file.bytes.as_slice())
    }

    /// Whether its `Replaces` names `other` in the version at hand.
    pub fn replaces(&self, other: &Self) -> bool {
        let relations = clauses(self.field("Replaces").unwrap_or_default());
        relations
            .iter()
            .flatten()
            .any(|relation| relation.name == other.name && limit_holds(&relation.text, &other.version))
    }

    /// Names of this package and of the virtual packages it provides.
    pub fn names(&self) -> impl Iterator<Item = String> {
        let provided = clauses(self.field("Provides").unwrap_or_default());
        std::iter::once(self.name.clone())
            .chain(provided.into_iter().flatten().map(|alternative| alternative.name))
    }

    /// The prefix of its files in `info/`: packages that may be installed for several architectures carry theirs.
    pub fn info_name(&self) -> String {
        if self.field("Multi-Arch") == Some("same") {
            format!("{}:{}", self.name, self.architecture)
        } else {
            self.name.clone()
        }
    }

    fn stanza(&self, status: &str, conffiles: &BTreeMap<TreePath, String>) -> Paragraph {
        let mut stanza = self.paragraph.clone();
        stanza.set("Status", status, "Package");
        if !conffiles.is_empty() {
            let lines = conffiles.iter().map(|(path, sum)| format!("\n {path} {sum}"));
            stanza.set("Conffiles", &lines.collect::<String>(), "Version");
        }
        stanza
    }
}

fn limit_holds(relation: &str, version: &str) -> bool {
    let Some((_, limit)) = relation.split_once('(') else {
        return true;
    };
    let limit = limit.split(')').next().unwrap_or_default().trim();
    let operator: String = limit.chars().take_while(|c| "<>=".contains(*c)).collect();
    version::within(version, &operator, limit[operator.len()..].trim())
}

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

/// Writes `triggers/`: who is interested in what, and what the new packages have set off.
pub fn write_triggers(
    root: &Path,
    packages: &[Package],
    below: Option<&Path>,
    lists: &[Vec<TreePath>],
) -> Result<()> {
    let folder = root.join(ADMIN).join("triggers");
    let old = below.map(|below| below.join(ADMIN).join("triggers"));
    let mut interests = old
        .as_deref()
        .map(read_interests)
        .transpose()?
        .unwrap_or_default();
    let known = interests.clone();
    for package in packages {
        for (directive, trigger) in directives(package)? {
            let Some(kind) = directive.strip_prefix("interest") else {
                continue;
            };
            let suffix = if kind == "-noawait" { "/noawait" } else { "" };
            let line = format!("{}{suffix}", package.info_name());
            let holders = interests.entry(trigger).or_default();
            if !holders.contains(&line) {
                holders.push(line);
            }
        }
    }
    let mut file_text = String::new();
    for (trigger, holders) in &interests {
        if trigger.starts_with('/') {
            for holder in holders {
                let _ = writeln!(file_text, "{trigger} {holder}");
            }
        } else if known.get(trigger) != Some(holders) {
            put(
                &folder.join(trigger),
                format!("{}\n", holders.join("\n")).as_bytes(),
                0o644,
            )?;
        }
    }
    put(&folder.join("File"), file_text.as_bytes(), 0o644)?;
    // Packages unpacked together start from `unpacked`, and configuring them does what their triggers would do. Only
    // packages that were configured before (the base's) must be told.
    let mut set_off: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    for (package, list) in packages.iter().zip(lists) {
        for (directive, trigger) in directives(package)? {
            if let (true, Some((known, _))) =
                (directive.starts_with("activate"), known.get_key_value(&trigger))
            {
                let who = if directive == "activate-noawait" {
                    "-".to_owned()
                } else {
                    package.info_name()
                };
                set_off.entry(known).or_default().insert(who);
            }
        }
        for trigger in known.keys().filter(|trigger| trigger.starts_with('/')) {
            let watched = merged(&TreePath::parse(trigger.as_bytes())?);
            if list
                .iter()
                .any(|path| watched.holds(&merged(path)) && merged(path) != watched)
            {
                set_off.entry(trigger).or_default().insert("-".to_owned());
            }
        }
    }
    let mut text = String::new();
    for (trigger, who) in set_off {
        let who: Vec<String> = who.into_iter().collect();
        let _ = writeln!(text, "{trigger} {}", who.join(" "));
    }
    put(&folder.join("Unincorp"), text.as_bytes(), 0o644)
}

/// deb-triggers(5): one directive and one trigger a line.
fn directives(package: &Package) -> Result<Vec<(String, String)>> {
    let text = package.control_file("triggers").unwrap_or_default();
    let text =
        std::str::from_utf8(text).with_context(|| format!("{}: triggers is not UTF-8", package.name))?;
    let lines = text
        .lines()
        .map(|line| line.split('#').next().unwrap_or_default().trim());
    let pairs = lines.filter(|line| !line.is_empty()).map(|line| {
        let (directive, trigger) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        let trigger = trigger.trim();
        let plain = |c: u8| c.is_ascii_alphanumeric() || b"+-._:".contains(&c);
        let named = !trigger.is_empty() && !trigger.starts_with('.') && trigger.bytes().all(plain);
        if !(trigger.starts_with('/') || named) {
            bail!("{}: triggers: bad trigger `{trigger}`", package.name);
        }
        Ok((directive.to_owned(), trigger.to_owned()))
    });
    pairs.collect()
}

fn read_interests(folder: &Path) -> Result<BTreeMap<String, Vec<String>>> {
    let mut interests: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut names: Vec<_> = fs::read_dir(folder)?
        .map(|entry| entry.map(|entry| entry.file_name()))
        .collect::<Result<_, _>>()?;
    names.sort();
    for name in names {
        let name = name.to_string_lossy().into_owned();
        let text = fs::read_to_string(folder.join(&name))?;
        match name.as_str() {
            "Lock" | "Unincorp" => {}
            "File" => {
                for (trigger, holder) in text.lines().filter_map(|line| line.split_once(' ')) {
                    interests
                        .entry(trigger.to_owned())
                        .or_default()
                        .push(holder.to_owned());
                }
            }
            _ => interests
                .entry(name)
                .or_default()
                .extend(text.lines().map(str::to_owned)),
        }
    }
    Ok(interests)
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
