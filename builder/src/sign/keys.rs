//! Key sets as folders of files: made once, then loaded for every build.
//!
//! A folder holds the certificates `PK.crt`, `KEK.crt`, `db.crt`, the public release key `release.pub`, the signed
//! firmware updates `PK.auth`, `KEK.auth`, `db.auth`, and the private keys `PK.key`, `KEK.key`, `db.key`,
//! `release.key` (all PEM but the updates). A build needs the private keys `db.key` and `release.key` only: PK and KEK
//! can go offline as soon as the folder is made.

mod create;

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use anyhow::{Context, Error, Result, anyhow, bail, ensure};
use kimage_roles::pem;
use ring::rand::SystemRandom;
use ring::signature::{Ed25519KeyPair, RSA_PKCS1_SHA256, RsaKeyPair};

use super::efi_signature_list::{Variable, certificate_list, owner, verify_update};
use super::{Enrolment, Identity, Purpose, Signer, certificate, der};
use crate::failure::{ExitCode, Failure};
use crate::progress::Progress;

pub use create::create;

/// No file of a key set is larger, in bytes.
const MAX_FILE: u64 = 64 * 1024;

/// Bytes of a private key, which never show in a log.
struct Secret(Vec<u8>);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("****")
    }
}

/// `SubjectPublicKeyInfo` of an Ed25519 key (RFC 8410) as PEM, which `openssl pkeyutl -verify -rawin` reads.
pub fn release_public_pem(key: &[u8]) -> String {
    let algorithm = der::sequence(&[&der::oid(der::ED25519)]);
    pem::encode(
        "PUBLIC KEY",
        &der::sequence(&[&algorithm, &der::element(der::BIT_STRING, &[&[0], key])]),
    )
}

/// A certificate as PEM, which `sbverify --cert` reads.
pub fn certificate_pem(der: &[u8]) -> String {
    pem::encode("CERTIFICATE", der)
}

/// The certificate (DER) in PEM `text`.
pub fn certificate_der(text: &str) -> Result<Vec<u8>> {
    let der = pem_block("CERTIFICATE", text)?;
    certificate::parse(&der)?;
    Ok(der)
}

/// The Ed25519 public key in PEM `text`.
pub fn release_public_key(text: &str) -> Result<[u8; 32]> {
    let spki = pem_block("PUBLIC KEY", text)?;
    let key = spki
        .get(spki.len().saturating_sub(32)..)
        .and_then(|key| <[u8; 32]>::try_from(key).ok());
    let key = key.context("not an Ed25519 public key")?;
    ensure!(
        pem_block("PUBLIC KEY", &release_public_pem(&key))? == spki,
        "not an Ed25519 public key"
    );
    Ok(key)
}

fn pem_block(label: &str, text: &str) -> Result<Vec<u8>> {
    pem::decode(label, text).map_err(Error::msg)
}

impl Identity {
    /// Reads the public files of a key folder; its private keys may be absent.
    pub fn load(folder: &Path) -> Result<Self> {
        let certificate = |name: &str| -> Result<Vec<u8>> {
            let path = folder.join(format!("{name}.crt"));
            let der = pem_block("CERTIFICATE", &read_text(&path)?);
            let der = der.with_context(|| format!("read {}", path.display()))?;
            certificate::parse(&der).with_context(|| format!("read {}", path.display()))?;
            Ok(der)
        };
        let release = folder.join("release.pub");
        let mut identity = Self {
            platform_key: certificate("PK")?,
            key_exchange_key: certificate("KEK")?,
            database: certificate("db")?,
            release: release_public_key(&read_text(&release)?)
                .with_context(|| format!("read {}", release.display()))?,
            enrolment: None,
            development: false,
        };
        if folder.join("PK.auth").exists() {
            let update = |name: &str| read(&folder.join(format!("{name}.auth")));
            identity.enrolment = Some(Enrolment {
                platform_key: update("PK")?,
                key_exchange_key: update("KEK")?,
                database: update("db")?,
            });
        }
        identity
            .check_enrolment()
            .with_context(|| format!("key folder {}", folder.display()))?;
        Ok(identity)
    }

