//! What the clients themselves do to make it hard: cut connections, devices that leave and come back, fetch logins
//! beside the lasting client.

use culver_protocol::client::{Client, ClientConfig, Event};
use culver_protocol::error::ErrorCode;
use rand::Rng;
use rand::rngs::SmallRng;

use super::driver::PairDriver;
use super::pair::{Given, Owner, Who};
use crate::links::{LinkIndex, Links};
use crate::verify::Note;

/// Fetch logins of one worker at a time.
const FETCHES_MAX: usize = 8;
/// How long a fetch login stays, at random within.
const FETCH_US: std::ops::Range<u64> = 20_000..400_000;

/// Something that happens so often a second, at random times.
#[derive(Clone, Copy, Debug)]
pub(super) struct Chance {
    per_s: f64,
    next_us: u64,
}

impl Chance {
    pub(super) fn new(per_s: f64) -> Self {
        Self { per_s, next_us: 0 }
    }

    /// From now on it may happen.
    pub(super) fn begin(&mut self, now_us: u64, rng: &mut SmallRng) {
        self.next_us = now_us;
        self.plan_next(rng);
    }

    /// Whether it happens now.
    fn is_due(&mut self, now_us: u64, rng: &mut SmallRng) -> bool {
        let is_due = self.per_s > 0.0 && now_us >= self.next_us;
        if is_due {
            self.next_us = now_us;
            self.plan_next(rng);
        }
        is_due
    }

    fn next_us(&self) -> Option<u64> {
        (self.per_s > 0.0).then_some(self.next_us)
    }

    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a wait, positive and short")]
    fn plan_next(&mut self, rng: &mut SmallRng) {
        if self.per_s > 0.0 {
            let wait_us = rng.random_range(0.0..2e6 / self.per_s);
            self.next_us += wait_us as u64;
        }
    }
}

/// What is made hard, and how far that has come.
pub(super) struct Turmoil {
    pub(super) drops: Chance,
    pub(super) leaves: Chance,
    pub(super) fetches: Chance,
    away_us: (u64, u64),
    /// Devices that have left, and when they come back.
    away: Vec<Away>,
    slots: Vec<Slot>,
    /// Clients begun so far: each gets its own jitter.
    clients: u64,
}

struct Away {
    who: Who,
    back_us: u64,
}

/// A place for fetch logins.
struct Slot {
    link: LinkIndex,
    fetch: Option<Fetch>,
}

#[derive(Clone, Copy)]
struct Fetch {
    who: Who,
    given: Given,
    end_us: u64,
}

impl Turmoil {
    /// Drops, leaves and fetch logins per second.
    pub(super) fn new(rates: [f64; 3], away_us: (u64, u64)) -> Self {
        let [drops, leaves, fetches] = rates.map(Chance::new);
        Self { drops, leaves, fetches, away_us, away: Vec::new(), slots: Vec::new(), clients: 0 }
    }

    fn next_us(&self) -> Option<u64> {
        let chances = [self.drops, self.leaves, self.fetches].into_iter().filter_map(|chance| chance.next_us());
        let backs = self.away.iter().map(|away| away.back_us);
        let ends = self.slots.iter().filter_map(|slot| slot.fetch).map(|fetch| fetch.end_us);
        chances.chain(backs).chain(ends).min()
    }
}

impl PairDriver {
    pub(super) fn begin_turmoil(&mut self, now_us: u64) {
        let rng = &mut self.settings.rng;
        let Turmoil { drops, leaves, fetches, .. } = &mut self.turmoil;
        for chance in [drops, leaves, fetches] {
            chance.begin(now_us, rng);
        }
    }

    /// Does what is due; returns when the next is.
    pub(super) fn disturb(&mut self, links: &mut Links, now_us: u64) -> Option<u64> {
        if self.turmoil.drops.is_due(now_us, &mut self.settings.rng) {
            let unlucky = self.settings.rng.random_range(0..links.len());
            links.cut(LinkIndex(unlucky), now_us);
        }
        if self.turmoil.leaves.is_due(now_us, &mut self.settings.rng) {
            self.send_one_away(links, now_us);
        }
        self.bring_back(links, now_us, now_us);
        if self.turmoil.fetches.is_due(now_us, &mut self.settings.rng) {
            self.begin_fetch(links, now_us);
        }
        self.end_fetches(links, now_us);
        self.turmoil.next_us()
    }

    /// Everybody comes back to stay.
    pub(super) fn calm_down(&mut self, links: &mut Links, now_us: u64) {
        self.bring_back(links, u64::MAX, now_us);
        self.end_fetches(links, now_us);
    }

    fn any_device(&mut self) -> Who {
        let user = self.settings.rng.random_range(0..self.users.len());
        let devices = u8::try_from(self.user(user).devices.len()).expect("a user has few");
        Who { user, device: self.settings.rng.random_range(0..devices), life: 0 }
    }

