//! A device: the real client, and an application with a store of its own that may be late, forgetful, or killed.
//!
//! One [`Device`] is one process. A device's app and its fetching extension are two, over one store. The world carries
//! bytes between [`Device::client`] and the network, and does what [`Device::next_want`] asks for. Everything that the
//! application learns or does, it tells the oracle.

mod app;
mod secrecy;
mod store;
#[cfg(test)]
mod tests;
mod words;

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

use culver_protocol::client::{Client, ClientConfig, Credential, Event, KeepAliveMemory};
use culver_protocol::error::ErrorCode;
use culver_protocol::id::{ConversationId, DeviceId, UserId};
use culver_protocol::proto;

pub(crate) use self::secrecy::{Former, Secrecy, key_pair};
pub(crate) use self::store::Store;
pub(crate) use self::words::Name;
use crate::oracle::{Known, MessageIndex, Oracle, Witness};

/// Which device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct DeviceKey {
    pub user: UserId,
    pub device: DeviceId,
}

/// What the world is to do for a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Want {
    /// Open a connection; then [`Device::connected`], or [`Device::disconnected`] where that fails.
    Connect,
    /// Close the connection; then [`Device::disconnected`].
    Disconnect,
    /// The process is dead: its connection, if there is one, lost its client. Nothing is to be called for it.
    Abandon,
    /// What it logged in with is refused: [`Device::set_token`] with a new one.
    Credential,
}

/// How an application behaves, in thousandths of its acts where not said otherwise; all 0 is the tamest.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Nature {
    /// How many messages it sends.
    pub sends: u32,
    /// What has come is persisted later, or in parts.
    pub late: u32,
    /// Receipts are persisted later.
    pub late_receipts: u32,
    /// The application is killed and comes back with what it has persisted.
    pub killed: u32,
    /// Marks as read, lists, asks for devices.
    pub asks: u32,
    /// Turns read receipts off and on.
    pub toggles: u32,
    /// Writes where it has no part.
    pub strays: u32,
    /// Has devices of its user removed, and gives them names.
    pub removes: u32,
    pub names: u32,
    /// How many devices its user has.
    pub family: u16,
    /// Its messages' ids do not ascend.
    pub random_ids: bool,
    /// What it sends is not kept over a kill, and never sent again then.
    pub forgets_sends: bool,
    /// What was answered is not noted, and sent again after a kill.
    pub repeats: bool,
    /// Longest payload.
    pub payload_max: u32,
    /// Delivery window in entries; 0: the server's.
    pub credit_entries: u32,
    /// Wanted keep-alive in seconds; 0: the server's.
    pub keep_alive_s: u32,
    /// It finds out how long its network lets it be silent.
    pub adapts: bool,
}

/// An entry that was handed to the application and is not in its store.
#[derive(Clone, Copy, Debug)]
struct Unstored {
    place: u64,
    conversation: ConversationId,
    seq: u64,
    from_other: bool,
}

/// What a client does whose server key is not in use any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Learning {
    Nothing,
    /// It was told so.
    Told,
    /// It was shown the new one.
    Shown,
}

/// One process of a device.
pub(crate) struct Device {
    pub client: Client,
    witness: Witness,
    nature: Nature,
    seed: u64,
    /// How often it has begun.
    lives: u64,
    fetch: bool,
    store: Rc<RefCell<Store>>,
    /// What has come, not in the store.
    unstored: VecDeque<Unstored>,
    unstored_receipts: VecDeque<proto::Receipt>,
    /// In the store, but the client has not been told.
    untold: u64,
    sends_left: u32,
    /// Requests under way.
    calls: u32,
    /// The generation of the ticket that the client holds, and of the server that it is connected to.
    ticket_generation: u32,
    server_generation: u32,
    /// The client stopped: somebody took the connection's place, or the device was removed.
    stopped: bool,
    is_removed: bool,
    /// What it had when it last began anew, until somebody finds it.
    former: Option<Former>,
    /// How far it is with learning a server's new key.
    learning: Learning,
    over: bool,
    /// Acts so far of a fetching process.
    acts: u32,
    /// All faults are over: a healthy connection that gets no answers is the server's fault.
    calm: bool,
    connected_calmly: bool,
    /// The server gave a reason for the end of this connection.
    excused: bool,
    /// By so much its own clock is ahead of the world's.
    ahead_us: u64,
    /// In calm, what shows that the server is there: a request on this connection, and whether it was answered.
    knock: Option<u64>,
    knocked: bool,
    /// The last questions, and what came of them.
    last: Option<app::LastQuestions>,
    known: Known,
}

