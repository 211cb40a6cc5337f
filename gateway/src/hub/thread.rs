//! The thread of a hub: turns its [`Driver`] while there is something to do, and parks while there is not. Owns the
//! writer and the readers that the hub's work goes to.

use std::sync::{Arc, OnceLock};
use std::thread::{self, Thread};

use culver_storage::batch::Batch;
use culver_storage::error::EngineError;
use culver_storage::reader::{Read, Readers};
use culver_storage::writer::Writer;

use super::bounds::Bounds;
use super::driver::{Disk, Driver, Inbox};
use crate::clock::SystemClock;
use crate::crash_point::{self, CrashPoint};
use crate::metrics::Counters;

/// Wakes the thread of a hub. Before that runs it cannot sleep, and nobody needs to wake it.
#[derive(Clone, Default)]
pub struct Sleeper(Arc<OnceLock<Thread>>);

impl Sleeper {
    /// An inbox whose bell wakes this sleeper.
    #[must_use]
    pub fn inbox(&self, bounds: &Bounds) -> Inbox {
        let to_wake = Arc::clone(&self.0);
        Inbox::new(bounds.reads_outstanding, move || to_wake.get().into_iter().for_each(Thread::unpark))
    }
}

/// The writer and the readers, each with a thread or more.
pub struct Threads {
    /// The hub's writer.
    pub writer: Writer,
    /// The readers of its volume.
    pub readers: Arc<Readers>,
}

impl Disk for Threads {
    fn write(&mut self, batch: Batch) {
        self.writer.submit(batch);
        crash_point::reached(CrashPoint::Submitted);
    }

    fn read(&mut self, read: Read) {
        assert!(self.readers.submit(read).is_ok(), "the readers' queue holds all reads under way");
    }
}

/// Runs until told to stop and everything taken in is answered.
///
/// # Panics
/// If the hub runs twice.
pub fn run(mut driver: Driver, mut disk: Threads, sleeper: &Sleeper, counters: &Counters) {
    sleeper.0.set(thread::current()).expect("a hub has one thread");
    loop {
        match driver.turn(&SystemClock, &mut disk, counters) {
            Ok(true) => continue,
            Ok(false) => {}
            Err(error) => fail(&error),
        }
        if driver.is_finished() {
            return;
        }
        if let Some(wait) = driver.plan_sleep(&SystemClock) {
            thread::park_timeout(wait);
            driver.wake_up();
        }
    }
}

/// The store cannot be read: nothing can be decided any more, and going on could only do harm.
fn fail(error: &EngineError) -> ! {
    tracing::error!(%error, "the store cannot be read; ending at once, nothing unacknowledged was promised");
    std::process::abort();
}
