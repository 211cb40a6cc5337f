//! What happens by itself: queues move on, the disk and the readers get done, and time passes.

use std::collections::VecDeque;

use culver_storage::engine::Engine;
use culver_storage::reader::read;
use rand::Rng;

use super::{Debt, Node, Owed, World};
use crate::hub::command::Command;
use crate::hub::effect::EffectKind;
use crate::hub::mail::HubMail;

impl World {
    /// One step of chance.
    pub(in crate::hub::tests) fn step(&mut self) {
        let passed = if self.random.random_bool(0.01) { 300 } else { self.random.random_range(0..3) };
        self.pass(passed);
        let node = self.random.random_range(0..self.nodes.len());
        match self.random.random_range(0..100) {
            0..39 => self.act(),
            39 if self.random.random_bool(0.3) => self.engine.compact().expect("it does not fail"),
            39 => {
                let cold = self.random.random_bool(0.5);
                self.engine.set_cold(cold);
            }
            40..58 => self.take_command_at(node),
            58..62 => self.take_mail_at(node),
            62..75 => drop(self.move_hub_at(node)),
            75..80 => self.finish_write_at(node),
            80..85 => self.make_read_at(node),
            85..90 => self.take_result_at(node),
            _ => self.take_effect_at(node),
        }
    }

    /// Everything that can happen without a client's doing happens, until nothing is left.
    pub(in crate::hub::tests) fn settle(&mut self) {
        for _ in 0..100_000 {
            self.pass(5);
            let mut moved = false;
            for node in 0..self.nodes.len() {
                self.take_command_at(node);
                self.take_mail_at(node);
                moved |= self.move_hub_at(node);
                self.finish_write_at(node);
                self.make_read_at(node);
                self.take_result_at(node);
                self.take_effect_at(node);
            }
            if !moved && self.nodes.iter().all(Node::is_quiet) {
                return;
            }
        }
        let parked: Vec<usize> = self.nodes.iter().map(|node| node.hub.parked()).collect();
        let untaken: Vec<u64> = self.nodes.iter().map(|node| node.hub.untaken()).collect();
        panic!("it never comes to rest: {parked:?} parked, {untaken:?} untaken");
    }

    fn each(&mut self, mut step: impl FnMut(&mut Self, usize)) {
        for node in 0..self.nodes.len() {
            step(self, node);
        }
    }

    pub(in crate::hub::tests) fn take_command(&mut self) {
        self.each(Self::take_command_at);
    }

    pub(in crate::hub::tests) fn take_mail(&mut self) {
        self.each(Self::take_mail_at);
    }

    pub(in crate::hub::tests) fn finish_write(&mut self) {
        self.each(Self::finish_write_at);
    }

    pub(in crate::hub::tests) fn make_read(&mut self) {
        self.each(Self::make_read_at);
    }

    pub(in crate::hub::tests) fn take_result(&mut self) {
        self.each(Self::take_result_at);
    }

    pub(in crate::hub::tests) fn move_hub(&mut self) -> bool {
        (0..self.nodes.len()).fold(false, |moved, node| moved | self.move_hub_at(node))
    }

    fn take_command_at(&mut self, at: usize) {
        let now_ms = self.now_ms;
        let node = &mut self.nodes[at];
        if !node.hub.has_room() {
            return;
        }
        let Some(command) = node.mailbox.pop_front() else { return };
        let (session, device) = (command.session(), command.device());
        self.submitted += 1;
        let owed = match &command {
            Command::Login { .. } => Some(Owed::LoggedIn),
            Command::Send { send, .. } => Some(Owed::Result(send.client_message_id)),
            Command::Close { .. } => Some(Owed::Closed),
            Command::Rpc { id, .. } => {
                node.asked.insert((session, *id));
                None
            }
            Command::Ack { .. } | Command::Resume { .. } => None,
        };
        if let Some(owed) = owed {
            node.owed.entry(device).or_default().push_back(Debt { session, owed, submitted: self.submitted });
        }
        node.hub.handle_command(command, now_ms).expect("the engine does not fail");
    }

    fn take_mail_at(&mut self, at: usize) {
        let from = self.random.random_range(0..self.nodes.len());
        let Some(mail) = self.nodes[at].mail[from].pop_front() else { return };
        if matches!(mail, HubMail::Push { .. } | HubMail::Full { .. }) && !self.calm && self.random.random_bool(0.05) {
            return; // lost
        }
        let now_ms = self.now_ms;
        self.nodes[at].hub.handle_mail(mail, now_ms).expect("the engine does not fail");
    }

