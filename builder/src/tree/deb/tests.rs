use std::io::Write;

use proptest::prelude::*;

use super::*;

/// One member of a hostile tarball.
struct Item<'a> {
    name: &'a [u8],
    kind: u8,
    link: &'a [u8],
    body: &'a [u8],
    claimed: Option<u64>,
}

fn item<'a>(name: &'a str, kind: u8, link: &'a str) -> Item<'a> {
    Item {
        name: name.as_bytes(),
        kind,
        link: link.as_bytes(),
        body: b"",
        claimed: None,
    }
}

fn file<'a>(name: &'a str, body: &'a [u8]) -> Item<'a> {
    Item {
        name: name.as_bytes(),
        kind: b'0',
        link: b"",
        body,
        claimed: None,
    }
}

fn tarball(items: &[Item<'_>]) -> Vec<u8> {
    let mut out = Vec::new();
    for item in items {
        let mut block = [0_u8; BLOCK];
        block[..item.name.len()].copy_from_slice(item.name);
        block[100..107].copy_from_slice(b"0000644");
        block[108..115].copy_from_slice(b"0000000");
        block[116..123].copy_from_slice(b"0000000");
        let size = item.claimed.unwrap_or(item.body.len() as u64);
        if size < 1 << 33 {
            block[124..135].copy_from_slice(format!("{size:011o}").as_bytes());
        } else {
            // GNU's binary sizes.
            block[124] = 0x80;
            block[128..136].copy_from_slice(&size.to_be_bytes());
        }
        block[136..147].copy_from_slice(b"00000000000");
        block[156] = item.kind;
        block[157..157 + item.link.len()].copy_from_slice(item.link);
        block[257..265].copy_from_slice(b"ustar  \0");
        block[265..269].copy_from_slice(b"root");
        block[297..301].copy_from_slice(b"root");
        block[148..156].copy_from_slice(b"        ");
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        out.extend(block);
        out.extend(item.body);
        out.resize(out.len().next_multiple_of(BLOCK), 0);
    }
    out.extend([0; 2 * BLOCK]);
    out
}

fn ar(members: &[(&str, &[u8])]) -> Vec<u8> {
    let mut out = b"!<arch>\n".to_vec();
    for (name, body) in members {
        out.extend(
            format!(
                "{name:<16}{:<12}{:<6}{:<6}{:<8}{:<10}`\n",
                0,
                0,
                0,
                100_644,
                body.len()
            )
            .as_bytes(),
        );
        out.extend(*body);
        if body.len() % 2 == 1 {
            out.push(b'\n');
        }
    }
    out
}

const CONTROL: &[u8] = b"Package: test\nVersion: 1\nArchitecture: all\n";

fn deb(data: &[u8]) -> Vec<u8> {
    let control = tarball(&[file("./control", CONTROL)]);
    ar(&[
        ("debian-binary", b"2.0\n"),
        ("control.tar", &control),
        ("data.tar", data),
    ])
}

fn on_disk(bytes: &[u8]) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    file
}

/// Paths and contents of a package, or why it is refused.
fn contents(bytes: &[u8]) -> Result<Vec<(String, Vec<u8>)>> {
    let file = on_disk(bytes);
    let deb = Deb::open(file.path())?;
    let mut all = Vec::new();
    deb.each_file(|member, content| {
        let mut body = Vec::new();
        content.read_to_end(&mut body)?;
        all.push((member.path.to_string(), body));
        Ok(())
    })?;
    Ok(all)
}

#[test]
fn every_compression_yields_the_same_files() {
    let data = tarball(&[item("./a/", b'5', ""), file("./a/b", b"content")]);
    let control = tarball(&[file("./control", CONTROL), file("./postinst", b"#!/bin/sh\n")]);
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&data).unwrap();
    // Another program's xz (package xz-utils): lzma-rust2 is built without its encoder.
    let xz = crate::tool::Tool::new("xz")
        .arg("-c")
        .arg(on_disk(&data).path())
        .env("PATH", "/usr/bin:/bin")
        .run()
        .unwrap();
    let packed = [
        ("data.tar", data.clone()),
        ("data.tar.gz", gzip.finish().unwrap()),
        ("data.tar.xz", xz),
        ("data.tar.zst", zstd::encode_all(&data[..], 1).unwrap()),
    ];
    for (name, bytes) in packed {
        let deb = ar(&[
            ("debian-binary", b"2.0\n"),
            ("_extra", b"x"),
            ("control.tar", &control),
            (name, &bytes),
        ]);
        let expected = [
            ("/a".to_owned(), Vec::new()),
            ("/a/b".to_owned(), b"content".to_vec()),
        ];
        assert_eq!(contents(&deb).unwrap(), expected, "{name}");
        let opened = Deb::open(on_disk(&deb).path()).unwrap();
        assert_eq!(opened.control["postinst"].bytes, b"#!/bin/sh\n");
        // Cut off anywhere, it is refused: the decompressor or the reader notices.
        for cut in [1, 10, bytes.len() / 2] {
            let short = ar(&[
                ("debian-binary", b"2.0\n"),
                ("control.tar", &control),
                (name, &bytes[..bytes.len() - cut]),
            ]);
            let cut_end = name == "data.tar" && cut <= BLOCK;
            assert!(contents(&short).is_err() || cut_end, "{name} cut by {cut}");
        }
    }
}

