//! What a new user does first: `kimage cluster up`, as an ordinary user, on the images that ship. A control plane alone is
//! enough to see everything of it but a worker's join; emulated and on two idle cores it takes some three minutes.

#![expect(
    clippy::unwrap_used,
    reason = "what this test needs and does not find ends it"
)]

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use kimage_builder::playground::Identity;
use kimage_firstboot::http::Trust;
use kimage_firstboot::join::is_ready;
use kimage_firstboot::kubernetes::{Api, Caller};
use kimage_qemu_tests::images::{command, finish, kimage, release};
use kimage_roles::node_config::KeyPair;
use kimage_roles::secret::Secret;
use serde_json::Value;

/// An ordinary user without home, files or rights; not the one of other tests, whose processes are not ours.
const USER: u32 = 64_321;

/// The user's folder: `kimage` and the images.
fn home() -> tempfile::TempDir {
    let home = tempfile::Builder::new()
        .prefix("kimage playground ")
        .tempdir_in("/var/tmp")
        .unwrap();
    fs::copy(kimage().unwrap(), home.path().join("kimage")).unwrap();
    let built = release("ubuntu-24.04", "control-plane").unwrap();
    let copy = home.path().join("out/control-plane");
    fs::create_dir_all(&copy).unwrap();
    for name in ["disk.raw", "ovmf-vars.fd"] {
        finish(
            command("cp")
                .arg("--sparse=always")
                .arg(built.join(name))
                .arg(&copy),
        )
        .unwrap();
    }
    finish(command("chown").arg("-R").arg(USER.to_string()).arg(home.path())).unwrap();
    home
}

fn as_user(home: &Path, arguments: &[&str]) -> Command {
    let user = USER.to_string();
    let mut program = command("setpriv");
    program.args([
        "--reuid",
        &user,
        "--regid",
        &user,
        "--clear-groups",
        "--inh-caps=-all",
    ]);
    program.arg("./kimage").args(arguments).current_dir(home);
    program.env("HOME", "/nonexistent");
    program
}

/// What runs as the user; the dead whom nobody has waited for yet don't count.
fn processes() -> Vec<u32> {
    let entries = fs::read_dir("/proc").unwrap().map(|entry| entry.unwrap().path());
    let ours = entries.filter(|path| fs::metadata(path).is_ok_and(|process| process.uid() == USER));
    let numbers = ours.filter_map(|path| path.file_name()?.to_str()?.parse().ok());
    numbers.filter(|number| Identity::of(*number).is_some()).collect()
}

/// The API through the printed kubeconfig, and as whom it says.
fn api(kubeconfig: &Path) -> Api {
    let text = fs::read(kubeconfig).unwrap();
    let config: Value = serde_json::from_slice(&text).unwrap();
    let text = |pointer: &str| {
        config
            .pointer(pointer)
            .and_then(Value::as_str)
            .unwrap()
            .to_owned()
    };
    let pem = |pointer: &str| String::from_utf8(STANDARD.decode(text(pointer)).unwrap()).unwrap();
    let pair = KeyPair {
        certificate: pem("/users/0/user/client-certificate-data"),
        key: Secret::new(pem("/users/0/user/client-key-data")),
    };
    let trust = Trust::Pinned(pem("/clusters/0/cluster/certificate-authority-data"));
    Api::new(
        &text("/clusters/0/cluster/server"),
        trust,
        Caller::Certificate(pair),
    )
    .unwrap()
}

#[test]
fn an_ordinary_user_has_a_cluster_by_one_command_and_nothing_left_by_another() {
    let home = home();
    let place = home.path();
    let began = Instant::now();
    let up = [
        "cluster",
        "up",
        "demo",
        "--control-planes",
        "1",
        "--workers",
        "0",
        "--timeout",
        "25m",
    ];
    let output = as_user(place, &up).output().unwrap();
    let console = fs::read(place.join("demo/machines/cp-1/console.log")).unwrap_or_default();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{said}\n{}",
        kimage_qemu_tests::console::tail(&console)
    );
    println!("one control plane in service after {:.1?}", began.elapsed());
    assert_eq!(output.stdout, b"demo/kubeconfig\n");
    assert!(
        said.contains("kubectl --kubeconfig demo/kubeconfig get nodes"),
        "{said}"
    );

    let nodes = api(&place.join("demo/kubeconfig"))
        .get("/api/v1/nodes")
        .unwrap()
        .unwrap();
    let nodes = nodes["items"].as_array().unwrap();
    assert_eq!(nodes.len(), 1);
    assert!(
        is_ready(&nodes[0]) && nodes[0]["metadata"]["name"] == "cp-1",
        "{}",
        nodes[0]
    );
    let explained = as_user(place, &["explain", "demo/machines/cp-1/console.log"])
        .output()
        .unwrap();
    println!("{}", String::from_utf8_lossy(&explained.stdout));
    assert!(explained.status.success(), "{explained:?}");

    // Supervisor, gateway, machine.
    assert!(processes().len() >= 3);
    let began = Instant::now();
    finish(&mut as_user(place, &["cluster", "down", "demo"])).unwrap();
    println!("down after {:.1?}", began.elapsed());
    assert_eq!(processes(), Vec::<u32>::new());
    let left: Vec<_> = fs::read_dir(place)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(left.len(), 2, "{left:?}");
}
