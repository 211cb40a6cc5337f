//! Culver's wire protocol: bytes and messages. No I/O, no clock, no threads.
//!
//! ```text
//! connection = preamble ‖ handshake message ‖ record ‖ record ‖ …
//! ```
//!
//! [`preamble`] opens a connection, [`record`] frames what follows, [`proto`] holds the messages inside the
//! records, [`message`] reads and writes the frequent ones without copies, [`limits`] names every maximum,
//! [`error`] every error code, and [`client`] is a whole client without its socket.

pub mod client;
pub mod crypto;
pub mod error;
pub mod handshake;
pub mod id;
pub mod keys;
pub mod limits;
pub mod message;
pub mod preamble;
pub mod record;

/// The message types that prost generates from `culver.proto`.
#[expect(missing_docs, clippy::doc_markdown, reason = "generated; the schema's comments are the documentation")]
pub mod proto {
    include!(concat!(env!("OUT_DIR"), "/culver.v1.rs"));
}
