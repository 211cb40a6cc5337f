//! The attacks that take their time: connections that never log in, logins that trickle, handshakes that stop half way,
//! and first flights of others, sent again.

use std::io::Write;
use std::net::{Ipv4Addr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use culver_protocol::crypto::KeyPair;
use culver_protocol::error::ErrorCode;
use culver_protocol::handshake::client::How;
use culver_protocol::proto::Login;
use prost::Message;

use super::raw::{Raw, login_with_token};
use super::tally::Tally;
use super::way::{Flight, Way, begun};
use crate::sys;
use crate::target::sealing::Sealing;

/// The kinds of this file over encryption.
pub(crate) const HALF: &str = "half a handshake";
pub(crate) const REPLAYED_IK: &str = "replayed first flight of Noise IK";
pub(crate) const REPLAYED_TICKET: &str = "replayed first flight of a ticket";

/// Source addresses of the flood.
const SOURCES: u8 = 4;
/// Longest wait for one silent connection's end when its time has passed. The server's time begins when the kernel
/// passes the connection on, which for one that says nothing is a second or two after it was opened.
pub(super) const END_PATIENCE: Duration = Duration::from_secs(4);
/// How long the end of a copied flight's connection is waited for, when it should have come already.
const LAST_LOOK: Duration = Duration::from_millis(200);
/// One byte of a trickling login.
const TRICKLE_EVERY: Duration = Duration::from_secs(1);
/// Connections that disappoint before the rest is no longer asked.
const UNMET_MAX: u64 = 100;

/// How the slow attackers behave.
pub(crate) struct SlowAttack {
    pub(crate) silent: usize,
    /// Silent connections opened per second.
    pub(crate) silent_per_s: f64,
    pub(crate) trickling: usize,
    /// Handshakes that are begun and go no further; and as many first flights of others are replayed.
    pub(crate) halves: usize,
    /// How long the server waits for a login.
    pub(crate) login_timeout: Duration,
    pub(crate) way: Way,
    /// The keys and tokens of the attacker, and of those whose first flights are replayed.
    pub(crate) attacker: Who,
    pub(crate) victims: [Who; 2],
}

/// A device's key, and a token for it.
#[derive(Clone)]
pub(crate) struct Who {
    pub(crate) own: Arc<KeyPair>,
    pub(crate) token: String,
}

impl SlowAttack {
    /// Attacks until `stop`, and says then how each connection ended. What is younger than the server's patience
    /// is not judged.
    pub(crate) fn run(&self, stop: &AtomicBool) -> Result<Tally> {
        let mut tally = Tally::default();
        let began = Instant::now();
        let mut silent: Vec<(Instant, TcpStream)> = Vec::with_capacity(self.silent);
        let mut trickling = Vec::new();
        for _ in 0..self.trickling {
            trickling.push((Instant::now(), TcpStream::connect(self.way.target)?));
        }
        let replays = self.replays(&mut tally);
        let halves = self.halves()?;
        let letters =
            self.way.flight(&self.attacker.own, &login_with_token(&self.attacker.token).encode_to_vec())?.bytes;
        let mut sent: usize = 0;
        while !stop.load(Ordering::Relaxed) {
            self.open_silent(&mut silent, began, &mut tally);
            if began.elapsed() >= TRICKLE_EVERY.saturating_mul(u32::try_from(sent).unwrap_or(u32::MAX)) {
                for (_, socket) in &mut trickling {
                    // The server may have closed already: that is judged at the end.
                    socket.write_all(letters.get(sent..=sent).unwrap_or_default()).ok();
                }
                sent += 1;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        self.judge("login that trickles", trickling, &mut tally)?;
        self.judge("connection that never logs in", silent, &mut tally)?;
        self.judge(HALF, halves, &mut tally)?;
        for replay in replays {
            replay.judge(self.login_timeout, &mut tally)?;
        }
        Ok(tally)
    }

    /// The first message of Noise XX, and then nothing.
    fn halves(&self) -> Result<Vec<(Instant, TcpStream)>> {
        let Some((sealing, _)) = self.way.sealed else { return Ok(Vec::new()) };
        let begin = |_| {
            let how = How::Xx { own: Arc::clone(&self.attacker.own), roots: sealing.root.into() };
            let mut socket = TcpStream::connect(self.way.target)?;
            socket.write_all(&begun(&how, sealing, &[])?.bytes)?;
            Ok((Instant::now(), socket))
        };
        (0..self.halves).map(begin).collect()
    }

    /// Honest sessions, and beside each the copies of what it had opened with.
    fn replays(&self, tally: &mut Tally) -> Vec<Replay> {
        let Some((sealing, _)) = self.way.sealed else { return Vec::new() };
        let [one, two] = &self.victims;
        let recorded = [Recorded::login(&self.way, one), Recorded::ticket(&self.way, two, sealing)];
        let names = [REPLAYED_IK, REPLAYED_TICKET];
        let replays = recorded.into_iter().zip(names).filter_map(|(recorded, name)| {
            match recorded.and_then(|recorded| Replay::of(name, self, recorded)) {
                Ok(replay) => Some(replay),
                Err(error) => {
                    tally.failed(name, &format!("{error:#}"));
                    None
                }
            }
        });
        replays.collect()
    }

    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count of connections")]
    fn open_silent(&self, silent: &mut Vec<(Instant, TcpStream)>, began: Instant, tally: &mut Tally) {
        let due = ((began.elapsed().as_secs_f64() * self.silent_per_s) as usize).min(self.silent);
        while silent.len() < due {
            let last = u8::try_from(silent.len() % usize::from(SOURCES)).expect("below a u8") + 2;
            let source = Ipv4Addr::new(127, 0, 0, last);
            match sys::connect_nonblocking(self.way.target, Some(source.into())) {
                Ok(socket) => silent.push((Instant::now(), socket)),
                Err(error) => {
                    tally.failed("connection that never logs in", &error.to_string());
                    return;
                }
            }
        }
    }

    fn judge(&self, name: &'static str, sockets: Vec<(Instant, TcpStream)>, tally: &mut Tally) -> Result<()> {
        let mut unmet = 0;
        for (opened, socket) in sockets {
            // Half a second beyond the deadline for the server's timers.
            if opened.elapsed() < self.login_timeout + END_PATIENCE || unmet > UNMET_MAX {
                continue;
            }
            let (code, ended) = Raw::of(socket)?.error_and_end(END_PATIENCE)?;
            let told = code == Some(ErrorCode::LoginTimeout.number());
            if told && ended {
                tally.met(name);
            } else {
                unmet += 1;
                tally.unmet(name, &format!("error {code:?}, ended: {ended}"));
            }
        }
        Ok(())
    }
}

/// An honest session, and what it had opened with.
pub(super) struct Recorded {
    pub(super) honest: Raw,
    pub(super) flight: Vec<u8>,
}

impl Recorded {
    /// A login by token: in plaintext, or by Noise IK.
    pub(super) fn login(way: &Way, victim: &Who) -> Result<Self> {
        Self::of(way, way.flight(&victim.own, &login_with_token(&victim.token).encode_to_vec())?)
    }

    /// A login by the ticket that a first one gave.
    pub(super) fn ticket(way: &Way, victim: &Who, sealing: Sealing) -> Result<Self> {
        let mut first = Raw::connect(way.target)?;
        first.login(way, &victim.own, &victim.token)?;
        // The ticket is good once the device is registered: what is answered after READY is answered after that.
        ensure!(first.is_alive()?, "a device with a good token was not let in");
        let (ticket, secret) = first.ticket().context("a welcome without a ticket")?;
        drop(first);
        let how =
            How::Ticket { ticket, secret: secret.context("a sealed session has a secret")?, forward_secret: false };
        let login = Login { client: "culver-loadgen hostile".to_owned(), ..Login::default() };
        Self::of(way, begun(&how, sealing, &login.encode_to_vec())?)
    }

    fn of(way: &Way, opening: Flight) -> Result<Self> {
        let flight = opening.bytes.clone();
        let mut honest = Raw::connect(way.target)?;
        honest.log_in(way, opening)?;
        Ok(Self { honest, flight })
    }
}

/// An honest session, and copies of its first flight.
struct Replay {
    name: &'static str,
    honest: Raw,
    copies: Vec<(Instant, Raw)>,
}

impl Replay {
    fn of(name: &'static str, attack: &SlowAttack, recorded: Recorded) -> Result<Self> {
        let copy = |_| {
            let mut raw = Raw::connect(attack.way.target)?;
            raw.write(&recorded.flight)?;
            Ok((Instant::now(), raw))
        };
        let copies = (0..attack.halves).map(copy).collect::<Result<_>>()?;
        Ok(Self { name, honest: recorded.honest, copies })
    }

    /// None may live longer than a login may take, and the honest session must not have noticed.
    fn judge(mut self, login_timeout: Duration, tally: &mut Tally) -> Result<()> {
        for (opened, mut copy) in self.copies {
            if opened.elapsed() < login_timeout + END_PATIENCE {
                continue;
            }
            match copy.ends(LAST_LOOK)? {
                true => tally.met(self.name),
                false => tally.unmet(self.name, "a copy of it lives"),
            }
        }
        match self.honest.is_alive()? {
            true => tally.met(self.name),
            false => tally.unmet(self.name, "the honest session ended"),
        }
        Ok(())
    }
}
