//! What firmware and boot loader bring along, and kernel modules.

use kimage_builder::partitions::initrd;
use kimage_builder::partitions::uki::{Section, SectionKind, Uki, assemble};
use kimage_builder::sign::efi_signature_list::{Variable, certificate_list, owner, verify_update};
use kimage_builder::sign::{Identity, authenticode, ovmf_vars as vars};
use kimage_builder::tree::{Entry, Tree, TreePath};

/// A PE file, as UKI, stub, kernel and signed program: a UKI that is put together is read back.
pub(crate) fn uki(data: &[u8]) -> bool {
    if let Ok(uki) = Uki::parse(data) {
        assert!(uki.sections().all(|(_, bytes)| bytes.len() <= data.len()));
    }
    let _ = authenticode::digest(data);
    assert!(authenticode::verify(data, b"no certificate").is_err());
    let command_line = Section {
        kind: SectionKind::CommandLine,
        data: b"quiet",
    };
    let kernel = Section {
        kind: SectionKind::Linux,
        data,
    };
    let own = pe(&[(b".text", &[0x90; 600]), (b".sbat", b"sbat,1\n")]);
    let _ = assemble(&own, &[kernel]);
    if let Ok(file) = assemble(data, &[command_line])
        && let Ok(uki) = Uki::parse(&file)
    {
        assert_eq!(uki.section(".cmdline"), Some(&b"quiet"[..]));
    }
    Uki::parse(data).is_ok()
}

/// A stub and a UKI.
pub(crate) fn uki_seeds() -> Vec<Vec<u8>> {
    let stub = pe(&[
        (b".text", &[0x90; 700]),
        (b".sbat", b"sbat,1,SBAT\n"),
        (b".reloc", &[0; 12]),
    ]);
    let kernel = pe(&[(b".text", b"kernel")]);
    let sections = [
        Section {
            kind: SectionKind::Linux,
            data: &kernel,
        },
        Section {
            kind: SectionKind::CommandLine,
            data: b"quiet",
        },
    ];
    let uki = assemble(&stub, &sections).unwrap();
    vec![stub, uki]
}

/// The smallest PE32+ file with these sections.
fn pe(sections: &[(&[u8], &[u8])]) -> Vec<u8> {
    let optional = 0x40 + 24;
    let mut file = vec![0; 0x400];
    file[..2].copy_from_slice(b"MZ");
    file[0x3c] = 0x40;
    file[0x40..0x44].copy_from_slice(b"PE\0\0");
    file[0x44..0x46].copy_from_slice(&0x8664u16.to_le_bytes());
    file[0x46] = sections.len() as u8;
    file[0x40 + 20] = 240;
    file[optional..optional + 2].copy_from_slice(&0x20bu16.to_le_bytes());
    for (offset, value) in [(32, 0x1000u32), (36, 0x200), (60, 0x400), (108, 16)] {
        file[optional + offset..][..4].copy_from_slice(&value.to_le_bytes());
    }
    let mut address = 0x1000u32;
    for (index, (name, data)) in sections.iter().enumerate() {
        let raw = (data.len().next_multiple_of(0x200) as u32, file.len() as u32);
        let header = &mut file[optional + 240 + index * 40..][..40];
        header[..name.len()].copy_from_slice(name);
        for (place, value) in [
            (8, data.len() as u32),
            (12, address),
            (16, raw.0),
            (20, raw.1),
            (36, 0x4000_0040),
        ] {
            header[place..place + 4].copy_from_slice(&value.to_le_bytes());
        }
        file.extend_from_slice(data);
        file.resize(file.len().next_multiple_of(0x200), 0);
        address = (address + data.len() as u32).next_multiple_of(0x1000);
    }
    file
}

const SUFFIXES: [&str; 4] = ["", ".zst", ".xz", ".gz"];

