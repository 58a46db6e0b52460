//! A root with busybox, and commands in it.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use kimage_builder::tree::TreePath;
use kimage_builder::tree::sandbox::{Outcome, Owners, Sandbox};
use tempfile::TempDir;

pub(crate) const KIMAGE: &str = env!("CARGO_BIN_EXE_kimage");

pub(crate) const APPLETS: &[&str] = &[
    "cat", "chmod", "chown", "chroot", "cp", "env", "grep", "hostname", "id", "ip", "kill", "ln", "ls",
    "mkdir", "mknod", "mount", "mv", "rm", "rmdir", "sh", "sleep", "stat", "touch", "umask", "unshare", "wc",
];

pub(crate) struct Root {
    pub(crate) folder: TempDir,
    /// Programs that any user may run.
    pub(crate) kimage: PathBuf,
}

impl Root {
    pub(crate) fn new() -> Self {
        let folder = tempfile::Builder::new()
            .prefix("kimage-sandbox-")
            .tempdir()
            .unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let kimage = folder.path().join("kimage");
        fs::copy(KIMAGE, &kimage).unwrap();
        let root = Self { folder, kimage };
        root.fill(&root.path());
        root
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.folder.path().join("root")
    }

    /// A folder beside the root.
    pub(crate) fn beside(&self, name: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        fs::create_dir(&path).unwrap();
        path
    }

    pub(crate) fn fill(&self, root: &Path) {
        fs::create_dir_all(root.join("bin")).unwrap();
        let busybox = ["/bin/busybox", "/usr/bin/busybox"]
            .into_iter()
            .find(|path| Path::new(path).exists());
        let busybox = busybox.expect("these tests need a static busybox: install the package busybox-static");
        fs::copy(busybox, root.join("bin/busybox")).unwrap();
        for applet in APPLETS {
            symlink("busybox", root.join("bin").join(applet)).unwrap();
        }
    }

    pub(crate) fn sandbox(&self) -> Sandbox {
        Sandbox::directory(&self.path()).program(&self.kimage)
    }

    /// Runs a shell script in a plain directory and returns what it printed.
    pub(crate) fn script(&self, script: &str) -> (Outcome, String) {
        run(&mut self.sandbox(), ["/bin/sh", "-c", script])
    }
}

pub(crate) fn run<const N: usize>(sandbox: &mut Sandbox, arguments: [&str; N]) -> (Outcome, String) {
    let mut text = String::new();
    let outcome = sandbox.run(arguments, &mut |line| {
        text.push_str(&String::from_utf8_lossy(line));
        text.push('\n');
    });
    (outcome.unwrap_or_else(|error| panic!("{error:#}\n{text}")), text)
}

pub(crate) fn path(text: &str) -> TreePath {
    TreePath::parse(text.as_bytes()).unwrap()
}

pub(crate) fn ids(owners: &Owners, text: &str) -> (u32, u32) {
    owners
        .get(&path(text))
        .map_or((0, 0), |owner| (owner.uid, owner.gid))
}

/// Runs a test of this very program in a sandbox over `root`.
pub(crate) fn run_here(root: &Root, test: &str) -> (Outcome, String) {
    let [program, rest @ ..] = this_program(test);
    let mut sandbox = root.sandbox().bind(Path::new(&program), Path::new("/run/helper"));
    for folder in ["lib", "lib64"] {
        symlink(format!("usr/{folder}"), root.path().join(folder)).unwrap();
        let host = fs::canonicalize(Path::new("/").join(folder)).unwrap();
        sandbox = sandbox.bind(&host, &Path::new("/usr").join(folder));
    }
    run(&mut sandbox, ["/run/helper", &rest[0], &rest[1], &rest[2]])
}

/// Runs a test of this program inside the sandbox (or as another user).
pub(crate) fn this_program(test: &str) -> [String; 4] {
    let program = std::env::current_exe().unwrap().to_str().unwrap().to_owned();
    [program, "--ignored".into(), "--exact".into(), test.into()]
}
