//! How much of what a hub holds and does at once, and how often it looks after what nobody asks for.

use super::rates::Limits;
use crate::buckets::Limit;

/// The bounds of one hub. What they are by default is what a server runs with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Reads under way: as many results as the queue they come back on holds.
    pub reads_outstanding: usize,
    /// Rows of a batch under construction beyond which no command is taken until the one before is written.
    pub batch_bytes: usize,
    /// SENDs and RPCs that may wait before further ones are refused with `busy`.
    pub parked_sends: usize,
    /// Items of all streams that may wait.
    pub parked_arrivals: usize,
    /// Items of one stream that may wait, and so the most that are on their way.
    pub parked_of_stream: usize,
    /// Items of a stream read from the log at once.
    pub read_items: usize,
    /// Conversations of a session in which a send was refused and has not returned. Who goes on in more is no client
    /// that keeps an order: the first is forgotten.
    pub rejected: usize,
    /// Floors that are folded at once.
    pub folds: usize,
    /// Users that a sweep looks at in one read.
    pub sweep_users: usize,
    /// From the start to the first sweep.
    pub first_sweep_ms: u64,
    /// From one sweep to the next.
    pub sweep_interval_ms: u64,
    /// Commands taken from one reactor before the others have their turn.
    pub commands_a_turn: usize,
    /// Results of reads taken in one turn: a page of the log is as much work as a hundred messages.
    pub reads_a_turn: usize,
    /// Mail taken from one hub before the others have their turn.
    pub mail_a_turn: usize,
    /// How fast devices and users may send.
    pub sends: Limits,
    /// How often a user may log in, with all devices together.
    pub logins: Option<Limit>,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            reads_outstanding: 1024,
            batch_bytes: 4 << 20,
            parked_sends: 4096,
            parked_arrivals: 4096,
            parked_of_stream: 256,
            read_items: 128,
            rejected: 1024,
            folds: 128,
            sweep_users: 1024,
            first_sweep_ms: 60_000,
            sweep_interval_ms: 600_000,
            commands_a_turn: 512,
            reads_a_turn: 16,
            mail_a_turn: 512,
            sends: Limits::default(),
            logins: None,
        }
    }
}