impl Device {
    /// An app that has never run. It asks for a connection at once.
    pub(crate) fn new(key: DeviceKey, nature: Nature, seed: u64, store: Store, oracle: &mut Oracle) -> Self {
        Self::process(key, nature, seed, false, Rc::new(RefCell::new(store)), oracle)
    }

    /// Another process over the same store, which logs in by fetch and ends when it has what waited.
    pub(crate) fn fetching(&self, seed: u64, oracle: &mut Oracle) -> Self {
        let nature = Nature { sends: 0, asks: 0, toggles: 0, strays: 0, removes: 0, names: 0, ..self.nature };
        Self::process(self.key(), nature, seed, true, Rc::clone(&self.store), oracle)
    }

    fn process(
        key: DeviceKey,
        nature: Nature,
        seed: u64,
        fetch: bool,
        store: Rc<RefCell<Store>>,
        oracle: &mut Oracle,
    ) -> Self {
        let client = client(key, &nature, seed, fetch, &mut store.borrow_mut());
        let ticket_generation = store.borrow().ticket_generation;
        Self {
            client,
            witness: oracle.launched(key, fetch, None),
            nature,
            seed,
            lives: 0,
            fetch,
            store,
            unstored: VecDeque::new(),
            unstored_receipts: VecDeque::new(),
            untold: 0,
            sends_left: nature.sends,
            calls: 0,
            ticket_generation,
            server_generation: 0,
            stopped: false,
            is_removed: false,
            former: None,
            learning: Learning::Nothing,
            over: false,
            acts: 0,
            calm: false,
            connected_calmly: false,
            excused: false,
            ahead_us: 0,
            knock: None,
            knocked: false,
            last: None,
            known: Known::default(),
        }
    }

    pub(crate) fn key(&self) -> DeviceKey {
        self.witness.key()
    }

    /// In words.
    pub(crate) fn name(&self) -> Name {
        Name { key: self.key(), fetch: self.fetch }
    }

    pub(crate) fn is_fetch(&self) -> bool {
        self.fetch
    }

    /// A fetching process that has what it came for, or was replaced: it can be dropped.
    pub(crate) fn is_over(&self) -> bool {
        self.over
    }

    /// Messages that it still wants to send.
    pub(crate) fn sends_left(&self) -> u32 {
        self.sends_left
    }

    /// It is to send so many messages more. Only an app sends.
    pub(crate) fn sends_more(&mut self, messages: u32) {
        self.sends_left += if self.fetch { 0 } else { messages };
    }

    /// Its own time, in which its client lives.
    pub(crate) fn own_us(&self, now_us: u64) -> u64 {
        now_us + self.ahead_us
    }

    /// From now on its clock is further ahead.
    pub(crate) fn run_ahead(&mut self, by_us: u64) {
        self.ahead_us += by_us;
    }

    /// When its client wants to be told the time, by the world's clock.
    pub(crate) fn due_us(&self) -> u64 {
        self.client.poll_timeout().map_or(u64::MAX, |due_us| due_us.saturating_sub(self.ahead_us))
    }

    /// Bytes come from the network; `is_attacked`: somebody has changed what this connection carries.
    pub(crate) fn read(&mut self, bytes: &[u8], now_us: u64, is_attacked: bool) {
        if is_attacked {
            self.witness.attacked();
        }
        let own_us = self.own_us(now_us);
        self.client.handle_bytes(bytes, own_us);
    }

