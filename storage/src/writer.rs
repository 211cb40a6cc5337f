//! The thread that makes batches durable: one write, one sync each. Never retries, never goes on after an error.

use std::sync::Arc;
use std::thread::{self, JoinHandle};

use crossbeam::channel::{self, Receiver, Sender};

use crate::batch::{Batch, BatchNumber};
use crate::engine::Engine;
use crate::error::EngineError;
use crate::gate::Gate;

/// The writer thread of one hub. Dropping it ends it, after what was submitted.
pub struct Writer {
    queue: Option<Sender<Batch>>,
    thread: Option<JoinHandle<()>>,
}

impl Writer {
    /// Starts the thread. `done` is called on it with the number of each batch, once that is durable, in order.
    ///
    /// # Panics
    /// If the system starts no thread.
    pub fn spawn(engine: Arc<dyn Engine>, done: Box<dyn Fn(BatchNumber) + Send>) -> Self {
        Self::spawn_behind(Gate::default(), engine, done)
    }

    /// Starts the thread, which passes this gate for each batch: it is closed before the write, or after `done`.
    ///
    /// # Panics
    /// If the system starts no thread.
    pub fn spawn_behind(gate: Gate, engine: Arc<dyn Engine>, done: Box<dyn Fn(BatchNumber) + Send>) -> Self {
        let (sender, receiver) = channel::bounded(1);
        let thread = thread::Builder::new()
            .name("writer".to_owned())
            .spawn(move || run(&gate, &*engine, &receiver, &*done))
            .expect("the system starts a few threads at startup");
        Self { queue: Some(sender), thread: Some(thread) }
    }

    /// Hands over a batch.
    ///
    /// # Panics
    /// If more than one batch was under way.
    pub fn submit(&self, batch: Batch) {
        let queue = self.queue.as_ref().expect("the queue is there until drop");
        assert!(queue.try_send(batch).is_ok(), "a hub keeps at most one batch under way");
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        drop(self.queue.take());
        if let Some(thread) = self.thread.take() {
            // A writer that failed has said why, and the process is ending.
            drop(thread.join());
        }
    }
}

fn run(gate: &Gate, engine: &dyn Engine, queue: &Receiver<Batch>, done: &dyn Fn(BatchNumber)) {
    for batch in queue {
        let _passage = gate.pass();
        if let Err(error) = commit(engine, &batch, done) {
            abort("writing the log", &error);
        }
    }
}

#[cfg(not(any(feature = "answer-before-write", feature = "answer-before-sync")))]
fn commit(engine: &dyn Engine, batch: &Batch, done: &dyn Fn(BatchNumber)) -> Result<(), EngineError> {
    engine.write(batch)?;
    done(batch.number());
    Ok(())
}

/// How long the wrong build leaves what it answered unwritten: on a fast disk the gap would be too short for a kill to
/// hit within a few rounds.
#[cfg(feature = "answer-before-write")]
const ANSWERED_UNWRITTEN: std::time::Duration = std::time::Duration::from_millis(20);

/// Test-only: wrong on purpose, so that the checks can be seen to fail.
#[cfg(feature = "answer-before-write")]
fn commit(engine: &dyn Engine, batch: &Batch, done: &dyn Fn(BatchNumber)) -> Result<(), EngineError> {
    done(batch.number());
    thread::sleep(ANSWERED_UNWRITTEN);
    engine.write(batch)
}

/// Test-only: wrong on purpose, so that the checks can be seen to fail.
#[cfg(all(feature = "answer-before-sync", not(feature = "answer-before-write")))]
fn commit(engine: &dyn Engine, batch: &Batch, done: &dyn Fn(BatchNumber)) -> Result<(), EngineError> {
    engine.write_unsynced(batch)?;
    done(batch.number());
    engine.sync()
}

/// Ends the process: after a failed write or sync nobody knows what is on disk, and the kernel may have dropped the
/// pages that a second attempt would report as written.
pub(crate) fn abort(action: &str, error: &EngineError) -> ! {
    eprintln!("culver: {action} failed: {error}");
    eprintln!(
        "culver: nothing more can be promised; ending now. What was acknowledged is on disk: mend the cause (a full or failing disk?) and start again."
    );
    std::process::abort()
}
