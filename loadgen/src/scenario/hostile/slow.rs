//! The attacks that take their time: connections that never log in, and logins that trickle.

use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Result;
use culver_protocol::error::ErrorCode;

use super::raw::{Raw, login_with_token, opening};
use super::tally::Tally;
use crate::sys;

/// Source addresses of the flood.
const SOURCES: u8 = 4;
/// Longest wait for one silent connection's end when its time has passed. The server's time begins when the kernel
/// passes the connection on, which for one that says nothing is a second or two after it was opened.
const END_PATIENCE: Duration = Duration::from_secs(4);
/// One byte of a trickling login.
const TRICKLE_EVERY: Duration = Duration::from_secs(1);
/// Connections that disappoint before the rest is no longer asked.
const UNMET_MAX: u64 = 100;

/// How the slow attackers behave.
#[derive(Clone, Debug)]
pub(crate) struct SlowAttack {
    pub(crate) target: SocketAddr,
    pub(crate) silent: usize,
    /// Silent connections opened per second.
    pub(crate) silent_per_s: f64,
    pub(crate) trickling: usize,
    /// How long the server waits for a login.
    pub(crate) login_timeout: Duration,
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
            trickling.push((Instant::now(), TcpStream::connect(self.target)?));
        }
        let letters = opening(&login_with_token(&self.token));
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
        Ok(tally)
    }

    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count of connections")]
    fn open_silent(&self, silent: &mut Vec<(Instant, TcpStream)>, began: Instant, tally: &mut Tally) {
        let due = ((began.elapsed().as_secs_f64() * self.silent_per_s) as usize).min(self.silent);
        while silent.len() < due {
            let last = u8::try_from(silent.len() % usize::from(SOURCES)).expect("below a u8") + 2;
            let source = Ipv4Addr::new(127, 0, 0, last);
            match sys::connect_nonblocking(self.target, Some(source.into())) {
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
