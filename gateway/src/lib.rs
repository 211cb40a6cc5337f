//! The Culver messaging gateway, as a library so that tests reach its parts; the binary `culver` is a thin shell.
//!
//! A message's way: [`reactor`] reads its bytes, [`session`] makes a command of them, [`mailbox`] carries it to the
//! [`hub`], which decides, applies and batches it; `culver_storage` makes the batch durable; the effects go back
//! the same way. [`server`] puts the threads together.

pub mod auth;
pub mod buckets;
pub mod clock;
pub mod config;
pub mod crash_point;
pub mod hub;
pub mod inherited;
pub mod logging;
pub mod mailbox;
pub mod metrics;
pub mod ops;
pub mod preflight;
pub mod reactor;
pub mod sandbox;
pub mod server;
pub mod session;
pub mod slab;
pub mod space;
pub mod sys;
