//! Requests and answers.

use super::*;
use crate::hub::command::Request;
use crate::hub::effect::{Answer, DeviceInfo};

fn rpc(id: u64, request: Option<proto::rpc::Request>) -> Vec<u8> {
    record(RecordType::Rpc, &proto::Rpc { id, request }.encode_to_vec())
}

fn mark_read(conversation: &[u8]) -> proto::rpc::Request {
    let conversation = bytes::Bytes::copy_from_slice(conversation);
    proto::rpc::Request::MarkRead(proto::MarkRead { conversation, seq: 4 })
}

fn name_device(device: u32, len: usize) -> proto::rpc::Request {
    proto::rpc::Request::NameDevice(proto::NameDevice { device, name: "n".repeat(len) })
}

#[test]
fn requests_are_passed_on_behind_what_was_acknowledged() {
    let mut bench = Bench::steady();
    bench.deliver(10, &[11], false);
    let home = bench.topology.hub_of_user(UserId(7));
    let list = proto::rpc::Request::ListConversations(proto::ListConversations { limit: 900, page: "next".into() });
    let devices = proto::rpc::Request::ListDevices(proto::ListDevices {});
    let set = proto::rpc::Request::SetReadReceipts(proto::SetReadReceipts { on: true });
    let remove = proto::rpc::Request::RemoveDevice(proto::RemoveDevice { device: 65_535 });
    let mut bytes = ack(11);
    for (id, request) in (1..).zip([mark_read(&[1; 16]), list, devices, set, remove, name_device(3, 64)]) {
        bytes.extend(rpc(id, Some(request)));
    }
    assert_eq!(bench.give(&bytes).1, Outcome::Hungry);
    assert!(bench.commands.iter().all(|(hub, _)| *hub == home));
    let mut commands = bench.commands.drain(..).map(|(_, command)| command);
    assert!(matches!(commands.next(), Some(Command::Ack { through: InboxSeq(11), .. })));
    let requests: Vec<Request> = commands
        .map(|command| match command {
            Command::Rpc { request, .. } => request,
            other => panic!("{other:?}"),
        })
        .collect();
    let expected = [
        Request::MarkRead { conversation: ConversationId([1; 16]), seq: ConversationSeq(4) },
        Request::Conversations { limit: 50, page: b"next".to_vec() },
        Request::Devices,
        Request::SetReadReceipts { on: true },
        Request::RemoveDevice { device: DeviceId(65_535) },
        Request::NameDevice { device: DeviceId(3), name: "n".repeat(64) },
    ];
    assert_eq!(requests, expected);
    assert_eq!(bench.ack_pending(), None, "once is enough");
}

#[test]
fn requests_that_make_no_sense_are_refused_and_the_session_lives() {
    let mut bench = Bench::steady();
    let remove = proto::rpc::Request::RemoveDevice(proto::RemoveDevice { device: 65_536 });
    let (invalid, long) = (ErrorCode::RequestInvalid, ErrorCode::NameTooLong);
    let requests = [None, Some(mark_read(&[1; 15])), Some(mark_read(b"")), Some(remove), Some(name_device(65_536, 1))];
    let refused = requests.into_iter().map(|request| (request, invalid)).chain([(Some(name_device(3, 65)), long)]);
    for (id, (request, code)) in (1..).zip(refused) {
        assert_eq!(bench.give(&rpc(id, request)).1, Outcome::Hungry);
        let result: proto::RpcResult = bench.last(RecordType::RpcResult);
        assert_eq!((result.id, result.result.is_none()), (id, true));
        assert_eq!(result.error.map(|error| error.code), Some(code.number()));
    }
    assert!(bench.commands.is_empty());
    assert_eq!(bench.give(&record(RecordType::Rpc, &[0xff])).1, Outcome::Over(ErrorCode::BadProtobuf));
}

#[test]
fn more_requests_than_may_be_under_way_are_refused() {
    let mut bench = Bench::steady();
    let devices = || Some(proto::rpc::Request::ListDevices(proto::ListDevices {}));
    for id in 1..=17 {
        bench.give(&rpc(id, devices()));
    }
    assert_eq!(bench.commands.len(), 16);
    let refused: proto::RpcResult = bench.last(RecordType::RpcResult);
    let error = refused.error.expect("refused");
    assert_eq!((refused.id, error.code, error.retry_after_ms > 0), (17, ErrorCode::Busy.number(), true));
    bench.session.write_answer(1, Err(ErrorCode::ReadBeyondDelivered), &mut plain(&mut bench.out));
    bench.give(&rpc(18, devices()));
    assert_eq!(bench.commands.len(), 17, "an answer makes room");
}

#[test]
fn answers_say_what_was_found() {
    use proto::rpc_result::Result as Found;
    let mut bench = Bench::steady();
    let (last_seen_ms, name) = (86_400_000, "watch".to_owned());
    let (online, registered, waiting) = (true, true, 7);
    let wire = proto::Device { device: 3, last_seen_ms, online, waiting, name: name.clone(), registered };
    let device = DeviceInfo { device: DeviceId(3), last_seen_ms, online, waiting, name, registered };
    for (answer, found) in [
        (Answer::MarkedRead { seq: ConversationSeq(4) }, Found::MarkedRead(proto::MarkedRead { seq: 4 })),
        (Answer::Devices(vec![device]), Found::Devices(proto::Devices { devices: vec![wire] })),
        (Answer::ReadReceiptsSet { on: true }, Found::ReadReceiptsSet(proto::ReadReceiptsSet { on: true })),
        (Answer::DeviceRemoved, Found::DeviceRemoved(proto::DeviceRemoved {})),
        (Answer::DeviceNamed, Found::DeviceNamed(proto::DeviceNamed {})),
        (
            Answer::Conversations { items: Vec::new(), next: b"more".to_vec() },
            Found::Conversations(proto::Conversations { items: Vec::new(), next: "more".into() }),
        ),
    ] {
        bench.session.write_answer(5, Ok(answer), &mut plain(&mut bench.out));
        let result: proto::RpcResult = bench.last(RecordType::RpcResult);
        assert_eq!((result.id, result.error, result.result), (5, None, Some(found)));
    }
}
