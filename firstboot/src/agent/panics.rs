//! A panic of a chore is told like a failure of it: once, and with its place. The standard hook would write it to the
//! journal again and again.

use std::cell::RefCell;
use std::panic::{self, AssertUnwindSafe};

use crate::failure::Failure;

thread_local! {
    static LAST: RefCell<String> = const { RefCell::new(String::new()) };
}

/// From now on a panic is written down for [`caught`] in place of being printed.
pub(super) fn remember() {
    panic::set_hook(Box::new(|info| {
        LAST.with(|last| *last.borrow_mut() = info.to_string().replace('\n', " "));
    }));
}

/// What `work` answers; a panic becomes a failure. Whatever `work` was building when it panicked must be dropped by the
/// caller.
pub(super) fn caught<T>(work: impl FnOnce() -> Result<T, Failure>) -> Result<T, Failure> {
    panic::catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| {
        let text = LAST.with(|last| last.take());
        Err(Failure::internal(anyhow::anyhow!("a panic: {text}")))
    })
}
