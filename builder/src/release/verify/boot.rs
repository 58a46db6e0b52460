//! What the firmware trusts and starts: keys, UKI and boot partition.

use std::collections::BTreeSet;
use std::fs::File;

use anyhow::{Context, Result, bail, ensure};

use super::Subject;
use super::findings::{Findings, same};
use crate::digest::Digest;
use crate::disk::gpt::Partition;
use crate::disk::{esp_parameters, sparse};
use crate::partitions::boot::LOADER_CONFIGURATION;
use crate::partitions::esp::{self, Esp, EspFile};
use crate::partitions::uki::Uki;
use crate::release::names;
use crate::release::pcr::Pcr11;
use crate::sign::efi_signature_list::{Variable, certificate_list, owner, verify_update};
use crate::sign::{authenticode, keys as key_files, ovmf_vars};

/// Programs of the boot partition besides UKIs: both are systemd-boot.
const LOADERS: [&str; 2] = ["EFI/BOOT/BOOTX64.EFI", "EFI/systemd/systemd-bootx64.efi"];

/// Reads the public keys of the folder and compares them with the manifest's.
pub(super) fn keys(subject: &mut Subject<'_>, findings: &mut Findings) {
    let stated = &subject.manifest.keys;
    let release = same(
        "release key",
        stated.release,
        Digest::from_bytes(subject.release_key),
    );
    let release = release.and_then(|()| {
        let found = super::release_key(&subject.folder.join(names::RELEASE_KEY))?;
        same(names::RELEASE_KEY, stated.release, Digest::from_bytes(found))
    });
    findings.claim("keys release", release.map(|()| ((), stated.release.to_string())));
    let path = subject.folder.join(names::DATABASE_CERTIFICATE);
    let database = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()));
    let database = database
        .and_then(|text| key_files::certificate_der(&text))
        .and_then(|der| {
            same(names::DATABASE_CERTIFICATE, stated.database, Digest::of(&der))?;
            Ok((
                der,
                format!(
                    "{} is the certificate of the manifest",
                    names::DATABASE_CERTIFICATE
                ),
            ))
        });
    subject.database = findings.claim("keys db", database);
    let path = subject.folder.join(names::OVMF_VARS);
    let enrolled = std::fs::read(&path).with_context(|| format!("read {}", path.display()));
    let enrolled = enrolled
        .and_then(|bytes| ovmf_vars::read(&bytes))
        .and_then(|enrolled| {
            same("PK", stated.platform_key, Digest::of(&enrolled.platform_key))?;
            same(
                "KEK",
                stated.key_exchange_key,
                Digest::of(&enrolled.key_exchange_key),
            )?;
            same("db", stated.database, Digest::of(&enrolled.database))?;
            Ok((
                enrolled,
                "PK, KEK and db of the manifest, Secure Boot on, nothing else".to_owned(),
            ))
        });
    subject.enrolled = findings.claim(names::OVMF_VARS, enrolled);
    if stated.development {
        findings.warn(
            "keys",
            "signed with DEVELOPMENT keys: whoever can read the builder's store can sign such images",
        );
    }
}

/// Checks `kernel.efi` and returns its bytes.
pub(super) fn uki(subject: &Subject<'_>, findings: &mut Findings) -> Option<Vec<u8>> {
    let path = subject.folder.join(names::UKI);
    let bytes = std::fs::read(&path).with_context(|| format!("read {}", path.display()));
    let bytes = findings.claim("uki file", bytes.map(|bytes| (bytes, names::UKI.to_owned())))?;
    findings.claim("uki signature", signature(subject, &bytes));
    let digest = authenticode::digest(&bytes).and_then(|digest| {
        same(
            "authenticode digest",
            subject.manifest.kernel.authenticode,
            digest,
        )?;
        Ok(((), digest.to_string()))
    });
    findings.claim("uki authenticode", digest);
    findings.claim("uki sections", sections(subject, &bytes));
    let pcr = Uki::parse(&bytes).and_then(|uki| {
        let (stated, found) = (&subject.manifest.kernel.pcr11, Pcr11::expected(&uki)?);
        same("kernel", stated.kernel, found.kernel)?;
        same("sysinit", stated.sysinit, found.sysinit)?;
        same("ready", stated.ready, found.ready)?;
        Ok(((), format!("ready {}", found.ready)))
    });
    findings.claim("uki pcr11", pcr);
    Some(bytes)
}

fn signature(subject: &Subject<'_>, program: &[u8]) -> Result<((), String)> {
    let certificate = subject
        .database
        .as_ref()
        .context("db.crt is not the certificate of the manifest")?;
    authenticode::verify(program, certificate)?;
    Ok(((), format!("valid under {}", names::DATABASE_CERTIFICATE)))
}

