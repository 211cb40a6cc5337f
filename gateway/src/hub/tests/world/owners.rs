//! Keys of devices: who shows which, who is refused, and what removal does to those who are there.

use culver_protocol::error::ErrorCode;
use culver_protocol::id::{DeviceId, InboxSeq, UserId};
use culver_storage::engine::Engine;
use rand::Rng;

use super::clients::{Client, Life};
use super::{Kept, SHARDS, World};
use crate::hub::command::{Device, Fingerprint, Proof, Request};

/// A user who is not there.
const NOBODY: UserId = UserId(99);
/// The installation of who is none.
const FOREIGN: u64 = u64::MAX;

/// What a client shows.
#[derive(Clone, Copy, Debug)]
pub(super) struct Credential {
    pub(super) fingerprint: Option<Fingerprint>,
    pub(super) proof: Proof,
    /// Which of the device's installations it is.
    pub(super) install: u64,
}

impl Credential {
    /// No key, and a token that is newer than every removal.
    pub(super) const NONE: Self =
        Self { fingerprint: None, proof: Proof::PlaintextToken { issued_s: u64::MAX }, install: 0 };

    pub(super) fn registers(&self) -> bool {
        matches!(self.proof, Proof::Token { .. })
    }

    fn of(install: u64, proof: Proof) -> Self {
        Self { fingerprint: Some(key_of(install)), proof, install }
    }
}

fn key_of(install: u64) -> Fingerprint {
    u128::from(install).to_be_bytes()
}

impl World {
    /// What a device shows that wants to come in.
    pub(super) fn credential(&mut self, device: Device) -> Credential {
        if !self.has_keys {
            return Credential::NONE;
        }
        let issued_s = self.now_ms / 1000;
        let forgetful = self.random.random_bool(0.05);
        let install = self.install(device);
        let is_registered = self.kept[&device].is_registered && !forgetful;
        Credential::of(install, if is_registered { Proof::Registered } else { Proof::Token { issued_s } })
    }

    fn install(&mut self, device: Device) -> u64 {
        let kept = self.kept.entry(device).or_default();
        if kept.install == 0 {
            self.installs += 1;
            kept.install = self.installs;
        }
        kept.install
    }

    /// Whether what a client persists is the device's.
    pub(super) fn is_kept(&self, client: &Client) -> bool {
        self.kept.get(&client.device).is_some_and(|kept| kept.install == client.credential.install)
    }

    /// Somebody changes what devices there are, or tries what is not allowed.
    pub(super) fn manage(&mut self) {
        let (device, now_s) = (self.random_device(), self.now_ms / 1000);
        let entries = self.random.random_range(1..6);
        let fetch = self.random.random_bool(0.3);
        let install = self.install(device);
        match self.random.random_range(0..10) {
            0..2 => self.ask_of_device(|device, _| Request::RemoveDevice { device }),
            2..4 => self.ask_of_device(|device, len| Request::NameDevice { device, name: "n".repeat(len) }),
            4..7 => {
                let user = if self.random.random_bool(0.3) { NOBODY } else { device.user };
                self.installs += 1;
                let key = Some(key_of(self.installs)).filter(|_| self.random.random_bool(0.9));
                let issued_s = now_s - self.random.random_range(0..3);
                let proof = if self.random.random_bool(0.5) { Proof::Registered } else { Proof::Ticket { issued_s } };
                let wrong = Credential { fingerprint: key, proof, install: FOREIGN };
                self.connect_whole(Device { user, ..device }, entries, fetch, (InboxSeq(0), 0), wrong);
            }
            7 => {
                // It ends nothing that another installation has begun, and would share the cursor with that.
                let is_up = |c: &Client| matches!(c.life, Life::LoggingIn | Life::Steady);
                let is_other = |c: &Client| c.device == device && c.credential.install != install && is_up(c);
                if !self.clients.iter().any(is_other) {
                    let issued_s = now_s - self.random.random_range(0..3);
                    let is_by_token = self.random.random_bool(0.5);
                    let proof = if is_by_token {
                        Proof::PlaintextToken { issued_s }
                    } else {
                        Proof::PlaintextTicket { issued_s }
                    };
                    self.connect_as(device, entries, fetch, Credential { install, proof, ..Credential::NONE });
                }
            }
            8 => {
                let issued_s = now_s - self.random.random_range(0..3);
                self.connect_as(device, entries, fetch, Credential::of(install, Proof::Token { issued_s }));
            }
            _ => {
                // The same device, on another phone: the old one knows nothing of it. A first key ends nothing that was
                // begun without one, and would share the cursor with that.
                let is_plain = |c: &&Client| c.device == device && c.credential.fingerprint.is_none();
                let is_up = |c: &&Client| matches!(c.life, Life::LoggingIn | Life::Steady);
                let plain: Vec<u32> =
                    self.clients.iter().filter(is_plain).filter(is_up).map(|client| client.address.slot).collect();
                plain.into_iter().for_each(|slot| self.close(slot));
                self.install_anew(device);
                let (install, issued_s) = (self.install(device), now_s - self.random.random_range(0..2));
                self.connect_as(device, entries, fetch, Credential::of(install, Proof::Token { issued_s }));
            }
        }
    }

