//! Resume tickets: sealed by the server for itself, opaque to the client.
//!
//! ```text
//!  0         1        2            14                                                        45 or 93
//!  ┌─────────┬────────┬────────────┬─────────────────────────────────────────────────────────┬─────────┐
//!  │ version │ key id │ nonce      │ sealed: kind u8 ‖ user u64 ‖ device u16 ‖ generation    │ tag     │
//!  │ 3       │        │ 12 random  │  u32 ‖ incarnation u64 ‖ issued u64 (ms since 1970)     │ 16      │
//!  │         │        │            │  kind 1: ‖ fingerprint 16 ‖ secret 32                   │         │
//!  └─────────┴────────┴────────────┴─────────────────────────────────────────────────────────┴─────────┘
//!    bound in as associated data     AES-256-GCM; integers big-endian
//! ```
//!
//! Kind 0 is a plaintext session's, kind 1 an encrypted one's: neither is of use for the other. When it was issued says
//! when its life is over, and whether a device of its user was removed since: then it is void. Random nonces keep one
//! key good for 2³² tickets (NIST SP 800-38D, 8.3). Never reads storage and checks no signature.

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use bytes::Bytes;
use culver_protocol::crypto::{FINGERPRINT_LEN, KEY_LEN, Secret};
use culver_protocol::error::ErrorCode;
use culver_protocol::id::{DeviceId, Incarnation, UserId};
use culver_protocol::limits::{TAG_LEN, TICKET_LEN_MAX};
use culver_storage::planted::{self, Bug};
use zeroize::Zeroizing;

use super::ticket_keys::{NumberedKey, TicketKey, TicketKeys};
use super::{Fingerprint, Identity, Ticket};
use crate::config;

const VERSION: u8 = 3;
const PREFIX_LEN: usize = 2;
const PLAINTEXT: u8 = 0;
const ENCRYPTED: u8 = 1;
const FIELDS_LEN: usize = 1 + 8 + 2 + 4 + 8 + 8;
const FIELDS_LEN_MAX: usize = FIELDS_LEN + FINGERPRINT_LEN + KEY_LEN;
const BESIDE_LEN: usize = PREFIX_LEN + NONCE_LEN + TAG_LEN;
/// Bytes of a plaintext session's ticket.
pub const TICKET_LEN: usize = BESIDE_LEN + FIELDS_LEN;
/// Bytes of an encrypted session's ticket.
pub const TICKET_LEN_ENCRYPTED: usize = BESIDE_LEN + FIELDS_LEN_MAX;

const _: () = assert!(TICKET_LEN_ENCRYPTED <= TICKET_LEN_MAX);

/// What a ticket says. It has both a fingerprint and a secret, or neither.
#[derive(Clone)]
pub struct TicketContents {
    /// Who it was given to.
    pub identity: Identity,
    /// The device's key. `None`: a plaintext session's.
    pub fingerprint: Option<Fingerprint>,
    /// What the next handshake begins with.
    pub secret: Option<Secret>,
}

impl TicketContents {
    /// What a plaintext session's ticket says.
    #[must_use]
    pub fn plaintext(identity: Identity) -> Self {
        Self { identity, fingerprint: None, secret: None }
    }

    /// What an encrypted session's ticket says.
    #[must_use]
    pub fn encrypted(identity: Identity, fingerprint: Fingerprint, secret: Secret) -> Self {
        Self { identity, fingerprint: Some(fingerprint), secret: Some(secret) }
    }
}

/// What is read from a good ticket.
#[derive(Clone, Debug)]
pub struct OpenedTicket {
    /// What it says.
    pub contents: TicketContents,
    /// When it was issued, in seconds since 1970.
    pub issued_s: u64,
}

/// Seals and opens tickets.
#[derive(Debug)]
pub struct TicketSealer {
    /// By number; the last one seals.
    keys: Vec<(u8, LessSafeKey)>,
    life_ms: u64,
    generation: u32,
    incarnation: Incarnation,
    nonces: fn() -> [u8; NONCE_LEN],
}

fn random_nonce() -> [u8; NONCE_LEN] {
    let mut nonce = [0; NONCE_LEN];
    aws_lc_rs::rand::fill(&mut nonce).expect("the system's random generator works");
    nonce
}

impl TicketSealer {
    /// A sealer with one key, for one data directory: tickets of another incarnation, or of a lower generation, are
    /// stale.
    #[must_use]
    pub fn new(key: &TicketKey, settings: config::Ticket, incarnation: Incarnation) -> Self {
        Self::with_keys(&TicketKeys::of(key.clone(), 0), settings, incarnation)
    }

    /// The same with several keys.
    ///
    /// # Panics
    /// Never: the keys have the cipher's length by their type.
    #[must_use]
    pub fn with_keys(keys: &TicketKeys, settings: config::Ticket, incarnation: Incarnation) -> Self {
        let cipher = |NumberedKey { id, key, .. }: &NumberedKey| {
            let key = UnboundKey::new(&AES_256_GCM, key.bytes()).expect("a ticket key has 32 bytes");
            (*id, LessSafeKey::new(key))
        };
        let keys = keys.all().iter().map(cipher).collect();
        let life_ms = settings.life_s.saturating_mul(1000);
        Self { keys, life_ms, generation: settings.generation, incarnation, nonces: random_nonce }
    }

    /// Takes nonces from there instead of the system's generator, for worlds that are to be the same again: whoever gets
    /// two tickets with the same nonce can make a third.
    #[doc(hidden)]
    #[must_use]
    pub fn with_nonces(self, nonces: fn() -> [u8; NONCE_LEN]) -> Self {
        Self { nonces, ..self }
    }

