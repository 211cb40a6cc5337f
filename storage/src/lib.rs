//! Culver's sharded inbox log. No sockets, no wire format.
//!
//! **The durability contract.** Commands become [`record::Record`]s in `decide`, rows in `apply`, one [`batch::Batch`]
//! in `seal`, and durable in [`writer::Writer`]: one write and one sync per batch. Nothing that a batch accepted, or
//! that was decided while it was under construction, may be told to anyone before the writer has called back with its
//! number. Then, and through any later crash:
//!
//! - a message accepted is in its recipient's inbox, once, at a place of its own; places are dense from 1;
//! - the same client message id gives the same answer again;
//! - a cursor never moves back, and ids and times of one shard never do;
//! - what was not told may be there or not, as a whole batch, never as a part of one.
//!
//! On any write error the process ends; nothing is written twice ([`writer`]). Before a volume is opened its log is
//! checked: what had been synced is complete, or the volume is refused ([`wal`]).
//!
//! Where this differs from memory: memory is only a cache ([`shard`]), and everything in it is read back from the rows.

#[cfg(feature = "rocks")]
pub mod backup;
pub mod batch;
pub mod command;
pub mod descriptors;
pub mod engine;
pub mod error;
pub mod filter;
pub mod gate;
pub mod key;
pub mod layout;
pub mod log;
pub mod memory;
pub mod planted;
pub mod reader;
pub mod record;
#[cfg(feature = "rocks")]
pub mod rocks;
pub mod shard;
pub mod topology;
pub mod value;
pub mod verify;
pub mod wal;
pub mod writer;
