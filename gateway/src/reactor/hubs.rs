//! The hubs as a reactor sees them: a link and a bell each, what is owed by each, and which connections wait for room
//! at which. Never looks at a connection.

use std::collections::VecDeque;
use std::sync::Arc;

use culver_storage::topology::HubId;

use crate::hub::command::Command;
use crate::hub::driver::Inbox;
use crate::hub::effect::Effect;
use crate::mailbox::{Bounds, Link};

/// One hub: the queues between the two, and what wakes it.
#[derive(Clone)]
pub struct ToHub {
    /// The queues.
    pub link: Arc<Link>,
    /// Wakes the hub, if it sleeps; whether it did.
    pub ring: Arc<dyn Fn() -> bool + Send + Sync>,
}

impl ToHub {
    /// A new link to a hub, with a bell that knows how much hurry there is.
    #[must_use]
    pub fn new(inbox: &Arc<Inbox>, bounds: Bounds) -> Self {
        let (inbox, link) = (Arc::clone(inbox), Arc::new(Link::new(bounds)));
        let to_hub = Arc::clone(&link);
        // A hub that waits for the disk has the next batch to build, not an answer to give: it need not hurry.
        let ring = move || {
            if to_hub.is_pressing() { inbox.bell.ring() } else { inbox.bell.ring_gently() }
        };
        Self { link, ring: Arc::new(ring) }
    }
}

/// All hubs, by number.
pub(super) struct Hubs(Vec<Hub>);

struct Hub {
    to: ToHub,
    replies_owed: usize,
    /// Commands were posted in this turn: it is to be woken.
    posted: bool,
    /// Connections whose ACK, Resume or Close waits to be posted here.
    waiting: VecDeque<u32>,
}

impl Hub {
    fn has_reply_room(&self) -> bool {
        let Bounds { kept, replies, .. } = self.to.link.bounds();
        self.replies_owed + kept < replies
    }
}

impl Hubs {
    pub(super) fn new(hubs: Vec<ToHub>) -> Self {
        let hub = |to: ToHub| {
            assert!(to.link.bounds().kept > 0, "a request may bring an acknowledgement beside it");
            Hub { to, replies_owed: 0, posted: false, waiting: VecDeque::new() }
        };
        Self(hubs.into_iter().map(hub).collect())
    }

    pub(super) fn ids(&self) -> impl Iterator<Item = HubId> + use<> {
        (0..u16::try_from(self.0.len()).expect("there are a few hubs")).map(HubId)
    }

    /// Commands of clients that may be posted now, whichever hubs they go to.
    pub(super) fn room(&self) -> usize {
        let room = |hub: &Hub| {
            let Bounds { kept, replies, .. } = hub.to.link.bounds();
            hub.to.link.commands_room().min(replies - hub.replies_owed).saturating_sub(kept)
        };
        self.0.iter().map(room).min().unwrap_or(0)
    }

    /// Whether a hub takes one more command that is never refused.
    pub(super) fn has_room_for_close(&self, hub: HubId) -> bool {
        let hub = self.hub(hub);
        hub.to.link.commands_room() > 0 && hub.replies_owed < hub.to.link.bounds().replies
    }

    /// Posts a command for which there is room.
    pub(super) fn post(&mut self, hub: HubId, command: Command) {
        let hub = self.hub_mut(hub);
        hub.replies_owed += usize::from(is_answered(&command));
        hub.to.link.post_command(command);
        hub.posted = true;
    }

    /// A hub's next effect.
    pub(super) fn take_effect(&mut self, hub: HubId) -> Option<Effect> {
        let hub = self.hub_mut(hub);
        let effect = hub.to.link.take_effect()?;
        hub.replies_owed -= usize::from(effect.kind.is_reply());
        Some(effect)
    }

    pub(super) fn have_effects(&self) -> bool {
        self.0.iter().any(|hub| hub.to.link.has_effects())
    }

    /// Replies that are owed.
    pub(super) fn owed(&self) -> usize {
        self.0.iter().map(|hub| hub.replies_owed).sum()
    }

    /// Whether a connection waits for room.
    pub(super) fn have_waiting(&self) -> bool {
        self.0.iter().any(|hub| !hub.waiting.is_empty())
    }

    /// Whether any gathers, so that nothing is lost by reading sockets a little less often.
    pub(super) fn gather(&self) -> bool {
        self.0.iter().any(|hub| hub.to.link.hub_gathers())
    }

    /// A connection's command waits for room at this hub.
    pub(super) fn wait_at(&mut self, hub: HubId, slot: u32) {
        self.hub_mut(hub).waiting.push_back(slot);
    }

    /// The next connection that waits for room at this hub.
    pub(super) fn next_waiting(&mut self, hub: HubId) -> Option<u32> {
        self.hub_mut(hub).waiting.pop_front()
    }

    /// It has to wait on.
    pub(super) fn wait_first(&mut self, hub: HubId, slot: u32) {
        self.hub_mut(hub).waiting.push_front(slot);
    }

    /// Whether clients' commands find room everywhere after all. If not, whoever has none rings when there is: a hub
    /// that owes too much rings with what it owes, answers that could wait among it.
    pub(super) fn wait_for_room(&self) -> bool {
        self.0.iter().all(|hub| hub.has_reply_room() && hub.to.link.wait_for_room(hub.to.link.bounds().kept))
    }

