//! The command line: what can be said, and the help that teaches it.

use std::path::PathBuf;

use clap::builder::TypedValueParser;
use clap::{ArgAction, Args, Parser, Subcommand, ValueHint};

pub use self::cluster::{
    Cluster, ClusterKubeconfig, ClusterNew, ClusterUserData, FormationArguments, OutputArguments,
};
pub use self::playground::{ClusterDown, ClusterServe, ClusterUp};
use crate::pipeline::DiskFormat;
use crate::progress::Verbosity;

mod cluster;
mod playground;

const EXAMPLES: &str = "\
Examples:
  kimage doctor                                    can this host build?
  kimage build --role control-plane                out/control-plane/ with disk.raw, manifest, SBOM, signature
  kimage build --role worker --format raw           one disk format only
  kimage lock --update                             move to the archive's newest packages, print what changes
  kimage verify out/worker                         derive every claim again from the bytes
  kimage run out/worker                            boot it in QEMU
  kimage cluster up demo                           a whole cluster of such machines, for trying
  kimage explain console.log                       why is this machine not in service?
  kimage cluster new ./prod --name prod --endpoint lb.example.com:6443
                                                   make a cluster's keys; its machines get them as user-data

Exit codes:
  0 done   1 failed   2 bad usage or definition   3 lock missing or stale   4 input could not be fetched
  5 digest or signature mismatch   6 this host does not allow the build sandbox   7 verification failed";

/// Builds signed, dm-verity-sealed, bit-reproducible VM images for Kubernetes clusters.
#[derive(Debug, Parser)]
#[command(name = "kimage", version, after_help = EXAMPLES, max_term_width = 110)]
pub struct Cli {
    /// Options of all commands.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Options of all commands.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Options of all commands")]
pub struct Global {
    /// Folder for everything fetched and built [default: $XDG_CACHE_HOME/kimage, else ~/.cache/kimage]
    ///
    /// Several builds may share it, also at the same time.
    #[arg(long, global = true, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub store: Option<PathBuf>,

    /// Base URL of a package mirror, tried before the definition's (repeatable)
    ///
    /// What stands before `dists/`: http, https or file. Mirrors need no trust: every byte is checked against the
    /// lock. Proxies come from http_proxy, https_proxy and no_proxy.
    #[arg(long, global = true, value_name = "URL", value_hint = ValueHint::Url)]
    pub mirror: Vec<String>,

    /// Folder that holds images/ and roles/ [default: the nearest one from here upwards]
    #[arg(long, global = true, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub definitions: Option<PathBuf>,

    /// Print only warnings and errors
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub quiet: bool,

    /// Print details
    #[arg(short, long, global = true, action = ArgAction::SetTrue)]
    pub verbose: bool,
}

impl Global {
    /// How much is said.
    pub fn verbosity(&self) -> Verbosity {
        match (self.quiet, self.verbose) {
            (true, _) => Verbosity::Quiet,
            (false, true) => Verbosity::Verbose,
            (false, false) => Verbosity::Normal,
        }
    }
}

/// All commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Build the image of one role from the lock
    Build(Build),
    /// Write or update image.lock: every input by version and digest
    Lock(Lock),
    /// Put all inputs into one file, or take them from it: builds without a network
    Vendor(Vendor),
    /// Check a built image: derive signatures, verity, UKI, partitions and manifest again from the bytes
    Verify(Verify),
    /// Say what is in a built image
    Inspect(Inspect),
    /// Say what differs between two built images: packages, files, kernel, components
    Diff(Diff),
    /// Make signing keys
    #[command(subcommand)]
    Keys(Keys),
    /// Run a cluster on this host for trying; or make a real one's keys, NodeConfigs and kubeconfigs
    #[command(subcommand)]
    Cluster(Cluster),
    /// Boot a built image in QEMU with Secure Boot
    Run(Run),
    /// Say from a machine's saved serial console whether it is in service, and if not, why
    Explain(Explain),
    /// Check whether this host can build and run images, and say what to change
    Doctor(Doctor),
    /// Print the completion script of a shell
    Completion(Completion),
}

