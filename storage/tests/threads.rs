//! The writer and the readers, on the engine in memory.

use std::sync::Arc;
use std::sync::mpsc;

use culver_protocol::id::{DeviceId, InboxSeq, UserId};
use culver_storage::command::Load;
use culver_storage::engine::Engine;
use culver_storage::memory::MemoryEngine;
use culver_storage::reader::{Engines, Read, ReadResult, Readers};

/// The writer as it is, not as the test-only features make it.
#[cfg(not(any(feature = "answer-before-write", feature = "answer-before-sync")))]
mod writer {
    use std::process::Command;
    use std::sync::Arc;
    use std::sync::mpsc;

    use culver_storage::batch::{Batch, BatchNumber};
    use culver_storage::engine::{Engine, Family};
    use culver_storage::memory::{Loss, MemoryEngine, WriteFault};
    use culver_storage::writer::Writer;

    fn batch(number: u64) -> Batch {
        let mut batch = Batch::with_capacity(BatchNumber(number), 0);
        batch.put(Family::Meta, &number.to_be_bytes(), (b"value", b""));
        batch
    }

    #[test]
    fn a_batch_is_durable_before_it_is_told_and_they_come_in_order() {
        let engine = Arc::new(MemoryEngine::new());
        let (sender, told) = mpsc::channel();
        let seen = Arc::clone(&engine);
        let done = move |number| sender.send((number, seen.sequence_synced())).expect("the test waits for it");
        let writer = Writer::spawn(Arc::clone(&engine) as Arc<dyn Engine>, Box::new(done));
        for number in 1..100 {
            writer.submit(batch(number));
            assert_eq!(told.recv(), Ok((BatchNumber(number), number)));
        }
        engine.crash(&Loss::ALL);
        engine.reopen().expect("it opens again");
        assert_eq!(engine.sequence_synced(), 99);
    }

    /// Runs one of the tests below in a process of its own, and sees that it ends that process without being told.
    fn aborts(name: &str) {
        let test = std::env::current_exe().expect("this test has a file");
        let output = Command::new(test).args(["--exact", name, "--nocapture"]).env("CULVER_ABORT", "1").output();
        let output = output.expect("this test can be run again");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success(), "{said}");
        assert!(said.contains("writing the log failed") && said.contains("ending now"), "{said}");
        assert!(!String::from_utf8_lossy(&output.stdout).contains("TOLD"), "nothing of it is told");
    }

    fn write_with(fault: WriteFault) {
        let engine = Arc::new(MemoryEngine::new());
        engine.fail_next_write(fault);
        let writer = Writer::spawn(engine, Box::new(|_| println!("TOLD")));
        writer.submit(batch(1));
        drop(writer);
    }

    #[test]
    fn a_failed_write_ends_the_process() {
        match std::env::var_os("CULVER_ABORT") {
            Some(_) => write_with(WriteFault::Write),
            None => aborts("writer::a_failed_write_ends_the_process"),
        }
    }

    #[test]
    fn a_failed_sync_ends_the_process() {
        match std::env::var_os("CULVER_ABORT") {
            Some(_) => write_with(WriteFault::Sync),
            None => aborts("writer::a_failed_sync_ends_the_process"),
        }
    }
}

#[test]
fn readers_answer_what_was_asked() {
    let (sender, answers) = mpsc::channel();
    let engine: Arc<dyn Engine> = Arc::new(MemoryEngine::new());
    let done = Arc::new(move |result| sender.send(result).expect("the test waits for it"));
    let readers = Readers::spawn(Engines::single(engine, 64), 0, 2, 8, done);
    let user = UserId(5);
    assert_eq!(readers.submit(Read::Load(Load::User(user))), Ok(()));
    let Ok(ReadResult::Loaded(loaded)) = answers.recv() else { panic!("it was asked") };
    assert_eq!(loaded.load(), Load::User(user));
    let (after, skip_device) = (InboxSeq(3), DeviceId(1));
    let read = Read::Inbox { tag: 9, user, skip_device, after, entries_max: 1, bytes_max: 1 };
    assert_eq!(readers.submit(read), Ok(()));
    let expected = ReadResult::Inbox { tag: 9, user, after, entries: Vec::new(), through: after };
    assert_eq!(answers.recv(), Ok(expected));
}

#[test]
fn a_full_queue_gives_the_read_back() {
    let engine: Arc<dyn Engine> = Arc::new(MemoryEngine::new());
    let (gate, wait) = crossbeam::channel::bounded::<()>(0);
    // The gate is never opened, only taken away.
    let done = Arc::new(move |_| assert!(wait.recv().is_err()));
    let readers = Readers::spawn(Engines::single(engine, 64), 0, 1, 2, done);
    let refused = (0..10).map(|user| readers.submit(Read::Load(Load::User(UserId(user)))));
    let refused: Vec<_> = refused.filter_map(Result::err).collect();
    assert!(refused.len() >= 7 && refused.contains(&Read::Load(Load::User(UserId(9)))), "{refused:?}");
    drop(gate);
}
