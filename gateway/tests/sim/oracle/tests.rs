//! Each promise, broken: the oracle must notice. And a story in which all are kept, which it must not mind.

use std::panic::{AssertUnwindSafe, catch_unwind};

use bytes::Bytes;
use culver_protocol::client::Violation;
use culver_protocol::error::ErrorCode;
use culver_protocol::id::{ClientMessageId, ConversationId, ConversationSeq, DeviceId, InboxSeq, MessageId, UserId};
use culver_protocol::message::{Accepted, MarkView};
use culver_protocol::proto;
use culver_protocol::proto::rpc::Request;
use culver_protocol::proto::rpc_result::Result as Found;
use culver_protocol::record::FrameError;

use super::{Known, MessageIndex, Oracle, Terms, Witness};
use crate::device::DeviceKey;

const LATER_US: u64 = 1_000_000;
/// User 1's devices and user 2's.
const ANN: usize = 0;
const ANN_TOO: usize = 1;
const BOB: usize = 2;

fn key(user: u64, device: u16) -> DeviceKey {
    DeviceKey { user: UserId(user), device: DeviceId(device) }
}

fn talk() -> ConversationId {
    ConversationId::direct(UserId(1), UserId(2))
}

/// A story that an oracle is told.
struct Tale {
    oracle: Oracle,
    witnesses: Vec<Witness>,
    ids: Vec<(ClientMessageId, Bytes)>,
    calls: u64,
}

impl Tale {
    fn new(terms: Terms) -> Self {
        let mut oracle = Oracle::new(terms);
        let keys = [key(1, 1), key(1, 2), key(2, 1)];
        let witnesses = keys.map(|key| oracle.launched(key, false, None)).into();
        let mut tale = Self { oracle, witnesses, ids: Vec::new(), calls: 0 };
        for who in [ANN, BOB] {
            tale.connect(who, 0, 0);
        }
        tale
    }

    fn connect(&mut self, who: usize, cursor: u64, receipts: u64) {
        self.oracle.connected(&mut self.witnesses[who], cursor, receipts, (1, 1));
        let welcome = proto::Welcome { credit_entries: 3, credit_bytes: 100_000, ..Default::default() };
        self.oracle.logged_in(&mut self.witnesses[who], &welcome);
    }

    fn send_in(&mut self, who: usize, conversation: ConversationId) -> usize {
        let (_, id, payload) = self.oracle.new_message(&self.witnesses[who], conversation, 10, false, 0);
        self.ids.push((id, payload));
        self.ids.len() - 1
    }

    fn send(&mut self, who: usize) -> usize {
        self.send_in(who, talk())
    }

    fn result(&self, message: usize, seq: u64, copy: u64) -> Accepted {
        Accepted {
            client_message_id: self.ids[message].0,
            conversation_seq: ConversationSeq(seq),
            message_id: MessageId(100 + seq),
            server_time_ms: 5,
            inbox_seq: InboxSeq(copy),
            duplicate: false,
        }
    }

    fn accept(&mut self, who: usize, message: usize, seq: u64) {
        let accepted = self.result(message, seq, 0);
        self.oracle.accepted(&self.witnesses[who], &accepted);
    }

    fn entry(&self, from: DeviceKey, message: usize, seq: u64, place: u64) -> proto::Entry {
        proto::Entry {
            inbox_seq: place,
            conversation: Bytes::copy_from_slice(&talk().0),
            conversation_seq: seq,
            message_id: 100 + seq,
            server_time_ms: 5,
            sender: from.user.0,
            sender_device: from.device.0.into(),
            payload: self.ids[message].1.clone(),
        }
    }

    /// Ann's message comes to Bob.
    fn deliver(&mut self, message: usize, seq: u64, place: u64) {
        let entry = self.entry(key(1, 1), message, seq, place);
        self.oracle.delivered(&mut self.witnesses[BOB], &entry, LATER_US);
    }

    fn persist(&mut self, who: usize, place: u64) {
        self.oracle.stored(&self.witnesses[who], place);
        self.oracle.persisted(&mut self.witnesses[who], place);
    }

    fn receipt(&mut self, who: usize, version: u64, mark: proto::Mark) {
        let mark = proto::Mark { conversation: Bytes::copy_from_slice(&talk().0), ..mark };
        let receipt = proto::Receipt { version, marks: vec![mark] };
        self.oracle.receipt(&mut self.witnesses[who], &receipt, LATER_US);
    }

    fn ask(&mut self, who: usize, request: &Request) -> u64 {
        self.calls += 1;
        self.oracle.asked(&mut self.witnesses[who], self.calls, request);
        self.calls
    }

    fn answer(&mut self, who: usize, id: u64, result: Result<Found, u32>) {
        self.oracle.answered(&mut self.witnesses[who], id, &result);
    }

    fn mark_read(&mut self, who: usize, seq: u64) {
        let id = self.ask(who, &mark_request(seq));
        self.answer(who, id, Ok(Found::MarkedRead(proto::MarkedRead { seq })));
    }

