//! What a Debian archive serves.

use std::io::{Read, Write};
use std::sync::OnceLock;
use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use kimage_builder::archive::signed::{self, Keyring};
use kimage_builder::archive::{index, relation as relations, version};
use kimage_builder::tree::control::{Paragraph, clauses};
use kimage_builder::tree::deb::{Deb, MemberKind};
use sequoia_openpgp::cert::{Cert, CertBuilder};
use sequoia_openpgp::serialize::SerializeInto;

use super::memory::{MemoryFile, mend_tar_checksums, tar};
use super::signing::clear_sign;

const CONTROL: &[u8] = b"Package: test\nVersion: 1\nArchitecture: all\nDescription: short\n long\n";
/// 2024-06-21.
const NOW: i64 = 1_718_971_200;

/// A .deb: no member leaves the tree, and a file has the bytes that its header says.
pub(crate) fn deb(data: &[u8]) -> bool {
    let file = MemoryFile::new(data);
    let Ok(deb) = Deb::open(&file.path()) else {
        return false;
    };
    let walked = deb.each_file(|member, content| {
        assert!(member.mode <= 0o7777 && !member.path.parts().iter().any(|part| part == b".."));
        if let MemberKind::File(size) = member.kind {
            let read = std::io::copy(&mut content.take(1 << 24), &mut std::io::sink())?;
            assert!(read <= size);
        }
        Ok(())
    });
    walked.is_ok()
}

/// A tar alone, with right checksums and inside a sound .deb.
pub(crate) fn deb_members(data: &[u8]) -> bool {
    let mut members = data.to_vec();
    mend_tar_checksums(&mut members);
    members.extend([0; 1024]);
    deb(&ar("", &members))
}

fn ar(suffix: &str, data: &[u8]) -> Vec<u8> {
    let control = tar(&[
        ("control", b'0', "", CONTROL),
        ("postinst", b'0', "", b"#!/bin/sh\n"),
    ]);
    let mut out = b"!<arch>\n".to_vec();
    for (name, body) in [
        ("debian-binary".to_owned(), &b"2.0\n"[..]),
        ("control.tar".to_owned(), &control),
        (format!("data.tar{suffix}"), data),
    ] {
        let length = body.len();
        out.extend(format!("{name:<16}{:<12}{:<6}{:<6}{:<8}{length:<10}`\n", 0, 0, 0, 100_644).as_bytes());
        out.extend(body);
        out.resize(out.len().next_multiple_of(2), b'\n');
    }
    out
}

fn members() -> Vec<u8> {
    let long = format!("usr/{}", "l".repeat(120));
    tar(&[
        ("usr", b'5', "", b""),
        ("usr/a", b'0', "", b"content"),
        ("usr/b", b'1', "usr/a", b""),
        ("usr/c", b'2', "../a", b""),
        (&long, b'0', "", b"x"),
    ])
}

/// One package for each compression that we can also write.
pub(crate) fn deb_seeds() -> Vec<Vec<u8>> {
    let data = members();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(6));
    gzip.write_all(&data).unwrap();
    vec![
        ar("", &data),
        ar(".gz", &gzip.finish().unwrap()),
        ar(".zst", &zstd::encode_all(&data[..], 3).unwrap()),
    ]
}

/// The tar in those packages.
pub(crate) fn deb_members_seeds() -> Vec<Vec<u8>> {
    vec![members()]
}

/// Control paragraphs: what is written anew reads the same.
pub(crate) fn control(data: &[u8]) -> bool {
    let Ok(paragraphs) = Paragraph::parse_all(data) else {
        return false;
    };
    for paragraph in paragraphs {
        let again = Paragraph::parse(paragraph.render().as_bytes());
        assert_eq!(again.ok().as_ref(), Some(&paragraph));
        for clause in clauses(paragraph.get("Depends").unwrap_or_default()) {
            assert!(clause.iter().all(|one| !one.name.is_empty()));
        }
    }
    true
}

/// A control file and a piece of dpkg's status.
pub(crate) fn control_seeds() -> Vec<Vec<u8>> {
    let status = b"Package: a\nStatus: install ok installed\nDepends: b (>= 1) | c:any, d [amd64]\nConffiles:\n /etc/a 0123\n\n\
        Package: b\nDescription: x\n .\n y\n";
    vec![CONTROL.to_vec(), status.to_vec()]
}

/// A `Packages` index: no path leaves the mirror.
pub(crate) fn packages_index(data: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(data) else {
        return false;
    };
    let Ok(packages) = index::parse(text, "amd64", 0) else {
        return false;
    };
    for package in packages {
        assert!(!package.path.starts_with('/') && package.path.split('/').all(|part| part != ".."));
        assert!(index::check_name(&package.name).is_ok());
    }
    true
}