/// A kernel module, packed as its first byte says.
pub(crate) fn kernel_module(data: &[u8]) -> bool {
    let Some((first, data)) = data.split_first() else {
        return false;
    };
    let file = format!(
        "usr/lib/modules/6/x.ko{}",
        SUFFIXES[usize::from(*first) % SUFFIXES.len()]
    );
    let mut tree = Tree::new(0);
    for folder in ["usr", "usr/lib", "usr/lib/modules", "usr/lib/modules/6"] {
        tree.insert(
            TreePath::parse(folder.as_bytes()).unwrap(),
            Entry::directory(0o755),
        )
        .unwrap();
    }
    let list = TreePath::parse(b"usr/lib/modules/6/modules.builtin").unwrap();
    tree.insert(list, Entry::bytes(0o644, *b"kernel/y.ko\n")).unwrap();
    tree.insert(
        TreePath::parse(file.as_bytes()).unwrap(),
        Entry::bytes(0o644, data),
    )
    .unwrap();
    let Ok(initrd) = initrd::build(b"init", &tree, "6", &["x".to_owned()], &[]) else {
        return false;
    };
    assert_eq!(initrd.modules.last().map(String::as_str), Some("x"));
    true
}

/// A module as it is, and one packed.
pub(crate) fn kernel_module_seeds() -> Vec<Vec<u8>> {
    let info = b"alias=pci:v1*\0depends=\0softdep=pre: y post: g\0name=x\0";
    let names = b"\0.shstrtab\0.modinfo\0";
    let (names_at, info_at) = (64, 64 + names.len());
    let mut file = b"\x7fELF\x02\x01\x01".to_vec();
    file.resize(64, 0);
    file[0x28..0x30].copy_from_slice(&((info_at + info.len()) as u64).to_le_bytes());
    file[0x3a..0x40].copy_from_slice(&[64, 0, 3, 0, 1, 0]);
    file.extend_from_slice(names);
    file.extend_from_slice(info);
    for (name, kind, at, size) in [
        (0u32, 0u32, 0, 0),
        (1, 3, names_at, names.len()),
        (11, 1, info_at, info.len()),
    ] {
        let mut header = [0; 64];
        header[..4].copy_from_slice(&name.to_le_bytes());
        header[4..8].copy_from_slice(&kind.to_le_bytes());
        header[0x18..0x20].copy_from_slice(&(at as u64).to_le_bytes());
        header[0x20..0x28].copy_from_slice(&(size as u64).to_le_bytes());
        file.extend_from_slice(&header);
    }
    let packed = zstd::encode_all(&file[..], 3).unwrap();
    vec![[&[0][..], &file].concat(), [&[1][..], &packed].concat()]
}

/// Where the variables of a store begin: behind the headers of volume and store.
const VARIABLES: usize = 72 + 28;

fn identity() -> Identity {
    Identity {
        platform_key: b"platform key".to_vec(),
        key_exchange_key: b"key exchange key".to_vec(),
        database: b"signature database".to_vec(),
        release: [0; 32],
        enrolment: None,
        development: false,
    }
}

/// The variables of a firmware's store: what is believed is byte for byte what we would write.
pub(crate) fn ovmf_vars(data: &[u8]) -> bool {
    let mut store = vars::enrolled(&identity()).unwrap();
    let end = store.len().min(VARIABLES + data.len());
    store[VARIABLES..end].copy_from_slice(&data[..end - VARIABLES]);
    let _ = vars::read(data);
    let Ok(keys) = vars::read(&store) else {
        return false;
    };
    let read = Identity {
        platform_key: keys.platform_key,
        key_exchange_key: keys.key_exchange_key,
        database: keys.database,
        ..identity()
    };
    assert!(vars::enrolled(&read).unwrap() == store);
    true
}

/// The variables of a store of ours.
pub(crate) fn ovmf_vars_seeds() -> Vec<Vec<u8>> {
    vec![vars::enrolled(&identity()).unwrap()[VARIABLES..VARIABLES + 1024].to_vec()]
}

/// A certificate and a signed update by it: without the key nobody makes one.
pub(crate) fn efi_update(data: &[u8]) -> bool {
    let (certificate, update) = data.split_at(data.len() / 2);
    for certificate in [data, certificate] {
        let list = certificate_list(owner(certificate), certificate);
        assert!(verify_update(Variable::Database, &list, certificate, update).is_err());
    }
    false
}

/// A certificate, twice.
pub(crate) fn efi_update_seeds() -> Vec<Vec<u8>> {
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = rcgen::CertificateParams::default().self_signed(&key).unwrap();
    vec![certificate.der().to_vec(), certificate.der().repeat(2)]
}
