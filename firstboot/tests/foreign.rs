//! Everything inside a machine that reads bytes from outside, against hostile bytes. The bodies are those of the
//! fuzzers (`qemu-tests/fuzz/README.md`); here each runs over its seeds and a few hundred damaged copies of them.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "../../builder/tests/foreign/damage.rs"]
mod damage;
#[path = "foreign/targets.rs"]
mod targets;

#[test]
fn no_reader_panics_at_damaged_bytes() {
    damage::try_all(targets::TARGETS);
}
