//! The options of `handshake`, and the kinds of logins that it compares.

use std::net::SocketAddr;

use clap::Args;
use serde::Serialize;

use crate::dense::HandshakeOption;
use crate::options::{RunOptions, TargetOptions, rate};
use crate::report::JsonTo;
use crate::target::sealing::SuiteOption;

/// Options of `handshake`.
#[derive(Args, Clone, Debug, Serialize)]
pub(crate) struct HandshakeOptions {
    #[command(flatten)]
    pub(super) target: TargetOptions,
    /// Where clients connect in plaintext [default: the target]
    #[arg(long, value_name = "ADDR")]
    pub(super) plain_target: Option<SocketAddr>,
    /// The server's process [default: who listens on the target's port; otherwise the ops port's word is taken]
    #[arg(long, value_name = "PID")]
    pub(super) server_pid: Option<u32>,
    /// Logins of each kind, in each round
    #[arg(long, default_value_t = 20_000, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    pub(super) logins: u32,
    /// Users who log in, again and again: so many connections at once
    #[arg(long, default_value_t = 2000, value_name = "N", value_parser = clap::value_parser!(u32).range(2..=20_000))]
    users: u32,
    /// Logins a second by Noise IK and XX, and of one more kind in plaintext to compare them with: in a rush, as those by
    /// ticket come, a login costs less. A server bounds the time that it gives to handshakes: for this pace, and for a
    /// rush of tickets with forward secrecy, it needs `handshake_cpu_percent = 100`
    #[arg(long, default_value_t = 3000.0, value_name = "PER_S", value_parser = rate)]
    pub(super) rate: f64,
    /// How often each kind is measured, by turns
    #[arg(long, default_value_t = 5, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100))]
    pub(super) rounds: u32,
    /// Measure what sealing and opening a record costs, and nothing else: needs no server
    #[arg(long)]
    pub(super) micro: bool,
    #[command(flatten)]
    pub(super) thresholds: Thresholds,
    #[command(flatten)]
    pub(super) run: RunOptions,
}

/// What must hold, else the exit code is 3.
#[derive(Args, Clone, Debug, Serialize)]
pub(super) struct Thresholds {
    /// Server CPU of a login by ticket, sealed with either suite, in microseconds, at most
    #[arg(long, value_name = "US")]
    pub(super) resume_max_us: Option<f64>,
    /// The same, with forward secrecy
    #[arg(long, value_name = "US")]
    pub(super) forward_secret_max_us: Option<f64>,
    /// What a login by Noise IK costs the server more than one in plaintext, so many times the five X25519 operations in
    /// it at most
    #[arg(long, value_name = "RATIO")]
    pub(super) ik_ratio_max: Option<f64>,
    /// Nanoseconds to seal a record of 256 bytes, and to open one, at most
    #[arg(long, requires = "micro", value_name = "NS")]
    pub(super) record_max_ns: Option<f64>,
}

impl HandshakeOptions {
    pub(crate) fn json_to(&self) -> JsonTo {
        self.run.json_to()
    }

    /// Connections at once.
    pub(super) fn users(&self) -> u64 {
        u64::from(self.users.min(self.logins.max(2)))
    }
}

/// A kind of login.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(super) struct KindOfLogin {
    pub(super) suite: SuiteOption,
    /// `None`: there is none, or the one that those come by whom the server does not know.
    pub(super) handshake: Option<HandshakeOption>,
    pub(super) is_by_token: bool,
    /// It comes at the pace asked for; otherwise as fast as it is answered.
    pub(super) is_paced: bool,
}

impl KindOfLogin {
    /// What those are compared with that come in a rush.
    const PLAINTEXT: Self = Self { suite: SuiteOption::None, handshake: None, is_by_token: false, is_paced: false };
    /// What the others are compared with.
    const PLAINTEXT_PACED: Self = Self { is_paced: true, ..Self::PLAINTEXT };

    /// All kinds; `suite` is that of the kinds that come with one only.
    pub(super) fn all(suite: SuiteOption) -> Vec<Self> {
        let by_ticket = |handshake| move |suite| Self { suite, handshake: Some(handshake), ..Self::PLAINTEXT };
        let suites = [SuiteOption::Chacha20, SuiteOption::Aes256];
        let mut kinds = vec![Self::PLAINTEXT];
        kinds.extend(suites.map(by_ticket(HandshakeOption::Resume)));
        kinds.extend(suites.map(by_ticket(HandshakeOption::ResumeFs)));
        let paced = Self { suite, ..Self::PLAINTEXT_PACED };
        let ik = Self { handshake: Some(HandshakeOption::Ik), ..paced };
        kinds.extend([Self::PLAINTEXT_PACED, ik, Self { is_by_token: true, ..paced }]);
        kinds
    }

    /// The kind that it is compared with.
    pub(super) fn plaintext(&self) -> Self {
        if self.is_paced { Self::PLAINTEXT_PACED } else { Self::PLAINTEXT }
    }

    /// In words.
    pub(super) fn name(&self) -> String {
        let what = match (self.handshake, self.is_by_token) {
            (Some(HandshakeOption::Resume), _) => "ticket",
            (Some(HandshakeOption::ResumeFs), _) => "ticket with forward secrecy",
            (Some(HandshakeOption::Ik), _) => "Noise IK",
            (Some(HandshakeOption::Xx), false) => "Noise XX",
            (_, true) => "Noise XX with a token",
            (None, false) if self.is_paced => return "ticket in plaintext, paced".to_owned(),
            (None, false) => return "ticket in plaintext".to_owned(),
        };
        format!("{what}, {}", self.suite.suite().map_or("none", culver_protocol::crypto::Suite::name))
    }
}
