//! A hub: the only writer of its shards' state, and of who is online there.
//!
//! Pure: [`Hub::handle_command`], [`Hub::handle_mail`], [`Hub::handle_read`], [`Hub::handle_durable`] and
//! [`Hub::keep_up`] take what happened, with the time as an argument; [`Hub::next_batch`], [`Hub::take_released`],
//! [`Hub::take_mail`] and [`Hub::next_read`] give what is to be done. It never waits: not for a disk (cold state is
//! asked of readers, and the command waits in [`parking`]), not for a mailbox (a delivery that finds no room is read
//! from the log later), not for another hub (what it did not take is read from the log, too).
//!
//! **Nothing leaves before it is durable**: every effect belongs to the batch under construction when it was
//! decided, and is released when the write of that batch has returned. So do items of streams.

mod acks;
pub mod bounds;
pub mod command;
pub mod delivery;
mod devices;
pub mod directory;
pub mod driver;
pub mod effect;
mod extra;
mod gathering;
pub mod holdings;
mod login;
pub mod mail;
pub mod parking;
pub mod rates;
mod reads;
mod receipts;
mod rpc;
mod sending;
mod streams;
mod sync;
pub mod thread;
mod upkeep;
pub mod windows;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Arc;

use culver_protocol::error::ErrorCode;
use culver_protocol::id::Incarnation;
use culver_storage::batch::{Batch, BatchNumber};
use culver_storage::command::{Acked, Load};
use culver_storage::engine::Engine;
use culver_storage::error::EngineError;
use culver_storage::planted::{self, Bug};
use culver_storage::reader::{Read, ReadResult};
use culver_storage::record::{Outgoing, Record, Stream};
use culver_storage::shard::Shards;
use culver_storage::topology::{HubId, Topology};

use self::bounds::Bounds;
use self::command::{Address, Command};
use self::delivery::Page;
use self::directory::Directory;
use self::effect::{Effect, EffectKind};
use self::extra::Extras;
use self::parking::{Parked, Parking, Work};
use self::rates::{LoginRates, Rates};
use self::rpc::Asking;
use self::sending::Rejected;
use self::streams::Streams;
use self::upkeep::Upkeep;
use self::windows::Windows;

/// What became of trying a command.
enum Tried {
    Done,
    Waits(Load),
}

/// Effects and other consequences that wait for a batch.
#[derive(Default)]
struct Consequences {
    effects: Vec<Effect>,
    /// Somebody waits for one of them: receipts can wait for company.
    is_urgent: bool,
    /// Sessions for which an entry of the batch was not delivered live.
    skipped: Vec<u32>,
    /// Sessions for which a receipt of the batch was held back.
    held: Vec<(u32, Address)>,
    /// Items of streams.
    outgoing: Vec<Outgoing>,
    /// How far streams have come that end here.
    taken: BTreeMap<Stream, u64>,
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
    /// Of them, those that came too fast.
    pub limited: u64,
    /// Logins that came too fast.
    pub logins_limited: u64,
    /// Reads from the log, for delivery.
    pub log_reads: u64,
    /// Items pushed to other hubs.
    pub pushed: u64,
    /// Mail to other hubs that found no room.
    pub mail_refused: u64,
    /// Floors that rose.
    pub floors_moved: u64,
}

/// One hub.
pub struct Hub {
    engine: Arc<dyn Engine>,
    incarnation: Incarnation,
    topology: Arc<Topology>,
    hub: HubId,
    bounds: Bounds,
    shards: Shards,
    directory: Directory,
    extras: Extras,
    windows: Windows,
    parking: Parking,
    streams: Streams,
    upkeep: Upkeep,
    /// Commands and mail that have arrived; each has its number.
    arrivals: u64,
    /// The first send of a conversation refused with a retryable error: until it returns, what follows it is refused.
    rejected: HashMap<Address, Vec<Rejected>>,
    rates: Rates,
    logins: LoginRates,
    /// Who waits for a page of conversations, by the number of the read.
    asking: HashMap<u32, Asking>,
    building: Consequences,
    under_way: Option<(BatchNumber, Consequences)>,
    released: Vec<Effect>,
    /// Reads wanted, of which `next_read` gives out as many as may be under way.
    reads: VecDeque<Read>,
    /// With so many, those that nobody waits for any more are forgotten.
    reads_looked_at: usize,
    reads_outstanding: usize,
    /// The number of the last read that has one. Never 0.
    read_number: u32,
    loads: HashSet<Load>,
    /// Sessions whose deliveries found no room, each with its reactor: they read from the log when there is.
    hungry: BTreeSet<(u16, u32)>,
    /// Sessions that have stepped over what their device sent, whose cursors have not followed.
    stepped: Vec<u32>,
    /// An empty list kept for `deliver_live`.
    scratch: Vec<u32>,
    /// An empty list kept for acknowledgements.
    acked: Vec<Acked>,
    /// When the first cursor moved that is not written yet.
    cursors_since_ms: Option<u64>,
    /// When the first other thing changed that waits for company.
    others_since_ms: Option<u64>,
    counts: Counts,
    /// A disk has no room for what is new.
    is_space_low: bool,
}

