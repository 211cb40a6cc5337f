//! A client, its application, a server and a bad network between them, in virtual time and one thread.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use bytes::Bytes;
use culver_protocol::client::{Client, ClientConfig, Credential, Encryption, Event};
use culver_protocol::crypto::{KeyPair, Secret, Suite};
use culver_protocol::error::ErrorCode;
use culver_protocol::id::{ClientMessageId, ConversationId, InboxSeq, UserId};
use culver_protocol::limits::REKEY_MS;
use culver_protocol::proto;
use culver_protocol::record::{Cipher, RecordType};
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

use crate::app::App;
use crate::server::{DEVICE, Faults, Sender, Server, Session, UNIX_MS, USER, Vault};

/// Steps after which a world must have come to its end.
const STEPS_MAX: u32 = 200_000;
/// Steps after which the network and the server behave.
const STEPS_FAULTY: u32 = 20_000;

/// What a world consists of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    pub(crate) sends: u32,
    pub(crate) entries: u32,
    pub(crate) conversations: u64,
    /// What the other side, or another device, does about messages.
    pub(crate) acts: u32,
    pub(crate) calls: u32,
    /// The user has other devices.
    pub(crate) siblings: bool,
    pub(crate) fetch: bool,
    pub(crate) faults: Faults,
    /// The first connection is cut after so many bytes of the client's.
    pub(crate) cut_up: Option<u64>,
    /// The first connection is cut after so many bytes of the server's.
    pub(crate) cut_down: Option<u64>,
    /// Every connection is cut, after this many bytes at most in either direction.
    pub(crate) cut_within: Option<u64>,
    pub(crate) encrypted: bool,
    /// How often, in percent of the pieces that pass, somebody on the way changes one. Encrypted worlds only.
    pub(crate) tamper: u32,
    /// On how many connections, in percent, somebody tells the client an error. Encrypted worlds only.
    pub(crate) forge_errors: u32,
    /// How often, in thousandths of the steps, an hour passes.
    pub(crate) sleep: u32,
}

/// What happened in a world.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Ran {
    pub(crate) bytes_up: u64,
    pub(crate) bytes_down: u64,
    /// Handshakes that were through, by kind.
    pub(crate) handshakes: [u32; 4],
    /// Changes of the client's key.
    pub(crate) rekeys: u32,
    pub(crate) violations: u32,
}

struct Connection {
    session: Session,
    up: Vec<u8>,
    down: Vec<u8>,
    up_left: u64,
    down_left: u64,
}

pub(crate) struct World {
    plan: Plan,
    rng: SmallRng,
    now_us: u64,
    client: Client,
    app: App,
    server: Server,
    connection: Option<Connection>,
    connections: u32,
    unsent: Vec<(ConversationId, ClientMessageId)>,
    to_receive: u32,
    to_act: u32,
    to_call: u32,
    sent: Vec<(ConversationId, ClientMessageId)>,
    answers: HashMap<ClientMessageId, bool>,
    answered: Vec<ClientMessageId>,
    delivered: Vec<(ConversationId, u64)>,
    names: HashSet<(ConversationId, u64)>,
    /// Delivered, not persisted: the inbox seq, and what of it may be marked as read then.
    unpersisted: Vec<(u64, Option<(ConversationId, u64)>)>,
    cursor: InboxSeq,
    /// Bytes may have been changed on their way.
    is_tampered: bool,
    ran: Ran,
}

impl World {
    pub(crate) fn new(plan: Plan) -> Self {
        let mut rng = SmallRng::seed_from_u64(plan.seed);
        let conversation =
            |rng: &mut SmallRng| ConversationId::direct(USER, UserId(2 + rng.random_range(0..plan.conversations)));
        let unsent = (0..plan.sends)
            .map(|n| (conversation(&mut rng), ClientMessageId((u128::from(n) + 1).to_be_bytes())))
            .rev()
            .collect();
        let mut config = ClientConfig {
            user: USER,
            device: DEVICE,
            credential: Credential::Token("token".into()),
            seed: plan.seed,
            fetch: plan.fetch,
            ..ClientConfig::default()
        };
        let vault = plan.encrypted.then(|| encrypt(&plan, &mut config, &mut rng));
        let client = Client::new(config);
        Self {
            plan,
            rng,
            now_us: 0,
            client,
            app: App::default(),
            server: Server::new(plan.faults, plan.siblings, plan.fetch, vault),
            connection: None,
            connections: 0,
            unsent,
            to_receive: plan.entries,
            to_act: plan.acts,
            to_call: plan.calls,
            sent: Vec::new(),
            answers: HashMap::new(),
            answered: Vec::new(),
            delivered: Vec::new(),
            names: HashSet::new(),
            unpersisted: Vec::new(),
            cursor: InboxSeq(0),
            is_tampered: plan.tamper > 0,
            ran: Ran::default(),
        }
    }

