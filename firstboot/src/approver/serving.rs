//! Certificates that kubelets serve with. A node may have its own name and addresses in one, and an address is its own
//! when somebody else than the node is a witness: the inventory ([`super::witness`]), the binding of its first certificate
//! ([`super::pins`]), or a control plane's own agent.
//!
//! The first time there is no witness but this: nobody else has the address, nobody else says that it has it, and it is
//! none of those that make somebody the API, a Service or a pod ([`Reserved`]). Whoever can do that holds a bootstrap token
//! that is valid, and could make a new node with it.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::der::Asked;
use super::node_name::NodeName;
use super::pins::Pin;
use super::presence::{Presence, QUIET, Watchman};
use super::request::{Object, Signer};
use super::reserved::Reserved;
use super::site::{Node, Site};
use super::verdict::Verdict;
use super::{NODES, same};
use crate::kubernetes::ApiError;

/// No machine of a cluster has more addresses: two families, inside and outside.
const MAX_ADDRESSES: usize = 4;
/// A kubelet that has just asked makes its Node, and says where it is, within so long.
const SHORTLY: Duration = Duration::from_secs(2);

/// Judges a request for [`Signer::Serving`].
pub(super) fn judge(
    request: &Object,
    site: &dyn Site,
    reserved: &Reserved,
    watchman: &mut Watchman,
    now: Instant,
) -> Result<Verdict, ApiError> {
    let (name, addresses) = match read(request, reserved) {
        Ok(read) => read,
        Err(why) => return Ok(Verdict::Never(why)),
    };
    let Some(node) = site.node(&name)? else {
        return Ok(Verdict::later(&name, SHORTLY, format!("there is no Node {name}")));
    };
    // The label is an administrator's word: a control plane may be the endpoint itself.
    let the_apis = |address: &&IpAddr| reserved.is_the_apis(**address) && !node.is_control_plane;
    if let Some(address) = addresses.iter().find(the_apis) {
        return Ok(Verdict::Never(format!(
            "Node {name} asks for {address}, which is the API's"
        )));
    }
    let bound = site.pins_of(&name)?;
    let strange: Vec<IpAddr> = addresses
        .iter()
        .filter(|address| bound.iter().all(|pin| pin.address != **address))
        .copied()
        .collect();
    if !bound.is_empty() && !strange.is_empty() {
        return changed(site, &name, &bound, &strange);
    }
    if let Some(address) = strange.iter().find(|address| !node.addresses.contains(address)) {
        return Ok(Verdict::later(
            &name,
            SHORTLY,
            format!("Node {name} has no address {address}"),
        ));
    }
    if let Some(why) = first(site, &name, &node, &strange, watchman, now)? {
        return Ok(Verdict::later(&name, QUIET, why));
    }
    Ok(Verdict::Approve(
        name,
        "the node asks for its own name and addresses",
    ))
}

/// Who asks for which addresses.
fn read(request: &Object, reserved: &Reserved) -> Result<(NodeName, BTreeSet<IpAddr>), String> {
    let name = NodeName::of_user(request.user())?;
    if !request.is_by(NODES) {
        return Err(format!("{:?} is not in {NODES}", request.user()));
    }
    let Asked {
        common_name,
        organization,
        dns_names,
        addresses,
    } = request.asked(Signer::Serving)?;
    same(&name, &common_name, &organization)?;
    if let Some(other) = dns_names.iter().find(|other| *other != name.as_str()) {
        return Err(format!(
            "Node {name} asks for the name {other:?}, and may have its own only"
        ));
    }
    if dns_names.is_empty() && addresses.is_empty() {
        return Err("it asks for no name".to_owned());
    }
    reserved.check_name(&name)?;
    Pin::check_name(&name)?;
    let addresses: BTreeSet<IpAddr> = addresses.into_iter().collect();
    addresses
        .iter()
        .try_for_each(|address| reserved.check_address(*address))?;
    if addresses.len() > MAX_ADDRESSES {
        return Err(format!("Node {name} asks for {} addresses", addresses.len()));
    }
    Ok((name, addresses))
}