    fn set_receipts(&mut self, who: usize, on: bool) {
        let id = self.ask(who, &Request::SetReadReceipts(proto::SetReadReceipts { on }));
        self.answer(who, id, Ok(Found::ReadReceiptsSet(proto::ReadReceiptsSet { on })));
    }

    /// Ann's message is accepted, delivered to Bob and persisted there.
    fn whole(&mut self, seq: u64) -> usize {
        let message = self.send(ANN);
        self.accept(ANN, message, seq);
        self.deliver(message, seq, seq);
        self.persist(BOB, seq);
        message
    }

    /// What Ann and Bob know after one whole message.
    fn known(&self) -> Vec<(DeviceKey, Known)> {
        let mark = MarkView { conversation: talk(), delivered: ConversationSeq(1), ..Default::default() };
        let device = proto::Device { device: 1, online: true, ..Default::default() };
        let last = self.entry(key(1, 1), 0, 1, 1);
        let item = proto::ConversationItem {
            conversation: last.conversation.clone(),
            last_seq: 1,
            unread: 1,
            last: Some(last),
            ..Default::default()
        };
        let ann = Known { marks: [(talk(), mark)].into(), list: vec![], devices: vec![device.clone()] };
        let bob = Known { marks: [].into(), list: vec![item], devices: vec![device] };
        vec![(key(1, 1), ann), (key(2, 1), bob)]
    }

    fn end(&mut self) {
        self.oracle.check_known(&self.known(), LATER_US);
    }
}

fn mark_request(seq: u64) -> Request {
    Request::MarkRead(proto::MarkRead { conversation: Bytes::copy_from_slice(&talk().0), seq })
}

fn delivered(seq: u64) -> proto::Mark {
    proto::Mark { delivered: seq, ..Default::default() }
}

fn read(seq: u64) -> proto::Mark {
    proto::Mark { read: seq, ..Default::default() }
}

/// The last step of a story breaks a promise, which the oracle names so.
#[track_caller]
fn lie(promise: &str, truth: impl FnOnce(&mut Tale), lie: impl FnOnce(&mut Tale)) {
    lie_under(Terms::default(), promise, truth, lie);
}

#[track_caller]
fn lie_under(terms: Terms, promise: &str, truth: impl FnOnce(&mut Tale), lie: impl FnOnce(&mut Tale)) {
    let mut tale = Tale::new(terms);
    truth(&mut tale);
    let caught = catch_unwind(AssertUnwindSafe(|| lie(&mut tale))).expect_err(promise);
    let said = caught.downcast_ref::<String>().expect("panics have words");
    assert!(said.starts_with(promise), "{promise}: {said}");
}

fn one(tale: &mut Tale) {
    tale.whole(1);
}

fn nothing(_: &mut Tale) {}

fn sends(tale: &mut Tale) {
    tale.send(ANN);
}

fn sends_five(tale: &mut Tale) {
    (0..5).for_each(|_| sends(tale));
}

#[test]
fn a_true_story_is_believed() {
    let mut tale = Tale::new(Terms::default());
    tale.whole(1);
    tale.receipt(ANN, 3, delivered(1));
    tale.end();
    tale.mark_read(BOB, 1);
    tale.receipt(ANN, 4, read(1));
    let again = Accepted { duplicate: true, ..tale.result(0, 1, 0) };
    tale.oracle.accepted(&tale.witnesses[ANN], &again);
    // A second device is linked at the head, and gets what follows; so does the first, as a copy of it.
    tale.connect(ANN_TOO, 0, 0);
    let id = tale.ask(ANN_TOO, &Request::ListDevices(proto::ListDevices {}));
    let devices = [1, 2].map(|device| proto::Device { device, ..Default::default() }).into();
    tale.answer(ANN_TOO, id, Ok(Found::Devices(proto::Devices { devices })));
    let message = tale.send(ANN_TOO);
    let accepted = tale.result(message, 2, 1);
    tale.oracle.accepted(&tale.witnesses[ANN_TOO], &accepted);
    let entry = tale.entry(key(1, 2), message, 2, 1);
    tale.oracle.delivered(&mut tale.witnesses[ANN], &entry, LATER_US);
    let entry = tale.entry(key(1, 2), message, 2, 2);
    tale.oracle.delivered(&mut tale.witnesses[BOB], &entry, LATER_US);
}

