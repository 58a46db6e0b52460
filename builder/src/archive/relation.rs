//! Relations between packages: `a (>= 1) | b, c:any` (Debian policy, section 7.1).

use std::cmp::Ordering;

use anyhow::{Context, Result, bail};

use super::version;

/// Most relations in one field.
const MAX_RELATIONS: usize = 4096;

/// `a | b`: any of them will do.
pub type Alternatives = Vec<Relation>;

/// How a version must compare.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Operator {
    /// `<<`
    Earlier,
    /// `<=`
    AtMost,
    /// `=`
    Exactly,
    /// `>=`
    AtLeast,
    /// `>>`
    Later,
}

/// One package, perhaps within a range of versions.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Relation {
    /// Its name or that of a virtual package.
    pub name: String,
    /// The range.
    pub version: Option<(Operator, String)>,
}

impl Relation {
    /// Whether a package called [`Relation::name`] with this version will do.
    pub fn admits(&self, candidate: &str) -> bool {
        let Some((operator, limit)) = &self.version else {
            return true;
        };
        let order = version::compare(candidate, limit);
        match operator {
            Operator::Earlier => order == Ordering::Less,
            Operator::AtMost => order != Ordering::Greater,
            Operator::Exactly => order == Ordering::Equal,
            Operator::AtLeast => order != Ordering::Less,
            Operator::Later => order == Ordering::Greater,
        }
    }

    /// Whether a virtual package of this name will do: an unversioned one satisfies no version (policy 7.5).
    pub fn admits_provided(&self, provided: Option<&str>) -> bool {
        match provided {
            Some(version) => self.admits(version),
            None => self.version.is_none(),
        }
    }
}

impl std::fmt::Display for Relation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.name)?;
        let Some((operator, version)) = &self.version else {
            return Ok(());
        };
        let operator = match operator {
            Operator::Earlier => "<<",
            Operator::AtMost => "<=",
            Operator::Exactly => "=",
            Operator::AtLeast => ">=",
            Operator::Later => ">>",
        };
        write!(f, " ({operator} {version})")
    }
}

/// Reads a field's value; an empty one has no relations.
pub fn parse(field: &str) -> Result<Vec<Alternatives>> {
    let groups = field.split(',').map(str::trim).filter(|group| !group.is_empty());
    let mut relations = Vec::new();
    for group in groups {
        if relations.len() == MAX_RELATIONS {
            bail!("more than {MAX_RELATIONS} relations in one field");
        }
        let alternatives: Result<Alternatives> = group.split('|').map(one).collect();
        relations.push(alternatives.with_context(|| format!("relation `{group}`"))?);
    }
    Ok(relations)
}

/// `name[:arch] [(op version)]`. Binary indexes hold no architecture lists or build profiles.
fn one(text: &str) -> Result<Relation> {
    let text = text.trim();
    let (name, range) = match text.split_once('(') {
        Some((name, range)) => (
            name.trim(),
            Some(range.strip_suffix(')').context("no closing parenthesis")?.trim()),
        ),
        None => (text, None),
    };
    // `:any` and `:native` qualify the architecture, of which an image has one.
    let name = name.split(':').next().unwrap_or(name);
    super::index::check_name(name)?;
    let version = range.map(limit).transpose()?;
    Ok(Relation {
        name: name.to_owned(),
        version,
    })
}

fn limit(range: &str) -> Result<(Operator, String)> {
    let end = range
        .find(|c: char| !matches!(c, '<' | '=' | '>'))
        .unwrap_or(range.len());
    let (operator, version) = range.split_at(end);
    let operator = match operator {
        "<<" => Operator::Earlier,
        "<=" | "<" => Operator::AtMost,
        "=" => Operator::Exactly,
        ">=" | ">" => Operator::AtLeast,
        ">>" => Operator::Later,
        other => bail!("unknown operator `{other}`"),
    };
    let version = version.trim();
    if version.is_empty() {
        bail!("no version after the operator");
    }
    Ok((operator, version.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alternatives_versions_and_qualifiers_are_read() {
        let parsed =
            parse("libc6 (>= 2.38), default-mta | mail-transport-agent, python3:any (<< 3.13~)").unwrap();
        let shown: Vec<Vec<String>> = parsed
            .iter()
            .map(|g| g.iter().map(ToString::to_string).collect())
            .collect();
        assert_eq!(
            shown,
            [
                vec!["libc6 (>= 2.38)"],
                vec!["default-mta", "mail-transport-agent"],
                vec!["python3 (<< 3.13~)"],
            ]
        );
        assert!(parse("").unwrap().is_empty());
    }

    #[test]
    fn malformed_relations_are_refused() {
        for text in ["a (>= 1", "a (~ 1)", "a (>=)", "A", "a | ", "../x"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn an_unversioned_virtual_package_satisfies_no_version() {
        let relation = &parse("libfoo (>= 1)").unwrap()[0][0];
        assert!(
            !relation.admits_provided(None) && relation.admits_provided(Some("1")) && relation.admits("2")
        );
    }
}
