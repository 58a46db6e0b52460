//! A manifest with something in each list.

use kimage_builder::digest::Digest;
use kimage_builder::release::manifest::{Component, FileRecord, Kernel, Keys, Manifest, Partition, Root};
use kimage_builder::release::pcr::Pcr11;

pub(crate) fn sample() -> Manifest {
    let digest = Digest::of(b"sample");
    Manifest {
        schema: Manifest::SCHEMA,
        kimage: "0.1.0".to_owned(),
        image: "ubuntu-24.04".to_owned(),
        role: "worker".to_owned(),
        version: "20261120-0123abcd".to_owned(),
        architecture: "amd64".to_owned(),
        epoch: 1_795_161_600,
        lock: digest,
        keys: Keys {
            development: true,
            platform_key: digest,
            key_exchange_key: digest,
            database: digest,
            release: digest,
        },
        root: Root {
            hash: digest,
            salt: digest,
            size: 4096,
            sha256: digest,
            entries: 3,
        },
        kernel: Kernel {
            version: "6.8.0-149-generic".to_owned(),
            command_line: "console=ttyS0".to_owned(),
            authenticode: digest,
            pcr11: Pcr11 {
                kernel: digest,
                sysinit: digest,
                ready: digest,
            },
        },
        partitions: vec![Partition {
            name: "esp".to_owned(),
            type_uuid: "c12a7328-f81f-11d2-ba4b-00a0c93ec93b".to_owned(),
            uuid: "00000000-0000-4000-8000-000000000001".to_owned(),
            offset: 1 << 20,
            size: 256 << 20,
            sha256: digest,
        }],
        components: vec![Component {
            name: "etcd".to_owned(),
            version: "v3.6.14".to_owned(),
            compiler: Some("rustc 1.95.0 (0123456789ab)".to_owned()),
        }],
        packages: 2,
        debug: vec![],
        files: vec![FileRecord::of_bytes("disk.raw", b"not a disk")],
    }
}
