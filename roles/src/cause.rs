//! Why a machine is not in service: one code per cause, with what a person can do about it. The codes are a promise to
//! scripts and to `kimage explain`; new ones may come, none changes its meaning.

use serde::{Deserialize, Serialize};

macro_rules! causes {
    ($($(#[doc = $doc:literal])+ $variant:ident = $code:literal, $lasting:literal, $hint:literal;)+) => {
        /// A cause of failure.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
        pub enum Cause {
            $($(#[doc = $doc])+ #[serde(rename = $code)] $variant,)+
        }

        impl Cause {
            /// All causes.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The code: stable, kebab-case.
            pub fn code(self) -> &'static str {
                match self { $(Self::$variant => $code),+ }
            }

            /// The cause that has this code.
            pub fn from_code(code: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|cause| cause.code() == code)
            }

            /// Whether trying again on this machine can't help until a person (or a replacement) changes something.
            pub fn is_lasting(self) -> bool {
                match self { $(Self::$variant => $lasting),+ }
            }

            /// What a person can do.
            pub fn hint(self) -> &'static str {
                match self { $(Self::$variant => $hint),+ }
            }
        }
    };
}

causes! {
    /// The platform has no user-data for this machine.
    NoMetadata = "no-metadata", true,
        "give the machine a NodeConfig as user-data: `kimage cluster user-data --dir DIR --role ROLE` prints one";
    /// The metadata server doesn't answer in time.
    MetadataUnreachable = "metadata-unreachable", false,
        "check the machine's network and that the platform's metadata service answers there";
    /// The metadata server refuses (401, 403).
    MetadataDenied = "metadata-denied", false,
        "allow this machine to read its metadata (on EC2: enable IMDS, hop limit 1 is enough)";
    /// The metadata server has no such document (404).
    MetadataMissing = "metadata-missing", true,
        "attach user-data to the machine or to its launch template";
    /// The metadata server fails (5xx) or its answer makes no sense.
    MetadataBroken = "metadata-broken", false,
        "the platform's metadata service has a fault: see its own logs";
    /// Several disks offer metadata at first boot; nobody says which of them is the platform's.
    MetadataAmbiguous = "metadata-ambiguous", false,
        "detach all disks with the label cidata or config-2 but the platform's own, until the machine is in service";
    /// The disk that this machine got its metadata from at first boot is gone, or says it is another instance's.
    MetadataSourceGone = "metadata-source-gone", false,
        "attach that disk again where it was; for another instance use a fresh disk for the machine, too";
    /// The metadata server sends more than any NodeConfig may have.
    MetadataTooLarge = "metadata-too-large", true,
        "user-data must be a NodeConfig of at most 1 MiB";
    /// The NodeConfig is not valid.
    ConfigInvalid = "config-invalid", true,
        "mend the key that the message names; `kimage cluster user-data` writes valid documents";
    /// The NodeConfig is for another role.
    WrongRole = "wrong-role", true,
        "boot the image of the role that the NodeConfig names, or give this group its own NodeConfig";
    /// The NodeConfig differs from the one this machine was first booted with in something that can't change.
    ConfigChanged = "config-changed", true,
        "replace the machine: a change of cluster, role or network needs a fresh one";
    /// No certificate of the cluster matches the pinned hash.
    CaHashMismatch = "ca-hash-mismatch", true,
        "compare join.caCertHashes with `kimage cluster user-data`; if they are right, somebody else answers at the endpoint";
    /// The cluster has no signature made with the bootstrap token: it is unknown there, has expired, or is too new.
    TokenUnknown = "token-unknown", false,
        "see Secret kube-system/bootstrap-token-ID; `kimage cluster user-data --dir DIR --role worker` prints a token that the cluster knows";
    /// The cluster knows the bootstrap token's id but refuses its secret half.
    TokenRejected = "token-rejected", true,
        "make a new token: `kimage cluster user-data --dir DIR --role worker` on a cluster that knows it";
    /// The token says this is not the cluster that it is for.
    ForeignCluster = "foreign-cluster", true,
        "the load balancer leads to another cluster: check its backends and cluster.endpoint";
    /// Nobody answers at the endpoint.
    BalancerUnreachable = "balancer-unreachable", false,
        "check the load balancer, its backends' /readyz checks and the firewall between";
    /// The API server doesn't become ready.
    ApiServerNotReady = "apiserver-not-ready", false,
        "see the journal of kube-apiserver.service on a control plane: etcd and certificates first";
    /// The API server doesn't know this machine's own credential (401): it has expired, is damaged or is of another
    /// authority. The machine joins anew with what its NodeConfig holds.
    CredentialRefused = "credential-refused", false,
        "the machine joins anew by itself; if it can't, give it a NodeConfig with a token and caCertHashes of today: `kimage cluster user-data --dir DIR --role worker`";
    /// The endpoint's name can't be resolved.
    DnsFailed = "dns-failed", false,
        "check the machine's DNS servers (DHCP) and the name in cluster.endpoint";
    /// The clock is so wrong that certificates are not valid.
    ClockWrong = "clock-wrong", false,
        "let the machine reach a time server (NTP, UDP 123) or mend the hypervisor's clock";
    /// Another, living machine has this node's name.
    DuplicateNodeName = "duplicate-node-name", false,
        "give the machine its own host name, or delete the Node if its machine is gone";
    /// Another etcd cluster answers where ours should be.
    EtcdForeign = "etcd-foreign", true,
        "the address belongs to another etcd cluster: check etcd.formation";
    /// etcd has no quorum, or no member answers.
    EtcdUnavailable = "etcd-unavailable", false,
        "bring etcd members back; if they are lost, restore a backup: kimage never forms a second cluster by itself";
    /// Formation waits for other machines or for the record.
    EtcdForming = "etcd-forming", false,
        "check that all etcd machines run and reach each other on port 2380, and that the record's store answers";
    /// The machine's member has left etcd for good.
    EtcdLeft = "etcd-left", true,
        "nothing is wrong: `kimage-firstboot leave` was asked for; destroy the machine, or boot a fresh one in its place";
    /// The disk with etcd's data is full.
    EtcdDiskFull = "etcd-disk-full", false,
        "give the machine a larger disk; it grows at the next boot";
    /// The disk leaves too little for the state.
    StateTooSmall = "state-too-small", true,
        "give the machine a larger disk";
    /// Several disks hold the root and the state of this machine; the firmware's word doesn't tell them apart.
    DiskAmbiguous = "disk-ambiguous", true,
        "detach all of the named disks but the machine's own and start it again; distrust the volume that imitates it";
    /// The state on the disk belongs to another cluster.
    StateForeign = "state-foreign", true,
        "use a fresh disk, or the NodeConfig of the cluster that the disk belongs to";
    /// The kernel has no randomness yet.
    EntropyStarved = "entropy-starved", false,
        "give the machine a virtio-rng device or a CPU with RDRAND";
    /// A service of the machine doesn't start.
    UnitFailed = "unit-failed", false,
        "see the journal of the unit that the message names";
    /// The Node doesn't become Ready.
    NodeNotReady = "node-not-ready", false,
        "see the Node's conditions: mostly the pod network";
    /// A fault in kimage.
    Internal = "internal", false,
        "this is a bug in kimage: please report it with this console's text";
}

impl std::fmt::Display for Cause {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.code())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_cause_has_a_code_and_a_hint_of_its_own() {
        let codes: BTreeSet<&str> = Cause::ALL.iter().map(|cause| cause.code()).collect();
        let hints: BTreeSet<&str> = Cause::ALL.iter().map(|cause| cause.hint()).collect();
        assert_eq!((codes.len(), hints.len()), (Cause::ALL.len(), Cause::ALL.len()));
    }

    #[test]
    fn a_code_reads_back() {
        for cause in Cause::ALL {
            let json = serde_json::to_string(cause).unwrap();
            assert_eq!(json, format!("\"{}\"", cause.code()));
            assert_eq!(serde_json::from_str::<Cause>(&json).unwrap(), *cause);
            assert_eq!(Cause::from_code(cause.code()), Some(*cause));
        }
    }
}
