//! The rows of `meta`: batches, time reservations, clocks, and how far streams have come.

use super::Check;
use crate::engine::Family;
use crate::error::EngineError;
use crate::key::{self, MetaKind, ShardId};
use crate::value::{BatchRow, ClockRow, DecodeError, NumberRow, TimeRow};

impl Check<'_> {
    pub(super) fn meta(&mut self) -> Result<(), EngineError> {
        self.every_row(Family::Meta, |check, key, value| {
            let Some((shard, kind, id)) = key::decode_meta(key) else {
                return check.report.found("a key of `meta` has a wrong length");
            };
            let known = [
                (MetaKind::Batch, "the batch row"),
                (MetaKind::Time, "the time reservation"),
                (MetaKind::Watermark, "a watermark"),
                (MetaKind::Head, "a head"),
                (MetaKind::Clock, "the expiry clock"),
            ];
            let Some((kind, what)) = known.into_iter().find(|(known, _)| *known as u8 == kind) else {
                return check.report.found(format_args!("a row of `meta` has kind {kind}, which is not known here"));
            };
            if let Err(error) = check.meta_row(shard, kind, id, value) {
                check.report.found(format_args!("{what} of shard {}: {error}", shard.0));
            }
        })
    }

    fn meta_row(&mut self, shard: ShardId, kind: MetaKind, id: u64, value: &[u8]) -> Result<(), DecodeError> {
        match kind {
            MetaKind::Batch => {
                self.report.batch = self.report.batch.saturating_add(BatchRow::decode(value)?.number);
            }
            MetaKind::Time => drop(self.reserved_until_ms.insert(shard, TimeRow::decode(value)?.until_ms)),
            MetaKind::Clock => self.clock_ms = self.clock_ms.max(ClockRow::decode(value)?.ms),
            MetaKind::Watermark | MetaKind::Head => {
                let number = NumberRow::decode(value)?.number;
                let Some(stream) = key::stream_of(shard, kind as u8, id) else {
                    self.report.found(format_args!("a row of `meta` of shard {} names no stream: {id}", shard.0));
                    return Ok(());
                };
                let state = self.streams.entry(stream).or_default();
                if kind == MetaKind::Head {
                    state.head = number;
                } else {
                    state.watermark = number;
                }
            }
        }
        Ok(())
    }
}
