//! The hot path's codecs against prost, the record layer against any split of a stream, and the error codes.

use std::collections::HashSet;

use bytes::Bytes;
use culver_protocol::error::{ErrorClass, ErrorCode};
use culver_protocol::id::{ClientMessageId, ConversationId, ConversationSeq, DeviceId, InboxSeq, MessageId, UserId};
use culver_protocol::limits::{
    BODY_LEN_MAX, CONVERSATIONS_PAGE_MAX, ENTRY_OVERHEAD, HEADER_LEN, PREVIEW_LEN_MAX, RECEIPT_MARKS_MAX,
    SYNC_CONVERSATIONS_MAX,
};
use culver_protocol::message::{Accepted, EntryView, MarkView, SendView, decode_ack, encode_deliver, encode_receipt};
use culver_protocol::preamble::Preamble;
use culver_protocol::proto;
use culver_protocol::record::{Cipher, FrameError, Record, RecordType, split};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use prost::Message;

/// Cases by a seed that is printed; `CULVER_SEED` gives it back.
fn config() -> ProptestConfig {
    let given = std::env::var("CULVER_SEED").ok().map(|seed| seed.parse().expect("CULVER_SEED is a number"));
    let seed = given.unwrap_or(20_261_121);
    println!("seed {seed}");
    ProptestConfig { rng_seed: RngSeed::Fixed(seed), failure_persistence: None, cases: 512, ..Default::default() }
}

prop_compose! {
    fn entry()(
        numbers in any::<[u64; 5]>(),
        small in any::<bool>(),
        conversation in any::<[u8; 16]>(),
        sender_device in any::<u16>(),
        payload in vec(any::<u8>(), 0..300),
    ) -> proto::Entry {
        let [inbox_seq, conversation_seq, message_id, server_time_ms, sender] =
            numbers.map(|number| if small { number % 3 } else { number });
        proto::Entry {
            inbox_seq,
            conversation: Bytes::copy_from_slice(&conversation),
            conversation_seq,
            message_id,
            server_time_ms,
            sender,
            sender_device: sender_device.into(),
            payload: payload.into(),
        }
    }
}

prop_compose! {
    fn mark()(numbers in any::<[u64; 5]>(), small in any::<bool>(), conversation in any::<[u8; 16]>()) -> MarkView {
        let [delivered, read, expired_after, expired_through, own_read] =
            numbers.map(|number| ConversationSeq(if small { number % 3 } else { number }));
        let conversation = ConversationId(conversation);
        MarkView { conversation, delivered, read, expired_after, expired_through, own_read }
    }
}

