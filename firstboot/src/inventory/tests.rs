use kimage_roles::inventory::{Instance, InstanceState, new_key};
use kimage_roles::secret::Secret;
use tempfile::TempDir;

use super::*;

/// A machine whose list lies in a file.
struct Machine {
    folder: TempDir,
    key: Secret,
    public_key: String,
    now: u64,
}

impl Machine {
    fn new() -> Self {
        let (key, public_key) = new_key().unwrap();
        Self {
            folder: tempfile::tempdir().unwrap(),
            key,
            public_key,
            now: seconds(SystemTime::now()),
        }
    }

    fn seen(&self) -> SeenLists {
        SeenLists::at(self.folder.path().join("seen.json"))
    }

    /// What a process that begins now has.
    fn inventory(&self) -> Signed {
        let path = self.folder.path().join("list.json");
        let source = Source::File(path.to_string_lossy().into_owned());
        Signed::new(source, "prod", &self.public_key, self.seen()).unwrap()
    }

    /// A complete list of `b`, issued so many seconds ago.
    fn publish(&self, cluster: &str, sequence: u64, age: u64) {
        let instance = |id: &str, state| Instance::new(id.to_owned(), state);
        let list = InstanceList {
            cluster: cluster.to_owned(),
            sequence,
            issued_at: self.now - age,
            expires_at: self.now - age + 24 * 3600,
            complete: true,
            instances: vec![
                instance("a", InstanceState::Terminated),
                instance("b", InstanceState::Running),
            ],
        };
        std::fs::write(
            self.folder.path().join("list.json"),
            list.sign(&self.key).unwrap(),
        )
        .unwrap();
    }

    fn claim(&self, instance: &str, age: u64) -> Claim {
        Claim {
            instance: instance.to_owned(),
            since: Some(self.now - age),
        }
    }
}

#[test]
fn a_signed_list_is_believed_word_for_word_and_no_foreign_one() {
    let machine = Machine::new();
    let inventory = machine.inventory();
    machine.publish("prod", 7, 0);
    let standings = ["a", "b", "c"].map(|id| inventory.standing(&machine.claim(id, 3600)).unwrap());
    assert_eq!(standings, [Standing::Gone, Standing::Present, Standing::Gone]);
    machine.publish("test", 8, 0);
    assert!(inventory.standing(&machine.claim("a", 3600)).is_err());
}

#[test]
fn a_list_from_before_an_instance_doesn_t_say_that_it_is_gone() {
    let machine = Machine::new();
    machine.publish("prod", 7, 600);
    let says = |age| machine.inventory().standing(&machine.claim("c", age)).unwrap();
    assert_eq!(says(3600), Standing::Gone);
    assert_eq!(says(600), Standing::Newer);
    assert_eq!(says(0), Standing::Newer);
    let undated = Claim {
        instance: "c".to_owned(),
        since: None,
    };
    assert_eq!(machine.inventory().standing(&undated).unwrap(), Standing::Newer);
}

#[test]
fn an_older_list_is_refused_by_the_next_process_too() {
    let machine = Machine::new();
    machine.publish("prod", 7, 60);
    let claim = machine.claim("c", 3600);
    assert_eq!(machine.inventory().standing(&claim).unwrap(), Standing::Gone);
    for (sequence, age) in [(6, 60), (6, 0), (7, 61), (8, 61)] {
        machine.publish("prod", sequence, age);
        let failure = machine.inventory().standing(&claim).unwrap_err();
        assert!(failure.message().contains("has been seen"), "{failure}");
    }
    // The same one again, or a newer one, is fine.
    machine.publish("prod", 7, 60);
    assert!(machine.inventory().standing(&claim).is_ok());
    machine.publish("prod", 8, 0);
    assert!(machine.inventory().standing(&claim).is_ok());
}

#[test]
fn nobody_is_gone_when_it_can_t_be_noted_which_list_was_seen() {
    let machine = Machine::new();
    machine.publish("prod", 7, 0);
    std::fs::create_dir(machine.folder.path().join("seen.json")).unwrap();
    assert!(machine.inventory().standing(&machine.claim("a", 3600)).is_err());
}

#[test]
fn a_key_of_another_kind_is_refused() {
    for text in ["", "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----"] {
        let seen = Machine::new().seen();
        assert!(Signed::new(Source::File(String::new()), "prod", text, seen).is_err());
    }
}

#[test]
fn whoever_is_not_on_a_fixed_list_is_gone_if_it_was_there_before_the_list() {
    let machine = Machine::new();
    let fixed = |ids: &[&str]| {
        let ids = ids.iter().map(|id| (*id).to_owned()).collect();
        Fixed::new(ids, "b", machine.seen())
    };
    let says = |list: &Fixed, id, age| list.standing(&machine.claim(id, age));
    let list = fixed(&["a", "b"]);
    assert_eq!(says(&list, "a", 3600).unwrap(), Standing::Present);
    assert_eq!(says(&list, "c", 3600).unwrap(), Standing::Gone);
    assert_eq!(says(&list, "c", 0).unwrap(), Standing::Newer);
    // That it was read first today is remembered: tomorrow it says no more.
    let since = Some(machine.now + 24 * 3600);
    let tomorrow = Claim {
        instance: "c".to_owned(),
        since,
    };
    assert_eq!(fixed(&["b", "a"]).standing(&tomorrow).unwrap(), Standing::Newer);
    // One that doesn't name its reader was written before.
    assert!(says(&fixed(&["a"]), "c", 3600).is_err());
    assert_eq!(
        Nobody.standing(&machine.claim("b", 3600)).unwrap(),
        Standing::Unknown
    );
}