/// Which base image.
#[derive(Debug, Clone, Args)]
pub struct ImageArgument {
    /// Base image: a folder below images/
    #[arg(long, value_name = "NAME", default_value = "ubuntu-24.04")]
    pub image: String,
}

/// `kimage build`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  kimage build --role control-plane
  kimage build --role worker --format raw,qcow2 --keys ./keys --output ./images-out
  kimage build --role etcd --offline --json > manifest.json

The result is the folder OUT/ROLE: disk.* for each format, kernel.efi, manifest.json with its signature, SBOMs
(SPDX, CycloneDX), provenance.json, ovmf-vars.fd and SHA256SUMS. Equal inputs give equal bytes on every machine.")]
pub struct Build {
    /// Role: a folder below roles/ (control-plane, etcd, worker)
    #[arg(long, value_name = "NAME")]
    pub role: String,
    /// Base image.
    #[command(flatten)]
    pub image: ImageArgument,
    /// Disk formats, separated by commas
    #[arg(
        long,
        value_name = "FORMAT",
        value_delimiter = ',',
        default_value = "raw,qcow2"
    )]
    pub format: Vec<DiskFormat>,
    /// Folder that gets the folder of the role
    #[arg(long, value_name = "OUT", default_value = "out", value_hint = ValueHint::DirPath)]
    pub output: PathBuf,
    /// Keys that `kimage keys new` made [default: a development key, which the manifest tells]
    #[arg(long, value_name = "DIR", conflicts_with = "signer", value_hint = ValueHint::DirPath)]
    pub keys: Option<PathBuf>,
    /// Program that signs (HSM, KMS): JSON on its standard input and output
    #[arg(long, value_name = "PROGRAM", value_hint = ValueHint::CommandName)]
    pub signer: Option<PathBuf>,
    /// Build the root filesystem again, although the store has it; built components are kept
    #[arg(long)]
    pub no_cache: bool,
    /// Never touch the network: all inputs must be in the store (see `kimage vendor`)
    #[arg(long)]
    pub offline: bool,
    /// Where Go modules come from, as GOPROXY [default: the user's own Go settings]
    #[arg(long, value_name = "GOPROXY")]
    pub go_proxy: Option<String>,
    /// Threads; their number never changes a byte [default: one per processor]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024).map(usize::from))]
    pub jobs: Option<usize>,
    /// Print the manifest on standard output
    #[arg(long)]
    pub json: bool,
}

/// `kimage lock`.
#[derive(Debug, Args)]
#[command(after_help = "\
Without --update the lock is made when absent and checked against the definition otherwise; what it pins stays. With
--update every package and component moves to the newest version that the signed archives and the definition allow,
and the differences are printed. Review them like code: `kimage build` takes exactly what the lock says.

Examples:
  kimage lock
  kimage lock --update --mirror http://mirror.example.com/ubuntu")]
pub struct Lock {
    /// Base image.
    #[command(flatten)]
    pub image: ImageArgument,
    /// Move to the newest versions
    #[arg(long)]
    pub update: bool,
    /// Forget what came out of the components before: build those that the store lacks, and lock what comes out now
    #[arg(long, conflicts_with = "list")]
    pub rebuild: bool,
    /// With --update: believe an archive that is older than max-age-days, or than the lock
    #[arg(long, requires = "update")]
    pub allow_old: bool,
    /// Print the packages of the lock instead of changing it
    #[arg(long, conflicts_with = "update")]
    pub list: bool,
    /// With --list: only what these roles hold (repeatable)
    #[arg(long, value_name = "NAME", requires = "list")]
    pub role: Vec<String>,
    /// Print the differences, or the list, as JSON on standard output
    #[arg(long)]
    pub json: bool,
}

/// `kimage vendor`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  kimage vendor inputs.tar                 where there is a network: fetch all inputs of the lock into one file
  kimage vendor --import inputs.tar        where there is none: take them into the store,
  kimage build --role worker --offline     then build

FILE holds all packages and the built components, so that the other machine needs neither a network nor Go nor Rust.
It builds only what the same definition and lock say: build keys of components cover their definition, sources and
compilers. What the store lacks is fetched and built before FILE is written.

