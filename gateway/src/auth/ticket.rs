//! Resume tickets: sealed by the server for itself, opaque to the client.
//!
//! ```text
//!  0         1        2            14                                                        44        60
//!  ┌─────────┬────────┬────────────┬─────────────────────────────────────────────────────────┬─────────┐
//!  │ version │ key id │ nonce      │ sealed: user u64 ‖ device u16 ‖ generation u32 ‖        │ tag     │
//!  │ 1       │ 1      │ 12 random  │         incarnation u64 ‖ expiry u64 (ms since 1970)    │ 16      │
//!  └─────────┴────────┴────────────┴─────────────────────────────────────────────────────────┴─────────┘
//!    bound in as associated data     AES-256-GCM; integers big-endian
//! ```
//!
//! Random nonces keep one key good for 2³² tickets (NIST SP 800-38D, 8.3); deleting `keys/ticket.key` before a start
//! makes another. Never reads storage and checks no signature.

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use bytes::Bytes;
use culver_protocol::error::ErrorCode;
use culver_protocol::id::{DeviceId, Incarnation, UserId};
use culver_protocol::limits::{TAG_LEN, TICKET_LEN_MAX};
use culver_storage::planted::{self, Bug};

use super::{Identity, Ticket, keys::TicketKey};
use crate::config;

const VERSION: u8 = 1;
const KEY_ID: u8 = 1;
const PREFIX_LEN: usize = 2;
const SEALED_LEN: usize = 8 + 2 + 4 + 8 + 8;
/// Bytes of a ticket.
pub const TICKET_LEN: usize = PREFIX_LEN + NONCE_LEN + SEALED_LEN + TAG_LEN;

const _: () = assert!(TICKET_LEN <= TICKET_LEN_MAX);

/// Seals and opens tickets.
#[derive(Debug)]
pub struct TicketSealer {
    key: LessSafeKey,
    life_ms: u64,
    generation: u32,
    incarnation: Incarnation,
}

impl TicketSealer {
    /// A sealer for one data directory: tickets of another incarnation, or of a lower generation, are stale.
    ///
    /// # Panics
    /// Never: the key has the cipher's length by its type.
    #[must_use]
    pub fn new(key: &TicketKey, settings: config::Ticket, incarnation: Incarnation) -> Self {
        let key = UnboundKey::new(&AES_256_GCM, key.bytes()).expect("a ticket key has 32 bytes");
        let life_ms = settings.life_s.saturating_mul(1000);
        Self { key: LessSafeKey::new(key), life_ms, generation: settings.generation, incarnation }
    }

    /// A ticket for `identity`, good from now on for its life.
    ///
    /// # Panics
    /// If the system has no randomness to give.
    #[must_use]
    pub fn seal(&self, identity: Identity, now_ms: u64) -> Ticket {
        let expires_ms = now_ms.saturating_add(self.life_ms);
        let mut nonce = [0; NONCE_LEN];
        aws_lc_rs::rand::fill(&mut nonce).expect("the system's random generator works");
        let mut sealed = [0; SEALED_LEN];
        put_fields(
            &mut sealed,
            [
                &identity.user.0.to_be_bytes(),
                &identity.device.0.to_be_bytes(),
                &self.generation.to_be_bytes(),
                &self.incarnation.0.to_be_bytes(),
                &expires_ms.to_be_bytes(),
            ],
        );
        let tag = self
            .key
            .seal_in_place_separate_tag(Nonce::assume_unique_for_key(nonce), Aad::from([VERSION, KEY_ID]), &mut sealed)
            .expect("a few bytes are within the cipher's limit");
        let mut bytes = Vec::with_capacity(TICKET_LEN);
        bytes.extend_from_slice(&[VERSION, KEY_ID]);
        bytes.extend_from_slice(&nonce);
        bytes.extend_from_slice(&sealed);
        bytes.extend_from_slice(tag.as_ref());
        assert_eq!(bytes.len(), TICKET_LEN);
        Ticket { bytes: Bytes::from(bytes), expires_ms }
    }

    /// Who a ticket was given to.
    ///
    /// # Errors
    /// `TicketInvalid`: not sealed with this key. `TicketStale`: of another incarnation or a lower generation.
    /// `TicketExpired`: its life is over.
    pub fn open(&self, ticket: &[u8], now_ms: u64) -> Result<Identity, ErrorCode> {
        let ticket: &[u8; TICKET_LEN] = ticket.try_into().map_err(|_| ErrorCode::TicketInvalid)?;
        let (prefix, rest) = ticket.split_at(PREFIX_LEN);
        let (nonce, sealed) = rest.split_at(NONCE_LEN);
        if prefix != [VERSION, KEY_ID] {
            return Err(ErrorCode::TicketInvalid);
        }
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| ErrorCode::TicketInvalid)?;
        let mut sealed: [u8; SEALED_LEN + TAG_LEN] = sealed.try_into().map_err(|_| ErrorCode::TicketInvalid)?;
        let opened = self
            .key
            .open_in_place(nonce, Aad::from([VERSION, KEY_ID]), &mut sealed)
            .map_err(|_| ErrorCode::TicketInvalid)?;
        let fields = Fields::read(opened).ok_or(ErrorCode::TicketInvalid)?;
        let is_old = fields.generation < self.generation && !planted::is(Bug::StaleTicketAccepted);
        if fields.incarnation != self.incarnation || is_old {
            return Err(ErrorCode::TicketStale);
        }
        if fields.expires_ms <= now_ms {
            return Err(ErrorCode::TicketExpired);
        }
        Ok(fields.identity)
    }
}

struct Fields {
    identity: Identity,
    generation: u32,
    incarnation: Incarnation,
    expires_ms: u64,
}

impl Fields {
    fn read(bytes: &[u8]) -> Option<Self> {
        let (user, bytes) = bytes.split_first_chunk()?;
        let (device, bytes) = bytes.split_first_chunk()?;
        let (generation, bytes) = bytes.split_first_chunk()?;
        let (incarnation, bytes) = bytes.split_first_chunk()?;
        let (expires_ms, _) = bytes.split_first_chunk()?;
        Some(Self {
            identity: Identity {
                user: UserId(u64::from_be_bytes(*user)),
                device: DeviceId(u16::from_be_bytes(*device)),
            },
            generation: u32::from_be_bytes(*generation),
            incarnation: Incarnation(u64::from_be_bytes(*incarnation)),
            expires_ms: u64::from_be_bytes(*expires_ms),
        })
    }
}

fn put_fields(out: &mut [u8; SEALED_LEN], fields: [&[u8]; 5]) {
    let mut rest = out.as_mut_slice();
    for field in fields {
        let (head, tail) = rest.split_at_mut(field.len());
        head.copy_from_slice(field);
        rest = tail;
    }
    assert!(rest.is_empty(), "the fields fill the sealed part");
}
