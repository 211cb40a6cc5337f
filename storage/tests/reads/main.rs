//! Reads against naive models, over two volumes.

mod floors;
mod inboxes;
mod lists;
mod loads;
mod receipts;
mod world;
