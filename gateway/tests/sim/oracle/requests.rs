//! Requests and what servers tell beside: answers fit, lists show what is there, errors have a reason.

use culver_protocol::client::Violation;
use culver_protocol::error::ErrorCode;
use culver_protocol::id::{ConversationId, DeviceId};
use culver_protocol::limits::{DEVICES_MAX, PREVIEW_LEN_MAX};
use culver_protocol::proto;
use culver_protocol::proto::rpc_result::Result as Found;

use super::{Asked, Oracle, Who, Witness, side_of};

impl Oracle {
    /// A request was answered. Says what was marked as read, if that was asked and done.
    pub(crate) fn answered(
        &mut self,
        witness: &mut Witness,
        id: u64,
        result: &Result<Found, u32>,
    ) -> Option<(ConversationId, u64)> {
        let order = self.next();
        let who = witness.name();
        let Some(asked) = witness.calls.remove(&id) else {
            panic!("a request is answered once: {who} got {result:?} for {id}");
        };
        let found = match result {
            Ok(found) => found,
            Err(code) => {
                self.refused(witness, &asked, *code, order);
                return None;
            }
        };
        self.prove_linked(witness);
        if let Asked::Devices { order } | Asked::Mark { order, .. } | Asked::Removal { order, .. } = asked {
            self.check_void(witness, order);
        }
        match (asked, found) {
            (Asked::List, Found::Conversations(page)) => {
                for item in &page.items {
                    self.check_item(witness, item, who);
                }
            }
            (Asked::Devices { order }, Found::Devices(list)) => self.check_devices(witness, list, order, who),
            (Asked::Mark { conversation, seq, order, .. }, Found::MarkedRead(marked)) => {
                let talk = self.talks.entry(conversation).or_default();
                let side = &talk.sides[side_of(conversation, witness.key.user)];
                assert!(
                    marked.seq >= seq && marked.seq <= side.read.asked && seq <= side.persisted,
                    "what is marked as read is there to be read: {who} marked {seq} of {conversation:?} and was \
                     answered {}, having {}",
                    marked.seq,
                    side.persisted
                );
                self.marked(witness, conversation, marked.seq, order);
                return Some((conversation, marked.seq));
            }
            (Asked::Receipts { on, order }, Found::ReadReceiptsSet(set)) => {
                assert!(set.on == on, "what is asked is done: {who} asked for {on} and was answered {}", set.on);
                self.receipts_set(witness, on, order);
            }
            (Asked::Removal { device, order, .. }, Found::DeviceRemoved(_)) => {
                self.removed(witness, device, order, who);
            }
            (Asked::Name { device, len, order }, Found::DeviceNamed(_)) => {
                self.named(witness, (device, len), order, who);
            }
            (asked, found) => panic!("an answer is to what was asked: {who} asked {asked:?} and got {found:?}"),
        }
        None
    }

    fn refused(&mut self, witness: &Witness, asked: &Asked, code: u32, order: u64) {
        let who = witness.name();
        let is = |expected: ErrorCode| expected.number() == code;
        if let Asked::Receipts { on, .. } = asked {
            self.users[witness.at.0].setting.close(*on, order);
        }
        // What expired on its way to the device was not delivered, even if the device acknowledges it later.
        let is_known = matches!(asked, Asked::Mark { acknowledged: true, .. }) && !self.terms.may_gap();
        let is_fair_of_devices = self.is_refused_fairly(witness, asked, code);
        let is_fair = is_fair_of_devices
            || is(ErrorCode::Busy)
            || is(ErrorCode::Replaced)
            || (is(ErrorCode::ReadBeyondDelivered) && matches!(asked, Asked::Mark { .. }) && !is_known);
        assert!(is_fair, "what is right is not refused: {who} asked {asked:?} and was told {code}");
    }

    /// The connection ended before an answer.
    pub(crate) fn cancelled(&mut self, witness: &mut Witness, id: u64) {
        match witness.calls.remove(&id) {
            Some(asked) if asked.outlives_its_connection() => witness.lost.push(asked),
            Some(_) => {}
            None => panic!("a request ends once: {} was told that {id} is cancelled", witness.name()),
        }
    }

    /// What is shown of a conversation is so, or was so a moment ago.
    pub(super) fn check_item(&mut self, witness: &Witness, item: &proto::ConversationItem, who: Who) {
        let conversation = ConversationId::try_from(item.conversation.as_ref()).expect("the client checks it");
        let user = witness.key.user;
        assert!(
            conversation.direct_peer(user).is_some(),
            "nobody gets what is not theirs: {who} was shown {conversation:?}"
        );
        let read = &self.talks.entry(conversation).or_default().sides[side_of(conversation, user)].read;
        assert!(
            item.read <= read.asked && item.unread <= item.last_seq - item.read.min(item.last_seq),
            "a list shows what is there: {who} was shown {item:?}, having marked {} as read",
            read.asked
        );
        let Some(last) = &item.last else { return };
        assert!(
            last.conversation == item.conversation && last.conversation_seq <= item.last_seq,
            "a list shows what is there: {who} was shown {item:?}"
        );
        let index = self.recognise(last, Some(PREVIEW_LEN_MAX), who);
        if last.inbox_seq > 0 {
            let is_copy = last.sender == user.0 && conversation.direct_peer(user) != Some(user);
            self.set_place(witness.at.0, index, usize::from(is_copy), last.inbox_seq);
        }
    }

