//! How frames go from one connection to others. Knows no epoll: whoever drives it reads and writes the sockets.

use culver_protocol::id::{InboxSeq, UserId};
use culver_protocol::message::EntryView;

use super::connection::{Connection, Relayed, Unacknowledged};
use super::online::Online;
use crate::target::floor::FloorReport;

/// The connections, and how frames go from one to others.
pub(super) struct Switch {
    pub(super) connections: slab::Slab<Connection>,
    online: Online,
    /// Connections with something to write, each once.
    pub(super) dirty: Vec<usize>,
    receipts: bool,
    /// Lent to whoever takes an ACK apart.
    acknowledged: Vec<Unacknowledged>,
}

impl Switch {
    pub(super) fn new(receipts: bool) -> Self {
        Self {
            connections: slab::Slab::new(),
            online: Online::default(),
            dirty: Vec::new(),
            receipts,
            acknowledged: Vec::new(),
        }
    }

    /// Hands on what these bytes hold for others, and answers what they ask.
    pub(super) fn handle_bytes(&mut self, slot: usize, bytes: &[u8], now_ms: u64, report: &mut FloorReport) {
        // The reading half leaves its place while other connections are touched, which may be this one.
        let Some(mut reading) = self.connections.get_mut(slot).map(Connection::take) else { return };
        let outcome = reading.handle_bytes(bytes, now_ms, |relayed| match relayed {
            Relayed::Login(user) => {
                self.online.enter(user, slot);
                report.logins += 1;
            }
            Relayed::Message { recipient, entry } => {
                self.deliver(slot, recipient, entry);
                report.messages += 1;
            }
            Relayed::Ack(through) => self.tell_senders(slot, through),
        });
        let Some(connection) = self.connections.get_mut(slot) else { return };
        connection.restore(reading);
        if outcome.is_err() {
            return self.close(slot);
        }
        if connection.has_output() {
            mark_dirty(&mut self.dirty, connection, slot);
        }
    }

    /// To every connection of the recipient, and to those of the sender but the one it came from.
    fn deliver(&mut self, from: usize, recipient: UserId, entry: EntryView<'_>) {
        let copies = if self.online.several_devices() { self.online.slots(entry.sender) } else { &[] };
        let copies = copies.iter().filter(|slot| **slot != from);
        for slot in self.online.slots(recipient).iter().chain(copies) {
            let Some(connection) = self.connections.get_mut(*slot) else { continue };
            connection.deliver(entry);
            if self.receipts {
                connection.expect_ack(&entry);
            }
            mark_dirty(&mut self.dirty, connection, *slot);
        }
    }

    /// Tells senders what this connection acknowledges, unless another device of the user did before.
    fn tell_senders(&mut self, slot: usize, through: InboxSeq) {
        let Some(connection) = self.connections.get_mut(slot).filter(|_| self.receipts) else { return };
        connection.acknowledge(through, &mut self.acknowledged);
        for entry in &self.acknowledged {
            let Some(peer) = self.online.first_to_acknowledge(slot, entry) else { continue };
            for slot in self.online.slots(peer) {
                let Some(connection) = self.connections.get_mut(*slot) else { continue };
                connection.tell_delivered(entry.conversation, entry.conversation_seq);
                mark_dirty(&mut self.dirty, connection, *slot);
            }
        }
    }

    pub(super) fn close(&mut self, slot: usize) {
        if let Some(connection) = self.connections.try_remove(slot) {
            self.online.leave(slot);
            drop(connection); // closing takes it out of the epoll
        }
    }
}

