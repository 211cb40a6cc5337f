//! What a checker has found.

use serde::Serialize;

/// What a checker has found; the sums of several checkers are added.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Findings {
    /// Handed to the client.
    pub(crate) sent: u64,
    /// The server said that they are kept.
    pub(crate) acked: u64,
    /// Reached the recipient's application, each counted once on each of the recipient's devices.
    pub(crate) delivered: u64,
    /// Copies that reached the sender's other devices, counted likewise.
    pub(crate) copied: u64,
    /// Refused for good: they count neither as acknowledged nor as lost.
    pub(crate) rejected: u64,
    /// Neither acknowledged nor refused when the run ended.
    pub(crate) unanswered: u64,
    /// Acknowledged, not delivered: counted on each device that lacks it.
    pub(crate) lost: u64,
    /// Delivered more than once to one client, after its own dedup.
    pub(crate) duplicated: u64,
    /// Delivered after one that comes later in the conversation or in the sender's order.
    pub(crate) reordered: u64,
    /// Places where conversation seqs skipped ahead: a conversation's seqs are dense.
    pub(crate) skipped: u64,
    /// The acknowledgement and the delivery name different conversation seqs, or something was acknowledged twice
    /// or delivered that nobody sent, or came back to the device that sent it.
    pub(crate) inconsistent: u64,
    /// Receipt marks that were checked.
    pub(crate) receipts: u64,
    /// Marks that tell what is not so: delivered beyond what some device of the recipient's has persisted, read
    /// beyond what the recipient said or where read receipts are off, expired at all.
    pub(crate) untrue: u64,
    /// Marks or receipt versions below what the same client had been told.
    pub(crate) receipts_back: u64,
    /// Devices of the sender that do not know in the end that the last acknowledged message is delivered.
    pub(crate) receipts_missing: u64,
    /// Devices that do not know in the end what has been read, of the pairs that read.
    pub(crate) reads_missing: u64,
    /// Devices whose list of conversations is wrong in the end: what came last, or how much is unread.
    pub(crate) lists_wrong: u64,
}

impl Findings {
    /// Whether everything promised was kept.
    pub(crate) fn is_clean(&self) -> bool {
        self.broken().all(|(count, _)| count == 0)
    }

    /// What no run may have, by name.
    pub(crate) fn broken(&self) -> impl Iterator<Item = (u64, &'static str)> + use<> {
        [
            (self.lost, "lost"),
            (self.duplicated, "duplicated"),
            (self.reordered, "reordered"),
            (self.skipped, "places skipped"),
            (self.inconsistent, "inconsistent"),
            (self.untrue, "receipts untrue"),
            (self.receipts_back, "receipts going back"),
            (self.receipts_missing, "receipts missing"),
            (self.reads_missing, "reads missing"),
            (self.lists_wrong, "lists wrong"),
        ]
        .into_iter()
    }

    /// What [`Findings::broken`] names and is not nothing, in words.
    pub(crate) fn told(&self) -> String {
        let told: Vec<_> = self.broken().filter(|(count, _)| *count > 0).collect();
        told.iter().map(|(count, what)| format!("{count} {what}")).collect::<Vec<_>>().join(", ")
    }

    /// Without what might still have come, where a run ended before its time.
    pub(crate) fn without_what_is_due(self) -> Self {
        Self { unanswered: 0, lost: 0, receipts_missing: 0, reads_missing: 0, ..self }
    }

    /// Adds another checker's findings.
    pub(crate) fn add(&mut self, other: &Self) {
        self.sent += other.sent;
        self.acked += other.acked;
        self.delivered += other.delivered;
        self.copied += other.copied;
        self.rejected += other.rejected;
        self.unanswered += other.unanswered;
        self.lost += other.lost;
        self.duplicated += other.duplicated;
        self.reordered += other.reordered;
        self.skipped += other.skipped;
        self.inconsistent += other.inconsistent;
        self.receipts += other.receipts;
        self.untrue += other.untrue;
        self.receipts_back += other.receipts_back;
        self.receipts_missing += other.receipts_missing;
        self.reads_missing += other.reads_missing;
        self.lists_wrong += other.lists_wrong;
    }
}
