//! The readers of the builder, each as a function of bytes. The fuzzers (`qemu-tests/fuzz/`) take this file in as well.

pub(crate) mod boot;
pub(crate) mod disk;
pub(crate) mod documents;
pub(crate) mod memory;
pub(crate) mod packages;
#[path = "../release/manifest.rs"]
mod sample_manifest;
#[path = "../lock/signing.rs"]
mod signing;
pub(crate) mod squashfs;

use super::damage::Target;

/// All of them.
pub(crate) const TARGETS: &[Target] = &[
    Target {
        name: "deb",
        run: packages::deb,
        seeds: packages::deb_seeds,
    },
    Target {
        name: "deb_members",
        run: packages::deb_members,
        seeds: packages::deb_members_seeds,
    },
    Target {
        name: "control",
        run: packages::control,
        seeds: packages::control_seeds,
    },
    Target {
        name: "packages_index",
        run: packages::packages_index,
        seeds: packages::packages_index_seeds,
    },
    Target {
        name: "relation",
        run: packages::relation,
        seeds: packages::relation_seeds,
    },
    Target {
        name: "inrelease",
        run: packages::inrelease,
        seeds: packages::inrelease_seeds,
    },
    Target {
        name: "inrelease_text",
        run: packages::inrelease_text,
        seeds: packages::inrelease_text_seeds,
    },
    Target {
        name: "uki",
        run: boot::uki,
        seeds: boot::uki_seeds,
    },
    Target {
        name: "kernel_module",
        run: boot::kernel_module,
        seeds: boot::kernel_module_seeds,
    },
    Target {
        name: "ovmf_vars",
        run: boot::ovmf_vars,
        seeds: boot::ovmf_vars_seeds,
    },
    Target {
        name: "efi_update",
        run: boot::efi_update,
        seeds: boot::efi_update_seeds,
    },
    Target {
        name: "gpt",
        run: disk::gpt,
        seeds: disk::gpt_seeds,
    },
    Target {
        name: "esp",
        run: disk::esp,
        seeds: disk::esp_seeds,
    },
    Target {
        name: "qcow2",
        run: disk::qcow2,
        seeds: disk::qcow2_seeds,
    },
    Target {
        name: "verity_superblock",
        run: disk::verity_superblock,
        seeds: disk::verity_superblock_seeds,
    },
    Target {
        name: "squashfs",
        run: squashfs::squashfs,
        seeds: squashfs::squashfs_seeds,
    },
    Target {
        name: "definition",
        run: documents::definition,
        seeds: documents::definition_seeds,
    },
    Target {
        name: "lock",
        run: documents::lock,
        seeds: documents::lock_seeds,
    },
    Target {
        name: "manifest",
        run: documents::manifest,
        seeds: documents::manifest_seeds,
    },
    Target {
        name: "pem",
        run: documents::pem,
        seeds: documents::pem_seeds,
    },
    Target {
        name: "tree_index",
        run: documents::tree_index,
        seeds: documents::tree_index_seeds,
    },
    Target {
        name: "vendor_file",
        run: documents::vendor_file,
        seeds: documents::vendor_file_seeds,
    },
];
