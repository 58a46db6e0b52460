//! `kimage cluster up` and `down` as far as no machine is needed: what is refused, what is made, what is left.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Output;

use kimage_builder::playground::Identity;
use kimage_builder::tool::Tool;
use kimage_roles::node_config::{Formation, NodeConfig};

fn kimage(folder: &Path, arguments: &[&str]) -> Output {
    Tool::new(env!("CARGO_BIN_EXE_kimage"))
        .args(arguments)
        .directory(folder)
        .env("PATH", format!("{}:/usr/bin:/bin", folder.join("bin").display()))
        .output()
        .unwrap()
}

fn refused(folder: &Path, arguments: &[&str], code: i32) -> String {
    let output = kimage(folder, arguments);
    assert_eq!(output.status.code(), Some(code), "{output:?}");
    assert!(output.stdout.is_empty(), "{output:?}");
    String::from_utf8(output.stderr).unwrap()
}

/// Releases as far as a playground looks into them, and a QEMU that only waits, or fails with `failure`.
fn host(failure: Option<&str>) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for role in ["control-plane", "worker"] {
        let release = folder.path().join("out").join(role);
        fs::create_dir_all(&release).unwrap();
        for name in ["disk.raw", "ovmf-vars.fd"] {
            fs::File::create(release.join(name))
                .unwrap()
                .set_len(528 << 10)
                .unwrap();
        }
    }
    let program = folder.path().join("bin/qemu-system-x86_64");
    fs::create_dir(folder.path().join("bin")).unwrap();
    let script = match failure {
        Some(words) => format!("#!/bin/sh\necho '{words}' >&2\nexit 1\n"),
        // A machine that reports at once; the gateway has no console. Each opens its end of the cable.
        None => "#!/bin/sh\nfor word; do case $word in file:*) console=$(echo \"$word\" | cut -c6-) ;; \
                 dgram,*) end=${word#*local.path=}; : > \"${end%%,*}\" ;; esac; done\n\
                 [ -z \"$console\" ] || echo 'kimage-status: {\"schema\":1,\"role\":\"worker\",\"phase\":\"in-service\",\
                 \"outcome\":\"done\",\"attempt\":1,\"durationMilliseconds\":1,\"totalMilliseconds\":2}' > $console\n\
                 exec sleep 600\n"
            .to_owned(),
    };
    fs::write(&program, script).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    folder
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

const SMALL: [&str; 7] = ["cluster", "up", "demo", "--control-planes", "1", "--workers", "0"];

#[test]
fn wrong_numbers_and_names_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    for arguments in [
        &["cluster", "up"][..],
        &["cluster", "up", "demo", "--control-planes", "2"],
        &["cluster", "up", "demo", "--workers", "17"],
        &["cluster", "up", "demo", "--name", "Demo"],
        &["cluster", "up", "demo", "--port", "80"],
        &["cluster", "up", "demo", "--timeout", "0s"],
        &["cluster", "down"],
    ] {
        refused(folder.path(), arguments, 2);
    }
    assert!(names(folder.path()).is_empty());
}

#[test]
fn what_is_in_the_folder_already_stays() {
    let host = host(None);
    let folder = host.path();
    fs::create_dir(folder.join("demo")).unwrap();
    fs::write(folder.join("demo/mine"), "mine").unwrap();
    let error = refused(folder, &SMALL, 2);
    assert!(error.contains("demo exists and is not empty\nhint: "), "{error}");
    fs::rename(folder.join("demo/mine"), folder.join("demo/cluster.toml")).unwrap();
    let error = refused(folder, &SMALL, 2);
    assert!(
        error.contains("keys of a cluster that `kimage cluster new` made\nhint: "),
        "{error}"
    );
    let error = refused(folder, &["cluster", "down", "demo"], 2);
    assert!(
        error.contains("no cluster of `kimage cluster up` is here\nhint: "),
        "{error}"
    );
    assert_eq!(fs::read(folder.join("demo/cluster.toml")).unwrap(), b"mine");
    refused(folder, &["cluster", "down", "nothing"], 2);
}

