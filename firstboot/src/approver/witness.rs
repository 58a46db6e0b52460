//! The inventory's word about addresses. Where a list says which addresses a Node has, they are bound to it before its
//! request is judged, whoever had them, and it keeps no others: what the node says about itself then counts for nothing.
//! Where the inventory says nothing about a Node, the first certificate decides ([`super::serving`]).

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::node_name::NodeName;
use super::pins::Pin;
use super::site::Site;
use crate::inventory::Inventory;
use crate::kubernetes::ApiError;

/// How old a list may be. Thousands of kubelets may ask at once, and a moved machine's asks again.
const AGE: Duration = Duration::from_secs(15);
/// When one that couldn't be asked is asked again: it may take its time, and requests wait meanwhile.
const PAUSE: Duration = Duration::from_secs(60);

/// Asks the inventory now and then.
pub(super) struct Witness {
    inventory: Box<dyn Inventory>,
    /// What it said last.
    known: BTreeMap<String, BTreeSet<IpAddr>>,
    /// Why it can't be asked any more.
    silent: Option<String>,
    /// When it is asked again.
    again: Option<Instant>,
}

impl Witness {
    pub(super) fn new(inventory: Box<dyn Inventory>) -> Self {
        Self {
            inventory,
            known: BTreeMap::new(),
            silent: None,
            again: None,
        }
    }

    fn ask(&mut self, now: Instant) {
        match self.inventory.nodes() {
            Ok(nodes) => {
                (self.known, self.silent) = (nodes, None);
                self.again = Some(now + AGE);
            }
            Err(failure) => {
                self.silent = (!self.known.is_empty()).then(|| failure.to_string());
                self.again = Some(now + PAUSE);
            }
        }
    }

