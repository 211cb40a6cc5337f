//! What waits for a read, and what is held back behind it.
//!
//! Waiting work holds back all later work of the same device, conversation, stream or cold user, so that nothing
//! overtakes within any of them. What may be refused is refused beyond a bound, and what a stream brings is dropped, for
//! it comes again; what may not is one of a kind (Login, Close, ACK, Resume) for each session, of which the newest counts,
//! and floors are bounded by how many are folded at once.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use culver_protocol::id::{ConversationId, UserId};
use culver_storage::command::Load;
use culver_storage::reader::Folded;
use culver_storage::record::{Item, Outgoing, Stream};

use super::bounds::Bounds;
use super::command::{Address, Command, Device};

/// What is to be decided.
#[derive(Debug)]
pub enum Work {
    /// A session's command.
    Command(Command),
    /// The next item of a stream.
    Arrival(Outgoing),
    /// A user whose floor may have to rise.
    Fold(UserId),
    /// A floor to be raised.
    Floor(Box<Folded>),
}

/// What work has in common with other work that must not overtake it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Key {
    Device(Device),
    Conversation(ConversationId),
    User(UserId),
    Stream(Stream),
}

/// What says how far a session is: the later of two says all that the earlier said.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Kind {
    Ack,
    Resume,
}

/// The place of what is parked: later work has a greater one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place(u64);

/// What is parked. Only what a read has come back for, and what nothing is before any more, is tried again: however
/// much waits, the rest costs nothing meanwhile.
pub struct Parking {
    /// SENDs and RPCs, items of all streams, and of one stream that may wait.
    sends_max: usize,
    arrivals_max: usize,
    of_stream_max: usize,
    parked: BTreeMap<Place, Parked>,
    next: u64,
    /// Who has each key, in the order they came. Invariant: never empty, and who is tried again is the first for all
    /// its keys.
    queues: HashMap<Key, VecDeque<Place>>,
    /// Who waits for each read.
    waiting: HashMap<Load, Vec<Place>>,
    /// Who waits for no read and is the first for all its keys.
    ready: BTreeSet<Place>,
    /// Where the ACK and the Resume of a session are.
    latest: HashMap<(Address, Kind), Place>,
    sends: usize,
    arrivals: HashMap<Stream, usize>,
    arrivals_total: usize,
}

/// What waits.
#[derive(Debug)]
pub struct Parked {
    /// The number of its arrival.
    pub arrival: u64,
    /// What is to be decided.
    pub work: Work,
    /// The read it waits for; `None`: it is held back behind another.
    pub load: Option<Load>,
}

impl Parking {
    /// Nothing is parked.
    ///
    /// # Panics
    /// If the bounds contradict each other.
    #[must_use]
    pub fn new(bounds: &Bounds) -> Self {
        let Bounds { parked_sends, parked_arrivals, parked_of_stream, .. } = *bounds;
        assert!(parked_of_stream <= parked_arrivals, "a stream has no more than all together");
        Self {
            sends_max: parked_sends,
            arrivals_max: parked_arrivals,
            of_stream_max: parked_of_stream,
            parked: BTreeMap::new(),
            next: 0,
            queues: HashMap::new(),
            waiting: HashMap::new(),
            ready: BTreeSet::new(),
            latest: HashMap::new(),
            sends: 0,
            arrivals: HashMap::new(),
            arrivals_total: 0,
        }
    }

    /// How much is parked.
    #[must_use]
    pub fn len(&self) -> usize {
        self.parked.len()
    }