    /// What the driver does between commands. Whether anything came of it.
    fn move_hub_at(&mut self, at: usize) -> bool {
        let (now_ms, mono_ms) = (self.now_ms, self.mono_ms);
        let mut moved = false;
        let node = &mut self.nodes[at];
        node.hub.keep_up(now_ms, mono_ms).expect("the engine does not fail");
        while let Some(read) = node.hub.next_read() {
            node.reads.push(read);
            moved = true;
        }
        if let Some(batch) = node.hub.next_batch(now_ms).expect("the engine does not fail") {
            assert!(node.batch.is_none(), "one batch at a time");
            node.batch = Some(batch);
            moved = true;
        }
        moved |= self.post_effects(at) | self.post_mail(at);
        let feeds = self.calm || self.random.random_bool(0.5);
        let node = &mut self.nodes[at];
        if node.hub.is_hungry() && feeds {
            moved |= node.hub.feed_hungry(0) | node.hub.feed_hungry(1);
        }
        moved
    }

    fn post_effects(&mut self, at: usize) -> bool {
        let earlier = std::mem::take(&mut self.nodes[at].notices);
        let released = self.nodes[at].hub.take_released();
        let mut moved = false;
        for effect in earlier.into_iter().chain(released) {
            moved = true;
            let is_refusable = !effect.kind.is_reply();
            let node = &mut self.nodes[at];
            if is_refusable && node.hub.is_void(&effect) {
                continue;
            }
            let refuse = is_refusable && (self.refusals > 0 || (!self.calm && self.random.random_bool(0.1)));
            self.refusals = self.refusals.saturating_sub(usize::from(refuse));
            let is_notice = effect.kind.is_notice();
            match effect.kind {
                _ if is_notice && (refuse || !node.notices.is_empty()) => node.notices.push(effect),
                _ if refuse => node.hub.handle_refused(effect),
                EffectKind::SyncStart { online, .. } => {
                    let session = effect.session;
                    node.effects.push_back(effect);
                    node.hub.handle_posted_sync(online, session);
                }
                _ => node.effects.push_back(effect),
            }
        }
        moved
    }

    fn post_mail(&mut self, at: usize) -> bool {
        let mut moved = false;
        for (to, mail) in self.nodes[at].hub.take_mail() {
            moved = true;
            assert_ne!(to.index(), at, "no mail to itself");
            if !self.calm && self.random.random_bool(0.1) {
                self.nodes[at].hub.refused_mail(to, mail);
            } else {
                self.nodes[to.index()].mail[at].push_back(mail);
            }
        }
        moved
    }

    fn finish_write_at(&mut self, at: usize) {
        if let Some(batch) = self.nodes[at].batch.take() {
            self.engine.write(&batch).expect("it does not fail");
            self.note_inboxes();
            let now_ms = self.now_ms;
            self.nodes[at].hub.handle_durable(batch.number(), now_ms).expect("the engine does not fail");
        }
    }

    fn make_read_at(&mut self, at: usize) {
        if self.nodes[at].reads.is_empty() {
            return;
        }
        let index = self.random.random_range(0..self.nodes[at].reads.len());
        let asked = self.nodes[at].reads.swap_remove(index);
        let result = read(&self.engines(), 0, asked).expect("readable");
        self.nodes[at].results.push(result);
    }

    fn take_result_at(&mut self, at: usize) {
        if self.nodes[at].results.is_empty() {
            return;
        }
        let index = self.random.random_range(0..self.nodes[at].results.len());
        let now_ms = self.now_ms;
        let node = &mut self.nodes[at];
        let result = node.results.swap_remove(index);
        node.hub.handle_read(result, now_ms).expect("the engine does not fail");
        node.hub.retry_parked(now_ms).expect("the engine does not fail");
    }

    /// Everything in the mailboxes is decided, and what can be told without a read is told.
    pub(in crate::hub::tests) fn take_commands(&mut self) {
        while self.nodes.iter().any(|node| !node.mailbox.is_empty()) {
            self.take_command();
        }
        while self.move_hub() || self.nodes.iter().any(|node| node.batch.is_some()) {
            self.finish_write();
        }
    }

    /// Reads are made, and their results taken, until none is wanted.
    pub(in crate::hub::tests) fn read_all(&mut self) {
        while self.move_hub() || self.nodes.iter().any(|node| !node.reads.is_empty() || !node.results.is_empty()) {
            self.make_read();
            self.take_result();
        }
    }

    /// All mail that is under way is lost.
    pub(in crate::hub::tests) fn lose_mail(&mut self) {
        for node in &mut self.nodes {
            node.mail.iter_mut().for_each(VecDeque::clear);
        }
    }
}