/// A node that has its addresses asks for others. Its own word is not enough for that.
fn changed(site: &dyn Site, name: &NodeName, bound: &[Pin], strange: &[IpAddr]) -> Result<Verdict, ApiError> {
    let bound: Vec<IpAddr> = bound.iter().map(|pin| pin.address).collect();
    let why = format!(
        "Node {name} has addresses {bound:?} and asks for a certificate for {strange:?}; if its machine has moved, let the \
         inventory say so, or let it through: {}",
        Pin::remedy(name)
    );
    site.tell(name, "AddressRefused", &why)?;
    Ok(Verdict::later(name, QUIET, why))
}

/// Binds `addresses`, which nobody has bound to the node before, or says why not.
fn first(
    site: &dyn Site,
    name: &NodeName,
    node: &Node,
    addresses: &[IpAddr],
    watchman: &mut Watchman,
    now: Instant,
) -> Result<Option<String>, ApiError> {
    if addresses.is_empty() {
        return Ok(None);
    }
    if let Some(why) = is_the_apis(site, node, addresses)? {
        return Ok(Some(format!("Node {name} asks for {why}")));
    }
    for (other, address) in site.claims(addresses, name)? {
        if let Some(why) = contest(site, &other, address, watchman, now)? {
            return Ok(Some(format!("Node {name} asks for {address}, {why}")));
        }
    }
    for address in addresses {
        let old = site.pin(*address)?;
        if let Some(old) = old
            .as_ref()
            .filter(|old| !old.node.is_empty() && old.node != name.as_str())
            && let Some(why) = keeps(site, old, watchman, now)?
        {
            return Ok(Some(format!("Node {name} asks for {address}, {why}")));
        }
        if !site.bind(&Pin::new(*address, name, false), old.as_ref())? {
            return Ok(Some(format!("another approver has just bound {address}")));
        }
    }
    Ok(None)
}

/// Which of `addresses` is the API's or a Service's. A Node that is labelled as a control plane has an API server.
fn is_the_apis(site: &dyn Site, node: &Node, addresses: &[IpAddr]) -> Result<Option<String>, ApiError> {
    let servers = site.api_addresses()?;
    let ranges = site.service_ranges()?;
    for address in addresses {
        if servers.contains(address) && !node.is_control_plane {
            return Ok(Some(format!("{address}, where an API server is reached")));
        }
        if let Some(range) = ranges.iter().find(|range| range.contains(*address)) {
            return Ok(Some(format!(
                "{address}, which is in the range of Services {range}"
            )));
        }
    }
    Ok(None)
}

/// Why the word of the Node called `other`, that `address` is its own, counts. It doesn't when other addresses are bound
/// to it, or when it is gone.
fn contest(
    site: &dyn Site,
    other: &str,
    address: IpAddr,
    watchman: &mut Watchman,
    now: Instant,
) -> Result<Option<String>, ApiError> {
    let Some(other) = NodeName::parse(other) else {
        return Ok(None);
    };
    let bound = site.pins_of(&other)?;
    if !bound.is_empty() && bound.iter().all(|pin| pin.address != address) {
        return Ok(None);
    }
    let presence = watchman.look(site, &other, now)?;
    Ok((!presence.is_over()).then(|| format!("which Node {other} calls its own, too")))
}

/// Why the node that has an address keeps it.
fn keeps(
    site: &dyn Site,
    pin: &Pin,
    watchman: &mut Watchman,
    now: Instant,
) -> Result<Option<String>, ApiError> {
    let why = || Some(format!("which is bound to Node {}", pin.node));
    let Some(holder) = NodeName::parse(&pin.node) else {
        return Ok(None);
    };
    Ok(match watchman.look(site, &holder, now)? {
        Presence::Absent => None,
        // A silent control plane's address is still one that clients of the API trust.
        Presence::Silent if !pin.by_control_plane => None,
        _ => why(),
    })
}

#[cfg(test)]
mod tests;
