//! What a run of `handshake` came to: the figures, their bounds, and how they are told.

use std::fmt::Write;

use serde::Serialize;

use super::micro::RecordCost;
use super::options::{HandshakeOptions, KindOfLogin};
use crate::dense::HandshakeOption;
use crate::report::Misses;
use crate::report::histogram::median;
use crate::report::table::{Table, grouped};

/// A figure stands as long as only one login in so many came again.
const BUSY_ONE_IN: u64 = 100;

/// What logins of one kind cost, round by round.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct KindFigures {
    name: String,
    pub(super) us_per_login: Vec<f64>,
    us_per_login_median: f64,
    /// Logins that the server would not have at once, and that came again: their cost is in those of the others.
    pub(super) busy: u64,
    /// More than in plaintext: the median of the rounds' differences.
    added_us_median: f64,
}

#[derive(Default, Serialize)]
pub(super) struct HandshakeResult {
    #[serde(skip_serializing_if = "Vec::is_empty", serialize_with = "figures_only")]
    pub(super) kinds: Vec<(KindOfLogin, KindFigures)>,
    /// A key pair and four agreements, round by round.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) five_operations_us: Vec<f64>,
    five_operations_us_median: f64,
    /// A login by Noise IK to the five operations in it; and what it has more than one in plaintext to them.
    ik_ratio: Option<f64>,
    ik_added_ratio: Option<f64>,
    cpu_read_from: Option<&'static str>,
    /// Records of 256 bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) micro: Option<Vec<RecordCost>>,
}

fn figures_only<S: serde::Serializer>(kinds: &[(KindOfLogin, KindFigures)], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(kinds.iter().map(|(_, figures)| figures))
}

impl HandshakeResult {
    pub(super) fn new(kinds: Vec<KindOfLogin>, is_process_known: bool) -> Self {
        let figures = |kind: KindOfLogin| (kind, KindFigures { name: kind.name(), ..KindFigures::default() });
        Self {
            kinds: kinds.into_iter().map(figures).collect(),
            cpu_read_from: Some(if is_process_known { "the process's clock" } else { "ops port" }),
            ..Self::default()
        }
    }

    pub(super) fn of_records(micro: Vec<RecordCost>) -> Self {
        Self { micro: Some(micro), ..Self::default() }
    }

    /// All rounds are over.
    pub(super) fn finish(&mut self) {
        let costs: Vec<_> = self.kinds.iter().map(|(kind, figures)| (*kind, figures.us_per_login.clone())).collect();
        for (kind, figures) in &mut self.kinds {
            let plaintext = costs.iter().filter(|(other, _)| *other == kind.plaintext()).flat_map(|(_, costs)| costs);
            let added: Vec<f64> = figures.us_per_login.iter().zip(plaintext).map(|(own, plain)| own - plain).collect();
            figures.us_per_login_median = median(&figures.us_per_login);
            figures.added_us_median = median(&added);
        }
        let operations_us = median(&self.five_operations_us);
        self.five_operations_us_median = operations_us;
        let ik = self.of(|kind| kind.handshake == Some(HandshakeOption::Ik)).filter(|_| operations_us > 0.0);
        let ratios = ik.map(|ik| (ik.us_per_login_median / operations_us, ik.added_us_median / operations_us));
        (self.ik_ratio, self.ik_added_ratio) = ratios.unzip();
    }

    fn of(&self, is_wanted: impl Fn(&KindOfLogin) -> bool) -> Option<&KindFigures> {
        self.kinds.iter().find(|(kind, _)| is_wanted(kind)).map(|(_, figures)| figures)
    }

    pub(super) fn check(&self, options: &HandshakeOptions) -> Vec<String> {
        let mut misses = Misses::default();
        let bounds = &options.thresholds;
        let by_ticket = [
            (HandshakeOption::Resume, bounds.resume_max_us),
            (HandshakeOption::ResumeFs, bounds.forward_secret_max_us),
        ];
        for (handshake, max_us) in by_ticket {
            for (_, figures) in self.kinds.iter().filter(|(kind, _)| kind.handshake == Some(handshake)) {
                let found_us = figures.us_per_login_median;
                let held = max_us.is_none_or(|max_us| found_us <= max_us);
                misses.expect(held, || {
                    format!("{}: {found_us:.1} us of CPU, not {}", figures.name, max_us.unwrap_or_default())
                });
            }
        }
        if let (Some(max), Some(found)) = (bounds.ik_ratio_max, self.ik_added_ratio) {
            misses.expect(found <= max, || format!("Noise IK adds {found:.2} x its five operations, not {max}"));
        }
        let logins = u64::from(options.logins) * self.five_operations_us.len() as u64;
        for (_, figures) in &self.kinds {
            misses.expect(figures.busy * BUSY_ONE_IN <= logins, || {
                format!(
                    "{}: {} logins were told that the server is busy, so the figure is none: give the server \
                     `handshake_cpu_percent = 100`, or ask for a lower --rate",
                    figures.name, figures.busy
                )
            });
        }
        for cost in self.micro.iter().flatten() {
            for (what, found_ns) in [("sealing", cost.seal_ns), ("opening", cost.open_ns)] {
                let held = bounds.record_max_ns.is_none_or(|max_ns| found_ns <= max_ns);
                misses.expect(held, || {
                    let max_ns = bounds.record_max_ns.unwrap_or_default();
                    format!("{what} a record, {}: {found_ns:.0} ns, not {max_ns}", cost.suite)
                });
            }
        }
        misses.into_vec()
    }

