//! A device: the real client, and an application with a store of its own that may be late, forgetful, or killed.
//!
//! One [`Device`] is one process. A device's app and its fetching extension are two, over one store. The world carries
//! bytes between [`Device::client`] and the network, and does what [`Device::next_want`] asks for.

use bytes::Bytes;
use culver_protocol::client::{Client, ClientConfig};
use culver_protocol::id::{DeviceId, UserId};

use crate::oracle::Oracle;
use crate::source::Source;

/// Which device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceKey {
    pub user: UserId,
    pub device: DeviceId,
}

/// What the world is to do for a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    /// Open a connection; then [`Device::connected`], or [`Device::disconnected`] where that fails.
    Connect,
    /// Close the connection; then [`Device::disconnected`].
    Disconnect,
    /// The process is dead: its connection, if there is one, lost its client. Nothing is to be called for it.
    Abandon,
    /// The ticket is refused: [`Device::set_ticket`] with a new one.
    Ticket,
}

/// How an application behaves, in thousandths of its acts; all 0 is the tamest.
#[derive(Clone, Copy, Debug, Default)]
pub struct Nature {
    /// Messages that it sends.
    pub sends: u32,
    /// What has come is not persisted now.
    pub late: u32,
    /// Receipts are not persisted now.
    pub ignores_receipts: u32,
    /// The application is killed and comes back with what it has persisted.
    pub killed: u32,
    /// Marks as read, lists, asks for devices.
    pub asks: u32,
    /// Turns read receipts off and on.
    pub toggles: u32,
    /// Its messages' ids do not ascend.
    pub random_ids: bool,
    /// What it sends is not kept over a kill.
    pub forgets_sends: bool,
    /// What was answered is sent again after a kill, now and then.
    pub repeats: bool,
    /// Delivery window in entries; 0: the server's.
    pub credit_entries: u32,
    /// Wanted keep-alive in seconds; 0: the server's.
    pub keep_alive_s: u32,
}

/// One process of a device.
pub struct Device {
    pub client: Client,
    key: DeviceKey,
}

impl Device {
    /// An app that has never run, with a ticket of this generation. It asks for a connection at once.
    pub fn new(key: DeviceKey, nature: Nature, seed: u64, ticket: Bytes, generation: u32) -> Self {
        let _ = (nature, ticket, generation);
        Self { client: Client::new(ClientConfig { seed, ..ClientConfig::default() }), key }
    }

    /// Another process over the same store, which logs in by fetch and ends when it has what waited.
    pub fn fetching(&self, seed: u64) -> Self {
        Self { client: Client::new(ClientConfig { seed, ..ClientConfig::default() }), key: self.key }
    }

    pub fn key(&self) -> DeviceKey {
        self.key
    }

    pub fn is_fetch(&self) -> bool {
        false
    }

    /// A fetching process that has what it came for, or was replaced: it can be dropped.
    pub fn is_over(&self) -> bool {
        false
    }

    /// A connection is open, to a server that calls tickets below this generation stale.
    pub fn connected(&mut self, oracle: &mut Oracle, now_us: u64, generation: u32) {
        let _ = (oracle, generation);
        self.client.handle_connected(now_us);
    }

    /// The connection is closed or could not be opened.
    pub fn disconnected(&mut self, oracle: &mut Oracle, now_us: u64) {
        let _ = oracle;
        self.client.handle_disconnected(now_us);
    }

    /// Another ticket, of this generation.
    pub fn set_ticket(&mut self, ticket: Bytes, generation: u32) {
        let _ = (ticket, generation);
    }

    /// Handles the client's events up to one that the world must act on. To be called until it says `None`, after
    /// anything was done with the client.
    pub fn next_want(&mut self, source: &mut Source, oracle: &mut Oracle, now_us: u64) -> Option<Want> {
        let _ = (source, oracle, now_us);
        None
    }

    /// The application does something: persists, sends to one of `peers` (its own user and unknown users may be among
    /// them), reads, asks, or dies.
    pub fn act(&mut self, source: &mut Source, oracle: &mut Oracle, now_us: u64, peers: &[UserId]) -> Option<Want> {
        let _ = (source, oracle, now_us, peers);
        None
    }

    /// The application behaves: it persists what has come, and comes back if it had stopped. To be called again and
    /// again until all is quiet.
    pub fn act_calmly(&mut self, oracle: &mut Oracle, now_us: u64) -> Option<Want> {
        let _ = (oracle, now_us);
        None
    }

    /// Everybody knows everybody: a last message to each of `peers`.
    pub fn say_last(&mut self, oracle: &mut Oracle, now_us: u64, peers: &[UserId]) {
        let _ = (oracle, now_us, peers);
    }

    /// The last questions: all conversations, all devices.
    pub fn ask_last(&mut self, oracle: &mut Oracle) {
        let _ = oracle;
    }

    /// Nothing of this process is under way: it is logged in, and everything is answered and persisted.
    pub fn is_settled(&self) -> bool {
        self.client.is_logged_in() && self.client.in_flight() == 0
    }
}
