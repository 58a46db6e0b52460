//! Builds Go programs from committed `go.mod` and `go.sum` in a sandbox: static, without cgo, with the same bytes on
//! every host.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::build_info::{escape, linked};
use super::complaint::{self, Cause};
use super::workroom::{Finished, Workroom, inside};
use super::{GoModule, Means, go_proxy, overlay, watch};
use crate::definition::Component;
use crate::definition::component::{FILE_NAME, Go, GoBinary, files_below};
use crate::download::Network;
use crate::failure::ExitCode;
use crate::progress::Task;
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

/// The compiler in the sandbox.
const GO: &str = "/tools/bin/go";
/// The store's cache of modules.
const MODULE_CACHE: &str = "go-mod";
/// Where it keeps the zips, laid out as a module proxy serves them.
const DOWNLOADS: &str = "cache/download";
/// Folders of the sandbox: the component's module, this build's module cache, the zips that it is filled from.
const MODULE: &str = "module";
const MODULES: &str = "modules";
const PROXY: &str = "proxy";
/// The program that was built last.
const RESULT: &str = "program";

/// One component's Go module, copied where `go` may work on it.
///
/// Modules are fetched outside of the sandbox, with the user's proxy, into a cache whose *zips* are used: inside, a
/// module cache of this build's own takes them from there, and `go` checks each against go.sum. What somebody
/// changed in an unpacked module is never seen.
pub(super) struct Workspace<'a> {
    go: &'a Go,
    component: &'a Component,
    toolchain: &'a Path,
    means: &'a Means<'a>,
    room: Workroom,
}

impl<'a> Workspace<'a> {
    /// Copies the module of `component` into a sandbox's folder. `root` is the sandbox's root, which may be empty.
    pub(super) fn new(
        component: &'a Component,
        go: &'a Go,
        toolchain: &'a Path,
        root: &Path,
        means: &'a Means<'a>,
    ) -> Result<Self> {
        let room = Workroom::new(root, means.store, means.program)?;
        let folder = room.folder(MODULE)?;
        let source = component.module_folder();
        for path in files_below(&source)?
            .iter()
            .filter(|path| *path != Path::new(FILE_NAME))
        {
            let target = folder.join(path);
            if let Some(parent) = target.parent() {
                std::fs::create_dir_all(parent).with_context(|| format!("make {}", parent.display()))?;
            }
            std::fs::copy(source.join(path), &target)
                .with_context(|| format!("copy to {}", target.display()))?;
        }
        room.folder(MODULES)?;
        let downloads = means.store.cache(MODULE_CACHE)?.join(DOWNLOADS);
        std::fs::create_dir_all(&downloads).with_context(|| format!("make {}", downloads.display()))?;
        let objects = means.store.cache("go-build")?;
        let room = room
            .tools(toolchain)
            .show(&downloads, PROXY)
            // What was compiled before, for speed. Only this user's own builds write there.
            .lend(&objects, "objects");
        let room = environment()
            .into_iter()
            .fold(room, |room, (name, value)| room.env(name, value));
        let room = room
            .env("PATH", "/tools/bin")
            .env("GOROOT", "/tools")
            .env("GOPATH", inside("home/go"))
            .env("GOMODCACHE", inside(MODULES))
            .env("GOCACHE", inside("objects"))
            .env("GOPROXY", format!("file://{}", inside(PROXY).display()));
        Ok(Self {
            go,
            component,
            toolchain,
            means,
            room,
        })
    }