#[test]
fn hostile_members_are_refused_by_name() {
    let huge = Item {
        claimed: Some(10 << 30),
        ..file("./huge", b"")
    };
    let short = Item {
        claimed: Some(4096),
        ..file("./short", b"")
    };
    let hostile: [(&str, Vec<Item<'_>>); 14] = [
        ("../evil", vec![file("../evil", b"x")]),
        ("./a/../../evil", vec![file("./a/../../evil", b"x")]),
        ("/etc/passwd", vec![file("/etc/passwd", b"x")]),
        ("./null", vec![item("./null", b'3', "")]),
        ("./disk", vec![item("./disk", b'4', "")]),
        ("./pipe", vec![item("./pipe", b'6', "")]),
        (
            "./link/passwd",
            vec![item("./link", b'2', "/etc"), file("./link/passwd", b"x")],
        ),
        (
            "./file/below",
            vec![file("./file", b"x"), file("./file/below", b"x")],
        ),
        ("./twice", vec![file("./twice", b"x"), file("./twice", b"y")]),
        (
            "./swap",
            vec![item("./swap/", b'5', ""), item("./swap", b'2', "/")],
        ),
        ("./hard", vec![item("./hard", b'1', "../../etc/shadow")]),
        ("./hard2", vec![item("./hard2", b'1', "./absent")]),
        ("./huge", vec![huge]),
        ("./short", vec![short]),
    ];
    for (name, items) in hostile {
        let error = format!("{:#}", contents(&deb(&tarball(&items))).unwrap_err());
        assert!(
            error.contains(name) && error.contains("data.tar"),
            "{name}: {error}"
        );
    }
    let pax = contents(&deb(&tarball(&[item("./pax", b'x', "")]))).unwrap_err();
    assert!(format!("{pax:#}").contains("member of type 'x'"), "{pax:#}");
}

#[test]
fn a_long_name_is_read_and_a_bomb_of_a_name_is_not() {
    let name = format!("./{}/x", "d".repeat(200));
    let long = Item {
        kind: b'L',
        ..file("././@LongLink", name.as_bytes())
    };
    assert_eq!(
        contents(&deb(&tarball(&[long, file("./cut", b"1")]))).unwrap()[0].0,
        name[1..]
    );
    let bomb = Item {
        kind: b'L',
        claimed: Some(1 << 32),
        ..file("././@LongLink", b"")
    };
    assert!(format!("{:#}", contents(&deb(&tarball(&[bomb]))).unwrap_err()).contains("a name of"));
}

#[test]
fn what_is_no_deb_is_refused() {
    let control = tarball(&[file("./control", CONTROL)]);
    let nested = tarball(&[file("./sub/control", CONTROL)]);
    let cases: [Vec<u8>; 7] = [
        b"".to_vec(),
        b"!<arch>\n".to_vec(),
        b"PK\x03\x04 not ar".to_vec(),
        ar(&[("control.tar", &control), ("data.tar", &control)]),
        ar(&[("debian-binary", b"2.0\n"), ("data.tar", &control)]),
        ar(&[
            ("debian-binary", b"2.0\n"),
            ("control.tar", &nested),
            ("data.tar", &control),
        ]),
        ar(&[
            ("debian-binary", b"2.0\n"),
            ("control.tar.bz2", &control),
            ("data.tar", &control),
        ]),
    ];
    for bytes in cases {
        assert!(contents(&bytes).is_err());
    }
}

proptest! {
    #[test]
    fn damaged_packages_never_panic(at in 0usize..8000, value: u8) {
        let mut bytes = deb(&tarball(&[item("./a/", b'5', ""), file("./a/b", b"content"), item("./l", b'2', "a")]));
        let at = at % bytes.len();
        bytes[at] = value;
        let _ = contents(&bytes);
    }
}