#[test]
fn a_cluster_comes_up_is_known_to_run_and_leaves_nothing() {
    let host = host(None);
    let folder = host.path();
    let output = kimage(folder, &["cluster", "up", "demo", "--accel", "kvm"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_eq!(output.stdout, b"demo/kubeconfig\n");
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(
        said.contains("kubectl --kubeconfig demo/kubeconfig get nodes"),
        "{said}"
    );
    let demo = folder.join("demo");
    assert_eq!(fs::metadata(&demo).unwrap().permissions().mode() & 0o777, 0o700);
    assert_eq!(
        names(&demo.join("machines")),
        ["cp-1", "cp-2", "cp-3", "worker-1", "worker-2"]
    );

    let config = fs::read(demo.join("machines/cp-2/node-config.json")).unwrap();
    let config = NodeConfig::from_yaml(&config).unwrap();
    let Some(Formation::Static(members)) = config.etcd.map(|etcd| etcd.formation) else {
        panic!("a list of members is expected");
    };
    assert_eq!(members.len(), 3);
    assert_eq!(config.cluster.api_names, ["127.0.0.1"]);
    let port = config.cluster.endpoint.port();
    assert_eq!(config.cluster.endpoint.host(), "10.0.2.2");
    let kubeconfig = fs::read_to_string(demo.join("kubeconfig")).unwrap();
    assert!(
        kubeconfig.contains(&format!("https://127.0.0.1:{port}")),
        "{kubeconfig}"
    );
    let config = fs::read(demo.join("machines/worker-1/node-config.json")).unwrap();
    assert!(NodeConfig::from_yaml(&config).unwrap().secrets.is_none());

    let error = refused(folder, &["cluster", "up", "demo", "--accel", "kvm"], 2);
    assert!(error.contains("a cluster runs here already\nhint: "), "{error}");
    let processes: Vec<Identity> = [
        "supervisor.pid",
        "gateway.pid",
        "machines/cp-1/qemu.pid",
        "machines/worker-2/qemu.pid",
    ]
    .map(|name| Identity::read(&demo.join(name)).unwrap())
    .to_vec();
    assert!(processes.iter().all(Identity::is_running));
    fs::write(demo.join("mine"), "mine").unwrap();
    let output = kimage(folder, &["cluster", "down", "demo"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(processes.iter().all(|process| !process.is_running()));
    assert_eq!(names(&demo), ["mine"]);
}

#[test]
fn a_killed_supervisor_takes_its_machines_along_and_the_rest_is_removed() {
    let host = host(None);
    let folder = host.path();
    let output = kimage(folder, &[&SMALL[..], &["--accel", "kvm"]].concat());
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let demo = folder.join("demo");
    let process = |name: &str| Identity::read(&demo.join(name)).unwrap();
    let (machine, gateway) = (process("machines/cp-1/qemu.pid"), process("gateway.pid"));
    process("supervisor.pid")
        .end(std::time::Duration::from_secs(30))
        .unwrap();
    for orphan in [machine, gateway] {
        orphan.wait(std::time::Duration::from_secs(30)).unwrap();
    }
    let error = refused(folder, &SMALL, 2);
    assert!(
        error.contains("processes have ended") && error.contains("hint: `kimage cluster down demo`"),
        "{error}"
    );
    let output = kimage(folder, &["cluster", "down", "demo"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(!demo.exists());
}

#[test]
fn a_qemu_that_can_not_do_it_is_an_error_that_leaves_nothing() {
    let host = host(Some("network backend user is not compiled into this binary"));
    let error = refused(host.path(), &[&SMALL[..], &["--accel", "kvm"]].concat(), 1);
    assert!(error.contains("not compiled into this binary"), "{error}");
    assert!(error.contains("needs QEMU 7.2 or newer"), "{error}");
    assert_eq!(names(host.path()), ["bin", "out"]);
}
