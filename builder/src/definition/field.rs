//! What single values of a definition may be. Each check says why a value is refused; [`one`], [`option`] and
//! [`list`] hang a check on a key of a type, so that the TOML parser adds the line.

use std::collections::BTreeMap;
use std::marker::PhantomData;

use globset::GlobBuilder;
use serde::de::Error;
use serde::{Deserialize, Deserializer};

use crate::download::Address;

/// No list of a definition is anywhere near so long.
const MAX_ITEMS: usize = 4096;

/// A rule for a string.
pub(super) trait Check {
    /// Says why `text` is refused.
    fn check(text: &str) -> Result<(), String>;
}

/// Names of rules, to be used with [`one`], [`option`] and [`list`].
macro_rules! checks {
    ($($(#[$doc:meta])* $name:ident = $check:ident;)+) => {$(
        $(#[$doc])*
        pub(super) struct $name;
        impl Check for $name {
            fn check(text: &str) -> Result<(), String> {
                $check(text)
            }
        }
    )+};
}

checks! {
    /// A Debian binary package.
    Package = package_name;
    /// A folder below `images/`, `images/components/` or `roles/`.
    Folder = folder_name;
    /// A systemd unit.
    Unit = unit_name;
    /// A user or group.
    Account = account_name;
    /// A text in one field of `/etc/passwd`.
    PasswdField = passwd_field;
    /// An absolute path in one field of `/etc/passwd`.
    PasswdPath = passwd_path;
    /// A glob over absolute paths.
    FileGlob = file_glob;
    /// A glob over kernel modules.
    ModuleGlob = module_glob;
    /// A kernel module.
    Module = module_name;
    /// A word of the kernel command line.
    KernelWord = kernel_word;
    /// An OpenPGP certificate's fingerprint.
    Fingerprint = fingerprint;
    /// A path below the definition's folder.
    RelativeFile = relative_file;
    /// A URL that a mirror may have.
    MirrorUrl = mirror_url;
    /// A word of an archive: a suite, a component, an architecture.
    ArchiveWord = archive_word;
    /// One line of text for people.
    Line = line;
}

#[derive(Clone)]
struct Checked<C>(String, PhantomData<C>);

impl<'de, C: Check> Deserialize<'de> for Checked<C> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        C::check(&text).map_err(D::Error::custom)?;
        Ok(Self(text, PhantomData))
    }
}

/// A string that keeps the rule `C`.
pub(super) fn one<'de, D: Deserializer<'de>, C: Check>(deserializer: D) -> Result<String, D::Error> {
    Ok(Checked::<C>::deserialize(deserializer)?.0)
}

/// An optional string that keeps the rule `C`.
pub(super) fn option<'de, D: Deserializer<'de>, C: Check>(
    deserializer: D,
) -> Result<Option<String>, D::Error> {
    Ok(Option::<Checked<C>>::deserialize(deserializer)?.map(|text| text.0))
}

/// A list of strings that keep the rule `C`.
pub(super) fn list<'de, D: Deserializer<'de>, C: Check>(deserializer: D) -> Result<Vec<String>, D::Error> {
    let items = Vec::<Checked<C>>::deserialize(deserializer)?;
    if items.len() > MAX_ITEMS {
        return Err(D::Error::custom(format!(
            "{} items are more than {MAX_ITEMS}",
            items.len()
        )));
    }
    Ok(items.into_iter().map(|item| item.0).collect())
}

/// A list of tables, bounded.
pub(super) fn tables<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<Vec<T>, D::Error> {
    let items = Vec::<T>::deserialize(deserializer)?;
    if items.len() > MAX_ITEMS {
        return Err(D::Error::custom(format!(
            "{} tables are more than {MAX_ITEMS}",
            items.len()
        )));
    }
    Ok(items)
}

/// Version 1 of a format.
pub(super) fn schema<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    match u32::deserialize(deserializer)? {
        1 => Ok(1),
        other => Err(D::Error::custom(format!(
            "schema is {other}, this kimage reads 1"
        ))),
    }
}

/// The id of a system user or group: neither root nor one of the ids that `uid_t` and systemd reserve.
pub(super) fn account_id<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    match u32::deserialize(deserializer)? {
        id @ 1..=65534 => Ok(id),
        other => Err(D::Error::custom(format!("id {other} is not between 1 and 65534"))),
    }
}

/// Kernel parameters, as `sysctl.d(5)` takes them.
pub(super) fn sysctls<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<BTreeMap<String, String>, D::Error> {
    let map = BTreeMap::<String, String>::deserialize(deserializer)?;
    for (key, value) in &map {
        let allowed = |c: char| c.is_ascii_alphanumeric() || "._/-*".contains(c);
        if key.is_empty() || !key.chars().all(allowed) {
            return Err(D::Error::custom(format!("`{key}` is not a kernel parameter")));
        }
        line(value).map_err(D::Error::custom)?;
    }
    Ok(map)
}

/// The name of a folder of the workspace.
pub(super) fn folder_name(text: &str) -> Result<(), String> {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
    let starts = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let rule = "lower-case letters, digits, `-` and `.`, at most 64";
    expect(
        text,
        "a name",
        rule,
        text.len() <= 64 && text.starts_with(starts) && text.chars().all(allowed),
    )
}

