//! What the firmware starts: the unified kernel image with stage 0 and the root hash in its signed command line.

use anyhow::{Context, Result};
use jiff::Timestamp;

use super::initrd::{self, Initrd};
use super::root::SealedRoot;
use super::uki::{self, Section, SectionKind};
use crate::definition::Definition;
use crate::tree::{Assembled, TreePath};

/// Where the stage 0 program lies in the tree.
pub const INIT_PATH: &str = "/usr/lib/kimage/kimage-init";

/// systemd-boot's configuration: no menu, no editing of the command line.
pub const LOADER_CONFIGURATION: &[u8] = b"timeout 0\neditor no\nsecure-boot-enroll if-safe\n";

/// Seconds after which a machine whose stage 0 failed restarts, so that boot counting can fall back.
const PANIC_SECONDS: u32 = 10;

/// A UKI that nobody has signed yet.
pub struct UnsignedUki {
    /// The EFI program.
    pub bytes: Vec<u8>,
    /// The image's version: the day of its packages and the beginning of its root hash.
    pub version: String,
    /// The command line in it.
    pub command_line: String,
}

/// The initrd with stage 0, whose program is `init`. It is the same whatever becomes of the root filesystem.
pub fn initrd(definition: &Definition, assembled: &Assembled, init: &[u8]) -> Result<Initrd> {
    let kernel = &definition.image.manifest.kernel;
    initrd::build(
        init,
        &assembled.tree,
        &assembled.kernel.version,
        &kernel.stage0_always,
        &kernel.stage0_hardware,
    )
    .context("write the initrd")
}

/// Puts kernel, initrd and command line together.
pub fn uki(
    definition: &Definition,
    assembled: &Assembled,
    sealed: &SealedRoot,
    initrd: &Initrd,
) -> Result<UnsignedUki> {
    let kernel = &definition.image.manifest.kernel;
    let release = &assembled.kernel.version;
    let (tree, stub) = (&assembled.tree, assembled.kernel.stub.read()?);
    let version = version(tree.mtime(), sealed)?;
    let mut words = vec![
        format!("roothash={}", sealed.root_hash),
        format!("panic={PANIC_SECONDS}"),
    ];
    words.extend(kernel.command_line.iter().cloned());
    let command_line = words.join(" ");
    let os_release = os_release(definition, assembled, &version)?;
    let linux = assembled.kernel.image.read().context("kernel")?;
    let section = |kind, data| Section { kind, data };
    let sections = [
        section(SectionKind::OsRelease, os_release.as_bytes()),
        section(SectionKind::CommandLine, command_line.as_bytes()),
        section(SectionKind::KernelRelease, release.as_bytes()),
        section(SectionKind::Linux, &linux),
        section(SectionKind::Initrd, &initrd.bytes),
    ];
    let bytes = uki::assemble(&stub, &sections).context("put the UKI together")?;
    Ok(UnsignedUki {
        bytes,
        version,
        command_line,
    })
}

fn version(epoch: u32, sealed: &SealedRoot) -> Result<String> {
    let day = Timestamp::from_second(i64::from(epoch))
        .context("epoch")?
        .strftime("%Y%m%d");
    Ok(format!("{day}-{}", &sealed.root_hash.to_string()[..8]))
}

/// The base's os-release and what tells images of one base apart: systemd-boot sorts by it.
fn os_release(definition: &Definition, assembled: &Assembled, version: &str) -> Result<String> {
    let path = TreePath::parse(b"usr/lib/os-release")?;
    let entry = assembled
        .tree
        .get(&path)
        .context("the tree has no /usr/lib/os-release")?;
    let mut text = String::from_utf8(entry.read()?).context("/usr/lib/os-release")?;
    if !text.ends_with('\n') {
        text.push('\n');
    }
    text.push_str(&format!(
        "IMAGE_ID=kimage-{}\nIMAGE_VERSION={version}\n",
        definition.role.name
    ));
    Ok(text)
}