/// Longest wait of a cursor or a receipt for the batch that writes it: meanwhile further ones only move it on.
const COMPANY_WAIT_MS: u64 = 20;

/// Whether a wait is over. One that began by a clock that has gone back since is: nothing waits until the clock is
/// again where it was.
fn is_over(since_ms: u64, wait_ms: u64, now_ms: u64) -> bool {
    now_ms.checked_sub(since_ms).is_none_or(|waited_ms| waited_ms >= wait_ms)
}

impl Hub {
    /// A hub over recovered shards.
    #[must_use]
    pub fn new(
        engine: Arc<dyn Engine>,
        shards: Shards,
        incarnation: Incarnation,
        topology: Arc<Topology>,
        hub: HubId,
        bounds: Bounds,
    ) -> Self {
        let streams = Streams::recovered(&shards, &topology, hub);
        Self {
            engine,
            incarnation,
            topology,
            hub,
            bounds,
            shards,
            directory: Directory::default(),
            extras: Extras::default(),
            windows: Windows::default(),
            parking: Parking::new(&bounds),
            streams,
            upkeep: Upkeep::default(),
            arrivals: 0,
            rejected: HashMap::new(),
            rates: Rates::new(bounds.sends),
            logins: LoginRates::new(bounds.logins),
            asking: HashMap::new(),
            building: Consequences::default(),
            under_way: None,
            released: Vec::new(),
            reads: VecDeque::new(),
            reads_looked_at: bounds.reads_outstanding,
            reads_outstanding: 0,
            read_number: 0,
            loads: HashSet::new(),
            hungry: BTreeSet::new(),
            stepped: Vec::new(),
            scratch: Vec::new(),
            acked: Vec::new(),
            cursors_since_ms: None,
            others_since_ms: None,
            counts: Counts::default(),
            is_space_low: false,
        }
    }

    /// Which of the hubs it is.
    #[must_use]
    pub fn id(&self) -> HubId {
        self.hub
    }

    /// How much it holds and does at once.
    #[must_use]
    pub fn bounds(&self) -> &Bounds {
        &self.bounds
    }

    /// Whether a disk has no room for what is new, from now on. Then no message is accepted; all else goes on, for it is
    /// what the reserve is for: cursors, receipts, logins, and what other hubs have accepted.
    pub fn set_space_low(&mut self, is_low: bool) {
        self.is_space_low = is_low;
    }

    /// Takes a command.
    ///
    /// # Errors
    /// The engine could not be read: nothing can be decided any more.
    pub fn handle_command(&mut self, command: Command, now_ms: u64) -> Result<(), EngineError> {
        if !self.admit(&command) {
            return Ok(());
        }
        if let Command::Send { session, send } = &command {
            // At once, even if it is parked: what is refused from here on comes behind it.
            self.note_returned(*session, send);
            if !self.is_within_rates(*session, send) {
                return Ok(());
            }
        }
        self.handle_work(Work::Command(command), now_ms)
    }

    /// Takes the result of a read.
    ///
    /// # Errors
    /// The engine could not be read.
    pub fn handle_read(&mut self, result: ReadResult, now_ms: u64) -> Result<(), EngineError> {
        self.reads_outstanding -= 1;
        match result {
            ReadResult::Loaded(loaded) => {
                let load = loaded.load();
                self.loads.remove(&load);
                self.shards.loaded(loaded);
                self.parking.handle_loaded(load);
                Ok(())
            }
            ReadResult::Inbox { tag, user, after, entries, through } => {
                self.counts.log_reads += 1;
                self.deliver_page(tag, Page { user, after, entries, through }, now_ms)
            }
            ReadResult::Sync { tag, entries, through, conversations } => {
                self.begin_sync(tag, entries, through, conversations);
                Ok(())
            }
            ReadResult::Receipts { tag, version, marks, more } => {
                self.tell_receipts(tag, version, marks, more);
                Ok(())
            }
            ReadResult::Conversations { tag, result } => {
                self.answer_conversations(tag, result);
                Ok(())
            }
            ReadResult::Folded(folded) => self.handle_work(Work::Floor(Box::new(folded)), now_ms),
            ReadResult::Outbox { stream, after, items } => self.push_read(stream, after, items, now_ms),
            ReadResult::Swept { shard, users, next } => {
                self.handle_swept(shard, users, next);
                Ok(())
            }
        }
    }

