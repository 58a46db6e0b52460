//! What maintainer scripts asked for and an ordinary user can't have on disk: owners, device nodes, capabilities.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::tree::TreePath;

/// The wanted owner of one inode, and what else it was meant to be.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Set where an empty file stands in for a device node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<Device>,
    /// Value of `security.capability`, revision 2 (no namespace's root id in it; `linux/capability.h`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capability: Option<Vec<u8>>,
}

impl Owner {
    /// Whether there is nothing to remember.
    pub fn is_plain(&self) -> bool {
        *self == Self::default()
    }
}

/// A device node that an empty file stands in for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// Block device, otherwise character device.
    pub block: bool,
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
}

/// Owners by path, only of paths that aren't simply root's.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Owners(BTreeMap<TreePath, Owner>);

impl Owners {
    /// The record of `path`; `None` means user 0, group 0 and nothing else.
    pub fn get(&self, path: &TreePath) -> Option<&Owner> {
        self.0.get(path)
    }

    /// Remembers `owner` for `path`.
    pub fn insert(&mut self, path: TreePath, owner: Owner) {
        if owner.is_plain() {
            self.0.remove(&path);
        } else {
            self.0.insert(path, owner);
        }
    }

    /// All records, sorted by path.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&TreePath, &Owner)> {
        self.0.iter()
    }

    /// The number of records.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether everything is simply root's.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Serialize for Owners {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        // Pairs, not a map: a path is bytes and JSON's keys are text.
        serializer.collect_seq(self.0.iter().map(|(path, owner)| (path.to_bytes(), owner)))
    }
}

impl<'de> Deserialize<'de> for Owners {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let pairs = Vec::<(Vec<u8>, Owner)>::deserialize(deserializer)?;
        let mut owners = Self::default();
        for (path, owner) in pairs {
            owners.insert(TreePath::parse(&path).map_err(serde::de::Error::custom)?, owner);
        }
        Ok(owners)
    }
}

/// Turns any revision of `security.capability` into revision 2, which names no user namespace. `None` when the
/// value is malformed.
pub(super) fn capability_v2(value: &[u8]) -> Option<Vec<u8>> {
    const REVISION_MASK: u32 = 0xff00_0000;
    const REVISION_2: u32 = 0x0200_0000;
    const REVISION_3: u32 = 0x0300_0000;
    let magic = u32::from_le_bytes(value.get(..4)?.try_into().ok()?);
    let kept = match (magic & REVISION_MASK, value.len()) {
        (REVISION_2, 20) => value,
        (REVISION_3, 24) => &value[..20],
        _ => return None,
    };
    let mut bytes = ((magic & !REVISION_MASK) | REVISION_2).to_le_bytes().to_vec();
    bytes.extend_from_slice(&kept[4..]);
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owners_survive_json_whatever_the_bytes_of_the_path() {
        let mut owners = Owners::default();
        let device = Some(Device {
            block: false,
            major: 1,
            minor: 3,
        });
        owners.insert(
            TreePath::parse(b"etc/sh\xffdow").unwrap(),
            Owner {
                gid: 42,
                ..Owner::default()
            },
        );
        owners.insert(
            TreePath::parse(b"dev/null").unwrap(),
            Owner {
                device,
                ..Owner::default()
            },
        );
        let text = serde_json::to_string(&owners).unwrap();
        assert_eq!(serde_json::from_str::<Owners>(&text).unwrap(), owners);
    }

    #[test]
    fn a_plain_owner_is_forgotten() {
        let mut owners = Owners::default();
        let path = TreePath::parse(b"etc/shadow").unwrap();
        owners.insert(
            path.clone(),
            Owner {
                gid: 42,
                ..Owner::default()
            },
        );
        owners.insert(path.clone(), Owner::default());
        assert!(owners.is_empty() && owners.get(&path).is_none());
    }

    #[test]
    fn a_namespaced_capability_loses_its_root_id() {
        let mut v3 = vec![1, 0, 0, 3];
        v3.extend_from_slice(&[0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        let mut v2 = v3.clone();
        v2[3] = 2;
        v3.extend_from_slice(&[0xe8, 3, 0, 0]);
        assert_eq!(capability_v2(&v3), Some(v2.clone()));
        assert_eq!(capability_v2(&v2), Some(v2.clone()));
        for bad in [&[][..], &v2[..19], &v3[..23], &[0; 20]] {
            assert_eq!(capability_v2(bad), None);
        }
    }
}
