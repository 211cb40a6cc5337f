//! The story of a backlog: SYNC_START before the first of it, SYNC_DONE behind the last.

use culver_protocol::id::InboxSeq;
use culver_storage::reader::{ConversationView, Read};

use super::Hub;
use super::command::Address;
use super::directory::Flag;
use super::effect::EffectKind;
use super::extra::Sync;

impl Hub {
    /// What waits has been read.
    pub(super) fn begin_sync(
        &mut self,
        tag: u64,
        entries: u64,
        through: InboxSeq,
        conversations: Vec<ConversationView>,
    ) {
        let Some(index) = self.end_read(tag) else { return };
        let session = self.directory.get(index).expect("its read has ended").address();
        let extra = self.extras.get_or_default(&mut self.directory, index);
        if entries == 0 {
            // Only what the device sent itself, or what was not durable yet and will come live.
            extra.sync = Sync::Nothing;
        } else {
            extra.sync = Sync::Starting(through);
            self.tell(session, EffectKind::SyncStart { online: index, entries, through, conversations });
        }
        self.extras.settle(&mut self.directory, index);
        self.pump(index);
    }

    /// The beginning of a backlog's story is on its way: what follows cannot overtake it.
    pub fn handle_posted_sync(&mut self, index: u32, session: Address) {
        let is_there = self.directory.get(index).is_some_and(|online| online.address() == session);
        let Some(extra) = self.extras.get(&self.directory, index).filter(|_| is_there) else { return };
        if let Sync::Starting(through) = extra.sync {
            extra.sync = Sync::Begun { through, told: false };
            self.extras.settle(&mut self.directory, index);
            self.pump(index);
        }
    }

    pub(super) fn handle_refused_sync(&mut self, index: u32, session: Address, kind: EffectKind) {
        let is_there = self.directory.get(index).is_some_and(|online| online.address() == session);
        let Some(extra) = self.extras.get(&self.directory, index).filter(|_| is_there) else { return };
        match (&mut extra.sync, kind) {
            (sync @ Sync::Starting(_), kind @ EffectKind::SyncStart { .. }) => *sync = Sync::Refused(Box::new(kind)),
            (Sync::Begun { told, .. }, EffectKind::SyncDone { .. }) => *told = false,
            _ => return,
        }
        self.hungry.insert((session.reactor, index));
    }

    /// Goes on with the story, if that is due.
    pub(super) fn tell_sync(&mut self, index: u32) {
        let Some(extra) = self.extras.get(&self.directory, index) else { return };
        let online = self.directory.get(index).expect("it has more about it");
        let session = online.address();
        match &mut extra.sync {
            Sync::Nothing | Sync::Starting(_) => {}
            Sync::Wanted(after) => {
                let after = online.sent.max(*after);
                if !online.is(Flag::Reading) && online.is(Flag::Behind) {
                    let device = online.device();
                    let tag = self.begin_read(index);
                    self.want(Read::Sync { tag, user: device.user, device: device.device, after });
                }
            }
            Sync::Refused(kind) => {
                if let EffectKind::SyncStart { through, .. } = &**kind {
                    let through = *through;
                    let kind = std::mem::replace(&mut extra.sync, Sync::Starting(through));
                    if let Sync::Refused(kind) = kind {
                        self.tell(session, *kind);
                    }
                }
            }
            Sync::Begun { through, told } => {
                if !*told && online.sent >= *through && extra.owed.is_none() {
                    *told = true;
                    let through = *through;
                    self.tell(session, EffectKind::SyncDone { online: index, through });
                }
            }
        }
    }

    /// The client has persisted everything up to here: it was told the end of what it had before that.
    pub(super) fn end_sync(&mut self, index: u32, acked: InboxSeq) {
        if let Some(extra) = self.extras.get(&self.directory, index)
            && let Sync::Begun { through, told: true } = extra.sync
            && acked >= through
        {
            extra.sync = Sync::Nothing;
            self.extras.settle(&mut self.directory, index);
        }
    }
}