fn sections(subject: &Subject<'_>, bytes: &[u8]) -> Result<((), String)> {
    let (manifest, uki) = (subject.manifest, Uki::parse(bytes)?);
    let text = |name: &str| -> Result<&str> {
        let section = uki.section(name).with_context(|| format!("no section {name}"))?;
        std::str::from_utf8(section).with_context(|| format!("section {name} is not text"))
    };
    let command_line = text(".cmdline")?;
    same(".cmdline", manifest.kernel.command_line.as_str(), command_line)?;
    let mut hashes = command_line
        .split(' ')
        .filter_map(|word| word.strip_prefix("roothash="));
    let hash = hashes.next().context(".cmdline has no roothash")?;
    ensure!(hashes.next().is_none(), ".cmdline has more than one roothash");
    same(
        "roothash in .cmdline",
        manifest.root.hash.to_string().as_str(),
        hash,
    )?;
    same(".uname", manifest.kernel.version.as_str(), text(".uname")?)?;
    let os_release = text(".osrel")?;
    for (key, expected) in [
        ("IMAGE_ID", format!("kimage-{}", manifest.role)),
        ("IMAGE_VERSION", manifest.version.clone()),
    ] {
        let found = os_release
            .lines()
            .filter_map(|line| line.split_once('='))
            .rfind(|(name, _)| *name == key);
        same(
            &format!("{key} in .osrel"),
            expected.as_str(),
            found.map_or("", |(_, value)| value),
        )?;
    }
    Ok((
        (),
        format!("kernel {}, `{command_line}`", manifest.kernel.version),
    ))
}

/// Checks every file of the boot partition, and that nothing else is on it.
pub(super) fn partition(
    subject: &Subject<'_>,
    disk: &File,
    place: &Partition,
    uki: Option<&[u8]>,
    findings: &mut Findings,
) {
    let check = "boot partition";
    let esp = Esp::read(disk, place.start, place.size).map(|esp| {
        let count = esp.files().count();
        (esp, format!("FAT32 with {count} files"))
    });
    let Some(esp) = findings.claim(check, esp) else {
        return;
    };
    let uki_path = format!("EFI/Linux/kimage_{}+3.efi", subject.manifest.version);
    let paths: Vec<String> = esp.files().map(|(path, _)| path.to_owned()).collect();
    let mut files = Vec::new();
    for path in paths {
        let outcome = esp.file(&path).and_then(|bytes| {
            let detail = file(subject, &path, &bytes, &uki_path, uki)?;
            Ok((bytes, detail))
        });
        files.extend(
            findings
                .claim(&format!("{check} {path}"), outcome)
                .map(|bytes| (path, bytes)),
        );
    }
    let present: BTreeSet<&str> = files.iter().map(|(path, _)| path.as_str()).collect();
    let missing: Vec<&str> = LOADERS
        .into_iter()
        .chain([uki_path.as_str(), "loader/loader.conf"])
        .filter(|path| !present.contains(path))
        .collect();
    let whole = if missing.is_empty() {
        again(subject, disk, place, &files)
    } else {
        Err(anyhow::anyhow!(
            "not there as they must be: {}",
            missing.join(", ")
        ))
    };
    findings.claim(&format!("{check} layout"), whole);
}

/// What is right about one file of the boot partition.
fn file(
    subject: &Subject<'_>,
    path: &str,
    bytes: &[u8],
    uki_path: &str,
    uki: Option<&[u8]>,
) -> Result<String> {
    if path == uki_path {
        ensure!(uki == Some(bytes), "{path} is not {}", names::UKI);
        return Ok(format!("the bytes of {}", names::UKI));
    }
    if LOADERS.contains(&path) {
        return signature(subject, bytes).map(|((), detail)| detail);
    }
    match path {
        "loader/loader.conf" => ensure!(
            bytes == LOADER_CONFIGURATION,
            "{path} is not the configuration that kimage writes"
        ),
        "loader/entries.srel" => ensure!(bytes == b"type1\n", "{path} is not `type1`"),
        "loader/keys/auto/PK.auth" => update(subject, Variable::PlatformKey, bytes)?,
        "loader/keys/auto/KEK.auth" => update(subject, Variable::KeyExchangeKey, bytes)?,
        "loader/keys/auto/db.auth" => update(subject, Variable::Database, bytes)?,
        _ => bail!("{path} does not belong on the boot partition"),
    }
    Ok(format!("{} bytes, as expected", bytes.len()))
}

fn update(subject: &Subject<'_>, variable: Variable, bytes: &[u8]) -> Result<()> {
    let keys = subject
        .enrolled
        .as_ref()
        .context("the keys to compare with are not known")?;
    let (certificate, signer) = match variable {
        Variable::PlatformKey => (&keys.platform_key, &keys.platform_key),
        Variable::KeyExchangeKey => (&keys.key_exchange_key, &keys.platform_key),
        Variable::Database | Variable::Forbidden => (&keys.database, &keys.key_exchange_key),
    };
    verify_update(
        variable,
        &certificate_list(owner(&keys.platform_key), certificate),
        signer,
        bytes,
    )
}

/// Writes the same files again: the partition may hold nothing that they do not account for.
fn again(
    subject: &Subject<'_>,
    disk: &File,
    place: &Partition,
    files: &[(String, Vec<u8>)],
) -> Result<((), String)> {
    let expected = tempfile::tempfile().context("temporary file")?;
    expected.set_len(place.size).context("temporary file")?;
    let listed: Vec<EspFile<'_>> = files.iter().map(|(path, data)| EspFile { path, data }).collect();
    let parameters = esp_parameters(&subject.manifest.root.hash, i64::from(subject.manifest.epoch));
    esp::write(&expected, 0, &parameters, &listed)?;
    let (expected, found) = (
        sparse::digest(&expected, 0, place.size)?,
        sparse::digest(disk, place.start, place.size)?,
    );
    ensure!(
        expected == found,
        "bytes beyond its files: sha256 is {found}, its files make {expected}"
    );
    Ok(((), "byte for byte what its files make".to_owned()))
}
