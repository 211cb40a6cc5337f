//! The scenarios: each takes its options, puts a target under load, and makes a document of what it saw.

pub(crate) mod chat;
pub(crate) mod cost;
pub(crate) mod crash;
pub(crate) mod density;
pub(crate) mod drain;
pub(crate) mod floor;
pub(crate) mod handshake;
pub(crate) mod hostile;
pub(crate) mod idle;
pub(crate) mod idle_burst;
pub(crate) mod overload;
pub(crate) mod pairs;
pub(crate) mod powercut;
pub(crate) mod report;
pub(crate) mod restart;
pub(crate) mod restarts;
pub(crate) mod shed;
pub(crate) mod slow;
pub(crate) mod storm;