#[test]
fn answers() {
    lie("the same id gives the same result", one, |tale| {
        let other = Accepted { duplicate: true, conversation_seq: ConversationSeq(2), ..tale.result(0, 1, 0) };
        tale.oracle.accepted(&tale.witnesses[ANN], &other);
    });
    lie("a message is accepted once", one, |tale| tale.accept(ANN, 0, 1));
    lie("within a conversation answers come in the order", sends, |tale| {
        let second = tale.send(ANN);
        tale.accept(ANN, second, 1);
    });
    lie("only who sent is answered", sends, |tale| tale.accept(BOB, 0, 1));
    lie("only what was sent is answered", nothing, |tale| {
        tale.oracle.rejected(&tale.witnesses[ANN], ClientMessageId([7; 16]), 4010);
    });
    lie("nothing is refused for good without a reason", sends, |tale| {
        tale.oracle.rejected(&tale.witnesses[ANN], tale.ids[0].0, ErrorCode::NotAMember.number());
    });
    let stray = |tale: &mut Tale| {
        tale.send_in(ANN, ConversationId::direct(UserId(5), UserId(6)));
    };
    lie("only parties write", stray, |tale| tale.accept(ANN, 0, 1));
    lie(
        "what was refused for good stays refused",
        |tale| {
            stray(tale);
            let id = tale.ids[0].0;
            tale.oracle.rejected(&tale.witnesses[ANN], id, ErrorCode::NotAMember.number());
            // Were it a good one.
            tale.oracle.messages[0].validity = super::messages::Validity::Good;
        },
        |tale| tale.accept(ANN, 0, 1),
    );
}

#[test]
fn places_and_ids() {
    let two = |tale: &mut Tale| {
        one(tale);
        tale.send(ANN);
    };
    lie("a conversation seq belongs to one message", two, |tale| {
        let same = Accepted { message_id: MessageId(7), ..tale.result(1, 1, 0) };
        tale.oracle.accepted(&tale.witnesses[ANN], &same);
    });
    lie("message ids ascend within a conversation", two, |tale| {
        let less = Accepted { message_id: MessageId(7), ..tale.result(1, 2, 0) };
        tale.oracle.accepted(&tale.witnesses[ANN], &less);
    });
    lie(
        "message ids ascend within a shard",
        |tale| {
            one(tale);
            tale.send_in(ANN, ConversationId::direct(UserId(1), UserId(3)));
        },
        |tale| {
            let less = Accepted { message_id: MessageId(7), ..tale.result(1, 1, 0) };
            tale.oracle.accepted(&tale.witnesses[ANN], &less);
        },
    );
    lie(
        "a message id belongs to one message",
        |tale| {
            let (early, late) = (tale.send(ANN), tale.send_in(ANN, ConversationId::direct(UserId(1), UserId(3))));
            tale.accept(ANN, early, 1);
            assert_eq!(late, 1);
        },
        |tale| tale.accept(ANN, 1, 1),
    );
    lie("conversation seqs are dense", two, |tale| tale.accept(ANN, 1, 9));
    lie(
        "a message keeps its place",
        |tale| {
            tale.send(ANN);
            tale.send(ANN);
            tale.accept(ANN, 0, 1);
        },
        |tale| tale.deliver(0, 2, 1),
    );
    lie(
        "a place in an inbox belongs to one message",
        |tale| {
            one(tale);
            tale.connect(ANN_TOO, 0, 0);
            tale.send(ANN);
        },
        |tale| {
            let mut fresh = tale.oracle.launched(key(2, 2), false, None);
            let entry = tale.entry(key(1, 1), 1, 2, 1);
            tale.oracle.delivered(&mut fresh, &entry, LATER_US);
        },
    );
    lie(
        "a message is in an inbox once",
        |tale| {
            one(tale);
            tale.send(ANN);
        },
        |tale| tale.deliver(0, 1, 2),
    );
}

#[test]
fn deliveries_of_what_nobody_sent_so() {
    lie("nothing comes that nobody sent", nothing, |tale| {
        tale.ids.push((ClientMessageId([0; 16]), Bytes::from_static(b"????")));
        tale.deliver(0, 1, 1);
    });
    lie("a message comes as it was sent", sends_five, |tale| {
        let entry = proto::Entry { payload: Bytes::from_static(&[0, 0, 0, 0, 1]), ..tale.entry(key(1, 1), 0, 1, 1) };
        tale.oracle.delivered(&mut tale.witnesses[BOB], &entry, LATER_US);
    });
    lie("a message comes as it was sent", sends_five, |tale| {
        let entry = tale.entry(key(1, 2), 0, 1, 1);
        tale.oracle.delivered(&mut tale.witnesses[BOB], &entry, LATER_US);
    });
    lie("what a device sends does not come back", sends_five, |tale| {
        let entry = tale.entry(key(1, 1), 0, 1, 1);
        tale.oracle.delivered(&mut tale.witnesses[ANN], &entry, LATER_US);
    });
    lie("nobody gets what is not theirs", sends_five, |tale| {
        let mut eve = tale.oracle.launched(key(9, 1), false, None);
        let entry = tale.entry(key(1, 1), 0, 1, 1);
        tale.oracle.delivered(&mut eve, &entry, LATER_US);
    });
    lie(
        "what was refused for good never appears",
        |tale| {
            tale.send(ANN);
            tale.oracle.messages[0].rejected = Some(4010);
        },
        |tale| tale.deliver(0, 1, 1),
    );
}