    fn check_devices(&self, witness: &Witness, list: &proto::Devices, asked: u64, who: Who) {
        let user = &self.users[witness.at.0];
        let is_listed = |device: DeviceId| list.devices.iter().any(|info| info.device == u32::from(device.0));
        assert!(is_listed(witness.key.device), "a device that asks is linked: {who} was listed {:?}", list.devices);
        assert!(
            list.devices.windows(2).all(|pair| pair[0].device < pair[1].device),
            "a device is listed once: {who} was listed {:?}",
            list.devices
        );
        for info in &list.devices {
            let known = user.devices.iter().find(|linked| u32::from(linked.device.0) == info.device);
            assert!(
                known.is_some_and(|linked| linked.tried.is_some()),
                "only who has logged in is linked: {who} was listed {info:?}"
            );
            self.check_shown(user, info, asked, who);
        }
        for linked in user.devices.iter().filter(|linked| linked.evidence.is_some_and(|order| order < asked)) {
            assert!(
                is_listed(linked.device) || self.terms.may_unlink,
                "who is linked stays linked: {who} was listed {:?}, without {}",
                list.devices,
                linked.device
            );
        }
    }

    /// The server told an error that is about the connection, or about nothing in particular.
    pub(crate) fn server_error(&mut self, witness: &Witness, error: &proto::Error) {
        let who = witness.name();
        let code = ErrorCode::from_number(error.code);
        self.tally.logins_busy += u64::from(code == Some(ErrorCode::LoginsBusy));
        let is_of_removal = code.is_some_and(|code| self.may_be_removed(witness, code));
        let linked = &self.users[witness.at.0].devices[witness.at.1];
        let is_fair = match code {
            Some(
                ErrorCode::Busy
                | ErrorCode::RecipientFull
                | ErrorCode::AfterRejected
                | ErrorCode::ShuttingDown
                | ErrorCode::LoginTimeout
                | ErrorCode::KeepAliveTimeout
                | ErrorCode::ConnectionsFull
                | ErrorCode::SlowReader
                | ErrorCode::TicketExpired,
            ) => true,
            Some(ErrorCode::TicketStale) => {
                witness.ticket_generation < witness.server_generation || self.terms.tickets_refused
            }
            // Somebody must have taken the place.
            Some(ErrorCode::Replaced) => {
                linked.connections[usize::from(witness.fetch)] > 1 && (witness.fetch || !witness.is_alone)
            }
            Some(ErrorCode::LoginsBusy) => {
                let is_limited = self.terms.are_logins_limited || self.terms.user_logins.is_some();
                self.terms.is_encrypted || is_limited
            }
            // What links or registers it may be lost or still on its way, or so long ago that it is forgotten.
            Some(ErrorCode::DeviceUnknown) => {
                let is_surely_known = linked.evidence.is_some_and(|order| order < witness.began);
                !is_surely_known || self.terms.may_unlink
            }
            Some(ErrorCode::TokenExpired | ErrorCode::TokenNotYetValid) => self.terms.clock_jumps,
            // A server shows the key of its generation, and knows the one before.
            Some(ErrorCode::ServerKeyUnknown) => self.terms.is_encrypted && witness.server_generation > 2,
            Some(ErrorCode::DevicesFull) => self.users[witness.at.0].devices.len() > DEVICES_MAX,
            _ => false,
        };
        let is_of_attack = witness.is_attacked && (!witness.is_greeted || is_of_record(error.code));
        let is_fair = is_fair || is_of_removal;
        assert!(is_fair || is_of_attack, "a client that keeps to the protocol is told no error: {who} got {error:?}");
    }

    /// A client found that its server does not keep to the protocol.
    pub(crate) fn violation(&self, witness: &Witness, violation: Violation) {
        // Once everything is sealed, nobody but the server can do more than break records.
        let is_fair = witness.is_attacked && (!witness.is_greeted || matches!(violation, Violation::Frame(_)));
        assert!(is_fair, "a server keeps to the protocol: {} found: {violation}", witness.name());
    }

    /// A client does not come back by itself.
    pub(crate) fn stopped(&self, witness: &Witness, code: u32) {
        let of_removal = ErrorCode::DeviceRemoved;
        let is_fair = [ErrorCode::Replaced, ErrorCode::DevicesFull].map(ErrorCode::number).contains(&code)
            || (code == of_removal.number() && self.may_be_removed(witness, of_removal));
        let is_sure = !witness.is_attacked || witness.is_greeted;
        assert!(is_fair && is_sure, "nobody but the server stops a client: {} was by {code}", witness.name());
    }
}

/// What a server says of a record that somebody broke.
fn is_of_record(code: u32) -> bool {
    use ErrorCode::{RecordEmpty, RecordForged, RecordTooLong};
    [RecordEmpty, RecordForged, RecordTooLong].map(ErrorCode::number).contains(&code)
}
