//! Damaged copies of good bytes, for the ordinary test run.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use proptest::prelude::{Strategy, any, prop};
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;

/// One reader: its name, the body that feeds it bytes and checks what must hold, and good bytes to start from.
pub(crate) struct Target {
    /// The fuzzer's name and that of its corpus folder.
    pub(crate) name: &'static str,
    /// Whether the reader takes the bytes; panics where a promise is broken.
    pub(crate) run: fn(&[u8]) -> bool,
    /// Bytes that the reader takes, or would if they had the signature that nobody can forge.
    pub(crate) seeds: fn() -> Vec<Vec<u8>>,
}

/// Damaged inputs for each reader at the most.
const CASES: usize = 300;
/// Readers that check a signature over everything: they take nothing that we can make.
const TAKE_NOTHING: [&str; 2] = ["inrelease", "efi_update"];

/// A change to an input; places are shares of its length.
#[derive(Debug, Clone)]
enum Damage {
    Set(prop::sample::Index, u8),
    Cut(prop::sample::Index),
    Insert(prop::sample::Index, Vec<u8>),
    Repeat(prop::sample::Index, u8),
}

fn damage() -> impl Strategy<Value = Vec<Damage>> {
    let place = any::<prop::sample::Index>;
    // The values at which lengths and signs turn, more often than chance has them.
    let value = prop::sample::select(vec![0, 1, 0x7f, 0x80, 0xff, b' ', b'\n', b'/', b'.', b'9']);
    let byte = prop::strategy::Union::new([any::<u8>().boxed(), value.boxed()]);
    let one = prop::strategy::Union::new_weighted(vec![
        (
            6,
            (place(), byte)
                .prop_map(|(at, byte)| Damage::Set(at, byte))
                .boxed(),
        ),
        (1, place().prop_map(Damage::Cut).boxed()),
        (
            1,
            (place(), prop::collection::vec(any::<u8>(), 1..9))
                .prop_map(|(at, bytes)| Damage::Insert(at, bytes))
                .boxed(),
        ),
        (
            1,
            (place(), any::<u8>())
                .prop_map(|(at, length)| Damage::Repeat(at, length))
                .boxed(),
        ),
    ]);
    prop::collection::vec(one, 1..6)
}

fn apply(bytes: &mut Vec<u8>, damage: &Damage) {
    let at = |index: &prop::sample::Index, bytes: &[u8]| index.index(bytes.len() + 1);
    match damage {
        Damage::Set(place, value) => {
            let at = at(place, bytes);
            if let Some(byte) = bytes.get_mut(at) {
                *byte = *value;
            }
        }
        Damage::Cut(place) => bytes.truncate(at(place, bytes)),
        Damage::Insert(place, more) => {
            let at = at(place, bytes);
            bytes.splice(at..at, more.iter().copied());
        }
        Damage::Repeat(place, length) => {
            let at = at(place, bytes);
            let end = bytes.len().min(at + usize::from(*length));
            let part = bytes[at..end].to_vec();
            bytes.splice(at..at, part);
        }
    }
}

/// Where the fuzzers keep inputs, this reader's in a folder of its name.
fn corpus(target: &Target) -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../qemu-tests/fuzz/corpus");
    folder.join(target.name)
}

/// Feeds every reader its seeds and damaged copies of them; all panics are reported together, each with its input.
pub(crate) fn try_all(targets: &[Target]) {
    let failures: Vec<String> = targets.iter().filter_map(try_one).collect();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

fn try_one(target: &Target) -> Option<String> {
    let run = |bytes: &[u8]| catch_unwind(AssertUnwindSafe(|| (target.run)(bytes)));
    let seeds = (target.seeds)();
    assert!(!seeds.is_empty(), "{} has no seeds", target.name);
    let report = |what: &str, bytes: &[u8]| Some(format!("{} {what} {}", target.name, bytes.escape_ascii()));
    for seed in &seeds {
        match run(seed) {
            Err(_) => return report("panics at", seed),
            Ok(taken) if taken == TAKE_NOTHING.contains(&target.name) => {
                return report("does not judge its seed as it should:", seed);
            }
            Ok(_) => {}
        }
    }
    // What fuzzers found stays tried.
    for entry in fs::read_dir(corpus(target)).unwrap() {
        let bytes = fs::read(entry.unwrap().path()).unwrap();
        if run(&bytes).is_err() {
            return report("panics at", &bytes);
        }
    }
    let mut runner = TestRunner::deterministic();
    let strategy = (0..seeds.len(), damage());
    for _ in 0..CASES {
        let (seed, changes) = strategy.new_tree(&mut runner).unwrap().current();
        let mut bytes = seeds[seed].clone();
        for change in &changes {
            apply(&mut bytes, change);
        }
        if run(&bytes).is_err() {
            return report("panics at", &bytes);
        }
    }
    None
}
