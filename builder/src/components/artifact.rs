//! `component.json`: what the files of a built component's folder are. Whoever can write into the store, or into a file
//! for `kimage vendor --import`, can write one; so it names files of its own folder and nothing else. A path that
//! leads out of it, or a link in it, would put any file of the host into an image.

use std::fs::{self, Metadata};
use std::path::{Component as Part, Path};

use anyhow::{Context, Result, bail};

use super::{ARTIFACT, BuiltComponent};
use crate::digest::Digest;
use crate::failure::{ExitCode, Failure};

/// The file in an artifact that says what the others are.
const RECORD: &str = "component.json";
/// Larger records are refused, in bytes; Kubernetes' have some 100 KB.
const LIMIT: u64 = 16 << 20;

/// Writes the record of `built`, whose `source` paths are relative to `folder`.
pub(super) fn write(built: &BuiltComponent, folder: &Path) -> Result<()> {
    let file = folder.join(RECORD);
    let json = serde_json::to_vec_pretty(built).context("write a component's record")?;
    fs::write(&file, json).with_context(|| format!("write {}", file.display()))
}

/// Reads the record in `folder`; its `source` paths then lead to regular files of that folder.
///
/// # Errors
/// [`ExitCode::Mismatch`] when one leads anywhere else.
pub(super) fn read(folder: &Path) -> Result<BuiltComponent> {
    let file = folder.join(RECORD);
    let place = || format!("read {}", file.display());
    if plain_file(folder, Path::new(RECORD))?.len() > LIMIT {
        bail!(refuse(folder, RECORD, "is too large"));
    }
    let json = fs::read(&file).with_context(place)?;
    let mut built: BuiltComponent = serde_json::from_slice(&json).with_context(place)?;
    for (source, _) in built.sources_mut() {
        plain_file(folder, source)?;
        *source = folder.join(&*source);
    }
    Ok(built)
}

/// Judges an artifact that comes from elsewhere and now lies in `folder`: a component's, whose record tells the truth
/// about its files.
pub(super) fn judge(kind: &str, folder: &Path) -> Result<()> {
    if kind != ARTIFACT {
        let message = format!("artifact of kind `{kind}`, which kimage does not take from files");
        bail!(Failure::new(ExitCode::Mismatch, message));
    }
    let built = read(folder)?;
    for file in built.all_files() {
        let found =
            Digest::of_file(&file.source).with_context(|| format!("read {}", file.source.display()))?;
        if found != (file.digest, file.size) {
            let message = format!(
                "{} {}: {} has sha256 {} and {} bytes, its record says {} and {}",
                built.name, built.version, file.path, found.0, found.1, file.digest, file.size
            );
            bail!(Failure::new(ExitCode::Mismatch, message));
        }
    }
    Ok(())
}

/// What `source` is in `folder`: a regular file, named without any detour.
fn plain_file(folder: &Path, source: &Path) -> Result<Metadata> {
    let shown = source.display().to_string();
    let mut parts = source.components();
    let (Some(Part::Normal(name)), None) = (parts.next(), parts.next()) else {
        bail!(refuse(folder, &shown, "leads out of the component's folder"));
    };
    match fs::symlink_metadata(folder.join(name)) {
        Ok(there) if there.is_file() => Ok(there),
        Ok(_) => bail!(refuse(folder, &shown, "is no regular file")),
        Err(error) => Err(error).with_context(|| format!("look at {}", folder.join(name).display())),
    }
}

fn refuse(folder: &Path, source: &str, why: &str) -> Failure {
    let message = format!(
        "{}: `{}` {why}",
        folder.join(RECORD).display(),
        source.escape_debug()
    );
    Failure::new(ExitCode::Mismatch, message).hint(format!(
        "somebody changed it: get the file for --import from somebody you trust, or, in a store, remove {} and build again",
        folder.display()
    ))
}

#[cfg(test)]
mod tests {
    use super::super::{ImageLayer, InstalledFile, OciImage};
    use super::*;
    use crate::failure::exit_code;

    fn built(source: &str, content: &[u8]) -> BuiltComponent {
        let file = InstalledFile {
            path: "/usr/bin/tool".to_owned(),
            mode: 0o755,
            source: source.into(),
            size: content.len() as u64,
            digest: Digest::of(content),
        };
        BuiltComponent {
            name: "tool".to_owned(),
            version: "v1".to_owned(),
            licence: "MIT".to_owned(),
            files: vec![file],
            links: Vec::new(),
            images: Vec::new(),
            go_modules: Vec::new(),
            compiler: None,
        }
    }

    fn image(layer: &str) -> OciImage {
        OciImage {
            reference: "x".to_owned(),
            entrypoint: Vec::new(),
            args: Vec::new(),
            user: None,
            env: Vec::new(),
            working_directory: None,
            files: Vec::new(),
            layers: vec![ImageLayer {
                source: layer.into(),
                digest: Digest::of(b"bytes"),
            }],
        }
    }

    fn folder(record: &BuiltComponent) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("0"), b"bytes").unwrap();
        fs::create_dir(folder.path().join("sub")).unwrap();
        fs::write(folder.path().join("sub/0"), b"bytes").unwrap();
        std::os::unix::fs::symlink("/etc/hostname", folder.path().join("link")).unwrap();
        write(record, folder.path()).unwrap();
        folder
    }

    #[test]
    fn what_was_written_is_read_and_judged_good() {
        let folder = folder(&built("0", b"bytes"));
        assert_eq!(
            read(folder.path()).unwrap().files[0].source,
            folder.path().join("0")
        );
        judge(ARTIFACT, folder.path()).unwrap();
        let error = judge("tree", folder.path()).unwrap_err();
        assert_eq!(exit_code(&error), ExitCode::Mismatch);
    }

    #[test]
    fn sources_that_lead_elsewhere_are_refused_at_every_reading() {
        for source in ["/etc/hostname", "../0", "./../x", "link", "sub", "sub/0", "", "."] {
            let mut layered = built("0", b"bytes");
            layered.images.push(image(source));
            for record in [built(source, b"bytes"), layered] {
                let folder = folder(&record);
                let error = read(folder.path()).unwrap_err();
                assert_eq!(exit_code(&error), ExitCode::Mismatch, "{source}: {error:#}");
            }
        }
        let folder = folder(&built("0", b"bytes"));
        let record = folder.path().join(RECORD);
        fs::rename(&record, folder.path().join("moved")).unwrap();
        std::os::unix::fs::symlink("moved", &record).unwrap();
        assert_eq!(exit_code(&read(folder.path()).unwrap_err()), ExitCode::Mismatch);
    }

    #[test]
    fn a_record_that_lies_about_its_files_is_refused() {
        for record in [built("0", b"other"), built("0", b"bytes and more")] {
            let folder = folder(&record);
            let error = judge(ARTIFACT, folder.path()).unwrap_err();
            assert_eq!(exit_code(&error), ExitCode::Mismatch);
            assert!(error.to_string().contains("/usr/bin/tool"), "{error}");
        }
    }
}
