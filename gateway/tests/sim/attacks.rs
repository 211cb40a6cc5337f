//! What somebody on the way does to connections that are encrypted: changes what they carry, plays again what was
//! carried once, or logs in as somebody else, or with what was good once.
//!
//! Owns attackers and what they have kept. They know no key: what they may do at worst is end a connection.

mod impostor;

use culver_protocol::client::Credential;
use culver_protocol::crypto::KeyPair;
use culver_protocol::id::UserId;

use self::impostor::Impostor;
use crate::device::{DeviceKey, Former, Secrecy};
use crate::net::{Buffers, Change, ClientEnd, Recording, Tamper, Wire};
use crate::plan::Fault;
use crate::server::server_key;
use crate::world::World;

/// Connections of which is kept what was sent.
const RECORDED_MAX: usize = 24;
/// Removed devices of which is kept what they had.
const FORMER_MAX: usize = 8;
/// Attackers at once.
const ATTACKERS_MAX: usize = 4;
/// Preamble and length, before a first message.
const OPENING_LEN: usize = 10;
const HOUR_US: u64 = 3_600_000_000;

/// What a device has sent on one connection.
#[derive(Debug)]
pub(crate) struct Recorded {
    key: DeviceKey,
    bytes: Recording,
}

/// Somebody with a connection of their own.
#[derive(Debug)]
pub(crate) struct Attacker {
    wire: Wire,
    mind: Mind,
    /// When they have had enough.
    pub until_us: u64,
}

/// What an impostor has of the device's.
#[derive(Clone, Copy, Debug)]
enum Has {
    Nothing,
    Token,
    /// Without its secret.
    Ticket,
}

/// What they do there.
#[derive(Debug)]
enum Mind {
    /// They send what is left of this, and understand nothing.
    Replay(Vec<u8>),
    Impostor(Box<Impostor>),
}

impl Attacker {
    pub(crate) fn can_move(&self, now_us: u64) -> bool {
        let may_write = match &self.mind {
            Mind::Replay(bytes) => !bytes.is_empty(),
            Mind::Impostor(impostor) => impostor.may_write(),
        };
        (may_write && self.wire.client_room() > 0)
            || self.wire.client_readable() > 0
            || self.wire.client_end() != ClientEnd::Open
            || self.until_us <= now_us
    }

    /// Writes and reads. Whether that was all.
    fn act(&mut self, now_us: u64) -> bool {
        let wire = &self.wire;
        let is_done = match &mut self.mind {
            Mind::Replay(bytes) => {
                let taken = wire.client_write(&bytes[..bytes.len().min(wire.client_room())]);
                bytes.drain(..taken);
                wire.client_read(usize::MAX, |_| ());
                false
            }
            Mind::Impostor(impostor) => {
                impostor.write(|bytes| wire.client_write(&bytes[..bytes.len().min(wire.client_room())]));
                wire.client_read(usize::MAX, |bytes| impostor.read(bytes, now_us));
                impostor.is_done()
            }
        };
        is_done || wire.client_end() != ClientEnd::Open || self.until_us <= now_us
    }
}

impl World {
    /// Whether the server has no other connection of this party's device, of its kind.
    pub(crate) fn is_alone(&self, at: usize) -> bool {
        let device = &self.parties[at].device;
        let owner = Some((device.key(), device.is_fetch()));
        !self.wires.iter().any(|wire| wire.owner() == owner && !wire.is_server_closed())
    }

    /// A connection of a party's is there. Somebody listens, and may do more.
    pub(crate) fn listen_in(&mut self, at: usize, wire: &Wire) {
        let key = self.parties[at].device.key();
        wire.belong_to(key, self.parties[at].device.is_fetch());
        let Some(how) = self.plan.encryption.filter(|_| !self.is_calm) else { return };
        let (tampers, replays) = (self.does(Fault::Tamper), self.does(Fault::Replay));
        let tamper = match self.tamper_next.take() {
            None if tampers && self.source.chance(how.tampered) => Some(self.any_tamper()),
            planned => planned,
        };
        if let Some(tamper) = tamper {
            wire.tamper(tamper);
            self.trace.event(|| format!("  {tamper:?}"));
        }
        if replays {
            if self.source.chance(how.replayed) {
                self.replay();
            }
            if self.recorded.len() == RECORDED_MAX {
                self.recorded.remove(0);
            }
            self.recorded.push(Recorded { key, bytes: wire.record() });
        }
    }

