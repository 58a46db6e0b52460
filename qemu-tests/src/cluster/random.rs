//! A seed that is printed, and an order made from it.

/// Orders `items` by `KIMAGE_SEED`, or by a fresh seed, which is printed.
#[expect(clippy::print_stdout, reason = "without its seed a failure can't be repeated")]
pub(super) fn shuffle<T>(items: &mut [T]) {
    let mut state = match std::env::var("KIMAGE_SEED")
        .ok()
        .and_then(|text| text.parse().ok())
    {
        Some(seed) => seed,
        None => {
            use std::hash::{BuildHasher, RandomState};
            RandomState::new().hash_one(0)
        }
    };
    println!("KIMAGE_SEED={state}");
    for index in (1..items.len()).rev() {
        // xorshift64* (Vigna 2016).
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        let random = state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33;
        items.swap(index, usize::try_from(random).unwrap_or(0) % (index + 1));
    }
}
