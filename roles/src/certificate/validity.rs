//! How long something holds, and when it has to be renewed.

use std::time::{Duration, SystemTime};

/// The time for which something holds, in seconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    /// It holds from here on.
    pub from: i64,
    /// It holds no more from here on.
    pub until: i64,
}

impl Validity {
    /// Whether it holds at `now`.
    pub fn holds(&self, now: SystemTime) -> bool {
        seconds(now).is_some_and(|now| self.from <= now && now < self.until)
    }

    /// Whether it has ended at `now`.
    pub fn is_over(&self, now: SystemTime) -> bool {
        seconds(now).is_some_and(|now| now >= self.until)
    }

    /// Whether it holds at `now` and two thirds of its life are not over. By a clock that was set back behind its
    /// beginning it is not young either: nobody else would believe it.
    pub fn is_young(&self, now: SystemTime) -> bool {
        seconds(now).is_some_and(|now| self.is_young_at(now))
    }

    /// How long it is young from `now` on; nothing if it is not.
    pub fn young_for(&self, now: SystemTime) -> Duration {
        let left = match seconds(now) {
            Some(now) if self.is_young_at(now) => self.renewal() - now,
            _ => 0,
        };
        Duration::from_secs(u64::try_from(left).unwrap_or(0))
    }

    fn is_young_at(&self, now: i64) -> bool {
        self.from <= now && now < self.renewal()
    }

    /// The end of its second third.
    fn renewal(&self) -> i64 {
        self.until
            .saturating_sub(self.until.saturating_sub(self.from) / 3)
    }
}

fn seconds(time: SystemTime) -> Option<i64> {
    let passed = time.duration_since(SystemTime::UNIX_EPOCH).ok()?;
    i64::try_from(passed.as_secs()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn it_is_young_for_two_thirds_of_its_life_by_any_clock() {
        let validity = Validity {
            from: 1000,
            until: 1300,
        };
        for (now, young, holds, over) in [
            (0, false, false, false),
            (999, false, false, false),
            (1000, true, true, false),
            (1199, true, true, false),
            (1200, false, true, false),
            (1299, false, true, false),
            (1300, false, false, true),
            (u64::from(u32::MAX), false, false, true),
        ] {
            let now = at(now);
            assert_eq!(
                (validity.is_young(now), validity.holds(now), validity.is_over(now)),
                (young, holds, over),
                "{now:?}"
            );
            assert_eq!(validity.young_for(now) > Duration::ZERO, young);
        }
        assert_eq!(validity.young_for(at(1150)), Duration::from_secs(50));
    }

    #[test]
    fn impossible_times_do_not_overflow() {
        let validity = Validity {
            from: i64::MIN,
            until: i64::MAX,
        };
        assert!(!validity.is_over(at(0)));
        let backwards = Validity {
            from: i64::MAX,
            until: i64::MIN,
        };
        assert!(!backwards.is_young(at(5)) && backwards.is_over(at(5)));
    }
}