    /// The number of the key that seals.
    pub(super) fn sealing_id(&self) -> Option<u8> {
        self.keys.last().map(|(id, _)| *id)
    }

    /// How many keys there are.
    pub(super) fn key_count(&self) -> usize {
        self.keys.len()
    }

    /// A ticket that says this, good from now on for its life.
    ///
    /// # Panics
    /// If the system has no randomness to give, or `contents` has only one of fingerprint and secret.
    #[must_use]
    pub fn seal(&self, contents: &TicketContents, now_ms: u64) -> Ticket {
        let expires_ms = now_ms.saturating_add(self.life_ms);
        let nonce = (self.nonces)();
        let mut sealed = Zeroizing::new(Vec::with_capacity(FIELDS_LEN_MAX));
        self.put_fields(&mut sealed, contents, now_ms);
        let (id, key) = self.keys.last().expect("there is a key");
        let prefix = [VERSION, *id];
        let tag = key
            .seal_in_place_separate_tag(Nonce::assume_unique_for_key(nonce), Aad::from(prefix), &mut sealed)
            .expect("a few bytes are within the cipher's limit");
        let bytes = [prefix.as_slice(), nonce.as_slice(), sealed.as_slice(), tag.as_ref()].concat();
        assert!(bytes.len() == TICKET_LEN || bytes.len() == TICKET_LEN_ENCRYPTED, "the fields fill the sealed part");
        Ticket { bytes: Bytes::from(bytes), expires_ms }
    }

    fn put_fields(&self, out: &mut Vec<u8>, contents: &TicketContents, issued_ms: u64) {
        let TicketContents { identity, fingerprint, secret } = contents;
        out.push(if secret.is_some() { ENCRYPTED } else { PLAINTEXT });
        out.extend_from_slice(&identity.user.0.to_be_bytes());
        out.extend_from_slice(&identity.device.0.to_be_bytes());
        out.extend_from_slice(&self.generation.to_be_bytes());
        out.extend_from_slice(&self.incarnation.0.to_be_bytes());
        out.extend_from_slice(&issued_ms.to_be_bytes());
        match (fingerprint, secret) {
            (Some(fingerprint), Some(secret)) => {
                out.extend_from_slice(fingerprint);
                out.extend_from_slice(secret.as_slice());
            }
            (None, None) => {}
            _ => panic!("a ticket has both a fingerprint and a secret, or neither"),
        }
    }

    /// What a ticket says.
    ///
    /// # Errors
    /// `TicketInvalid`: not sealed with a key of these. `TicketStale`: of another incarnation or a lower generation.
    /// `TicketExpired`: its life is over.
    pub fn open(&self, ticket: &[u8], now_ms: u64) -> Result<OpenedTicket, ErrorCode> {
        let fields = self.unseal(ticket).ok_or(ErrorCode::TicketInvalid)?;
        let is_old = fields.generation < self.generation && !planted::is(Bug::StaleTicketAccepted);
        if fields.incarnation != self.incarnation || is_old {
            return Err(ErrorCode::TicketStale);
        }
        if fields.issued_ms.saturating_add(self.life_ms) <= now_ms {
            return Err(ErrorCode::TicketExpired);
        }
        Ok(OpenedTicket { contents: fields.contents, issued_s: fields.issued_ms / 1000 })
    }

    fn unseal(&self, ticket: &[u8]) -> Option<Fields> {
        if ticket.len() != TICKET_LEN && ticket.len() != TICKET_LEN_ENCRYPTED {
            return None;
        }
        let (prefix, rest) = ticket.split_first_chunk::<PREFIX_LEN>()?;
        let (nonce, sealed) = rest.split_first_chunk::<NONCE_LEN>()?;
        let [version, id] = *prefix;
        if version != VERSION {
            return None;
        }
        let (_, key) = self.keys.iter().find(|(known, _)| *known == id)?;
        let mut sealed = Zeroizing::new(sealed.to_vec());
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let opened = key.open_in_place(nonce, Aad::from(*prefix), &mut sealed).ok()?;
        Fields::read(opened)
    }
}

struct Fields {
    contents: TicketContents,
    generation: u32,
    incarnation: Incarnation,
    issued_ms: u64,
}

impl Fields {
    fn read(bytes: &[u8]) -> Option<Self> {
        let ([kind], bytes) = bytes.split_first_chunk()?;
        let (user, bytes) = bytes.split_first_chunk()?;
        let (device, bytes) = bytes.split_first_chunk()?;
        let (generation, bytes) = bytes.split_first_chunk()?;
        let (incarnation, bytes) = bytes.split_first_chunk()?;
        let (issued_ms, bytes) = bytes.split_first_chunk()?;
        let identity =
            Identity { user: UserId(u64::from_be_bytes(*user)), device: DeviceId(u16::from_be_bytes(*device)) };
        let contents = match (*kind, bytes.len()) {
            (PLAINTEXT, 0) => TicketContents::plaintext(identity),
            (ENCRYPTED, _) => {
                let (fingerprint, secret) = bytes.split_first_chunk()?;
                TicketContents::encrypted(identity, *fingerprint, Secret::new(secret.try_into().ok()?))
            }
            _ => return None,
        };
        Some(Self {
            contents,
            generation: u32::from_be_bytes(*generation),
            incarnation: Incarnation(u64::from_be_bytes(*incarnation)),
            issued_ms: u64::from_be_bytes(*issued_ms),
        })
    }
}

impl std::fmt::Debug for TicketContents {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let is_encrypted = self.secret.is_some();
        f.debug_struct("TicketContents").field("identity", &self.identity).field("is_encrypted", &is_encrypted).finish()
    }
}