    fn does(&self, fault: Fault) -> bool {
        self.plan.kinds.contains(&fault)
    }

    fn any_tamper(&mut self) -> Tamper {
        let most = self.source.pick(&[8, 60, 400, 3000]);
        Tamper {
            change: self.source.pick(&Change::ALL),
            is_to_server: self.source.below(2) == 0,
            after: self.source.index(most),
            len: self.source.number(1, 40),
            bit: self.source.below(8),
        }
    }

    /// Somebody will change something, on a connection there is or on the next.
    pub(crate) fn tamper(&mut self) {
        let tamper = self.any_tamper();
        let open: Vec<usize> = (0..self.parties.len()).filter(|at| self.parties[*at].wire.is_some()).collect();
        let is_next = open.is_empty() || self.source.below(2) == 0;
        if is_next {
            self.tamper_next = Some(tamper);
            self.trace.event(|| format!("  {tamper:?} of the next connection"));
            return;
        }
        let at = open[self.source.index(open.len())];
        self.parties[at].wire.as_ref().expect("just looked").tamper(tamper);
        self.trace.event(|| format!("  {tamper:?} of the connection of {}", self.parties[at].device.name()));
    }

    /// Somebody plays again what a device has sent, or something like it.
    pub(crate) fn replay(&mut self) {
        if self.recorded.is_empty() || self.attackers.len() >= ATTACKERS_MAX {
            return;
        }
        let (bytes, how) = self.forge();
        self.trace.event(|| format!("  {how}, {} bytes", bytes.len()));
        self.attack(Mind::Replay(bytes));
    }

    /// Somebody logs in as one of the devices.
    pub(crate) fn send_impostor(&mut self) {
        if self.plan.encryption.is_none() || self.attackers.len() >= ATTACKERS_MAX {
            return;
        }
        let at = self.source.index(self.parties.len());
        let (key, secrecy) = (self.parties[at].device.key(), self.parties[at].device.secrecy());
        let Some(secrecy) = secrecy else { return };
        let has = self.source.pick(&[Has::Nothing, Has::Token, Has::Ticket]);
        let credential = match has {
            Has::Nothing => Credential::DeviceKey,
            Has::Token => Credential::Token(self.token(key, Some(&secrecy))),
            Has::Ticket => Credential::Ticket(self.stolen_ticket(key, &secrecy)),
        };
        let stranger = Secrecy { own: KeyPair::new(&[9; 32]).into(), ..secrecy };
        self.impersonate(key, has, credential, &stranger);
    }

    /// Somebody has found what a device had that was removed.
    pub(crate) fn find_former(&mut self, former: Former) {
        if self.does(Fault::Former) && !self.is_calm {
            if self.former.len() == FORMER_MAX {
                self.former.remove(0);
            }
            self.former.push(former);
        }
    }

    /// Somebody logs in with what a device had before it was removed, its key among it.
    pub(crate) fn send_former(&mut self) {
        if self.former.is_empty() || self.attackers.len() >= ATTACKERS_MAX {
            return;
        }
        let Former { key, secrecy, ticket, token } = self.former[self.source.index(self.former.len())].clone();
        let has = self.source.pick(&[Has::Nothing, Has::Token, Has::Ticket]);
        let (has, credential) = match (has, token) {
            (Has::Token, Some(token)) => (has, Credential::Token(token)),
            (Has::Ticket, _) if !ticket.bytes.is_empty() => (has, Credential::Ticket(ticket)),
            _ => (Has::Nothing, Credential::DeviceKey),
        };
        self.trace.event(|| "  with a key that was good once".to_owned());
        self.impersonate(key, has, credential, &secrecy);
    }