    /// Runs to the end and checks everything that must hold there.
    pub(crate) fn run(mut self) -> Ran {
        for step in 0..STEPS_MAX {
            if step == STEPS_FAULTY {
                self.server.faults = Faults::default();
                self.plan = Plan { cut_within: None, tamper: 0, forge_errors: 0, sleep: 0, ..self.plan };
                if let Some(connection) = &mut self.connection {
                    (connection.up_left, connection.down_left) = (u64::MAX, u64::MAX);
                }
            }
            self.act();
            self.handle_events();
            let moved = self.move_bytes();
            self.cut();
            self.handle_events();
            assert!(self.client.cursor() >= self.cursor, "the cursor went back");
            self.cursor = self.client.cursor();
            if self.is_done() {
                self.check();
                if let Some(vault) = &self.server.vault {
                    (self.ran.handshakes, self.ran.rekeys) = (vault.handshakes, vault.rekeys);
                }
                return self.ran;
            }
            if !moved {
                self.pass_time();
            }
        }
        panic!("no end: {} of {} answered, {:?}", self.answered.len(), self.plan.sends, self.client);
    }

    fn act(&mut self) {
        if self.plan.sleep > 0 && self.rng.random_range(0..1000) < self.plan.sleep {
            self.now_us += REKEY_MS * 1000;
            self.client.handle_timeout(self.now_us);
        }
        if self.rng.random_range(0..3) == 0
            && let Some((conversation, id)) = self.unsent.pop()
        {
            let payload = Bytes::from(vec![0x55; self.rng.random_range(0..40)]);
            self.client.send(id, conversation, payload, self.now_us).expect("within the limits");
            self.sent.push((conversation, id));
        }
        if self.to_receive > 0 && self.rng.random_range(0..3) == 0 {
            self.to_receive -= 1;
            let conversation = self.conversation();
            self.server.receive_from_elsewhere(conversation, &mut self.rng);
            self.serve(&[]);
        }
        if self.to_act > 0 && self.rng.random_range(0..3) == 0 {
            self.to_act -= 1;
            let conversation = self.conversation();
            self.server.act_elsewhere(conversation, &mut self.rng);
            self.serve(&[]);
        }
        if self.to_call > 0 && self.rng.random_range(0..3) == 0 && self.app.ask(&mut self.client, &mut self.rng) {
            self.to_call -= 1;
        }
        self.persist();
    }

    fn conversation(&mut self) -> ConversationId {
        ConversationId::direct(USER, UserId(2 + self.rng.random_range(0..self.plan.conversations)))
    }

    fn persist(&mut self) {
        if self.rng.random_range(0..4) > 0 {
            return;
        }
        self.app.persist(&mut self.client, &mut self.rng);
        if self.unpersisted.is_empty() {
            return;
        }
        let (through, _) = self.unpersisted.remove(self.rng.random_range(0..self.unpersisted.len()));
        self.client.persisted(InboxSeq(through));
        self.unpersisted.retain(|(inbox_seq, of_peer)| {
            if let (true, Some((conversation, seq))) = (*inbox_seq <= through, of_peer) {
                self.app.may_read(*conversation, *seq);
            }
            *inbox_seq > through
        });
    }