#[test]
fn deliveries_out_of_order() {
    lie(
        "nothing is delivered twice",
        |tale| {
            sends_five(tale);
            tale.deliver(0, 1, 1);
        },
        |tale| tale.deliver(0, 1, 1),
    );
    lie(
        "an inbox comes in its order",
        |tale| {
            sends_five(tale);
            tale.deliver(1, 2, 2);
        },
        |tale| tale.deliver(0, 1, 1),
    );
    lie(
        "a conversation comes in its order",
        |tale| {
            sends_five(tale);
            tale.deliver(1, 2, 1);
        },
        |tale| tale.deliver(0, 1, 2),
    );
    lie(
        "nothing is left out",
        |tale| {
            sends_five(tale);
            tale.deliver(0, 1, 1);
            tale.deliver(1, 2, 2);
            // It is killed, having persisted the first alone.
            tale.persist(BOB, 1);
            tale.witnesses[BOB] = tale.oracle.launched(key(2, 1), false, Some(&tale.witnesses[BOB]));
            tale.connect(BOB, 1, 0);
        },
        |tale| tale.deliver(2, 3, 3),
    );
    lie(
        "no more comes than there is room for",
        |tale| {
            sends_five(tale);
            (0..3).for_each(|n| tale.deliver(n, n as u64 + 1, n as u64 + 1));
        },
        |tale| tale.deliver(3, 4, 4),
    );
    lie(
        "a further device gets what comes from its link on",
        |tale| {
            sends_five(tale);
            tale.deliver(0, 1, 1);
            let other = tale.oracle.launched(key(2, 2), false, None);
            tale.witnesses.push(other);
            tale.connect(3, 0, 0);
        },
        |tale| {
            let entry = tale.entry(key(1, 1), 0, 1, 1);
            tale.oracle.delivered(&mut tale.witnesses[3], &entry, LATER_US);
        },
    );
}

#[test]
fn backlogs_and_gaps() {
    let item = |waiting| proto::ConversationItem {
        conversation: Bytes::copy_from_slice(&talk().0),
        last_seq: 1,
        waiting,
        ..Default::default()
    };
    let start = move |entries, waiting| proto::SyncStart { entries, through: 1, conversations: vec![item(waiting)] };
    lie("the announcement adds up", nothing, |tale| {
        tale.oracle.sync_start(&mut tale.witnesses[BOB], &start(2, 1));
    });
    lie("of nothing there is nothing to tell", nothing, |tale| {
        tale.oracle.sync_start(&mut tale.witnesses[BOB], &start(0, 0));
    });
    lie(
        "what waits is announced once",
        |tale| tale.oracle.sync_start(&mut tale.witnesses[BOB], &start(1, 1)),
        |tale| {
            tale.oracle.sync_start(&mut tale.witnesses[BOB], &start(1, 1));
        },
    );
    lie("what waits ends once", nothing, |tale| {
        tale.oracle.sync_done(&mut tale.witnesses[BOB], &proto::SyncDone { inbox_seq: 1 });
    });
    lie(
        "what waited ends where it was announced",
        |tale| {
            tale.oracle.sync_start(&mut tale.witnesses[BOB], &start(1, 1));
        },
        |tale| tale.oracle.sync_done(&mut tale.witnesses[BOB], &proto::SyncDone { inbox_seq: 2 }),
    );
    lie(
        "nothing is left out",
        |tale| {
            one(tale);
            tale.witnesses[BOB] = tale.oracle.launched(key(2, 1), false, None);
            tale.oracle.users[1].devices[0].stored = super::Bits::default();
            tale.connect(BOB, 0, 0);
            tale.oracle.sync_start(&mut tale.witnesses[BOB], &start(1, 1));
        },
        |tale| tale.oracle.sync_done(&mut tale.witnesses[BOB], &proto::SyncDone { inbox_seq: 1 }),
    );
    let gap = |tale: &mut Tale, reset| {
        let gap = proto::Gap { start: 3, reset, incarnation: 1 };
        tale.oracle.gap(&mut tale.witnesses[BOB], &gap, LATER_US);
    };
    lie("nothing expires here", nothing, |tale| gap(tale, false));
    lie("a cursor that the server gave is good for ever", nothing, |tale| gap(tale, true));
    let terms = Terms { expires_after_us: Some(LATER_US + 1), ..Terms::default() };
    lie_under(
        terms,
        "nothing is dropped before its time",
        |tale| {
            one(tale);
            tale.oracle.users[1].devices[0].stored = super::Bits::default();
            tale.oracle.users[1].devices[0].claimed = 0;
            tale.witnesses[BOB] = tale.oracle.launched(key(2, 1), false, None);
        },
        |tale| gap(tale, false),
    );
    let expired = |tale: &mut Tale| {
        tale.receipt(ANN, 1, proto::Mark { expired_after: 0, expired_through: 1, ..Default::default() });
    };
    lie_under(terms, "nothing expires before its time", one, expired);
    lie("nothing expires here", one, expired);
}

