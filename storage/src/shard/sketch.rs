//! Signatures to come.

use culver_protocol::id::{ConversationId, ConversationSeq, DeviceId, UserId};

use super::Shards;
use crate::command::{Decision, DeviceView, ExpiryState, Fold, Folded, StreamState, View};
use crate::engine::Engine;
use crate::error::EngineError;
use crate::record::{Item, Outgoing, Record, Stream};

#[expect(unused_variables, reason = "to come")]
impl Shards {
    /// Decides the login of a device: links it, or notes the day. A ninth device is `DevicesFull`.
    ///
    /// # Errors
    /// The engine failed.
    pub fn decide_link(
        &mut self,
        engine: &dyn Engine,
        user: UserId,
        device: DeviceId,
        now_ms: u64,
    ) -> Result<Decision, EngineError> {
        todo!("devices")
    }

    /// Decides an item that arrived. Unchanged: it is not the next of its stream.
    ///
    /// # Errors
    /// The engine failed.
    pub fn decide_arrival(
        &mut self,
        engine: &dyn Engine,
        stream: Stream,
        n: u64,
        item: &Item,
        now_ms: u64,
    ) -> Result<Decision, EngineError> {
        todo!("streams")
    }

    /// Decides that a user has read a conversation.
    ///
    /// # Errors
    /// The engine failed.
    pub fn decide_mark_read(
        &mut self,
        engine: &dyn Engine,
        user: UserId,
        conversation: ConversationId,
        seq: ConversationSeq,
    ) -> Result<Decision, EngineError> {
        todo!("talks")
    }

    /// Decides whether a user gives and sees read receipts.
    ///
    /// # Errors
    /// The engine failed.
    pub fn decide_read_receipts(
        &mut self,
        engine: &dyn Engine,
        user: UserId,
        on: bool,
    ) -> Result<Decision, EngineError> {
        todo!("talks")
    }

    /// Whether a user gives and sees read receipts.
    ///
    /// # Errors
    /// The engine failed.
    pub fn read_receipts_on(&mut self, engine: &dyn Engine, user: UserId) -> Result<View<bool>, EngineError> {
        todo!("talks")
    }

    /// A user's devices, by ascending number.
    ///
    /// # Errors
    /// The engine failed.
    pub fn devices(&mut self, engine: &dyn Engine, user: UserId) -> Result<View<Vec<DeviceView>>, EngineError> {
        todo!("devices")
    }

    /// Decides what a reader found below a new floor. Unchanged: the user has changed meanwhile.
    ///
    /// # Errors
    /// The engine failed.
    pub fn decide_floor(
        &mut self,
        engine: &dyn Engine,
        folded: &Folded,
        now_ms: u64,
    ) -> Result<Decision, EngineError> {
        todo!("floors")
    }

    /// Floors to be raised because cursors rose a second ago: at most 64, for [`crate::reader::Read::Fold`].
    pub fn fold_due(&mut self, now_ms: u64) -> Vec<Fold> {
        todo!("floors")
    }

    /// What a user whom the sweep named is to be folded with, if anything. A device that is online should be linked
    /// anew first, so that it counts as seen.
    ///
    /// # Errors
    /// The engine failed.
    pub fn fold_user(
        &mut self,
        engine: &dyn Engine,
        user: UserId,
        now_ms: u64,
    ) -> Result<View<Option<Fold>>, EngineError> {
        todo!("floors")
    }

    /// The items of the batch just sealed, to be pushed once it is durable.
    pub fn take_outgoing(&mut self) -> Vec<Outgoing> {
        todo!("streams")
    }

    /// Everything in a stream up to `through` is durable where it goes.
    pub fn taken(&mut self, stream: Stream, through: u64) {
        todo!("streams")
    }

    /// Streams of these shards with durable items that are not taken.
    #[must_use]
    pub fn streams_behind(&self) -> Vec<StreamState> {
        todo!("streams")
    }

    /// The last item applied of a stream to one of these shards, durable or not.
    #[must_use]
    pub fn watermark(&self, stream: Stream) -> u64 {
        todo!("streams")
    }

    /// Whether a user's inbox holds as much as it may, as far as memory knows.
    #[must_use]
    pub fn is_full(&self, user: UserId) -> bool {
        todo!("quota")
    }

    /// How long things are kept.
    #[must_use]
    pub fn policy(&self) -> super::Policy {
        self.policy
    }

    /// The inbox of a user in another hub is full: messages to it are refused until then.
    pub fn refuse_full(&mut self, user: UserId, until_ms: u64) {
        todo!("streams")
    }

    /// Lets the expiry clock go on. What it returns is to be applied.
    pub fn tick(&mut self, now_ms: u64, mono_ms: u64) -> Option<Record> {
        todo!("clock")
    }

    /// How the expiry clock stands.
    #[must_use]
    pub fn expiry(&self) -> ExpiryState {
        todo!("clock")
    }

    /// Ids of messages from before this are no longer known; 0: all are.
    #[must_use]
    pub fn dedup_before_ms(&self) -> u64 {
        todo!("clock")
    }
}
