//! Which modules are linked into a Go program, as its own build information says.

use std::path::Path;

use anyhow::Result;
use serde::Deserialize;

use super::GoModule;
use super::licence;

/// `debug/buildinfo` as `go version -m -json` prints it.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct BuildInfo {
    main: Option<Dependency>,
    #[serde(default)]
    deps: Vec<Dependency>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Dependency {
    path: String,
    #[serde(default)]
    version: String,
    #[serde(default)]
    sum: String,
    replace: Option<Box<Dependency>>,
}

/// The modules of a program's build information (JSON of `go version -m`); `cache` is the module cache.
pub(super) fn linked(json: &[u8], cache: &Path) -> Result<Vec<GoModule>> {
    let info: BuildInfo = serde_json::from_slice(json)?;
    // The program's own module is a published one where the component builds a dependency's program.
    let own = info
        .main
        .filter(|main| main.replace.is_some() || !matches!(main.version.as_str(), "" | "(devel)"));
    let modules = own.into_iter().chain(info.deps).map(|module| {
        // A replacement with a version is a published module; one without is the copy that an overlay changed.
        let (module, changed) = match module.replace {
            Some(other) if !other.path.starts_with('.') => (*other, false),
            Some(_) => (
                Dependency {
                    replace: None,
                    ..module
                },
                true,
            ),
            None => (module, false),
        };
        let folder = cache.join(format!("{}@{}", escape(&module.path), escape(&module.version)));
        let licence = licence::of_folder(&folder);
        GoModule {
            path: module.path,
            version: module.version,
            sum: module.sum,
            changed,
            licence,
        }
    });
    Ok(modules.collect())
}

/// A module path or version as the module cache spells it: `!a` for `A`, for file systems that don't tell them apart
/// (`golang.org/x/mod/module`, function `EscapePath`).
pub(super) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_ascii_uppercase() {
            escaped.push('!');
        }
        escaped.push(c.to_ascii_lowercase());
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capital_letters_are_escaped_like_the_module_cache_does() {
        assert_eq!(
            escape("github.com/Azure/go-ansiterm"),
            "github.com/!azure/go-ansiterm"
        );
    }

    #[test]
    fn a_dependencys_program_brings_its_module_and_replacements_count() {
        let json = br#"{"Main":{"Path":"a/tool","Version":"v1","Sum":"h1:a"},"Deps":[
            {"Path":"b","Version":"v0.0.0","Replace":{"Path":"b","Version":"v2","Sum":"h1:b"}},
            {"Path":"c","Version":"v3","Replace":{"Path":"./overlay/c","Version":"(devel)"}}]}"#;
        let modules = linked(json, Path::new("/absent")).unwrap();
        let seen: Vec<_> = modules
            .iter()
            .map(|m| (m.path.as_str(), m.version.as_str(), m.sum.as_str(), m.changed))
            .collect();
        assert_eq!(
            seen,
            [
                ("a/tool", "v1", "h1:a", false),
                ("b", "v2", "h1:b", false),
                ("c", "v3", "", true)
            ]
        );
        let own = br#"{"Main":{"Path":"kimage.dev/x","Version":"(devel)"}}"#;
        assert!(linked(own, Path::new("/absent")).unwrap().is_empty());
    }
}
