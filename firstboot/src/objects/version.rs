//! Which edition of the cluster's objects an image has.

use std::fmt;
use std::str::FromStr;

use anyhow::{Context, Error, Result, ensure};

/// What this image has. Whoever changes an object raises the revision; whoever changes Kubernetes its version.
pub const OWN: Version = Version {
    kubernetes: [1, 36, 3],
    revision: 1,
};

/// A version of the objects: `v1.36.3-kimage.1`. A newer one is greater.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// Major, minor and patch of the Kubernetes that the objects are for.
    pub kubernetes: [u32; 3],
    /// Counts the changes of objects, from 1 for each version of Kubernetes.
    pub revision: u32,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [major, minor, patch] = self.kubernetes;
        write!(f, "v{major}.{minor}.{patch}-kimage.{}", self.revision)
    }
}

impl FromStr for Version {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let read = || {
            let (kubernetes, revision) = text.strip_prefix('v')?.split_once("-kimage.")?;
            let numbers: Option<Vec<u32>> = kubernetes.split('.').map(|number| number.parse().ok()).collect();
            Some(Self {
                kubernetes: numbers?.try_into().ok()?,
                revision: revision.parse().ok()?,
            })
        };
        let version =
            read().with_context(|| format!("`{}` is no version of objects", text.escape_debug()))?;
        // One way to write each: `+1` and `01` are numbers to `parse`.
        ensure!(
            version.to_string() == text,
            "`{text}` is not how `{version}` is written"
        );
        Ok(version)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objects::KUBERNETES_VERSION;

    #[test]
    fn versions_are_compared_as_numbers_and_kubernetes_first() {
        let texts = [
            "v1.9.0-kimage.7",
            "v1.36.3-kimage.1",
            "v1.36.3-kimage.2",
            "v1.36.3-kimage.10",
            "v1.36.10-kimage.1",
        ];
        let versions: Vec<Version> = texts.iter().map(|text| text.parse().unwrap()).collect();
        assert!(versions.is_sorted());
        assert_eq!(
            versions.iter().map(ToString::to_string).collect::<Vec<_>>(),
            texts
        );
    }

    #[test]
    fn what_is_no_version_is_refused() {
        for text in [
            "",
            "v1.36.3",
            "1.36.3-kimage.1",
            "v1.36-kimage.1",
            "v1.36.3-kimage.01",
            "v1.36.3-kimage.+1",
            "v1.36.3-kimage.1\n",
            "v1.36.3-kimage.99999999999",
        ] {
            assert!(text.parse::<Version>().is_err(), "{text}");
        }
    }

    #[test]
    fn the_own_version_is_of_the_baked_kubernetes() {
        assert!(OWN.to_string().starts_with(&format!("{KUBERNETES_VERSION}-")));
    }
}
