//! The signed list of instances: who exists and who is gone, said by whoever makes the machines. kimage removes members
//! of etcd by this word only.
//!
//! The file is JSON: `{"list": "<base64 of the list's JSON>", "signature": "<base64 of Ed25519 over those JSON bytes>"}`.
//! An instance that is gone never comes back under the same id, so an old list can delay a removal but not cause one.

use serde::{Deserialize, Serialize};

/// Version of the format.
pub const SCHEMA: u32 = 1;
/// Most bytes that a signed list may have.
pub const MAX_INVENTORY: usize = 1 << 20;

/// What lies in the file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct SignedInventory {
    /// Base64 of the JSON of an [`InventoryList`].
    pub list: String,
    /// Base64 of the Ed25519 signature over the decoded bytes of `list`.
    pub signature: String,
}

/// The list itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct InventoryList {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Name of the cluster, so that a list of another cluster with the same key says nothing here.
    pub cluster: String,
    /// When the list was made (RFC 3339); for people.
    pub issued: String,
    /// What is known of instances. Of an instance that is not here nothing is known.
    pub instances: Vec<Instance>,
}

/// One instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Instance {
    /// Instance id as the platform gives it to the machine.
    pub id: String,
    /// Whether it exists.
    pub state: InstanceState,
}

/// Whether an instance exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum InstanceState {
    /// It exists, running or not.
    Present,
    /// It was deleted and never comes back.
    Gone,
}
