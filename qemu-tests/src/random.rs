//! Chance that can be had again: a seed, and what is made from it.

use std::time::Duration;

/// xorshift64* (Vigna 2016).
pub(crate) struct Random(u64);

impl Random {
    /// The same numbers for the same seed.
    pub(crate) fn seeded(seed: u64) -> Self {
        // From zero it would never get away.
        Self(seed.max(1))
    }

    /// Seeded with `KIMAGE_SEED` or afresh; prints the seed.
    #[expect(clippy::print_stdout, reason = "without its seed a failure can't be repeated")]
    pub(crate) fn announced() -> Self {
        use std::hash::{BuildHasher, RandomState};
        let wanted = std::env::var("KIMAGE_SEED").ok();
        let wanted = wanted.and_then(|text| text.parse().ok());
        let seed = wanted.unwrap_or_else(|| RandomState::new().hash_one(0));
        println!("KIMAGE_SEED={seed}");
        Self::seeded(seed)
    }

    fn next(&mut self) -> u32 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        // The upper half is the better one.
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32) as u32
    }

    /// Puts `items` into any order.
    pub(crate) fn shuffle<T>(&mut self, items: &mut [T]) {
        for index in (1..items.len()).rev() {
            items.swap(index, self.next() as usize % (index + 1));
        }
    }

    /// Evenly from nothing to `longest`.
    pub(crate) fn duration(&mut self, longest: Duration) -> Duration {
        longest.mul_f64(f64::from(self.next()) / f64::from(u32::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_fill_their_range_and_nothing_else() {
        let [longest, near] = [100, 5].map(Duration::from_millis);
        let mut random = Random::seeded(0);
        let durations: Vec<_> = (0..1000).map(|_| random.duration(longest)).collect();
        assert!(durations.iter().all(|duration| *duration <= longest));
        assert!(durations.iter().any(|duration| *duration < near));
        assert!(durations.iter().any(|duration| *duration > longest - near));
    }

    #[test]
    fn the_same_seed_makes_the_same_order_of_the_same_items() {
        let order = |seed| {
            let mut items: Vec<u32> = (0..20).collect();
            Random::seeded(seed).shuffle(&mut items);
            items
        };
        assert_eq!(order(5), order(5));
        assert_ne!(order(5), order(6));
        let mut items = order(5);
        items.sort_unstable();
        assert!(items.into_iter().eq(0..20));
    }
}