    /// Fetches every module that the programs need and replaces the overlaid packages. Returns the packages'
    /// number.
    pub(super) fn resolve(&self) -> Result<u64> {
        let name = &self.component.name;
        let task = self
            .means
            .progress
            .task(&format!("fetch modules of {name}"), None);
        let proxy = self.proxy()?;
        let folder = self.room.folder(MODULE)?;
        for entry in &self.go.overlay {
            let (version, module) = self.module(&entry.module, &proxy, &task)?;
            overlay::apply(entry, &module, &version, &folder)?;
        }
        let mut list = self.outside(&proxy)?.args(["list", "-deps", "-json=ImportPath"]);
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

    /// Where modules come from: `GOPROXY`.
    fn proxy(&self) -> Result<String> {
        let access = self.means.access;
        let asked = match access.network {
            Network::Offline => "off".to_owned(),
            Network::Online => go_proxy::find(access.go_proxy.as_deref())?,
        };
        Ok(match &access.beside {
            Some(store) => format!(
                "file://{}/caches/{MODULE_CACHE}/{DOWNLOADS},{asked}",
                store.display()
            ),
            None => asked,
        })
    }

    /// One module's version, and its folder in this build's own module cache.
    fn module(&self, path: &str, proxy: &str, task: &Task) -> Result<(String, PathBuf)> {
        let list = self
            .outside(proxy)?
            .args(["list", "-m", "-f", "{{.Version}}", path]);
        let finished = watch::run(list, task, downloading)?;
        if !finished.status.success() {
            return Err(self.explain(&format!("find module {path}"), &finished.stderr));
        }
        let version = String::from_utf8_lossy(&finished.stdout).trim().to_owned();
        let name = format!("{path}@{version}");
        // `go mod download` with a version checks the zip against go.sum: outside that of the proxy, inside that of the
        // cache.
        let download = self.outside(proxy)?.args(["mod", "download", "-json", &name]);
        let finished = watch::run(download, task, downloading)?;
        if !finished.status.success() {
            let both = format!("{}{}", finished.stderr, String::from_utf8_lossy(&finished.stdout));
            return Err(self.explain(&format!("fetch {name}"), &both));
        }
        let taken = self.inside(&["mod", "download", &name], task, |_| None)?;
        if !taken.success {
            return Err(self.explain(&format!("take {name} from the module cache"), &taken.output));
        }
        let folder = format!("{}@{}", escape(path), escape(&version));
        Ok((version, self.room.folder(MODULES)?.join(folder)))
    }

    /// Builds one program into `out`.
    pub(super) fn build(&self, binary: &GoBinary, out: &Path, task: &Task) -> Result<()> {
        let ldflags = self.component.manifest.expand(&self.go.ldflags.join(" "));
        let (tags, result) = (self.tags(), inside(RESULT));
        let mut build = vec!["build", "-v"];
        build.extend(tags.iter().map(String::as_str));
        let result = result.to_string_lossy();
        build.extend(["-ldflags", &ldflags, "-o", &result, &binary.package]);
        task.message(&format!("link {}", binary.path));
        let finished = self.inside(&build, task, |line| {
            // `go build -v` prints each package that it compiles; the program's own comes last.
            let package = !line.is_empty() && !line.contains([' ', '#', ':']);
            package.then(|| {
                task.advance(1);
                line.to_owned()
            })
        })?;
        if !finished.success {
            return Err(self.explain(&format!("build {}", binary.package), &finished.output));
        }
        let made = self.room.path(RESULT);
        std::fs::rename(&made, out).with_context(|| format!("move {} to {}", made.display(), out.display()))
    }

    /// The modules that are linked into `program`, which [`Workspace::build`] made, as its own build information says.
    pub(super) fn linked_modules(&self, program: &Path, task: &Task) -> Result<Vec<GoModule>> {
        let again = self.room.path(RESULT);
        std::fs::copy(program, &again).with_context(|| format!("copy {}", program.display()))?;
        let result = inside(RESULT);
        let asked = self.inside(
            &["version", "-m", "-json", &result.to_string_lossy()],
            task,
            |_| None,
        )?;
        if !asked.success {
            return Err(self.explain("read the linked modules", &asked.output));
        }
        let context = || format!("read the modules of {}", program.display());
        linked(asked.output.as_bytes(), &self.room.path(MODULES)).with_context(context)
    }

    fn tags(&self) -> Vec<String> {
        if self.go.tags.is_empty() {
            Vec::new()
        } else {
            vec!["-tags".into(), self.go.tags.join(",")]
        }
    }

    /// Runs `go` in the sandbox.
    fn inside(
        &self,
        arguments: &[&str],
        task: &Task,
        line: impl FnMut(&str) -> Option<String>,
    ) -> Result<Finished> {
        let folder = inside(MODULE);
        let folder = folder.to_string_lossy();
        let command = [GO, "-C", &folder].into_iter().chain(arguments.iter().copied());
        self.room.run(command, task, line)
    }

    /// `go` on the host, for what needs a network: fetching zips into the cache.
    fn outside(&self, proxy: &str) -> Result<Tool> {
        let go = Tool::new(self.toolchain.join("bin/go"))
            .directory(&self.room.path(MODULE))
            .inherit(NETWORK_VARIABLES);
        let go = environment()
            .into_iter()
            .fold(go, |go, (name, value)| go.env(name, value));
        Ok(go
            .env("HOME", self.room.path("home"))
            .env("TMPDIR", self.room.path("tmp"))
            .env("GOROOT", self.toolchain)
            .env("GOPATH", self.room.path("home/go"))
            .env("GOMODCACHE", self.means.store.cache(MODULE_CACHE)?)
            .env("GOCACHE", self.means.store.cache("go-build")?)
            .env("GOPROXY", proxy))
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
                phrases: &["reading file:///build/proxy"],
                code: ExitCode::Fetch,
                hint: "the module cache of the store lacks it: remove the folder caches/go-mod of the store and run once online",
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

/// The environment in which only the committed files decide.
fn environment() -> [(&'static str, &'static str); 9] {
    [
        ("GOENV", "off"),
        ("GOWORK", "off"),
        ("GOTOOLCHAIN", "local"),
        ("GOOS", "linux"),
        ("GOARCH", "amd64"),
        ("GOAMD64", "v1"),
        ("CGO_ENABLED", "0"),
        ("GOFLAGS", "-mod=readonly -trimpath -buildvcs=false -modcacherw"),
        // go.sum is the truth; the checksum database could only repeat it.
        ("GOSUMDB", "off"),
    ]
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

/// `go: downloading path v1` as a message.
fn downloading(line: &str) -> Option<String> {
    line.strip_prefix("go: downloading ").map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packages_are_counted() {
        let json = br#"{"ImportPath":"fmt"}
            {"ImportPath":"a/b"}"#;
        assert_eq!(count_packages(json).unwrap(), 2);
        assert!(count_packages(b"{\"ImportPath\":").is_err());
    }
}
