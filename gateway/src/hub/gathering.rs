//! When a hub's next batch goes to its writer, and when logins wait for company. Pure: the time is an argument, in
//! microseconds that never jump.

/// Messages of a batch from which on the next one waits for company.
const GATHER_MESSAGES_MIN: u64 = 16;
/// Longest such wait for the sake of the disk: twice what the last write took.
const GATHER_FOR_WRITE_MAX_US: u64 = 1000;
/// Such a wait for the sake of what is around a message, by the last batch's messages: the more there are, the longer
/// the whole takes anyway, and the more of each socket's messages share a read and a write.
const GATHER_PER_MESSAGE_US: u64 = 4;
/// Longest such wait at all.
const GATHER_MAX_US: u64 = 2000;

/// Logins that come in such an interval after each other are a rush.
const RUSH_US: u64 = 1000;
/// For so long the hub sleeps in a rush, and nobody wakes it to log in one more: waking it costs more than a login.
const GATHER_LOGINS_US: u64 = 1000;

/// When the next batch goes to the writer. Under load a short wait, as long as a write takes, doubles what a write
/// carries: fewer syncs, fewer wakes, and fewer writes to sockets. A lone message never waits.
#[derive(Default)]
pub(super) struct Gathering {
    submitted_us: Option<u64>,
    /// Until when the next batch waits.
    until_us: Option<u64>,
    /// Messages accepted since the last write.
    pub(super) messages: u64,
    /// When the last login was handled.
    login_us: Option<u64>,
    /// Until when logins gather.
    logins_until_us: Option<u64>,
}

impl Gathering {
    pub(super) fn submitted(&mut self, now_us: u64) {
        self.submitted_us = Some(now_us);
        self.until_us = None;
    }

    /// Whether the next batch waits for company.
    pub(super) fn durable(&mut self, now_us: u64) -> bool {
        let Some(submitted_us) = self.submitted_us.take() else { return false };
        let messages = std::mem::take(&mut self.messages);
        let for_write = (now_us.saturating_sub(submitted_us) * 2).min(GATHER_FOR_WRITE_MAX_US);
        let for_messages = GATHER_PER_MESSAGE_US.saturating_mul(messages);
        let had_company = messages >= GATHER_MESSAGES_MIN;
        self.until_us = had_company.then(|| now_us + for_write.max(for_messages).min(GATHER_MAX_US));
        had_company
    }

    /// Logins were handled, or something else was.
    pub(super) fn handled(&mut self, logins: u64, others: u64, now_us: u64) {
        self.logins_until_us = None;
        if logins == 0 {
            return;
        }
        let is_rush =
            self.login_us.is_some_and(|before_us| now_us.saturating_sub(before_us) < RUSH_US + GATHER_LOGINS_US);
        self.login_us = Some(now_us);
        // With anything else among them nothing waits for the sake of logins.
        if is_rush && others == 0 {
            self.logins_until_us = Some(now_us + GATHER_LOGINS_US);
        }
    }

    /// How long logins gather still.
    pub(super) fn logins_left_us(&self, now_us: u64) -> Option<u64> {
        self.logins_until_us.and_then(|until_us| until_us.checked_sub(now_us)).filter(|left_us| *left_us > 0)
    }

    /// How long to wait still.
    pub(super) fn left_us(&self, now_us: u64) -> Option<u64> {
        self.until_us.and_then(|until_us| until_us.checked_sub(now_us)).filter(|left_us| *left_us > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logins_gather_in_a_rush_in_which_nobody_sends() {
        let mut gathering = Gathering::default();
        for (now_us, logins, others, waits) in [
            (10_000, 1, 0, false),
            (11_000, 1, 0, true),
            (12_500, 5, 0, true),
            (13_000, 5, 1, false),
            (13_500, 1, 0, true),
            (14_000, 0, 0, false),
            (20_000, 1, 0, false),
        ] {
            gathering.handled(logins, others, now_us);
            assert_eq!(gathering.logins_left_us(now_us), waits.then_some(GATHER_LOGINS_US), "at {now_us}");
            assert_eq!(gathering.logins_left_us(now_us + GATHER_LOGINS_US), None);
        }
    }

    #[test]
    fn a_lone_message_never_waits_and_many_wait_as_long_as_a_write_takes() {
        let mut gathering = Gathering::default();
        for (messages, took_us, waits_us) in [
            (1, 500, None),
            (16, 300, Some(600)),
            (16, 5000, Some(1000)),
            (400, 100, Some(1600)),
            (9999, 1, Some(2000)),
        ] {
            gathering.submitted(10_000);
            gathering.messages = messages;
            assert_eq!(gathering.durable(10_000 + took_us), waits_us.is_some());
            assert_eq!(gathering.left_us(10_000 + took_us), waits_us);
        }
        assert_eq!(gathering.left_us(20_000), None, "it is over");
    }
}