    /// Some client asks something of a device of its user, which may not be there, or be the client's own.
    fn ask_of_device(&mut self, request: impl FnOnce(DeviceId, usize) -> Request) {
        let number = DeviceId(self.random.random_range(1..=self.devices + 1));
        let len = [0, 5, 64, 65][self.random.random_range(0..4)];
        if let Some(slot) = self.pick(|client| client.life == Life::Steady) {
            self.request(slot, request(number, len));
        }
    }

    /// A removal is asked for: what hangs on when it is decided is not known until it is told.
    pub(super) fn note_removal(&mut self, device: Device) {
        self.kept.entry(device).or_default().may_gap = true;
        for message in self.messages.iter_mut().filter(|message| message.send.sender == device.user) {
            message.wants_copy = false;
        }
    }

    /// A device's store is empty, and it has another key.
    fn install_anew(&mut self, device: Device) {
        self.installs += 1;
        let kept = self.kept.get_mut(&device).expect("it is there");
        *kept = Kept { install: self.installs, may_gap: kept.may_gap, ..Kept::default() };
        self.doubt(device.user);
    }

    /// What devices of a user have acknowledged may have come too late.
    fn doubt(&mut self, user: UserId) {
        self.unsure.extend(self.delivered.keys().filter(|(of, _)| *of == user));
    }

    /// Sessions of a device that were let in get nothing more.
    fn cut_off(&mut self, device: Device, but: Option<u32>) {
        let is_of = |client: &&mut Client| client.device == device && client.is_in && Some(client.address.slot) != but;
        self.clients.iter_mut().filter(is_of).for_each(|client| client.is_cut_off = true);
        self.doubt(device.user);
    }

    /// A client is let in, where its device starts at `cursor`.
    pub(super) fn let_in(&mut self, slot: u32, cursor: InboxSeq) {
        let let_in = self.registry.login_told(slot, Ok(()));
        let (device, credential) = (self.clients[slot as usize].device, self.clients[slot as usize].credential);
        if let_in.replaced {
            self.cut_off(device, Some(slot));
        }
        self.clients[slot as usize].is_in = true;
        let kept = self.kept.get_mut(&device).expect("whoever is let in has a store");
        kept.is_relinked |= let_in.linked;
        if kept.install == credential.install {
            let linked_at = kept.linked_at.get_or_insert(cursor);
            if std::mem::take(&mut kept.is_relinked) {
                // What it has it need not get again, if it starts before that.
                *linked_at = cursor.max(*linked_at);
            }
            kept.is_registered |= credential.registers();
        }
    }

    pub(super) fn refused(&mut self, slot: u32, code: ErrorCode) {
        assert!(self.has_keys, "nobody is refused: {code:?}");
        self.registry.login_told(slot, Err(code));
        self.clients[slot as usize].is_cut_off = true;
        self.leave(slot, code == ErrorCode::DeviceUnknown);
    }

    pub(super) fn removed(&mut self, slot: u32) {
        let client = &mut self.clients[slot as usize];
        assert!(!std::mem::replace(&mut client.removed, true), "told once");
        assert!(client.is_cut_off || self.registry.is_blind, "after who asked for it was answered");
        self.leave(slot, true);
    }

    /// A client ends; if it is unknown, what it has of its device is of no use, or what it keeps comes with a new login.
    fn leave(&mut self, slot: u32, is_unknown: bool) {
        let client = &self.clients[slot as usize];
        let (device, life, is_kept) = (client.device, client.life, self.is_kept(client));
        if matches!(life, Life::LoggingIn | Life::Steady) {
            self.close(slot);
        }
        if !is_kept || !is_unknown {
            return;
        }
        self.kept.get_mut(&device).expect("it is there").is_registered = false;
        if self.random.random_bool(0.5) {
            let is_up = |c: &&Client| c.device == device && matches!(c.life, Life::LoggingIn | Life::Steady);
            let up: Vec<u32> = self.clients.iter().filter(is_up).map(|client| client.address.slot).collect();
            up.into_iter().for_each(|slot| self.close(slot));
            self.install_anew(device);
        }
    }

    /// A removal or a naming was answered.
    pub(super) fn request_told(&mut self, id: u64, result: Result<(), ErrorCode>) {
        if let Some(device) = self.registry.request_told(id, result, self.now_ms) {
            self.cut_off(device, None);
        }
    }

    /// The hubs are about to begin anew.
    pub(super) fn begin_anew(&mut self) {
        let engine: &dyn Engine = &*self.engine;
        for device in self.registry.begin_anew(engine, SHARDS, self.now_ms) {
            self.kept.entry(device).or_default().is_relinked = true;
            self.doubt(device.user);
        }
    }

    /// Everybody comes in, by a new token if need be, and hears everything.
    pub(super) fn log_in_all(&mut self, devices: &[Device]) {
        for _ in 0..6 {
            // Tokens of this second were issued after every removal.
            self.pass(1000);
            self.drain();
            let absent: Vec<Device> = devices.iter().copied().filter(|device| self.live(*device).is_none()).collect();
            if absent.is_empty() {
                return;
            }
            for device in absent {
                self.log_in(device);
            }
        }
        panic!("somebody is not let in");
    }
}
