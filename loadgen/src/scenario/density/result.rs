//! What a density run came to: its figures, its thresholds, its table.

use std::collections::BTreeMap;

use serde::Serialize;

use super::beside::BesideFigures;
use super::options::DensityOptions;
use super::steps::{KeepAliveFigures, Messaging, Phase};
use crate::dense::Counts;
use crate::dense::senders::SenderOutcome;
use crate::procfs::SlabObjects;
use crate::report::Misses;
use crate::report::table::{Table, grouped};
use crate::scenario::idle::{BareFigures, IdleSample, IdleSlope, per_second, quotient, ratio};
use crate::target::culver::Presence;

/// Fewer connections than these say nothing about the generator's own memory, which grows by pages.
const OWN_SLOPE_MIN: u64 = 10_000;

#[derive(Serialize)]
pub(super) struct DensityResult {
    pub(super) connections: u64,
    /// What the generator keeps of a connection for itself.
    pub(super) client_bytes: usize,
    pub(super) slope_from: u64,
    #[serde(flatten)]
    pub(super) slope: IdleSlope,
    /// The same at the end, after messages and the time held.
    pub(super) held_slope: IdleSlope,
    pub(super) logins_per_s: f64,
    pub(super) server_cpu_us_per_login: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) server_cpu_s_idle: Option<f64>,
    #[serde(flatten)]
    pub(super) messages: Option<MessageFigures>,
    #[serde(flatten)]
    pub(super) ratios: Option<FloorRatios>,
    pub(super) given_back_ratio: f64,
    pub(super) user_bytes_before: u64,
    pub(super) user_bytes_at_slope_from: u64,
    pub(super) user_bytes_at_connections: u64,
    pub(super) user_bytes_after: u64,
    pub(super) memory_read_from: &'static str,
    pub(super) keep_alives: KeepAliveFigures,
    /// By the server's own word, at all connections and at the end of the time held.
    pub(super) presence: [Presence; 2],
    #[serde(flatten)]
    pub(super) senders: Option<SenderOutcome>,
    pub(super) disconnects: u64,
    pub(super) errors_by_code: BTreeMap<u32, u64>,
    pub(super) faults: Vec<String>,
    pub(super) clients: Counts,
    /// Before, at the slope's start, at all connections, and at the end of the time held.
    pub(super) samples: [IdleSample; 4],
    /// What the kernel's memory at all connections consists of, where it may be read.
    pub(super) slabs: Vec<SlabObjects>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) beside: Option<BesideFigures>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) floor: Option<BareFigures>,
    pub(super) phases: Vec<Phase>,
}

/// What became of one message to each connection.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct MessageFigures {
    pub(crate) sent: u64,
    pub(crate) acked: u64,
    pub(crate) delivered: u64,
    pub(crate) lost: u64,
    pub(crate) duplicated: u64,
    /// Delivered to somebody else.
    pub(crate) strange: u64,
    pub(crate) refused: u64,
    pub(crate) msgs_per_s: f64,
}

impl MessageFigures {
    /// `messages` were to be sent in all, `in_last` of them in the round that was timed.
    pub(crate) fn of(messaging: &Messaging, counts: &Counts, messages: u64, in_last: u64) -> Self {
        Self {
            sent: messaging.sent.sent,
            acked: messaging.sent.acked,
            delivered: counts.delivered,
            lost: messages.saturating_sub(counts.delivered),
            duplicated: counts.duplicated,
            strange: counts.strange,
            refused: messaging.refused,
            msgs_per_s: per_second(in_last, messaging.took),
        }
    }

    pub(crate) fn check(&self, messages: u64, misses: &mut Misses) {
        let kept = self.lost == 0 && self.duplicated == 0 && self.strange == 0 && self.acked == messages;
        misses.expect(kept, || {
            format!(
                "of {messages} messages {} were acknowledged, {} lost, {} came twice, {} to somebody else",
                self.acked, self.lost, self.duplicated, self.strange
            )
        });
    }
}

/// The server over the floor.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct FloorRatios {
    kernel_and_user_ratio: f64,
    login_cpu_ratio: f64,
}

impl FloorRatios {
    pub(super) fn of(slope: &IdleSlope, server_cpu_us_per_login: f64, floor: &BareFigures) -> Self {
        let bytes = |slope: &IdleSlope| slope.kernel_bytes_per_connection + slope.user_bytes_per_connection;
        Self {
            kernel_and_user_ratio: ratio(bytes(slope), bytes(&floor.slope)),
            login_cpu_ratio: ratio(server_cpu_us_per_login, floor.login_cpu_us),
        }
    }
}