    /// Whether nothing is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.parked.is_empty()
    }

    /// Whether anything of this stream is.
    #[must_use]
    pub fn holds_stream(&self, stream: Stream) -> bool {
        self.arrivals.contains_key(&stream)
    }

    /// Whether something parked holds this back.
    #[must_use]
    pub fn holds_back(&self, work: &Work) -> bool {
        !self.queues.is_empty() && keys(work).into_iter().flatten().any(|key| self.queues.contains_key(&key))
    }

    /// Whether there is room for this.
    #[must_use]
    pub fn has_room_for(&self, work: &Work) -> bool {
        match work {
            Work::Command(Command::Send { .. } | Command::Rpc { .. }) => self.sends < self.sends_max,
            Work::Arrival(outgoing) => {
                let of_stream = self.arrivals.get(&outgoing.stream).copied().unwrap_or_default();
                of_stream < self.of_stream_max && self.arrivals_total < self.arrivals_max
            }
            Work::Command(_) | Work::Fold(_) | Work::Floor(_) => true,
        }
    }

    /// SENDs and RPCs that are parked.
    #[must_use]
    pub fn sends(&self) -> usize {
        self.sends
    }

    /// Items of all streams that are parked.
    #[must_use]
    pub fn arrivals(&self) -> usize {
        self.arrivals_total
    }

    /// Parks something behind what is there, or in the place of what it makes void.
    pub fn park(&mut self, parked: Parked) {
        if let Some(place) = latest_of(&parked.work).and_then(|latest| self.latest.get(&latest)) {
            self.parked.get_mut(place).expect("the newest of its kind is parked").work = parked.work;
            return;
        }
        let place = Place(self.next);
        self.next += 1;
        for key in keys(&parked.work).into_iter().flatten() {
            let queue = self.queues.entry(key).or_default();
            // A conversation with oneself has one key twice.
            if queue.back() != Some(&place) {
                queue.push_back(place);
            }
        }
        self.keep(place, parked);
    }

    /// A read has come back: who waited for it may be tried again.
    pub fn handle_loaded(&mut self, load: Load) {
        for place in self.waiting.remove(&load).unwrap_or_default() {
            self.parked.get_mut(&place).expect("who waits is parked").load = None;
            self.note_ready(place);
        }
    }

    /// Takes out the first that is to be tried again. What it holds back is held back until [`Parking::finish`], or for
    /// longer, if it has to wait again: [`Parking::put_back`].
    pub fn next_ready(&mut self) -> Option<(Place, Parked)> {
        let place = self.ready.pop_first()?;
        let parked = self.parked.remove(&place).expect("what is ready is parked");
        if let Some(latest) = latest_of(&parked.work) {
            self.latest.remove(&latest);
        }
        match &parked.work {
            Work::Command(Command::Send { .. } | Command::Rpc { .. }) => self.sends -= 1,
            Work::Arrival(outgoing) => {
                self.arrivals_total -= 1;
                let left = self.arrivals.get_mut(&outgoing.stream).expect("it was counted");
                *left -= 1;
                if *left == 0 {
                    self.arrivals.remove(&outgoing.stream);
                }
            }
            Work::Command(_) | Work::Fold(_) | Work::Floor(_) => {}
        }
        Some((place, parked))
    }

    /// It has to wait again, where it was.
    pub fn put_back(&mut self, place: Place, parked: Parked) {
        self.keep(place, parked);
    }

    /// It is decided: what it held back may be tried.
    pub fn finish(&mut self, place: Place, work: &Work) {
        for key in keys(work).into_iter().flatten() {
            let Some(queue) = self.queues.get_mut(&key) else { continue };
            if queue.front() == Some(&place) {
                queue.pop_front();
            } else {
                queue.retain(|other| *other != place); // something has overtaken another, which is a bug by itself
            }
            match queue.front().copied() {
                Some(next) => self.note_ready(next),
                None => drop(self.queues.remove(&key)),
            }
        }
    }

    fn keep(&mut self, place: Place, parked: Parked) {
        if let Some(latest) = latest_of(&parked.work) {
            self.latest.insert(latest, place);
        }
        match &parked.work {
            Work::Command(Command::Send { .. } | Command::Rpc { .. }) => self.sends += 1,
            Work::Arrival(outgoing) => {
                *self.arrivals.entry(outgoing.stream).or_default() += 1;
                self.arrivals_total += 1;
            }
            Work::Command(_) | Work::Fold(_) | Work::Floor(_) => {}
        }
        if let Some(load) = parked.load {
            self.waiting.entry(load).or_default().push(place);
        }
        self.parked.insert(place, parked);
    }

    /// Notes whether it can be tried.
    fn note_ready(&mut self, place: Place) {
        let Some(parked) = self.parked.get(&place) else { return };
        let is_first = |key: Key| self.queues.get(&key).and_then(VecDeque::front) == Some(&place);
        if parked.load.is_none() && keys(&parked.work).into_iter().flatten().all(is_first) {
            self.ready.insert(place);
        }
    }
}