    /// A connection is open, to a server that calls tickets below this generation stale. `is_alone`: that server has no
    /// other connection of this process's kind of this device.
    pub(crate) fn connected(&mut self, oracle: &mut Oracle, now_us: u64, generation: u32, is_alone: bool) {
        self.server_generation = generation;
        (self.connected_calmly, self.excused) = (self.calm, false);
        (self.knock, self.knocked) = (None, false);
        let own_us = self.own_us(now_us);
        self.client.handle_connected(own_us);
        // Who has none shows its key.
        let shown = if self.client.ticket().is_some() { self.ticket_generation } else { generation };
        let (cursor, receipts) = (self.client.cursor().0, self.client.receipts());
        oracle.connected(&mut self.witness, cursor, receipts, (shown, generation));
        self.witness.connected_to(is_alone);
        oracle.comes(&self.witness, now_us);
    }

    /// Not the server is at fault if this connection is given up.
    pub(crate) fn excuse(&mut self) {
        self.excused = true;
    }

    /// The connection has waited for a server, and this is it: its tickets have this generation.
    pub(crate) fn reach(&mut self, generation: u32) {
        self.server_generation = generation;
        let shown = if self.client.ticket().is_some() { self.ticket_generation } else { generation };
        self.witness.reach((shown, generation));
    }

    /// The connection is closed or could not be opened.
    pub(crate) fn disconnected(&mut self, _oracle: &mut Oracle, now_us: u64) {
        self.witness.disconnected();
        let own_us = self.own_us(now_us);
        self.client.handle_disconnected(own_us);
        if self.fetch && self.acts > app::FETCH_ACTS_MAX {
            self.over = true;
        }
    }

    /// How it encrypts, if it does.
    pub(crate) fn secrecy(&self) -> Option<Secrecy> {
        self.store.borrow().secrecy.clone()
    }

    /// What it had when it last began anew.
    pub(crate) fn take_former(&mut self) -> Option<Former> {
        self.former.take()
    }

    /// Another token.
    pub(crate) fn set_token(&mut self, token: String) {
        self.store.borrow_mut().token = Some(token.clone());
        self.client.set_credential(Credential::Token(token));
    }

    /// Handles the client's events up to one that the world must act on. To be called until it says `None`, after
    /// anything was done with the client.
    pub(crate) fn next_want(&mut self, oracle: &mut Oracle, now_us: u64) -> Option<Want> {
        while let Some(event) = self.client.poll_event() {
            oracle.note(self.name(), || words::event(&event));
            let want = self.handle(event, oracle, now_us);
            if want.is_some() {
                return want;
            }
        }
        None
    }

    fn handle(&mut self, event: Event, oracle: &mut Oracle, now_us: u64) -> Option<Want> {
        match event {
            Event::Connect => return Some(Want::Connect),
            Event::Disconnect => {
                let is_healthy = self.calm && self.connected_calmly && !self.excused && !self.fetch;
                assert!(
                    !is_healthy,
                    "every SEND and RPC is answered: {:?} waited for an answer on a good connection until it gave up",
                    self.client
                );
                return Some(Want::Disconnect);
            }
            Event::LoggedIn(welcome) => {
                oracle.logged_in(&mut self.witness, &welcome);
                let learned = std::mem::replace(&mut self.learning, Learning::Nothing) == Learning::Shown;
                oracle.tally.keys_learned += u64::from(learned);
                self.ticket_generation = self.server_generation;
            }
            Event::Sent(accepted) => {
                let index = oracle.accepted(&self.witness, &accepted);
                if !self.nature.repeats {
                    self.note_answered(index);
                }
            }
            Event::Rejected { id, code, retry: false } => {
                let index = oracle.rejected(&self.witness, id, code);
                self.note_answered(index);
            }
            Event::Rejected { retry: true, .. } => {}
            Event::Delivered(entry) => {
                oracle.delivered(&mut self.witness, &entry, now_us);
                self.note_delivered(&entry);
            }
            Event::Gap(gap) => oracle.gap(&mut self.witness, &gap, now_us),
            Event::Receipt(receipt) => {
                oracle.receipt(&mut self.witness, &receipt, now_us);
                self.unstored_receipts.push_back(receipt);
            }
            Event::SyncStart(start) => oracle.sync_start(&mut self.witness, &start),
            Event::SyncDone(done) => {
                oracle.sync_done(&mut self.witness, &done);
                self.acts = self.acts.max(app::FETCH_ACTS_MAX);
            }
            Event::Answer { id, result } => {
                self.calls -= 1;
                self.handle_answer(id, &result, oracle);
            }
            Event::Cancelled { id } => {
                self.calls -= 1;
                oracle.cancelled(&mut self.witness, id);
                if let Some(last) = &mut self.last {
                    last.ended(id);
                }
            }
            // Whoever has only come to fetch leaves it to the app to get a token.
            Event::CredentialNeeded { .. } if self.fetch && self.secrecy().is_some() => self.over = true,
            Event::CredentialNeeded { .. } => return Some(Want::Credential),
            of_server => self.handle_server(of_server, oracle, now_us),
        }
        None
    }