    pub(super) fn render(&self) -> String {
        let mut text = String::new();
        if let Some(micro) = &self.micro {
            let mut table = Table::new(["record of 256 bytes", "sealing ns", "opening ns"]);
            for RecordCost { suite, seal_ns, open_ns } in micro {
                table.row(vec![(*suite).to_owned(), format!("{seal_ns:.0}"), format!("{open_ns:.0}")]);
            }
            return table.render();
        }
        let mut table = Table::new(["login", "CPU us", "more than plaintext", "told busy", "round by round"]);
        for (_, figures) in &self.kinds {
            let rounds: Vec<String> = figures.us_per_login.iter().map(|us| format!("{us:.1}")).collect();
            let cells = [figures.us_per_login_median, figures.added_us_median].map(|us| format!("{us:.1}"));
            let rest = [grouped(figures.busy), rounds.join(" ")];
            table.row([figures.name.clone()].into_iter().chain(cells).chain(rest).collect());
        }
        text += &table.render();
        let operations_us = self.five_operations_us_median;
        let line = format!("five X25519 operations, a key pair and four agreements: {operations_us:.1} us");
        writeln!(text, "{line}").expect("a String takes everything");
        if let (Some(ratio), Some(added)) = (self.ik_ratio, self.ik_added_ratio) {
            let line = format!("Noise IK: x {ratio:.2} of them; what it has more than plaintext: x {added:.2}");
            writeln!(text, "{line}").expect("a String takes everything");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::target::sealing::SuiteOption;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        options: HandshakeOptions,
    }

    fn options(arguments: &[&str]) -> HandshakeOptions {
        Line::parse_from(["handshake"].iter().chain(arguments)).options
    }

    /// Three rounds of a machine that became slower, in which each kind costs so much more than plaintext.
    fn result(added_us: &[f64]) -> HandshakeResult {
        let mut result = HandshakeResult::new(KindOfLogin::all(SuiteOption::Chacha20), true);
        for plaintext_us in [30.0, 40.0, 60.0] {
            for ((_, figures), added_us) in result.kinds.iter_mut().zip(added_us) {
                figures.us_per_login.push(plaintext_us + added_us);
            }
            result.five_operations_us.push(100.0);
        }
        result.finish();
        result
    }

    #[test]
    fn differences_are_taken_round_by_round() {
        let result = result(&[0.0, 10.0, 11.0, 50.0, 51.0, 20.0, 110.0, 300.0]);
        let added: Vec<f64> = result.kinds.iter().map(|(_, figures)| figures.added_us_median).collect();
        assert_eq!(added, [0.0, 10.0, 11.0, 50.0, 51.0, 0.0, 90.0, 280.0]);
        assert_eq!((result.ik_ratio, result.ik_added_ratio), (Some(1.5), Some(0.9)));
        let text = result.render();
        for part in ["ticket in plaintext", "ticket with forward secrecy, aes256", "Noise IK, chacha20", "x 1.50"] {
            assert!(text.contains(part), "{part} in\n{text}");
        }
        let json = serde_json::to_value(&result).expect("figures");
        assert_eq!(json.pointer("/kinds/1/us_per_login_median"), Some(&50.0.into()));
    }

    #[test]
    fn each_bound_is_of_its_own_kinds() {
        let result = result(&[0.0, 10.0, 25.0, 50.0, 80.0, 0.0, 111.0, 300.0]);
        let misses = |arguments: &[&str]| result.check(&options(arguments)).len();
        assert_eq!(misses(&[]), 0);
        assert_eq!(misses(&["--resume-max-us", "60"]), 1);
        assert_eq!(misses(&["--resume-max-us", "49"]), 2);
        assert_eq!(misses(&["--forward-secret-max-us", "110"]), 1);
        assert_eq!((misses(&["--ik-ratio-max", "1.1"]), misses(&["--ik-ratio-max", "1.2"])), (1, 0));
        let micro = vec![RecordCost { suite: "chacha20", seal_ns: 900.0, open_ns: 1100.0 }];
        assert_eq!(
            HandshakeResult::of_records(micro).check(&options(&["--micro", "--record-max-ns", "1000"])).len(),
            1
        );
    }
}
