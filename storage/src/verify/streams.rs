//! Streams between shards: what is on its way, how far the source and the destination say that it has come.

use std::fmt;

use super::Check;
use super::inboxes::side;
use crate::engine::Family;
use crate::error::EngineError;
use crate::key::{self, ShardId};
use crate::record::{Item, Lane, Stream};
use crate::value;

/// Where entries on their way stand among those of an inbox: behind all that are in it.
const ON_ITS_WAY: u64 = 1 << 63;

/// What is known of a stream.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct StreamState {
    /// What its source knows to have arrived.
    pub(super) head: u64,
    /// What has arrived.
    pub(super) watermark: u64,
    /// The last row.
    last: u64,
}

struct Name(Stream);

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lane = match self.0.lane {
            Lane::Message => "messages",
            Lane::Receipt => "receipts",
        };
        write!(f, "the stream of {lane} from shard {} to {}", self.0.from.0, self.0.to.0)
    }
}

impl Check<'_> {
    pub(super) fn streams(&mut self) -> Result<(), EngineError> {
        self.every_row(Family::Outbox, |check, key, value| {
            check.report.outbox_rows += 1;
            let Some((stream, n)) = key::decode_outbox(key) else {
                return check.report.found("a key of `outbox` is not known here");
            };
            let name = Name(stream);
            let state = check.streams.entry(stream).or_default();
            let (head, watermark) = (state.head, state.watermark);
            let before = state.last.max(head);
            state.last = n;
            if n > head && before.checked_add(1) != Some(n) {
                check.report.found(format_args!("{name}: after item {before} comes {n}"));
            }
            match value::decode_item(value) {
                Ok(item) => check.item(stream, n, &item, n > watermark),
                Err(error) => check.report.found(format_args!("{name}: item {n} cannot be read: {error}")),
            }
        })?;
        for (stream, state) in &self.streams {
            let (name, StreamState { head, watermark, last }) = (Name(*stream), *state);
            if watermark < head {
                let finding = format_args!("{name}: item {head} is said to have arrived, and only {watermark} have");
                self.report.found(finding);
            }
            if watermark > last.max(head) {
                let last = last.max(head);
                self.report.found(format_args!("{name}: {watermark} items have arrived, and only {last} were sent"));
            }
        }
        Ok(())
    }

    fn item(&mut self, stream: Stream, n: u64, item: &Item, is_on_its_way: bool) {
        let shards = self.shard_count();
        let (user, from, lane) = match item {
            Item::Entry { user, entry } => {
                (*user, Some(ShardId::of_conversation(entry.conversation, shards)), Lane::Message)
            }
            Item::Receipt { user, conversation, .. } => {
                (*user, conversation.direct_peer(*user).map(|peer| ShardId::of_user(peer, shards)), Lane::Receipt)
            }
        };
        if (Some(stream.from), stream.to, stream.lane) != (from, ShardId::of_user(user, shards), lane) {
            self.report.found(format_args!("{}: item {n} for user {user} does not belong there", Name(stream)));
        }
        if !is_on_its_way {
            return;
        }
        match item {
            Item::Entry { user, entry } => {
                self.entry(*user, &entry.view(), format_args!("item {n} on its way from shard {}", stream.from.0));
                self.hold(*user, &entry.view(), ON_ITS_WAY.saturating_add(n));
            }
            Item::Receipt { user, conversation, delivered, read, .. } => {
                let side = side(*conversation, *user);
                if let Some(side) = self.talk(*conversation).sides.get_mut(usize::from(side)) {
                    side.peer_delivered = side.peer_delivered.max(delivered.0);
                    side.peer_read = side.peer_read.max(read.0);
                }
            }
        }
    }
}
