//! Receipts: true at every time, never going back, complete in the end.

use super::note::{Note, Place};
use super::seat::Marks;
use super::{Findings, FlowCheck};

impl FlowCheck {
    pub(super) fn apply_receipt(&mut self, note: Note) {
        match note {
            Note::LoggedIn { place, version } => {
                if let Some(seat) = self.seats.get_mut(usize::from(place.seat)) {
                    seat.life(place.life).version = version;
                }
            }
            Note::ReadAsked { seq, .. } => self.read_asked = self.read_asked.max(seq),
            Note::ReadAnswered { place, seq } => self.read_answered(place, seq),
            Note::ToldDelivered { place, version, seq } => self.told_delivered(place, version, seq),
            Note::ToldRead { place, version, seq } => self.told_read(place, version, seq),
            Note::ToldOwnRead { place, version, seq } => self.told_own_read(place, version, seq),
            Note::ToldExpired { place, seq, .. } => {
                let seat = place.seat;
                self.fault(untrue, || format!("device {seat} was told that {seq} had expired"));
            }
            Note::Listed { place, last_seq, unread } => self.listed(place, last_seq, unread),
            Note::ReceiptsSaved { place, .. } => {
                if let Some(seat) = self.seats.get_mut(usize::from(place.seat)) {
                    seat.save(place);
                }
            }
            _ => {}
        }
    }

    /// The server keeps the greatest that was ever marked: it answers with that.
    fn read_answered(&mut self, place: Place, seq: u64) {
        if seq > self.read_asked {
            let (seat, asked) = (place.seat, self.read_asked);
            self.fault(untrue, || format!("device {seat} marked {asked} as read and was answered {seq}"));
            return;
        }
        self.read_answered = self.read_answered.max(seq);
        if let Some(seat) = self.seats.get_mut(usize::from(place.seat)) {
            // Not by way of a receipt: it says nothing about what a later receipt may say.
            seat.saved.own_read = seat.saved.own_read.max(seq);
        }
    }

    fn told_delivered(&mut self, place: Place, version: u64, seq: u64) {
        self.findings.receipts += 1;
        if self.findings.sent == 0 {
            // Of an earlier run in the same conversation.
            self.persisted_by_one = self.persisted_by_one.max(seq);
        }
        let (is_sender, persisted) = (place.seat < self.shape.senders, self.persisted_by_one);
        if !is_sender || seq > persisted {
            self.fault(untrue, || format!("device {} was told {seq} delivered, not {persisted}", place.seat));
        }
        self.told(place, version, seq, |marks| &mut marks.delivered);
    }

    fn told_read(&mut self, place: Place, version: u64, seq: u64) {
        self.findings.receipts += 1;
        if self.findings.sent == 0 {
            self.read_asked = self.read_asked.max(seq);
        }
        let (is_sender, asked) = (place.seat < self.shape.senders, self.read_asked);
        if !is_sender || seq > asked || !self.shape.tells_reads {
            let tells = self.shape.tells_reads;
            self.fault(untrue, || format!("device {} was told {seq} read, not {asked} (told: {tells})", place.seat));
        }
        self.told(place, version, seq, |marks| &mut marks.read);
    }

    fn told_own_read(&mut self, place: Place, version: u64, seq: u64) {
        self.findings.receipts += 1;
        if self.findings.sent == 0 {
            self.read_asked = self.read_asked.max(seq);
        }
        let (is_recipient, asked) = (place.seat >= self.shape.senders, self.read_asked);
        if !is_recipient || seq > asked {
            self.fault(untrue, || format!("device {} was told {seq} read by itself, not {asked}", place.seat));
        }
        self.told(place, version, seq, |marks| &mut marks.own_read);
    }

    /// Neither a mark nor a connection's versions go back.
    fn told(&mut self, place: Place, version: u64, seq: u64, which: fn(&mut Marks) -> &mut u64) {
        let Some(seat) = self.seats.get_mut(usize::from(place.seat)) else { return };
        let life = seat.life(place.life);
        let version_before = raise(&mut life.version, version);
        let before = raise(which(&mut life.marks), seq);
        let Place { seat, life } = place;
        if seq < before {
            self.fault(back, || format!("device {seat} was told {seq} after {before} (client {life})"));
        } else if version < version_before {
            self.fault(back, || format!("device {seat} got receipts {version} after {version_before} (client {life})"));
        }
    }

    /// Nobody but the sender has sent, who has read what it sent; the recipient has read all or nothing.
    fn listed(&mut self, place: Place, last_seq: u64, unread: u64) {
        let acked = self.acked_seq_last;
        let is_read = place.seat < self.shape.senders || self.shape.reads;
        let expected = if is_read { 0 } else { acked };
        if last_seq != acked || unread != expected {
            let what = format!("device {} was listed {last_seq}, {unread} unread, not {acked}, {expected}", place.seat);
            self.fault(|found| &mut found.lists_wrong, || what);
        }
    }

    /// Devices of the sender that do not know that the last acknowledged message is delivered.
    pub(super) fn receipts_missing(&self) -> u64 {
        if !self.shape.receipts {
            return 0;
        }
        let senders = self.seats.iter().take(usize::from(self.shape.senders));
        senders.filter(|seat| seat.known().delivered < self.acked_seq_last).count() as u64
    }

    /// Devices that do not know that everything is read, where everything is.
    pub(super) fn reads_missing(&self) -> u64 {
        if !self.shape.reads {
            return 0;
        }
        let (senders, recipients) = self.seats.split_at(usize::from(self.shape.senders));
        let senders = if self.shape.tells_reads { senders } else { &[] };
        let unaware = senders.iter().filter(|seat| seat.known().read < self.acked_seq_last).count()
            + recipients.iter().filter(|seat| seat.known().own_read < self.acked_seq_last).count();
        unaware as u64
    }

    /// What the recipient still has to mark as read, once everything has arrived; `None`: nothing.
    pub(crate) fn unread(&self) -> Option<u64> {
        let is_due = self.shape.reads && self.read_answered < self.acked_seq_last;
        is_due.then_some(self.acked_seq_last)
    }
}

fn untrue(found: &mut Findings) -> &mut u64 {
    &mut found.untrue
}

fn back(found: &mut Findings) -> &mut u64 {
    &mut found.receipts_back
}

/// Sets `value` to `to` unless it is greater already. Returns what it was.
fn raise(value: &mut u64, to: u64) -> u64 {
    let before = *value;
    *value = before.max(to);
    before
}
