//! Who takes part, and one good flight of each type and suite: always the same, for nothing here is random.

use std::sync::{Arc, LazyLock};

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use bytes::Bytes;
use culver_protocol::client::{Client, ClientConfig, Credential, Encryption, Event, SavedTicket};
use culver_protocol::crypto::{KEY_LEN, KeyPair, Secret, Suite, hkdf};
use culver_protocol::handshake::certificate::Certificate;
use culver_protocol::handshake::client::{How, ServerKey, Waiting, begin};
use culver_protocol::handshake::server::{
    Accepted, Awaiting, Resumed, accept_ik, accept_ticket, begin_xx, split_ticket,
};
use culver_protocol::handshake::{Established, HandshakeError, Kind};
use culver_protocol::id::{DeviceId, UserId};
use culver_protocol::limits::PREAMBLE_LEN;
use culver_protocol::preamble::Preamble;
use culver_protocol::proto;
use culver_protocol::record::{Cipher, RecordType};

/// The client's time.
pub const NOW_MS: u64 = 1_800_000_000_000;
/// What the flights' first messages carry.
pub const LOGIN: &[u8] = b"who I am, and where delivery goes on";
/// A flight's first record, either way.
const RECORD: &[u8] = b"a record";
const TICKET: &[u8] = &[9; 70];

pub fn secret(byte: u8) -> Secret {
    Secret::new([byte; KEY_LEN])
}

fn device_pair() -> &'static Arc<KeyPair> {
    static PAIR: LazyLock<Arc<KeyPair>> = LazyLock::new(|| Arc::new(KeyPair::new(&secret(1))));
    &PAIR
}

pub fn server_pair() -> &'static Arc<KeyPair> {
    static PAIR: LazyLock<Arc<KeyPair>> = LazyLock::new(|| Arc::new(KeyPair::new(&secret(2))));
    &PAIR
}

/// What the server's certificate says: for four milliseconds, so that few times show every edge.
pub fn certified() -> Certificate {
    Certificate { key_id: 7, public: *server_pair().public(), not_before_ms: NOW_MS - 2, not_after_ms: NOW_MS + 2 }
}

fn root() -> &'static Ed25519KeyPair {
    static ROOT: LazyLock<Ed25519KeyPair> =
        LazyLock::new(|| Ed25519KeyPair::from_seed_unchecked(&[3; KEY_LEN]).expect("any seed is a key"));
    &ROOT
}

pub fn root_public() -> [u8; KEY_LEN] {
    root().public_key().as_ref().try_into().expect("32 bytes")
}

pub fn certificate() -> &'static [u8] {
    static CERTIFICATE: LazyLock<Vec<u8>> = LazyLock::new(|| {
        let signature = root().sign(&certified().signed_bytes());
        certified().encode(signature.as_ref().try_into().expect("64 bytes")).to_vec()
    });
    &CERTIFICATE
}

/// What one side has made of a handshake, as far as it shows.
#[derive(Debug, PartialEq, Eq)]
pub struct Outcome {
    resumption: Secret,
    /// Its first record, sealed.
    sealed: Vec<u8>,
    /// Its first record from the other, opened.
    opened: Option<Vec<u8>>,
}

fn seal(suite: Suite, established: &mut Established) -> Vec<u8> {
    let mut body = RECORD.to_vec();
    let tag = established.keys.sending.seal(suite, &mut body);
    [body.as_slice(), &tag].concat()
}

/// One good handshake, and a client's stream behind it.
pub struct Flight {
    pub kind: Kind,
    pub suite: Suite,
    pub preamble: [u8; PREAMBLE_LEN],
    pub messages: Vec<Vec<u8>>,
    at_client: Outcome,
    at_server: Outcome,
    /// What a server sends to [`client`], and what that makes of it.
    pub stream: Vec<u8>,
    pub events: Vec<Event>,
}

