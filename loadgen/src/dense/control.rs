//! What a run and its workers tell each other: wishes and counts as atomics, and a bell for each worker.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use culver_protocol::handshake::client::ServerKey;
use rustix::event::{EventfdFlags, eventfd};

use super::returned::Returned;

/// Faults kept in words: the first tell what the others are.
const FAULTS_MAX: usize = 8;

/// What all workers share.
#[derive(Debug, Default)]
pub(super) struct Shared {
    pub(super) holds_keep_alives: AtomicBool,
    /// Of the server's data, once a WELCOME has told it; 0: not yet.
    pub(super) incarnation: AtomicU64,
    pub(super) pace: Pace,
    /// How often all were to be dropped.
    drops: AtomicU64,
    /// When that is to be, the last time.
    drop_us: AtomicU64,
    server_key: Mutex<Option<ServerKey>>,
    errors: Mutex<BTreeMap<u32, u64>>,
    faults: Mutex<Vec<String>>,
}

impl Shared {
    /// The server's key, once a handshake has taught it.
    pub(super) fn server_key(&self) -> Option<ServerKey> {
        *lock(&self.server_key)
    }

    /// Whoever has learned the server's key tells all others; `None`: it is good no more.
    pub(super) fn set_server_key(&self, key: Option<ServerKey>) {
        *lock(&self.server_key) = key;
    }

    /// All are to be dropped at this time; rung for by the caller.
    pub(super) fn drop_at(&self, drop_us: u64) {
        self.drop_us.store(drop_us, Ordering::Relaxed);
        self.drops.fetch_add(1, Ordering::Release);
    }

    /// How often all were to be dropped, and when that is to be.
    pub(super) fn drops(&self) -> (u64, u64) {
        let drops = self.drops.load(Ordering::Acquire);
        (drops, self.drop_us.load(Ordering::Relaxed))
    }

    /// Counts an error that the server told.
    pub(super) fn note_error(&self, code: u32) {
        *lock(&self.errors).entry(code).or_default() += 1;
    }

    /// Keeps one of the first faults in words.
    pub(super) fn note_fault(&self, fault: impl FnOnce() -> String) {
        let mut faults = lock(&self.faults);
        if faults.len() < FAULTS_MAX {
            faults.push(fault());
        }
    }

    /// Keeps why a worker ended, in front of all other faults.
    pub(super) fn note_end(&self, why: String) {
        let mut faults = lock(&self.faults);
        faults.insert(0, why);
        faults.truncate(FAULTS_MAX);
    }

    pub(super) fn errors(&self) -> BTreeMap<u32, u64> {
        lock(&self.errors).clone()
    }

    pub(super) fn faults(&self) -> Vec<String> {
        lock(&self.faults).clone()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().expect("nobody panics while holding it")
}

/// One worker's wishes, counts and bell.
#[derive(Debug)]
pub(super) struct Post {
    /// Connections that it should have opened by now.
    pub(super) wanted: AtomicU64,
    /// It shall close them and end.
    pub(super) is_stopped: AtomicBool,
    pub(super) tally: Tally,
    /// Clients that are logged in now.
    pub(super) live: AtomicU64,
    /// How those came back who were gone, once somebody wants to know; locked by its worker alone but for a moment now
    /// and then.
    returned: Mutex<Option<Returned>>,
    pub(super) bell: OwnedFd,
}

impl Post {
    pub(super) fn new() -> io::Result<Self> {
        let bell = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?;
        Ok(Self {
            wanted: AtomicU64::new(0),
            is_stopped: AtomicBool::new(false),
            tally: Tally::default(),
            live: AtomicU64::new(0),
            returned: Mutex::default(),
            bell,
        })
    }

    /// How those came back who were gone.
    pub(super) fn returned(&self) -> std::sync::MutexGuard<'_, Option<Returned>> {
        lock(&self.returned)
    }

    /// Wakes the worker, which then looks at its wishes.
    pub(super) fn ring(&self) {
        // A bell that rings already need not be rung.
        rustix::io::write(&self.bell, &1_u64.to_ne_bytes()).ok();
    }
}

