//! What threads say to each other: bounded queues, and doorbells that wake who sleeps.
//!
//! One rule makes it safe: **who waits sets its flag, looks again, then sleeps**; who adds something adds it
//! first and then looks at the flag. Whichever order the two run in, one of them sees the other. No thread ever
//! blocks on a full queue: it is told so and remembers what it has to post.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering, fence};

use crossbeam::queue::ArrayQueue;
use culver_storage::planted::{self, Bug};
use culver_storage::topology::HubId;

use crate::hub::command::Command;
use crate::hub::effect::Effect;
use crate::hub::mail::HubMail;

/// How much the two queues between a reactor and a hub hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Commands on their way to the hub. Each may be owed a reply.
    pub commands: usize,
    /// Room among them that SENDs leave to ACK and Close.
    pub kept: usize,
    /// Replies that the hub may owe.
    pub replies: usize,
    /// Deliveries on their way to the reactor.
    pub deliveries: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { commands: 4096, kept: 512, replies: 8192, deliveries: 8192 }
    }
}

impl Bounds {
    /// Commands of up to 64 reactors together on their way to one hub: their queues are memory from the start.
    const COMMANDS_ALL: usize = 16_384;
    /// Fewest for one reactor.
    const COMMANDS_MIN: usize = 256;

    /// For the queues between a hub and each of so many reactors.
    #[must_use]
    pub fn of_one_among(reactors: usize) -> Self {
        let all = Self::default();
        let commands = (Self::COMMANDS_ALL / reactors.max(1)).clamp(Self::COMMANDS_MIN, all.commands);
        let share = |bound: usize| bound * commands / all.commands;
        Self { commands, kept: share(all.kept), replies: share(all.replies), deliveries: share(all.deliveries) }
    }
}

/// Mail on its way from one hub to another.
pub const HUB_MAIL_MAX: usize = 8192;

/// The flag of a waiting thread. A trait only so that loom can check the protocol with its own atomics.
pub trait WaitFlag {
    /// The waiter: from now on, wake me. What is looked at afterwards is newer than the flag.
    fn announce(&self);
    /// The waiter: no need any more.
    fn withdraw(&self);
    /// The other side, after adding something: whether somebody must be woken. Says so once per announcement.
    fn take(&self) -> bool;
}

impl WaitFlag for AtomicBool {
    fn announce(&self) {
        self.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    fn withdraw(&self) {
        self.store(false, Ordering::Relaxed);
    }

    fn take(&self) -> bool {
        fence(Ordering::SeqCst);
        self.load(Ordering::Relaxed) && self.swap(false, Ordering::Relaxed)
    }
}

/// Wakes one thread, and only if it sleeps or is about to.
pub struct Doorbell {
    waiting: AtomicBool,
    /// The owner sleeps until something that it waits for has happened; what else comes can wait as long.
    patient: AtomicBool,
    wake: Box<dyn Fn() + Send + Sync>,
}

impl Doorbell {
    /// A doorbell whose owner is woken by `wake`, which must also work before the owner sleeps.
    pub fn new(wake: impl Fn() + Send + Sync + 'static) -> Self {
        Self { waiting: AtomicBool::new(false), patient: AtomicBool::new(false), wake: Box::new(wake) }
    }

    /// The owner, before it looks a last time and sleeps: until anybody rings.
    pub fn announce(&self) {
        self.patient.store(false, Ordering::Relaxed);
        self.waiting.announce();
    }

    /// The owner, before it looks a last time and sleeps: until somebody rings who has something urgent, or for a time
    /// that all else can wait.
    pub fn announce_patient(&self) {
        self.patient.store(true, Ordering::Relaxed);
        self.waiting.announce();
    }

    /// The owner, when it is awake again.
    pub fn withdraw(&self) {
        self.waiting.withdraw();
    }

    /// Anybody, after adding something urgent for the owner. Returns whether the owner had to be woken.
    pub fn ring(&self) -> bool {
        let asleep = self.waiting.take();
        if asleep {
            (self.wake)();
        }
        asleep
    }

    /// Anybody, after adding something that can wait until a patient owner wakes by itself. Returns whether the owner
    /// had to be woken.
    pub fn ring_gently(&self) -> bool {
        fence(Ordering::SeqCst);
        !self.patient.load(Ordering::Relaxed) && self.ring()
    }
}

/// The two queues between one reactor and one hub. Each has one producer and one consumer.
pub struct Link {
    commands: ArrayQueue<Command>,
    effects: ArrayQueue<Effect>,
    /// Effects among them for which nobody is woken.
    patient_effects: AtomicUsize,
    bounds: Bounds,
    /// The reactor found `commands` full and waits for room.
    reactor_waits: AtomicBool,
    /// The hub gathers: what is posted a little later is decided no later. Only ever a hint.
    hub_gathers: AtomicBool,
}

impl Default for Link {
    fn default() -> Self {
        Self::new(Bounds::default())
    }
}

impl Link {
    /// Two empty queues.
    ///
    /// # Panics
    /// If the bounds contradict each other.
    #[must_use]
    pub fn new(bounds: Bounds) -> Self {
        let Bounds { commands, kept, replies, deliveries } = bounds;
        assert!(kept < commands && commands <= replies, "there is room for commands, and every one may be answered");
        Self {
            commands: ArrayQueue::new(commands),
            effects: ArrayQueue::new(replies + deliveries),
            patient_effects: AtomicUsize::new(0),
            bounds,
            reactor_waits: AtomicBool::new(false),
            hub_gathers: AtomicBool::new(false),
        }
    }