/// What no crowd may go through, whatever is measured.
pub(crate) fn check_clients(clients: &Counts, errors: &BTreeMap<u32, u64>, faults: &[String], misses: &mut Misses) {
    let first = || faults.first().map_or_else(String::new, |fault| format!(": {fault}"));
    let Counts { disconnects, login_failures, duplicated, strange, damaged, overtaken, .. } = *clients;
    misses.expect(disconnects == 0, || format!("{disconnects} connections were lost{}", first()));
    misses.expect(login_failures == 0, || format!("{login_failures} logins failed{}", first()));
    misses.expect(errors.is_empty(), || format!("the server told errors, by code: {errors:?}"));
    let is_clean = duplicated == 0 && strange == 0 && damaged == 0 && overtaken == 0;
    misses.expect(is_clean, || {
        format!(
            "{duplicated} messages came twice, {strange} to somebody else, {damaged} damaged, {overtaken} too late{}",
            first()
        )
    });
}

impl DensityResult {
    pub(super) fn check(&self, options: &DensityOptions) -> Vec<String> {
        let mut misses = Misses::default();
        check_clients(&self.clients, &self.errors_by_code, &self.faults, &mut misses);
        if let Some(messages) = &self.messages {
            messages.check(self.connections, &mut misses);
        }
        if let Some(beside) = &self.beside {
            beside.missed.iter().for_each(|miss| misses.expect(false, || miss.clone()));
        }
        if let Some(floor) = &self.floor {
            misses.expect(floor.failures == 0, || format!("{} connections failed at the floor", floor.failures));
        }
        self.check_presence(&mut misses);
        self.check_measured(options, &mut misses);
        let asked = &options.thresholds;
        let ratios = self.ratios.as_ref();
        let is_told = self.connections - self.slope_from >= OWN_SLOPE_MIN;
        let bounded = [
            (asked.user_bytes_max, Some(self.slope.user_bytes_per_connection), "user bytes per connection"),
            (asked.kernel_bytes_max, Some(self.slope.kernel_bytes_per_connection), "kernel bytes per connection"),
            (
                is_told.then_some(asked.own_bytes_max),
                Some(self.slope.own_bytes_per_connection),
                "bytes of our own per connection",
            ),
            (asked.memory_ratio_max, ratios.map(|ratios| ratios.kernel_and_user_ratio), "x the floor's memory"),
            (asked.login_ratio_max, ratios.map(|ratios| ratios.login_cpu_ratio), "x the floor's CPU per login"),
            (asked.idle_cpu_s_max, self.server_cpu_s_idle, "s of server CPU in the quiet time"),
            (
                asked.beside_ratio_max,
                self.beside.as_ref().map(|beside| beside.server_cpu_us_per_msg_ratio),
                "x the CPU per message without the idle",
            ),
        ];
        for (max, found, what) in bounded {
            if let Some((max, found)) = max.zip(found) {
                misses.expect(found <= max, || format!("{found:.2} {what}, not {max}"));
            }
        }
        if let Some(min) = asked.given_back_min {
            let found = self.given_back_ratio;
            misses.expect(found >= min, || format!("{found:.2} of the growth came back, not {min}"));
        }
        misses.into_vec()
    }

    /// Whether all were there all the time, and were served.
    fn check_presence(&self, misses: &mut Misses) {
        let (connections, older) = (self.connections, self.clients.older);
        misses.expect(older == 0, || {
            format!(
                "{older} messages of earlier runs came: give others with --seed or --first-user, or an empty server"
            )
        });
        self.keep_alives.check(misses);
        for Presence { sessions, connections: open } in self.presence {
            let are_there = sessions >= connections && open >= connections;
            misses.expect(are_there, || {
                format!("the server has {sessions} sessions and {open} connections, not {connections}")
            });
        }
        if let Some(senders) = &self.senders {
            senders.check(misses);
        }
    }

