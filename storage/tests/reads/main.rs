//! Reads against naive models, over two volumes.

#[cfg(feature = "rocks")]
mod engines;
mod floors;
mod inboxes;
mod lists;
mod loads;
mod receipts;
mod world;
