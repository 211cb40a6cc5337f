//! RocksDB on a disk that loses its power and fails: what a write said is durable is there, whatever happens.
#![cfg(feature = "rocks")]

#[path = "../batches/mod.rs"]
mod batches;
#[path = "../cutdisk/mod.rs"]
mod cutdisk;
mod failures;
mod folders;
mod lives;
mod program;