#[test]
fn receipts() {
    let undelivered = |tale: &mut Tale| {
        let message = tale.send(ANN);
        tale.accept(ANN, message, 1);
        tale.deliver(message, 1, 1);
    };
    lie("no receipt lies", undelivered, |tale| tale.receipt(ANN, 1, delivered(1)));
    // In the store, but no client was told of it.
    lie(
        "no receipt lies",
        |tale| {
            undelivered(tale);
            tale.oracle.stored(&tale.witnesses[BOB], 1);
        },
        |tale| tale.receipt(ANN, 1, delivered(1)),
    );
    lie("no receipt lies", one, |tale| tale.receipt(ANN, 1, read(1)));
    lie("no receipt lies", one, |tale| tale.receipt(BOB, 1, proto::Mark { own_read: 1, ..Default::default() }));
    // One before what was delivered turns up later, and nobody has it.
    lie(
        "no receipt lies",
        |tale| {
            let (first, second) = (tale.send(ANN), tale.send(ANN));
            tale.deliver(second, 2, 2);
            tale.persist(BOB, 2);
            tale.receipt(ANN, 1, delivered(2));
            assert_eq!(first, 0);
        },
        |tale| tale.accept(ANN, 0, 1),
    );
    lie(
        "receipts never go back",
        |tale| {
            one(tale);
            tale.whole(2);
            tale.receipt(ANN, 1, delivered(2));
        },
        |tale| tale.receipt(ANN, 2, delivered(1)),
    );
    lie(
        "versions of receipts ascend",
        |tale| {
            one(tale);
            tale.receipt(ANN, 2, delivered(1));
        },
        |tale| tale.receipt(ANN, 2, delivered(1)),
    );
    let off = Terms { receipts: false, ..Terms::default() };
    lie_under(off, "receipts are off for everybody", one, |tale| tale.receipt(ANN, 1, delivered(1)));
    lie("nobody gets what is not theirs", nothing, |tale| {
        let conversation = ConversationId::direct(UserId(5), UserId(6));
        let mark = proto::Mark { conversation: Bytes::copy_from_slice(&conversation.0), ..delivered(1) };
        tale.oracle.receipt(&mut tale.witnesses[ANN], &proto::Receipt { version: 1, marks: vec![mark] }, 0);
    });
}

#[test]
fn read_receipts_that_are_off() {
    // Whoever reads has them off.
    lie(
        "no receipt lies",
        |tale| {
            one(tale);
            tale.set_receipts(BOB, false);
            tale.mark_read(BOB, 1);
            tale.set_receipts(BOB, true);
        },
        |tale| tale.receipt(ANN, 1, read(1)),
    );
    // Whoever would see them has them off.
    lie(
        "who has read receipts off sees none",
        |tale| {
            one(tale);
            tale.mark_read(BOB, 1);
            tale.set_receipts(ANN, false);
            tale.connect(ANN, 0, 0);
        },
        |tale| tale.receipt(ANN, 1, read(1)),
    );
    // What is not certain is not held against anybody.
    let mut tale = Tale::new(Terms::default());
    tale.whole(1);
    tale.set_receipts(BOB, false);
    let on = tale.ask(BOB, &Request::SetReadReceipts(proto::SetReadReceipts { on: true }));
    tale.oracle.cancelled(&mut tale.witnesses[BOB], on);
    tale.mark_read(BOB, 1);
    tale.receipt(ANN, 1, read(1));
}

#[test]
fn requests() {
    let busy = Err(ErrorCode::Busy.number());
    lie("a request is answered once", nothing, |tale| tale.answer(ANN, 7, busy.clone()));
    lie("a request ends once", nothing, |tale| tale.oracle.cancelled(&mut tale.witnesses[ANN], 7));
    lie("an answer is to what was asked", nothing, |tale| {
        let id = tale.ask(ANN, &Request::ListDevices(proto::ListDevices {}));
        tale.answer(ANN, id, Ok(Found::MarkedRead(proto::MarkedRead { seq: 1 })));
    });
    lie("what is right is not refused", one, |tale| {
        let id = tale.ask(BOB, &mark_request(1));
        tale.answer(BOB, id, Err(ErrorCode::ReadBeyondDelivered.number()));
    });
    lie("what is marked as read is there", one, |tale| {
        let id = tale.ask(BOB, &mark_request(9));
        tale.answer(BOB, id, Ok(Found::MarkedRead(proto::MarkedRead { seq: 9 })));
    });
    lie("what is asked is done", nothing, |tale| {
        let id = tale.ask(ANN, &Request::SetReadReceipts(proto::SetReadReceipts { on: false }));
        tale.answer(ANN, id, Ok(Found::ReadReceiptsSet(proto::ReadReceiptsSet { on: true })));
    });
    let list = |tale: &mut Tale, devices: &[u32]| {
        let id = tale.ask(ANN, &Request::ListDevices(proto::ListDevices {}));
        let devices = devices.iter().map(|device| proto::Device { device: *device, ..Default::default() }).collect();
        tale.answer(ANN, id, Ok(Found::Devices(proto::Devices { devices })));
    };
    lie("a device that asks is linked", nothing, |tale| list(tale, &[]));
    lie("a device is listed once", nothing, |tale| list(tale, &[1, 1]));
    lie("only who has logged in is linked", nothing, |tale| list(tale, &[1, 7]));
    lie(
        "who is linked stays linked",
        |tale| {
            tale.connect(ANN_TOO, 0, 0);
            tale.oracle.prove_linked(&mut tale.witnesses[ANN_TOO]);
        },
        |tale| list(tale, &[1]),
    );
    let shown = |tale: &mut Tale, change: fn(&mut proto::ConversationItem)| {
        let mut item = tale.known()[1].1.list[0].clone();
        change(&mut item);
        let id = tale.ask(BOB, &Request::ListConversations(proto::ListConversations::default()));
        let page = proto::Conversations { items: vec![item], next: Bytes::new() };
        tale.answer(BOB, id, Ok(Found::Conversations(page)));
    };
    lie("a list shows what is there", one, |tale| shown(tale, |item| item.read = 1));
    lie("a list shows what is there", one, |tale| shown(tale, |item| item.unread = 2));
    lie("a list shows what is there", one, |tale| shown(tale, |item| item.last_seq = 0));
    lie("nobody gets what is not theirs", one, |tale| {
        shown(tale, |item| item.conversation = Bytes::from_static(&[0; 16]));
    });
    lie("a message comes as it was sent", one, |tale| {
        shown(tale, |item| item.last.as_mut().expect("there is one").payload.truncate(5));
    });
}

