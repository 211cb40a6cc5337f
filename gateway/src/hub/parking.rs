//! What waits for a read, and what is held back behind it.
//!
//! Waiting work holds back all later work of the same device, conversation, stream or cold user, so that nothing
//! overtakes within any of them. What may be refused is refused beyond a bound, and what a stream brings is dropped, for
//! it comes again; what may not is one of a kind (Login, Close, ACK, Resume) for each session, of which the newest counts,
//! and floors are bounded by how many are folded at once.

use std::collections::{HashMap, HashSet, VecDeque};

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

/// What is parked, in the order it came.
pub struct Parking {
    /// SENDs and RPCs, items of all streams, and of one stream that may wait.
    sends_max: usize,
    arrivals_max: usize,
    of_stream_max: usize,
    parked: VecDeque<Parked>,
    /// Keys of all that is parked; rebuilt when it is retried.
    keys: HashSet<Key>,
    /// Where the ACK and the Resume of a session are.
    latest: HashMap<(Address, Kind), usize>,
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
            parked: VecDeque::new(),
            keys: HashSet::new(),
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
        !self.keys.is_empty() && keys(work).into_iter().flatten().any(|key| self.keys.contains(&key))
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
        if let Some(latest) = latest_of(&parked.work) {
            let next = self.parked.len();
            let place = *self.latest.entry(latest).or_insert(next);
            if let Some(earlier) = self.parked.get_mut(place) {
                earlier.work = parked.work;
                return;
            }
        }
        self.keys.extend(keys(&parked.work).into_iter().flatten());
        match &parked.work {
            Work::Command(Command::Send { .. } | Command::Rpc { .. }) => self.sends += 1,
            Work::Arrival(outgoing) => {
                *self.arrivals.entry(outgoing.stream).or_default() += 1;
                self.arrivals_total += 1;
            }
            Work::Command(_) | Work::Fold(_) | Work::Floor(_) => {}
        }
        self.parked.push_back(parked);
    }

    /// Takes everything out, to be retried in order; what must go on waiting is parked again.
    pub fn take(&mut self) -> VecDeque<Parked> {
        self.keys.clear();
        self.latest.clear();
        self.sends = 0;
        self.arrivals.clear();
        self.arrivals_total = 0;
        std::mem::take(&mut self.parked)
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

    fn park(parking: &mut Parking, work: Work) {
        parking.park(Parked { arrival: 1, work, load: None });
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
        assert_eq!(parking.take().len(), 1);
        assert!(!parking.holds_back(&send(1, 2)));
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
        (1..=1000).for_each(|through| park(&mut parking, ack(through)));
        park(&mut parking, close(1));
        let taken = parking.take();
        let [_, Parked { work: Work::Command(Command::Ack { through, .. }), .. }, _] =
            taken.iter().collect::<Vec<_>>()[..]
        else {
            panic!("{taken:?}")
        };
        assert_eq!(*through, InboxSeq(1000));
        park(&mut parking, ack(7));
        assert_eq!(parking.len(), 1, "what was taken is not there any more");
    }
}
