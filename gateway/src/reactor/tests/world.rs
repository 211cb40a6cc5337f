//! A reactor, sockets that are edge-triggered as epoll's are, and hubs that say what the test has them say.

use std::cell::RefCell;
use std::io::{self, Read, Write};
use std::rc::Rc;
use std::sync::OnceLock;

use culver_protocol::crypto::{KeyPair, random};
use culver_protocol::id::{ConversationId, DeviceId, InboxSeq, UserId};
use culver_protocol::limits::HEADER_LEN;
use culver_protocol::message::SendView;
use culver_protocol::preamble::Preamble;
use culver_protocol::proto;
use culver_protocol::record::{Record, RecordType, split};
use culver_storage::topology::HUBS_MAX;
use prost::Message;

use super::super::*;
use crate::auth::keys::{TicketKey, TokenKeys};
use crate::auth::{Identity, Root, ServerKeys, TicketContents, TicketSealer, TokenVerifier};
use crate::hub::command::{Address, Device};
use crate::hub::effect::{Effect, EffectKind};
use crate::mailbox::{self, Link};

pub(super) const SOURCE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 7));
const INCARNATION: Incarnation = Incarnation(42);
const WALL_MS: u64 = 1_800_000_000_000;
pub(super) const MAIL: mailbox::Bounds = mailbox::Bounds { commands: 8, kept: 2, replies: 16, deliveries: 16 };

/// Both ends of a connection.
#[derive(Default)]
pub(super) struct Pipe {
    pub(super) to_server: Vec<u8>,
    client_is_done: bool,
    to_client: Vec<u8>,
    /// Bytes that the server can write now.
    pub(super) room: usize,
    pub(super) server_is_done: bool,
    pub(super) closed: bool,
}

/// The server's end.
pub(super) struct Wire(Rc<RefCell<Pipe>>);

impl Read for Wire {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut pipe = self.0.borrow_mut();
        let len = pipe.to_server.len().min(buffer.len());
        if len == 0 && !pipe.client_is_done {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        buffer[..len].copy_from_slice(&pipe.to_server[..len]);
        pipe.to_server.drain(..len);
        Ok(len)
    }
}

impl Write for Wire {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut pipe = self.0.borrow_mut();
        let len = bytes.len().min(pipe.room);
        if len == 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        pipe.to_client.extend_from_slice(&bytes[..len]);
        pipe.room -= len;
        Ok(len)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Socket for Wire {
    fn finish(&mut self) {
        self.0.borrow_mut().server_is_done = true;
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.0.borrow_mut().closed = true;
    }
}

/// A client: its end, and the slot of the other.
pub(super) struct Peer {
    pub(super) slot: u32,
    pub(super) user: UserId,
    pub(super) pipe: Rc<RefCell<Pipe>>,
}

pub(super) struct World {
    pub(super) reactor: Reactor<Wire>,
    pub(super) links: Vec<Arc<Link>>,
    pub(super) topology: Arc<Topology>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) now_us: u64,
}

fn authenticator() -> Arc<Authenticator> {
    static MADE: OnceLock<Arc<Authenticator>> = OnceLock::new();
    let make = || {
        let config = Config::default();
        let keys = TokenKeys::generate().expect("keys");
        let verifier = TokenVerifier::new(&keys.public_pem, &config.token).expect("a fresh key");
        let tickets = TicketSealer::new(&TicketKey::generate().expect("a key"), config.ticket, INCARNATION);
        let server = Root::generate().certify_pair(1, KeyPair::new(&random()), (0, u64::MAX));
        Arc::new(Authenticator::new(verifier, tickets, ServerKeys::new(vec![server], WALL_MS)))
    };
    Arc::clone(MADE.get_or_init(make))
}

impl World {
    pub(super) fn new() -> Self {
        Self::with(|_| ())
    }

    /// A reactor whose surroundings are a little different.
    pub(super) fn with(change: impl FnOnce(&mut Surroundings)) -> Self {
        let topology = Arc::new(Topology::new(64, vec![0; 64], HUBS_MAX).expect("possible"));
        let metrics = Arc::new(Metrics::new(1, 0));
        let mut around = Surroundings {
            config: Arc::default(),
            authenticator: authenticator(),
            incarnation: INCARNATION,
            topology: Arc::clone(&topology),
            metrics: Arc::clone(&metrics),
            epochs: Arc::default(),
            offer: Arc::new(Config::default().offer()),
            logins: admission::Limits::default(),
            handshake_ppm: Config::default().handshake_ppm(1, 1),
            entropy: Arc::new(culver_protocol::crypto::random),
            connections_max: 100,
            bounds: Bounds::default(),
        };
        change(&mut around);
        let links: Vec<Arc<Link>> = (0..HUBS_MAX).map(|_| Arc::new(Link::new(MAIL))).collect();
        let to_hub = |link: &Arc<Link>| ToHub { link: Arc::clone(link), ring: Arc::new(|| true) };
        let hubs = links.iter().map(to_hub).collect();
        let mut world = Self { reactor: Reactor::new(0, hubs, around), links, topology, metrics, now_us: 77 };
        world.turn(|_| ());
        world
    }

