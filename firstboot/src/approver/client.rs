//! Certificates that make a kubelet a node. Kubernetes' own controller would approve a node's name for whoever holds a
//! bootstrap token; every worker does. So it is not bound to do that here ([`super::rivals`]), and this is the rule:
//!
//! - A node renews its own certificate, and nobody else does that.
//! - A token makes a node whose name nobody has: there is no Node of it.
//! - Where there is one, the token takes it over only when that is silent ([`super::presence`]). Nothing in a request tells
//!   which machine asks, so a name that lives is refused to everybody, the same machine included: one whose certificate
//!   has ended is silent itself.
//! - The name of a control plane is given to no token: those make their own certificates.
//!
//! A machine that takes over a name may have other addresses, so those of the old one are released.

use std::time::Instant;

use super::der::Asked;
use super::node_name::NodeName;
use super::presence::{Presence, QUIET, Watchman};
use super::request::{Object, Signer};
use super::reserved::Reserved;
use super::site::Site;
use super::verdict::Verdict;
use super::{NODES, same};
use crate::kubernetes::ApiError;

/// How the name of a user begins who has a bootstrap token, and the group of those that may make nodes.
const TOKEN_USER: &str = "system:bootstrap:";
const TOKENS: &str = crate::objects::NODE_TOKEN_GROUP;

/// Judges a request for [`Signer::Client`].
pub(super) fn judge(
    request: &Object,
    site: &dyn Site,
    reserved: &Reserved,
    watchman: &mut Watchman,
    now: Instant,
) -> Result<Verdict, ApiError> {
    let name = match read(request, reserved) {
        Ok(name) => name,
        Err(why) => return Ok(Verdict::Never(why)),
    };
    if request.user() == name.user() && request.is_by(NODES) {
        return Ok(Verdict::Approve(name, "the node renews its own certificate"));
    }
    if !request.user().starts_with(TOKEN_USER) || !request.is_by(TOKENS) {
        let why = format!("{:?} asks for the certificate of Node {name}", request.user());
        return Ok(Verdict::Never(why));
    }
    match by_token(site, reserved, &name, watchman, now)? {
        None => {
            for pin in site.pins_of(&name)? {
                site.release(&pin)?;
            }
            Ok(Verdict::Approve(
                name,
                "a bootstrap token makes a node of this name",
            ))
        }
        Some(why) => {
            let why = format!("a bootstrap token asks for the certificate of Node {name}, {why}");
            site.tell(&name, "NodeNameRefused", &why)?;
            Ok(Verdict::later(&name, QUIET, why))
        }
    }
}

/// Whose certificate is asked for.
fn read(request: &Object, reserved: &Reserved) -> Result<NodeName, String> {
    let Asked {
        common_name,
        organization,
        dns_names,
        addresses,
    } = request.asked(Signer::Client)?;
    let name = NodeName::of_user(&common_name)?;
    same(&name, &common_name, &organization)?;
    if !dns_names.is_empty() || !addresses.is_empty() {
        return Err("a client's certificate has no names and addresses".to_owned());
    }
    reserved.check_name(&name)?;
    Ok(name)
}

/// Why no token gets this name now.
fn by_token(
    site: &dyn Site,
    reserved: &Reserved,
    name: &NodeName,
    watchman: &mut Watchman,
    now: Instant,
) -> Result<Option<String>, ApiError> {
    let bound = site.pins_of(name)?;
    let node = site.node(name)?;
    let labelled = node.is_some_and(|node| node.is_control_plane);
    if labelled || reserved.is_control_plane(name) || bound.iter().any(|pin| pin.by_control_plane) {
        return Ok(Some(format!(
            "which is a control plane; if it is none any more: kubectl delete node {name}, and {}",
            super::pins::Pin::remedy(name)
        )));
    }
    Ok(match watchman.look(site, name, now)? {
        Presence::Absent | Presence::Silent => None,
        Presence::Fading => Some("whose kubelet may have fallen silent: it is watched".to_owned()),
        Presence::Alive => Some(format!(
            "which is alive; if its machine is gone: kubectl delete node {name}"
        )),
    })
}

#[cfg(test)]
mod tests;
