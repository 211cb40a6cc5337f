//! `handshake`: what a login of each kind costs the server, and what that is beside the arithmetic that it cannot do
//! without. The kinds come by turns, round after round; the median counts.

mod micro;
mod options;
mod result;

use std::cell::Cell;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use culver_protocol::handshake::client::ServerKey;

pub(crate) use self::options::HandshakeOptions;
use self::options::KindOfLogin;
use self::result::HandshakeResult;
use super::idle::{Guard, quotient, sample};
use crate::clock::{Clock, unix_ms};
use crate::dense::sources::Sources;
use crate::dense::{Crowd, CrowdLoad, CrowdSealing, HandshakeOption, LoginWith};
use crate::plan::{self, RunId};
use crate::procfs;
use crate::report::progress::Progress;
use crate::report::{BadUsage, Document};
use crate::sys;
use crate::target::credentials::Credentials;
use crate::target::culver::Culver;

/// Longest wait until the server has let go of those who left.
const LEAVING_MAX: Duration = Duration::from_secs(30);
/// What the server still does for those who have left: its share of a login too.
const AFTER: Duration = Duration::from_millis(300);
/// No keep-alive goes out.
const KEEP_ALIVE_US: u64 = 1800 * 1_000_000;

/// Runs the scenario.
pub(crate) fn run(mut options: HandshakeOptions) -> Result<Document> {
    let seed = options.run.fix_seed();
    let progress = options.run.progress("handshake");
    sys::catch_interrupts();
    let result = if options.micro {
        HandshakeResult::of_records(micro::measure_records())
    } else {
        measure(&options, seed, &progress)?
    };
    let missed = result.check(&options);
    let text = result.render();
    Document::new("handshake", seed, &options, &result, text, missed)
}

fn measure(options: &HandshakeOptions, seed: u64, progress: &Progress) -> Result<HandshakeResult> {
    if options.target.suite().suite().is_none() {
        return Err(BadUsage("--suite is that of Noise IK and XX here: chacha20 or aes256".to_owned()).into());
    }
    let mut culver = options.target.find()?;
    let folder = tempfile::tempdir().context("no temporary directory")?;
    let credentials = Arc::new(options.target.credentials()?);
    let server =
        Server { options, credentials, folder: folder.path(), seed, server_key: Cell::new(None), busy: Cell::new(0) };
    let pid = options.server_pid.or_else(|| procfs::listener_pid(options.target.address().port()));
    let mut result = HandshakeResult::new(KindOfLogin::all(options.target.suite()), pid.is_some());
    for kind in KindOfLogin::all(options.target.suite()) {
        // Whoever logs in later is known by then, and has a ticket.
        progress.tell(format!("registering: {}", kind.name()));
        server.log_in(&kind, options.users(), true, progress)?;
    }
    server.busy.set(0);
    for round in 1..=options.rounds {
        for (kind, figures) in &mut result.kinds {
            let told = format!("round {round} of {}: {}", options.rounds, kind.name());
            figures.us_per_login.push(server.measure(kind, pid, &mut culver, progress, &told)?);
            figures.busy += server.busy.take();
        }
        result.five_operations_us.push(micro::measure_five_operations());
    }
    result.finish();
    Ok(result)
}

/// What all measurements share.
struct Server<'a> {
    options: &'a HandshakeOptions,
    credentials: Arc<Credentials>,
    /// Of the tickets.
    folder: &'a Path,
    seed: u64,
    /// Once a handshake has taught it.
    server_key: Cell<Option<ServerKey>>,
    /// Logins that were told to come again since somebody looked.
    busy: Cell<u64>,
}

impl Server<'_> {
    /// Server CPU of one login, in microseconds.
    fn measure(
        &self,
        kind: &KindOfLogin,
        pid: Option<u32>,
        culver: &mut Culver,
        progress: &Progress,
        told: &str,
    ) -> Result<f64> {
        let connections = culver.presence()?.connections;
        let before_us = cpu_us(pid, culver)?;
        let mut logins = 0;
        while logins < u64::from(self.options.logins) {
            progress.tell(format!("{told}: {logins} logins"));
            logins += self.log_in(kind, self.options.users(), false, progress)?;
        }
        progress.wait(AFTER, || Ok(()))?;
        let after_us = cpu_us(pid, culver)?;
        let are_gone = progress.wait_until(LEAVING_MAX, || Ok(culver.presence()?.connections <= connections))?;
        if !are_gone {
            bail!("the server still holds connections {LEAVING_MAX:?} after they were closed");
        }
        Ok(quotient(after_us.saturating_sub(before_us), logins))
    }

    /// Each user logs in once, and all leave; returns how many. First logins are never a rush.
    fn log_in(&self, kind: &KindOfLogin, users: u64, is_first: bool, progress: &Progress) -> Result<u64> {
        let mut guard = Guard::new(0);
        let crowd = Crowd::start(self.load(kind, users, is_first)?, &self.login(kind)?, Clock::start())?;
        crowd.grow_to(users, progress, || guard.check()).with_context(|| self.explain(kind))?;
        self.server_key.set(crowd.server_key().or(self.server_key.get()));
        let (outcome, _) = crowd.close()?;
        let counts = outcome.counts;
        self.busy.set(self.busy.get() + counts.logins_busy);
        if counts.logins != users || counts.login_failures + counts.disconnects + counts.tickets_refused > 0 {
            bail!("{}: not every login was taken: {counts:?} {:?}", kind.name(), outcome.faults);
        }
        Ok(users)
    }

    fn explain(&self, kind: &KindOfLogin) -> String {
        match kind.suite.suite() {
            Some(_) => format!("logging in: {}", kind.name()),
            None => "logging in in plaintext, which a server must offer to be compared".to_owned(),
        }
    }

    fn load(&self, kind: &KindOfLogin, users: u64, is_first: bool) -> Result<CrowdLoad> {
        let is_sealed = kind.suite.suite().is_some();
        let target = match self.options.plain_target {
            Some(plain) if !is_sealed => plain,
            _ => self.options.target.address(),
        };
        // Apart, so that nobody is known by two ways: and those who always show a token keep no tickets.
        let tickets = self.folder.join(if is_sealed { "sealed" } else { "plaintext" });
        let behind = if is_sealed { 0 } else { self.options.users() };
        Ok(CrowdLoad {
            target,
            connections: users,
            workers: Some(1),
            first_user: plan::first_user(self.seed).wrapping_add(behind),
            sources: Sources::choose(None, target, users)?,
            rate: (kind.is_paced || is_first).then_some(self.options.rate),
            keep_alive_us: KEEP_ALIVE_US,
            tickets: (!kind.is_by_token).then_some(tickets),
            run: RunId(unix_ms()),
            sends_ready: true,
            measures_delivery: false,
            returns: None,
        })
    }

    fn login(&self, kind: &KindOfLogin) -> Result<LoginWith> {
        let sealing = self.credentials.sealing(kind.suite)?;
        let handshake = kind.handshake.unwrap_or(HandshakeOption::Xx);
        let server = self.server_key.get();
        let sealing = sealing.map(|sealing| CrowdSealing { sealing, handshake, server });
        Ok(LoginWith::Tokens(Arc::clone(&self.credentials), sealing))
    }
}

/// The server's CPU time so far: its process's, where that can be seen; otherwise what it says.
fn cpu_us(pid: Option<u32>, culver: &mut Culver) -> Result<u64> {
    match pid {
        Some(pid) => sys::cpu_us_of(pid).with_context(|| format!("the CPU time of process {pid}")),
        None => Ok(sample(culver)?.cpu_us),
    }
}
