//! A package as dpkg knows it.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, bail};

use crate::archive::version;
use crate::tree::control::{Paragraph, clauses};
use crate::tree::deb::{ControlFile, Deb};
use crate::tree::value::TreePath;

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
    pub(super) control: BTreeMap<String, ControlFile>,
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

    /// Its paragraph in the status file.
    pub(super) fn stanza(&self, status: &str, conffiles: &BTreeMap<TreePath, String>) -> Paragraph {
        let mut stanza = self.paragraph.clone();
        stanza.set("Status", status, "Package");
        if !conffiles.is_empty() {
            let lines = conffiles.iter().map(|(path, sum)| format!("\n {path} {sum}"));
            stanza.set("Conffiles", &lines.collect::<String>(), "Version");
        }
        stanza
    }
}

pub(super) fn limit_holds(relation: &str, version: &str) -> bool {
    let Some((_, limit)) = relation.split_once('(') else {
        return true;
    };
    let limit = limit.split(')').next().unwrap_or_default().trim();
    let operator: String = limit.chars().take_while(|c| "<>=".contains(*c)).collect();
    version::within(version, &operator, limit[operator.len()..].trim())
}
