//! The fuzzers' bodies. They lie in the crates' `tests/foreign`, where the ordinary test run has them too.

#![expect(clippy::unwrap_used, reason = "a broken promise ends a fuzzer")]

#[path = "../../../builder/tests/foreign/targets.rs"]
mod builder;
#[path = "../../../firstboot/tests/foreign/targets.rs"]
mod machine;

/// What the lists of bodies are made of; that of the ordinary test run makes inputs as well.
mod damage {
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

/// Writes good inputs of every body below `corpus`.
///
/// # Errors
/// A file can't be written.
pub fn write_seeds(corpus: &std::path::Path) -> std::io::Result<()> {
    for target in targets() {
        let folder = corpus.join(target.name);
        std::fs::create_dir_all(&folder)?;
        for (number, seed) in (target.seeds)().iter().enumerate() {
            std::fs::write(folder.join(format!("seed-{number}")), seed)?;
        }
    }
    Ok(())
}