impl Flight {
    fn play(kind: Kind, suite: Suite) -> Self {
        let (preamble, message, waiting) = begin(&how(kind), suite, LOGIN, secret(5)).expect("good keys");
        let preamble = preamble.encode();
        let begun = accept(kind, suite, preamble, &message).expect("a good message");
        let mut messages = vec![message, begun.answer().to_vec()];
        let done = waiting.finish(begun.answer(), NOW_MS).expect("a good answer");
        messages.extend(done.last);
        let mut client = done.established;
        let mut server = begun.finish(messages.last().expect("two or three")).established;
        let (from_client, from_server) = (seal(suite, &mut client), seal(suite, &mut server));
        let outcome = |mut established: Established, sealed, mut received: Vec<u8>| {
            let opened = established.keys.receiving.open(suite, &mut received).map(|opened| opened.to_vec());
            assert_eq!(opened.as_deref(), Some(RECORD));
            Outcome { resumption: established.resumption, sealed, opened }
        };
        let at_client = outcome(client, from_client.clone(), from_server.clone());
        let at_server = outcome(server, from_server, from_client);
        let (stream, events) = (Vec::new(), Vec::new());
        let mut flight = Self { kind, suite, preamble, messages, at_client, at_server, stream, events };
        flight.play_stream();
        flight
    }

    /// The same handshake by a whole client, whose randomness is its own, and what a server says first.
    fn play_stream(&mut self) {
        let mut client = client(self.kind, self.suite);
        let sent = client.transmit().to_vec();
        client.transmitted(sent.len());
        let (preamble, message) = sent.split_first_chunk().expect("a preamble");
        let begun = accept(self.kind, self.suite, *preamble, &message[2..]).expect("a good message");
        Cipher::Plaintext.seal(&mut self.stream, RecordType::Handshake, |out| out.extend_from_slice(begun.answer()));
        client.handle_bytes(&self.stream, 1);
        let sent = client.transmit();
        let len = usize::from(u16::from_be_bytes([sent[0], sent[1]]));
        let mut cipher = Cipher::Sealed(self.suite, begun.finish(&sent[2..2 + len]).established.keys);
        let welcome = proto::Welcome {
            ticket: Bytes::from_static(b"the next"),
            version: 1,
            keep_alive_s: 30,
            ..Default::default()
        };
        let out = &mut self.stream;
        let start = out.len();
        cipher.seal_message(out, RecordType::Welcome, &welcome);
        cipher.seal_message(out, RecordType::SyncStart, &proto::SyncStart::default());
        cipher.change_key(out);
        cipher.seal_message(out, RecordType::Receipt, &proto::Receipt { version: 4, ..Default::default() });
        cipher.seal_message(out, RecordType::Ping, &proto::Ping { nonce: 5, ..Default::default() });
        cipher.seal_message(out, RecordType::SyncDone, &proto::SyncDone::default());
        client.handle_bytes(&self.stream[start..], 1);
        self.events.extend(std::iter::from_fn(|| client.poll_event()));
        assert!(matches!(self.events.last(), Some(Event::SyncDone(_))), "{:?}", self.events);
    }

    /// The client's side, up to the answer.
    pub fn begin(&self) -> Waiting {
        let (preamble, message, waiting) = begin(&how(self.kind), self.suite, LOGIN, secret(5)).expect("good keys");
        assert_eq!((preamble.encode(), &message), (self.preamble, &self.messages[0]), "nothing is random");
        waiting
    }

    /// Whether the client has from its handshake what it has from the good one: everything, or nothing of it.
    pub fn is_clients(&self, established: Established) -> bool {
        self.is(&self.at_client, &self.at_server.sealed, established)
    }

    /// Whether the server has.
    pub fn is_servers(&self, established: Established) -> bool {
        self.is(&self.at_server, &self.at_client.sealed, established)
    }

    fn is(&self, good: &Outcome, received: &[u8], mut established: Established) -> bool {
        let sealed = seal(self.suite, &mut established);
        let mut received = received.to_vec();
        let opened = established.keys.receiving.open(self.suite, &mut received).map(|opened| opened.to_vec());
        let is_same = good.resumption == established.resumption;
        assert_eq!((sealed == good.sealed, opened == good.opened), (is_same, is_same));
        is_same
    }
}

