//! Builds Go programs from committed `go.mod` and `go.sum`: static, without cgo, with the same bytes on every host.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::Deserialize;

use super::complaint::{self, Cause};
use super::go_toolchain::GoToolchain;
use super::{Access, GoModule, go_proxy, licence, overlay, watch};
use crate::definition::Component;
use crate::definition::component::{FILE_NAME, Go, GoBinary, files_below};
use crate::download::Network;
use crate::failure::ExitCode;
use crate::progress::{Progress, Task};
use crate::store::Store;
use crate::tool::Tool;

/// Environment that the download step needs to reach a proxy from behind a firewall.
const NETWORK_VARIABLES: &[&str] = &[
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "NETRC",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "GOINSECURE",
    "PATH",
];

/// One component's Go module, copied where `go` may work on it.
pub(super) struct Workspace<'a> {
    go: &'a Go,
    component: &'a Component,
    toolchain: &'a GoToolchain,
    scratch: tempfile::TempDir,
    modules: PathBuf,
    objects: PathBuf,
}

impl<'a> Workspace<'a> {
    /// Copies the module of `component` into a scratch folder.
    pub(super) fn new(
        component: &'a Component,
        go: &'a Go,
        toolchain: &'a GoToolchain,
        store: &Store,
    ) -> Result<Self> {
        let scratch = store.scratch()?;
        let (modules, objects) = (store.cache("go-mod")?, store.cache("go-build")?);
        let workspace = Self {
            go,
            component,
            toolchain,
            scratch,
            modules,
            objects,
        };
        let source = component.module_folder();
        for path in files_below(&source)?
            .iter()
            .filter(|path| *path != Path::new(FILE_NAME))
        {
            let target = workspace.folder().join(path);
            if let Some(parent) = target.parent() {
                std::fs::create_dir_all(parent).with_context(|| format!("make {}", parent.display()))?;
            }
            std::fs::copy(source.join(path), &target)
                .with_context(|| format!("copy to {}", target.display()))?;
        }
        for name in ["home", "tmp"] {
            let path = workspace.scratch.path().join(name);
            std::fs::create_dir(&path).with_context(|| format!("make {}", path.display()))?;
        }
        Ok(workspace)
    }

    /// The module's copy.
    pub(super) fn folder(&self) -> PathBuf {
        self.scratch.path().join("module")
    }

    /// Fetches every module that the programs need and replaces the overlaid packages. Returns the packages'
    /// number.
    pub(super) fn resolve(&self, access: &Access, progress: &Progress) -> Result<u64> {
        let task = progress.task(&format!("fetch modules of {}", self.component.name), None);
        let proxy = match access.network {
            Network::Offline => "off".to_owned(),
            Network::Online => go_proxy::find(access.go_proxy.as_deref())?,
        };
        for entry in &self.go.overlay {
            let folder = self.module(&entry.module, &proxy, &task)?;
            overlay::apply(entry, &folder.dir, &folder.version, &self.folder())?;
        }
        let mut list =
            self.tool(&proxy)
                .inherit(NETWORK_VARIABLES)
                .args(["list", "-deps", "-json=ImportPath"]);
        list = list
            .args(self.tags())
            .args(self.go.binary.iter().map(|binary| &binary.package));
        let finished = watch::run(list, &task, downloading)?;
        if !finished.status.success() {
            return Err(self.explain("fetch the modules", &finished.stderr));
        }
        task.done();
        count_packages(&finished.stdout)
    }

    /// One module's folder in the module cache.
    fn module(&self, path: &str, proxy: &str, task: &Task) -> Result<Downloaded> {
        let list =
            self.tool(proxy)
                .inherit(NETWORK_VARIABLES)
                .args(["list", "-m", "-f", "{{.Version}}", path]);
        let finished = watch::run(list, task, downloading)?;
        if !finished.status.success() {
            return Err(self.explain(&format!("find module {path}"), &finished.stderr));
        }
        let version = String::from_utf8_lossy(&finished.stdout).trim().to_owned();
        let name = format!("{path}@{version}");
        // `go mod download` with a version checks the zip against go.sum.
        let download = self
            .tool(proxy)
            .inherit(NETWORK_VARIABLES)
            .args(["mod", "download", "-json", &name]);
        let finished = watch::run(download, task, downloading)?;
        if !finished.status.success() {
            let both = format!("{}{}", finished.stderr, String::from_utf8_lossy(&finished.stdout));
            return Err(self.explain(&format!("fetch {name}"), &both));
        }
        serde_json::from_slice(&finished.stdout).with_context(|| format!("read what go says of {name}"))
    }