#[test]
fn errors_and_tickets() {
    let error = |code: ErrorCode| proto::Error { code: code.number(), ..Default::default() };
    for code in [ErrorCode::AckBeyondSent, ErrorCode::TicketStale, ErrorCode::TicketInvalid, ErrorCode::DevicesFull] {
        lie("a client that keeps to the protocol is told no error", nothing, |tale| {
            tale.oracle.server_error(&tale.witnesses[ANN], &error(code));
        });
    }
    lie("a client that keeps to the protocol is told no error", nothing, |tale| {
        tale.oracle.server_error(&tale.witnesses[ANN], &error(ErrorCode::Replaced));
    });
    lie(
        "a stale ticket opens nothing",
        |tale| {
            tale.oracle.connected(&mut tale.witnesses[ANN], 0, 0, (1, 2));
        },
        |tale| tale.oracle.logged_in(&mut tale.witnesses[ANN], &proto::Welcome::default()),
    );
}

/// Ann's connection is one that nobody can have taken, and somebody has changed what it carries.
fn attacked(tale: &mut Tale) {
    tale.connect(ANN, 0, 0);
    tale.witnesses[ANN].connected_to(true);
    tale.witnesses[ANN].attacked();
}

#[test]
fn what_attackers_may_not_do() {
    let error = |code: ErrorCode| proto::Error { code: code.number(), ..Default::default() };
    let told = |code: ErrorCode| move |tale: &mut Tale| tale.oracle.server_error(&tale.witnesses[ANN], &error(code));
    let forged = Violation::Frame(FrameError::Forged);
    let promise = "a client that keeps to the protocol is told no error";
    for code in [ErrorCode::RecordForged, ErrorCode::HandshakeFailed, ErrorCode::LoginsBusy] {
        lie(promise, nothing, told(code));
    }
    lie("a server keeps to the protocol", nothing, |tale| tale.oracle.violation(&tale.witnesses[ANN], forged));
    let mut tale = Tale::new(Terms { is_encrypted: true, ..Terms::default() });
    attacked(&mut tale);
    told(ErrorCode::SuiteRefused)(&mut tale);
    tale.oracle.logged_in(&mut tale.witnesses[ANN], &proto::Welcome::default());
    told(ErrorCode::RecordForged)(&mut tale);
    told(ErrorCode::DeviceUnknown)(&mut tale);
    tale.oracle.violation(&tale.witnesses[ANN], forged);
    // What nobody but the server can have said.
    let greeted = |tale: &mut Tale| {
        attacked(tale);
        tale.oracle.logged_in(&mut tale.witnesses[ANN], &proto::Welcome::default());
    };
    let terms = Terms { is_encrypted: true, ..Terms::default() };
    for code in [ErrorCode::SuiteRefused, ErrorCode::Replaced] {
        lie_under(terms, promise, greeted, told(code));
    }
    lie_under(terms, "a server keeps to the protocol", greeted, |tale| {
        tale.oracle.violation(&tale.witnesses[ANN], Violation::Protobuf { kind: 7 });
    });
    let is_linked = |tale: &mut Tale| {
        tale.oracle.prove_linked(&mut tale.witnesses[ANN]);
        tale.connect(ANN, 0, 0);
    };
    for terms in [terms, Terms::default()] {
        lie_under(terms, promise, is_linked, told(ErrorCode::DeviceUnknown));
    }
    let stopped = |tale: &mut Tale| tale.oracle.stopped(&tale.witnesses[ANN], ErrorCode::Replaced.number());
    lie_under(terms, "nobody but the server stops a client", attacked, stopped);
}