    fn handle_events(&mut self) {
        while let Some(event) = self.client.poll_event() {
            match event {
                Event::Connect => self.connect(),
                Event::Disconnect => {
                    self.connection = None;
                    self.client.handle_disconnected(self.now_us);
                }
                Event::Sent(accepted) => self.answer(accepted.client_message_id, true),
                Event::Rejected { id, retry: false, .. } => self.answer(id, false),
                Event::Delivered(entry) => {
                    let conversation = ConversationId::try_from(entry.conversation.as_ref()).expect("16 bytes");
                    let name = (conversation, entry.conversation_seq);
                    assert!(self.names.insert(name), "delivered twice: {name:?}");
                    self.delivered.push(name);
                    let name = (entry.sender != USER.0).then_some(name);
                    self.unpersisted.push((entry.inbox_seq, name));
                }
                Event::Gap(gap) => {
                    assert!(!gap.reset && gap.start <= self.server.acked + 1);
                    assert!(self.client.cursor().0 >= gap.start - 1);
                }
                Event::Receipt(receipt) => self.app.handle_receipt(receipt),
                Event::Answer { id, result } => self.app.handle_answer(id, result),
                Event::Cancelled { id } => self.app.handle_cancelled(id),
                Event::SyncStart(start) => self.app.handle_sync_start(&start),
                Event::SyncDone(done) => {
                    self.app.handle_sync_done(done);
                    for (inbox_seq, row) in self.server.rows(self.server.floor, done.inbox_seq) {
                        let has_come = self.names.contains(&(row.conversation, row.seq));
                        assert!(has_come || row.sender == Sender::Client, "{inbox_seq} is missing");
                    }
                }
                Event::ServerKey(learned) => {
                    assert_eq!(Some(learned), self.server.vault.as_ref().map(Vault::server_key));
                }
                Event::Violation(_) if self.is_tampered => self.ran.violations += 1,
                Event::LoggedIn(_) | Event::Goaway(_) | Event::ServerError(_) => {}
                Event::Rejected { retry: true, .. } => {}
                unexpected => panic!("{unexpected:?}"),
            }
        }
    }

    fn answer(&mut self, id: ClientMessageId, accepted: bool) {
        assert!(self.answers.insert(id, accepted).is_none(), "answered twice: {id}");
        self.answered.push(id);
    }

    fn connect(&mut self) {
        assert!(self.connection.is_none(), "two connections");
        self.connections += 1;
        self.app.forget_connection();
        if self.plan.cut_within.is_some() && self.rng.random_range(0..5) == 0 {
            self.client.handle_disconnected(self.now_us);
            return;
        }
        let is_first = self.connections == 1;
        let budget = |cut: Option<u64>, rng: &mut SmallRng| match (cut, self.plan.cut_within) {
            (Some(cut), _) if is_first => cut,
            (_, Some(within)) => rng.random_range(0..within),
            _ => u64::MAX,
        };
        let up_left = budget(self.plan.cut_up, &mut self.rng);
        let down_left = budget(self.plan.cut_down, &mut self.rng);
        let session = Session::new(self.client.receipts());
        let mut down = Vec::new();
        if self.plan.forge_errors > 0 && self.rng.random_range(0..100) < self.plan.forge_errors {
            let code = ErrorCode::ALL.choose(&mut self.rng).expect("there are some").number();
            let retry_after_ms = if self.rng.random() { u32::MAX } else { 0 };
            let error = proto::Error { code, retry_after_ms, ..Default::default() };
            Cipher::Plaintext.seal_message(&mut down, RecordType::Error, &error);
        }
        self.connection = Some(Connection { session, up: Vec::new(), down, up_left, down_left });
        self.client.handle_connected(self.now_us);
    }

    /// Moves some bytes each way. `false`: there were none.
    fn move_bytes(&mut self) -> bool {
        let Some(connection) = &mut self.connection else {
            return false;
        };
        let outgoing = self.client.transmit();
        let len = piece(&mut self.rng, outgoing.len(), connection.up_left);
        connection.up.extend_from_slice(outgoing.get(..len).expect("a piece of it"));
        connection.up_left -= len as u64;
        self.ran.bytes_up += len as u64;
        self.client.transmitted(len);
        let mut up = std::mem::take(&mut connection.up);
        tamper(&mut self.rng, self.plan.tamper, &mut up);
        self.serve(&up);
        let Some(connection) = &mut self.connection else {
            return true;
        };
        let back = piece(&mut self.rng, connection.down.len(), connection.down_left);
        connection.down_left -= back as u64;
        self.ran.bytes_down += back as u64;
        let mut down: Vec<u8> = connection.down.drain(..back).collect();
        tamper(&mut self.rng, self.plan.tamper, &mut down);
        self.client.handle_bytes(&down, self.now_us);
        len + back > 0
    }

    fn serve(&mut self, bytes: &[u8]) {
        if let Some(connection) = &mut self.connection {
            self.server.handle_bytes(&mut connection.session, bytes, &mut self.rng, &mut connection.down);
        }
    }

    fn cut(&mut self) {
        let is_cut = self.connection.as_ref().is_some_and(|connection| {
            let is_closed = connection.session.closing && connection.down.is_empty();
            connection.up_left == 0 || connection.down_left == 0 || is_closed
        });
        if is_cut {
            self.connection = None;
            self.client.handle_disconnected(self.now_us);
        }
    }