/// Two stanzas.
pub(crate) fn packages_index_seeds() -> Vec<Vec<u8>> {
    let stanza = |name: &str| {
        format!(
            "Package: {name}\nArchitecture: amd64\nVersion: 1:2.39-0ubuntu8~1\nPriority: required\nEssential: yes\n\
             Source: glibc (2.38)\nPre-Depends: x\nDepends: libgcc-s1, libcrypt1 (>= 1:4.4.10) | y\nBreaks: foo (<< 2)\n\
             Provides: libc-abi (= 1), x\nFilename: ./pool/main/g/glibc/{name}_1_amd64.deb\nSize: 10\n\
             SHA256: e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855\nDescription: text\n more: text\n"
        )
    };
    vec![format!("{}\n{}", stanza("libc6"), stanza("libc6-dev")).into_bytes()]
}

/// A relation field: written anew it reads the same, and each version limit is an order.
pub(crate) fn relation(data: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(data) else {
        return false;
    };
    let Ok(parsed) = relations::parse(text) else {
        return false;
    };
    for alternatives in &parsed {
        let shown: Vec<String> = alternatives.iter().map(ToString::to_string).collect();
        assert_eq!(
            relations::parse(&shown.join(" | ")).unwrap(),
            std::slice::from_ref(alternatives)
        );
    }
    let versions: Vec<&str> = parsed
        .iter()
        .flatten()
        .filter_map(|one| Some(one.version.as_ref()?.1.as_str()))
        .collect();
    for pair in versions.windows(2) {
        assert_eq!(
            version::compare(pair[0], pair[1]),
            version::compare(pair[1], pair[0]).reverse()
        );
    }
    true
}

/// Each operator.
pub(crate) fn relation_seeds() -> Vec<Vec<u8>> {
    vec![
        b"libc6 (>= 2.38), default-mta | mail-transport-agent, python3:any (<< 3.13~)".to_vec(),
        b"a (= 1:0), b (>> 1.0~rc1-2+b1), c (<= 1.0a)".to_vec(),
    ]
}

struct Archive {
    certificate: Cert,
    keyring: Keyring,
}

fn archive() -> &'static Archive {
    static ARCHIVE: OnceLock<Archive> = OnceLock::new();
    ARCHIVE.get_or_init(|| {
        let made = SystemTime::UNIX_EPOCH + Duration::from_secs(NOW as u64 - 86_400);
        let builder = CertBuilder::new()
            .set_creation_time(made)
            .add_userid("archive@example.com");
        let certificate = builder.add_signing_subkey().generate().unwrap().0;
        let key = vec![("key".to_owned(), certificate.to_vec().unwrap())];
        let keyring = Keyring::new(&key, &[certificate.fingerprint().to_hex()]).unwrap();
        Archive { certificate, keyring }
    })
}

/// A signed document: nothing that this test did not sign is believed, and other certificates than the pinned one
/// are not read into the keyring.
pub(crate) fn inrelease(data: &[u8]) -> bool {
    let now = Timestamp::from_second(NOW).unwrap();
    assert!(signed::read(data, &archive().keyring, "x", now).is_err());
    assert!(Keyring::new(&[("key".to_owned(), data.to_vec())], &["00".repeat(20)]).is_err());
    false
}

/// A document of another key, and that key.
pub(crate) fn inrelease_seeds() -> Vec<Vec<u8>> {
    let builder = CertBuilder::new()
        .add_userid("other@example.com")
        .add_signing_subkey();
    let other = builder.generate().unwrap().0;
    vec![
        clear_sign(&other, RELEASE.as_bytes(), SystemTime::now()),
        other.to_vec().unwrap(),
        other.armored().to_vec().unwrap(),
    ]
}

/// The signed text, signed: what it lists is what stands in it.
pub(crate) fn inrelease_text(data: &[u8]) -> bool {
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(NOW as u64 - 60);
    let document = clear_sign(&archive().certificate, data, time);
    let now = Timestamp::from_second(NOW).unwrap();
    let Ok(release) = signed::read(&document, &archive().keyring, "x", now) else {
        return false;
    };
    let text = String::from_utf8_lossy(data);
    assert!(!release.indexes.is_empty() && release.indexes.keys().all(|path| text.contains(path)));
    true
}

/// A small release.
pub(crate) fn inrelease_text_seeds() -> Vec<Vec<u8>> {
    vec![RELEASE.as_bytes().to_vec()]
}

const RELEASE: &str = "Suite: stable\nCodename: rock\nDate: Thu, 20 Jun 2024  2:00:00 UTC\nValid-Until: Thu, 27 Jun 2024 12:00:00 UTC\n\
    Acquire-By-Hash: yes\nSHA256:\n e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855 10 main/binary-amd64/Packages.xz\n";