    /// One turn, in which the sockets have this to say.
    pub(super) fn turn<T>(&mut self, sockets: impl FnOnce(&mut Reactor<Wire>) -> T) -> T {
        self.reactor.begin_turn(Now { wall_ms: WALL_MS, mono_us: self.now_us });
        let said = sockets(&mut self.reactor);
        self.reactor.end_turn();
        self.reactor.check_unsent();
        said
    }

    /// Turns for as long as there is something to do without anybody's help.
    pub(super) fn settle(&mut self) {
        for _ in 0..1000 {
            if self.reactor.plan_wait() != Wait::Not {
                return;
            }
            self.turn(|_| ());
        }
        panic!("it never comes to rest");
    }

    /// Time passes, a second at a time, as it does where nothing else happens.
    pub(super) fn pass(&mut self, seconds: u64) {
        for _ in 0..seconds {
            self.now_us += 1_000_000;
            self.turn(|_| ());
            self.settle();
        }
    }

    /// A connection that has said nothing yet, with room for so many bytes to it.
    pub(super) fn connect(&mut self, user: u64, room: usize) -> Option<Peer> {
        let pipe = Rc::new(RefCell::new(Pipe { room, ..Pipe::default() }));
        let slot = self.turn(|reactor| reactor.accept(Wire(Rc::clone(&pipe)), SOURCE))?;
        Some(Peer { slot, user: UserId(user), pipe })
    }

    /// A connection from somewhere, of which the kernel says when this has been said. `Err`: it is refused.
    pub(super) fn knock(&mut self, source: IpAddr, said: &[u8]) -> Result<Peer, Peer> {
        let pipe = Pipe { room: usize::MAX, to_server: said.to_vec(), ..Pipe::default() };
        let pipe = Rc::new(RefCell::new(pipe));
        let slot = self.turn(|reactor| reactor.accept(Wire(Rc::clone(&pipe)), source));
        let peer = Peer { slot: slot.unwrap_or(u32::MAX), user: UserId(1), pipe };
        if slot.is_some() { Ok(peer) } else { Err(peer) }
    }

    /// A session, and the address by which its hub knows it.
    pub(super) fn log_in(&mut self, user: u64) -> (Peer, Address) {
        let peer = self.connect(user, usize::MAX).expect("there is room");
        let address = self.log_in_as(&peer);
        (peer, address)
    }

    pub(super) fn log_in_as(&mut self, peer: &Peer) -> Address {
        self.give(peer, &opening(peer.user));
        let (hub, session) = self.take_login(peer);
        self.let_in(hub, session);
        session
    }

    /// A client that has said READY, and these bytes in the same flight: its hub has been told, and has said nothing.
    pub(super) fn enter(&mut self, user: u64, behind: &[u8]) -> (Peer, HubId, Address) {
        let peer = self.connect(user, usize::MAX).expect("there is room");
        self.give(&peer, &[opening(peer.user).as_slice(), behind].concat());
        assert_eq!(peer.take(), [RecordType::Welcome]);
        let (hub, session) = self.take_login(&peer);
        (peer, hub, session)
    }

    pub(super) fn take_login(&mut self, peer: &Peer) -> (HubId, Address) {
        let hub = self.topology.hub_of_user(peer.user);
        let command = self.links[hub.index()].take_command();
        let Some(Command::Login { session, .. }) = command else { panic!("{command:?}") };
        (hub, session)
    }

    pub(super) fn let_in(&mut self, hub: HubId, session: Address) {
        let kind = EffectKind::LoggedIn { cursor: InboxSeq(0), reset: false, gap: false, siblings: false };
        self.reply(hub, session, kind);
        self.turn(|_| ());
    }

    /// A client's bytes arrive, and its socket says so: once.
    pub(super) fn give(&mut self, peer: &Peer, bytes: &[u8]) {
        peer.pipe.borrow_mut().to_server.extend_from_slice(bytes);
        self.turn(|reactor| reactor.handle_readable(peer.slot, false));
    }

