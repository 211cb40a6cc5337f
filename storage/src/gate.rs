//! The gate between a volume's writers and whoever needs all of them to stand still. Knows no batches and no disk.

use std::sync::Arc;

use parking_lot::{RwLock, RwLockReadGuard};

/// Every writer passes it once for each batch; who closes it waits until no writer is within a batch, and keeps all of
/// them out meanwhile.
///
/// The lock is fair: who wants to close it gets its turn before the writers that come later, and they get theirs
/// before it is closed again.
#[derive(Clone, Debug, Default)]
pub struct Gate(Arc<RwLock<()>>);

/// A writer is within a batch until this is dropped.
#[derive(Debug)]
pub struct Passage<'a>(#[expect(dead_code, reason = "held, never looked at")] RwLockReadGuard<'a, ()>);

impl Gate {
    /// Waits until the gate is open; it stays open until what is returned is dropped.
    #[must_use]
    pub fn pass(&self) -> Passage<'_> {
        Passage(self.0.read())
    }

    /// Does `work` while no writer is within a batch.
    pub fn hold<T>(&self, work: impl FnOnce() -> T) -> T {
        let _closed = self.0.write();
        work()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
    use std::thread;

    use super::*;

    const WRITERS: usize = 4;
    const HOLDS: usize = 200;

    /// Writers that never pause: each passes until all holds were made, and would hang if it missed an opening.
    #[test]
    fn nobody_commits_while_it_is_held_and_nobody_waits_for_ever() {
        let gate = Gate::default();
        let (within, commits, holds) = (AtomicUsize::new(0), AtomicU64::new(0), AtomicUsize::new(0));
        thread::scope(|scope| {
            for _ in 0..WRITERS {
                scope.spawn(|| {
                    while holds.load(Ordering::SeqCst) < HOLDS {
                        let _passage = gate.pass();
                        within.fetch_add(1, Ordering::SeqCst);
                        commits.fetch_add(1, Ordering::SeqCst);
                        within.fetch_sub(1, Ordering::SeqCst);
                    }
                });
            }
            for _ in 0..HOLDS {
                gate.hold(|| {
                    let before = commits.load(Ordering::SeqCst);
                    for _ in 0..100 {
                        assert_eq!(within.load(Ordering::SeqCst), 0, "a writer is within a batch");
                        thread::yield_now();
                    }
                    assert_eq!(commits.load(Ordering::SeqCst), before, "a batch was written meanwhile");
                });
                holds.fetch_add(1, Ordering::SeqCst);
            }
        });
        drop(gate.pass());
    }

    #[test]
    fn writers_pass_side_by_side() {
        let gate = Gate::default();
        let (one, other) = (gate.pass(), gate.pass());
        drop((one, other));
        assert_eq!(gate.hold(|| 7), 7);
    }
}
