//! Which table of file descriptors a thread uses. Never opens, closes or moves a descriptor.
//!
//! A thread may leave the process's table for one of its own (unshare(2), `CLONE_FILES`); from then on a number means
//! another file to it than to all others. What it opened, closed or wrote by a number of the shared table would hit a
//! stranger, and files of the storage engine most of all. So whoever leaves says so here, and whoever opens, closes or
//! uses descriptors of the shared table asks first.

use std::cell::Cell;
use std::sync::atomic::{AtomicU32, Ordering};

thread_local! {
    static CURRENT: Cell<Table> = const { Cell::new(Table::SHARED) };
}

/// The number of the next table that a thread has to itself.
static NEXT: AtomicU32 = AtomicU32::new(1);

/// A table of file descriptors, by number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Table(u32);

impl Table {
    /// The one that the process began with.
    pub const SHARED: Self = Self(0);

    /// The calling thread's.
    #[must_use]
    pub fn current() -> Self {
        CURRENT.get()
    }

    /// The calling thread has just left the shared table.
    ///
    /// # Panics
    /// If it had left before: nobody needs that.
    pub fn note_left() {
        assert!(Self::current() == Self::SHARED, "a thread leaves the shared table once");
        CURRENT.set(Self(NEXT.fetch_add(1, Ordering::Relaxed)));
    }

    /// The calling thread uses descriptors of this table.
    ///
    /// # Panics
    /// If it has another: its numbers mean other files.
    pub fn assert_current(self) {
        assert!(self == Self::current(), "a thread with a descriptor table of its own uses descriptors of another");
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn each_thread_that_leaves_has_a_table_of_its_own() {
        let leave = || {
            Table::SHARED.assert_current();
            Table::note_left();
            Table::current().assert_current();
            Table::current()
        };
        let (one, other) = (thread::spawn(leave), thread::spawn(leave));
        let (one, other) = (one.join().expect("no panic"), other.join().expect("no panic"));
        assert!(one != other && one != Table::SHARED && other != Table::SHARED);
        Table::SHARED.assert_current();
    }

    #[test]
    fn what_is_of_the_shared_table_is_not_for_a_thread_that_left_it() {
        let use_it = || {
            Table::note_left();
            Table::SHARED.assert_current();
        };
        assert!(thread::spawn(use_it).join().is_err());
    }
}
