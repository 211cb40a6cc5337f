//! What decisions look at: memory first, then what the engine has in memory; else a read to wait for.

use culver_protocol::id::{ClientMessageId, ConversationId, UserId};

use super::Shards;
use super::state::{Awaited, Conversation, Dirty, NO_MESSAGE, Newest, Talk, User};
use crate::batch::BatchNumber;
use crate::command::{Load, View};
use crate::engine::{Engine, Lookup, Tier};
use crate::error::EngineError;
use crate::key::{DedupKey, SenderKey};
use crate::planted::{self, Bug};
use crate::reader::{TalkRows, read_conversation, read_dedup, read_newest, read_talk, read_user};
use crate::value::{ConversationRow, DedupRow};

impl Shards {
    pub(super) fn conversation(
        &mut self,
        engine: &dyn Engine,
        id: ConversationId,
    ) -> Result<View<Conversation>, EngineError> {
        if let Some(conversation) = self.conversations.get_mut(&id) {
            return Ok(View::Known(*conversation));
        }
        let row = match read_conversation(engine, self.shard_count, id, Tier::Memory)? {
            Lookup::Absent => ConversationRow::default(),
            Lookup::Present(row) => row,
            Lookup::Unknown => return Ok(self.wait(engine, Load::Conversation(id))),
        };
        self.awaited.remove(&Load::Conversation(id));
        let conversation = Conversation::from(row);
        self.conversations.insert(id, conversation);
        Ok(View::Known(conversation))
    }

    pub(super) fn user_mut(&mut self, engine: &dyn Engine, id: UserId) -> Result<View<&mut User>, EngineError> {
        if self.users.get_mut(&id).is_none() {
            let today = self.today();
            let (row, head) = match read_user(engine, self.shard_count, id, Tier::Memory)? {
                Lookup::Absent => Default::default(),
                Lookup::Present(found) => found,
                Lookup::Unknown => return Ok(self.wait(engine, Load::User(id))),
            };
            self.awaited.remove(&Load::User(id));
            self.users.insert(id, User::from_row(row, head, today));
        }
        let user = self.users.get_mut(&id).expect("it was there, or was put there");
        user.is_passing = false;
        Ok(View::Known(user))
    }

    /// As [`Shards::user_mut`], for a login: nobody else may ever ask for it.
    pub(super) fn user_passing(&mut self, engine: &dyn Engine, id: UserId) -> Result<View<&mut User>, EngineError> {
        let is_passing = self.users.peek(&id).is_none_or(|user| user.is_passing);
        let view = self.user_mut(engine, id)?;
        Ok(match view {
            View::Known(user) => {
                user.is_passing = is_passing;
                View::Known(user)
            }
            View::Waits(load) => View::Waits(load),
        })
    }

    /// Looks at a user. Nothing is kept in memory for it, except what had to be read from the disk.
    pub(super) fn look<T>(
        &mut self,
        engine: &dyn Engine,
        id: UserId,
        view: impl FnOnce(&User) -> T,
    ) -> Result<View<T>, EngineError> {
        if let Some(user) = self.users.peek(&id) {
            return Ok(View::Known(view(user)));
        }
        let (row, head) = match read_user(engine, self.shard_count, id, Tier::Memory)? {
            Lookup::Absent => Default::default(),
            Lookup::Present(found) => found,
            Lookup::Unknown => return Ok(self.wait(engine, Load::User(id))),
        };
        Ok(View::Known(view(&User::from_row(row, head, self.today()))))
    }

    /// What is known of a talk. Its `delivered` is that of the last batch sealed: what is to be told comes on top.
    pub(super) fn talk(
        &mut self,
        engine: &dyn Engine,
        user: UserId,
        conversation: ConversationId,
    ) -> Result<View<&mut Talk>, EngineError> {
        let key = (user, conversation);
        if self.talks.get_mut(&key).is_none() {
            let rows = match read_talk(engine, self.shard_count, user, conversation, Tier::Memory)? {
                Lookup::Absent => TalkRows::default(),
                Lookup::Present(rows) => rows,
                Lookup::Unknown => return Ok(self.wait(engine, Load::Talk(user, conversation))),
            };
            self.awaited.remove(&Load::Talk(user, conversation));
            self.insert_talk(key, rows);
        }
        Ok(View::Known(self.talks.get_mut(&key).expect("it was there, or was put there")))
    }

