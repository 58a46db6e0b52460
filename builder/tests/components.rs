//! Components from definition to files: with the real Go compiler on tiny modules, a module proxy in a folder, and
//! web servers in this process.

#![expect(clippy::unwrap_used, reason = "a helper of a test may panic")]

#[path = "components/proxy.rs"]
mod proxy;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use kimage_builder::components::{self, Access, BuiltComponent, Means};
use kimage_builder::definition::component::files_below;
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
            folder: tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap(),
            go: host_go().clone(),
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
        open_store(&self.path("store"))
    }

    fn lock(&self, component: &Component) -> Lock {
        let locked = LockedComponent {
            name: component.name.clone(),
            version: component.manifest.version.clone(),
            source: component.source_digest().unwrap(),
            download: Vec::new(),
            built: None,
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
            beside: None,
        }
    }

    fn means<'a>(store: &'a Store, access: &'a Access, progress: &'a Progress) -> Means<'a> {
        Means {
            store,
            access,
            compilers: &[],
            program: Some(Path::new(env!("CARGO_BIN_EXE_kimage"))),
            progress,
        }
    }

    /// The lock that says what comes out of the component on this bench.
    fn full_lock(&self, component: &Component) -> Lock {
        let mut lock = self.lock(component);
        let (store, access, progress) = (self.store(), self.access(), Progress::silent());
        let means = Self::means(&store, &access, &progress);
        let built = components::output(component, &lock, &means).unwrap();
        lock.component[0].built = Some(built);
        lock
    }

    fn build_with(&self, name: &str, store: &Store, access: &Access) -> anyhow::Result<BuiltComponent> {
        let component = self.load(name);
        let progress = Progress::silent();
        components::unlocked(
            &component,
            &self.lock(&component),
            &Self::means(store, access, &progress),
        )
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
const PLAIN: &str = r#"schema = 1
title = "Says what its dependency says"
version = "v1"
license = "MIT"
[go]
[[go.binary]]
package = "."
path = "/usr/bin/plain"
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
fn host_go() -> &'static LockedToolchain {
    static PIN: OnceLock<LockedToolchain> = OnceLock::new();
    PIN.get_or_init(|| {
        let root = host_go_root();
        let version = fs::read_to_string(root.join("VERSION")).unwrap();
        let version = version.lines().next().unwrap().to_owned();
        let hash = components::go_files_hash(&root, &version).unwrap();
        LockedToolchain {
            name: "go".into(),
            version,
            hash,
            servers: Vec::new(),
        }
    })
}

fn host_go_root() -> PathBuf {
    let go = Tool::new("go").args(["env", "GOROOT"]);
    let output = go.env("GOTOOLCHAIN", "local").inherit(&["PATH", "HOME"]).run();
    let output = output.expect("install Go (`apt-get install golang-go`)");
    PathBuf::from(String::from_utf8(output).unwrap().trim())
}

/// A store of a test's own that shares compilers with the others: each has a quarter of a gigabyte.
fn open_store(place: &Path) -> Store {
    static FIRST: OnceLock<PathBuf> = OnceLock::new();
    let compilers = FIRST.get_or_init(|| {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("compilers");
        let store = Store::open(&folder).unwrap();
        let component = folder.join("components/nothing");
        fs::create_dir_all(&component).unwrap();
        let text = HELLO.split("links").next().unwrap();
        fs::write(component.join("component.toml"), text).unwrap();
        fs::write(
            component.join("go.mod"),
            "module example.com/nothing\n\ngo 1.21\n",
        )
        .unwrap();
        fs::write(component.join("go.sum"), "").unwrap();
        fs::write(component.join("main.go"), "package main\n\nfunc main() {}\n").unwrap();
        let component = Component::load(&folder.join("components"), "nothing").unwrap();
        let lock = Lock {
            schema: 1,
            request: Vec::new(),
            epoch: 0,
            suite: Vec::new(),
            package: Vec::new(),
            component: vec![LockedComponent {
                name: "nothing".into(),
                version: "v7.8.9".into(),
                source: component.source_digest().unwrap(),
                download: Vec::new(),
                built: None,
            }],
            toolchain: vec![host_go().clone()],
        };
        let (access, progress) = (Access::from(Network::Offline), Progress::silent());
        let means = Bench::means(&store, &access, &progress);
        components::unlocked(&component, &lock, &means).unwrap();
        folder.join("artifacts/toolchain")
    });
    for (name, shared) in [
        ("artifacts/toolchain", compilers.clone()),
        // The standard library, compiled.
        ("caches/go-build", compilers.join("../../caches/go-build")),
    ] {
        let link = place.join(name);
        fs::create_dir_all(link.parent().unwrap()).unwrap();
        if link.symlink_metadata().is_err() {
            std::os::unix::fs::symlink(shared, link).unwrap();
        }
    }
    Store::open(place).unwrap()
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
    assert!(!bench.path("store/caches/go-mod").exists(), "no compiler ran");
}