    /// Checks that the signed firmware updates, where there are any, carry this identity's certificates.
    pub(super) fn check_enrolment(&self) -> Result<()> {
        let Some(enrolment) = &self.enrolment else {
            return Ok(());
        };
        let owner = owner(&self.platform_key);
        for (variable, key, by, update) in [
            (
                Variable::PlatformKey,
                &self.platform_key,
                &self.platform_key,
                &enrolment.platform_key,
            ),
            (
                Variable::KeyExchangeKey,
                &self.key_exchange_key,
                &self.platform_key,
                &enrolment.key_exchange_key,
            ),
            (
                Variable::Database,
                &self.database,
                &self.key_exchange_key,
                &enrolment.database,
            ),
        ] {
            verify_update(variable, &certificate_list(owner, key), by, update)?;
        }
        Ok(())
    }
}

fn read(path: &Path) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let result = File::open(path).and_then(|file| file.take(MAX_FILE + 1).read_to_end(&mut bytes));
    if let Err(error) = result {
        let missing = error.kind() == io::ErrorKind::NotFound;
        let failure = Failure::new(ExitCode::Usage, format!("read {}: {error}", path.display()));
        bail!(if missing {
            failure.hint("`kimage keys new DIR` makes a key set")
        } else {
            failure
        });
    }
    ensure!(
        bytes.len() as u64 <= MAX_FILE,
        "{} is too large for a key file",
        path.display()
    );
    Ok(bytes)
}

fn read_text(path: &Path) -> Result<String> {
    String::from_utf8(read(path)?).map_err(|_| anyhow!("{} is not a text file", path.display()))
}

/// Signs with the private keys of a folder.
pub struct FileSigner {
    identity: Identity,
    secure_boot: RsaKeyPair,
    release: Ed25519KeyPair,
}

impl fmt::Debug for FileSigner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FileSigner")
            .field("identity", &self.identity)
            .field("keys", &"****")
            .finish()
    }
}

impl FileSigner {
    /// Loads a folder that [`create`] made (or one of that shape) and checks that its private keys belong to its
    /// certificates.
    pub fn load(folder: &Path) -> Result<Self> {
        let identity = Identity::load(folder)?;
        let secret = |name: &str| -> Result<Secret> {
            let path = folder.join(name);
            let der = pem_block("PRIVATE KEY", &read_text(&path)?);
            Ok(Secret(der.with_context(|| {
                format!("read {}: not a PKCS#8 key", path.display())
            })?))
        };
        let signer = Self {
            identity,
            secure_boot: rsa_pair(&secret("db.key")?)?,
            release: ed25519_pair(&secret("release.key")?)?,
        };
        for purpose in [Purpose::SecureBoot, Purpose::Release] {
            signer
                .sign(purpose, b"kimage key check")
                .with_context(|| format!("key folder {}", folder.display()))?;
        }
        Ok(signer)
    }
}

impl Signer for FileSigner {
    fn sign(&self, purpose: Purpose, message: &[u8]) -> Result<Vec<u8>> {
        let signature = match purpose {
            Purpose::SecureBoot => rsa_sign(&self.secure_boot, message)?,
            Purpose::Release => self.release.sign(message).as_ref().to_vec(),
        };
        self.identity.verify(purpose, message, &signature)?;
        Ok(signature)
    }

    fn identity(&self) -> &Identity {
        &self.identity
    }
}

fn rsa_pair(secret: &Secret) -> Result<RsaKeyPair> {
    let pair = RsaKeyPair::from_pkcs8(&secret.0).map_err(|error| anyhow!("not an RSA key: {error}"))?;
    ensure!(
        pair.public().modulus_len() == 256,
        "Secure Boot keys are RSA-2048: firmware knows no others for sure"
    );
    Ok(pair)
}

fn ed25519_pair(secret: &Secret) -> Result<Ed25519KeyPair> {
    let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(&secret.0);
    pair.map_err(|error| anyhow!("not an Ed25519 key: {error}"))
}