fn view(entry: &proto::Entry) -> EntryView<'_> {
    EntryView {
        inbox_seq: InboxSeq(entry.inbox_seq),
        conversation: ConversationId::try_from(entry.conversation.as_ref()).expect("16 bytes"),
        conversation_seq: ConversationSeq(entry.conversation_seq),
        message_id: MessageId(entry.message_id),
        server_time_ms: entry.server_time_ms,
        sender: UserId(entry.sender),
        sender_device: DeviceId(u16::try_from(entry.sender_device).expect("made from a u16")),
        payload: &entry.payload,
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn send_is_what_prost_makes_of_it(
        id in vec(any::<u8>(), 0..20),
        conversation in vec(any::<u8>(), 0..20),
        payload in vec(any::<u8>(), 0..300),
    ) {
        let view = SendView { client_message_id: &id, conversation: &conversation, payload: &payload };
        let mut encoded = Vec::new();
        view.encode(&mut encoded);
        let send = proto::Send {
            client_message_id: Bytes::copy_from_slice(&id),
            conversation: Bytes::copy_from_slice(&conversation),
            payload: Bytes::copy_from_slice(&payload),
        };
        prop_assert_eq!(&encoded, &send.encode_to_vec());
        prop_assert_eq!(SendView::decode(&encoded).expect("just encoded"), view);
    }

    #[test]
    fn accepted_is_what_prost_makes_of_it(
        id in any::<[u8; 16]>(),
        numbers in any::<[u64; 4]>(),
        small in any::<bool>(),
        duplicate in any::<bool>(),
    ) {
        let [conversation_seq, message_id, server_time_ms, inbox_seq] =
            numbers.map(|number| if small { number % 3 } else { number });
        let mut encoded = Vec::new();
        let accepted = Accepted {
            client_message_id: ClientMessageId(id),
            conversation_seq: ConversationSeq(conversation_seq),
            message_id: MessageId(message_id),
            server_time_ms,
            inbox_seq: InboxSeq(inbox_seq),
            duplicate,
        };
        accepted.encode(&mut encoded);
        let client_message_id = Bytes::copy_from_slice(&id);
        let result = proto::SendResult {
            client_message_id, conversation_seq, message_id, server_time_ms, inbox_seq, duplicate, error: None,
        };
        prop_assert_eq!(encoded, result.encode_to_vec());
    }

    #[test]
    fn deliver_is_what_prost_makes_of_it(previous in any::<u64>(), entries in vec(entry(), 0..8)) {
        let mut encoded = Vec::new();
        encode_deliver(&mut encoded, InboxSeq(previous), entries.iter().map(view));
        for entry in &entries {
            prop_assert!(entry.encoded_len() <= entry.payload.len() + ENTRY_OVERHEAD);
        }
        prop_assert_eq!(encoded, proto::Deliver { previous, entries }.encode_to_vec());
    }

    #[test]
    fn receipt_is_what_prost_makes_of_it(version in any::<u64>(), marks in vec(mark(), 0..8)) {
        let mut encoded = Vec::new();
        encode_receipt(&mut encoded, version, marks.iter().copied());
        let marks = marks
            .iter()
            .map(|mark| proto::Mark {
                conversation: Bytes::copy_from_slice(&mark.conversation.0),
                delivered: mark.delivered.0,
                read: mark.read.0,
                expired_after: mark.expired_after.0,
                expired_through: mark.expired_through.0,
                own_read: mark.own_read.0,
            })
            .collect();
        prop_assert_eq!(encoded, proto::Receipt { version, marks }.encode_to_vec());
    }

    #[test]
    fn ack_is_what_prost_makes_of_it(inbox_seq in any::<u64>(), entries in any::<u32>(), bytes in any::<u32>()) {
        let ack = proto::Ack { inbox_seq, credit_entries: entries, credit_bytes: bytes };
        prop_assert_eq!(decode_ack(&ack.encode_to_vec()).expect("protobuf"), (InboxSeq(inbox_seq), entries, bytes));
    }

    /// On bytes that are no message at all the hot decoders and prost agree on whether they are one.
    #[test]
    fn garbage_is_garbage_to_both(bytes in vec(any::<u8>(), 0..40)) {
        let send = proto::Send::decode(bytes.as_slice());
        match (SendView::decode(&bytes), &send) {
            (Ok(view), Ok(send)) => {
                prop_assert_eq!(view.client_message_id, send.client_message_id.as_ref());
                prop_assert_eq!(view.conversation, send.conversation.as_ref());
                prop_assert_eq!(view.payload, send.payload.as_ref());
            }
            (ours, _) => prop_assert_eq!(ours.is_err(), send.is_err()),
        }
        let ack = proto::Ack::decode(bytes.as_slice());
        match (decode_ack(&bytes), &ack) {
            (Ok((through, ..)), Ok(ack)) => prop_assert_eq!(through.0, ack.inbox_seq),
            (ours, _) => prop_assert_eq!(ours.is_err(), ack.is_err()),
        }
    }

    /// The same, on bytes that nearly are one: a message with a byte changed, cut or doubled.
    #[test]
    fn damage_is_damage_to_both(
        id in any::<[u8; 16]>(), payload in vec(any::<u8>(), 0..20), at in any::<usize>(), with in any::<u8>(),
    ) {
        let mut bytes = Vec::new();
        SendView { client_message_id: &id, conversation: &id, payload: &payload }.encode(&mut bytes);
        let at = at % bytes.len();
        if let Some(byte) = bytes.get_mut(at) {
            *byte = with;
        }
        prop_assert_eq!(SendView::decode(&bytes).is_err(), proto::Send::decode(bytes.as_slice()).is_err());
        let cut = bytes.get(..at).expect("within");
        prop_assert_eq!(SendView::decode(cut).is_err(), proto::Send::decode(cut).is_err());
    }

    /// However a stream comes in pieces, the same records come out.
    #[test]
    fn any_split_gives_the_same_records(
        bodies in vec(vec(any::<u8>(), 0..200), 0..12),
        pieces in vec(1..64_usize, 1..50),
    ) {
        let mut stream = Vec::new();
        for body in &bodies {
            Cipher::default().seal(&mut stream, RecordType::Send, |out| out.extend_from_slice(body));
        }
        let mut buffer = Vec::new();
        let mut found = Vec::new();
        let mut rest = stream.as_slice();
        for len in pieces.iter().cycle() {
            let (piece, later) = rest.split_at((*len).min(rest.len()));
            buffer.extend_from_slice(piece);
            rest = later;
            while let Some(range) = split(&buffer, HEADER_LEN, BODY_LEN_MAX).expect("well framed") {
                let end = range.end;
                let record = Record::parse(buffer.get(range).expect("found")).expect("type and flags");
                prop_assert_eq!((record.kind, record.flags), (RecordType::Send as u8, 0));
                found.push(record.body.to_vec());
                buffer.drain(..end);
            }
            if rest.is_empty() {
                break;
            }
        }
        prop_assert!(buffer.is_empty());
        prop_assert_eq!(found, bodies);
    }

    /// A length that is refused is refused as soon as it is there, and no other is.
    #[test]
    fn lengths_are_judged_at_once(len in any::<u16>(), len_min in 0..4_usize, len_max in 4..40_000_usize) {
        let outcome = split(&len.to_be_bytes(), len_min, len_max);
        let len = usize::from(len);
        let expected = if len < len_min {
            Err(FrameError::TooShort(len))
        } else if len > len_max {
            Err(FrameError::TooLong(len))
        } else if len == 0 {
            Ok(Some(2..2))
        } else {
            Ok(None)
        };
        prop_assert_eq!(outcome, expected);
    }

    #[test]
    fn preambles_come_back(bytes in any::<[u8; 6]>()) {
        let [version_min, version_max, handshake, suite, key_high, key_low] = bytes;
        let encoded = [b'C', b'V', version_min, version_max, handshake, suite, key_high, key_low];
        match Preamble::decode(encoded) {
            Ok(preamble) => prop_assert_eq!(preamble.encode(), encoded),
            Err(error) => prop_assert!(error == ErrorCode::VersionUnsupported && version_min > version_max),
        }
    }

    #[test]
    fn direct_conversations_name_their_users(a in any::<u64>(), b in any::<u64>()) {
        let conversation = ConversationId::direct(UserId(a), UserId(b));
        prop_assert_eq!(conversation, ConversationId::direct(UserId(b), UserId(a)));
        prop_assert_eq!(conversation.direct_users(), Some((UserId(a.min(b)), UserId(a.max(b)))));
        prop_assert_eq!(conversation.direct_peer(UserId(a)), Some(UserId(b)));
    }
}