    fn send_one_away(&mut self, links: &mut Links, now_us: u64) {
        let who = self.any_device();
        let (min_us, max_us) = self.turmoil.away_us;
        let back_us = now_us + self.settings.rng.random_range(min_us..=max_us);
        if !std::mem::replace(&mut self.device(who).is_away, true) {
            self.counts.leaves += 1;
            links.leave(self.user(who.user).link(who.device), now_us);
            self.turmoil.away.push(Away { who, back_us });
        }
    }

    fn bring_back(&mut self, links: &mut Links, until_us: u64, now_us: u64) {
        while let Some(at) = self.turmoil.away.iter().position(|away| away.back_us <= until_us) {
            let Away { who, .. } = self.turmoil.away.swap_remove(at);
            self.device(who).is_away = false;
            // What the sending client has under way dies with it, so it stays the same.
            let can_restart = who.device != 0 || self.user(who.user).sends.is_none();
            if can_restart && self.settings.rng.random_bool(0.5) {
                self.restart(links, who, now_us);
            }
            links.come_back(self.user(who.user).link(who.device), now_us);
        }
    }

    /// The device's application begins anew, with what it has stored.
    fn restart(&mut self, links: &mut Links, who: Who, now_us: u64) {
        self.turmoil.clients += 1;
        let number = self.turmoil.clients;
        self.counts.restarts += 1;
        self.note_everywhere(who, |place| Note::Began { place });
        let link = self.user(who.user).link(who.device);
        let device = self.device(who);
        device.given = device.store.given;
        (device.is_behind, device.unsaved, device.call) = (false, None, None);
        links.replace(link, device.config_from_store(number), now_us);
    }

    /// Logs some device in beside itself.
    fn begin_fetch(&mut self, links: &mut Links, now_us: u64) {
        let device = self.any_device();
        let end_us = now_us + self.settings.rng.random_range(FETCH_US);
        let slots = &self.turmoil.slots;
        let free = slots.iter().position(|slot| slot.fetch.is_none());
        let Some(slot) = free.or_else(|| (slots.len() < FETCHES_MAX).then_some(slots.len())) else { return };
        self.turmoil.clients += 1;
        let number = self.turmoil.clients;
        self.counts.fetches += 1;
        let who = Who { life: u8::try_from(slot + 1).expect("slots are few"), ..device };
        self.note_everywhere(who, |place| Note::Began { place });
        let device = self.device(who);
        let config = ClientConfig { fetch: true, ..device.config_from_store(number) };
        let fetch = Some(Fetch { who, given: device.store.given, end_us });
        match self.turmoil.slots.get_mut(slot) {
            Some(slot) => {
                slot.fetch = fetch;
                links.replace(slot.link, config, now_us);
            }
            None => {
                let link = links.add(config, None, now_us);
                self.owners.push(Owner::Fetch { slot });
                self.turmoil.slots.push(Slot { link, fetch });
            }
        }
    }

    fn end_fetches(&mut self, links: &mut Links, now_us: u64) {
        for slot in &mut self.turmoil.slots {
            if slot.fetch.is_some_and(|fetch| fetch.end_us <= now_us) {
                slot.fetch = None;
                links.client(slot.link).close();
            }
        }
    }

    pub(super) fn handle_fetch_event(&mut self, slot: usize, client: &mut Client, event: Event, now_us: u64) {
        let fetch = self.turmoil.slots.get(slot).and_then(|slot| slot.fetch);
        let Some(Fetch { who, mut given, .. }) = fetch else { return };
        match event {
            Event::LoggedIn(_) => {
                let version = client.receipts();
                self.note_everywhere(who, |place| Note::LoggedIn { place, version });
            }
            Event::Delivered(entry) => {
                self.take_entry(who, &entry, &mut given, now_us);
                self.persist(who, client, given, now_us);
                let fetch = self.turmoil.slots.get_mut(slot).and_then(|slot| slot.fetch.as_mut());
                fetch.expect("looked at above").given = given;
            }
            Event::Receipt(receipt) => {
                self.take_receipt(who, &receipt, now_us);
                self.save_receipts(who, client, receipt.version);
            }
            Event::Gap(gap) => self.handle_gap(who, gap),
            // Three fetch logins of a device: the oldest gives way.
            Event::Stopped { code } if code == ErrorCode::Replaced.number() => {}
            Event::Stopped { code } | Event::CredentialNeeded { code } => self.shared.refuse(code),
            Event::Violation(violation) => self.violated(who, &violation.to_string()),
            Event::ServerError(error) => *self.errors.entry(error.code).or_default() += 1,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan;

    #[test]
    fn a_chance_comes_about_as_often_as_it_should() {
        let mut rng = plan::rng(7, "chance");
        let mut chance = Chance::new(10.0);
        chance.begin(0, &mut rng);
        let count = (0..100_000).filter(|ms| chance.is_due(ms * 1000, &mut rng)).count();
        assert!((900..1100).contains(&count), "{count} in 100 seconds");
        assert!(!Chance::new(0.0).is_due(u64::MAX, &mut rng));
        assert_eq!(Chance::new(0.0).next_us(), None);
    }
}
