//! Counters of the threads, read by the ops port. Each thread writes only its own block, so counting is cheap.

use std::sync::atomic::{AtomicU64, Ordering};

use crossbeam::utils::CachePadded;

macro_rules! counters {
    ($($(#[doc = $doc:literal])* $name:ident,)*) => {
        /// The counters of one thread.
        #[derive(Debug, Default)]
        pub struct Counters {
            $($(#[doc = $doc])* pub $name: Counter,)*
        }

        /// The counters of all threads, added up.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct Totals {
            $($(#[doc = $doc])* pub $name: u64,)*
        }

        impl Totals {
            fn add(&mut self, counters: &Counters) {
                $(self.$name = self.$name.wrapping_add(counters.$name.get());)*
            }
        }
    };
}

counters! {
    /// Open connections.
    connections,
    /// Logged-in sessions.
    sessions,
    /// Logins that succeeded.
    logins,
    /// Connections told to come later: more came than may of all.
    logins_shed,
    /// More came than may of their source.
    logins_shed_by_source,
    /// Logins told to come later: more came than may of their user.
    logins_limited,
    /// Connections for which there was no room.
    turned_away,
    /// How far places in time are given away to those told to come later, in milliseconds: set by each reactor.
    calendar_ms,
    /// Messages accepted.
    messages_accepted,
    /// Messages found in dedup.
    messages_duplicate,
    /// Messages rejected.
    messages_rejected,
    /// Of them, those that came too fast.
    sends_limited,
    /// Entries written to clients.
    entries_delivered,
    /// Acknowledgements taken from clients.
    acks,
    /// Batches made durable.
    batches,
    /// Errors told to clients.
    errors_sent,
    /// Clients asked to go.
    goaways,
    /// Commands that wait for a read.
    parked_commands,
    /// Reads from the log, for delivery.
    log_reads,
    /// Times a sleeping thread was woken by another.
    wakeups,
    /// Turns of an event loop.
    turns,
    /// Connections whose sockets have not taken all there is for them: set by each reactor.
    connections_blocked,
    /// Bytes that they have not taken: set by each reactor.
    unsent_bytes,
    /// Connections ended because they do not read.
    slow_readers,
    /// Connections ended because nothing was heard of them.
    keep_alive_timeouts,
    /// RECEIPTs written to clients.
    receipts_written,
    /// RPCs answered.
    rpcs,
    /// Items of streams that are durable and that their destinations have not taken: set by each hub.
    outbox_behind,
    /// Items pushed to other hubs, again and again those that were lost.
    outbox_pushed,
    /// Mail to other hubs that found no room.
    mail_refused,
    /// Floors of inboxes that rose.
    floors_moved,
    /// The hub's expiry clock, in milliseconds: set by each hub.
    expiry_clock_ms,
    /// 1 where expiry has stopped, for the machine's clock has jumped: set by each hub.
    expiry_stopped,
}

/// One number that one thread writes and any thread reads.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds to it.
    pub fn add(&self, count: u64) {
        // One writer: a plain load and store would do; relaxed arithmetic costs the same and cannot go wrong.
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    /// Takes from it.
    pub fn sub(&self, count: u64) {
        self.0.fetch_sub(count, Ordering::Relaxed);
    }

    /// Sets it.
    pub fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    /// Its value.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The counters of every thread: the reactors' first, then the hubs'.
#[derive(Debug, Default)]
pub struct Metrics {
    threads: Vec<CachePadded<Counters>>,
    reactors: usize,
}

impl Metrics {
    /// Blocks for so many threads.
    #[must_use]
    pub fn new(reactors: usize, hubs: usize) -> Self {
        Self { threads: (0..reactors + hubs).map(|_| CachePadded::default()).collect(), reactors }
    }

    /// The block of a reactor.
    ///
    /// # Panics
    /// If there are fewer.
    #[must_use]
    pub fn reactor(&self, index: usize) -> &Counters {
        assert!(index < self.reactors, "as many blocks as reactors");
        self.threads.get(index).expect("just compared")
    }

    /// The block of a hub.
    ///
    /// # Panics
    /// If there are fewer.
    #[must_use]
    pub fn hub(&self, index: usize) -> &Counters {
        self.threads.get(self.reactors + index).expect("as many blocks as hubs")
    }

    /// The expiry clock that is the furthest behind, in milliseconds since 1970.
    #[must_use]
    pub fn expiry_clock_ms(&self) -> u64 {
        self.threads.iter().skip(self.reactors).map(|hub| hub.expiry_clock_ms.get()).min().unwrap_or(0)
    }

    /// How far places in time are given away, in milliseconds: by the reactor that has given away most.
    #[must_use]
    pub fn calendar_ms(&self) -> u64 {
        self.of_reactors().map(|reactor| reactor.calendar_ms.get()).max().unwrap_or(0)
    }

    /// The fewest and the most connections that a reactor has.
    #[must_use]
    pub fn connections_of_reactors(&self) -> (u64, u64) {
        let counts = || self.of_reactors().map(|reactor| reactor.connections.get());
        (counts().min().unwrap_or(0), counts().max().unwrap_or(0))
    }

    fn of_reactors(&self) -> impl Iterator<Item = &Counters> {
        self.threads.iter().take(self.reactors).map(|counters| &**counters)
    }

    /// All blocks added up.
    #[must_use]
    pub fn totals(&self) -> Totals {
        let mut totals = Totals::default();
        for counters in &self.threads {
            totals.add(counters);
        }
        totals
    }
}
