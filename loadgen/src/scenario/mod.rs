//! The scenarios: each takes its options, puts a target under load, and makes a document of what it saw.

pub(crate) mod chat;
pub(crate) mod floor;
pub(crate) mod pairs;
