//! Test-only: places between two steps of a message's way at which the process can be made to kill itself. Nothing at
//! all without the feature `crash-points`.
//!
//! With it the environment says where and when, in the syntax of the crate `fail`: `FAILPOINTS='durable=100*off->return'`
//! lets a hundred arrivals pass and kills at the next, as `kill -9` does.

/// A place, in the order in which a message comes by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CrashPoint {
    /// A SEND was read from a socket and is in a hub's queue.
    Received,
    /// A message is decided, and applied in memory.
    Decided,
    /// A batch was handed to the writer.
    Submitted,
    /// A batch is on disk, and its hub has not been told.
    Durable,
    /// The answer to an accepted message is written to its socket.
    Answered,
    /// An entry is written to a socket.
    Delivered,
    /// A batch that moves cursors is on disk, and its hub knows.
    CursorSaved,
    /// A receipt was handed to another hub or to a session's reactor.
    ReceiptHanded,
    /// An entry of the outbox was handed to another hub.
    OutboxHanded,
}

#[cfg(feature = "crash-points")]
mod armed {
    use std::collections::HashMap;

    use anyhow::{Context as _, bail};
    use rustix::process::{Signal, getpid, kill_process};

    use super::CrashPoint;

    impl CrashPoint {
        const ALL: [Self; 9] = [
            Self::Received,
            Self::Decided,
            Self::Submitted,
            Self::Durable,
            Self::Answered,
            Self::Delivered,
            Self::CursorSaved,
            Self::ReceiptHanded,
            Self::OutboxHanded,
        ];

        fn name(self) -> &'static str {
            match self {
                Self::Received => "received",
                Self::Decided => "decided",
                Self::Submitted => "submitted",
                Self::Durable => "durable",
                Self::Answered => "answered",
                Self::Delivered => "delivered",
                Self::CursorSaved => "cursor-saved",
                Self::ReceiptHanded => "receipt-handed",
                Self::OutboxHanded => "outbox-handed",
            }
        }
    }

    /// Takes what the environment says.
    ///
    /// # Errors
    /// It names a point that there is not, or says something else than what the crate `fail` understands.
    pub fn set_up() -> anyhow::Result<()> {
        let Ok(wanted) = std::env::var("FAILPOINTS") else { return Ok(()) };
        for one in wanted.split(';').filter(|one| !one.trim().is_empty()) {
            let (name, actions) = one.split_once('=').unwrap_or((one, ""));
            if !CrashPoint::ALL.iter().any(|point| point.name() == name.trim()) {
                let names = CrashPoint::ALL.map(CrashPoint::name).join(", ");
                bail!("FAILPOINTS names `{name}`, which is no crash point: choose of {names}");
            }
            fail::cfg(name.trim(), actions)
                .map_err(anyhow::Error::msg)
                .with_context(|| format!("FAILPOINTS says `{one}`: write NAME=N*off->return"))?;
        }
        Ok(())
    }

    /// Here the process ends at once, if it was told to.
    pub fn reached(point: CrashPoint) {
        fail::eval(point.name(), |_| {
            eprintln!("culver: crash point {} reached: killing this process", point.name());
            kill_process(getpid(), Signal::KILL).expect("a process may kill itself");
            loop {
                std::thread::park();
            }
        });
    }

    /// What a reactor has to write that is a crash point once it is written, by connection.
    #[derive(Default)]
    pub struct Unwritten(HashMap<u32, Vec<CrashPoint>>);

    impl Unwritten {
        /// This is among the unsent bytes of a connection.
        pub fn add(&mut self, slot: u32, point: CrashPoint) {
            self.0.entry(slot).or_default().push(point);
        }

        /// All that was unsent is written.
        pub fn written(&mut self, slot: u32) {
            self.0.remove(&slot).into_iter().flatten().for_each(reached);
        }

        /// The connection is gone.
        pub fn forget(&mut self, slot: u32) {
            self.0.remove(&slot);
        }
    }
}

#[cfg(not(feature = "crash-points"))]
mod armed {
    use super::CrashPoint;

    /// Does nothing: there is nothing to be told.
    ///
    /// # Errors
    /// None.
    pub const fn set_up() -> anyhow::Result<()> {
        Ok(())
    }

    /// Does nothing.
    #[inline(always)]
    pub const fn reached(_point: CrashPoint) {}

    /// Nothing.
    #[derive(Default)]
    pub struct Unwritten(());

    impl Unwritten {
        /// Does nothing.
        #[inline(always)]
        pub const fn add(&mut self, _slot: u32, _point: CrashPoint) {}

        /// Does nothing.
        #[inline(always)]
        pub const fn written(&mut self, _slot: u32) {}

        /// Does nothing.
        #[inline(always)]
        pub const fn forget(&mut self, _slot: u32) {}
    }
}

pub use armed::{Unwritten, reached, set_up};
