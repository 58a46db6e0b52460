//! Objects that earlier versions made and later ones do without. Each goes once, with the version that has no more use for
//! it; whoever makes it again keeps it.

use serde_json::{Value, json};

use super::version::Version;

/// An object of earlier versions.
#[derive(Debug, Clone, Copy)]
pub struct Retired {
    /// The first version that doesn't have it.
    pub since: Version,
    /// `apiVersion`.
    pub version: &'static str,
    /// `kind`.
    pub kind: &'static str,
    /// Namespace, of an object that is in one.
    pub namespace: Option<&'static str>,
    /// Name.
    pub name: &'static str,
}

/// All of them.
pub const ALL: &[Retired] = &[];

impl Retired {
    /// As much of the object as its path and its name need.
    pub fn object(&self) -> Value {
        let mut object =
            json!({"apiVersion": self.version, "kind": self.kind, "metadata": {"name": self.name}});
        if let Some(namespace) = self.namespace {
            object["metadata"]["namespace"] = json!(namespace);
        }
        object
    }

    /// Whether it goes when a cluster comes from `before` to `after`.
    pub fn goes(&self, before: Option<Version>, after: Version) -> bool {
        before.is_none_or(|before| before < self.since) && self.since <= after
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_goes_with_the_step_over_its_version_and_no_other() {
        let version = |revision| Version {
            kubernetes: [1, 36, 3],
            revision,
        };
        let retired = Retired {
            since: version(2),
            version: "v1",
            kind: "ConfigMap",
            namespace: Some("kube-system"),
            name: "old",
        };
        let goes = |before, after| retired.goes(before, version(after));
        assert!(goes(None, 2) && goes(Some(version(1)), 2) && goes(Some(version(1)), 3));
        assert!(!goes(None, 1) && !goes(Some(version(2)), 2) && !goes(Some(version(2)), 3));
        assert_eq!(
            crate::kubernetes::object(&retired.object()).unwrap(),
            "/api/v1/namespaces/kube-system/configmaps/old"
        );
    }
}
