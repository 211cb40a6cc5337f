//! A hub: the only writer of its shards' state, and of who is online there.
//!
//! Pure: [`Hub::handle_command`], [`Hub::handle_read`] and [`Hub::handle_durable`] take what happened, with the
//! time as an argument; [`Hub::next_batch`], [`Hub::take_released`] and [`Hub::next_read`] give what is to be
//! done. It never waits: not for a disk (cold state is asked of readers, and the command waits in [`parking`]), not
//! for a mailbox (a delivery that finds no room is read from the log later).
//!
//! **Nothing leaves before it is durable**: every effect belongs to the batch under construction when it was
//! decided, and is released when the write of that batch has returned.

pub mod command;
pub mod delivery;
pub mod directory;
pub mod driver;
pub mod effect;
pub mod mail;
pub mod parking;

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use culver_protocol::error::{ErrorClass, ErrorCode};
use culver_protocol::id::{ClientMessageId, ConversationId, InboxSeq, Incarnation};
use culver_storage::batch::{Batch, BatchNumber};
use culver_storage::command::{Decision, Load, Send, View};
use culver_storage::engine::Engine;
use culver_storage::error::EngineError;
use culver_storage::reader::{Read, ReadResult};
use culver_storage::record::Record;
use culver_storage::shard::Shards;
use culver_storage::topology::{HubId, Topology};

use self::command::{Address, Command, Credit, Device};
use self::delivery::Windows;
use self::directory::Directory;
use self::effect::{Effect, EffectKind};
use self::parking::{Parked, Parking};

/// Reads a hub may have under way: as many as the queue their results come back on holds.
pub const READS_OUTSTANDING_MAX: usize = 1024;
/// Rows of a batch under construction beyond which no command is taken until the one before is written.
pub const BATCH_BYTES_MAX: usize = 4 << 20;

/// What became of trying a command.
enum Tried {
    Done,
    Waits(Load),
}

/// A send that was refused with a retryable error and has not returned.
struct Rejected {
    conversation: ConversationId,
    client_message_id: ClientMessageId,
    arrival: u64,
}

/// Effects and other consequences that wait for a batch.
#[derive(Default)]
struct Consequences {
    effects: Vec<Effect>,
    /// Sessions for which an entry of the batch was not delivered live.
    skipped: Vec<u32>,
}

/// Counts for the metrics, since they were last taken.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    /// Messages accepted.
    pub accepted: u64,
    /// Messages found in dedup.
    pub duplicate: u64,
    /// Messages rejected.
    pub rejected: u64,
    /// Reads from the log, for delivery.
    pub log_reads: u64,
}

/// One hub.
pub struct Hub {
    engine: Arc<dyn Engine>,
    incarnation: Incarnation,
    topology: Arc<Topology>,
    hub: HubId,
    shards: Shards,
    directory: Directory,
    windows: Windows,
    parking: Parking,
    /// Commands that have arrived; each has its number.
    arrivals: u64,
    /// The first send of a conversation refused with a retryable error: until it returns, what follows it is refused.
    rejected: HashMap<Address, Vec<Rejected>>,
    building: Consequences,
    under_way: Option<(BatchNumber, Consequences)>,
    released: Vec<Effect>,
    /// Reads wanted, of which `next_read` gives out as many as may be under way. At most one a session and one a
    /// thing that parked commands wait for.
    reads: VecDeque<Read>,
    reads_outstanding: usize,
    /// The number of the last page asked for.
    read_number: u32,
    loads: HashSet<Load>,
    /// Sessions whose deliveries found no room: they read from the log when there is.
    hungry: Vec<u32>,
    /// An empty list kept for `deliver_live`.
    scratch: Vec<u32>,
    /// When the first cursor moved that is not written yet.
    cursors_since_ms: Option<u64>,
    counts: Counts,
}

/// Longest wait of a cursor for the batch that writes it: meanwhile further acknowledgements only move it on.
const CURSORS_WAIT_MS: u64 = 20;