    /// Keeps what was read, and on top what batches hold that are not durable.
    pub(super) fn insert_talk(&mut self, key: (UserId, ConversationId), mut rows: TalkRows) {
        for (user, acked) in self.sealed.iter().flat_map(|sealed| &sealed.delivered) {
            if (*user, acked.conversation) == key {
                rows.delivered = rows.delivered.max(acked.seq);
            }
        }
        self.talks.insert(key, Talk { rows, touched: BatchNumber(0), dirty: Dirty::default() });
    }

    /// Looks for a message in what is durable and not too old; what is not durable is in `pending`.
    pub(super) fn accepted_before(
        &mut self,
        engine: &dyn Engine,
        of: &DedupKey,
    ) -> Result<View<Option<DedupRow>>, EngineError> {
        // Rows from before this are dropped at some time: so that no answer hangs on when, they are not believed.
        let before_ms = self.dedup_before_ms();
        let is_kept = |row: &DedupRow| row.message_id.time_ms() >= before_ms;
        if planted::is(Bug::DedupForgotten) {
            return Ok(View::Known(None));
        }
        if let Some(Awaited::Dedup(row)) = self.awaited.get(&Load::Dedup(*of)) {
            return Ok(View::Known(row.filter(is_kept)));
        }
        match self.newest(engine, of.sender_key())? {
            View::Waits(load) => return Ok(View::Waits(load)),
            // Ids that ascend, as clients are asked to choose them, need no lookup.
            View::Known(Some(newest)) if of.client_message_id > newest => return Ok(View::Known(None)),
            View::Known(_) => {}
        }
        match read_dedup(engine, self.shard_count, of, Tier::Memory)? {
            Lookup::Absent => Ok(View::Known(None)),
            Lookup::Present(row) => Ok(View::Known(Some(row).filter(is_kept))),
            Lookup::Unknown => Ok(self.wait(engine, Load::Dedup(*of))),
        }
    }

    /// An id that no accepted message of this sender exceeds; `None`: not known, look the message up.
    pub(super) fn newest(
        &mut self,
        engine: &dyn Engine,
        of: SenderKey,
    ) -> Result<View<Option<ClientMessageId>>, EngineError> {
        match self.newest.get_mut(&of) {
            Some(Newest::Known(newest)) => return Ok(View::Known(Some(*newest))),
            Some(Newest::Unknown { lookups }) if *lookups < self.policy.bounds.lookups_first => {
                *lookups += 1;
                return Ok(View::Known(None));
            }
            Some(Newest::Unknown { .. }) => {}
            None => {
                self.newest.insert(of, Newest::Unknown { lookups: 1 });
                return Ok(View::Known(None));
            }
        }
        if self.pending.keys().any(|pending| pending.sender_key() == of) {
            // What is durable is not all, and will be something else when it has been read.
            return Ok(View::Known(None));
        }
        let newest = match read_newest(engine, self.shard_count, of, Tier::Memory)? {
            Lookup::Absent => NO_MESSAGE,
            Lookup::Present(newest) => newest,
            Lookup::Unknown => return Ok(self.wait(engine, Load::Newest(of))),
        };
        self.awaited.remove(&Load::Newest(of));
        self.set_newest(of, newest);
        Ok(View::Known(Some(newest)))
    }

    /// What was read: memory knew nothing better, for then the read would not count.
    pub(super) fn set_newest(&mut self, of: SenderKey, newest: ClientMessageId) {
        match self.newest.get_mut(&of) {
            Some(known) => *known = Newest::Known(newest),
            None => self.newest.insert(of, Newest::Known(newest)),
        }
    }

    pub(super) fn wait<T>(&mut self, engine: &dyn Engine, load: Load) -> View<T> {
        if self.awaited.len() >= self.policy.bounds.awaited {
            self.awaited.clear();
        }
        self.awaited.entry(load).or_insert_with(|| Awaited::Since(engine.sequence_synced()));
        View::Waits(load)
    }
}
