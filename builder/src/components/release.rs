//! `[release]`: fetches a published file by digest and picks what is installed.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use anyhow::{Context, Result, bail};
use flate2::read::MultiGzDecoder;
use zip::ZipArchive;

use super::{Means, Product, Products};
use crate::definition::Component;
use crate::definition::component::{Archive, Release};
use crate::download::{self, Request};

/// Most bytes that an archive may unpack to.
const MOST_BYTES: u64 = 8 << 30;

/// Fetches the release and puts its files into `folder`.
pub(super) fn take(
    component: &Component,
    release: &Release,
    means: &Means<'_>,
    folder: &Path,
) -> Result<Products> {
    let urls = std::iter::once(&release.url).chain(&release.mirrors);
    let request = Request {
        name: format!("{} {}", component.name, component.manifest.version),
        urls: urls.map(|url| component.manifest.expand(url).into()).collect(),
        digest: release.sha256,
        size: release.size,
    };
    download::fetch(&[request], means.store, means.access.network, means.progress)?;
    let blob = means
        .store
        .blob(&release.sha256)?
        .context("the store lost a blob that was just fetched")?;
    pick(release, &blob, folder).with_context(|| format!("take files from {}", release.url))
}

fn pick(release: &Release, blob: &Path, folder: &Path) -> Result<Products> {
    // Member to the numbers of the files that are made of it.
    let mut wanted: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for (index, file) in release.file.iter().enumerate() {
        match (&file.member, release.archive) {
            (None, Archive::None) => {
                std::fs::copy(blob, folder.join(index.to_string())).context("copy the download")?;
            }
            (Some(member), Archive::TarGz | Archive::Zip) => {
                wanted.entry(member.as_str()).or_default().push(index);
            }
            (None, _) => bail!("{}: `member` says which file of the archive it is", file.path),
            (Some(_), Archive::None) => bail!("{}: `member` needs `archive`", file.path),
        }
    }
    let source = File::open(blob).with_context(|| format!("open {}", blob.display()))?;
    match release.archive {
        Archive::None => {}
        Archive::TarGz => from_tar(source, &mut wanted, folder)?,
        Archive::Zip => from_zip(source, &mut wanted, folder)?,
    }
    if let Some(member) = wanted.keys().next() {
        bail!("the archive holds no file `{member}`");
    }
    let files = release.file.iter().enumerate().map(|(index, file)| Product {
        path: file.path.clone(),
        mode: file.mode.bits(),
        links: file.links.clone(),
        file: index.to_string(),
    });
    Ok(Products {
        files: files.collect(),
        ..Products::default()
    })
}

fn from_tar(source: File, wanted: &mut BTreeMap<&str, Vec<usize>>, folder: &Path) -> Result<()> {
    let plain = MultiGzDecoder::new(io::BufReader::new(source)).take(MOST_BYTES);
    for entry in tar::Archive::new(plain).entries().context("read the archive")? {
        let mut entry = entry.context("read the archive")?;
        let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let name = name.strip_prefix("./").unwrap_or(&name).to_owned();
        if !entry.header().entry_type().is_file() {
            continue;
        }
        if let Some(indices) = wanted.remove(name.as_str()) {
            write(&mut entry, &indices, folder)?;
        }
    }
    Ok(())
}

fn from_zip(source: File, wanted: &mut BTreeMap<&str, Vec<usize>>, folder: &Path) -> Result<()> {
    let mut archive = ZipArchive::new(source).context("read the archive")?;
    let members: Vec<String> = wanted.keys().map(|member| (*member).to_owned()).collect();
    for member in members {
        let entry = match archive.by_name(&member) {
            Ok(entry) => entry,
            Err(zip::result::ZipError::FileNotFound) => continue,
            Err(error) => return Err(error).with_context(|| format!("read `{member}` of the archive")),
        };
        if !entry.is_file() {
            continue;
        }
        if let Some(indices) = wanted.remove(member.as_str()) {
            write(&mut entry.take(MOST_BYTES), &indices, folder)?;
        }
    }
    Ok(())
}

/// Writes one member to the files that are made of it.
fn write(reader: &mut impl Read, indices: &[usize], folder: &Path) -> Result<()> {
    let Some((first, others)) = indices.split_first() else {
        return Ok(());
    };
    let path = folder.join(first.to_string());
    let mut out = File::create_new(&path).with_context(|| format!("make {}", path.display()))?;
    io::copy(reader, &mut out).with_context(|| format!("unpack {}", path.display()))?;
    for other in others {
        std::fs::copy(&path, folder.join(other.to_string()))
            .with_context(|| format!("copy {}", path.display()))?;
    }
    Ok(())
}