    /// Whether one of the connections that wait finds room after all. If not, their hubs ring when there is.
    pub(super) fn wait_for_posting(&self) -> bool {
        let mut waited_for = self.0.iter().filter(|hub| !hub.waiting.is_empty());
        waited_for.any(|hub| hub.has_reply_room() && hub.to.link.wait_for_room(0))
    }

    /// Wakes the hubs to which something was posted: whether there were any, and how many slept.
    pub(super) fn ring(&mut self) -> (bool, u64) {
        let (mut posted, mut woken) = (false, 0);
        for hub in &mut self.0 {
            if std::mem::take(&mut hub.posted) {
                posted = true;
                woken += u64::from((hub.to.ring)());
            }
        }
        (posted, woken)
    }

    fn hub(&self, hub: HubId) -> &Hub {
        self.0.get(hub.index()).expect("the topology names hubs that there are")
    }

    fn hub_mut(&mut self, hub: HubId) -> &mut Hub {
        self.0.get_mut(hub.index()).expect("the topology names hubs that there are")
    }
}

/// Whether exactly one reply comes back.
fn is_answered(command: &Command) -> bool {
    match command {
        Command::Login { .. } | Command::Send { .. } | Command::Rpc { .. } | Command::Close { .. } => true,
        Command::Ack { .. } | Command::Resume { .. } => false,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use culver_protocol::id::{DeviceId, InboxSeq, UserId};

    use super::*;
    use crate::hub::command::{Address, Device};
    use crate::hub::effect::EffectKind;

    const BOUNDS: Bounds = Bounds { commands: 64, kept: 8, replies: 128, deliveries: 128 };
    const SESSION: Address = Address { reactor: 0, slot: 0, generation: 0, epoch: 0 };
    const DEVICE: Device = Device { user: UserId(1), device: DeviceId(1) };

    fn resume() -> Command {
        Command::Resume { session: SESSION, device: DEVICE, sent: InboxSeq(0) }
    }

    fn close() -> Command {
        Command::Close { session: SESSION, device: DEVICE }
    }

    fn three() -> (Hubs, Vec<Arc<Link>>, Arc<AtomicUsize>) {
        let links: Vec<Arc<Link>> = (0..3).map(|_| Arc::new(Link::new(BOUNDS))).collect();
        let rung = Arc::new(AtomicUsize::new(0));
        let to = |link: &Arc<Link>| {
            let rung = Arc::clone(&rung);
            ToHub { link: Arc::clone(link), ring: Arc::new(move || rung.fetch_add(1, Ordering::Relaxed) > 0) }
        };
        (Hubs::new(links.iter().map(to).collect()), links, rung)
    }

    #[test]
    fn the_fullest_hub_bounds_the_room_and_is_the_one_waited_for() {
        let (mut hubs, links, _) = three();
        assert_eq!(hubs.room(), BOUNDS.commands - BOUNDS.kept);
        for _ in 0..BOUNDS.commands - BOUNDS.kept {
            hubs.post(HubId(1), resume());
        }
        assert_eq!(hubs.room(), 0);
        assert!(!hubs.wait_for_room());
        assert!(!links[0].reactor_waited() && !links[2].reactor_waited());
        assert!(links[1].take_command().is_some() && links[1].reactor_waited());
        assert!(hubs.wait_for_room());
        assert_eq!(hubs.room(), 1);
    }

    #[test]
    fn who_waits_for_a_full_hub_holds_nobody_up_elsewhere() {
        let (mut hubs, links, _) = three();
        for _ in 0..BOUNDS.commands {
            hubs.post(HubId(2), resume());
        }
        hubs.wait_at(HubId(2), 7);
        assert!(!hubs.has_room_for_close(HubId(2)) && hubs.has_room_for_close(HubId(0)));
        assert!(!hubs.wait_for_posting());
        assert!(links[2].take_command().is_some() && links[2].reactor_waited());
        assert!(hubs.wait_for_posting());
        hubs.wait_at(HubId(0), 8);
        assert_eq!((hubs.next_waiting(HubId(0)), hubs.next_waiting(HubId(0))), (Some(8), None));
    }

    #[test]
    fn replies_are_owed_by_the_hub_that_was_asked() {
        let (mut hubs, links, rung) = three();
        hubs.post(HubId(1), close());
        hubs.post(HubId(1), resume());
        assert_eq!(hubs.owed(), 1);
        assert_eq!(hubs.ring(), (true, 0), "one bell");
        assert_eq!((hubs.ring(), rung.load(Ordering::Relaxed)), ((false, 0), 1), "once");
        links[1].post_reply(Effect { session: SESSION, kind: EffectKind::Closed });
        assert!(hubs.have_effects() && hubs.take_effect(HubId(0)).is_none());
        assert!(hubs.take_effect(HubId(1)).is_some());
        assert_eq!(hubs.owed(), 0);
    }

    #[test]
    fn one_hub_that_gathers_is_enough() {
        let (hubs, links, _) = three();
        assert!(!hubs.gather());
        links[2].set_gathering(true);
        assert!(hubs.gather());
    }
}