    /// Tries again what was parked for reads that have come back, and what that held back.
    ///
    /// # Errors
    /// The engine could not be read.
    pub fn retry_parked(&mut self, now_ms: u64) -> Result<(), EngineError> {
        while let Some((place, Parked { arrival, work, .. })) = self.parking.next_ready() {
            match self.try_work(arrival, &work, now_ms)? {
                Tried::Done => self.parking.finish(place, &work),
                Tried::Waits(load) => {
                    self.parking.put_back(place, Parked { arrival, work, load: Some(load) });
                    self.request(load);
                }
            }
        }
        self.ask_for_dropped();
        Ok(())
    }

    /// The batch under way is durable: what waited for it is released.
    ///
    /// # Errors
    /// The engine could not be read.
    ///
    /// # Panics
    /// If it is not the one under way.
    pub fn handle_durable(&mut self, number: BatchNumber, now_ms: u64) -> Result<(), EngineError> {
        let (under_way, consequences) = self.under_way.take().expect("only what is under way becomes durable");
        assert!(under_way == number, "one batch at a time");
        self.shards.durable(number);
        self.release(consequences, now_ms)
    }

    /// The next batch to write, if one is due and none is under way. Its effects wait for `handle_durable`.
    ///
    /// # Errors
    /// The engine could not be read.
    pub fn next_batch(&mut self, now_ms: u64) -> Result<Option<Batch>, EngineError> {
        if self.under_way.is_some() {
            return Ok(None);
        }
        let is_due = |since: Option<u64>| since.is_some_and(|since_ms| is_over(since_ms, COMPANY_WAIT_MS, now_ms));
        let cursors_due = is_due(self.cursors_since_ms);
        if cursors_due || !self.shards.batch_has_messages() {
            self.move_stepped(now_ms)?;
        }
        if self.shards.is_batch_empty() {
            // Nothing to write, and nothing unwritten that these could depend on.
            (self.cursors_since_ms, self.others_since_ms) = (None, None);
            let consequences = std::mem::take(&mut self.building);
            self.release(consequences, now_ms)?;
            return Ok(None);
        }
        let has_messages = self.shards.batch_has_messages();
        if !has_messages && !cursors_due && !self.building.is_urgent && !is_due(self.others_since_ms) {
            if self.cursors_since_ms.is_none() {
                self.others_since_ms.get_or_insert(now_ms);
            }
            return Ok(None);
        }
        let with_cursors = cursors_due || !has_messages;
        if with_cursors {
            self.cursors_since_ms = None;
        }
        self.others_since_ms = None;
        self.give_receipts(with_cursors);
        let batch = self.shards.seal(self.engine.sequence_synced(), with_cursors);
        let mut consequences = std::mem::take(&mut self.building);
        consequences.outgoing = self.shards.take_outgoing();
        self.note_sealed(&consequences.outgoing, now_ms);
        if planted::is(Bug::AnswerBeforeSync) {
            self.released.append(&mut consequences.effects);
        }
        self.under_way = Some((batch.number(), consequences));
        Ok(Some(batch))
    }