/// The longest RECEIPT and the longest page of a list fit a record.
#[test]
fn full_receipts_and_lists_fit_a_record() {
    let most = ConversationSeq(u64::MAX);
    let conversation = ConversationId([0xFF; 16]);
    let (delivered, read, expired_after, expired_through, own_read) = (most, most, most, most, most);
    let mark = MarkView { conversation, delivered, read, expired_after, expired_through, own_read };
    let mut record = Vec::new();
    Cipher::default().seal(&mut record, RecordType::Receipt, |out| {
        encode_receipt(out, u64::MAX, std::iter::repeat_n(mark, RECEIPT_MARKS_MAX));
    });
    let id = Bytes::copy_from_slice(&conversation.0);
    let entry = proto::Entry {
        inbox_seq: u64::MAX,
        conversation: id.clone(),
        conversation_seq: u64::MAX,
        message_id: u64::MAX,
        server_time_ms: u64::MAX,
        sender: u64::MAX,
        sender_device: u16::MAX.into(),
        payload: vec![0; PREVIEW_LEN_MAX].into(),
    };
    let (last_seq, unread, waiting, read) = (u64::MAX, u64::MAX, u64::MAX, u64::MAX);
    let item = proto::ConversationItem { conversation: id, last_seq, unread, waiting, read, last: Some(entry) };
    let conversations = vec![item.clone(); SYNC_CONVERSATIONS_MAX];
    let start = proto::SyncStart { entries: u64::MAX, through: u64::MAX, conversations };
    Cipher::default().seal_message(&mut record, RecordType::SyncStart, &start);
    let page = proto::Conversations { items: vec![item; CONVERSATIONS_PAGE_MAX], next: vec![0; 256].into() };
    let result = Some(proto::rpc_result::Result::Conversations(page));
    let answer = proto::RpcResult { id: u64::MAX, error: None, result };
    Cipher::default().seal_message(&mut record, RecordType::RpcResult, &answer);
}

#[test]
fn error_codes_are_unique_and_say_their_class() {
    let numbers: HashSet<u32> = ErrorCode::ALL.iter().map(|code| code.number()).collect();
    assert_eq!(numbers.len(), ErrorCode::ALL.len());
    assert!(ErrorCode::ALL.is_sorted_by_key(|code| code.number()));
    for code in ErrorCode::ALL {
        assert_eq!(ErrorCode::from_number(code.number()), Some(*code));
        let class = match code.number() {
            1000..2000 => ErrorClass::RetryHere,
            2000..3000 => ErrorClass::Reconnect,
            3000..4000 => ErrorClass::RefreshToken,
            4000..5000 => ErrorClass::DoNotRetry,
            5000..6000 => ErrorClass::Stop,
            other => panic!("{other} has no class"),
        };
        assert_eq!(code.class(), class, "{code:?}");
        assert!(!code.text().is_empty());
        // Who may go on here is not thrown out; who must go elsewhere is.
        assert!(class != ErrorClass::RetryHere || !code.closes(), "{code:?}");
        assert!(matches!(class, ErrorClass::RetryHere | ErrorClass::DoNotRetry) || code.closes(), "{code:?}");
    }
    assert_eq!(ErrorCode::from_number(0), None);
    assert_eq!(ErrorCode::from_number(9999), None);
}

#[test]
fn record_types_are_known_by_their_number() {
    for number in 0..=u8::MAX {
        let known = RecordType::ALL.iter().find(|kind| **kind as u8 == number);
        assert_eq!(RecordType::from_number(number), known.copied());
    }
}
