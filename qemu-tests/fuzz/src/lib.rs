//! The fuzzers' bodies. They lie in the crates' `tests/foreign`, where the ordinary test run has them too.

#![expect(clippy::unwrap_used, reason = "a broken promise ends a fuzzer")]

#[path = "../../builder/tests/foreign/targets.rs"]
mod builder;
#[path = "../../firstboot/tests/foreign/targets.rs"]
mod machine;

/// What the lists of bodies are made of; that of the ordinary test run makes inputs as well.
mod damage {
    #[expect(dead_code, reason = "only the ordinary test run makes the seeds")]
    pub(crate) struct Target {
        pub(crate) name: &'static str,
        pub(crate) run: fn(&[u8]) -> bool,
        pub(crate) seeds: fn() -> Vec<Vec<u8>>,
    }
}

fn targets() -> impl Iterator<Item = &'static damage::Target> {
    builder::TARGETS.iter().chain(machine::TARGETS)
}

/// Hands `data` to the body called `name`; whether its reader took them.
///
/// # Panics
/// Where a reader breaks a promise: that is what a fuzzer looks for.
pub fn run(name: &str, data: &[u8]) -> bool {
    let target = targets().find(|target| target.name == name);
    (target.unwrap().run)(data)
}