    /// Whether another command may be taken: the batch under construction has room.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.shards.batch_bytes() < self.bounds.batch_bytes
    }

    /// Whether everything taken in has been answered, and everything for this hub's own users has arrived. What is on
    /// its way to other hubs is driven again at the next start.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.under_way.is_none()
            && self.building.effects.is_empty()
            && self.shards.is_batch_empty()
            && self.stepped.is_empty()
            && self.parking.is_empty()
            && self.asking.is_empty()
            && self.released.is_empty()
            && self.streams.own_untaken() == 0
    }

    /// Whether a batch is being written.
    #[must_use]
    pub fn is_writing(&self) -> bool {
        self.under_way.is_some()
    }

    /// Whether cursors or receipts wait for the batch that writes them.
    #[must_use]
    pub fn waits_for_company(&self) -> bool {
        self.cursors_since_ms.is_some() || self.others_since_ms.is_some()
    }

    /// Effects that may go out, in order. What finds no room comes back by [`Hub::handle_refused`].
    pub fn take_released(&mut self) -> Vec<Effect> {
        std::mem::take(&mut self.released)
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

    /// Commands and mail that wait for a read.
    #[must_use]
    pub fn parked(&self) -> usize {
        self.parking.len()
    }

    fn release(&mut self, consequences: Consequences, now_ms: u64) -> Result<(), EngineError> {
        let Consequences { effects, is_urgent: _, skipped, held, outgoing, taken } = consequences;
        self.released.extend(effects);
        self.mark_behind(skipped);
        self.read_held_receipts(held);
        self.push_durable(outgoing, now_ms)?;
        self.tell_taken(taken, now_ms);
        Ok(())
    }

    /// Adds an effect to those of the batch under construction.
    fn tell(&mut self, session: Address, kind: EffectKind) {
        self.building.is_urgent |= !matches!(kind, EffectKind::Receipt { .. } | EffectKind::Skipped { .. });
        self.building.effects.push(Effect { session, kind });
    }

    /// Applies what nobody waits for: it is written with the next batch, or soon.
    fn apply_at_leisure(&mut self, record: &Record, now_ms: u64) {
        self.shards.apply(record);
        self.others_since_ms.get_or_insert(now_ms);
    }

    fn handle_work(&mut self, work: Work, now_ms: u64) -> Result<(), EngineError> {
        self.arrivals += 1;
        let arrival = self.arrivals;
        let overtakes = planted::is(Bug::ParkedOvertaken) && matches!(work, Work::Command(Command::Send { .. }));
        if self.parking.holds_back(&work) && !overtakes {
            self.park(Parked { arrival, work, load: None });
            return Ok(());
        }
        if let Tried::Waits(load) = self.try_work(arrival, &work, now_ms)? {
            self.park(Parked { arrival, work, load: Some(load) });
            self.request(load);
        }
        Ok(())
    }

    fn try_work(&mut self, arrival: u64, work: &Work, now_ms: u64) -> Result<Tried, EngineError> {
        match work {
            Work::Command(command) => self.try_command(arrival, command, now_ms),
            Work::Arrival(outgoing) => self.arrive(outgoing, now_ms),
            Work::Fold(user) => self.fold_user(*user, now_ms),
            Work::Floor(folded) => self.raise_floor(folded, now_ms),
        }
    }

    fn park(&mut self, parked: Parked) {
        if self.parking.has_room_for(&parked.work) {
            return self.parking.park(parked);
        }
        match parked.work {
            Work::Command(Command::Send { session, send }) => {
                self.reject(session, parked.arrival, &send, ErrorCode::Busy);
            }
            Work::Command(Command::Rpc { session, device, id, .. }) => {
                self.answer(session, device, id, Err(ErrorCode::Busy));
            }
            Work::Arrival(outgoing) => self.streams.drop_arrival(outgoing.stream),
            Work::Command(_) | Work::Fold(_) | Work::Floor(_) => {
                unreachable!("there is always room for what is bounded otherwise")
            }
        }
    }

    fn try_command(&mut self, arrival: u64, command: &Command, now_ms: u64) -> Result<Tried, EngineError> {
        if !matches!(command, Command::Send { .. } | Command::Ack { .. } | Command::Resume { .. }) {
            // A login begins at the device's cursor, a request may ask for it, and with a close the session is gone.
            self.move_stepped(now_ms)?;
        }
        match command {
            Command::Login { .. } => self.login(arrival, command, now_ms),
            Command::Send { session, send } => self.send(*session, arrival, send, now_ms),
            Command::Ack { session, device, through, credit } => self.ack(*session, *device, *through, *credit, now_ms),
            Command::Resume { session, device, sent } => {
                if let Some(index) = self.directory.current(*device, *session) {
                    self.resume(index, *sent);
                }
                Ok(Tried::Done)
            }
            Command::Rpc { session, device, id, request } => self.rpc(*session, *device, *id, request, now_ms),
            Command::Close { session, device } => {
                self.close(*session, *device);
                Ok(Tried::Done)
            }
        }
    }

    /// Asks the readers once for what several commands may wait for.
    fn request(&mut self, load: Load) {
        if self.loads.insert(load) {
            self.want(Read::Load(load));
        }
    }
}

#[cfg(test)]
mod tests;