    /// What the server is, or says of the connection.
    fn handle_server(&mut self, event: Event, oracle: &mut Oracle, now_us: u64) {
        match event {
            Event::ServerKey(server) => {
                self.store.borrow_mut().server = Some(server);
                if self.learning == Learning::Told {
                    self.learning = Learning::Shown;
                }
            }
            Event::Goaway(_) => self.excused = true,
            Event::ServerError(error) => {
                oracle.server_error(&self.witness, &error);
                oracle.check_busy(&self.witness, &error, now_us);
                if error.code == ErrorCode::ServerKeyUnknown.number() {
                    self.learning = Learning::Told;
                }
                self.excused |= ErrorCode::from_number(error.code).is_none_or(ErrorCode::closes);
            }
            Event::Violation(violation) => {
                oracle.violation(&self.witness, violation);
                self.excused = true;
            }
            Event::Stopped { code } => {
                oracle.stopped(&self.witness, code);
                self.stopped = true;
                self.is_removed = code == ErrorCode::DeviceRemoved.number();
            }
            other => unreachable!("it is not about the server: {other:?}"),
        }
    }

    fn note_delivered(&mut self, entry: &proto::Entry) {
        self.unstored.push_back(Unstored {
            place: entry.inbox_seq,
            conversation: ConversationId::try_from(entry.conversation.as_ref()).expect("the client checks it"),
            seq: entry.conversation_seq,
            from_other: entry.sender != self.key().user.0,
        });
    }

    /// What an application learns of a message is kept by the time it is killed, save with some.
    fn note_answered(&mut self, index: MessageIndex) {
        self.store.borrow_mut().outbox.retain(|waiting| *waiting != index);
    }

    /// What its application knows in the end.
    pub(crate) fn known(&self) -> Known {
        Known { marks: self.store.borrow().marks.clone(), ..self.known.clone() }
    }

    /// It is logged in, or need not be.
    pub(crate) fn is_in(&self) -> bool {
        self.over || self.fetch || self.client.is_logged_in()
    }

    /// Nothing of this process is under way: it is logged in, the server has answered on this connection since all is
    /// calm, and everything is answered and persisted.
    pub(crate) fn is_settled(&self) -> bool {
        if self.over {
            return true;
        }
        let is_quiet = self.unstored.is_empty() && self.unstored_receipts.is_empty() && self.untold == 0;
        let is_answered = self.client.in_flight() == 0 && self.calls == 0;
        let is_through = self.last.as_ref().is_none_or(app::LastQuestions::are_answered);
        self.client.is_logged_in() && self.knocked && is_quiet && is_answered && is_through
    }
}

fn client(key: DeviceKey, nature: &Nature, seed: u64, fetch: bool, store: &mut Store) -> Client {
    Client::new(ClientConfig {
        user: key.user,
        device: key.device,
        credential: store.credential(),
        cursor: store.cursor,
        incarnation: store.incarnation,
        receipts: store.receipts,
        fetch,
        keep_alive_s: nature.keep_alive_s,
        keep_alives: nature.adapts.then(KeepAliveMemory::default),
        credit_entries: nature.credit_entries,
        credit_bytes: 0,
        seed,
        encryption: store.encryption(key, seed),
        ..ClientConfig::default()
    })
}