    /// Somebody logs in as a device, who should get nothing.
    fn impersonate(&mut self, key: DeviceKey, has: Has, credential: Credential, secrecy: &Secrecy) {
        let server = (self.source.below(2) == 0).then(|| server_key(self.generation));
        let fetch = self.source.chance(300);
        self.connected += 1;
        let peer = UserId(self.source.range(1, self.plan.users));
        let (victim, number) = ((key, fetch, peer), self.connected);
        let impostor = Impostor::new(victim, credential, (secrecy, server), number, self.now_us());
        self.trace.event(|| format!("  as device {} of user {}, with {has:?}", key.device, key.user));
        self.attack(Mind::Impostor(Box::new(impostor)));
    }

    fn attack(&mut self, mind: Mind) {
        let source = self.any_source();
        let Some(listener) = self.any_listener() else { return };
        let size = (65_536, 65_536);
        let (wire, socket) = Wire::new(Buffers { to_server: size, to_client: size });
        if !listener.connect(wire.clone(), (socket, source), self.now_us()) {
            return;
        }
        self.wires.push(wire.clone());
        let until_us = self.now_us() + 1 + u64::from(self.source.below(30_000_000));
        self.attackers.push(Attacker { wire, mind, until_us });
    }

    /// What an attacker makes of what was kept.
    fn forge(&mut self) -> (Vec<u8>, String) {
        let at = self.source.index(self.recorded.len());
        let Recorded { key, bytes } = &self.recorded[at];
        let (key, bytes) = (*key, bytes.borrow().clone());
        let opening = opening_len(&bytes).unwrap_or(bytes.len());
        let name = format!("of device {} of user {}", key.device, key.user);
        match self.source.below(4) {
            0 => (bytes, format!("all {name}")),
            1 => {
                let len = self.source.index(bytes.len() + 1);
                (bytes[..len].to_vec(), format!("a part {name}"))
            }
            2 => {
                let mut forged = bytes[..opening].to_vec();
                let len: u8 = self.source.number(20, 100);
                forged.extend_from_slice(&u16::from(len).to_be_bytes());
                forged.extend(0..len);
                (forged, format!("the first message {name}, and a record of nobody's"))
            }
            _ => {
                let other = self.source.index(self.recorded.len());
                let other = self.recorded[other].bytes.borrow();
                let rest = &other[opening_len(&other).unwrap_or(other.len())..];
                ([&bytes[..opening], rest].concat(), format!("the first message {name}, and the rest of another"))
            }
        }
    }

    /// An attacker writes, reads what nobody but the device understands, or goes.
    pub(crate) fn move_attacker(&mut self, at: usize) {
        let now_us = self.now_us();
        self.events += 1;
        self.trace.step(|| format!("attacker {at} acts"));
        if self.attackers[at].act(now_us) {
            let attacker = self.attackers.swap_remove(at);
            attacker.wire.client_close(false);
        }
    }

    /// By a device's own clock an hour passes.
    pub(crate) fn age_keys(&mut self) {
        let at = self.source.index(self.parties.len());
        self.trace.event(|| format!("  of {}", self.parties[at].device.name()));
        self.parties[at].device.run_ahead(HOUR_US);
        self.after_client(at);
    }

    /// All is well from now on.
    pub(crate) fn stop_attacks(&mut self) {
        self.tamper_next = None;
        self.recorded.clear();
        self.former.clear();
        self.wires.iter().for_each(Wire::leave_alone);
        for attacker in self.attackers.drain(..) {
            attacker.wire.client_close(false);
        }
    }
}

/// How long what opens a connection is.
fn opening_len(bytes: &[u8]) -> Option<usize> {
    let length = bytes.get(OPENING_LEN - 2..OPENING_LEN)?;
    let len = OPENING_LEN + usize::from(u16::from_be_bytes(length.try_into().ok()?));
    (len <= bytes.len()).then_some(len)
}