    fn pass_time(&mut self) {
        let due = self.client.poll_timeout().unwrap_or(self.now_us);
        self.now_us = due.max(self.now_us).min(self.now_us + 5_000);
        self.client.handle_timeout(self.now_us);
    }

    fn is_done(&self) -> bool {
        self.unsent.is_empty()
            && self.to_receive == 0
            && self.to_act == 0
            && self.to_call == 0
            && self.app.answered == self.plan.calls
            && self.client.in_flight() == 0
            && self.client.receipts() == self.server.marks.version()
            && self.server.acked == self.server.head()
    }

    fn check(&self) {
        assert_eq!(self.answered.len(), self.sent.len(), "each is answered");
        self.check_delivered();
        let is_accepted = |id: &ClientMessageId| self.answers.get(id).copied().expect("answered");
        let of = |conversation: ConversationId, list: &[(ConversationId, ClientMessageId)]| -> Vec<ClientMessageId> {
            list.iter().filter(|(of, _)| *of == conversation).map(|(_, id)| *id).collect()
        };
        for peer in 0..self.plan.conversations {
            let conversation = ConversationId::direct(USER, UserId(2 + peer));
            assert_eq!(self.app.mark(conversation), self.server.marks.get(conversation), "receipts are complete");
            let mut sent = of(conversation, &self.sent);
            let answered: Vec<ClientMessageId> = self.answered.iter().filter(|id| sent.contains(id)).copied().collect();
            assert_eq!(answered, sent, "answers come in the order of the sends of a conversation");
            sent.retain(is_accepted);
            assert_eq!(of(conversation, &self.server.accepted), sent, "accepted in the order sent");
        }
    }

    /// Everything has come, in inbox order, once, save what has expired and what the client sent itself.
    fn check_delivered(&self) {
        let mut delivered = self.delivered.iter().peekable();
        for (inbox_seq, row) in self.server.rows(0, u64::MAX) {
            if delivered.next_if(|name| **name == (row.conversation, row.seq)).is_some() {
                assert_ne!(row.sender, Sender::Client, "the client's own came back");
            } else {
                assert!(row.sender == Sender::Client || inbox_seq <= self.server.floor, "{inbox_seq} is missing");
            }
        }
        assert_eq!(delivered.next(), None, "out of order, or from nowhere");
    }
}

fn piece(rng: &mut SmallRng, len: usize, left: u64) -> usize {
    let len = len.min(usize::try_from(left).unwrap_or(usize::MAX));
    if len == 0 || rng.random_range(0..8) == 0 { 0 } else { rng.random_range(1..=len) }
}

/// Gives the client what it needs to encrypt, and returns what its server has.
fn encrypt(plan: &Plan, config: &mut ClientConfig, rng: &mut SmallRng) -> Vault {
    let mut vault = Vault::new(plan.tamper > 0);
    let own = Arc::new(KeyPair::new(&rng.random()));
    if plan.seed % 4 == 3 && plan.faults.unregister == 0 {
        // It has been here before.
        vault.registered = Some(*own.public());
        config.credential = Credential::DeviceKey;
    }
    config.encryption = Some(Encryption {
        suite: if plan.seed.is_multiple_of(2) { Suite::ChaCha20Poly1305 } else { Suite::Aes256Gcm },
        own,
        roots: vault.root.into(),
        server: plan.seed.is_multiple_of(3).then(|| vault.server_key()),
        forward_secret: plan.seed % 8 < 4,
        entropy: Secret::new(rng.random()),
        unix_ms: UNIX_MS,
    });
    // What is broken on its way shows only by its absence.
    (config.answer_timeout_ms, config.backoff_max_ms) = (300, 300);
    vault
}

/// Changes a piece of the stream, leaves out of it, repeats it, or turns it round.
fn tamper(rng: &mut SmallRng, percent: u32, bytes: &mut Vec<u8>) {
    if percent == 0 || bytes.is_empty() || rng.random_range(0..100) >= percent {
        return;
    }
    let place = rng.random_range(0..bytes.len());
    match rng.random_range(0..4) {
        0 => *bytes.get_mut(place).expect("within") ^= 1 << rng.random_range(0..8),
        1 => bytes.truncate(place),
        2 => bytes.extend_from_within(place..),
        _ => bytes.rotate_left(place),
    }
}
