//! The thread of a reactor: one epoll instance, one listener, one clock. It waits for events and tells the pure
//! [`Reactor`] of them; never looks into a connection.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};

use super::alarm::Alarm;
use super::hubs::ToHub;
use super::{Reactor, Surroundings, Wait};
use crate::clock::{Clock, SystemClock};
use crate::mailbox::Doorbell;

/// Events taken from the kernel at once: however dear each may be (a login with a token costs as much as ten messages),
/// what is ready to be written waits no longer than for these.
const EVENTS_MAX: usize = 16;
/// Connections accepted in one turn, for the same reason.
const ACCEPTS_A_TURN: usize = 8;
/// How long sockets gather what they have while a hub gathers too; what hubs have to say ends it at once.
const GATHER: Duration = Duration::from_micros(250);

const LISTENER: Token = Token(usize::MAX);
const ALARM: Token = Token(usize::MAX - 1);

/// What the server is doing; all reactors' threads watch it.
#[derive(Debug, Default)]
pub struct Stage(AtomicU8);

impl Stage {
    const RUNNING: u8 = 0;
    const LEAVING: u8 = 1;

    /// From now on: tell clients to go, answer what is under way, end.
    pub fn leave(&self) {
        self.0.store(Self::LEAVING, Ordering::Release);
    }

    /// Whether the server is leaving.
    #[must_use]
    pub fn is_leaving(&self) -> bool {
        self.0.load(Ordering::Acquire) != Self::RUNNING
    }
}

/// A reactor with what its thread watches.
pub struct ReactorThread {
    name: String,
    poll: Poll,
    alarm: Arc<Alarm>,
    bell: Arc<Doorbell>,
    stage: Arc<Stage>,
    /// `None`: the server leaves.
    listener: Option<TcpListener>,
    /// The kernel has more events than were taken.
    more_events: bool,
    reactor: Reactor<TcpStream>,
}

impl ReactorThread {
    /// A reactor with its listener and the hubs by number.
    ///
    /// # Errors
    /// Those of epoll_create(2) and eventfd(2).
    pub fn new(
        number: u16,
        mut listener: TcpListener,
        hubs: Vec<ToHub>,
        around: Surroundings,
        stage: Arc<Stage>,
    ) -> io::Result<Self> {
        let poll = Poll::new()?;
        let alarm = Arc::new(Alarm::new(poll.registry(), ALARM)?);
        poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
        let to_set_off = Arc::clone(&alarm);
        Ok(Self {
            name: format!("reactor-{number}"),
            poll,
            alarm,
            bell: Arc::new(Doorbell::new(move || to_set_off.set_off())),
            stage,
            listener: Some(listener),
            more_events: false,
            reactor: Reactor::new(number, hubs, around),
        })
    }

    /// The thread's name.
    #[must_use]
    pub fn name(&self) -> String {
        self.name.clone()
    }

    /// Wakes this reactor.
    #[must_use]
    pub fn bell(&self) -> Arc<Doorbell> {
        Arc::clone(&self.bell)
    }

    /// Runs until the server leaves and everything under way is answered and written.
    ///
    /// # Errors
    /// Those of epoll_wait(2).
    pub fn run(mut self) -> io::Result<()> {
        let mut events = Events::with_capacity(EVENTS_MAX);
        loop {
            self.wait(&mut events)?;
            self.reactor.begin_turn(SystemClock.now());
            let mut seen = 0;
            for event in &events {
                seen += 1;
                match event.token() {
                    LISTENER => self.accept(),
                    ALARM => self.alarm.silence(),
                    Token(slot) => {
                        let slot = u32::try_from(slot).expect("tokens are slots");
                        if event.is_writable() {
                            self.reactor.handle_writable(slot);
                        }
                        if event.is_readable() || event.is_read_closed() || event.is_error() {
                            self.reactor.handle_readable(slot, event.is_read_closed());
                        }
                    }
                }
            }
            self.more_events = seen == EVENTS_MAX;
            if self.stage.is_leaving() {
                self.stop_listening();
                self.reactor.leave();
            }
            self.reactor.end_turn();
            if self.reactor.has_left() {
                return Ok(());
            }
        }
    }

    /// Waits for events; not at all where there is something to do already.
    fn wait(&mut self, events: &mut Events) -> io::Result<()> {
        self.bell.announce();
        let wait = if self.more_events { Wait::Not } else { self.reactor.plan_wait() };
        let timeout = match wait {
            Wait::Not => Duration::ZERO,
            Wait::For(longest) => {
                if self.reactor.take_gathering() {
                    self.alarm.wait(GATHER);
                }
                longest
            }
        };
        let polled = self.poll.poll(events, Some(timeout));
        self.bell.withdraw();
        match polled {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(()),
            other => other,
        }
    }

    fn accept(&mut self) {
        let mut accepted = 0;
        while let Some(listener) = &self.listener {
            let stream = match listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => {
                    // Out of descriptors or memory, or the peer is gone already: the others are still there.
                    tracing::warn!(%error, "a connection could not be accepted");
                    return;
                }
            };
            let Some(slot) = self.reactor.accept(stream) else { continue };
            let stream = self.reactor.socket_mut(slot).expect("just accepted");
            let interest = Interest::READABLE | Interest::WRITABLE;
            if let Err(error) = self.poll.registry().register(stream, Token(slot as usize), interest) {
                tracing::warn!(%error, "a connection could not be watched");
                self.reactor.discard(slot);
                continue;
            }
            accepted += 1;
            if accepted == ACCEPTS_A_TURN {
                // Edge-triggered: the rest would not be announced again.
                self.accept_again();
                return;
            }
        }
    }

    fn accept_again(&mut self) {
        if let Some(listener) = &mut self.listener
            && let Err(error) = self.poll.registry().reregister(listener, LISTENER, Interest::READABLE)
        {
            tracing::error!(%error, "the listener cannot be watched any more");
        }
    }

    fn stop_listening(&mut self) {
        if let Some(mut listener) = self.listener.take() {
            // Closing it is what matters; it leaves epoll by that anyway.
            drop(self.poll.registry().deregister(&mut listener));
        }
    }
}