    /// How much the queues hold.
    #[must_use]
    pub fn bounds(&self) -> Bounds {
        self.bounds
    }

    /// Reactor: whether so many commands wait that the hub should not.
    pub fn is_pressing(&self) -> bool {
        self.commands.len() > self.bounds.commands / 4
    }

    /// Reactor: how many commands can be posted now. Only the reactor adds, so it can only become more.
    pub fn commands_room(&self) -> usize {
        self.bounds.commands - self.commands.len()
    }

    /// Reactor: posts a command for which there is room.
    ///
    /// # Panics
    /// If there is none: the caller looks first.
    pub fn post_command(&self, command: Command) {
        assert!(self.commands.push(command).is_ok(), "the reactor looks for room before it posts");
    }

    /// Reactor: there was not more room than `kept`; ring me when there is. Returns whether there is after all.
    pub fn wait_for_room(&self, kept: usize) -> bool {
        self.reactor_waits.announce();
        let room = self.commands_room() > kept;
        if room {
            self.reactor_waits.withdraw();
        }
        room
    }

    /// Reactor: whether the hub gathers, so that nothing is lost by reading sockets a little less often.
    pub fn hub_gathers(&self) -> bool {
        self.hub_gathers.load(Ordering::Relaxed)
    }

    /// Hub: whether it gathers from now on.
    pub fn set_gathering(&self, gathering: bool) {
        self.hub_gathers.store(gathering, Ordering::Relaxed);
    }

    /// Hub: the next command.
    pub fn take_command(&self) -> Option<Command> {
        self.commands.pop()
    }

    /// Hub, after taking commands: whether the reactor waited for the room and must be woken.
    pub fn reactor_waited(&self) -> bool {
        self.reactor_waits.take()
    }

    /// Hub: whether commands wait.
    pub fn has_commands(&self) -> bool {
        !self.commands.is_empty()
    }

    /// Commands that wait.
    pub fn commands_len(&self) -> usize {
        self.commands.len()
    }

    /// Effects that wait and for which the reactor is woken.
    pub fn pressing_effects_len(&self) -> usize {
        let patient = self.patient_effects.load(Ordering::Relaxed);
        let waits = self.effects.len();
        if patient >= self.patient_effects_max() { waits } else { waits.saturating_sub(patient) }
    }

    /// With so many effects that can wait the reactor is woken. One that waits for room is owed as many, or more.
    fn patient_effects_max(&self) -> usize {
        ((self.bounds.replies - self.bounds.kept) / 2).max(1)
    }

    /// Hub: posts a reply, for which the reactor reserved room when it posted the command. Whether it is to be woken:
    /// for what can wait only if there is much of it, for a reactor to which so much is owed may be waiting for room.
    ///
    /// # Panics
    /// If there is no room: then somebody counted wrong.
    pub fn post_reply(&self, effect: Effect) -> bool {
        if planted::is(Bug::ReplyDropped) && self.effects.len() >= self.bounds.deliveries {
            return false;
        }
        let can_wait = effect.kind.can_wait();
        let before = self.patient_effects.fetch_add(usize::from(can_wait), Ordering::Relaxed);
        assert!(self.effects.push(effect).is_ok(), "every reply has its place reserved");
        !can_wait || before + 1 >= self.patient_effects_max()
    }

    /// Hub: posts what nobody asked for, if there is room beside the reserved places; else gives it back.
    ///
    /// # Errors
    /// The effect, when there is no room for it.
    #[expect(clippy::result_large_err, reason = "the effect is given back to be dropped or kept")]
    pub fn post_delivery(&self, effect: Effect) -> Result<(), Effect> {
        // Replies take at most `replies` places, and only this thread adds.
        if self.effects.len() >= self.bounds.deliveries { Err(effect) } else { self.effects.push(effect) }
    }

    /// Hub: whether there is comfortable room for deliveries.
    pub fn has_room_for_deliveries(&self) -> bool {
        self.effects.len() < self.bounds.deliveries / 2
    }

    /// Reactor: the next effect.
    pub fn take_effect(&self) -> Option<Effect> {
        let effect = self.effects.pop()?;
        self.patient_effects.fetch_sub(usize::from(effect.kind.can_wait()), Ordering::Relaxed);
        Some(effect)
    }