/// Each type with each suite: the suites of one type lie side by side.
pub fn flights() -> &'static [Flight] {
    static FLIGHTS: LazyLock<Vec<Flight>> = LazyLock::new(|| {
        Kind::ALL.into_iter().flat_map(|kind| Suite::ALL.map(|suite| Flight::play(kind, suite))).collect()
    });
    &FLIGHTS
}

fn server_key() -> ServerKey {
    certified().into()
}

fn how(kind: Kind) -> How {
    let own = Arc::clone(device_pair());
    match kind {
        Kind::Ik => How::Ik { own, server: server_key() },
        Kind::Xx => How::Xx { own, roots: root_public().into() },
        Kind::Resume | Kind::ResumeForwardSecret => How::Ticket {
            ticket: TICKET.to_vec(),
            secret: secret(4),
            forward_secret: kind == Kind::ResumeForwardSecret,
        },
    }
}

/// A client that has begun this handshake.
pub fn client(kind: Kind, suite: Suite) -> Client {
    let encryption = Encryption {
        suite,
        own: Arc::clone(device_pair()),
        roots: root_public().into(),
        server: (kind == Kind::Ik).then(server_key),
        forward_secret: kind == Kind::ResumeForwardSecret,
        // Not that of the flights: two would seal different logins with one key.
        entropy: hkdf(&[kind as u8, suite as u8], secret(5).as_slice(), b"a client"),
        unix_ms: NOW_MS,
    };
    let credential = match kind {
        Kind::Ik | Kind::Xx => Credential::DeviceKey,
        _ => Credential::Ticket(SavedTicket { bytes: Bytes::from_static(TICKET), secret: Some(secret(4)) }),
    };
    let mut client = Client::new(ClientConfig {
        user: UserId(1),
        device: DeviceId(2),
        credential,
        encryption: Some(encryption),
        ..ClientConfig::default()
    });
    assert_eq!(client.poll_event(), Some(Event::Connect));
    client.handle_connected(0);
    client
}

/// What the server has after a first message.
pub enum Server {
    Through(Box<Accepted>),
    /// Noise XX, and the answer.
    Awaiting(Awaiting, Vec<u8>),
}

impl Server {
    fn answer(&self) -> &[u8] {
        match self {
            Self::Through(accepted) => accepted.answer.as_ref().expect("two messages"),
            Self::Awaiting(_, answer) => answer,
        }
    }

    /// `last`: Noise XX's third message.
    fn finish(self, last: &[u8]) -> Accepted {
        match self {
            Self::Through(accepted) => *accepted,
            Self::Awaiting(awaiting, _) => awaiting.finish(last).expect("a good message"),
        }
    }
}

/// A first message at the server, which does what it does for this type and suite.
pub fn accept(
    kind: Kind,
    suite: Suite,
    preamble: [u8; PREAMBLE_LEN],
    message: &[u8],
) -> Result<Server, HandshakeError> {
    let entropy = secret(6);
    let accepted = match kind {
        Kind::Ik => accept_ik(suite, preamble, server_pair(), message, entropy)?,
        Kind::Xx => {
            let (awaiting, answer) = begin_xx(suite, preamble, (server_pair(), certificate()), message, entropy)?;
            return Ok(Server::Awaiting(awaiting, answer));
        }
        Kind::Resume | Kind::ResumeForwardSecret => {
            let (ticket, rest) = split_ticket(message)?;
            let resumed = Resumed { ticket, secret: &secret(4) };
            accept_ticket((kind, suite), preamble, resumed, rest, entropy)?
        }
    };
    Ok(Server::Through(Box::new(accepted)))
}

/// The type and suite that a preamble asks for: what the server goes by.
pub fn asked_for(preamble: [u8; PREAMBLE_LEN]) -> Option<(Kind, Suite)> {
    let preamble = Preamble::decode(preamble).ok()?;
    preamble.agree_version().ok()?;
    Some((Kind::from_number(preamble.handshake)?, Suite::from_number(preamble.suite)?))
}
