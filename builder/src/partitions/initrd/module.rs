//! A kernel module's file: unpacked, and what its `.modinfo` section says (`include/linux/moduleinfo`, MODULE_INFO).

use std::io::Read;

use anyhow::{Context, Result, bail, ensure};

use super::elf;

/// Largest module, unpacked. The largest of a distribution kernel (amdgpu) has some 30 MB.
const MAX_MODULE: u64 = 64 << 20;

/// A module, ready for the initrd.
pub(super) struct Module {
    /// The kernel's name for it, with underscores.
    pub(super) name: String,
    /// The unpacked ELF file, its signature at the end as it was.
    pub(super) bytes: Vec<u8>,
    /// Device patterns.
    pub(super) aliases: Vec<String>,
    /// Names of modules that must be loaded before.
    pub(super) depends: Vec<String>,
    /// Names of modules that should be loaded before, if they exist.
    pub(super) prefers: Vec<String>,
}

impl Module {
    /// Reads the module whose file is called `file` (`x.ko`, `x.ko.zst`, `x.ko.xz` or `x.ko.gz`).
    pub(super) fn read(file: &str, packed: Vec<u8>) -> Result<Self> {
        let name = name_of(file).with_context(|| format!("{file} is not called like a kernel module"))?;
        let bytes = unpack(file, packed)?;
        let section = elf::section(&bytes, ".modinfo")?.context("has no .modinfo section")?;
        let mut module = Self {
            name,
            bytes: Vec::new(),
            aliases: vec![],
            depends: vec![],
            prefers: vec![],
        };
        for (key, value) in fields(section)? {
            match key {
                "alias" => module.aliases.push(value.to_owned()),
                "depends" => module.depends.extend(names(value.split(','))),
                "softdep" => module.prefers.extend(names(before(value))),
                // The file's name and the name inside may differ in dashes only.
                "name" => ensure!(value.replace('-', "_") == module.name, "calls itself {value}"),
                _ => {}
            }
        }
        module.bytes = bytes;
        Ok(module)
    }
}

/// `dm_verity` for `dm-verity.ko.zst`; `None` for what is no module.
pub(super) fn name_of(file: &str) -> Option<String> {
    let (stem, suffix) = file.split_once(".ko")?;
    (matches!(suffix, "" | ".zst" | ".xz" | ".gz") && !stem.is_empty()).then(|| stem.replace('-', "_"))
}

fn unpack(file: &str, packed: Vec<u8>) -> Result<Vec<u8>> {
    let reader: Box<dyn Read + '_> = match file.rsplit_once(".ko").map(|(_, suffix)| suffix) {
        Some("") => return Ok(packed),
        Some(".zst") => Box::new(zstd::stream::read::Decoder::with_buffer(&packed[..])?),
        Some(".xz") => Box::new(lzma_rust2::XzReader::new(&packed[..], true)),
        Some(".gz") => Box::new(flate2::read::GzDecoder::new(&packed[..])),
        _ => bail!("unknown compression"),
    };
    let mut bytes = Vec::new();
    reader
        .take(MAX_MODULE + 1)
        .read_to_end(&mut bytes)
        .context("unpack")?;
    ensure!(
        bytes.len() as u64 <= MAX_MODULE,
        "unpacks to more than {MAX_MODULE} bytes"
    );
    Ok(bytes)
}

/// The `key=value` fields of a `.modinfo` section.
fn fields(section: &[u8]) -> Result<impl Iterator<Item = (&str, &str)>> {
    let text = std::str::from_utf8(section).context(".modinfo is not UTF-8")?;
    Ok(text.split('\0').filter_map(|field| field.split_once('=')))
}

/// The modules after `pre:` of a soft dependency (`pre: a b post: c`).
fn before(softdep: &str) -> impl Iterator<Item = &str> {
    let mut inside = false;
    softdep.split_ascii_whitespace().filter(move |word| {
        match *word {
            "pre:" => inside = true,
            "post:" => inside = false,
            _ => return inside,
        }
        false
    })
}

fn names<'a>(words: impl Iterator<Item = &'a str>) -> impl Iterator<Item = String> {
    words
        .filter(|word| !word.is_empty())
        .map(|word| word.replace('-', "_"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_modules_fields_are_read() {
        let info = b"alias=pci:v1*\0alias=fs-x\0depends=a-b,c\0softdep=pre: d-e f post: g\0name=x_y\0junk\0";
        let module = Module::read("x-y.ko", elf::sample(".modinfo", info)).unwrap();
        assert_eq!(module.name, "x_y");
        assert_eq!(module.aliases, ["pci:v1*", "fs-x"]);
        assert_eq!(module.depends, ["a_b", "c"]);
        assert_eq!(module.prefers, ["d_e", "f"]);
    }

    #[test]
    fn a_packed_module_is_unpacked() {
        let plain = elf::sample(".modinfo", b"name=x\0");
        let packed = zstd::encode_all(&plain[..], 3).unwrap();
        assert_eq!(Module::read("x.ko.zst", packed.clone()).unwrap().bytes, plain);
        assert!(Module::read("x.ko.zst", packed[..packed.len() - 1].to_vec()).is_err());
        assert!(Module::read("x.ko.xz", packed).is_err());
    }

    #[test]
    fn a_module_under_a_false_name_is_refused() {
        assert!(Module::read("x.ko", elf::sample(".modinfo", b"name=y\0")).is_err());
        assert!(Module::read("x.ko", elf::sample(".text", b"")).is_err());
        assert!(Module::read("x.txt", Vec::new()).is_err());
    }

    #[test]
    fn a_file_that_unpacks_without_end_is_refused() {
        let bomb = zstd::encode_all(std::io::repeat(0).take(MAX_MODULE + 10), 1).unwrap();
        assert!(
            Module::read("x.ko.zst", bomb)
                .err()
                .unwrap()
                .to_string()
                .contains("more than")
        );
    }
}