    /// Builds one program into `out`.
    pub(super) fn build(&self, binary: &GoBinary, out: &Path, task: &Task) -> Result<()> {
        let ldflags = self.component.manifest.expand(&self.go.ldflags.join(" "));
        let build = self.tool("off").args(["build", "-v"]).args(self.tags());
        let build = build
            .args(["-ldflags", &ldflags, "-o"])
            .arg(out)
            .arg(&binary.package);
        task.message(&format!("link {}", binary.path));
        let finished = watch::run(build, task, |line| {
            // `go build -v` prints each package that it compiles; the program's own comes last.
            let package = !line.is_empty() && !line.contains([' ', '#', ':']);
            package.then(|| {
                task.advance(1);
                line.to_owned()
            })
        })?;
        if !finished.status.success() {
            return Err(self.explain(&format!("build {}", binary.package), &finished.stderr));
        }
        Ok(())
    }

    /// The modules that are linked into `program`, as its own build information says.
    pub(super) fn linked_modules(&self, program: &Path) -> Result<Vec<GoModule>> {
        let bytes = self
            .tool("off")
            .args(["version", "-m", "-json"])
            .arg(program)
            .run()?;
        let context = || format!("read the modules of {}", program.display());
        linked(&bytes, &self.modules).with_context(context)
    }

    fn tags(&self) -> Vec<String> {
        if self.go.tags.is_empty() {
            Vec::new()
        } else {
            vec!["-tags".into(), self.go.tags.join(",")]
        }
    }

    /// `go` with an environment in which only the committed files decide.
    fn tool(&self, proxy: &str) -> Tool {
        let scratch = self.scratch.path();
        Tool::new(&self.toolchain.go)
            .directory(&self.folder())
            .env("HOME", scratch.join("home"))
            .env("GOPATH", scratch.join("home/go"))
            .env("TMPDIR", scratch.join("tmp"))
            .env("GOMODCACHE", &self.modules)
            .env("GOCACHE", &self.objects)
            .env("GOENV", "off")
            .env("GOWORK", "off")
            .env("GOTOOLCHAIN", "local")
            .env("GOOS", "linux")
            .env("GOARCH", "amd64")
            .env("GOAMD64", "v1")
            .env("CGO_ENABLED", "0")
            .env("GOFLAGS", "-mod=readonly -trimpath -buildvcs=false -modcacherw")
            .env("GOPROXY", proxy)
            // go.sum is the truth; the checksum database could only repeat it.
            .env("GOSUMDB", "off")
    }

    fn explain(&self, what: &str, stderr: &str) -> anyhow::Error {
        let tidy = format!(
            "run `go mod tidy` in {}",
            self.component.module_folder().display()
        );
        let causes = [
            Cause {
                phrases: &["checksum mismatch", "SECURITY ERROR"],
                code: ExitCode::Mismatch,
                hint: "the module proxy or the module cache holds other bytes than go.sum pins",
            },
            Cause {
                phrases: &["disabled by GOPROXY=off"],
                code: ExitCode::Fetch,
                hint: "run once online, or unpack a `kimage vendor` file into the store",
            },
            Cause {
                phrases: &[
                    "missing go.sum entry",
                    "updates to go.mod needed",
                    "no required module provides",
                ],
                code: ExitCode::Failed,
                hint: &tidy,
            },
            Cause {
                phrases: &[
                    "dial ",
                    "server response",
                    ": reading ",
                    "unrecognized import path",
                    "TLS",
                    "timeout",
                ],
                code: ExitCode::Fetch,
                hint: "check the network, or set GOPROXY=https://...",
            },
        ];
        complaint::explain(what, "go", stderr, &causes)
    }
}

/// How many packages `go list -deps` has printed.
fn count_packages(json: &[u8]) -> Result<u64> {
    let mut packages = 0;
    for package in serde_json::Deserializer::from_slice(json).into_iter::<serde::de::IgnoredAny>() {
        package.context("read the list of packages")?;
        packages += 1;
    }
    Ok(packages)
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Downloaded {
    version: String,
    dir: PathBuf,
}

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
fn linked(json: &[u8], cache: &Path) -> Result<Vec<GoModule>> {
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

/// `go: downloading path v1` as a message.
fn downloading(line: &str) -> Option<String> {
    line.strip_prefix("go: downloading ").map(str::to_owned)
}

/// A module path or version as the module cache spells it: `!a` for `A`, for file systems that don't tell them apart
/// (`golang.org/x/mod/module`, function `EscapePath`).
fn escape(text: &str) -> String {
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

    #[test]
    fn packages_are_counted() {
        let json = br#"{"ImportPath":"fmt"}
            {"ImportPath":"a/b"}"#;
        assert_eq!(count_packages(json).unwrap(), 2);
        assert!(count_packages(b"{\"ImportPath\":").is_err());
    }
}