#[test]
fn in_the_end_everything_is_in_its_place() {
    lie(
        "everything sent is answered",
        |tale| {
            one(tale);
            tale.send(ANN);
        },
        Tale::end,
    );
    lie(
        "messages are accepted in the order they were sent",
        |tale| {
            let (first, second) = (tale.send(ANN), tale.send(ANN));
            tale.deliver(second, 1, 1);
            tale.deliver(first, 2, 2);
            tale.accept(ANN, first, 2);
            tale.accept(ANN, second, 1);
        },
        Tale::end,
    );
    lie(
        "a conversation is dense",
        |tale| {
            one(tale);
            tale.oracle.talks.get_mut(&talk()).expect("it is there").by_seq.push(None);
        },
        Tale::end,
    );
    lie(
        "what is accepted is delivered",
        |tale| {
            one(tale);
            let lost = tale.send(ANN);
            tale.accept(ANN, lost, 2);
        },
        Tale::end,
    );
    lie(
        "an inbox is dense",
        |tale| {
            one(tale);
            let last = tale.send(ANN);
            tale.accept(ANN, last, 2);
            tale.deliver(last, 2, 2);
            tale.persist(BOB, 2);
            tale.oracle.users[1].places.push(None);
        },
        Tale::end,
    );
    lie(
        "an inbox has the conversations' order",
        |tale| {
            let (first, second) = (tale.whole(1), tale.whole(2));
            tale.oracle.users[1].places.swap(first, second);
        },
        Tale::end,
    );
}

#[test]
fn in_the_end_every_device_has_everything() {
    lie(
        "what is accepted is delivered to every device",
        |tale| {
            let message = tale.send(ANN);
            tale.accept(ANN, message, 1);
            tale.deliver(message, 1, 1);
        },
        Tale::end,
    );
    // Bob's second device is linked at the head, and gets nothing of what follows.
    lie(
        "what is sent when a device is linked is delivered to it",
        |tale| {
            one(tale);
            let other = tale.oracle.launched(key(2, 2), false, None);
            tale.witnesses.push(other);
            tale.connect(3, 0, 0);
            tale.oracle.prove_linked(&mut tale.witnesses[3]);
            tale.whole(2);
        },
        Tale::end,
    );
    // Ann's second device gets no copy of what is sent on a session that began when it was linked.
    lie(
        "what is sent when a device is linked is delivered to it",
        |tale| {
            tale.connect(ANN_TOO, 0, 0);
            tale.oracle.prove_linked(&mut tale.witnesses[ANN_TOO]);
            tale.connect(ANN, 0, 0);
            one(tale);
        },
        Tale::end,
    );
}

#[test]
fn in_the_end_everything_is_known() {
    let change = |change: fn(&mut Vec<(DeviceKey, Known)>)| {
        move |tale: &mut Tale| {
            let mut known = tale.known();
            change(&mut known);
            tale.oracle.check_known(&known, LATER_US);
        }
    };
    lie("receipts are complete", one, change(|known| known[0].1.marks.clear()));
    lie(
        "receipts are complete",
        |tale| {
            one(tale);
            tale.mark_read(BOB, 1);
        },
        Tale::end,
    );
    lie(
        "receipts are complete",
        |tale| {
            one(tale);
            tale.mark_read(BOB, 1);
        },
        change(|known| known[0].1.marks.get_mut(&talk()).expect("one").read = ConversationSeq(1)),
    );
    lie("a list shows each conversation once", one, change(|known| known[1].1.list.clear()));
    lie("a list shows the last", one, change(|known| known[1].1.list[0].last_seq = 2));
    lie("a list shows the last", one, change(|known| known[1].1.list[0].last = None));
    lie("a list shows how much is unread", one, change(|known| known[1].1.list[0].unread = 0));
    lie("a list shows what is read", one, change(|known| known[1].1.list[0].read = 1));
    lie(
        "the most recent comes first",
        one,
        change(|known| {
            let twice = known[1].1.list[0].clone();
            known[1].1.list.push(twice);
        }),
    );
    lie(
        "nobody gets what is not theirs",
        one,
        change(|known| {
            let conversation = Bytes::copy_from_slice(&ConversationId::direct(UserId(5), UserId(6)).0);
            known[1].1.list.push(proto::ConversationItem { conversation, ..Default::default() });
        }),
    );
    lie("all devices are there", one, change(|known| known[1].1.devices[0].waiting = 1));
    lie("all devices are there", one, change(|known| known[1].1.devices[0].online = false));
}

#[test]
fn what_nobody_remembers_may_be_there_or_not() {
    let mut tale = Tale::new(Terms::default());
    tale.send(ANN);
    tale.oracle.forgotten(MessageIndex(0));
    let message = tale.send(ANN);
    assert_eq!(message, 1);
    tale.accept(ANN, message, 2);
    tale.deliver(message, 2, 1);
    tale.persist(BOB, 1);
    tale.oracle.check_known(&[], LATER_US);
}

fn remove_request(device: u32) -> Request {
    Request::RemoveDevice(proto::RemoveDevice { device })
}

