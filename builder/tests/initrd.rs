//! The initrd, judged by cpio and modinfo.

#![expect(
    clippy::unwrap_used,
    reason = "what these tests need and do not find ends them"
)]

#[path = "oracle/tool.rs"]
mod oracle;

use std::collections::BTreeMap;
use std::path::Path;

use kimage_builder::failure::{self, ExitCode};
use kimage_builder::partitions::initrd;
use kimage_builder::tree::{Entry, Tree, TreePath};
use kimage_roles::stage0::Table;
use oracle::tool;

const KERNEL: &str = "6.8.0-1-test";

/// A kernel module as the C compiler makes it: `modinfo` fields in their section.
fn compile(folder: &Path, name: &str, fields: &[&str]) -> Vec<u8> {
    let mut source = String::new();
    for (number, field) in fields.iter().enumerate() {
        let attributes = "__attribute__((section(\".modinfo\"), used))";
        source.push_str(&format!(
            "static const char f{number}[] {attributes} = \"{field}\";\n"
        ));
    }
    let (input, output) = (
        folder.join(format!("{name}.c")),
        folder.join(format!("{name}.ko")),
    );
    std::fs::write(&input, source).unwrap();
    let child = tool("cc").args(["-c", "-o"]).arg(&output).arg(&input);
    child.run().expect("a C compiler is needed: apt-get install gcc");
    std::fs::read(output).unwrap()
}

/// A root with a small kernel: d needs c (built in) and b; b prefers a-1; x needs what nobody has.
fn tree(folder: &Path) -> Tree {
    let mut tree = Tree::new(0);
    let base = format!("usr/lib/modules/{KERNEL}/kernel/drivers/disk");
    let mut path = TreePath::root();
    for part in base.split('/') {
        path = path.join(part.as_bytes());
        tree.insert(path.clone(), Entry::directory(0o755)).unwrap();
    }
    let modules: [(&str, &[&str]); 4] = [
        ("a-1", &["name=a_1", "license=GPL"]),
        ("b", &["name=b", "softdep=pre: a-1 absent post: x", "depends="]),
        (
            "d",
            &[
                "name=d",
                "depends=c,b",
                "alias=pci:v00001B36d*",
                "alias=disk-d",
                "alias=scsi:t-0x00*",
            ],
        ),
        ("x", &["name=x", "depends=nowhere"]),
    ];
    for (name, fields) in modules {
        let packed = zstd::encode_all(&compile(folder, name, fields)[..], 3).unwrap();
        tree.insert(
            path.join(format!("{name}.ko.zst").as_bytes()),
            Entry::bytes(0o644, packed),
        )
        .unwrap();
    }
    let list = TreePath::parse(format!("usr/lib/modules/{KERNEL}/modules.builtin").as_bytes()).unwrap();
    tree.insert(
        list,
        Entry::bytes(0o644, *b"kernel/c.ko\nkernel/drivers/virtio/virtio_blk.ko\n"),
    )
    .unwrap();
    tree
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

/// What GNU cpio unpacks from the archive.
fn unpack(bytes: &[u8], folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let archive = folder.join("initrd.cpio");
    std::fs::write(&archive, zstd::decode_all(bytes).unwrap()).unwrap();
    let out = folder.join("out");
    std::fs::create_dir_all(&out).unwrap();
    let shell = |script: &str| {
        let child = tool("sh").directory(&out).args(["-ec", script]);
        String::from_utf8(child.run().expect("GNU cpio is needed: apt-get install cpio")).unwrap()
    };
    let listing = shell("cpio --quiet -t <../initrd.cpio");
    shell("cpio --quiet -i --no-preserve-owner init 'modules*' stage0.table <../initrd.cpio");
    let content = |name: &str| std::fs::read(out.join(name)).unwrap_or_default();
    listing
        .lines()
        .map(|name| (name.to_owned(), content(name)))
        .collect()
}

#[test]
fn the_archive_holds_the_closure_of_the_modules_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let tree = tree(folder.path());
    let hardware = words(&["d", "virtio_*", "nvme*"]);
    let initrd = initrd::build(b"binary", &tree, KERNEL, &words(&["b", "c"]), &hardware).unwrap();
    assert_eq!(initrd.modules, ["a_1", "b", "d"]);
    assert_eq!(initrd.unmatched, ["nvme*"]);

    let files = unpack(&initrd.bytes, folder.path());
    let names: Vec<&str> = files.keys().map(String::as_str).collect();
    let expected = "dev dev/console init modules modules/a_1.ko modules/b.ko modules/d.ko proc run stage0.table sys sysroot";
    assert_eq!(names, expected.split(' ').collect::<Vec<_>>());
    assert_eq!(files["init"], b"binary");

    let table = Table::parse(&files["stage0.table"]).unwrap();
    assert_eq!(table.kernel(), KERNEL);
    assert_eq!(table.always(), [1]);
    assert_eq!(table.for_device("scsi:t-0x00"), [2]);
    assert_eq!(table.closure(2), [0, 1, 2]);
    assert_eq!(
        table.aliases().len(),
        2,
        "an alias that no device has is left out"
    );
}

#[test]
fn modinfo_reads_the_same_from_the_module_in_the_archive() {
    let folder = tempfile::tempdir().unwrap();
    let initrd = initrd::build(
        b"",
        &tree(folder.path()),
        KERNEL,
        &[],
        &words(&["kernel/drivers/*/d"]),
    )
    .unwrap();
    unpack(&initrd.bytes, folder.path());
    let field = |name: &str| {
        let child = tool("modinfo").args(["-F", name]);
        let text = child.arg(folder.path().join("out/modules/d.ko")).run();
        String::from_utf8(text.expect("modinfo is needed: apt-get install kmod")).unwrap()
    };
    assert_eq!(field("depends"), "c,b\n");
    assert_eq!(field("alias"), "pci:v00001B36d*\ndisk-d\nscsi:t-0x00*\n");
}

#[test]
fn the_same_modules_give_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let tree = tree(folder.path());
    let build = || {
        initrd::build(b"binary", &tree, KERNEL, &words(&["b"]), &words(&["d"]))
            .unwrap()
            .bytes
    };
    assert_eq!(build(), build());
}

#[test]
fn a_module_that_is_always_loaded_must_exist() {
    let folder = tempfile::tempdir().unwrap();
    let error = initrd::build(b"", &tree(folder.path()), KERNEL, &words(&["dm-verity"]), &[]).unwrap_err();
    assert!(error.to_string().contains("dm_verity"), "{error:#}");
    assert_eq!(failure::exit_code(&error), ExitCode::Usage);
}

#[test]
fn a_need_that_nothing_fills_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let error = initrd::build(b"", &tree(folder.path()), KERNEL, &[], &words(&["x"])).unwrap_err();
    assert!(format!("{error:#}").contains("x needs nowhere"), "{error:#}");
}

#[test]
fn a_kernel_that_the_image_lacks_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let error = initrd::build(b"", &tree(folder.path()), "6.9.9-none", &[], &[]).unwrap_err();
    assert!(error.to_string().contains("6.9.9-none"), "{error:#}");
}
