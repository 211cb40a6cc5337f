//! One worker: a thread with a poll loop, its connections, and a driver that knows the scenario.
//!
//! A turn is: timers, driver, readiness, events, one write per touched connection. Never blocks elsewhere than in
//! the poll, and ends when its driver says so or when the deadline comes.

use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::thread::JoinHandle;
use std::time::Duration;

use culver_protocol::client::{Client, Event};
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};

use crate::clock::Clock;
use crate::links::{LinkIndex, Links, Readiness};
use crate::sys::Alarm;

/// The timer's token; connections count from 0.
const ALARM: Token = Token(usize::MAX - 1);
/// Readiness events taken in one turn.
const EVENTS_MAX: usize = 1024;
/// Longest sleep, so that a driver's wishes and the deadline are never far from being noticed.
const SLEEP_US_MAX: u64 = 20_000;

/// What a scenario does with its connections. Sans-io: it is told of events and given the clients.
pub(crate) trait Driver: Send + 'static {
    /// Opens the connections that are there from the start.
    fn begin(&mut self, links: &mut Links, now_us: u64);

    /// One event of one connection; `client` is its client.
    fn handle_event(&mut self, index: LinkIndex, client: &mut Client, event: Event, now_us: u64);

    /// Called once a turn before the poll. Returns when it wants the next call, if it does; at the latest it gets
    /// one after every readiness.
    fn handle_turn(&mut self, links: &mut Links, now_us: u64) -> Option<u64>;

    /// Called once a turn before anything is written: what the clients are about to acknowledge must be safe now.
    fn before_write(&mut self) -> io::Result<()> {
        Ok(())
    }

    /// Whether the worker may end.
    fn is_done(&self) -> bool;
}

/// A finished worker's driver and sockets' story.
pub(crate) struct Finished<D> {
    pub(crate) driver: D,
    pub(crate) counts: crate::links::LinkCounts,
    /// `None`: nobody could listen.
    pub(crate) redelivered: Option<u64>,
}

/// Starts a worker thread. It ends when its driver is done, and at `deadline_us` at the latest.
pub(crate) fn spawn<D: Driver>(
    name: String,
    target: SocketAddr,
    clock: Clock,
    deadline_us: u64,
    driver: D,
) -> io::Result<JoinHandle<io::Result<Finished<D>>>> {
    std::thread::Builder::new().name(name).spawn(move || {
        let mut worker = Worker::new(target, clock, driver)?;
        worker.run(deadline_us)?;
        worker.links.close_all();
        Ok(Finished { counts: worker.links.counts(), redelivered: worker.links.redelivered(), driver: worker.driver })
    })
}

struct Worker<D> {
    poll: Poll,
    alarm: Alarm,
    links: Links,
    driver: D,
    clock: Clock,
}

impl<D: Driver> Worker<D> {
    fn new(target: SocketAddr, clock: Clock, driver: D) -> io::Result<Self> {
        let poll = Poll::new()?;
        let alarm = Alarm::new()?;
        poll.registry().register(&mut SourceFd(&alarm.descriptor()), ALARM, Interest::READABLE)?;
        let links = Links::new(target, poll.registry().try_clone()?);
        Ok(Self { poll, alarm, links, driver, clock })
    }

    fn run(&mut self, deadline_us: u64) -> io::Result<()> {
        let mut events = Events::with_capacity(EVENTS_MAX);
        self.driver.begin(&mut self.links, self.clock.now_us());
        loop {
            let now_us = self.clock.now_us();
            self.links.handle_timers(now_us);
            let wish_us = self.driver.handle_turn(&mut self.links, now_us);
            self.serve(now_us)?;
            if self.driver.is_done() || now_us >= deadline_us {
                return Ok(());
            }
            self.wait(&mut events, wish_us)?;
            let now_us = self.clock.now_us();
            for index in self.links.take_unread() {
                self.links.handle_ready(index, Readiness::UNREAD, now_us);
            }
            for event in events.iter().filter(|event| event.token() != ALARM) {
                self.links.handle_ready(LinkIndex(event.token().0), Readiness::of(event), now_us);
            }
            self.serve(now_us)?;
        }
    }

    /// Hands out the events of the touched connections and writes what came of them.
    fn serve(&mut self, now_us: u64) -> io::Result<()> {
        let mut position = 0;
        // Serving may touch more connections; each is in the list once, so the list is at most as long as all links.
        while let Some(index) = self.links.dirty_at(position) {
            position += 1;
            while let Some(event) = self.links.next_event(index, now_us) {
                let client = self.links.client(index);
                self.driver.handle_event(index, client, event, now_us);
            }
        }
        self.driver.before_write()?;
        self.links.flush(now_us);
        Ok(())
    }

    fn wait(&mut self, events: &mut Events, wish_us: Option<u64>) -> io::Result<()> {
        let now_us = self.clock.now_us();
        let due_us = [wish_us, self.links.timer_us(), Some(now_us + SLEEP_US_MAX)].into_iter().flatten().min();
        let wait_us = due_us.unwrap_or(now_us).saturating_sub(now_us);
        let timeout = if self.links.has_unread() || wait_us == 0 {
            Duration::ZERO
        } else {
            if wish_us == due_us {
                self.alarm.set(wait_us)?; // the poll's own timeout would round up to a millisecond
            }
            Duration::from_micros(wait_us.next_multiple_of(1000))
        };
        match self.poll.poll(events, Some(timeout)) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {
                events.clear();
                Ok(())
            }
            result => result,
        }
    }
}