impl Hub {
    /// A hub over recovered shards.
    #[must_use]
    pub fn new(
        engine: Arc<dyn Engine>,
        shards: Shards,
        incarnation: Incarnation,
        topology: Arc<Topology>,
        hub: HubId,
    ) -> Self {
        Self {
            engine,
            incarnation,
            topology,
            hub,
            shards,
            directory: Directory::default(),
            windows: Windows::default(),
            parking: Parking::default(),
            arrivals: 0,
            rejected: HashMap::new(),
            building: Consequences::default(),
            under_way: None,
            released: Vec::new(),
            reads: VecDeque::new(),
            reads_outstanding: 0,
            read_number: 0,
            loads: HashSet::new(),
            hungry: Vec::new(),
            scratch: Vec::new(),
            cursors_since_ms: None,
            counts: Counts::default(),
        }
    }

    /// Takes a command.
    ///
    /// # Errors
    /// The engine could not be read: nothing can be decided any more.
    pub fn handle_command(&mut self, command: Command, now_ms: u64) -> Result<(), EngineError> {
        self.arrivals += 1;
        self.handle_arrived(self.arrivals, command, now_ms)
    }

    /// Takes the result of a read.
    ///
    /// # Errors
    /// The engine could not be read.
    pub fn handle_read(&mut self, result: ReadResult) -> Result<(), EngineError> {
        self.reads_outstanding -= 1;
        match result {
            ReadResult::Loaded(loaded) => {
                self.loads.remove(&loaded.load());
                self.shards.loaded(loaded);
            }
            ReadResult::Inbox { tag, user, after, entries } => {
                self.counts.log_reads += 1;
                self.deliver_page(tag, user, after, entries);
            }
        }
        Ok(())
    }

    /// Tries the parked commands again, after reads have come back.
    ///
    /// # Errors
    /// The engine could not be read.
    pub fn retry_parked(&mut self, now_ms: u64) -> Result<(), EngineError> {
        for Parked { arrival, command, load } in self.parking.take() {
            let still_waits = load.is_some_and(|load| self.loads.contains(&load));
            if still_waits && !self.parking.holds_back(&command) {
                // Its read is under way: to decide again would find nothing new, and looks at cold state are dear.
                self.parking.park(Parked { arrival, command, load });
            } else {
                self.handle_arrived(arrival, command, now_ms)?;
            }
        }
        Ok(())
    }

    /// The batch under way is durable: what waited for it is released.
    ///
    /// # Panics
    /// If it is not the one under way.
    pub fn handle_durable(&mut self, number: BatchNumber) {
        let (under_way, consequences) = self.under_way.take().expect("only what is under way becomes durable");
        assert!(under_way == number, "one batch at a time");
        self.shards.durable(number);
        self.release(consequences);
    }

    /// The next batch to write, if one is due and none is under way. Its effects wait for `handle_durable`.
    pub fn next_batch(&mut self, now_ms: u64) -> Option<Batch> {
        if self.under_way.is_some() {
            return None;
        }
        if self.shards.is_batch_empty() {
            // Nothing to write, and nothing unwritten that these could depend on.
            let consequences = std::mem::take(&mut self.building);
            self.release(consequences);
            return None;
        }
        let cursors_due = self.cursors_since_ms.is_some_and(|since| now_ms.saturating_sub(since) >= CURSORS_WAIT_MS);
        let has_messages = self.shards.batch_has_messages();
        if !has_messages && !cursors_due && self.building.effects.is_empty() {
            return None;
        }
        let with_cursors = cursors_due || !has_messages;
        if with_cursors {
            self.cursors_since_ms = None;
        }
        let batch = self.shards.seal(self.engine.sequence_synced(), with_cursors);
        self.under_way = Some((batch.number(), std::mem::take(&mut self.building)));
        Some(batch)
    }