    /// A client ends its stream behind these bytes.
    pub(super) fn hang_up(&mut self, peer: &Peer, bytes: &[u8]) {
        let mut pipe = peer.pipe.borrow_mut();
        pipe.to_server.extend_from_slice(bytes);
        pipe.client_is_done = true;
        drop(pipe);
        self.turn(|reactor| reactor.handle_closed(peer.slot));
    }

    /// A client reads: there is room for so many bytes again, and its socket says so.
    pub(super) fn make_room(&mut self, peer: &Peer, room: usize) {
        peer.pipe.borrow_mut().room = room;
        self.turn(|reactor| reactor.handle_writable(peer.slot));
    }

    pub(super) fn reply(&mut self, hub: HubId, session: Address, kind: EffectKind) {
        self.links[hub.index()].post_reply(Effect { session, kind });
    }

    pub(super) fn deliver(&mut self, hub: HubId, session: Address, kind: EffectKind) {
        assert!(self.links[hub.index()].post_delivery(Effect { session, kind }).is_ok());
    }

    /// The hub's next command must be this session's end; it says that it knows.
    pub(super) fn close(&mut self, hub: HubId, session: Address) {
        let command = self.links[hub.index()].take_command();
        assert!(matches!(command, Some(Command::Close { session: closed, .. }) if closed == session), "{command:?}");
        self.reply(hub, session, EffectKind::Closed);
        self.turn(|_| ());
    }

    /// Everybody has gone, and nothing is left of them.
    pub(super) fn assert_empty(&self) {
        let reactor = &self.reactor;
        assert_eq!((reactor.connections(), reactor.buffers_taken(), reactor.timers()), (0, 0, 0));
        assert!(reactor.is_idle());
        assert_eq!(self.metrics.reactor(0).connections.get(), 0);
    }
}

impl Peer {
    /// What has come: the types of the records.
    pub(super) fn take(&self) -> Vec<RecordType> {
        self.take_records().into_iter().map(|(kind, _)| kind).collect()
    }

    /// What has come: the records.
    pub(super) fn take_records(&self) -> Vec<(RecordType, Vec<u8>)> {
        let bytes = std::mem::take(&mut self.pipe.borrow_mut().to_client);
        let mut rest = bytes.as_slice();
        let mut records = Vec::new();
        while let Some(range) = split(rest, HEADER_LEN, usize::MAX).expect("good frames") {
            let end = range.end;
            let record = Record::parse(&rest[range]).expect("not empty");
            records.push((RecordType::from_number(record.kind).expect("known"), record.body.to_vec()));
            rest = &rest[end..];
        }
        assert!(rest.is_empty(), "whole records only");
        records
    }

    pub(super) fn is_closed(&self) -> bool {
        self.pipe.borrow().closed
    }

    pub(super) fn device(&self) -> Device {
        Device { user: self.user, device: DeviceId(1) }
    }
}

pub(super) fn opening(user: UserId) -> Vec<u8> {
    let contents = TicketContents::plaintext(Identity { user, device: DeviceId(1) });
    let ticket = authenticator().issue_ticket(&contents, WALL_MS).bytes;
    let credential = Some(proto::login::Credential::Ticket(ticket));
    let login = proto::Login { credential, ..Default::default() }.encode_to_vec();
    let mut bytes = Preamble::PLAINTEXT.encode().to_vec();
    bytes.extend(u16::try_from(login.len()).expect("short").to_be_bytes());
    bytes.extend(login);
    bytes.extend(record(RecordType::Ready, &[]));
    bytes
}

pub(super) fn record(kind: RecordType, body: &[u8]) -> Vec<u8> {
    let mut bytes = u16::try_from(body.len() + HEADER_LEN).expect("short").to_be_bytes().to_vec();
    bytes.extend([kind as u8, 0]);
    bytes.extend(body);
    bytes
}

pub(super) fn send(number: u8, conversation: ConversationId, payload: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    SendView { client_message_id: &[number; 16], conversation: &conversation.0, payload }.encode(&mut body);
    record(RecordType::Send, &body)
}

pub(super) fn ping() -> Vec<u8> {
    record(RecordType::Ping, &proto::Ping { nonce: u64::MAX, ..Default::default() }.encode_to_vec())
}

/// A backlog of nothing, which is written whatever the session has been sent.
pub(super) fn sync_start() -> EffectKind {
    EffectKind::SyncStart { online: 0, entries: 0, through: InboxSeq(0), conversations: Vec::new() }
}

/// A conversation whose home is with this hub.
pub(super) fn conversation_at(topology: &Topology, hub: HubId) -> ConversationId {
    let conversations = (0..=u8::MAX).map(|number| ConversationId([number; 16]));
    conversations.into_iter().find(|id| topology.hub_of_conversation(*id) == hub).expect("some are everywhere")
}
