//! What clients have persisted: their windows, and the cursors of their devices.

use culver_protocol::id::InboxSeq;
use culver_storage::command::{Acked, Decision, Load, View};
use culver_storage::error::EngineError;
use culver_storage::planted::{self, Bug};

use super::command::{Address, Credit, Device};
use super::{Hub, Tried};

impl Hub {
    pub(super) fn ack(
        &mut self,
        session: Address,
        device: Device,
        through: InboxSeq,
        credit: Credit,
        now_ms: u64,
    ) -> Result<Tried, EngineError> {
        let Some(index) = self.directory.current(device, session) else {
            return Ok(Tried::Done);
        };
        let online = self.directory.get(index).expect("just found");
        if through > online.sent {
            // Of what the client knew before it was told to forget: not of what is here under the same numbers.
            return Ok(Tried::Done);
        }
        let known = match self.shards.user(&*self.engine, device.user, device.device)? {
            // A fetching session of the device may have come further than this one.
            View::Known(view) => view.cursor,
            View::Waits(load) => return Ok(Tried::Waits(load)),
        };
        let mut acked = std::mem::take(&mut self.acked);
        acked.clear();
        let nothing_beyond = self.windows.collect(online, (known, through), &mut acked);
        if planted::is(Bug::ReceiptForUnpersisted) {
            self.windows.collect(online, (known, online.sent), &mut acked);
        }
        // What follows the last entry under way, the device sent itself.
        let end = if nothing_beyond { online.sent } else { through };
        // It may have come before the client could know that something is lost to it: then it says nothing of that.
        let waits = if through > known {
            self.move_cursor(device, end, &acked, now_ms)
        } else {
            self.step_cursor(device, end, now_ms)
        };
        self.acked = acked;
        if let Some(load) = waits? {
            return Ok(Tried::Waits(load));
        }
        self.acknowledge(index, end, credit);
        Ok(Tried::Done)
    }

    /// A device has persisted everything up to here.
    pub(super) fn move_cursor(
        &mut self,
        device: Device,
        through: InboxSeq,
        acked: &[Acked],
        now_ms: u64,
    ) -> Result<Option<Load>, EngineError> {
        let decision = self.shards.decide_ack(&*self.engine, device.user, device.device, through, acked, now_ms)?;
        Ok(self.follow_cursor(decision, now_ms))
    }

    /// A device has everything up to here, for it sent what follows its cursor itself.
    pub(super) fn step_cursor(
        &mut self,
        device: Device,
        through: InboxSeq,
        now_ms: u64,
    ) -> Result<Option<Load>, EngineError> {
        let decision = self.shards.decide_step(&*self.engine, device.user, device.device, through)?;
        Ok(self.follow_cursor(decision, now_ms))
    }

    /// A device that was just linked starts behind what it says that it has.
    pub(super) fn return_cursor(
        &mut self,
        device: Device,
        claim: InboxSeq,
        now_ms: u64,
    ) -> Result<Option<Load>, EngineError> {
        let decision = self.shards.decide_return(&*self.engine, device.user, device.device, claim)?;
        Ok(self.follow_cursor(decision, now_ms))
    }

    fn follow_cursor(&mut self, decision: Decision, now_ms: u64) -> Option<Load> {
        match decision {
            Decision::Apply(record) => {
                self.shards.apply(&record);
                self.cursors_since_ms.get_or_insert(now_ms);
                None
            }
            Decision::Waits(load) => Some(load),
            // Sessions let nothing through that was not sent to them.
            Decision::Duplicate(_) | Decision::Unchanged | Decision::Reject(_) => None,
        }
    }

    /// The client has persisted everything up to `through`, and has room for `credit` beyond it.
    fn acknowledge(&mut self, index: u32, through: InboxSeq, credit: Credit) {
        let online = self.directory.get_mut(index).expect("the caller found it");
        online.credit_entries = credit.entries;
        online.credit_bytes = credit.bytes;
        if through > online.acked && through <= online.sent {
            self.windows.acknowledge(online, through);
        }
        self.end_sync(index, through);
        self.pump(index);
    }
}
