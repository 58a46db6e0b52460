//! When to try again: full jitter between nothing and a bound that doubles from 1 s to 30 s, so that a thousand machines
//! that failed together don't return together.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

const FIRST: Duration = Duration::from_secs(1);
const LAST: Duration = Duration::from_secs(30);

/// The waits of one endeavour.
#[derive(Debug)]
pub struct Backoff {
    bound: Duration,
    state: u64,
}

impl Backoff {
    /// Waits that differ from machine to machine by `seed`.
    pub fn new(seed: u64) -> Self {
        Self {
            bound: FIRST,
            state: seed,
        }
    }

    /// Waits that nobody can foretell.
    pub fn seeded() -> Self {
        // The standard library's hasher has a random key, and gets one without blocking when the kernel has none yet.
        Self::new(RandomState::new().hash_one(0))
    }

    /// How long to wait before the next try.
    pub fn next_wait(&mut self) -> Duration {
        let bound = self.bound;
        self.bound = (bound * 2).min(LAST);
        // SplitMix64 (Steele, Lea, Flood 2014): good enough to spread waits.
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        let share = (z >> 11) as f64 / (1u64 << 53) as f64;
        bound.mul_f64(share)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_stay_below_a_bound_that_doubles_to_half_a_minute() {
        let mut backoff = Backoff::new(7);
        for bound in [1, 2, 4, 8, 16, 30, 30, 30] {
            assert!(backoff.next_wait() <= Duration::from_secs(bound));
        }
    }

    #[test]
    fn machines_do_not_wait_alike() {
        let waits = |seed| {
            let mut backoff = Backoff::new(seed);
            (0..5).map(|_| backoff.next_wait()).collect::<Vec<_>>()
        };
        assert_ne!(waits(1), waits(2));
        assert_eq!(waits(1), waits(1));
    }
}