    /// Reactor: whether effects wait.
    pub fn has_effects(&self) -> bool {
        !self.effects.is_empty()
    }
}

/// The two queues between two hubs. Each has one producer and one consumer. One link serves both hubs: which queue is
/// meant follows from who speaks to whom.
pub struct HubLink {
    to_greater: ArrayQueue<HubMail>,
    to_lesser: ArrayQueue<HubMail>,
}

impl Default for HubLink {
    fn default() -> Self {
        Self::new(HUB_MAIL_MAX)
    }
}

impl HubLink {
    /// Two empty queues, for so much mail each.
    #[must_use]
    pub fn new(mail: usize) -> Self {
        Self { to_greater: ArrayQueue::new(mail), to_lesser: ArrayQueue::new(mail) }
    }

    /// In the place of a hub's link to itself, where no mail ever goes.
    #[must_use]
    pub fn unused() -> Self {
        Self::new(1)
    }

    /// Posts mail from one of the two hubs to the other, if there is room.
    ///
    /// # Errors
    /// The mail, when there is none.
    pub fn post(&self, from: HubId, to: HubId, mail: HubMail) -> Result<(), HubMail> {
        self.queue(from, to).push(mail)
    }

    /// The next mail from one of the two hubs to the other.
    #[must_use]
    pub fn take(&self, from: HubId, to: HubId) -> Option<HubMail> {
        self.queue(from, to).pop()
    }

    /// Mail that waits, from one of the two hubs to the other.
    #[must_use]
    pub fn mail_len(&self, from: HubId, to: HubId) -> usize {
        self.queue(from, to).len()
    }

    /// Whether there is any.
    #[must_use]
    pub fn has_mail(&self, from: HubId, to: HubId) -> bool {
        !self.queue(from, to).is_empty()
    }

    fn queue(&self, from: HubId, to: HubId) -> &ArrayQueue<HubMail> {
        if from < to { &self.to_greater } else { &self.to_lesser }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use loom::sync::atomic::{AtomicBool as LoomBool, AtomicUsize as LoomUsize, fence as loom_fence};
    use loom::thread;

    use super::*;

    #[test]
    fn many_reactors_have_short_queues() {
        assert_eq!(Bounds::of_one_among(1), Bounds::default());
        assert_eq!(Bounds::of_one_among(4), Bounds::default());
        for reactors in 1..=256 {
            let bounds = Bounds::of_one_among(reactors);
            assert!(bounds.kept >= 32 && bounds.kept < bounds.commands / 4, "{bounds:?}");
            assert!(bounds.commands < bounds.replies && bounds.deliveries == bounds.replies, "{bounds:?}");
        }
        assert_eq!(Bounds::of_one_among(256).commands, Bounds::COMMANDS_MIN);
    }

    #[test]
    fn a_hub_remembers_what_all_reactors_can_make_wait() {
        let hub = crate::hub::bounds::Bounds::default();
        let awaited = culver_storage::shard::Bounds::default().awaited;
        for reactors in 1..=crate::config::REACTORS_MAX {
            let parked = reactors * Bounds::of_one_among(reactors).replies + hub.parked_sends + hub.parked_arrivals;
            assert!(
                parked <= awaited,
                "{reactors} reactors: {parked} may wait for reads, and {awaited} are remembered"
            );
        }
    }

    impl WaitFlag for LoomBool {
        fn announce(&self) {
            self.store(true, Ordering::Relaxed);
            loom_fence(Ordering::SeqCst);
        }
        fn withdraw(&self) {
            self.store(false, Ordering::Relaxed);
        }
        fn take(&self) -> bool {
            loom_fence(Ordering::SeqCst);
            self.load(Ordering::Relaxed) && self.swap(false, Ordering::Relaxed)
        }
    }

    /// Two producers add one thing each to a queue (its length stands for it); the consumer may sleep only if
    /// somebody will wake it for all that it has not seen.
    #[test]
    fn nobody_sleeps_through_a_message() {
        loom::model(|| {
            let queue = Arc::new(LoomUsize::new(0));
            let flag = Arc::new(LoomBool::new(false));
            let woken = Arc::new(LoomUsize::new(0));
            let producers: Vec<_> = (0..2)
                .map(|_| {
                    let (queue, flag, woken) = (queue.clone(), flag.clone(), woken.clone());
                    thread::spawn(move || {
                        queue.fetch_add(1, Ordering::Release);
                        if flag.take() {
                            woken.fetch_add(1, Ordering::Release);
                        }
                    })
                })
                .collect();
            flag.announce();
            let seen = queue.load(Ordering::Acquire);
            for producer in producers {
                producer.join().expect("producers do not panic");
            }
            let asleep = seen == 0;
            assert!(!asleep || woken.load(Ordering::Acquire) > 0, "asleep, and nobody rang");
        });
    }
}