    /// Whether another command may be taken: the batch under construction has room.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.shards.batch_bytes() < BATCH_BYTES_MAX
    }

    /// Whether everything taken in has been answered.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.under_way.is_none()
            && self.building.effects.is_empty()
            && self.shards.is_batch_empty()
            && self.parking.is_empty()
            && self.released.is_empty()
    }

    /// Whether a batch is being written.
    #[must_use]
    pub fn is_writing(&self) -> bool {
        self.under_way.is_some()
    }

    /// Whether cursors wait for the batch that writes them.
    #[must_use]
    pub fn waits_for_company(&self) -> bool {
        self.cursors_since_ms.is_some()
    }

    /// Effects that may go out, in order. What finds no room comes back by [`Hub::handle_refused`].
    pub fn take_released(&mut self) -> Vec<Effect> {
        std::mem::take(&mut self.released)
    }

    /// The next read to be made, as long as not too many are under way.
    pub fn next_read(&mut self) -> Option<Read> {
        if self.reads_outstanding >= READS_OUTSTANDING_MAX {
            return None;
        }
        let read = self.reads.pop_front()?;
        self.reads_outstanding += 1;
        Some(read)
    }

    /// Counts since they were last taken.
    pub fn take_counts(&mut self) -> Counts {
        std::mem::take(&mut self.counts)
    }

    /// Sessions online.
    #[must_use]
    pub fn sessions(&self) -> usize {
        self.directory.len()
    }

    /// Commands that wait for a read.
    #[must_use]
    pub fn parked(&self) -> usize {
        self.parking.len()
    }

    fn release(&mut self, consequences: Consequences) {
        self.released.extend(consequences.effects);
        self.mark_behind(consequences.skipped);
    }

    fn handle_arrived(&mut self, arrival: u64, command: Command, now_ms: u64) -> Result<(), EngineError> {
        if self.parking.holds_back(&command) {
            self.park(Parked { arrival, command, load: None });
            return Ok(());
        }
        self.try_command(arrival, command, now_ms)
    }

    fn park(&mut self, parked: Parked) {
        if self.parking.has_room_for(&parked.command) {
            self.parking.park(parked);
        } else if let Command::Send { session, send } = parked.command {
            self.reject(session, parked.arrival, &send, ErrorCode::Busy);
        }
    }

    fn try_command(&mut self, arrival: u64, command: Command, now_ms: u64) -> Result<(), EngineError> {
        let tried = match &command {
            Command::Login { session, device, cursor, incarnation, credit } => {
                self.login(*session, *device, *cursor, *incarnation, *credit)?
            }
            Command::Send { session, send } => self.send(*session, arrival, send, now_ms)?,
            Command::Ack { session, device, through, credit } => {
                self.ack(*session, *device, *through, *credit, now_ms)?
            }
            Command::Resume { session, device, sent } => {
                if let Some(index) = self.directory.current(*device, *session) {
                    self.resume(index, *sent);
                }
                Tried::Done
            }
            Command::Close { session, device } => {
                self.close(*session, *device);
                Tried::Done
            }
        };
        if let Tried::Waits(load) = tried {
            self.park(Parked { arrival, command, load: Some(load) });
            self.request(load);
        }
        Ok(())
    }

    /// Asks the readers once for what several commands may wait for.
    fn request(&mut self, load: Load) {
        if self.loads.insert(load) {
            self.reads.push_back(Read::Load(load));
        }
    }

    fn login(
        &mut self,
        session: Address,
        device: Device,
        cursor: InboxSeq,
        incarnation: Incarnation,
        credit: Credit,
    ) -> Result<Tried, EngineError> {
        let known = match self.shards.user(&*self.engine, device.user, device.device)? {
            View::Known(view) => view,
            View::Waits(load) => return Ok(Tried::Waits(load)),
        };
        if let Some(older) = self.directory.find(device) {
            let older = self.remove_session(older);
            self.building.effects.push(Effect { session: older, kind: EffectKind::Replaced });
        }
        let stranger = incarnation != Incarnation(0) && incarnation != self.incarnation;
        let reset = cursor > known.head || (stranger && cursor > InboxSeq(0));
        // What the client has persisted by its own account need not come again.
        let start = if reset { known.cursor } else { known.cursor.max(cursor) };
        let index = self.directory.insert(device, session, start);
        let online = self.directory.get_mut(index).expect("just inserted");
        online.credit_entries = credit.entries;
        online.credit_bytes = credit.bytes;
        let kind = EffectKind::LoggedIn { cursor: start, reset };
        self.building.effects.push(Effect { session, kind });
        if start < known.head {
            // The newest may not be durable yet; what is not will be skipped as "missed" when it is.
            self.building.skipped.push(index);
        }
        Ok(Tried::Done)
    }

    fn send(&mut self, session: Address, arrival: u64, send: &Send, now_ms: u64) -> Result<Tried, EngineError> {
        let device = Device { user: send.sender, device: send.device };
        if self.directory.current(device, session).is_none() {
            self.reject(session, arrival, send, ErrorCode::Replaced);
            return Ok(Tried::Done);
        }
        if let Some(code) = self.after_rejected(session, arrival, send) {
            self.reject(session, arrival, send, code);
            return Ok(Tried::Done);
        }
        match self.shards.decide_send(&*self.engine, send, now_ms)? {
            Decision::Apply(record) => {
                self.shards.apply(&record);
                if let Record::Message(message) = &record {
                    self.counts.accepted += 1;
                    let accepted = message.accepted();
                    self.building.effects.push(Effect { session, kind: EffectKind::Accepted(accepted) });
                    self.deliver_live(message.recipient, &message.entry);
                }
            }
            Decision::Duplicate(accepted) => {
                self.counts.duplicate += 1;
                self.building.effects.push(Effect { session, kind: EffectKind::Accepted(accepted) });
            }
            Decision::Waits(load) => return Ok(Tried::Waits(load)),
            Decision::Reject(code) => self.reject(session, arrival, send, code),
            Decision::Unchanged => {}
        }
        Ok(Tried::Done)
    }

    /// Refuses what follows a send that was refused with a retryable error and has not come back. What came before
    /// it, and was parked meanwhile, does not follow it.
    fn after_rejected(&mut self, session: Address, arrival: u64, send: &Send) -> Option<ErrorCode> {
        if self.rejected.is_empty() {
            return None;
        }
        let rejected = self.rejected.get_mut(&session)?;
        let place = rejected.iter().position(|first| first.conversation == send.conversation)?;
        let first = rejected.get(place).expect("found above");
        if first.client_message_id != send.client_message_id {
            return (first.arrival < arrival).then_some(ErrorCode::AfterRejected);
        }
        rejected.remove(place);
        if rejected.is_empty() {
            self.rejected.remove(&session);
        }
        None
    }

    fn reject(&mut self, session: Address, arrival: u64, send: &Send, code: ErrorCode) {
        self.counts.rejected += 1;
        if code.class() == ErrorClass::RetryHere && code != ErrorCode::AfterRejected {
            let (conversation, client_message_id) = (send.conversation, send.client_message_id);
            let rejected = self.rejected.entry(session).or_default();
            let this = Rejected { conversation, client_message_id, arrival };
            match rejected.iter_mut().find(|first| first.conversation == conversation) {
                None => rejected.push(this),
                Some(first) if arrival < first.arrival => *first = this,
                Some(_) => {}
            }
        }
        let kind = EffectKind::Rejected { client_message_id: send.client_message_id, code };
        self.building.effects.push(Effect { session, kind });
    }

    fn ack(
        &mut self,
        session: Address,
        device: Device,
        through: InboxSeq,
        credit: Credit,
        now_ms: u64,
    ) -> Result<Tried, EngineError> {
        let Some(index) = self.directory.current(device, session) else {
            return Ok(Tried::Done);
        };
        if self.directory.get(index).is_none_or(|online| through > online.sent) {
            // Of what the client knew before it was told to forget: not of what is here under the same numbers.
            return Ok(Tried::Done);
        }
        match self.shards.decide_ack(&*self.engine, device.user, device.device, through, now_ms)? {
            Decision::Apply(record) => {
                self.shards.apply(&record);
                self.cursors_since_ms.get_or_insert(now_ms);
            }
            Decision::Waits(load) => return Ok(Tried::Waits(load)),
            // Sessions let nothing through that was not sent to them.
            Decision::Duplicate(_) | Decision::Unchanged | Decision::Reject(_) => {}
        }
        self.acknowledge(index, through, credit);
        Ok(Tried::Done)
    }

    fn close(&mut self, session: Address, device: Device) {
        if let Some(index) = self.directory.current(device, session) {
            self.remove_session(index);
        }
        self.rejected.remove(&session);
        self.building.effects.push(Effect { session, kind: EffectKind::Closed });
    }

    fn remove_session(&mut self, index: u32) -> Address {
        let online = self.directory.get_mut(index).expect("the caller found it");
        self.windows.release(online);
        self.directory.remove(index).expect("the caller found it").address()
    }
}

#[cfg(test)]
mod tests;