    /// A figure that is asked for and came out as nothing or less was not measured: it is not the best of all.
    fn check_measured(&self, options: &DensityOptions, misses: &mut Misses) {
        let asked = &options.thresholds;
        let (user, kernel) = (self.slope.user_bytes_per_connection, self.slope.kernel_bytes_per_connection);
        let is_memory_asked = asked.memory_ratio_max.is_some();
        let unmeasured = [
            (asked.user_bytes_max.is_some() || is_memory_asked, user, "user bytes"),
            (asked.kernel_bytes_max.is_some() || is_memory_asked, kernel, "kernel bytes"),
        ];
        for (is_asked, found, what) in unmeasured {
            misses.expect(!is_asked || found > 0.0, || {
                format!("the {what} per connection could not be measured: {found:.1}; take more connections")
            });
        }
        let has_grown = self.user_bytes_at_connections > self.user_bytes_before;
        misses.expect(has_grown || asked.given_back_min.is_none(), || {
            "what came back could not be measured: memory did not grow; take more connections".to_owned()
        });
        for IdleSample { rss_bytes, engine_bytes, .. } in &self.samples {
            misses.expect(engine_bytes < rss_bytes, || {
                format!(
                    "user bytes could not be measured: of {rss_bytes} bytes the storage says {engine_bytes} are its own"
                )
            });
        }
    }

    pub(super) fn render(&self) -> String {
        let bytes = |bytes: f64| format!("{bytes:.1}");
        let times = |ratio: f64| format!("{ratio:.3}");
        let (slope, ratios, floor) = (&self.slope, self.ratios.as_ref(), self.floor.as_ref());
        let rows = [
            ("connections", Some(grouped(self.connections))),
            ("user bytes per connection", Some(bytes(slope.user_bytes_per_connection))),
            ("of them given out by the allocator", slope.allocated_bytes_per_connection.map(bytes)),
            ("kernel bytes per connection", Some(bytes(slope.kernel_bytes_per_connection))),
            ("user bytes per connection at the end", Some(bytes(self.held_slope.user_bytes_per_connection))),
            (
                "the floor's kernel and user bytes",
                floor.map(|floor| {
                    bytes(floor.slope.kernel_bytes_per_connection + floor.slope.user_bytes_per_connection)
                }),
            ),
            ("kernel and user, x the floor's", ratios.map(|ratios| times(ratios.kernel_and_user_ratio))),
            ("generator bytes per connection", Some(bytes(slope.own_bytes_per_connection))),
            ("logins per second", Some(format!("{:.0}", self.logins_per_s))),
            ("server CPU us per login", Some(bytes(self.server_cpu_us_per_login))),
            ("CPU per login, x the floor's", ratios.map(|ratios| times(ratios.login_cpu_ratio))),
            ("messages delivered", self.messages.map(|messages| grouped(messages.delivered))),
            ("messages lost", self.messages.map(|messages| grouped(messages.lost))),
            ("messages per second", self.messages.map(|messages| format!("{:.0}", messages.msgs_per_s))),
            ("keep-alives answered", Some(grouped(self.clients.pongs))),
            ("sessions at the end, by the server's word", self.presence.last().map(|found| grouped(found.sessions))),
            ("connections lost", Some(grouped(self.disconnects))),
            (
                "connections of those who send lost",
                self.senders.as_ref().map(|senders| grouped(senders.sender_disconnects)),
            ),
            ("server CPU s in the quiet time", self.server_cpu_s_idle.map(|spent_s| format!("{spent_s:.2}"))),
            (
                "CPU per message, x without the idle",
                self.beside.as_ref().map(|beside| times(beside.server_cpu_us_per_msg_ratio)),
            ),
            ("share of the growth given back", Some(format!("{:.2}", self.given_back_ratio))),
            ("memory before", Some(grouped(self.user_bytes_before))),
            ("memory at the most", Some(grouped(self.user_bytes_at_connections))),
            ("memory after", Some(grouped(self.user_bytes_after))),
        ];
        let mut table = Table::new(["idle connections", ""]);
        for (name, value) in rows {
            if let Some(value) = value {
                table.row(vec![name.to_owned(), value]);
            }
        }
        table.render()
    }
}

/// The share of a growth that has gone again.
pub(super) fn given_back(before: u64, high: u64, after: u64) -> f64 {
    if high <= before {
        return 1.0;
    }
    // A server that had garbage from before may give back more than it took.
    quotient(high.saturating_sub(after), high - before).min(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_share_given_back() {
        let close = |a: f64, b: f64| (a - b).abs() < 1e-9;
        assert!(close(given_back(100, 200, 110), 0.9));
        assert!(close(given_back(100, 200, 100), 1.0));
        assert!(close(given_back(100, 200, 250), 0.0));
        assert!(close(given_back(100, 200, 50), 1.0));
        assert!(close(given_back(100, 90, 90), 1.0), "what never grew has nothing to give back");
    }
}