fn rsa_sign(pair: &RsaKeyPair, message: &[u8]) -> Result<Vec<u8>> {
    let mut signature = vec![0; pair.public().modulus_len()];
    pair.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), message, &mut signature)
        .map_err(|_| anyhow!("RSA signature failed"))?;
    Ok(signature)
}

/// The signer of builds that were given no keys: a key set in the store, made at first use. Says so every time.
pub fn development_signer(store: &Path, progress: &Progress) -> Result<FileSigner> {
    let folder = store.join("development-keys");
    if !folder.exists() {
        progress.warn(&format!(
            "no keys given: making development keys in {}",
            folder.display()
        ));
        if let Err(error) = create(&folder) {
            // Another build that runs at the same moment may have been first.
            if !folder.join("release.key").exists() {
                return Err(error);
            }
        }
    }
    progress.warn(
        "signing with DEVELOPMENT keys: whoever can read this store can sign images that boot as yours",
    );
    progress.warn("`kimage keys new DIR` and `--keys DIR` make a real release");
    let mut signer = FileSigner::load(&folder)?;
    signer.identity.development = true;
    Ok(signer)
}

/// Key sets for the tests of all signing modules: made once per process, since RSA keys take seconds.
#[cfg(test)]
pub(crate) mod testing {
    use super::*;
    use std::sync::LazyLock;

    static SIGNERS: LazyLock<[FileSigner; 2]> = LazyLock::new(|| {
        let folder = tempfile::tempdir().unwrap();
        ["own", "foreign"].map(|name| {
            create(&folder.path().join(name)).unwrap();
            FileSigner::load(&folder.path().join(name)).unwrap()
        })
    });

    pub(crate) fn signer() -> &'static FileSigner {
        &SIGNERS[0]
    }

    pub(crate) fn foreign() -> &'static FileSigner {
        &SIGNERS[1]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn a_key_folder_is_private_complete_and_never_overwritten() {
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join("deep/keys");
        create(&folder).unwrap();
        assert_eq!(mode(&folder), 0o700);
        let names: Vec<_> = fs::read_dir(&folder)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        assert_eq!(names.len(), 11);
        assert!(names.iter().all(|path| mode(path) == 0o600));
        assert_eq!(fs::read_dir(parent.path().join("deep")).unwrap().count(), 1);
        let before = fs::read(folder.join("db.key")).unwrap();
        let error = create(&folder).unwrap_err();
        assert_eq!(crate::failure::exit_code(&error), ExitCode::Usage);
        assert_eq!(fs::read(folder.join("db.key")).unwrap(), before);
        assert!(!format!("{:?}", FileSigner::load(&folder).unwrap()).contains("RsaKeyPair"));
        assert_eq!(format!("{:?}", Secret(vec![1])), "****");
    }

    #[test]
    fn a_missing_or_foreign_key_is_named() {
        let parent = tempfile::tempdir().unwrap();
        let error = FileSigner::load(&parent.path().join("none")).unwrap_err();
        assert!(crate::failure::hints(&error).any(|hint| hint.contains("kimage keys new")));
        let (one, two) = (parent.path().join("one"), parent.path().join("two"));
        create(&one).unwrap();
        create(&two).unwrap();
        fs::copy(two.join("db.key"), one.join("db.key")).unwrap();
        let error = format!("{:#}", FileSigner::load(&one).unwrap_err());
        assert!(error.contains("does not match"), "{error}");
        fs::copy(two.join("db.crt"), one.join("db.crt")).unwrap();
        let error = format!("{:#}", FileSigner::load(&one).unwrap_err());
        assert!(error.contains("db update"), "{error}");
    }

    #[test]
    fn development_keys_are_made_once_and_marked() {
        let store = tempfile::tempdir().unwrap();
        let first = development_signer(store.path(), &Progress::silent()).unwrap();
        let second = development_signer(store.path(), &Progress::silent()).unwrap();
        assert_eq!(first.identity().database, second.identity().database);
        assert!(first.identity().development);
    }
}
