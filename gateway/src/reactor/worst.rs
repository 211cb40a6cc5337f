//! Which connections have the most unsent bytes: asked of all reactors at once by who may wait, and answered by each in
//! a turn of its own. A reactor that does not answer in time is named; none is ever waited for by another.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam::channel::{self, Receiver, Sender};
use serde::Serialize;

use crate::mailbox::Doorbell;

/// Questions that wait at a reactor.
const QUESTIONS_MAX: usize = 4;

/// One of the connections with the most unsent bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Offender {
    /// Whose it is; `None`: it has not logged in.
    pub user: Option<u64>,
    /// The device of that user.
    pub device: Option<u16>,
    /// The reactor that has it.
    pub reactor: u16,
    /// Where it comes from; `None`: it is gone already.
    pub peer: Option<SocketAddr>,
    /// Bytes that its socket has not taken.
    pub unsent_bytes: usize,
    /// Bytes that its socket has taken and its peer's kernel has not acknowledged.
    pub kernel_unsent_bytes: Option<u32>,
    /// Seconds since something was heard of it.
    pub silent_s: u32,
    /// Seconds since its socket last took all there was.
    pub blocked_s: u64,
}

/// The worst of all reactors that answered.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Worst {
    /// By unsent bytes, then by how long they have been blocked.
    pub connections: Vec<Offender>,
    /// Reactors that have not answered in time.
    pub unanswered: Vec<u16>,
}

/// A question to one reactor.
pub struct Question {
    /// How many are asked for.
    pub count: usize,
    answer: Sender<(u16, Vec<Offender>)>,
}

impl Question {
    /// Answers it. Who has asked may have gone.
    pub fn answer(self, reactor: u16, worst: Vec<Offender>) {
        self.answer.try_send((reactor, worst)).ok();
    }
}

/// The reactor's end of its questions, and the other.
#[must_use]
pub fn questions() -> (Sender<Question>, Receiver<Question>) {
    channel::bounded(QUESTIONS_MAX)
}

/// Asks all reactors.
pub struct Asker(Vec<(Sender<Question>, Arc<Doorbell>)>);

impl Asker {
    /// The reactors by number: where each takes questions, and what wakes it.
    #[must_use]
    pub fn new(reactors: Vec<(Sender<Question>, Arc<Doorbell>)>) -> Self {
        Self(reactors)
    }

    /// The `count` worst of all. Waits for no reactor longer than `patience`, which holds for all together.
    #[must_use]
    pub fn ask(&self, count: usize, patience: Duration) -> Worst {
        let until = Instant::now() + patience;
        let (answer, answers) = channel::bounded(self.0.len());
        for (questions, bell) in &self.0 {
            // One without room, or that has ended, does not answer, and is named.
            if questions.try_send(Question { count, answer: answer.clone() }).is_ok() {
                bell.ring();
            }
        }
        drop(answer);
        let mut worst = Worst { connections: Vec::new(), unanswered: (0..).take(self.0.len()).collect() };
        while let Ok((reactor, found)) = answers.recv_deadline(until) {
            worst.unanswered.retain(|number| *number != reactor);
            worst.connections.extend(found);
        }
        worst.connections.sort_by_key(|one| std::cmp::Reverse((one.unsent_bytes, one.blocked_s)));
        worst.connections.truncate(count);
        worst
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offender(reactor: u16, unsent_bytes: usize, blocked_s: u64) -> Offender {
        let (user, device, peer) = (Some(u64::from(reactor)), Some(1), None);
        Offender { user, device, reactor, peer, unsent_bytes, kernel_unsent_bytes: None, silent_s: 0, blocked_s }
    }

    /// A reactor that answers one question: these, as far as they are asked for.
    fn answering(
        reactor: u16,
        mut worst: Vec<Offender>,
    ) -> ((Sender<Question>, Arc<Doorbell>), std::thread::JoinHandle<()>) {
        let (ask, asked) = questions();
        let thread = std::thread::spawn(move || {
            let question = asked.recv().expect("somebody asks");
            worst.truncate(question.count);
            question.answer(reactor, worst);
        });
        ((ask, Arc::new(Doorbell::new(|| ()))), thread)
    }

    #[test]
    fn the_worst_of_all_reactors_are_told() {
        let (first, one) = answering(0, vec![offender(0, 900, 1), offender(0, 500, 9)]);
        let (second, other) = answering(1, vec![offender(1, 700, 1), offender(1, 500, 10)]);
        let worst = Asker::new(vec![first, second]).ask(3, Duration::from_secs(60));
        assert_eq!(worst.connections, [offender(0, 900, 1), offender(1, 700, 1), offender(1, 500, 10)]);
        assert_eq!(worst.unanswered, [0_u16; 0]);
        for thread in [one, other] {
            thread.join().expect("no panic");
        }
    }

    #[test]
    fn who_does_not_answer_is_named_and_holds_nobody_up() {
        let (first, thread) = answering(0, vec![offender(0, 900, 1)]);
        let (silent, _asked) = questions();
        let (ended, asked) = questions();
        drop(asked);
        let bell = || Arc::new(Doorbell::new(|| ()));
        let asker = Asker::new(vec![first, (silent.clone(), bell()), (ended, bell())]);
        let worst = asker.ask(20, Duration::ZERO);
        thread.join().expect("no panic");
        assert!(worst.unanswered.ends_with(&[1, 2]), "{worst:?}");
        for _ in 1..QUESTIONS_MAX {
            assert_eq!(asker.ask(20, Duration::ZERO).unanswered, [0, 1, 2], "the first takes no more questions");
        }
        assert_eq!(asker.ask(20, Duration::ZERO).unanswered, [0, 1, 2]);
        assert!(silent.is_full(), "no more questions wait than may");
    }
}
