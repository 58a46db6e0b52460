//! Components from definition to files: with the real Go compiler on tiny modules, a module proxy in a folder, and
//! web servers in this process.

#![expect(clippy::unwrap_used, reason = "a helper of a test may panic")]

#[path = "components/proxy.rs"]
mod proxy;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use kimage_builder::components::{self, Access, BuiltComponent};
use kimage_builder::definition::{Component, Toolchains};
use kimage_builder::digest::Digest;
use kimage_builder::download::{Network, vendor};
use kimage_builder::failure::{ExitCode, exit_code, hints};
use kimage_builder::lock::{Lock, LockedComponent, LockedToolchain};
use kimage_builder::progress::Progress;
use kimage_builder::store::Store;
use kimage_builder::tool::Tool;
use proxy::{Answer, publish, serve, write_zip};

/// A folder of component definitions, a store and a module proxy.
struct Bench {
    folder: tempfile::TempDir,
    go: LockedToolchain,
}

impl Bench {
    fn new() -> Self {
        let bench = Self {
            folder: tempfile::tempdir().unwrap(),
            go: host_go(),
        };
        fs::create_dir(bench.path("proxy")).unwrap();
        bench
    }

    fn path(&self, below: &str) -> PathBuf {
        self.folder.path().join(below)
    }

