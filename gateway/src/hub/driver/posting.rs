//! What goes out of a hub at the end of its turn: effects to reactors, mail to other hubs. Never waits for room.

use culver_storage::record::Item;

use super::super::effect::EffectKind;
use super::super::mail::HubMail;
use super::{Driver, hub_ids};
use crate::crash_point::{self, CrashPoint};
use crate::metrics::Counters;

impl Driver {
    /// What is to be said to other hubs. A full queue blocks nobody: the hub keeps what must arrive for its next turn,
    /// and the other hub has been rung for what is in the queue.
    pub(super) fn post_mail(&mut self) -> bool {
        let own = self.hub.id();
        let mut touched: u64 = 0;
        let mut full: u64 = 0;
        for (to, mail) in self.hub.take_mail() {
            let port = self.hubs.get(to.index()).expect("the topology names hubs");
            let bit = 1 << to.0;
            let point = crash_point_of(&mail);
            // What comes behind something that found no room must not overtake it.
            let posted = if full & bit == 0 { port.link.post(own, to, mail) } else { Err(mail) };
            match posted {
                Ok(()) => {
                    touched |= bit;
                    point.into_iter().for_each(crash_point::reached);
                }
                Err(mail) => {
                    full |= bit;
                    self.hub.refused_mail(to, mail);
                }
            }
        }
        for (_, port) in hub_ids().zip(&self.hubs).filter(|(to, _)| touched & (1 << to.0) != 0) {
            (port.bell)();
        }
        touched != 0
    }

    /// What reactors are to be told. A full queue blocks nobody: deliveries are read from the log when there is room.
    pub(super) fn post_effects(&mut self, counters: &Counters) -> bool {
        let released = self.hub.take_released();
        if released.is_empty() && self.notices.is_empty() && !self.hub.is_hungry() {
            return false;
        }
        let mut touched = vec![false; self.reactors.len()];
        let earlier = std::mem::take(&mut self.notices);
        for effect in earlier.into_iter().chain(released) {
            let reactor = usize::from(effect.session.reactor);
            let port = self.reactors.get(reactor).expect("addresses name reactors");
            let mut touch = || touched.get_mut(reactor).into_iter().for_each(|touched| *touched = true);
            if effect.kind.is_reply() {
                if port.link.post_reply(effect) {
                    touch();
                }
                continue;
            }
            if self.hub.is_void(&effect) {
                continue;
            }
            let begins = match effect.kind {
                EffectKind::SyncStart { online, .. } => Some((online, effect.session)),
                _ => None,
            };
            let is_receipt = matches!(effect.kind, EffectKind::Receipt { .. });
            // Notices keep their order: none overtakes one that waits.
            let waits = effect.kind.is_notice() && !self.notices.is_empty();
            match if waits { Err(effect) } else { port.link.post_delivery(effect) } {
                Ok(()) => {
                    touch();
                    if is_receipt {
                        crash_point::reached(CrashPoint::ReceiptHanded);
                    }
                    begins.into_iter().for_each(|(online, session)| self.hub.handle_posted_sync(online, session));
                }
                Err(notice) if notice.kind.is_notice() => self.notices.push(notice),
                Err(refused) => self.hub.handle_refused(refused),
            }
        }
        let mut busy = false;
        for (port, touched) in self.reactors.iter().zip(touched) {
            if touched {
                busy = true;
                counters.wakeups.add(u64::from(port.bell.ring()));
            }
        }
        busy | self.feed_hungry()
    }

    /// Who found no room at a reactor reads from the log when there is some: a slow one holds nobody else's up. Whether
    /// there may be reads to be made.
    fn feed_hungry(&mut self) -> bool {
        let mut fed = false;
        for (reactor, port) in (0..).zip(&self.reactors) {
            if self.hub.is_hungry() && port.link.has_room_for_deliveries() {
                fed |= self.hub.feed_hungry(reactor);
            }
        }
        fed
    }
}

/// Where the process can be made to die once this is handed over.
fn crash_point_of(mail: &HubMail) -> Option<CrashPoint> {
    match mail {
        HubMail::Push { outgoing } => Some(match outgoing.item {
            Item::Entry { .. } => CrashPoint::OutboxHanded,
            Item::Receipt { .. } => CrashPoint::ReceiptHanded,
        }),
        HubMail::Taken { .. } | HubMail::Behind { .. } | HubMail::Full { .. } => None,
    }
}