/// Debian policy, section 5.6.7.
pub(crate) fn package_name(text: &str) -> Result<(), String> {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "+-.".contains(c);
    let starts = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let valid = (2..=128).contains(&text.len()) && text.starts_with(starts) && text.chars().all(allowed);
    expect(
        text,
        "a package name",
        "lower-case letters, digits, `+`, `-` and `.`",
        valid,
    )
}

/// systemd.unit(5).
fn unit_name(text: &str) -> Result<(), String> {
    const KINDS: [&str; 10] = [
        "service",
        "socket",
        "target",
        "timer",
        "mount",
        "automount",
        "path",
        "slice",
        "swap",
        "scope",
    ];
    let allowed = |c: char| c.is_ascii_alphanumeric() || ":_.\\@-".contains(c);
    let kind = text
        .rsplit_once('.')
        .filter(|(stem, kind)| !stem.is_empty() && KINDS.contains(kind));
    let rule = "letters, digits, `:_.\\@-`, and an end like `.service`";
    expect(
        text,
        "a unit name",
        rule,
        text.len() <= 255 && kind.is_some() && text.chars().all(allowed),
    )
}

/// useradd(8).
fn account_name(text: &str) -> Result<(), String> {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_' || c == '-';
    let starts = |c: char| c.is_ascii_lowercase() || c == '_';
    let rule = "lower-case letters, digits, `_` and `-`, at most 32";
    let valid = text.len() <= 32 && text.starts_with(starts) && text.chars().all(allowed);
    expect(text, "a user or group name", rule, valid)
}

fn passwd_field(text: &str) -> Result<(), String> {
    let valid = text.len() <= 256 && !text.contains(|c: char| c == ':' || c.is_control());
    expect(text, "a field of /etc/passwd", "no `:`, no line break", valid)
}

fn passwd_path(text: &str) -> Result<(), String> {
    passwd_field(text)?;
    expect(
        text,
        "an absolute path",
        "starts with `/`, no `..`",
        text.starts_with('/') && !climbs(text),
    )
}

fn file_glob(text: &str) -> Result<(), String> {
    expect(
        text,
        "a glob over absolute paths",
        "starts with `/`, no `..`",
        text.starts_with('/') && !climbs(text),
    )?;
    glob(text)
}

fn module_glob(text: &str) -> Result<(), String> {
    let valid = !text.is_empty() && !text.starts_with('/') && !climbs(text);
    expect(
        text,
        "a glob over modules",
        "relative to /usr/lib/modules/<version>/, no `..`",
        valid,
    )?;
    glob(text)
}

fn glob(text: &str) -> Result<(), String> {
    let built = GlobBuilder::new(text).literal_separator(true).build();
    built
        .map(drop)
        .map_err(|error| format!("bad glob `{text}`: {}", error.kind()))
}

fn module_name(text: &str) -> Result<(), String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    let valid = (1..=64).contains(&text.len()) && text.chars().all(allowed);
    expect(text, "a module name", "letters, digits, `_` and `-`", valid)
}

fn kernel_word(text: &str) -> Result<(), String> {
    let valid = (1..=1024).contains(&text.len()) && text.chars().all(|c| c.is_ascii_graphic());
    expect(text, "one word of a kernel command line", "no blanks", valid)
}

fn fingerprint(text: &str) -> Result<(), String> {
    let valid = text.len() == 40
        && text
            .chars()
            .all(|c| c.is_ascii_hexdigit() && !c.is_ascii_lowercase());
    expect(text, "a fingerprint", "40 hexadecimal digits in capitals", valid)
}

fn relative_file(text: &str) -> Result<(), String> {
    let valid =
        !text.is_empty() && !text.starts_with('/') && !climbs(text) && !text.contains(char::is_control);
    expect(text, "a file below this folder", "relative, no `..`", valid)
}

/// What may stand before `dists/`: the fetcher knows `http`, `https` and `file`.
pub(crate) fn mirror_url(text: &str) -> Result<(), String> {
    let rest = ["https://", "http://", "file:///"]
        .iter()
        .find_map(|scheme| text.strip_prefix(scheme));
    let valid = rest.is_some_and(|rest| !rest.is_empty()) && text.chars().all(|c| c.is_ascii_graphic());
    expect(
        // What is no URL may hold a password all the same.
        &Address::from(text).to_string(),
        "a mirror",
        "a URL that starts with https://, http:// or file:///",
        valid,
    )
}

fn archive_word(text: &str) -> Result<(), String> {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-.+/".contains(c);
    let valid = (1..=64).contains(&text.len())
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.chars().all(allowed)
        && !climbs(text);
    expect(
        text,
        "a name of an archive",
        "lower-case letters, digits, `-`, `.` and `/`",
        valid,
    )
}

fn line(text: &str) -> Result<(), String> {
    let valid = !text.trim().is_empty() && text.len() <= 1024 && !text.contains(char::is_control);
    expect(
        text,
        "one line of text",
        "not empty, no control characters",
        valid,
    )
}

fn climbs(path: &str) -> bool {
    path.split('/').any(|part| part == "..")
}

fn expect(text: &str, what: &str, rule: &str, valid: bool) -> Result<(), String> {
    if valid {
        return Ok(());
    }
    let shown: String = text.chars().take(80).collect();
    Err(format!("`{}` is not {what} ({rule})", shown.escape_debug()))
}