    /// Binds to `node` what the inventory says that it has. Answers why the node can have no certificate now.
    ///
    /// `asked` are the addresses that it asks for: none that the inventory gives to another node is its own.
    ///
    /// An inventory that can't be asked is none, unless it has said addresses to this process before: then they may be
    /// others by now, and a node gets what is bound to it already and nothing else.
    pub(super) fn bind(
        &mut self,
        node: &NodeName,
        asked: &[IpAddr],
        site: &dyn Site,
        now: Instant,
    ) -> Result<Option<String>, ApiError> {
        if self.again.is_none_or(|again| again <= now) {
            self.ask(now);
        }
        let is_anothers = |address: &&IpAddr| {
            let mut known = self.known.iter();
            known.any(|(other, theirs)| other != node.as_str() && theirs.contains(*address))
        };
        if let Some(address) = asked.iter().find(is_anothers) {
            return Ok(Some(format!(
                "Node {node} asks for {address}, which the inventory gives to another one"
            )));
        }
        if let Some(why) = &self.silent {
            if !site.pins_of(node)?.is_empty() {
                return Ok(None);
            }
            return Ok(Some(format!("nobody says where Node {node} is: {why}")));
        }
        let Some(addresses) = self.known.get(node.as_str()) else {
            return Ok(None);
        };
        if Pin::check_name(node).is_err() {
            // It is refused for good.
            return Ok(None);
        }
        for address in addresses {
            let old = site.pin(*address)?;
            let holder = old.as_ref().map_or("", |old| old.node.as_str());
            if holder == node.as_str() {
                continue;
            }
            let lives = |name| NodeName::parse(name).map_or(Ok(None), |name| site.node(&name));
            if old.as_ref().is_some_and(|old| old.by_control_plane) && lives(holder)?.is_some() {
                return Ok(Some(format!(
                    "the inventory says that {address} is Node {node}'s, and control plane {holder} that it is its own"
                )));
            }
            if !site.bind(&Pin::new(*address, node, false), old.as_ref())? {
                return Ok(Some(format!("another approver has just bound {address}")));
            }
        }
        for pin in site.pins_of(node)? {
            if !pin.by_control_plane && !addresses.contains(&pin.address) {
                site.release(&pin)?;
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::rc::Rc;

    use kimage_roles::cause::Cause;

    use super::*;
    use crate::approver::cluster::Fake;
    use crate::failure::Failure;
    use crate::inventory::{Claim, Standing};

    type Nodes = BTreeMap<String, BTreeSet<IpAddr>>;

    /// An inventory that a test speaks for; `None` can't be asked.
    #[derive(Clone, Default)]
    struct Word(Rc<RefCell<Option<Nodes>>>);

    impl Word {
        fn say(&self, nodes: &[(&str, &[&str])]) {
            let addresses = |list: &[&str]| list.iter().map(|text| text.parse().unwrap()).collect();
            let nodes = nodes
                .iter()
                .map(|(node, list)| ((*node).to_owned(), addresses(list)));
            *self.0.borrow_mut() = Some(nodes.collect());
        }
    }

    impl Inventory for Word {
        fn standing(&self, _claim: &Claim) -> Result<Standing, Failure> {
            Ok(Standing::Unknown)
        }

        fn nodes(&self) -> Result<Nodes, Failure> {
            let nodes = self.0.borrow().clone();
            nodes.ok_or_else(|| Failure::because(Cause::EtcdUnavailable, "no connection"))
        }
    }

    struct Bench {
        word: Word,
        witness: Witness,
        cluster: Fake,
        now: Instant,
    }

    impl Bench {
        fn new() -> Self {
            let word = Word::default();
            Self {
                witness: Witness::new(Box::new(word.clone())),
                word,
                cluster: Fake::default(),
                now: Instant::now(),
            }
        }

        fn bind(&mut self, node: &str) -> Option<String> {
            self.ask(node, "10.0.0.99")
        }

        fn ask(&mut self, node: &str, address: &str) -> Option<String> {
            self.now += PAUSE;
            let asked = [address.parse().unwrap()];
            self.witness
                .bind(&Fake::name(node), &asked, &self.cluster, self.now)
                .unwrap()
        }

        fn pin(&self, address: &str, node: &str, by_control_plane: bool) {
            let pin = Pin::new(address.parse().unwrap(), &Fake::name(node), by_control_plane);
            self.cluster.bind(&pin, None).unwrap();
        }
    }

    #[test]
    fn a_node_has_what_the_inventory_says_and_nothing_else_whoever_had_it() {
        let mut bench = Bench::new();
        bench.pin("10.0.0.9", "w1", false);
        bench.pin("10.0.0.7", "w2", false);
        bench.word.say(&[("w1", &["10.0.0.7", "10.0.0.8"])]);
        assert_eq!(bench.bind("w1"), None);
        for address in ["10.0.0.7", "10.0.0.8"] {
            assert_eq!(bench.cluster.holder(address).as_deref(), Some("w1"), "{address}");
        }
        assert_eq!(bench.cluster.holder("10.0.0.9"), None);
        // Of w2 it says nothing.
        assert_eq!(bench.bind("w2"), None);
        assert_eq!(bench.cluster.holder("10.0.0.7").as_deref(), Some("w1"));
    }

    #[test]
    fn a_control_planes_own_word_about_itself_is_not_overruled() {
        let mut bench = Bench::new();
        bench.pin("10.0.0.5", "cp1", true);
        bench.cluster.add("cp1", "True", &["10.0.0.5"]);
        bench.word.say(&[("w1", &["10.0.0.5"])]);
        let why = bench.bind("w1").unwrap();
        assert!(why.contains("control plane cp1"), "{why}");
        assert_eq!(bench.cluster.holder("10.0.0.5").as_deref(), Some("cp1"));
        bench.cluster.nodes.remove("cp1");
        assert_eq!(bench.bind("w1"), None, "nobody is there any more who says so");
        assert_eq!(bench.cluster.holder("10.0.0.5").as_deref(), Some("w1"));
    }

    #[test]
    fn an_address_that_the_inventory_gives_to_a_node_is_no_others_before_that_one_asks() {
        let mut bench = Bench::new();
        bench.word.say(&[("w9", &["10.0.0.9"])]);
        for node in ["w1", "evil"] {
            let why = bench.ask(node, "10.0.0.9").unwrap();
            assert!(why.contains("another"), "{why}");
        }
        assert_eq!(bench.ask("w9", "10.0.0.9"), None);
    }

    #[test]
    fn an_inventory_that_has_spoken_and_is_silent_now_lets_nobody_through() {
        let mut bench = Bench::new();
        assert_eq!(bench.bind("w1"), None, "it has never said anything");
        bench.word.say(&[("w2", &["10.0.0.8"])]);
        assert_eq!(bench.bind("w1"), None);
        *bench.word.0.borrow_mut() = None;
        let why = bench.bind("w1").unwrap();
        assert!(why.contains("no connection"), "{why}");
        bench.pin("10.0.0.7", "w1", false);
        assert_eq!(bench.bind("w1"), None, "what is bound to it stays its own");
    }
}
