//! What an application has persisted, and so has again after it was killed. Two processes of a device share one.

use std::collections::BTreeMap;

use culver_protocol::client::{Credential, Encryption, SavedTicket, ServerKey};
use culver_protocol::crypto::hkdf;
use culver_protocol::id::{ConversationId, ConversationSeq, InboxSeq, Incarnation};
use culver_protocol::message::MarkView;
use culver_protocol::proto;

use super::DeviceKey;
use super::secrecy::{Former, Secrecy, key_pair};
use crate::oracle::MessageIndex;
use crate::world::BEGIN_MS;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Store {
    /// Everything up to here that this device gets is stored.
    pub(super) cursor: InboxSeq,
    pub(super) incarnation: Incarnation,
    pub(super) receipts: u64,
    pub(super) marks: BTreeMap<ConversationId, MarkView>,
    pub(super) ticket: SavedTicket,
    pub(super) ticket_generation: u32,
    /// What it logs in with as long as it has no ticket.
    pub(super) token: Option<String>,
    /// `None`: everything travels in plaintext.
    pub(super) secrecy: Option<Secrecy>,
    /// The key that a server has shown.
    pub(super) server: Option<ServerKey>,
    /// How many clients were made over it: no two get the same randomness.
    pub(super) clients: u64,
    /// What was sent and is not known to be answered, in its order.
    pub(super) outbox: Vec<MessageIndex>,
    /// The last stored message from somebody else.
    pub(super) readable: BTreeMap<ConversationId, u64>,
}

impl Store {
    /// Of a device that never ran: it is to be linked with a token, and, if it is to encrypt, its key registered.
    pub(crate) fn with_token(secrecy: Option<Secrecy>, token: String) -> Self {
        Self { secrecy, token: Some(token), ..Self::default() }
    }

    /// Of a device that has forgotten all that this one holds, because it was removed: it has another key, and nothing
    /// that says so. And what this one held.
    pub(super) fn renewed(&mut self, key: DeviceKey) -> Option<(Self, Former)> {
        let secrecy = self.secrecy.clone()?;
        let era = secrecy.era + 1;
        let next = Secrecy { own: key_pair(key, era), era, ..secrecy.clone() };
        let store = Self { secrecy: Some(next), server: self.server, clients: self.clients, ..Self::default() };
        Some((store, Former { key, secrecy, ticket: self.ticket.clone(), token: self.token.clone() }))
    }

    pub(super) fn credential(&self) -> Credential {
        match &self.token {
            _ if !self.ticket.bytes.is_empty() => Credential::Ticket(self.ticket.clone()),
            Some(token) => Credential::Token(token.clone()),
            None => Credential::DeviceKey,
        }
    }

    /// How its next client encrypts.
    pub(super) fn encryption(&mut self, key: DeviceKey, seed: u64) -> Option<Encryption> {
        let Secrecy { suite, forward_secret, own, root, .. } = self.secrecy.clone()?;
        let roots = root.into();
        self.clients += 1;
        let DeviceKey { user, device } = key;
        let secret = [user.0, device.0.into(), seed].map(u64::to_be_bytes).concat();
        let entropy = hkdf(&self.clients.to_be_bytes(), &secret, b"culver sim client");
        Some(Encryption { suite, own, roots, server: self.server, forward_secret, entropy, unix_ms: BEGIN_MS })
    }

    /// Merges each number by maximum, as clients must.
    pub(super) fn merge(&mut self, news: &proto::Mark) {
        let conversation = ConversationId::try_from(news.conversation.as_ref()).expect("the client checks it");
        let mark = self.mark(conversation);
        mark.delivered = mark.delivered.max(ConversationSeq(news.delivered));
        mark.read = mark.read.max(ConversationSeq(news.read));
        mark.own_read = mark.own_read.max(ConversationSeq(news.own_read));
        if news.expired_through > mark.expired_through.0 {
            mark.expired_after = ConversationSeq(news.expired_after);
            mark.expired_through = ConversationSeq(news.expired_through);
        }
    }

    pub(super) fn mark(&mut self, conversation: ConversationId) -> &mut MarkView {
        self.marks.entry(conversation).or_insert(MarkView { conversation, ..MarkView::default() })
    }
}
