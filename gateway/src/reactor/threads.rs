//! The threads of all reactors. They begin before anything else of the server, wait, and get their work when there is
//! some, so that their tables of descriptors can part from the shared one while that is all but empty.
//!
//! The limit of descriptors holds for each table (getrlimit(2), unshare(2)): reactors that have one each hold as many
//! connections as all of them together allow, and do not wait for each other when they open and close. **Rule:** only
//! reactors leave the shared table, before RocksDB is open and before any accept; nothing stays open in a table of
//! their own but 0, 1, 2, their end of the alarm and the listener that was handed over for them; they spawn no thread.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::{io, iter};

use crossbeam::channel::{self, Receiver, Sender};
use mio::Poll;

use super::Surroundings;
use super::admission;
use super::alarm::Alarm;
use super::hubs::ToHub;
use super::listener::{Group, Listener};
use super::thread::{Parts, ReactorThread, Stage};
use super::worst::{self, Asker, Question};
use crate::mailbox::Doorbell;
use crate::sys::leave_signals_to_others;

/// What a reactor serves.
pub struct Work {
    /// Where clients connect.
    pub listen: SocketAddr,
    /// The listeners of all reactors.
    pub group: Arc<Group>,
    /// The hubs by number.
    pub hubs: Vec<ToHub>,
    /// The rest of the server.
    pub around: Surroundings,
    /// What the server is doing.
    pub stage: Arc<Stage>,
    /// Goes when the reactor ends.
    pub running: Sender<Infallible>,
}

/// A thread that has begun.
struct Begun {
    bell: Arc<Doorbell>,
    work: Sender<(Work, Arc<Doorbell>)>,
    /// All listen: it may serve.
    go: Sender<()>,
    /// Says once that it has its descriptors, and once that it listens.
    steps: Receiver<io::Result<()>>,
    /// What operators want to know of it.
    questions: Sender<Question>,
    thread: JoinHandle<io::Result<()>>,
}

/// The threads, by number, waiting for work. Without any they end when this goes.
pub struct ReactorThreads(Vec<Begun>);

impl ReactorThreads {
    /// Begins `count` threads. `private_tables`: each with a table of descriptors of its own; then nobody else has
    /// opened anything yet that is not closed again by all. `inherited`: listeners handed over, one for each or none.
    /// Each stays open with its reactor, and with no other.
    ///
    /// # Errors
    /// A thread, a table or a poll cannot be had.
    pub fn begin(count: usize, private_tables: bool, inherited: Vec<OwnedFd>) -> io::Result<Self> {
        assert!(inherited.is_empty() || inherited.len() == count, "one for each, or none");
        let numbers = 0..u16::try_from(count).expect("the configuration bounds reactors");
        let listeners = inherited.into_iter().map(Some).chain(iter::repeat_with(|| None));
        let begun = numbers.zip(listeners).map(|(number, listener)| begin(number, private_tables, listener));
        begun.collect::<io::Result<Vec<_>>>().map(Self)
    }

    /// What wakes each.
    #[must_use]
    pub fn bells(&self) -> Vec<Arc<Doorbell>> {
        self.0.iter().map(|begun| Arc::clone(&begun.bell)).collect()
    }

    /// Who asks them all which connections are the worst.
    #[must_use]
    pub fn asker(&self) -> Asker {
        Asker::new(self.0.iter().map(|begun| (begun.questions.clone(), Arc::clone(&begun.bell))).collect())
    }

    /// Gives each its work, by number; returns when all listen. Before that none serves.
    ///
    /// # Errors
    /// One of them cannot listen.
    pub fn start(self, mut work: impl FnMut(usize) -> Work) -> io::Result<Vec<JoinHandle<io::Result<()>>>> {
        for (number, begun) in self.0.iter().enumerate() {
            // One that has ended says why in the next step.
            begun.work.send((work(number), Arc::clone(&begun.bell))).ok();
        }
        for begun in &self.0 {
            begun.wait_for_step()?;
        }
        for begun in &self.0 {
            begun.go.send(()).map_err(io::Error::other)?;
        }
        Ok(self.0.into_iter().map(|begun| begun.thread).collect())
    }
}

impl Begun {
    fn wait_for_step(&self) -> io::Result<()> {
        self.steps.recv().unwrap_or_else(|_| Err(io::Error::other("a reactor has ended before its time")))
    }
}

/// Returns when the thread has its table, in which it must not be the last to drop the shared end of the alarm, nor the
/// shared table's copy of the listener.
fn begin(number: u16, private_table: bool, inherited: Option<OwnedFd>) -> io::Result<Begun> {
    let alarm = Arc::new(Alarm::new()?);
    let inherited = inherited.map(Arc::new);
    let to_keep = inherited.clone();
    let (work, to_do) = channel::bounded(1);
    let (go, may_go) = channel::bounded(1);
    let (told, steps) = channel::bounded(2);
    let (asked, questions) = worst::questions();
    let to_set_off = Arc::clone(&alarm);
    let bell = Arc::new(Doorbell::new(move || to_set_off.set_off()));
    let name = format!("reactor-{number}");
    let thread = thread::Builder::new().name(name).spawn(move || {
        let ready = settle(alarm, to_keep, private_table);
        let (poll, alarm, inherited) = match ready {
            Ok(ready) => ready,
            Err(error) => return tell(&told, Err(error)),
        };
        tell(&told, Ok(()))?;
        let Ok((work, bell)) = to_do.recv() else { return Ok(()) };
        let Work { listen, group, hubs, around, stage, running } = work;
        let (peers, queue_len) = (&around.config.peers, admission::queue_len(around.logins));
        let listener = match inherited {
            Some(socket) => Listener::inherit(socket, group, peers, queue_len),
            None => Listener::open(listen, group, peers, queue_len),
        };
        let listening = listener.and_then(|listener| {
            ReactorThread::new(Parts { number, poll, alarm, bell, listener, hubs, around, stage, questions })
        });
        match listening {
            Ok(reactor) => {
                tell(&told, Ok(()))?;
                let ended = if may_go.recv().is_ok() { reactor.run() } else { Ok(()) };
                drop(running);
                ended
            }
            Err(error) => tell(&told, Err(error)),
        }
    })?;
    let begun = Begun { bell, work, go, steps, questions: asked, thread };
    begun.wait_for_step()?;
    // The thread has its own by now.
    drop(inherited);
    Ok(begun)
}

/// Whoever waits for the step hears of it; if nobody does, the server has given up.
fn tell(told: &Sender<io::Result<()>>, step: io::Result<()>) -> io::Result<()> {
    told.send(step).map_err(io::Error::other)
}

/// The thread's own end of the alarm, its poll, and its listener where that is inherited, in the table of descriptors
/// that it will use.
fn settle(
    alarm: Arc<Alarm>,
    inherited: Option<Arc<OwnedFd>>,
    private_table: bool,
) -> io::Result<(Poll, Alarm, Option<OwnedFd>)> {
    leave_signals_to_others()?;
    let (own, listener) = if private_table {
        alarm.take_along(inherited.as_deref())?
    } else {
        (alarm.share()?, inherited.as_deref().map(OwnedFd::try_clone).transpose()?)
    };
    // Their numbers mean nothing here any more; those who ring, and who waits for this step, keep them.
    drop((alarm, inherited));
    Ok((Poll::new()?, own, listener))
}