fn list_of(names: &[(u32, &str)]) -> Found {
    let device = |(device, name): &(u32, &str)| proto::Device {
        device: *device,
        name: (*name).to_owned(),
        ..Default::default()
    };
    Found::Devices(proto::Devices { devices: names.iter().map(device).collect() })
}

/// Ann's second device is there, and her first has it removed.
fn removed(tale: &mut Tale) {
    tale.connect(ANN_TOO, 0, 0);
    let message = tale.send(BOB);
    let entry = tale.entry(key(2, 1), message, 1, 1);
    tale.oracle.delivered(&mut tale.witnesses[ANN_TOO], &entry, LATER_US);
    let id = tale.ask(ANN, &remove_request(2));
    tale.answer(ANN, id, Ok(Found::DeviceRemoved(proto::DeviceRemoved {})));
}

fn list(tale: &mut Tale, names: &[(u32, &str)]) {
    let id = tale.ask(ANN, &Request::ListDevices(proto::ListDevices {}));
    tale.answer(ANN, id, Ok(list_of(names)));
}

fn name(tale: &mut Tale, device: u32, name: &str) {
    let named = proto::NameDevice { device, name: name.to_owned() };
    let id = tale.ask(ANN, &Request::NameDevice(named));
    tale.answer(ANN, id, Ok(Found::DeviceNamed(proto::DeviceNamed {})));
}

#[test]
fn who_was_removed_gets_nothing() {
    let sent_since = |tale: &mut Tale| {
        let message = tale.send(BOB);
        let entry = tale.entry(key(2, 1), message, 2, 2);
        tale.oracle.delivered(&mut tale.witnesses[ANN_TOO], &entry, LATER_US);
    };
    lie("who was removed gets nothing", removed, sent_since);
    lie("who was removed gets nothing", removed, |tale| {
        tale.connect(ANN_TOO, 0, 0);
        tale.receipt(ANN_TOO, 3, delivered(0));
    });
    lie("who was removed gets nothing", removed, |tale| {
        let id = tale.ask(ANN_TOO, &Request::ListDevices(proto::ListDevices {}));
        tale.answer(ANN_TOO, id, Ok(list_of(&[(1, ""), (2, "")])));
    });
    lie("who was removed is gone", removed, |tale| list(tale, &[(1, ""), (2, "")]));
    lie("who was removed is gone", removed, |tale| {
        let id = tale.ask(ANN, &remove_request(2));
        tale.answer(ANN, id, Ok(Found::DeviceRemoved(proto::DeviceRemoved {})));
    });
    lie("a client that keeps to the protocol is told no error", nothing, |tale| {
        let error = proto::Error { code: ErrorCode::DeviceRemoved.number(), ..Default::default() };
        tale.oracle.server_error(&tale.witnesses[ANN], &error);
    });
    lie("what is right is not refused", one, |tale| {
        let id = tale.ask(BOB, &remove_request(1));
        tale.answer(BOB, id, Err(ErrorCode::DeviceNotFound.number()));
    });
    // What was on its way is not taken back; and with a new token it is there again, and its list has a gap.
    let mut tale = Tale::new(Terms::default());
    removed(&mut tale);
    list(&mut tale, &[(1, "")]);
    let error = proto::Error { code: ErrorCode::DeviceRemoved.number(), ..Default::default() };
    tale.oracle.server_error(&tale.witnesses[ANN_TOO], &error);
    tale.oracle.token_issued(key(1, 2));
    sent_since(&mut tale);
    list(&mut tale, &[(1, ""), (2, "")]);
}

#[test]
fn who_has_begun_anew_has_nothing_of_what_it_had() {
    lie(
        "who was removed gets nothing",
        |tale| {
            removed(tale);
            tale.oracle.renewed(key(1, 2));
            tale.oracle.token_issued(key(1, 2));
        },
        |tale| {
            // By the key that it had.
            tale.connect(ANN_TOO, 0, 0);
            tale.receipt(ANN_TOO, 3, delivered(0));
        },
    );
}

#[test]
fn names() {
    let named = |tale: &mut Tale| {
        name(tale, 1, "a");
        name(tale, 1, "b");
    };
    lie("a device has the name that it was given", named, |tale| list(tale, &[(1, "a")]));
    lie("a device has the name that it was given", named, |tale| list(tale, &[(1, "")]));
    lie("a device has the name that it was given", removed, |tale| {
        tale.oracle.token_issued(key(1, 2));
        list(tale, &[(1, ""), (2, "c")]);
    });
    lie("a name has its length", nothing, |tale| name(tale, 1, &"a".repeat(65)));
    let mut tale = Tale::new(Terms::default());
    named(&mut tale);
    list(&mut tale, &[(1, "b")]);
    // Nobody was told what became of this one.
    let named = proto::NameDevice { device: 1, name: "c".to_owned() };
    let id = tale.ask(ANN, &Request::NameDevice(named));
    tale.oracle.cancelled(&mut tale.witnesses[ANN], id);
    list(&mut tale, &[(1, "b")]);
    list(&mut tale, &[(1, "c")]);
}