macro_rules! tally {
    ($($(#[doc = $doc:literal])* $name:ident;)*) => {
        /// One worker's counts, which it alone changes.
        #[derive(Debug, Default)]
        pub(super) struct Tally {
            $($(#[doc = $doc])* pub(super) $name: AtomicU64,)*
        }

        /// Counts over all workers.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
        pub(crate) struct Counts {
            $($(#[doc = $doc])* pub(crate) $name: u64,)*
        }

        impl Tally {
            pub(super) fn add_to(&self, counts: &mut Counts) {
                $(counts.$name = counts.$name.saturating_add(self.$name.load(Ordering::Relaxed));)*
            }
        }
    };
}

tally! {
    /// Logins that succeeded.
    logins;
    /// Of them, those by token.
    token_logins;
    /// Logins that were told to come again, for the server had too many at once.
    logins_busy;
    /// Tickets refused, which a token then stood in for.
    tickets_refused;
    /// Connections that could not be made or could not log in.
    login_failures;
    /// Connections that ended after they had been logged in.
    disconnects;
    /// Of them, those given up because nothing came for too long.
    silent;
    /// Connections begun, where clients come back.
    attempts;
    /// Attempts that were told that the server has no room.
    full;
    /// Attempts that nobody listened to.
    refused;
    /// Attempts that were reset before WELCOME.
    reset;
    /// Attempts that ended before WELCOME without a word.
    cut;
    /// Attempts that were given up, for nothing came.
    unanswered;
    /// Attempts that failed on this side.
    unopened;
    /// Connections left because all were dropped.
    dropped;
    /// Clients that were asked to leave, and come back.
    goaways;
    /// Clients that were gone and are back.
    returns;
    /// Messages of this run that came, each counted once.
    delivered;
    /// Messages that came again.
    duplicated;
    /// Messages that were somebody else's.
    strange;
    /// Messages that a later one overtook.
    overtaken;
    /// Messages whose content is not what was sent.
    damaged;
    /// Messages that an earlier run had left behind.
    older;
    /// Keep-alives sent.
    pings;
    /// Keep-alives answered.
    pongs;
    /// Keep-alives that are due and held back.
    pings_behind;
}

/// Adds to a count of one's own: nobody else changes it meanwhile. What the wire says may be any number.
pub(super) fn bump(count: &AtomicU64, by: u64) {
    count.store(count.load(Ordering::Relaxed).saturating_add(by), Ordering::Relaxed);
}

/// Takes from a count of one's own.
pub(super) fn lower(count: &AtomicU64, by: u64) {
    count.store(count.load(Ordering::Relaxed).saturating_sub(by), Ordering::Relaxed);
}

/// How fast connections may be opened, over all workers.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// Microseconds between two logins; 0: as fast as it goes.
    interval_us: AtomicU64,
    /// When the next may be begun.
    next_us: AtomicU64,
}

impl Pace {
    /// So many a second; `None`: as fast as it goes.
    pub(super) fn set_rate(&self, per_s: Option<f64>) {
        let interval_us = per_s.and_then(|per_s| std::time::Duration::try_from_secs_f64(1.0 / per_s).ok());
        self.interval_us
            .store(interval_us.map_or(0, |interval| crate::clock::micros(interval).max(1)), Ordering::Relaxed);
    }

    /// Whether one more may be begun now; otherwise when.
    pub(super) fn take(&self, now_us: u64) -> Result<(), u64> {
        let interval_us = self.interval_us.load(Ordering::Relaxed);
        if interval_us == 0 {
            return Ok(());
        }
        // What was not used for more than this is not made up for.
        let earliest_us = now_us.saturating_sub(BURST_US.max(interval_us));
        let taken = self.next_us.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |next_us| {
            (next_us <= now_us).then(|| next_us.max(earliest_us) + interval_us)
        });
        taken.map(drop)
    }
}

/// How much of a pause is made up for: about what a worker sleeps at once.
const BURST_US: u64 = 5000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pace_is_kept_over_pauses_and_between_takers() {
        let pace = Pace::default();
        assert!((0..1000).all(|_| pace.take(1).is_ok()), "without a rate nobody waits");
        pace.set_rate(Some(2000.0));
        let mut taken = 0;
        for now_us in (1_000_000..2_000_000).step_by(1000) {
            while pace.take(now_us).is_ok() {
                taken += 1;
            }
        }
        assert!((1990..=2015).contains(&taken), "{taken}");
        assert!(pace.take(2_000_000).is_ok());
        let later_us = 60_000_000;
        let burst = std::iter::repeat_with(|| pace.take(later_us)).take_while(Result::is_ok).count();
        assert!(burst <= 12, "{burst}");
        assert!(pace.take(later_us).is_err_and(|due_us| due_us > later_us));
    }
}