FILE is a plain tar, equal for equal inputs. Every file in it is checked against its digest when it is imported, and a
built component against the digest that an image.lock of the workspace has of it: whoever made FILE need not be trusted.")]
pub struct Vendor {
    /// The file to write, or with --import to read
    #[arg(value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub file: PathBuf,
    /// Take the inputs from FILE into the store
    #[arg(long)]
    pub import: bool,
    /// Only what these roles need (repeatable) [default: all roles]
    #[arg(long, value_name = "NAME", conflicts_with = "import")]
    pub role: Vec<String>,
    /// Base image.
    #[command(flatten)]
    pub image: ImageArgument,
    /// Never touch the network: write only if all inputs are in the store
    #[arg(long, conflicts_with = "import")]
    pub offline: bool,
    /// Print counts, size and digest of FILE as JSON on standard output
    #[arg(long)]
    pub json: bool,
}

/// `kimage verify`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  kimage verify out/worker --key keys/release.pub
  kimage verify out/worker --rebuild               build again from the lock; name the first file that differs

Exit code 7 says that the image is not what its manifest claims, 5 that a signature or digest does not match.")]
pub struct Verify {
    /// Folder that `kimage build` wrote
    #[arg(value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub directory: PathBuf,
    /// Public release key that must have signed the manifest [default: DIR/release.pub.pem, with a warning]
    #[arg(long, value_name = "KEY", value_hint = ValueHint::FilePath)]
    pub key: Option<PathBuf>,
    /// Build the same again from the lock and compare
    #[arg(long)]
    pub rebuild: bool,
    /// Print the findings as JSON on standard output
    #[arg(long)]
    pub json: bool,
}

/// `kimage inspect`.
#[derive(Debug, Args)]
pub struct Inspect {
    /// Folder that `kimage build` wrote
    #[arg(value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub directory: PathBuf,
    /// Print JSON on standard output
    #[arg(long)]
    pub json: bool,
}

/// `kimage diff`.
#[derive(Debug, Args)]
pub struct Diff {
    /// The older image's folder
    #[arg(value_name = "OLD", value_hint = ValueHint::DirPath)]
    pub old: PathBuf,
    /// The newer image's folder
    #[arg(value_name = "NEW", value_hint = ValueHint::DirPath)]
    pub new: PathBuf,
    /// Print JSON on standard output
    #[arg(long)]
    pub json: bool,
}

/// `kimage keys`.
#[derive(Debug, Subcommand)]
pub enum Keys {
    /// Make Secure Boot keys (PK, KEK, db) and the release key
    ///
    /// Never overwrites. Keep the folder off the build machine's backups and out of the repository, or keep the keys
    /// in an HSM and use `kimage build --signer`.
    New(KeysNew),
}

/// `kimage keys new`.
#[derive(Debug, Args)]
pub struct KeysNew {
    /// The new folder
    #[arg(value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub directory: PathBuf,
}

/// `kimage run`.
#[derive(Debug, Args)]
#[command(after_help = "\
The machine enforces Secure Boot with the keys of DIR/ovmf-vars.fd. Its disk is a copy of DIR/disk.raw, which stays as
it is. It has an address and no way out, not even to this host: no cluster's configuration is here that would need one.
The serial console is on this terminal: Ctrl-A X ends the machine, Ctrl-A C opens QEMU's monitor, Ctrl-A H lists
more. Without KVM the machine is emulated, some 20 times slower. `kimage doctor` says what is missing.

Examples:
  kimage run out/worker
  kimage run out/control-plane --memory 4096 --cpus 4
  kimage run out/etcd --keep etcd-1.raw            the state outlives the machine; run again to continue")]
pub struct Run {
    /// Folder that `kimage build` wrote
    #[arg(value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub directory: PathBuf,
    /// Size of the machine's disk, as 20G; units K, M, G, T are powers of 1024 [default: the image and 8G for its state]
    #[arg(long, value_name = "SIZE", value_parser = disk_size)]
    pub disk_size: Option<u64>,
    /// Disk file of the machine: made from the image where absent, taken as it is where not [default: a temporary one]
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub keep: Option<PathBuf>,
    /// What executes the machine's code; auto tries KVM first
    #[arg(long, value_name = "HOW", value_enum, default_value = "auto")]
    pub accel: Acceleration,
    /// Memory in MiB
    #[arg(long, value_name = "MIB", default_value_t = 2048, value_parser = clap::value_parser!(u32).range(256..))]
    pub memory: u32,
    /// Virtual processors
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=255))]
    pub cpus: u32,
}

