//! What was made of the objects in a cluster: the ConfigMap `kube-system/kimage-objects`. With it every object is applied
//! once for a version, never by an older machine, and every bootstrap token is made once; what people change or delete
//! since is theirs. Without it a control plane makes whatever is missing, at its next boot.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result};
use ring::digest::{SHA256, digest};
use serde_json::{Value, json};

use super::version::Version;

/// Where the ConfigMap is.
pub const PATH: &str = "/api/v1/namespaces/kube-system/configmaps/kimage-objects";
/// Collection that it is in.
pub const COLLECTION: &str = "/api/v1/namespaces/kube-system/configmaps";
/// Mends a ConfigMap that can't be read, and lets everything be made anew that is missing.
pub const RESET: &str = "kubectl -n kube-system delete configmap kimage-objects";

/// Content of the ConfigMap.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Made {
    /// The newest version that was applied here; `None` before the first.
    pub version: Option<Version>,
    /// Objects that were applied, by [`name`], and what of them ([`fingerprint`]).
    pub objects: BTreeMap<String, String>,
    /// Ids of the bootstrap tokens that were made.
    pub tokens: BTreeSet<String>,
    /// What people own and kept, in words.
    pub kept: BTreeSet<String>,
}

impl Made {
    /// Reads the ConfigMap.
    pub fn read(object: &Value) -> Result<Self> {
        let text = |key: &str| object["data"][key].as_str();
        let list = |key: &str| text(key).unwrap_or_default().lines().map(str::to_owned).collect();
        let read = || {
            let version = text("version").context("it has no `version`")?;
            let objects = text("objects").context("it has no `objects`")?;
            anyhow::Ok(Self {
                version: Some(version.parse()?),
                objects: serde_json::from_str(objects).context("`objects` is no JSON of texts by name")?,
                tokens: list("tokens"),
                kept: list("kept"),
            })
        };
        read().with_context(|| format!("ConfigMap kube-system/kimage-objects can't be read; hint: `{RESET}`"))
    }

    /// Puts the content into the ConfigMap that was read, or a new one.
    pub fn write(&self, object: Option<Value>) -> Result<Value> {
        let lines =
            |texts: &BTreeSet<String>| texts.iter().map(|text| format!("{text}\n")).collect::<String>();
        let mut object =
            object.unwrap_or_else(|| super::config_map("kube-system", "kimage-objects", &json!({})));
        object["data"] = json!({
            "version": self.version.map(|version| version.to_string()),
            "objects": serde_json::to_string_pretty(&self.objects)?,
            "tokens": lines(&self.tokens),
            "kept": lines(&self.kept),
        });
        Ok(object)
    }

    /// Whether a machine that has objects of `own` is older than what was applied here.
    pub fn is_newer_than(&self, own: Version) -> bool {
        self.version.is_some_and(|version| version > own)
    }

    /// Whether `object` was applied like this already.
    pub fn has(&self, object: &Value) -> bool {
        self.objects.get(&name(object)) == Some(&fingerprint(object))
    }

    /// Whether some version of `object` was applied.
    pub fn knows(&self, object: &Value) -> bool {
        self.objects.contains_key(&name(object))
    }

    /// Notes that `object` was applied.
    pub fn note(&mut self, object: &Value) {
        self.objects.insert(name(object), fingerprint(object));
    }
}

/// Kind, namespace and name of an object: `ConfigMap kube-system/coredns`.
pub fn name(object: &Value) -> String {
    let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).unwrap_or("?");
    match object.pointer("/metadata/namespace") {
        Some(_) => format!(
            "{} {}/{}",
            text("/kind"),
            text("/metadata/namespace"),
            text("/metadata/name")
        ),
        None => format!("{} {}", text("/kind"), text("/metadata/name")),
    }
}

/// Stands for all that an object says. Never of a Secret: of a short one it would tell.
fn fingerprint(object: &Value) -> String {
    let digest = digest(&SHA256, object.to_string().as_bytes());
    let hex: String = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objects::version::OWN;

    fn made() -> Made {
        let mut made = Made {
            version: Some(OWN),
            tokens: ["abcdef".to_owned()].into(),
            kept: ["ConfigMap kube-system/coredns: .data.Corefile of kubectl-edit".to_owned()].into(),
            ..Made::default()
        };
        made.note(&json!({"kind": "Namespace", "metadata": {"name": "a"}}));
        made
    }

    #[test]
    fn what_was_made_reads_as_it_was_written() {
        let written = made().write(None).unwrap();
        assert_eq!(Made::read(&written).unwrap(), made());
        // What was read goes back where it came from: the server compares its version.
        let mut read = written.clone();
        read["metadata"]["resourceVersion"] = json!("7");
        let again = Made::default().write(Some(read)).unwrap();
        assert_eq!(again["metadata"]["resourceVersion"], "7");
    }

    #[test]
    fn a_config_map_that_says_something_else_is_refused_with_a_hint() {
        for data in [
            json!(null),
            json!({}),
            json!({"version": "v1.36.3-kimage.1"}),
            json!({"version": "newest", "objects": "{}"}),
            json!({"version": "v1.36.3-kimage.1", "objects": "[]"}),
        ] {
            let error = Made::read(&json!({ "data": data })).unwrap_err();
            assert!(format!("{error:#}").contains(RESET), "{error:#}");
        }
    }

    #[test]
    fn an_object_that_says_something_else_was_not_made_yet() {
        let made = made();
        let object = |name: &str, labels: Value| json!({"kind": "Namespace", "metadata": {"name": name, "labels": labels}});
        assert!(!made.has(&object("a", json!({}))) && made.knows(&object("a", json!({}))));
        assert!(!made.knows(&object("b", json!({}))));
        assert!(made.has(&json!({"metadata": {"name": "a"}, "kind": "Namespace"})));
    }
}