    fn write(&self, component: &str, files: &[(&str, &str)]) {
        for (name, text) in files {
            let path = self.path("components").join(component).join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
    }

    fn load(&self, name: &str) -> Component {
        Component::load(&self.path("components"), name).unwrap()
    }

    fn store(&self) -> Store {
        Store::open(&self.path("store")).unwrap()
    }

    fn lock(&self, component: &Component) -> Lock {
        let locked = LockedComponent {
            name: component.name.clone(),
            version: component.manifest.version.clone(),
            source: component.source_digest().unwrap(),
            download: Vec::new(),
        };
        let (suite, package) = (Vec::new(), Vec::new());
        Lock {
            schema: 1,
            request: Vec::new(),
            epoch: 0,
            suite,
            package,
            component: vec![locked],
            toolchain: vec![self.go.clone()],
        }
    }

    fn access(&self) -> Access {
        Access {
            network: Network::Online,
            go_proxy: Some(format!("file://{}", self.path("proxy").display())),
        }
    }

    fn build_with(&self, name: &str, store: &Store, access: &Access) -> anyhow::Result<BuiltComponent> {
        let component = self.load(name);
        let lock = self.lock(&component);
        let mut built = components::build(&[component], &lock, store, access, &Progress::silent())?;
        Ok(built.remove(0))
    }

    fn build(&self, name: &str) -> anyhow::Result<BuiltComponent> {
        self.build_with(name, &self.store(), &self.access())
    }

    /// A program `hello` that prints its version and a word of the module example.com/dep, whose package `word` an
    /// overlay replaces.
    fn hello(&self) {
        self.write(
            "hello",
            &[
                ("component.toml", HELLO),
                ("main.go", MAIN),
                ("word/word.go", OVERLAY),
            ],
        );
        publish(&self.path("proxy"), "example.com/dep", "v1.2.3", DEPENDENCY);
        self.write("hello", &[("go.mod", GO_MOD), ("go.sum", &self.go_sum())]);
    }

    /// go.sum as Go writes it.
    fn go_sum(&self) -> String {
        let module = self.path("tidy");
        fs::create_dir_all(&module).unwrap();
        fs::write(module.join("go.mod"), GO_MOD).unwrap();
        fs::write(module.join("main.go"), MAIN).unwrap();
        self.go_command(&module, &["mod", "tidy"]);
        fs::read_to_string(module.join("go.sum")).unwrap()
    }

    fn go_command(&self, folder: &Path, arguments: &[&str]) -> Vec<u8> {
        let proxy = format!("file://{}", self.path("proxy").display());
        let go = Tool::new("go")
            .args(arguments)
            .directory(folder)
            .inherit(&["PATH"]);
        let go = go
            .env("HOME", folder)
            .env("GOPROXY", proxy)
            .env("GOSUMDB", "off")
            .env("GOFLAGS", "-modcacherw");
        go.env("GOTOOLCHAIN", "local").run().unwrap()
    }
}

const HELLO: &str = r#"schema = 1
title = "Says hello"
version = "v7.8.9"
license = "MIT"
[go]
ldflags = ["-s -w", "-X main.version={version}"]
[[go.binary]]
package = "."
path = "/usr/bin/hello"
links = ["/usr/bin/bonjour", "/usr/sbin/hello"]
[[go.overlay]]
module = "example.com/dep"
package = "word"
folder = "word"
because = "this is a test"
[[image]]
reference = "example.com/hello:{version}"
entrypoint = ["/hello", "--loud"]
user = "65532:65532"
files = { "/hello" = "/usr/bin/hello" }
"#;
const MAIN: &str = "package main\n\nimport \"example.com/dep/word\"\n\nvar version = \"none\"\n\nfunc main() { println(version, word.Word) }\n";
const GO_MOD: &str = "module example.com/hello\n\ngo 1.21\n\nrequire example.com/dep v1.2.3\n";
const OVERLAY: &str = "package word\n\nconst Word = \"replaced\"\n";
const DEPENDENCY: &[(&str, &str)] = &[
    ("go.mod", "module example.com/dep\n\ngo 1.21\n"),
    ("word/word.go", "package word\n\nconst Word = \"published\"\n"),
    (
        "LICENSE",
        "Permission is hereby granted, free of charge, to any person obtaining a copy",
    ),
];
const RELEASE: &str = "schema = 1\ntitle = \"A tool\"\nversion = \"v1\"\nlicense = \"MIT\"\n[release]\n";

/// The Go of this host as the pinned one: what these tests build needs no particular version.
fn host_go() -> LockedToolchain {
    let output = Tool::new("go")
        .arg("version")
        .env("GOTOOLCHAIN", "local")
        .inherit(&["PATH", "HOME"])
        .run();
    let words = String::from_utf8(output.expect("install Go (`apt-get install golang-go`)")).unwrap();
    let version = words.split(' ').nth(2).unwrap().to_owned();
    LockedToolchain {
        name: "go".into(),
        version,
        hash: "h1:of no consequence".into(),
    }
}

fn run(built: &BuiltComponent) -> String {
    let output = Tool::new(&built.files[0].source).output().unwrap();
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn two_places_and_two_caches_give_the_same_bytes() {
    let benches = [Bench::new(), Bench::new()];
    let built = benches.each_ref().map(|bench| {
        bench.hello();
        bench.build("hello").unwrap()
    });
    let [one, two] = &built;
    assert_eq!(one.files[0].digest, two.files[0].digest);
    assert_eq!(run(one), "v7.8.9 replaced\n");
    assert_eq!(
        (one.files[0].path.as_str(), one.files[0].mode),
        ("/usr/bin/hello", 0o755)
    );
    let link = |path: &str, target: &str| (path.to_owned(), target.to_owned());
    assert_eq!(
        one.links,
        [
            link("/usr/bin/bonjour", "hello"),
            link("/usr/sbin/hello", "/usr/bin/hello")
        ]
    );
    let [image] = one.images.as_slice() else {
        panic!("{:?}", one.images)
    };
    assert_eq!(image.reference, "example.com/hello:v7.8.9");
    assert_eq!(
        (image.files[0].path.as_str(), image.files[0].digest),
        ("/hello", one.files[0].digest)
    );
    let [module] = one.go_modules.as_slice() else {
        panic!("{:?}", one.go_modules)
    };
    assert_eq!(
        (module.path.as_str(), module.version.as_str(), module.changed),
        ("example.com/dep", "v1.2.3", true)
    );
    assert_eq!(module.licence.as_deref(), Some("MIT"));
}

#[test]
fn what_is_built_needs_neither_network_nor_compiler_again() {
    let bench = Bench::new();
    bench.hello();
    let first = bench.build("hello").unwrap();
    fs::remove_dir_all(bench.path("proxy")).unwrap();
    fs::remove_dir_all(bench.path("store/caches")).unwrap();
    assert_eq!(
        bench
            .build_with("hello", &bench.store(), &Network::Offline.into())
            .unwrap(),
        first
    );
    assert!(!bench.path("store/caches").exists(), "no compiler ran");
}

#[test]
fn a_vendored_component_needs_neither_a_network_nor_a_compiler() {
    let bench = Bench::new();
    bench.hello();
    let built = bench.build("hello").unwrap();
    let component = bench.load("hello");
    let lock = bench.lock(&component);
    let artifacts = components::artifacts(&[component], &lock, &bench.store()).unwrap();
    let file = bench.path("inputs.tar");
    vendor::write(&[], &artifacts, &bench.store(), &file, &Progress::silent()).unwrap();

    let other = Store::open(&bench.path("other")).unwrap();
    let offline = Access::from(Network::Offline);
    let error = bench.build_with("hello", &other, &offline).unwrap_err();
    assert_eq!(exit_code(&error), ExitCode::Fetch, "{error:#}");
    fs::remove_dir_all(bench.path("other/caches")).unwrap();
    vendor::import(
        &file,
        &other,
        &kimage_builder::components::check_artifact,
        &Progress::silent(),
    )
    .unwrap();
    let imported = bench.build_with("hello", &other, &offline).unwrap();
    assert_eq!(run(&imported), run(&built));
    assert!(imported.files[0].source.starts_with(other.root()), "{imported:?}");
    assert!(
        !bench.path("other/caches").exists(),
        "no compiler ran after the import"
    );
}

#[test]
fn a_module_with_other_bytes_than_go_sum_says_is_a_mismatch() {
    let bench = Bench::new();
    bench.hello();
    publish(
        &bench.path("proxy"),
        "example.com/dep",
        "v1.2.3",
        &[DEPENDENCY[0], ("word/word.go", "package word\n")],
    );
    let error = bench.build("hello").unwrap_err();
    assert_eq!(exit_code(&error), ExitCode::Mismatch, "{error:#}");
    assert!(format!("{error:#}").contains("checksum mismatch"), "{error:#}");
}

#[test]
fn offline_without_modules_is_a_fetch_error_with_the_remedy() {
    let bench = Bench::new();
    bench.hello();
    let error = bench
        .build_with("hello", &bench.store(), &Network::Offline.into())
        .unwrap_err();
    assert_eq!(exit_code(&error), ExitCode::Fetch, "{error:#}");
    assert!(
        hints(&error).any(|hint| hint.contains("kimage vendor")),
        "{error:#}"
    );
}

#[test]
fn a_module_that_the_proxy_lacks_is_a_fetch_error() {
    let bench = Bench::new();
    bench.hello();
    fs::remove_dir_all(bench.path("proxy/example.com")).unwrap();
    assert_eq!(exit_code(&bench.build("hello").unwrap_err()), ExitCode::Fetch);
}

#[test]
fn a_compile_error_is_told_in_gos_words() {
    let bench = Bench::new();
    bench.hello();
    bench.write(
        "hello",
        &[("word/word.go", "package word\n\nconst Word = missing\n")],
    );
    let error = bench.build("hello").unwrap_err();
    assert_eq!(exit_code(&error), ExitCode::Failed);
    assert!(format!("{error:#}").contains("undefined: missing"), "{error:#}");
}

#[test]
fn a_component_that_changed_since_it_was_locked_is_refused() {
    let bench = Bench::new();
    bench.hello();
    let lock = bench.lock(&bench.load("hello"));
    bench.write("hello", &[("main.go", "package main\n\nfunc main() {}\n")]);
    let component = bench.load("hello");
    let error = components::build(
        &[component],
        &lock,
        &bench.store(),
        &bench.access(),
        &Progress::silent(),
    )
    .unwrap_err();
    assert_eq!(exit_code(&error), ExitCode::Lock);
    assert_eq!(hints(&error).collect::<Vec<_>>(), ["run `kimage lock`"]);
}

impl Bench {
    /// Publishes a toolchain whose `go` hands on to the host's; the pin has the hash that Go itself computes.
    fn fake_toolchain(&self) -> LockedToolchain {
        let path = std::env::var_os("PATH").unwrap();
        let go = std::env::split_paths(&path)
            .map(|folder| folder.join("go"))
            .find(|go| go.is_file())
            .unwrap();
        let script = format!("#!/bin/sh\nexec {} \"$@\"\n", go.display());
        let version = "v0.0.1-go1.99.1.linux-amd64";
        let files = [("bin/go", script.as_str()), ("src/_go.mod", "module std\n")];
        publish(&self.path("proxy"), "golang.org/toolchain", version, &files);
        let gomod = self
            .path("proxy/golang.org/toolchain/@v")
            .join(format!("{version}.mod"));
        fs::write(gomod, "module golang.org/toolchain\n").unwrap();
        let name = format!("golang.org/toolchain@{version}");
        let answer = self.go_command(self.folder.path(), &["mod", "download", "-json", &name]);
        let answer: serde_json::Value = serde_json::from_slice(&answer).unwrap();
        let hash = answer["Sum"].as_str().unwrap().to_owned();
        LockedToolchain {
            name: "go".into(),
            version: "go1.99.1".into(),
            hash,
        }
    }
}

#[test]
fn a_toolchain_that_the_host_lacks_is_fetched_checked_and_used() {
    let bench = Bench::new();
    bench.hello();
    let bench = Bench {
        go: bench.fake_toolchain(),
        ..bench
    };
    assert_eq!(run(&bench.build("hello").unwrap()), "v7.8.9 replaced\n");
}

#[test]
fn a_tampered_toolchain_is_a_mismatch_and_never_runs() {
    let bench = Bench::new();
    bench.hello();
    let bench = Bench {
        go: bench.fake_toolchain(),
        ..bench
    };
    let stain = bench.path("stain");
    let script = format!("#!/bin/sh\ntouch {}\n", stain.display());
    publish(
        &bench.path("proxy"),
        "golang.org/toolchain",
        "v0.0.1-go1.99.1.linux-amd64",
        &[("bin/go", &script)],
    );
    let error = bench.build("hello").unwrap_err();
    assert_eq!(exit_code(&error), ExitCode::Mismatch, "{error:#}");
    assert!(!stain.exists());
    let offline = bench
        .build_with("hello", &bench.store(), &Network::Offline.into())
        .unwrap_err();
    assert_eq!(exit_code(&offline), ExitCode::Fetch, "{offline:#}");
}

fn tar_gz(files: &[(&str, &str)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(flate2::write::GzEncoder::new(
        Vec::new(),
        flate2::Compression::default(),
    ));
    for (name, text) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(text.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, name, text.as_bytes()).unwrap();
    }
    builder.into_inner().unwrap().finish().unwrap()
}

fn release(url: &str, bytes: &[u8], rest: &str) -> String {
    let (digest, size) = (Digest::of(bytes), bytes.len());
    format!("{RELEASE}url = \"{url}\"\nsha256 = \"{digest}\"\nsize = {size}\n{rest}")
}

#[test]
fn files_of_archives_are_picked_by_name() {
    let bench = Bench::new();
    let tar = tar_gz(&[("./pkg/README", "read me"), ("pkg/bin/tool", "a tool")]);
    fs::write(bench.path("tool-v1.tar.gz"), &tar).unwrap();
    write_zip(&bench.path("tool.zip"), [("bin/tool".to_owned(), "a tool")]);
    let zip = fs::read(bench.path("tool.zip")).unwrap();
    let picked = |archive: &str, member: &str| {
        format!(
            "archive = \"{archive}\"\n[[release.file]]\nmember = \"{member}\"\npath = \"/usr/bin/tool\"\n\
             [[release.file]]\nmember = \"{member}\"\npath = \"/usr/share/copy\"\nmode = \"0644\"\nlinks = [\"/t\"]\n"
        )
    };
    let url = |name: &str| format!("file://{}", bench.path(name).display());
    bench.write(
        "tar",
        &[(
            "component.toml",
            &release(
                &url("tool-{version}.tar.gz"),
                &tar,
                &picked("tar.gz", "pkg/bin/tool"),
            ),
        )],
    );
    bench.write(
        "zip",
        &[(
            "component.toml",
            &release(&url("tool.zip"), &zip, &picked("zip", "bin/tool")),
        )],
    );
    bench.write(
        "gone",
        &[(
            "component.toml",
            &release(&url("tool.zip"), &zip, &picked("zip", "bin/gone")),
        )],
    );
    for name in ["tar", "zip"] {
        let built = bench.build(name).unwrap();
        let files: Vec<_> = built
            .files
            .iter()
            .map(|file| (file.path.as_str(), file.mode))
            .collect();
        assert_eq!(files, [("/usr/bin/tool", 0o755), ("/usr/share/copy", 0o644)]);
        assert!(
            built
                .files
                .iter()
                .all(|file| file.digest == Digest::of(b"a tool"))
        );
        assert_eq!(built.links, [("/t".to_owned(), "/usr/share/copy".to_owned())]);
    }
    let error = format!("{:#}", bench.build("gone").unwrap_err());
    assert!(error.contains("the archive holds no file `bin/gone`"), "{error}");
}

#[test]
fn a_release_is_fetched_by_digest_from_a_server() {
    let bench = Bench::new();
    let base = serve(|path, _, _| match path {
        "/tool-v1" => (200, Vec::new(), b"a tool".to_vec()),
        _ => (404, Vec::new(), Vec::new()),
    });
    let file = "[[release.file]]\npath = \"/usr/bin/tool\"\n";
    let define = |name: &str, path: &str, bytes: &[u8]| {
        bench.write(
            name,
            &[("component.toml", &release(&format!("{base}/{path}"), bytes, file))],
        );
    };
    define("good", "tool-{version}", b"a tool");
    define("other", "tool-{version}", b"a wolf");
    define("absent", "tool", b"absent");
    let built = bench.build("good").unwrap();
    assert_eq!(fs::read(&built.files[0].source).unwrap(), b"a tool");
    assert_eq!(exit_code(&bench.build("other").unwrap_err()), ExitCode::Mismatch);
    assert_eq!(exit_code(&bench.build("absent").unwrap_err()), ExitCode::Fetch);
}

/// A registry that wants a token and serves an index, a manifest, a configuration and one layer.
fn registry(layer: &'static [u8], served: &'static [u8]) -> (String, Digest) {
    let name = |bytes: &[u8]| format!("sha256:{}", Digest::of(bytes));
    let descriptor = |bytes: &[u8]| format!("{{\"digest\":\"{}\",\"size\":{}", name(bytes), bytes.len());
    let config =
        br#"{"config":{"Entrypoint":["/app"],"Cmd":["serve"],"User":"1:2","Env":["A=b"],"WorkingDir":"/w"}}"#;
    let manifest = format!(
        "{{\"config\":{}}},\"layers\":[{}}}]}}",
        descriptor(config),
        descriptor(layer)
    );
    let platform = |architecture: &str| {
        format!(",\"platform\":{{\"os\":\"linux\",\"architecture\":\"{architecture}\"}}}}")
    };
    let other = descriptor(b"not for us") + &platform("arm64");
    let ours = descriptor(manifest.as_bytes()) + &platform("amd64");
    let index = format!("{{\"manifests\":[{other},{ours}]}}");
    let digest = Digest::of(index.as_bytes());
    let objects = [
        (
            format!("/v2/a/b/manifests/{}", name(index.as_bytes())),
            index.clone().into_bytes(),
        ),
        (
            format!("/v2/a/b/manifests/{}", name(manifest.as_bytes())),
            manifest.into_bytes(),
        ),
        (format!("/v2/a/b/blobs/{}", name(config)), config.to_vec()),
        (format!("/v2/a/b/blobs/{}", name(layer)), served.to_vec()),
    ];
    let base = serve(move |path, headers, own| -> Answer {
        if path.starts_with("/token?") {
            let asked = path.contains("scope=repository") && path.contains("service=here");
            return (
                if asked { 200 } else { 400 },
                Vec::new(),
                b"{\"token\":\"t0\"}".to_vec(),
            );
        }
        if headers.get("authorization").map(String::as_str) != Some("Bearer t0") {
            let challenge =
                format!("Bearer realm=\"{own}/token\",service=\"here\",scope=\"repository:a/b:pull\"");
            return (401, vec![("WWW-Authenticate", challenge)], Vec::new());
        }
        let found = objects.iter().find(|(name, _)| name == path);
        found.map_or((404, Vec::new(), Vec::new()), |(_, body)| {
            (200, Vec::new(), body.clone())
        })
    });
    (base, digest)
}

fn registry_component(bench: &Bench, base: &str, digest: Digest) {
    let head = RELEASE.replace("[release]", "[registry]");
    let text = format!(
        "{head}url = \"{base}\"\nrepository = \"a/b\"\ndigest = \"{digest}\"\nreference = \"example.com/a/b:1\"\n"
    );
    bench.write("image", &[("component.toml", &text)]);
}

#[test]
fn an_image_is_pulled_by_digest() {
    let bench = Bench::new();
    let (base, digest) = registry(b"a layer", b"a layer");
    registry_component(&bench, &base, digest);
    let offline = bench
        .build_with("image", &bench.store(), &Network::Offline.into())
        .unwrap_err();
    assert_eq!(exit_code(&offline), ExitCode::Fetch);
    let built = bench.build("image").unwrap();
    let [image] = built.images.as_slice() else {
        panic!("{built:?}")
    };
    assert_eq!(
        (image.reference.as_str(), image.user.as_deref()),
        ("example.com/a/b:1", Some("1:2"))
    );
    assert_eq!(
        (&image.entrypoint, &image.args, &image.env),
        (&vec!["/app".into()], &vec!["serve".into()], &vec!["A=b".into()])
    );
    assert_eq!(image.working_directory.as_deref(), Some("/w"));
    assert_eq!(fs::read(&image.layers[0]).unwrap(), b"a layer");
}

#[test]
fn a_layer_with_other_bytes_is_a_mismatch() {
    let bench = Bench::new();
    let (base, digest) = registry(b"a layer", b"a wolf!");
    registry_component(&bench, &base, digest);
    let error = bench.build("image").unwrap_err();
    assert_eq!(exit_code(&error), ExitCode::Mismatch, "{error:#}");
}

#[test]
fn an_unknown_digest_is_a_fetch_error() {
    let bench = Bench::new();
    let (base, _) = registry(b"a layer", b"a layer");
    registry_component(&bench, &base, Digest::of(b"something else"));
    assert_eq!(exit_code(&bench.build("image").unwrap_err()), ExitCode::Fetch);
}

fn shipped() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap()
        .join("images/components")
}

#[test]
fn every_component_that_ships_is_valid() {
    let mut names = Vec::new();
    for entry in fs::read_dir(shipped()).unwrap() {
        let entry = entry.unwrap();
        if entry.path().join("component.toml").is_file() {
            names.push(entry.file_name().into_string().unwrap());
        }
    }
    for name in [
        "containerd",
        "coredns",
        "etcd",
        "firstboot",
        "flannel",
        "kubernetes-control-plane",
        "pause",
    ] {
        assert!(
            names.iter().any(|known| known == name),
            "{name} is gone: {names:?}"
        );
    }
    for name in names {
        let component = Component::load(&shipped(), &name).unwrap();
        component.source_digest().unwrap();
    }
    Toolchains::load(&shipped()).unwrap();
}

#[test]
fn versions_of_components_are_those_that_go_mod_requires() {
    for (name, module) in [
        ("kubernetes-control-plane", "k8s.io/kubernetes"),
        ("kubernetes-worker", "k8s.io/kubernetes"),
        ("etcd", "go.etcd.io/etcd/server/v3"),
        ("coredns", "github.com/coredns/coredns"),
        ("containerd", "github.com/containerd/containerd/v2"),
        ("cni-plugins", "github.com/containernetworking/plugins"),
        ("crictl", "sigs.k8s.io/cri-tools"),
        ("flannel", "github.com/flannel-io/flannel"),
    ] {
        let component = Component::load(&shipped(), name).unwrap();
        let go_mod = fs::read_to_string(component.module_folder().join("go.mod")).unwrap();
        let required = go_mod
            .lines()
            .find_map(|line| line.trim().strip_prefix(module)?.strip_prefix(' '));
        let version = required.unwrap().split(' ').next().unwrap();
        assert_eq!(version, component.manifest.version, "{name}");
    }
}

#[test]
fn the_sandbox_program_waits_and_ends_when_told() {
    let bench = Bench::new();
    let component = Component::load(&shipped(), "pause").unwrap();
    let rust = Toolchains::load(&shipped()).unwrap().rust;
    let pin = LockedToolchain {
        name: "rust".into(),
        version: rust.version,
        hash: rust.hash,
    };
    let lock = Lock {
        toolchain: vec![pin],
        ..bench.lock(&component)
    };
    let access = Network::Offline.into();
    let built = components::build(&[component], &lock, &bench.store(), &access, &Progress::silent()).unwrap();
    let program = &built[0].images[0].files[0];
    assert!(
        built[0].files.is_empty(),
        "the program belongs into its container image only"
    );
    assert!(program.size < 10_000, "{} bytes", program.size);
    assert_ne!(
        fs::metadata(&program.source).unwrap().permissions().mode() & 0o111,
        0
    );
    let mut child = Tool::new(&program.source).into_command().spawn().unwrap();
    std::thread::sleep(std::time::Duration::from_millis(300));
    assert!(child.try_wait().unwrap().is_none(), "it ended by itself");
    Tool::new("/bin/kill")
        .args(["-TERM", &child.id().to_string()])
        .run()
        .unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
}
