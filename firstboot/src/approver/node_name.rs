//! Names of Nodes as they come from outside: in the name of a user, in a certificate.

use std::fmt;

use kimage_roles::node_config::is_dns_name;

/// How the name of a user begins who is a node (`k8s.io/component-helpers/node`).
const USER: &str = "system:node:";

/// The name of a Node: an RFC 1123 subdomain of 1 to 253 lower-case characters, as the API has it. So it can stand in a
/// URL, a selector and a message.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct NodeName(String);

impl NodeName {
    /// The node called `name`; `None` when that is no name of one.
    pub(super) fn parse(name: &str) -> Option<Self> {
        is_dns_name(name).then(|| Self(name.to_owned()))
    }

    /// The node that the user called `user` is.
    pub(super) fn of_user(user: &str) -> Result<Self, String> {
        let name = user.strip_prefix(USER).and_then(Self::parse);
        name.ok_or_else(|| format!("{user:?} is no node"))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The user that is this node.
    pub(super) fn user(&self) -> String {
        format!("{USER}{}", self.0)
    }
}

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_a_node_only_when_its_name_is_one() {
        assert_eq!(NodeName::of_user("system:node:w1.a").unwrap().as_str(), "w1.a");
        let long = "a".repeat(254);
        for name in [
            "",
            "a b",
            "w1?watch=true",
            "../x",
            "W1",
            "w1/status",
            "w1%2f",
            "-a",
            "a.",
            ".",
            "..",
            &long,
        ] {
            assert!(
                NodeName::of_user(&format!("system:node:{name}")).is_err(),
                "{name}"
            );
        }
        assert!(NodeName::of_user("w1").is_err() && NodeName::of_user("system:node").is_err());
    }
}