/// What executes a machine's code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Acceleration {
    /// KVM where a machine boots with it, emulation elsewhere
    Auto,
    /// The processor itself
    Kvm,
    /// QEMU's emulation
    Tcg,
}

/// Bytes of `20G`.
fn disk_size(text: &str) -> Result<u64, String> {
    let (digits, shift) = match text.char_indices().last() {
        Some((at, 'K' | 'k')) => (&text[..at], 10),
        Some((at, 'M' | 'm')) => (&text[..at], 20),
        Some((at, 'G' | 'g')) => (&text[..at], 30),
        Some((at, 'T' | 't')) => (&text[..at], 40),
        _ => (text, 0),
    };
    let wrong = || format!("`{text}` is not a size such as 20G");
    let number: u64 = digits.parse().map_err(|_| wrong())?;
    let bytes = number.checked_mul(1 << shift).ok_or_else(wrong)?;
    // QEMU would round a raw file up to its sectors.
    if bytes % 512 == 0 {
        Ok(bytes)
    } else {
        Err(format!("`{text}` is not a multiple of 512 bytes"))
    }
}

/// `kimage explain`.
#[derive(Debug, Args)]
#[command(after_help = "\
The serial console of any platform will do, whole or in part, with whatever else is on it: `aws ec2 get-console-output`,
`openstack console log show`, `virsh console`, QEMU's -serial file:. The newest boot counts.

Exit codes: 0 the machine is in service; 1 it is not, and the last line says why; 2 the file can't be read.

Examples:
  kimage explain console.log
  aws ec2 get-console-output --latest --output text --instance-id i-0123 | kimage explain -
  kimage explain --json demo/machines/cp-1/console.log")]
pub struct Explain {
    /// The saved console; `-` is standard input
    #[arg(value_name = "CONSOLE_LOG", value_hint = ValueHint::FilePath)]
    pub console: PathBuf,
    /// Print JSON on standard output
    #[arg(long)]
    pub json: bool,
}

/// `kimage doctor`.
#[derive(Debug, Args)]
pub struct Doctor {
    /// Base image, whose mirrors are tried.
    #[command(flatten)]
    pub image: ImageArgument,
    /// Don't try to reach mirrors
    #[arg(long)]
    pub offline: bool,
    /// Print JSON on standard output
    #[arg(long)]
    pub json: bool,
}

/// `kimage completion`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  kimage completion bash > ~/.local/share/bash-completion/completions/kimage
  kimage completion zsh > ~/.zfunc/_kimage")]
pub struct Completion {
    /// The shell
    pub shell: clap_complete::Shell,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn formats_are_separated_by_commas() {
        let cli =
            Cli::try_parse_from(["kimage", "build", "--role", "worker", "--format", "raw,qcow2"]).unwrap();
        let Command::Build(build) = cli.command else {
            panic!("not a build")
        };
        assert_eq!(build.format, [DiskFormat::Raw, DiskFormat::Qcow2]);
    }

    #[test]
    fn sizes_have_binary_units() {
        assert_eq!(disk_size("20G"), Ok(20 << 30));
        assert_eq!(disk_size("1024"), Ok(1024));
        for wrong in ["", "G", "1.5G", "-1", "99999999999T", "1000", "5X", "ä"] {
            assert!(disk_size(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn global_options_stand_before_or_after_the_command() {
        for line in [
            ["kimage", "--store", "/s", "doctor"],
            ["kimage", "doctor", "--store", "/s"],
        ] {
            assert_eq!(
                Cli::try_parse_from(line).unwrap().global.store,
                Some(PathBuf::from("/s"))
            );
        }
        assert!(Cli::try_parse_from(["kimage", "-q", "-v", "doctor"]).is_err());
    }
}