#[test]
fn a_vendored_component_needs_neither_a_network_nor_a_compiler() {
    let bench = Bench::new();
    bench.hello();
    let built = bench.build("hello").unwrap();
    let component = bench.load("hello");
    let lock = bench.full_lock(&component);
    let artifacts = components::artifacts(&[component], &lock).unwrap();
    let file = bench.path("inputs.tar");
    vendor::write(&[], &artifacts, &bench.store(), &file, &Progress::silent()).unwrap();

    let other = open_store(&bench.path("other"));
    let offline = Access::from(Network::Offline);
    let error = bench.build_with("hello", &other, &offline).unwrap_err();
    assert_eq!(exit_code(&error), ExitCode::Fetch, "{error:#}");
    fs::remove_dir_all(bench.path("other/caches")).unwrap();
    let accept = |kind: &str, key: &Digest, folder: &Path| {
        components::accept(kind, key, folder, std::slice::from_ref(&lock), &other)
    };
    vendor::import(&file, &other, &accept, &Progress::silent()).unwrap();
    let imported = bench.build_with("hello", &other, &offline).unwrap();
    assert_eq!(run(&imported), run(&built));
    assert!(imported.files[0].source.starts_with(other.root()), "{imported:?}");
    assert!(
        !bench.path("other/caches/go-mod").exists(),
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
    let lock = bench.full_lock(&bench.load("hello"));
    bench.write("hello", &[("main.go", "package main\n\nfunc main() {}\n")]);
    let component = bench.load("hello");
    let (store, access, progress) = (bench.store(), bench.access(), Progress::silent());
    let means = Bench::means(&store, &access, &progress);
    let error = components::build(&[component], &lock, &means).unwrap_err();
    assert_eq!(exit_code(&error), ExitCode::Lock);
    assert_eq!(hints(&error).collect::<Vec<_>>(), ["run `kimage lock`"]);
}

impl Bench {
    /// Publishes the host's Go as the toolchain of a version that no host has.
    fn published_toolchain(&self) -> LockedToolchain {
        const VERSION: &str = "go1.99.1";
        let module = format!("v0.0.1-{VERSION}.linux-amd64");
        let folder = self.path("proxy/golang.org/toolchain/@v");
        fs::create_dir_all(&folder).unwrap();
        let root = host_go_root();
        let file = fs::File::create(folder.join(format!("{module}.zip"))).unwrap();
        let mut zip = zip::ZipWriter::new(file);
        let stored =
            zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
        for path in files_below(&root).unwrap() {
            let name = path.to_str().unwrap();
            if ["api/", "doc/", "misc/", "test/"]
                .iter()
                .any(|top| name.starts_with(top))
            {
                continue;
            }
            let name = name.replace("go.mod", "_go.mod");
            zip.start_file(format!("golang.org/toolchain@{module}/{name}"), stored)
                .unwrap();
            std::io::copy(&mut fs::File::open(root.join(&path)).unwrap(), &mut zip).unwrap();
        }
        zip.finish().unwrap();
        LockedToolchain {
            name: "go".into(),
            version: VERSION.into(),
            hash: components::go_files_hash(&root, VERSION).unwrap(),
            servers: Vec::new(),
        }
    }
}

#[test]
fn a_toolchain_that_the_host_lacks_is_fetched_checked_and_used() {
    let bench = Bench::new();
    bench.hello();
    let bench = Bench {
        go: bench.published_toolchain(),
        ..bench
    };
    // It shares no compilers.
    let own = Store::open(&bench.path("own")).unwrap();
    assert_eq!(
        run(&bench.build_with("hello", &own, &bench.access()).unwrap()),
        "v7.8.9 replaced\n"
    );
}

#[test]
fn a_tampered_toolchain_is_a_mismatch_and_never_runs() {
    let bench = Bench::new();
    bench.hello();
    let bench = Bench {
        go: bench.published_toolchain(),
        ..bench
    };
    // It shares no compilers.
    let own = Store::open(&bench.path("own")).unwrap();
    let stain = bench.path("stain");
    let script = format!("#!/bin/sh\ntouch {}\n", stain.display());
    let proxy = bench.path("proxy");
    fs::remove_dir_all(proxy.join("golang.org")).unwrap();
    let version = "v0.0.1-go1.99.1.linux-amd64";
    publish(&proxy, "golang.org/toolchain", version, &[("bin/go", &script)]);
    let error = bench.build_with("hello", &own, &bench.access()).unwrap_err();
    assert_eq!(exit_code(&error), ExitCode::Mismatch, "{error:#}");
    assert!(!stain.exists());
    let offline = bench
        .build_with("hello", &own, &Network::Offline.into())
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
    assert_eq!(fs::read(&image.layers[0].source).unwrap(), b"a layer");
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
fn a_host_that_makes_something_else_is_told_what_and_keeps_none_of_it() {
    let bench = Bench::new();
    bench.hello();
    let component = bench.load("hello");
    let mut lock = bench.full_lock(&component);
    let honest = lock.component[0].built.clone().unwrap();
    let other = Digest::of(b"another host's");
    let built = lock.component[0].built.as_mut().unwrap();
    built.output = other;
    built.files.insert("/usr/bin/hello".into(), other);
    let (store, access, progress) = (
        open_store(&bench.path("fresh")),
        bench.access(),
        Progress::silent(),
    );
    let means = Bench::means(&store, &access, &progress);
    let error = components::build(&[component], &lock, &means).unwrap_err();
    assert_eq!(exit_code(&error), ExitCode::Mismatch, "{error:#}");
    let text = format!("{error:#}");
    for part in [
        "component hello",
        &other.to_string(),
        &honest.output.to_string(),
        "the first is /usr/bin/hello",
        &honest.files["/usr/bin/hello"].to_string(),
    ] {
        assert!(text.contains(part), "no {part} in: {text}");
    }
    assert!(store.artifact("component", &honest.key).is_none());
    let aside = bench.path("fresh/caches/odd-components");
    let aside = fs::read_dir(aside).unwrap().next().unwrap().unwrap().path();
    assert!(aside.join("component.json").is_file() && aside.join("0").is_file());
}

#[test]
fn what_somebody_changed_in_the_store_is_built_again() {
    let bench = Bench::new();
    bench.hello();
    let component = bench.load("hello");
    let lock = bench.full_lock(&component);
    let locked = lock.component[0].built.clone().unwrap();
    let (access, progress) = (bench.access(), Progress::silent());
    let artifact = bench.store().artifact("component", &locked.key).unwrap();
    let evil = b"#!/bin/sh\necho somebody else\n";
    let record = fs::read_to_string(artifact.join("component.json")).unwrap();
    let changed = record.replace(
        &locked.files["/usr/bin/hello"].to_string(),
        &Digest::of(evil).to_string(),
    );
    for record in [&record, &changed] {
        fs::write(artifact.join("0"), evil).unwrap();
        fs::write(artifact.join("component.json"), record).unwrap();
        let store = bench.store();
        let built = components::build(
            std::slice::from_ref(&component),
            &lock,
            &Bench::means(&store, &access, &progress),
        );
        assert_eq!(run(&built.unwrap()[0]), "v7.8.9 replaced\n");
    }
}

#[test]
fn an_unpacked_module_that_somebody_changed_does_not_get_into_the_program() {
    let bench = Bench::new();
    bench.hello();
    bench.write(
        "plain",
        &[("component.toml", PLAIN), ("main.go", MAIN), ("go.mod", GO_MOD)],
    );
    bench.write("plain", &[("go.sum", &bench.go_sum())]);
    assert_eq!(run(&bench.build("plain").unwrap()), "none published\n");
    let caches = bench.path("store/caches");
    fs::write(
        caches.join("go-mod/example.com/dep@v1.2.3/word/word.go"),
        "package word\n\nconst Word = \"poisoned\"\n",
    )
    .unwrap();
    // A build cache of its own: the shared one has the honest module.
    fs::remove_file(caches.join("go-build")).unwrap();
    fs::create_dir(caches.join("go-build")).unwrap();
    fs::remove_dir_all(bench.path("store/artifacts/component")).unwrap();
    assert_eq!(run(&bench.build("plain").unwrap()), "none published\n");
}

#[test]
fn a_forged_component_is_refused_by_name_with_both_digests() {
    let bench = Bench::new();
    bench.hello();
    let component = bench.load("hello");
    let lock = bench.full_lock(&component);
    let locked = lock.component[0].built.clone().unwrap();
    let artifact = bench.store().artifact("component", &locked.key).unwrap();
    let record = fs::read_to_string(artifact.join("component.json")).unwrap();
    let evil = b"#!/bin/sh\necho attacker runs here\n";
    let forged = record.replace(
        &locked.files["/usr/bin/hello"].to_string(),
        &Digest::of(evil).to_string(),
    );
    let size = fs::metadata(artifact.join("0")).unwrap().len();
    let forged = forged.replace(&format!("\"size\": {size}"), &format!("\"size\": {}", evil.len()));
    let absolute = record.replace("\"source\": \"0\"", "\"source\": \"/etc/hostname\"");
    assert_ne!(absolute, record);
    let made = bench.path("made");
    for (index, (bytes, record, key)) in [
        (&evil[..], &forged, locked.key),
        (&evil[..], &record, locked.key),
        (&evil[..], &absolute, locked.key),
        (&evil[..], &forged, Digest::of(b"a key that no lock has")),
    ]
    .into_iter()
    .enumerate()
    {
        let source = Store::open(&made.join(index.to_string())).unwrap();
        let fill = |folder: &Path| {
            fs::write(folder.join("0"), bytes)?;
            Ok(fs::write(folder.join("component.json"), record)?)
        };
        source.artifact_or_build("component", &key, fill).unwrap();
        let file = bench.path(&format!("forged-{index}.tar"));
        let artifact = [("component".to_owned(), key)];
        vendor::write(&[], &artifact, &source, &file, &Progress::silent()).unwrap();
        let target = Store::open(&bench.path(&format!("target-{index}"))).unwrap();
        let accept = |kind: &str, key: &Digest, folder: &Path| {
            components::accept(kind, key, folder, std::slice::from_ref(&lock), &target)
        };
        let error = vendor::import(&file, &target, &accept, &Progress::silent()).unwrap_err();
        assert_eq!(exit_code(&error), ExitCode::Mismatch, "{error:#}");
        assert!(target.artifact("component", &key).is_none());
        let text = format!("{error:#}");
        if index == 0 {
            assert!(text.contains("component hello is not the locked one"), "{text}");
            assert!(text.contains(&locked.output.to_string()), "{text}");
        }
    }
}

/// A server of Rust releases whose compiler is a few words, and the pin of it.
fn rust_releases(std: &str, promised: &str) -> LockedToolchain {
    const TARGET: &str = "x86_64-unknown-linux-gnu";
    let tree = |std: &str| {
        [
            ("rustc", "rustc", "bin/rustc", "compiles".to_owned()),
            ("rustc", "rustc", "lib/librustc_driver.so", "drives".to_owned()),
            ("rustc", "rustc", "bin/rustdoc", "documents".to_owned()),
            (
                "rust-std",
                "rust-std-x86_64-unknown-linux-gnu",
                "lib/rustlib/x86_64-unknown-linux-gnu/lib/libstd.rlib",
                std.to_owned(),
            ),
            ("cargo", "cargo", "bin/cargo", "fetches".to_owned()),
        ]
    };
    let place = tempfile::tempdir().unwrap();
    for (_, _, path, text) in tree(promised) {
        let path = place.path().join("sysroot").join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    let (digest, _) = components::rust_files_digest(&place.path().join("sysroot")).unwrap();
    let mut archives = std::collections::BTreeMap::new();
    for part in ["rustc", "rust-std", "cargo"] {
        let name = format!("{part}-1.2.3-{TARGET}");
        let mut tar = tar::Builder::new(Vec::new());
        let mut add = |path: String, text: &str| {
            let mut header = tar::Header::new_gnu();
            header.set_size(text.len() as u64);
            header.set_mode(0o755);
            tar.append_data(&mut header, path, text.as_bytes()).unwrap();
        };
        add(format!("{name}/install.sh"), "installs");
        for (_, folder, path, text) in tree(std).iter().filter(|(of, ..)| *of == part) {
            add(format!("{name}/{folder}/{path}"), text);
        }
        let plain = place.path().join(&name);
        fs::write(&plain, tar.into_inner().unwrap()).unwrap();
        Tool::new("xz")
            .arg(&plain)
            .inherit(&["PATH"])
            .run()
            .expect("install xz-utils");
        let packed = fs::read(plain.with_file_name(format!("{name}.xz"))).unwrap();
        archives.insert(format!("/dist/{name}.tar.xz"), packed);
    }
    let server = serve(move |path, _, _| match archives.get(path) {
        Some(bytes) => (200, Vec::new(), bytes.clone()),
        None => (404, Vec::new(), Vec::new()),
    });
    LockedToolchain {
        name: "rust".into(),
        version: "1.2.3".into(),
        hash: format!("sha256:{digest}"),
        servers: vec![server],
    }
}

/// Builds a program with the compiler `rust`, as far as that goes without a C compiler in the lock.
fn build_with_rust(bench: &Bench, rust: LockedToolchain, store: &Store) -> anyhow::Error {
    let text = RELEASE.replace("[release]", "[cargo]")
        + "workspace = \".\"\npackage = \"p\"\ninputs = [\"src\"]\n\
           [[cargo.binary]]\nname = \"p\"\npath = \"/p\"\n";
    let package = "[package]\nname = \"p\"\nversion = \"1.0.0\"\n";
    let locked = "version = 4\n[[package]]\nname = \"p\"\nversion = \"1.0.0\"\n";
    bench.write(
        "p",
        &[
            ("component.toml", &text),
            ("Cargo.toml", package),
            ("Cargo.lock", locked),
            ("src/main.rs", "fn main() {}"),
        ],
    );
    let component = bench.load("p");
    let lock = Lock {
        toolchain: vec![rust],
        ..bench.lock(&component)
    };
    let (access, progress) = (bench.access(), Progress::silent());
    components::unlocked(&component, &lock, &Bench::means(store, &access, &progress)).unwrap_err()
}

#[test]
fn a_rust_compiler_that_the_host_lacks_is_fetched_and_only_what_compiles_is_kept() {
    let bench = Bench::new();
    let store = Store::open(&bench.path("own")).unwrap();
    let error = build_with_rust(&bench, rust_releases("std", "std"), &store);
    // It got as far as the next compiler.
    assert_eq!(exit_code(&error), ExitCode::Lock, "{error:#}");
    let kept = fs::read_dir(bench.path("own/artifacts/toolchain")).unwrap();
    let folder = kept.map(|entry| entry.unwrap().path()).next().unwrap();
    assert_eq!(fs::read(folder.join("bin/rustc")).unwrap(), b"compiles");
    assert!(folder.join("bin/cargo").is_file() && !folder.join("bin/rustdoc").exists());
}

#[test]
fn a_rust_compiler_with_other_bytes_is_a_mismatch_and_is_not_kept() {
    let bench = Bench::new();
    let store = Store::open(&bench.path("own")).unwrap();
    let error = build_with_rust(&bench, rust_releases("another std", "std"), &store);
    assert_eq!(exit_code(&error), ExitCode::Mismatch, "{error:#}");
    let kept = bench.path("own/artifacts/toolchain");
    assert!(!kept.exists() || fs::read_dir(kept).unwrap().next().is_none());
}
