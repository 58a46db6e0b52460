//! Values of `component.toml` that cannot hold a bad one.

use std::fmt;

use serde::Deserialize;

/// Most bytes of a path that Linux takes (`PATH_MAX` without the closing NUL).
const LONGEST_PATH: usize = 4095;

/// The name of a component: a folder below `images/components`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "String")]
pub struct Name(String);

impl Name {
    /// As written.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<Name> for String {
    fn from(name: Name) -> Self {
        name.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for Name {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '.');
        let starts = text.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit());
        if !starts || text.len() > 64 || !text.chars().all(good) {
            let shown: String = text.chars().take(80).collect();
            return Err(format!(
                "`{shown}` is not a component's name (a-z, 0-9, `-` and `.`, at most 64)"
            ));
        }
        Ok(Self(text))
    }
}

/// An absolute path in an image, without `.`, `..` and doubled slashes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "String")]
pub struct GuestPath(String);

impl GuestPath {
    /// As written, with the leading slash.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// What a symbolic link at `self` must hold to reach `target`: the bare name in the same folder, else the
    /// absolute path.
    pub fn link_to(&self, target: &Self) -> String {
        let (from, _) = self.0.rsplit_once('/').unwrap_or_default();
        let (to, name) = target.0.rsplit_once('/').unwrap_or_default();
        if from == to {
            name.to_owned()
        } else {
            target.0.clone()
        }
    }
}

impl fmt::Display for GuestPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for GuestPath {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let Some(rest) = text.strip_prefix('/') else {
            return Err(format!("path `{text}` is not absolute"));
        };
        check_parts(rest)?;
        Ok(Self(text))
    }
}

/// A path below a component's folder or inside an archive, without `.`, `..` and doubled slashes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "String")]
pub struct RelativePath(String);

impl RelativePath {
    /// As written.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for RelativePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for RelativePath {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        check_parts(&text)?;
        Ok(Self(text))
    }
}

fn check_parts(path: &str) -> Result<(), String> {
    if path.len() > LONGEST_PATH {
        return Err(format!(
            "a path of {} bytes is longer than {LONGEST_PATH}",
            path.len()
        ));
    }
    for part in path.split('/') {
        match part {
            "" => return Err(format!("path `{path}` has an empty part")),
            "." | ".." => return Err(format!("path `{path}` holds `{part}`")),
            _ if part.contains('\0') => return Err("a path holds a NUL byte".into()),
            _ if part.len() > 255 => return Err("a path has a part longer than 255 bytes".into()),
            _ => {}
        }
    }
    Ok(())
}

/// Permission bits, written in octal as `"0755"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Mode(u16);

impl Mode {
    /// The bits, `0o7777` at most.
    pub fn bits(self) -> u16 {
        self.0
    }
}

impl Default for Mode {
    fn default() -> Self {
        Self(0o755)
    }
}

impl TryFrom<String> for Mode {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let bits = u16::from_str_radix(&text, 8).ok().filter(|bits| *bits <= 0o7777);
        bits.map(Self)
            .ok_or_else(|| format!("mode `{text}` is not octal digits up to 7777"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_in_the_same_folder_is_a_bare_name() {
        let path = |text: &str| GuestPath::try_from(text.to_owned()).unwrap();
        assert_eq!(
            path("/usr/bin/kubelet").link_to(&path("/usr/bin/kubernetes")),
            "kubernetes"
        );
        assert_eq!(
            path("/usr/sbin/kubelet").link_to(&path("/usr/bin/kubernetes")),
            "/usr/bin/kubernetes"
        );
    }

    #[test]
    fn names_that_leave_their_folder_are_refused() {
        for name in ["", "..", ".", "a/b", "A", "-a", "é", &"a".repeat(65)] {
            assert!(Name::try_from(name.to_owned()).is_err(), "{name}");
        }
        for path in ["", "/", "//a", "/a/", "/a/../b", "a", "/a\0"] {
            assert!(GuestPath::try_from(path.to_owned()).is_err(), "{path}");
        }
        for mode in ["", "8", "10000", "-1", "0x1"] {
            assert!(Mode::try_from(mode.to_owned()).is_err(), "{mode}");
        }
    }
}