pub(super) fn mark_dirty(dirty: &mut Vec<usize>, connection: &mut Connection, slot: usize) {
    if !connection.is_dirty {
        connection.is_dirty = true;
        dirty.push(slot);
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use bytes::Bytes;
    use culver_protocol::id::{ConversationId, DeviceId};
    use culver_protocol::limits::HEADER_LEN;
    use culver_protocol::preamble::Preamble;
    use culver_protocol::proto::{Ack, ListDevices, Login, Rpc, Send, login, rpc};
    use culver_protocol::record::{Cipher, RecordType, split};
    use prost::Message;

    use super::*;
    use crate::target::floor::ticket;

    const ALICE: UserId = UserId(2);
    const BOB: UserId = UserId(3);

    struct World {
        switch: Switch,
        report: FloorReport,
    }

    impl World {
        /// A relay with these devices logged in, in this order.
        fn new(receipts: bool, devices: &[(UserId, u16)]) -> Self {
            let mut world = Self { switch: Switch::new(receipts), report: FloorReport::default() };
            for (user, device) in devices {
                let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
                let address = listener.local_addr().expect("it listens");
                let socket = TcpStream::connect(address).expect("the listener's queue takes one");
                let slot = world.switch.connections.insert(Connection::new(socket));
                let credential = Some(login::Credential::Ticket(ticket(*user, DeviceId(*device))));
                let login = Login { credential, ..Login::default() }.encode_to_vec();
                let len = u16::try_from(login.len()).expect("logins are short").to_be_bytes();
                world.bytes(slot, &[Preamble::PLAINTEXT.encode().as_slice(), &len, &login].concat());
            }
            world.take();
            world
        }

        fn bytes(&mut self, slot: usize, bytes: &[u8]) {
            self.switch.handle_bytes(slot, bytes, 1, &mut self.report);
        }

        fn message(&mut self, slot: usize, kind: RecordType, message: &impl Message) {
            let mut bytes = Vec::new();
            Cipher::Plaintext.seal_message(&mut bytes, kind, message);
            self.bytes(slot, &bytes);
        }

        fn send(&mut self, slot: usize) {
            let conversation = Bytes::copy_from_slice(&ConversationId::direct(ALICE, BOB).0);
            let (client_message_id, payload) = (Bytes::from_static(&[1; 16]), Bytes::from_static(b"payload"));
            self.message(slot, RecordType::Send, &Send { client_message_id, conversation, payload });
        }

        fn ack(&mut self, slot: usize, inbox_seq: u64) {
            self.message(slot, RecordType::Ack, &Ack { inbox_seq, ..Ack::default() });
        }

        /// The types of the records that were written since the last look, by connection.
        fn take(&mut self) -> Vec<(usize, u8)> {
            let mut records = Vec::new();
            for (slot, connection) in &mut self.switch.connections {
                connection.is_dirty = false;
                let out = connection.take_output();
                let mut rest = out.as_slice();
                while let Some(range) = split(rest, HEADER_LEN, usize::from(u16::MAX)).expect("framed") {
                    records.push((slot, *rest.get(range.start).expect("a type")));
                    rest = rest.get(range.end..).expect("within");
                }
            }
            self.switch.dirty.clear();
            records
        }
    }

    const SEND_RESULT: u8 = RecordType::SendResult as u8;
    const DELIVER: u8 = RecordType::Deliver as u8;
    const RECEIPT: u8 = RecordType::Receipt as u8;

    #[test]
    fn a_message_reaches_all_devices_but_the_one_that_sent_it() {
        let mut world = World::new(false, &[(ALICE, 1), (ALICE, 2), (BOB, 1), (BOB, 2)]);
        world.send(0);
        assert_eq!(world.take(), [(0, SEND_RESULT), (1, DELIVER), (2, DELIVER), (3, DELIVER)]);
        assert_eq!((world.report.messages, world.report.logins), (1, 4));
        world.ack(2, 1);
        assert_eq!(world.take(), []);
    }

    #[test]
    fn the_first_ack_becomes_a_receipt_at_each_of_the_senders_devices() {
        let mut world = World::new(true, &[(ALICE, 1), (ALICE, 2), (BOB, 1), (BOB, 2)]);
        world.send(0);
        world.take();
        world.ack(1, 1);
        assert_eq!(world.take(), [], "a copy of one's own");
        world.ack(3, 1);
        assert_eq!(world.take(), [(0, RECEIPT), (1, RECEIPT)]);
        world.ack(2, 1);
        assert_eq!(world.take(), [], "the second device");
    }

    #[test]
    fn a_device_learns_that_it_is_known() {
        let mut world = World::new(true, &[(ALICE, 1), (ALICE, 2)]);
        let request = Some(rpc::Request::ListDevices(ListDevices {}));
        world.message(1, RecordType::Rpc, &Rpc { id: 5, request });
        assert_eq!(world.take(), [(1, RecordType::RpcResult as u8)]);
    }

    #[test]
    fn who_breaks_the_framing_or_sends_a_strange_ticket_is_closed() {
        let mut world = World::new(true, &[(ALICE, 1), (BOB, 1)]);
        world.bytes(0, &[0, 0]);
        assert!(!world.switch.connections.contains(0));
        world.send(1);
        assert_eq!(world.take(), [(1, SEND_RESULT)], "nobody is there to be delivered to");
    }
}