fn latest_of(work: &Work) -> Option<(Address, Kind)> {
    match work {
        Work::Command(Command::Ack { session, .. }) => Some((*session, Kind::Ack)),
        Work::Command(Command::Resume { session, .. }) => Some((*session, Kind::Resume)),
        _ => None,
    }
}

fn keys(work: &Work) -> [Option<Key>; 4] {
    let of_user = |user: UserId| Some(Key::User(user));
    match work {
        Work::Command(Command::Send { send, .. }) => {
            let device = Device { user: send.sender, device: send.device };
            let recipient = send.conversation.direct_peer(send.sender);
            // The sender's own inbox is touched only where it gets copies; its order always is: that is the device's.
            let sender = send.copy.then_some(Key::User(send.sender));
            let conversation = Some(Key::Conversation(send.conversation));
            [Some(Key::Device(device)), conversation, recipient.map(Key::User), sender]
        }
        Work::Command(command) => {
            let device = command.device();
            [Some(Key::Device(device)), of_user(device.user), None, None]
        }
        Work::Arrival(outgoing) => {
            let user = match &outgoing.item {
                Item::Entry { user, .. } | Item::Receipt { user, .. } => *user,
            };
            [Some(Key::Stream(outgoing.stream)), of_user(user), None, None]
        }
        Work::Fold(user) => [of_user(*user), None, None, None],
        Work::Floor(folded) => [of_user(folded.fold.user), None, None, None],
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use culver_protocol::id::{ClientMessageId, ConversationSeq, DeviceId, InboxSeq};
    use culver_storage::command::Send;
    use culver_storage::key::ShardId;
    use culver_storage::record::Lane;

    use super::super::command::Address;
    use super::*;

    const SESSION: Address = Address { reactor: 0, slot: 0, generation: 0, epoch: 0 };

    fn send(from: u64, to: u64) -> Work {
        let (sender, recipient) = (UserId(from), UserId(to));
        let send = Send {
            sender,
            device: DeviceId(1),
            client_message_id: ClientMessageId([0; 16]),
            conversation: ConversationId::direct(sender, recipient),
            payload: Bytes::new(),
            copy: false,
        };
        Work::Command(Command::Send { session: SESSION, send })
    }

    fn close(user: u64) -> Work {
        let device = Device { user: UserId(user), device: DeviceId(1) };
        Work::Command(Command::Close { session: SESSION, device })
    }

    fn ack(through: u64) -> Work {
        Work::Command(Command::Ack {
            session: SESSION,
            device: Device { user: UserId(1), device: DeviceId(1) },
            through: InboxSeq(through),
            credit: super::super::command::Credit { entries: 1, bytes: 1 },
        })
    }

    fn arrival(from: u16, user: u64) -> Work {
        let stream = Stream { from: ShardId(from), to: ShardId(1), lane: Lane::Receipt };
        let nothing = ConversationSeq(0);
        let conversation = ConversationId::direct(UserId(user), UserId(99));
        let item = Item::Receipt {
            user: UserId(user),
            conversation,
            delivered: nothing,
            read: nothing,
            expired: (nothing, nothing),
        };
        Work::Arrival(Outgoing { stream, n: 1, item })
    }

    const LOAD: Load = Load::User(UserId(0));

    /// Something that waits for a read.
    fn park(parking: &mut Parking, work: Work) {
        parking.park(Parked { arrival: 1, work, load: Some(LOAD) });
    }

    /// Something held back behind another.
    fn park_behind(parking: &mut Parking, work: Work) {
        assert!(parking.holds_back(&work), "{work:?}");
        parking.park(Parked { arrival: 1, work, load: None });
    }

    /// All that can be decided now is, and nothing has to wait again.
    fn decide_all(parking: &mut Parking) -> Vec<Work> {
        let decide = || {
            let (place, parked) = parking.next_ready()?;
            parking.finish(place, &parked.work);
            Some(parked.work)
        };
        std::iter::from_fn(decide).collect()
    }

    #[test]
    fn holds_back_same_device_conversation_and_recipient_only() {
        let mut parking = Parking::new(&Bounds::default());
        assert!(!parking.holds_back(&send(1, 2)));
        park(&mut parking, send(1, 2));
        for held in [send(1, 2), send(1, 3), send(2, 1), send(9, 2), close(1), close(2), arrival(1, 2)] {
            assert!(parking.holds_back(&held), "{held:?}");
        }
        for free in [send(3, 4), send(2, 3), close(3), arrival(1, 1)] {
            assert!(!parking.holds_back(&free), "{free:?}");
        }
        assert_eq!(decide_all(&mut parking).len(), 0, "its read has not come back");
        parking.handle_loaded(LOAD);
        assert_eq!(decide_all(&mut parking).len(), 1);
        assert!(!parking.holds_back(&send(1, 2)));
        assert!(parking.is_empty() && parking.queues.is_empty() && parking.waiting.is_empty());
    }

    #[test]
    fn what_is_tried_again_is_what_a_read_came_back_for_and_what_it_held_back() {
        let mut parking = Parking::new(&Bounds::default());
        let wait = |parking: &mut Parking, work, user| {
            parking.park(Parked { arrival: 1, work, load: Some(Load::User(UserId(user))) });
        };
        wait(&mut parking, send(1, 2), 2);
        wait(&mut parking, send(3, 4), 4);
        park_behind(&mut parking, close(1));
        park_behind(&mut parking, send(5, 2));
        park_behind(&mut parking, close(5));
        park_behind(&mut parking, close(3));
        parking.handle_loaded(Load::User(UserId(2)));
        let (place, first) = parking.next_ready().expect("its read has come back");
        assert!(matches!(first.work, Work::Command(Command::Send { .. })));
        assert!(parking.next_ready().is_none(), "the rest is behind it, or waits for another read");
        // It needs another read, and holds back what it held back.
        parking.put_back(place, Parked { load: Some(LOAD), ..first });
        assert!(decide_all(&mut parking).is_empty());
        parking.handle_loaded(LOAD);
        assert_eq!(decide_all(&mut parking).len(), 4, "one after the other");
        assert_eq!((parking.len(), parking.sends()), (2, 1));
        parking.handle_loaded(Load::User(UserId(4)));
        assert_eq!(decide_all(&mut parking).len(), 2);
        assert!(parking.is_empty() && parking.queues.is_empty() && parking.waiting.is_empty() && parking.sends == 0);
    }

    #[test]
    fn nothing_overtakes_within_a_stream() {
        let mut parking = Parking::new(&Bounds::default());
        park(&mut parking, arrival(1, 7));
        assert!(parking.holds_back(&arrival(1, 8)), "the same stream");
        assert!(parking.holds_back(&arrival(2, 7)), "the same user");
        assert!(!parking.holds_back(&arrival(2, 8)));
    }

    #[test]
    fn a_stream_has_its_share_and_no_more() {
        let mut parking = Parking::new(&Bounds::default());
        let Bounds { parked_of_stream, parked_arrivals, .. } = Bounds::default();
        for _ in 0..parked_of_stream {
            assert!(parking.has_room_for(&arrival(1, 7)));
            park(&mut parking, arrival(1, 7));
        }
        assert!(!parking.has_room_for(&arrival(1, 7)));
        assert!(parking.has_room_for(&arrival(2, 7)));
        for stream in 2..2 + parked_arrivals - parked_of_stream {
            park(&mut parking, arrival(u16::try_from(stream).expect("few"), 7));
        }
        assert!(!parking.has_room_for(&arrival(9999, 7)), "all streams together");
    }

    #[test]
    fn sends_are_bounded_and_the_rest_is_not_refused() {
        let mut parking = Parking::new(&Bounds::default());
        for _ in 0..Bounds::default().parked_sends {
            assert!(parking.has_room_for(&send(1, 2)));
            park(&mut parking, send(1, 2));
        }
        assert!(!parking.has_room_for(&send(1, 2)));
        assert!(parking.has_room_for(&close(1)));
        assert!(parking.has_room_for(&ack(1)));
    }

    #[test]
    fn of_a_sessions_acknowledgements_the_newest_counts() {
        let mut parking = Parking::new(&Bounds::default());
        park(&mut parking, send(1, 2));
        (1..=1000).for_each(|through| park_behind(&mut parking, ack(through)));
        park_behind(&mut parking, close(1));
        parking.handle_loaded(LOAD);
        let decided = decide_all(&mut parking);
        let [_, Work::Command(Command::Ack { through, .. }), _] = &decided[..] else { panic!("{decided:?}") };
        assert_eq!(*through, InboxSeq(1000));
        park(&mut parking, ack(7));
        assert_eq!(parking.len(), 1, "what was taken is not there any more");
    }
}
